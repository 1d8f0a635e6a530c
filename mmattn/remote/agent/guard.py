"""Powers the machine off when its purpose is over: `guard [CONFIG]`, as root, from boot on."""

from __future__ import annotations

import calendar
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import ProxyHandler, Request, build_opener

from . import job as jobs

CONFIG = "/etc/mmattn/guard.json"
METADATA, METADATA_S = "http://169.254.169.254", 3.0
BEAT_S = 5.0
WORK = 0.01  # of one core: a job that uses less is idle
NOTICE_S = 120.0  # before EC2 takes a spot machine away, it tells so
PUSH_S = 20.0  # for the last round, at least
OFF_S = 5.0  # to power off in order before EC2 takes the machine away
POWER_OFF = (
    # Seconds to wait after each for the machine to go.
    (("systemctl", "poweroff"), 180),
    (("shutdown", "-h", "now"), 180),
    (("systemctl", "poweroff", "-ff"), 60),
)


class Config(NamedTuple):
    """The folder of the job, and when to end."""

    job: str
    deadline: float
    grace_s: float
    """How long the machine stays when nothing wants it."""
    stop_s: float
    """How long a job may take to save."""


class Seen(NamedTuple):
    """One look at the machine."""

    wall: float
    """Unix time, for what has a date alone: it may jump."""
    clock: float
    """Monotonic time, for durations."""
    cpu_s: float | None
    """Processor time used by the living jobs; None if none lives."""
    connected: bool
    held: bool
    pushed: bool
    """The job has ended and all that it made is in the bucket."""
    taken: float | None
    """When EC2 takes the machine away (Unix time), if it has told so."""


class Memory(NamedTuple):
    """What is kept from one look to the next."""

    clock: float
    cpu_s: float | None
    wanted: float
    """The clock when anything last wanted the machine; a start of the guard counts."""


def decide(config: Config, seen: Seen, before: Memory) -> tuple[str | None, Memory]:
    """The reason to end the machine now, if any, and what to keep for the next look.

    The machine is wanted while a user is connected or holds it, and when a job starts, works or
    ends; none of this counts past the deadline or when the machine is taken away.
    """
    wanted = seen.connected or seen.held or _works(before, seen)
    memory = Memory(seen.clock, seen.cpu_s, seen.clock if wanted else before.wanted)
    reason = None
    if seen.taken is not None:
        reason = "spot"
    elif seen.wall >= config.deadline - config.stop_s:
        reason = "deadline"
    elif seen.pushed and seen.cpu_s is None and not (seen.connected or seen.held):
        reason = "ended"
    elif not wanted and seen.clock - memory.wanted >= config.grace_s:
        reason = "ended" if seen.cpu_s is None else "idle"
    return reason, memory


def _works(before: Memory, seen: Seen) -> bool:
    if before.cpu_s is None or seen.cpu_s is None:
        return before.cpu_s is not seen.cpu_s
    return seen.cpu_s - before.cpu_s > WORK * (seen.clock - before.clock)


def report(config: Config, seen: Seen, memory: Memory, reason: str | None) -> dict:
    """The contents of guard.json."""
    quiet_s = seen.clock - memory.wanted
    return {
        "beat": seen.wall,
        "reason": reason,
        "since": seen.wall if reason else None,
        "quiet_since": seen.wall - quiet_s if quiet_s else None,
        "held": seen.held,
        "off_at": seen.wall - quiet_s + config.grace_s if quiet_s else None,
    }


def look(job: Path) -> Seen:
    """Observe; what cannot be found out is not there."""
    return Seen(
        wall=time.time(),
        clock=time.monotonic(),
        cpu_s=_try(cpu_used, job.parent),
        connected=bool(_try(connected)),
        held=bool(_try((job / "hold").exists)),
        pushed=bool(_try((job / jobs.PUSHED).exists)),
        taken=_try(taken_away, METADATA),
    )


def _try(act: Callable, *arguments: Any) -> Any:
    try:
        return act(*arguments)
    except Exception:
        traceback.print_exc()


def living(base: Path) -> list[Path]:
    """The folders of the jobs that live: the training's, and whatever prepares or follows it."""
    return [path.parent for path in base.glob("*/" + jobs.LOCK) if jobs.is_held(path)]


def cpu_used(base: Path) -> float | None:
    """Processor time of the living jobs in seconds; None if none lives."""
    found = living(base)
    return jobs.cpu_used(found) if found else None


def connected() -> bool:
    """Whether a connection to the ssh server is established."""
    tables = (path for path in map(Path, ("/proc/net/tcp", "/proc/net/tcp6")) if path.exists())
    rows = [line.split() for path in tables for line in path.read_text().splitlines()]
    return any(row[1].endswith(":0016") and row[3] == "01" for row in rows)


def taken_away(address: str) -> float | None:
    """When a spot machine will end (Unix time), which EC2's metadata service tells 120 s before."""
    ask = build_opener(ProxyHandler({})).open
    header = "X-aws-ec2-metadata-token"
    token = Request(address + "/latest/api/token", method="PUT")
    token.add_header(header + "-ttl-seconds", "60")
    notice = Request(address + "/latest/meta-data/spot/instance-action")
    try:
        with ask(token, timeout=METADATA_S) as answer:
            notice.add_header(header, answer.read().decode())
        with ask(notice, timeout=METADATA_S) as answer:
            said = json.loads(answer.read())
    except (OSError, ValueError, HTTPException):  # 404: no notice
        return None
    try:
        return calendar.timegm(time.strptime(said["time"], "%Y-%m-%dT%H:%M:%SZ"))
    except (ValueError, LookupError, TypeError):
        return time.time() + NOTICE_S if "action" in said else None


def power_off() -> None:
    """End the machine; returns only if nothing has helped."""
    _try(_run, "sync")
    for command, patience_s in POWER_OFF:
        if _try(_run, *command) == 0:
            time.sleep(patience_s)


def _run(*command: str) -> int:
    # Not subprocess.run: it would wait for ever for a command that hangs with the disk.
    return subprocess.Popen(command).wait(timeout=20)


def publish(job: Path, news: dict) -> None:
    """Write guard.json if the job has a folder."""
    if job.is_dir():
        jobs.write_json(job / "guard.json", news)


def beat(config: Config, before: Memory) -> Memory:
    """Look, tell, and end the machine if there is a reason."""
    job = Path(config.job)
    seen = look(job)
    reason, memory = decide(config, seen, before)
    _try(publish, job, report(config, seen, memory, reason))
    if reason:
        left_s = 0.0 if seen.taken is None else seen.taken - OFF_S - seen.wall
        end = seen.clock + max(config.stop_s, left_s)
        push = job.parent / "push"  # brings to the bucket what the others save
        _try(jobs.stop, [one for one in living(job.parent) if one != push], config.stop_s, True)
        _try(jobs.stop, [push], max(PUSH_S, end - time.monotonic()), True)
        if reason == "spot" or (reason == "deadline" and seen.cpu_s is not None):
            time.sleep(max(0.0, end - time.monotonic()))  # for whoever fetches
        power_off()
    return memory


def main() -> None:
    """Beat for ever: an error in one beat does not end the next."""
    config = Config(**json.loads(Path((sys.argv[1:] or [CONFIG])[0]).read_text()))
    memory = Memory(time.monotonic(), None, time.monotonic())
    while True:
        memory = _try(beat, config, memory) or memory
        time.sleep(BEAT_S)
