"""A job's folder on the machine: its files, its locks and its processes.

The supervisor holds `lock`, and its child inherits it: held, something of the job lives. The
supervisor holds the folder too, alone.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

LOCK, STATUS = "lock", "status.json"


def read_json(path: Path) -> dict | None:
    """What a file holds; None if it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: dict, lasting: bool = False) -> None:
    """Replace a file that no other process writes; on a full disk the old one stays, and OSError.

    Args:
        path: the file.
        value: its content.
        lasting: wait until it would outlive a loss of power.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            os.unlink(partial)
        raise


def is_held(path: Path) -> bool:
    """Whether a process holds the lock on a file or folder."""
    try:
        # The guard asks as root in a user's folder: a pipe there must not stop it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: askers do not see askers
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class Process(NamedTuple):
    """What the kernel tells of a process."""

    group: int
    cpu_s: float
    """Processor time used by it and by its children that ended."""
    born: int
    """Clock ticks from boot to its start; with its number, they name it for good."""


def process(pid: int) -> Process | None:
    """The process of this number, if there is one."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(b")")[2].split()  # the name before may hold anything
    cpu_s = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return Process(int(fields[2]), cpu_s, int(fields[19]))


def members(group: int) -> Iterator[Process]:
    """The processes of a group."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        found = process(int(name))
        if found and found.group == group:
            yield found


def group_of(folder: Path) -> int | None:
    """The process group of a living job, which is its first process's number; safe to signal.

    None if the job does not live, or if another process has got the number.
    """
    status = read_json(folder / STATUS)
    pid = (status or {}).get("pid")
    if not isinstance(pid, int) or pid <= 1 or not is_held(folder / LOCK):
        return None
    leader = process(pid)
    return None if leader and leader.born != status.get("born") else pid


def signal_job(folder: Path, number: int, group: bool = False) -> bool:
    """Send a signal to a living job's first process or its group; whether it was sent."""
    pid = group_of(folder)
    if pid is None:
        return False
    try:
        (os.killpg if group else os.kill)(pid, number)
    except ProcessLookupError:
        return False
    return True
