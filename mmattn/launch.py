"""N processes of one experiment on this machine, run and reported as one job."""

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import IO, NamedTuple

from mmattn.errors import Diverged, LostProcess, Stopped, UserError
from mmattn.machine import own_cores, pin
from mmattn.train.hub import LOOPBACK, PARENT, free_port

GRACE = 10.0  # seconds in which processes may end before they are killed
STOP_GRACE = 120.0  # the same after SIGTERM: a step and a checkpoint
POLL = 0.02
LAST_LINES = 15
INTERRUPTED = 128 + signal.SIGINT
SAID = (UserError.exit_code, Diverged.exit_code, Stopped.exit_code)


class Member(NamedTuple):
    """One of the processes."""

    number: int
    process: subprocess.Popen
    output: IO[str]
    """What it printed; nothing for process 0, which prints where this one does."""


def launch(count: int, command: Sequence[str]) -> None:
    """Run `python -m MODULE …` as `count` processes until they all end; signals go to them.

    Args:
        count: processes; the cores of this one are divided among them.
        command: the module and its options.

    Raises:
        UserError: a bad number or no command; or a process ended otherwise than with 0, and the
            others are ended too. The exit code is then that of the process, or 128 and the signal.
    """
    if count < 1:
        raise UserError(f"-n {count}: expected 1 process or more")
    if not command:
        raise UserError("expected a module after --, e.g. mmattn launch -n 2 -- experiments.no_aug")
    if own := [word for word in command if word.startswith("--distributed.")]:
        raise UserError(f"{own[0]}: mmattn launch gives its processes these options itself")
    if command[0] == "experiments.compare":
        raise UserError(f"{command[0]} is a study, which trains on all cores without mmattn launch")
    asked: list[int] = []
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda number, _: asked.append(number))
    with ExitStack() as stack:
        members: list[Member] = []
        stack.callback(_kill, members)
        shared = (
            *("--distributed.coordinator", f"{LOOPBACK}:{free_port()}"),
            *("--distributed.num-processes", str(count), "--distributed.process-id"),
        )
        cores = own_cores()
        for number in range(count):
            own = cores[number * len(cores) // count : (number + 1) * len(cores) // count]
            own = own or [cores[number % len(cores)]]
            output = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            members.append(_start(number, [*command, *shared, str(number)], own, output))
        _wait(members, asked)


def _start(number: int, command: Sequence[str], own: list[int], output: IO[str]) -> Member:
    """Start a process on its own cores or, where the system leaves no choice, on as many."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        env={
            "TF_CPP_MIN_LOG_LEVEL": "2",  # no warnings from C++
            **os.environ,
            "NPROC": str(len(own)),
            PARENT: str(os.getpid()),
        },
        stdin=subprocess.DEVNULL,
        stdout=output if number else None,
        stderr=output if number else None,
        start_new_session=True,  # a signal from the terminal comes through this process, once
        preexec_fn=partial(pin, own),
    )
    return Member(number, process, output)


def _wait(members: Sequence[Member], asked: list[int]) -> None:
    """Wait until all have ended; pass signals on; end the others when one ends badly."""
    passed, deadline, guilty = 0, math.inf, None
    while any(member.process.poll() is None for member in members):
        for number in asked[passed:]:
            passed += 1
            grace = GRACE if number == signal.SIGINT else STOP_GRACE
            deadline = min(deadline, time.monotonic() + grace)
            _send(members, number)
        if guilty is None or guilty.process.returncode == LostProcess.exit_code:
            guilty = _guilty(members)
            if guilty:
                deadline = min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            _kill(members)
        time.sleep(POLL)
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
    return min(bad, key=lambda one: one.process.returncode == LostProcess.exit_code, default=None)


def _report(guilty: Member, members: Sequence[Member]) -> None:
    """Raise what ended the job; what process 0 said of itself has been seen."""
    code = guilty.process.returncode
    if code in SAID and code == members[0].process.returncode:
        raise SystemExit(code)
    how = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
    message = f"process {guilty.number} of {len(members)} ended with {how}"
    guilty.output.seek(0)
    if lines := guilty.output.read().splitlines()[-LAST_LINES:]:
        message = "\n".join([f"{message}; its last lines:", *lines])
    error = UserError(message)
    error.exit_code = code if code > 0 else 128 - code
    raise error


def _send(members: Sequence[Member], number: int) -> None:
    for member in members:
        if member.process.poll() is None:
            member.process.send_signal(number)


def _kill(members: Sequence[Member]) -> None:
    """Leave no process behind."""
    for member in members:
        member.process.kill()
        member.process.wait()
