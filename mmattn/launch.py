"""N processes of one experiment on this machine, run and reported as one job."""

import ctypes
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO

from mmattn.errors import Diverged, LostProcess, Stopped, UserError

GRACE = 10.0  # seconds in which processes may end before they are killed
STOP_GRACE = 120.0  # the same after SIGTERM: a step and a checkpoint
POLL = 0.02
LAST_LINES = 15
INTERRUPTED = 128 + signal.SIGINT
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
SAID = (UserError.exit_code, Diverged.exit_code, Stopped.exit_code)
CONSEQUENCES = (LostProcess.exit_code, -signal.SIGABRT)  # of another process's death


class Ended(UserError):
    """A process ended badly; with its exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.exit_code = code


@dataclass(frozen=True)
class Member:
    """One of the processes."""

    number: int
    process: subprocess.Popen
    output: IO[str] | None
    """What it printed; None for process 0, which prints where this one does."""

    def last_lines(self) -> str:
        """The end of what it printed."""
        if self.output is None:
            return ""
        self.output.seek(0)
        return "\n".join(self.output.read().splitlines()[-LAST_LINES:])


def launch(count: int, command: Sequence[str]) -> None:
    """Run `python -m MODULE …` as `count` processes until they all end.

    Args:
        count: processes; the cores of this one are divided among them.
        command: the module and its options.

    Raises:
        UserError: a bad number or no command.
        Ended: a process ended otherwise than with 0; the others are ended too. Its exit code is
            that of the process, or 128 and the signal.
    """
    cores = sorted(os.sched_getaffinity(0))
    if count < 1:
        raise UserError(f"-n {count}: expected 1 process or more")
    if not command:
        raise UserError("expected a module after --, e.g. mmattn launch -n 2 -- experiments.no_aug")
    if own := [word for word in command if word.startswith("--distributed.")]:
        raise UserError(f"{own[0]}: mmattn launch gives its processes these options itself")
    if command[0] == "experiments.compare":
        raise UserError(f"{command[0]} is a study, which trains on all cores without mmattn launch")
    with ExitStack() as stack:
        asked = stack.enter_context(_signals())
        members = []
        stack.callback(_kill, members)
        address = f"127.0.0.1:{_free_port()}"
        for number in range(count):
            options = (
                *("--distributed.coordinator", address),
                *("--distributed.num-processes", str(count), "--distributed.process-id"),
                str(number),
            )
            own = cores[number * len(cores) // count : (number + 1) * len(cores) // count]
            own = own or [cores[number % len(cores)]]
            output = None
            if number:
                output = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            os.sched_setaffinity(0, own)  # the new process has it from its first thread on
            try:
                members.append(_start(number, [*command, *options], output))
            finally:
                os.sched_setaffinity(0, cores)
        _wait(members, asked)


def _start(number: int, command: Sequence[str], output: IO[str] | None) -> Member:
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        env={"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ},  # no warnings from C++
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output and subprocess.STDOUT,
        start_new_session=True,  # a signal from the terminal comes through this process, once
        preexec_fn=_die_with_parent(),
    )
    return Member(number, process, output)


def _die_with_parent() -> Callable[[], object] | None:
    """What a new process calls to be killed when this one ends, however that comes; on Linux."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    return prctl and partial(prctl, PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list of the SIGINT and SIGTERM that come while the block runs."""
    asked: list[int] = []
    kinds = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(kind, lambda number, _: asked.append(number)) for kind in kinds]
    try:
        yield asked
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def _wait(members: Sequence[Member], asked: list[int]) -> None:
    """Wait until all have ended; pass signals on; end the others when one ends badly."""
    passed, deadline, guilty = 0, math.inf, None
    while any(member.process.poll() is None for member in members):
        for number in asked[passed:]:
            passed += 1
            grace = GRACE if number == signal.SIGINT else STOP_GRACE
            deadline = min(deadline, time.monotonic() + grace)
            _send(members, number)
        if guilty is None or guilty.process.returncode in CONSEQUENCES:
            guilty = _guilty(members)
            if guilty:
                deadline = min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            _send(members, signal.SIGKILL)
            break
        time.sleep(POLL)
    for member in members:
        member.process.wait()
    if signal.SIGINT in asked:
        if members[0].process.returncode == INTERRUPTED:  # and has said so
            raise SystemExit(INTERRUPTED)
        raise KeyboardInterrupt
    guilty = guilty or _guilty(members)
    if guilty is not None:
        _report(guilty, members)


def _guilty(members: Sequence[Member]) -> Member | None:
    """The first that ended badly, but one that ended because of another only if it is alone."""
    bad = [member for member in members if member.process.poll()]
    return min(bad, key=lambda member: member.process.returncode in CONSEQUENCES, default=None)


def _report(guilty: Member, members: Sequence[Member]) -> None:
    """Raise what ended the job; what process 0 said of itself has been seen."""
    code = guilty.process.returncode
    if code in SAID and code == members[0].process.returncode:
        raise SystemExit(code)
    how = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
    message = f"process {guilty.number} of {len(members)} ended with {how}"
    if lines := guilty.last_lines():
        message += f"; its last lines:\n{lines}"
    raise Ended(message, code if code > 0 else 128 - code)


def _send(members: Sequence[Member], number: int) -> None:
    for member in members:
        if member.process.poll() is None:
            member.process.send_signal(number)


def _kill(members: Sequence[Member]) -> None:
    """Leave no process behind."""
    _send(members, signal.SIGKILL)
    for member in members:
        member.process.wait()
