"""All that `fab monitor` shows, with a piece of the log: `snapshot JOB [OFFSET LIMIT]`."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

from .job import SUMMARIES, changed, read_json
from .job import describe as describe_job
from .outbox import newest

PARTS = ("fold[0-9]*", "member[0-9]*", "fold[0-9]*/member[0-9]*")


def main() -> dict:
    """The snapshot that the command line asks for."""
    job, *piece = sys.argv[1:]
    folder, (offset, limit) = Path(job).resolve(), map(int, piece or (0, 0))
    about = describe(folder)  # before the log, which is then complete if the job has ended
    return {**about, "log": read_log(folder / "job.log", offset, limit)}


def describe(folder: Path) -> dict:
    """State of the job, of the part of the run that trains now, and of the machine."""
    run = folder.parent / "run"
    parts = [run, *(path for pattern in PARTS for path in run.glob(pattern))]
    part = max(parts, key=lambda path: changed(path / "metrics.jsonl"))
    train = (read_json(part / "config.json") or {}).get("train") or {}
    steps = map(newest, sorted((part / "checkpoints").glob("*")))
    return {
        "now": time.time(),
        "job": describe_job(folder),
        "complete": any((run / name).exists() for name in SUMMARIES),
        "guard": read_json(folder / "guard.json"),
        "machine": describe_machine(folder.parent),
        "part": "" if part == run else part.relative_to(run).as_posix(),
        "epochs": train.get("epochs"),
        "monitor": train.get("monitor"),
        "metrics": read_metrics(part / "metrics.jsonl", train.get("monitor")),
        "checkpoints": [
            {"kind": step.parent.name, "step": int(step.name), "time": changed(step)}
            for step in steps
            if step
        ],
    }


def read_metrics(path: Path, monitor: str | None) -> list[dict]:
    """The row of each epoch, with only what is shown: an early one may be the best."""
    names = [
        f"{split}_{name}" for split in ("train", "validation") for name in ("loss", "uar", monitor)
    ]
    shown = {"epoch", "seconds", "clips_per_s", *names}
    lines = path.read_text().splitlines() if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k in shown} for line in lines]


def describe_machine(base: Path) -> dict:
    """CPU load, and use of memory and of the run's disk in bytes."""
    lines = re.findall(r"(\w+): +(\d+) kB", Path("/proc/meminfo").read_text())
    memory = {name: int(value) * 1024 for name, value in lines}
    disk = shutil.disk_usage(base)
    return {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],  # runnable threads, mean of the last minute
        "memory_used": memory["MemTotal"] - memory["MemAvailable"],
        "memory_total": memory["MemTotal"],
        "disk_used": disk.used,
        "disk_total": disk.total,
    }


def read_log(path: Path, offset: int, limit: int) -> dict:
    """A piece of a log: its offset, data (base64) and the log's size, 0 if there is no log.

    It begins at `offset`; -K means the last K bytes; if the log is shorter, because it was
    truncated, at its beginning.
    """
    size = path.stat().st_size if path.exists() else 0
    begin = max(size + offset, 0) if offset < 0 else offset
    begin, data = begin if begin <= size else 0, b""
    if size:
        with open(path, "rb") as file:
            file.seek(begin)
            data = file.read(min(limit, size - begin))
    return {"offset": begin, "size": size, "data": base64.b64encode(data).decode()}
