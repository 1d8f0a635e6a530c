"""A consistent copy of a run's results: `outbox JOB` for `fab fetch`; the push makes one too.

The copy consists of hard links in a folder beside the job's: it takes no space, and training may
replace or delete its files during a transfer.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .job import SUMMARIES
from .job import describe as describe_job

CHECKPOINTS = "checkpoints"
STATE = {"lock", "guard.json", "pushed"}  # state of a job, not results


def main() -> dict:
    """Make the copy in `outbox`; returns its manifest."""
    try:
        return make_outbox(Path(sys.argv[1]).resolve(), "outbox")
    except OSError as error:
        sys.exit(f"cannot link the results, is the disk full? {error}")


def make_outbox(folder: Path, name: str) -> dict:
    """Link the results of the job in `folder` into a new folder `name` beside it.

    Returns the manifest: the state of the `job` before, and the `time` then; whether the run is
    `complete`: has a summary, and the job has ended; and `files`, see `describe`, the job's in
    `job/`.
    """
    job, now, outbox = describe_job(folder), time.time(), folder.with_name(name)
    with open(folder / f".{name}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if outbox.exists():
            shutil.rmtree(outbox)
        link_results(folder, outbox)
        paths = sorted(path for path in outbox.rglob("*") if path.is_file())
        files = [describe(outbox, path) for path in paths]
    # A study writes its plots after its summary.
    complete = job["state"] != "running" and any((outbox / one).exists() for one in SUMMARIES)
    return {"job": job, "time": now, "complete": complete, "files": files}


def link_results(folder: Path, outbox: Path) -> None:
    """Link all results into a new outbox.

    Summaries come first. Of each kind of checkpoint the newest is taken, "latest" before "best": a
    killed training, too, may leave a best one that is newer than the latest.
    """
    run = folder.with_name("run")
    files, kinds = survey(run)
    summaries = [path for path in files if path.name in SUMMARIES]
    link(run, outbox, sorted(summaries, key=lambda path: len(path.parts)))
    for kind in sorted(kinds, reverse=True):
        link_newest(run, outbox, kind)
    link(run, outbox, [path for path in files if path not in summaries])
    logs = [path for path in survey(folder)[0] if path.name not in STATE]
    link(folder, outbox / "job", logs)


def survey(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files outside of checkpoints, and folders of checkpoints; hidden ones are unfinished."""
    files, kinds = [], []
    for top, folders, names in os.walk(folder):
        if Path(top).name == CHECKPOINTS:
            kinds += [Path(top, name) for name in folders]
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(top, name) for name in names if not name.startswith(".")]
    return [path for path in files if path.is_file() and not path.is_symlink()], kinds


def link_newest(run: Path, outbox: Path, kind: Path) -> None:
    """Link the newest checkpoint of a kind; again if a newer one came meanwhile."""
    while step := newest(kind):
        link(run, outbox, (Path(top, name) for top, _, names in os.walk(step) for name in names))
        if newest(kind) == step:  # training deletes no file of it before a newer one exists
            return
        shutil.rmtree(outbox / step.relative_to(run), ignore_errors=True)


def newest(kind: Path) -> Path | None:
    """The checkpoint of a kind with the highest step; unfinished ones have no number as name."""
    steps = [path for path in kind.glob("*") if path.name.isdigit()]
    return max(steps, key=lambda path: int(path.name), default=None)


def link(base: Path, outbox: Path, paths: Iterable[Path]) -> None:
    """Link files of a folder into another one, except those that are gone."""
    for path in paths:
        copy = outbox / path.relative_to(base)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            os.link(path, copy)


def describe(outbox: Path, path: Path) -> dict:
    """A file's entry in the manifest; of a growing log, what it has now."""
    name, size = path.relative_to(outbox).as_posix(), path.stat().st_size
    growing = path.suffix == ".log"
    return {"path": name, "size": size, "sha256": sha256(path, size), "growing": growing}


def sha256(path: Path, size: int | None = None) -> str | None:
    """The hex digest of a file, or of its first `size` bytes; None if unreadable."""
    digest = hashlib.sha256()
    left = sys.maxsize if size is None else size
    try:
        with open(path, "rb") as file:
            while chunk := file.read(min(left, 1 << 20)):
                digest.update(chunk)
                left -= len(chunk)
    except OSError:
        return None
    return digest.hexdigest()
