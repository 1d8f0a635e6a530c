"""Powers the machine off when it is no longer needed: `guard [CONFIG]`, as root, from boot on."""

from __future__ import annotations

import calendar
import json
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.request import ProxyHandler, Request, build_opener

from . import job as jobs

CONFIG = "/etc/mmattn/guard.json"
METADATA, METADATA_S = "http://169.254.169.254", 3.0
BEAT_S = 5.0
PUSH_S = 20.0  # at least, for the last push
OFF_S = 5.0  # to power off cleanly before EC2 takes the machine away


class Config(NamedTuple):
    """The folder of the job, and when to end."""

    job: str
    deadline: float
    grace_s: float  # how long the machine stays when nothing needs it
    stop_s: float  # how long a job may take to save


class Seen(NamedTuple):
    """One observation of the machine."""

    wall: float  # Unix time, for absolute dates: it may jump
    clock: float  # monotonic time, for durations
    running: bool  # a job is alive: the training, or one before or after it
    connected: bool
    pushed: bool  # the job has ended and all its results are in the bucket
    taken: float | None  # when EC2 takes the machine away (Unix time), if announced


def decide(config: Config, seen: Seen, wanted: float) -> tuple[str | None, float]:
    """The reason to end the machine now, if any, and the clock when it was last needed.

    It is needed while a job runs or a user is connected, but ends anyway at the deadline or when
    EC2 takes it away.
    """
    if seen.running or seen.connected:
        wanted = seen.clock
    reason = None
    if seen.taken is not None:
        reason = "spot"
    elif seen.wall >= config.deadline - config.stop_s:
        reason = "deadline"
    elif wanted < seen.clock and (seen.pushed or seen.clock - wanted >= config.grace_s):
        reason = "ended"
    return reason, wanted


def report(config: Config, seen: Seen, wanted: float, reason: str | None) -> dict:
    """The contents of guard.json."""
    off_at = seen.wall + config.grace_s - (seen.clock - wanted)
    return {"beat": seen.wall, "reason": reason, "off_at": off_at if wanted < seen.clock else None}


def look(job: Path) -> Seen:
    """Observe the machine."""
    return Seen(
        wall=time.time(),
        clock=time.monotonic(),
        running=any(map(jobs.is_held, job.parent.glob("*/" + jobs.LOCK))),
        connected=connected(),
        pushed=(job / jobs.PUSHED).exists(),
        taken=taken_away(METADATA),
    )


def connected() -> bool:
    """Whether a connection to the ssh server is established."""
    tables = (path for path in map(Path, ("/proc/net/tcp", "/proc/net/tcp6")) if path.exists())
    rows = [line.split() for path in tables for line in path.read_text().splitlines()]
    return any(row[1].endswith(":0016") and row[3] == "01" for row in rows)


def taken_away(address: str) -> float | None:
    """When a spot machine will end (Unix time); EC2's metadata service says so 120 s before."""
    ask = build_opener(ProxyHandler({})).open
    header = "X-aws-ec2-metadata-token"
    token = Request(address + "/latest/api/token", method="PUT")
    token.add_header(header + "-ttl-seconds", "60")
    notice = Request(address + "/latest/meta-data/spot/instance-action")
    try:
        with ask(token, timeout=METADATA_S) as answer:
            notice.add_header(header, answer.read().decode())
        with ask(notice, timeout=METADATA_S) as answer:
            end = json.loads(answer.read())["time"]
        return calendar.timegm(time.strptime(end, "%Y-%m-%dT%H:%M:%SZ"))
    except Exception:  # 404: no notice
        return None


def beat(config: Config, wanted: float) -> float:
    """Observe, report, and end the machine if it is time; returns when it was last needed."""
    job = Path(config.job)
    seen = look(job)
    reason, wanted = decide(config, seen, wanted)
    with suppress(OSError):  # before the first job there is no folder
        jobs.write_json(job / "guard.json", report(config, seen, wanted, reason))
    if reason:
        try:
            end_jobs(config, seen, reason)
        finally:
            power_off()
    return wanted


def end_jobs(config: Config, seen: Seen, reason: str) -> None:
    """Let the jobs save, then the push finish, then leave the rest of the time to a fetch."""
    base = Path(config.job).parent
    end = seen.clock + max(config.stop_s, (seen.taken or 0.0) - OFF_S - seen.wall)
    push = base / "push"
    others = [path.parent for path in base.glob("*/" + jobs.LOCK) if path.parent != push]
    jobs.stop(others, config.stop_s)
    jobs.stop([push], max(PUSH_S, end - time.monotonic()))
    if reason != "ended":
        time.sleep(max(0.0, end - time.monotonic()))


def power_off() -> None:
    """End the machine; returns only if that failed."""
    for force in ([], ["-ff"]):
        # Not subprocess.run, which would wait forever for a command that hangs with the disk.
        with suppress(OSError, subprocess.TimeoutExpired):
            if subprocess.Popen(["systemctl", "poweroff", *force]).wait(timeout=20) == 0:
                time.sleep(180)


def main() -> None:
    """Beat forever; an error in one beat does not prevent the next."""
    config = Config(**json.loads(Path((sys.argv[1:] or [CONFIG])[0]).read_text()))
    wanted = time.monotonic()
    while True:
        try:
            wanted = beat(config, wanted)
        except Exception:
            traceback.print_exc()
        time.sleep(BEAT_S)
