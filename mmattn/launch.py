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
from typing import IO

from mmattn.errors import Diverged, LostProcess, Stopped, UserError
from mmattn.machine import own_cores, pin
from mmattn.train.hub import LOOPBACK, PARENT, free_port

GRACE = 10.0  # seconds in which processes may end before they are killed
STOP_GRACE = 120.0  # the same after SIGTERM: time for a step and a checkpoint
POLL = 0.02
LAST_LINES = 15
INTERRUPTED = 128 + signal.SIGINT
SAID = (UserError.exit_code, Diverged.exit_code, Stopped.exit_code)


def launch(count: int, command: Sequence[str]) -> None:
    """Run `python -m MODULE …` as `count` processes until they all end; forward signals to them.

    Args:
        count: processes; they share the cores of this one.
        command: the module and its options.

    Raises:
        UserError: the number or command is invalid; or a process failed, and the others were ended
            too. The exit code is then that of the process, or 128 + the signal.
    """
    if count < 1:
        raise UserError(f"-n {count}: expected 1 process or more")
    if not command:
        raise UserError("expected an experiment, as in: mmattn launch -n 2 experiments.no_aug")
    if own := [word for word in command if word.startswith("--distributed.")]:
        raise UserError(f"{own[0]}: mmattn launch sets these options itself")
    if command[0] in ("experiments.compare", "experiments.ablation"):
        raise UserError(f"{command[0]} is a study, which uses all cores without mmattn launch")
    with ExitStack() as stack:
        asked: list[int] = []
        for kind in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(kind, lambda number, _: asked.append(number))
            stack.callback(signal.signal, kind, before)
        members: list[subprocess.Popen] = []
        stack.callback(_kill, members)
        shared = (
            *("--distributed.coordinator", f"{LOOPBACK}:{free_port()}"),
            *("--distributed.num-processes", str(count), "--distributed.process-id"),
        )
        cores, outputs = own_cores(), []
        for number in range(count):
            own = cores[number * len(cores) // count : (number + 1) * len(cores) // count]
            own = own or [cores[number % len(cores)]]
            output = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            outputs.append(output)  # process 0 prints to this process's output
            words = [*command, *shared, str(number)]
            members.append(_start(words, own, output if number else None))
        guilty = _wait(members, asked)
        if guilty is not None:
            _report(guilty, members, outputs[guilty])


def _start(command: Sequence[str], own: list[int], output: IO[str] | None) -> subprocess.Popen:
    """Start a process on its own cores, or on as many where the system cannot pin."""
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        env={
            "TF_CPP_MIN_LOG_LEVEL": "2",  # no warnings from C++
            **os.environ,
            "NPROC": str(len(own)),
            PARENT: str(os.getpid()),
        },
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,  # signals from the terminal come once, from this process
        preexec_fn=partial(pin, own),
    )


def _wait(members: Sequence[subprocess.Popen], asked: list[int]) -> int | None:
    """Forward signals until all have ended; end all if one fails, and return its number."""
    passed, deadline, guilty = 0, math.inf, None
    while any(member.poll() is None for member in members):
        for number in asked[passed:]:
            passed += 1
            grace = GRACE if number == signal.SIGINT else STOP_GRACE
            deadline = min(deadline, time.monotonic() + grace)
            for member in members:
                member.send_signal(number)
        if guilty is None or members[guilty].returncode == LostProcess.exit_code:
            guilty = _guilty(members)
            if guilty is not None:
                deadline = min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            _kill(members)
        time.sleep(POLL)
    if signal.SIGINT in asked:
        if members[0].returncode == INTERRUPTED:  # and has reported it
            raise SystemExit(INTERRUPTED)
        raise KeyboardInterrupt
    return _guilty(members) if guilty is None else guilty


def _guilty(members: Sequence[subprocess.Popen]) -> int | None:
    """The first that failed; one that failed because of another only if there is no other."""
    bad = [number for number, member in enumerate(members) if member.poll()]
    return min(bad, key=lambda n: members[n].returncode == LostProcess.exit_code, default=None)


def _report(guilty: int, members: Sequence[subprocess.Popen], output: IO[str]) -> None:
    """Raise what ended the job; process 0 has already printed its own error."""
    code = members[guilty].returncode
    if code in SAID and code == members[0].returncode:
        raise SystemExit(code)
    how = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
    message = f"process {guilty} of {len(members)} ended with {how}"
    output.seek(0)
    if lines := output.read().splitlines()[-LAST_LINES:]:
        message = "\n".join([f"{message}; its last lines:", *lines])
    error = UserError(message)
    error.exit_code = code if code > 0 else 128 - code
    raise error


def _kill(members: Sequence[subprocess.Popen]) -> None:
    """Leave no process behind."""
    for member in members:
        member.kill()
        member.wait()
