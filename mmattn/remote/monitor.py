"""`fab monitor`: watch a run through any drop for as long as its job may live."""

import base64
import math
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol

from rich.console import Console, RenderableType
from rich.live import Live

from mmattn.console import WIDTH, complain, say
from mmattn.errors import UserError
from mmattn.remote.cloud import GONE, Instance
from mmattn.remote.runs import Run
from mmattn.remote.screen import GUARD_REASONS, Touch, duration, job_text, report, summary_line
from mmattn.remote.ssh import CommandFailed, NotLoggedIn, RemoteError, Unreachable

POLL_S = 2.0
CALL_S = 15.0  # for the machine's answer, once connected
HANG_S = 120.0  # after which a call is given up that should have ended by itself
HALTED = ("stopping", "stopped")  # by a user: what ends by itself is terminated
FIRST_S, LONGEST_S = 1.0, 20.0  # between calls while out of touch
ASK_CLOUD_S = 30.0
CLOUD_S = 20.0  # for EC2's answer where nothing continues without it
TAIL_OPTIONS = ("--offset", str(-8 * 1024), "--limit", str(8 * 1024))  # of the log, for reports
CHUNK = 256 * 1024  # bytes of the log a call, for --follow
PLAIN_S, EPOCH_S = 60.0, 10.0  # between lines where there is no terminal, and at least so
LOST = 70  # exit code of a job whose end was not recorded (EX_SOFTWARE)
INTERRUPTED = 128 + signal.SIGINT
BROKEN_PIPE = 128 + signal.SIGPIPE


def monitor(run: Run, quick: bool, follow: bool) -> int:
    """Show a run until its job ends.

    Args:
        run: any, with or without a machine of EC2.
        quick: one report.
        follow: the job's log to the standard output, byte for byte, instead of reports.

    Returns:
        The job's exit code; 70 if it was killed together with its supervisor; with `quick`, 0 while
        it runs; 130 after Ctrl-C, 141 when the log has no reader any more.

    Raises:
        UserError: there is no job, or the machine is gone or not the known one; with `quick`, also
            if it is out of reach.
    """
    if quick and follow:
        raise UserError("--quick --follow: expected one of them")
    link = Link(run)
    try:
        if quick:
            return _report_once(link)
        if follow:
            code = watch(link, Follower(sys.stdout.buffer))
            complain(f"the job: {job_text(link.last['job'], link.last['now'])[0]}")
            return code
        if sys.stdout.isatty():
            with Screen(run) as view:
                code = watch(link, view)
        else:
            code = watch(link, Lines(run))
        link.hear_others(wait=True)
        _print_report(link)
        return code
    except KeyboardInterrupt:
        complain(f"left; {run.name} continues: `fab monitor --run {run.name}` shows it again")
        return INTERRUPTED
    except BrokenPipeError:
        # Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    finally:
        link.close()


def watch(link: "Link", view: "View") -> int:
    """The poll loop of all views: until the job has ended and nothing is left to show.

    Returns:
        The job's exit code.

    Raises:
        UserError: there is no job, or never will be news of it.
    """
    while True:
        snapshot = link.snapshot(view)
        if view.take(snapshot, link.touch):
            continue
        if snapshot["job"]["state"] != "running":
            return exit_code(link.run, snapshot["job"])
        time.sleep(POLL_S)


def exit_code(run: Run, job: dict) -> int:
    """The exit code that a job's state means; UserError if no job was started."""
    if job["state"] == "absent":
        raise UserError(f"{run.name}: no job was started; `fab deploy` continues")
    return {"running": 0, "lost": LOST}.get(job["state"], job["exit_code"])


def backoff(failures: int, luck: float) -> float:
    """Seconds to wait after some failures in a row: up to 2, 4, 8, … 20, at least 1.

    Args:
        failures: 1 or more.
        luck: random, from 0 to 1, so that many do not come back at once.
    """
    most = min(LONGEST_S, FIRST_S * 2 ** min(failures, 10))
    return FIRST_S + (most - FIRST_S) * luck


