"""Everything that `fab monitor` shows, in one answer: `snapshot JOB [--offset N ...]`."""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import time
from pathlib import Path

from .job import SUMMARIES, changed, read_json
from .job import describe as describe_job

ROWS = 300
LIMIT = 64 * 1024
SAMPLE_S = 0.2
PARTS = ("fold[0-9]*", "member[0-9]*", "fold[0-9]*/member[0-9]*")


def main() -> dict:
    """The snapshot that the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path)
    parser.add_argument("--offset", type=int, default=0, help="into the log; -K: its last K bytes")
    parser.add_argument("--inode", type=int, help="of the log that the offset belongs to")
    parser.add_argument("--limit", type=int, default=LIMIT, help="bytes of the log")
    options = parser.parse_args()
    folder = options.job.resolve()
    log = read_log(folder, options.offset, options.inode, options.limit)
    return {**describe(folder), "log": log}


def describe(folder: Path) -> dict:
    """State of the job, of its results and of the machine."""
    run = folder.parent / "run"
    parts = [run, *(path for pattern in PARTS for path in sorted(run.glob(pattern)))]
    part = max(parts, key=lambda path: changed(path / "metrics.jsonl"))
    train = (read_json(part / "config.json") or {}).get("train") or {}
    return {
        "now": time.time(),
        "job": describe_job(folder),
        "complete": any((run / name).exists() for name in SUMMARIES),
        "guard": read_json(folder / "guard.json"),
        "machine": describe_machine(folder.parent),
        "part": _name(run, part),
        "epochs": train.get("epochs"),
        "monitor": train.get("monitor"),
        "metrics": read_rows(part / "metrics.jsonl"),
        "checkpoints": [about for path in parts for about in find_checkpoints(run, path)],
    }


def _name(run: Path, part: Path) -> str:
    return "" if part == run else part.relative_to(run).as_posix()


def read_rows(path: Path) -> list[dict]:
    """The last rows of a JSON-lines file; a line that is broken, as a last one may be, is left out.

    A training that starts anew may replace the file meanwhile: then there are none.
    """
    try:
        lines = path.read_bytes().splitlines()[-ROWS:]
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict)]


def find_checkpoints(run: Path, part: Path) -> list[dict]:
    """The newest checkpoint of each kind; an unfinished one has another name."""
    found = []
    for kind in sorted((part / "checkpoints").glob("*")):
        steps = [path for path in kind.glob("*") if path.name.isdigit() and changed(path)]
        if steps:
            newest = max(steps, key=lambda path: int(path.name))
            found.append(
                {
                    "part": _name(run, part),
                    "kind": kind.name,
                    "step": int(newest.name),
                    "time": changed(newest),
                }
            )
    return found


def describe_machine(base: Path) -> dict:
    """Load of the processor, use of memory and of the disk that the run is on, in bytes."""
    busy, total = _processor_time()
    time.sleep(SAMPLE_S)
    busy_then, total_then = _processor_time()
    memory = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        memory[name] = int(value.split()[0]) * 1024
    disk = shutil.disk_usage(base)
    return {
        "cores": os.cpu_count(),
        "cpu": (busy_then - busy) / max(total_then - total, 1),
        "memory_used": memory["MemTotal"] - memory["MemAvailable"],
        "memory_total": memory["MemTotal"],
        "disk_used": disk.used,
        "disk_total": disk.total,
    }


def _processor_time() -> tuple[int, int]:
    """Clock ticks of work and of all, since boot."""
    with open("/proc/stat") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]  # a guest's are in "user" too
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # idle, and waiting for a disk


def read_log(folder: Path, offset: int, inode: int | None, limit: int) -> dict:
    """A piece of job.log.

    Args:
        folder: the job's.
        offset: where the piece begins; -K for the last K bytes.
        inode: of the log that the offset belongs to. A log that was renamed is read to its end
            before the new one is begun.
        limit: bytes at most.

    Returns:
        inode, offset and data (base64) of the piece, and the log's size; "restarted" if the piece
        is the begin of another log, or of one that was truncated. Without a log, inode is None.
    """
    renamed = _renamed(folder, inode, offset) if inode is not None and offset >= 0 else None
    try:
        file = open(renamed or folder / "job.log", "rb")  # noqa: SIM115
    except FileNotFoundError:
        return {"inode": None, "offset": 0, "size": 0, "restarted": False, "data": ""}
    with file:
        about = os.fstat(file.fileno())
        restarted = inode not in (None, about.st_ino) or about.st_size < offset
        begin = max(about.st_size + offset, 0) if offset < 0 else offset
        if restarted:
            begin = 0
        file.seek(begin)
        data = file.read(max(min(limit, about.st_size - begin), 0))
    return {
        "inode": about.st_ino,
        "offset": begin,
        "size": about.st_size,
        "restarted": restarted,
        "data": base64.b64encode(data).decode(),
    }


def _renamed(folder: Path, inode: int, offset: int) -> Path | None:
    """The log that was followed until now, if it has another name and more than was read."""
    for path in folder.glob("job.log?*"):
        try:
            about = path.stat()
        except OSError:
            continue
        if about.st_ino == inode and about.st_size > offset:
            return path
    return None
