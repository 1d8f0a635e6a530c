"""`fab monitor`: watch a run until its job ends, through any drop of the connection."""

import base64
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, BinaryIO

from rich.console import Console
from rich.live import Live
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_never
from tenacity.wait import wait_random_exponential

from mmattn.console import WIDTH, complain, say
from mmattn.errors import UserError
from mmattn.remote.cloud import GONE
from mmattn.remote.runs import Run
from mmattn.remote.screen import GUARD_REASONS, Touch, duration, job_text, report
from mmattn.remote.ssh import CommandFailed, Machine, NotLoggedIn, RemoteError, Unreachable

POLL_S = 2.0
CALL_S = 15.0  # for the machine's answer, once connected
HALTED = ("stopping", "stopped")  # by a user: a machine that ends itself is terminated
FIRST_S, LONGEST_S = 1.0, 20.0  # between calls while disconnected
TAIL = (-8 * 1024, 8 * 1024)  # offset into the log and bytes to read, for reports
CHUNK = 256 * 1024  # bytes of the log per call, for --follow


def monitor(run: Run, quick: bool, follow: bool) -> int:
    """Show a run until its job ends; with `quick`, one report; with `follow`, the log's bytes.

    Returns the job's exit code; 70 if unknown; with `quick`, 0 while it runs; 130 after Ctrl-C;
    141 when the log's reader is gone. UserError if there is no job, or the machine cannot answer;
    with `quick`, without a retry.
    """
    if quick and follow:
        raise UserError("--quick --follow: expected one of them")
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    live = console.is_terminal and not quick and not follow
    link = Link(run, complain if follow else (lambda _: None) if live or quick else say)

    def draw(spare: int = 0):
        height = console.height - spare if console.is_terminal else None
        return report(run, link.last, link.touch, time.time(), height)

    screen = Live(console=console, screen=True, get_renderable=draw, refresh_per_second=2)
    try:
        with screen if live else nullcontext():
            if quick:
                link.snapshot(TAIL, stop_after_attempt(1))
            elif follow:
                copy_log(link, sys.stdout.buffer)
            else:
                while link.snapshot(TAIL)["job"]["state"] == "running":
                    time.sleep(POLL_S)
        job = link.last["job"]
        if job["state"] == "absent":
            raise UserError(f"{run.name}: no job was started; `fab deploy` continues it")
        if follow:
            complain(f"the job: {job_text(job, link.last['now'])[0]}")
        else:
            console.print(draw(spare=2))  # for the prompt
        return {"running": 0, "lost": os.EX_SOFTWARE}.get(job["state"], job["exit_code"])
    except KeyboardInterrupt:
        complain(f"{run.name} continues: `fab monitor --run {run.name}` shows it again")
        return 128 + signal.SIGINT


def copy_log(link: "Link", out: BinaryIO) -> None:
    """Write each byte of the job's log once, until the job has ended."""
    offset, state = 0, "running"
    while state == "running":
        snapshot = link.snapshot((offset, CHUNK))
        log, data = snapshot["log"], base64.b64decode(snapshot["log"]["data"])
        if log["offset"] != offset:
            complain("the log was truncated on the machine: continuing from its new beginning")
        out.write(data)
        out.flush()
        offset = log["offset"] + len(data)
        if offset >= log["size"]:  # else ask for more at once
            state = snapshot["job"]["state"]
            time.sleep(POLL_S)


class Link:
    """Asks a run's machines for snapshots; calls `tell` when the connection drops or is back."""

    def __init__(self, run: Run, tell: Callable[[str], None]):
        self.run, self.machines, self.tell = run, run.machines(), tell
        self.last: Any = None  # of the first machine; contains the others'
        self.touch = Touch()

    def snapshot(self, piece: tuple[int, int], stop: Callable = stop_never) -> dict:
        """A snapshot with a piece of the log (offset, bytes), however long that takes.

        RemoteError at `stop`, or if a machine is gone, has another host key or refuses the login.
        """
        retry = retry_if_exception(self._may_pass)
        wait = wait_random_exponential(2 * FIRST_S, LONGEST_S, min=FIRST_S)
        return Retrying(stop=stop, wait=wait, retry=retry, reraise=True)(self._ask, piece)

    def _may_pass(self, error: BaseException) -> bool:
        # A machine that answered before and refuses now is going down, or short of memory.
        refused = self.last is not None and isinstance(error, CommandFailed | NotLoggedIn)
        return refused or isinstance(error, Unreachable)

    def _ask(self, piece: tuple[int, int]) -> dict:
        touch = self.touch
        try:
            found = self.machines[0].call("snapshot", *map(str, piece), timeout=CALL_S)
        except RemoteError as error:
            if touch.since is None and self._may_pass(error):
                self.tell(f"connection lost, trying again: {error}")
            since = touch.since or touch.heard or time.time()
            self.touch = Touch(touch.heard, since, str(error))
            error.args = (f"{error}{ask_cloud(self.run, 0, self.last)}",)
            self.touch = Touch(touch.heard, since, str(error))
            raise
        with ThreadPoolExecutor() as pool:
            others = pool.map(lambda one: self._other(one, found["job"]), self.machines[1:])
            self.last = {**found, "others": list(others)}
        self.touch = Touch(heard=time.time())
        if touch.since is not None:
            self.tell(f"connected again after {duration(time.time() - touch.since)}")
        return self.last

    def _other(self, machine: Machine, first: dict) -> dict:
        """The state of another machine; RemoteError if it is gone and the first needs it."""
        rank = self.machines.index(machine)
        before = self.last["others"][rank - 1]["snapshot"] if self.last else None
        try:
            found = machine.call("snapshot", timeout=CALL_S)
            return {"rank": rank, "snapshot": found, "trouble": ""}
        except RemoteError as error:
            done = before and before["job"]["exit_code"] == 0
            works = first["state"] == "running" and not done
            state = ask_cloud(self.run, rank, self.last) if works else ""
            return {"rank": rank, "snapshot": before, "trouble": f"no connection: {error}{state}"}


def ask_cloud(run: Run, rank: int, last: dict | None = None) -> str:
    """EC2's state of a silent machine, to add to a message; RemoteError if it does not run."""
    if not run.members:
        return ""
    machine = run.members[rank].id
    try:
        found = run.cloud().instance(machine)
    except UserError as error:  # this computer may be offline
        return f"; EC2 cannot be asked: {error}"
    state = found.state if found else "terminated and no longer listed"
    if found and state not in (*GONE, *HALTED):
        return f"; EC2 says {state}"
    why = f" ({found.reason})" if found and found.reason else ""
    if rank == 0 and last and last["guard"] and last["guard"]["reason"]:
        why += f"; its guard had reported: {GUARD_REASONS[last['guard']['reason']]}"
    if state in HALTED:
        then = "Its disk costs: start it in EC2's console and `fab resume`, or `fab teardown`"
    elif rank:
        then = "`fab resume` restarts the job on the other machines"
    elif run.uri:
        then = f"`fab resume` continues from {run.uri}, `fab fetch` downloads what is there"
    else:
        then = "`fab resume` continues from its disk, which is kept and costs until `fab teardown`"
    raise RemoteError(f"machine {rank}, {machine}, is {state} at EC2{why}. {then}")