class Background:
    """Work in a thread of its own, so that Ctrl-C and a deadline reach whoever waits for it."""

    def __init__(self, work: Callable[[], Any]):
        self._work, self._done = work, threading.Event()
        self._value: Any = None
        self._error: Exception | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._value = self._work()
        except Exception as error:
            self._error = error
        self._done.set()

    def wait(self, seconds: float) -> bool:
        """Wait for the end, at most so long; returns whether it came."""
        return self._done.wait(seconds)

    def result(self) -> Any:
        """What the work returned or raised; once it has ended."""
        if self._error is not None:
            raise self._error
        return self._value


class Link:
    """Asks a run's machine for snapshots, again and again through any drop.

    Args:
        run: its address is corrected here (not in its file) if EC2 gives a new one.
    """

    def __init__(self, run: Run):
        self.run, self.machine = run, run.machine()
        self.others = [Other(run, rank) for rank in range(1, len(run.members))]
        self.touch = Touch()
        self.last: dict | None = None
        self._question: Background | None = None
        self._asked = -math.inf

    def once(self) -> dict:
        """A snapshot at the first try.

        Raises:
            RemoteError: there is none, and EC2's state of the machine.
        """
        try:
            snapshot = self._call(TAIL_OPTIONS)
        except RemoteError as error:
            self._look_at_cloud(wait=True)
            if self.touch.cloud:
                error.args = (f"{error}; {self.touch.cloud}",)
            raise
        self.hear_others(wait=True)
        return snapshot

    def snapshot(self, view: "View") -> dict:
        """A snapshot, however long it takes to get one.

        Args:
            view: tells which part of the log, and is told while the machine is out of touch.

        Raises:
            RemoteError: the machine is gone, or not the known one, or lets no one in.
        """
        failures = 0
        while True:
            machine = self.machine
            try:
                snapshot = self._call(view.options())
            except RemoteError as error:
                may_pass = self._may_pass(error)
                self._look_at_cloud(wait=not may_pass)
                if not may_pass and machine is self.machine:
                    raise
            else:
                self.hear_others()
                return snapshot
            failures += 1
            view.out_of_touch(self.touch)
            self._pause(backoff(failures, random.random()))

    def close(self) -> None:
        """End the connections."""
        self.machine.close()
        for other in self.others:
            other.machine.close()

    def hear_others(self, wait: bool = False) -> None:
        """Put into the last snapshot what is known of the run's other machines.

        Raises:
            RemoteError: the job runs, or seems to, and one of them is gone.
        """
        self.last["others"] = [other.look(wait) for other in self.others]
        if self.last["job"]["state"] == "running":
            for other in self.others:
                if other.is_gone and not other.is_done:
                    raise RemoteError(lost_text(self.run, other))

    def _call(self, options: tuple[str, ...]) -> dict:
        machine = self.machine
        call = Background(lambda: machine.call("snapshot", *options, timeout=CALL_S))
        try:
            if not call.wait(HANG_S):
                self.machine = self.run.machine()
                raise Unreachable(f"no end of a call within {HANG_S:g} s")
            snapshot = call.result()
        except RemoteError as error:
            since = self.touch.since or self.touch.heard or time.time()
            self.touch = self.touch._replace(since=since, reason=str(error))
            raise
        self.last, self.touch = snapshot, Touch(heard=time.time())
        return snapshot

    def _may_pass(self, error: RemoteError) -> bool:
        """Whether it is worth trying again.

        A machine that has answered before and now refuses is going down, or short of memory.
        """
        temporary = isinstance(error, (CommandFailed, NotLoggedIn))
        return isinstance(error, Unreachable) or (temporary and self.last is not None)

    def _pause(self, seconds: float) -> None:
        if self._question is None:
            time.sleep(seconds)
        else:
            self._question.wait(seconds)  # its answer may end everything

    def _look_at_cloud(self, wait: bool = False) -> None:
        """Ask EC2 from time to time; without `wait`, its answer counts at the next look.

        Raises:
            RemoteError: the machine is gone.
        """
        run = self.run
        if not run.members:
            return
        if self._question is None and (wait or time.monotonic() - self._asked >= ASK_CLOUD_S):
            self._asked = time.monotonic()
            self._question = Background(lambda: run.cloud().instance(run.instance_id))
        if self._question is None or not self._question.wait(CLOUD_S if wait else 0):
            return
        question, self._question = self._question, None
        try:
            found = question.result()
        except UserError as error:  # this computer may be offline altogether
            self.touch = self.touch._replace(cloud=f"EC2 cannot be asked: {error}")
            return
        if found is None or found.state in (*GONE, *HALTED):
            raise RemoteError(gone_text(run, found, self.last))
        self.touch = self.touch._replace(cloud=f"EC2 reports that it is {found.state}")
        if found.address not in (None, run.address):
            self.machine.close()
            run.members[0].address = found.address
            self.machine = run.machine()


class Other:
    """Another machine of a run: asked beside the first, which is not kept waiting for it.

    Attributes:
        is_gone: EC2 reports that it runs no more.
        trouble: what is wrong with it, in words; nothing while it answers.
    """

    def __init__(self, run: Run, rank: int):
        self.run, self.rank, self.machine = run, rank, run.machine(rank)
        self.is_gone, self.trouble = False, ""
        self._snapshot: dict | None = None
        self._call: Background | None = None

    @property
    def is_done(self) -> bool:
        """Whether its job has ended well: the first may have work left that it does alone."""
        return self._snapshot is not None and self._snapshot["job"]["exit_code"] == 0

    def look(self, wait: bool) -> dict:
        """What is known of it: its `rank`, its last `snapshot`, and what is wrong (`trouble`)."""
        if self._call is None and not self.is_gone:
            self._call = Background(self._ask)
        if self._call is not None and self._call.wait(HANG_S if wait else 0):
            self._call.result()
            self._call = None
        return {"rank": self.rank, "snapshot": self._snapshot, "trouble": self.trouble}

    def _ask(self) -> None:
        try:
            self._snapshot = self.machine.call("snapshot", "--limit", "0", timeout=CALL_S)
            self.trouble = ""
            return
        except RemoteError as error:
            trouble = f"out of touch: {error}"
        try:
            found = self.run.cloud().instance(self.run.members[self.rank].id)
        except UserError as error:  # this computer may be offline altogether
            self.trouble = f"{trouble}; EC2 cannot be asked: {error}"
            return
        self.is_gone = found is None or found.state in (*GONE, *HALTED)
        if self.is_gone:
            trouble = f"{found.state if found else 'unknown'} at EC2"
            trouble += f" ({found.reason})" if found and found.reason else ""
        self.trouble = trouble


def lost_text(run: Run, other: Other) -> str:
    """What to tell of a machine that is gone while the others train."""
    left = len(run.members) - 1
    return (
        f"machine {other.rank}, {run.members[other.rank].id}, is lost: {other.trouble}. The job "
        f"cannot continue without it: `fab resume` restarts it on the {left} that "
        f"{'is' if left == 1 else 'are'} left"
    )


def gone_text(run: Run, found: Instance | None, last: dict | None) -> str:
    """What to tell of a machine that runs no more: why, what it costs, what to do.

    Args:
        run: whose machine it was.
        found: EC2's answer; None if it has forgotten the machine.
        last: the last snapshot.
    """
    state = found.state if found else "terminated and forgotten"
    why = [found.reason] if found and found.reason else []
    if last and last["guard"] and last["guard"]["reason"]:
        why.append(f"its guard had reported: {GUARD_REASONS[last['guard']['reason']]}")
    because = f" ({'; '.join(why)})" if why else ""
    text = f"{run.instance_id} is {state} at EC2{because}. "
    if state in HALTED:
        return (
            f"{text}The job is dead; the disk exists and costs. Start the machine in EC2's console "
            "and `fab resume`, or `fab teardown`"
        )
    left = len(run.members) - 1
    where = f"what is left, {left} of {left + 1}" if left > 0 else "a new machine"
    if run.fetched:
        again = f"`fab resume` continues from what was fetched, in {run.results}, on {where}"
    else:
        again = f"Nothing was fetched: `fab resume` begins anew on {where}"
    return (
        f"{text}It costs nothing any more, and results that were not fetched are lost. {again}; "
        "`fab teardown` removes what is left"
    )


class View(Protocol):
    """What is made of the snapshots."""

    def options(self) -> tuple[str, ...]:
        """Options of the next snapshot: which part of the log."""

    def take(self, snapshot: dict, touch: Touch) -> bool:
        """Show a snapshot; returns whether there is more to ask for at once."""

    def out_of_touch(self, touch: Touch) -> None:
        """Show that a call failed."""


class Screen:
    """One screen that is drawn again every second, so that its times advance."""

    def __init__(self, run: Run):
        self.run = run
        self._shown: tuple[dict | None, Touch] = None, Touch()  # one value for two threads
        self._console = Console()
        self._live = Live(
            console=self._console, screen=True, get_renderable=self._draw, refresh_per_second=1
        )

    def __enter__(self) -> "Screen":
        self._live.start()
        return self

    def __exit__(self, *_) -> None:
        self._live.stop()

    def options(self) -> tuple[str, ...]:
        return TAIL_OPTIONS

    def take(self, snapshot: dict, touch: Touch) -> bool:
        self._shown = snapshot, touch
        self._live.refresh()
        return False

    def out_of_touch(self, touch: Touch) -> None:
        self._shown = self._shown[0], touch
        self._live.refresh()

    def _draw(self) -> RenderableType:
        return report(self.run, *self._shown, time.time(), self._console.height)


class Notes:
    """Says when touch is lost and found again."""

    def __init__(self, tell: Callable[[str], None]):
        self._tell, self._lost = tell, None

    def out_of_touch(self, touch: Touch) -> None:
        if self._lost is None:
            self._tell(f"out of touch, trying again: {touch.reason}")
        self._lost = touch.since

    def in_touch(self) -> None:
        if self._lost is not None:
            self._tell(f"in touch again after {duration(time.time() - self._lost)}")
        self._lost = None


class Lines:
    """A line a minute, and at the end of an epoch; for where there is no terminal."""

    def __init__(self, run: Run, tell: Callable[[str], None] = say):
        self.run, self._tell, self._notes = run, tell, Notes(tell)
        self._said, self._epoch = -math.inf, None

    def options(self) -> tuple[str, ...]:
        return TAIL_OPTIONS

    def take(self, snapshot: dict, touch: Touch) -> bool:
        self._notes.in_touch()
        epoch = (snapshot["part"], len(snapshot["metrics"]) and snapshot["metrics"][-1]["epoch"])
        since = time.monotonic() - self._said
        if since >= PLAIN_S or (epoch != self._epoch and since >= EPOCH_S):
            self._said, self._epoch = time.monotonic(), epoch
            self._tell(summary_line(self.run, snapshot, touch.heard))
        return False

    def out_of_touch(self, touch: Touch) -> None:
        self._notes.out_of_touch(touch)


class Follower:
    """Writes the job's log, each byte once; other messages go to the standard error.

    Only what was written counts: whatever a cut call brought is asked for again.
    """

    def __init__(self, out: BinaryIO):
        self._out, self._notes = out, Notes(complain)
        self._offset, self._inode, self._ended = 0, None, False

    def options(self) -> tuple[str, ...]:
        known = () if self._inode is None else ("--inode", str(self._inode))
        return ("--offset", str(self._offset), "--limit", str(CHUNK), *known)

    def take(self, snapshot: dict, touch: Touch) -> bool:
        self._notes.in_touch()
        log = snapshot["log"]
        data = base64.b64decode(log["data"])
        if log["inode"] is not None:  # else there is no log, yet or while it is being replaced
            if log["offset"] != self._offset:
                complain("the log was cut or replaced on the machine: from its new beginning")
            self._offset, self._inode = log["offset"], log["inode"]
            self._write(data)
        # A job may write its last words between the two looks of one snapshot: ask once more.
        ended = snapshot["job"]["state"] != "running"
        first, self._ended = ended and not self._ended, ended
        return first or (bool(data) and self._offset < log["size"])

    def out_of_touch(self, touch: Touch) -> None:
        self._notes.out_of_touch(touch)

    def _write(self, data: bytes) -> None:
        while data:
            written = self._out.write(data)  # of an unbuffered output, perhaps a part
            data = data[written:]
            self._offset += written
        self._out.flush()


def _report_once(link: Link) -> int:
    snapshot = link.once()
    code = exit_code(link.run, snapshot["job"])
    _print_report(link)
    return code


def _print_report(link: Link) -> None:
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    height = console.height - 2 if console.is_terminal else None  # and the prompt after it
    console.print(report(link.run, link.last, link.touch, time.time(), height))
