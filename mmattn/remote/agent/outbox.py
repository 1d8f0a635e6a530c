"""A consistent copy of a run's results, for `fab fetch`: `outbox JOB` on the machine.

The copy is made of hard links in `outbox/{run,job}` beside the job's folder: it takes no space, and
training may replace or delete its files while they are being sent. Tells the list of the files.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sys
import time
from pathlib import Path

from .job import SUMMARIES
from .verify import sha256

CHECKPOINTS = "checkpoints"
STATE = {"job/lock", "job/hold", "job/guard.json", "job/pushed"}  # of the moment: no results
PATIENCE_S = 20.0  # with another outbox at work, and with checkpoints that change while linked
BUSY = 75  # EX_TEMPFAIL


class Busy(Exception):
    """Later it may work."""


def main() -> dict:
    """Make the copy; returns `{"root", "complete", "files"}`."""
    base = Path(sys.argv[1]).resolve().parent
    try:
        return make_outbox(base)
    except Busy as error:
        print(error, file=sys.stderr)
        sys.exit(BUSY)


def make_outbox(base: Path, name: str = "outbox") -> dict:
    """Link the results of the run in `base` anew, into the folder `name` in it; describe them.

    Returns:
        root: folder of `run` and `job`, relative to base: the outbox; "" for the very files where
            links cannot be made, e.g. because the disk is too full for a folder.
        complete: whether the run has its summary.
        files: `{"path", "size", "sha256", "growing"}`; of a growing file, the size and hash of what
            was there.

    Raises:
        Busy: another outbox is being made, or a checkpoint changes too often.
    """
    holder = os.open(base, os.O_RDONLY)  # a lock that needs no file and ends with the process
    try:
        _lock(holder)
        try:
            root, paths = name, link_results(base, base / name)
        except OSError:
            root, paths = "", link_results(base, None)
        files = [describe(base / root, path) for path in paths]
    except FileNotFoundError as error:  # only without links
        raise Busy(f"{error.filename} is gone while it was read; try again") from error
    finally:
        os.close(holder)
    complete = not {f"run/{name}" for name in SUMMARIES}.isdisjoint(paths)
    return {"root": root, "complete": complete, "files": files}


def _lock(descriptor: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Busy("another `fab fetch` asks for the results; try again") from None
            time.sleep(0.1)


def link_results(base: Path, outbox: Path | None) -> list[str]:
    """Link all results into a new outbox, or only list them; returns their paths in base.

    A summary is linked before everything else, so that whatever it tells of is there. Of each kind
    of checkpoint the newest is taken, "latest" before "best": a best one that is newer is what a
    killed training leaves too.
    """
    if outbox and outbox.exists():
        shutil.rmtree(outbox)
    files, kinds = survey(base / "run")
    summaries = [path for path in files if path.name in SUMMARIES]
    linked = _link(base, outbox, sorted(summaries, key=lambda path: len(path.parts)))
    for folder in sorted(kinds, reverse=True):
        linked += _link_newest(base, outbox, folder)
    files += [path for path in survey(base / "job")[0] if _name(base, path) not in STATE]
    return linked + _link(base, outbox, [path for path in files if path.name not in SUMMARIES])


def survey(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files outside of checkpoints, and the folders of the kinds of checkpoints; nothing hidden.

    Hidden are files that are not finished.
    """
    files, kinds = [], []
    for top, folders, names in os.walk(folder):
        if Path(top).name == CHECKPOINTS:
            kinds += [Path(top, name) for name in folders]
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(top, name) for name in names if not name.startswith(".")]
    return [path for path in sorted(files) if _is_regular(path)], kinds


def _is_regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _link_newest(base: Path, outbox: Path | None, folder: Path) -> list[str]:
    """Link the newest checkpoint of a kind, again if it was changed meanwhile."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        step = newest(folder)
        if step is None:
            return []
        files = [Path(top, name) for top, _, names in os.walk(step) for name in sorted(names)]
        linked = _link(base, outbox, files)
        if newest(folder) == step:  # a newer one is there before this one loses its first file
            return linked
        if outbox:
            shutil.rmtree(outbox / step.relative_to(base), ignore_errors=True)
        if time.monotonic() > deadline:
            raise Busy(f"{folder} changes faster than it can be read; try again")


def newest(folder: Path) -> Path | None:
    """The checkpoint of a kind with the highest step; an unfinished one has another name."""
    steps = [path for path in folder.iterdir() if path.name.isdigit()]
    return max(steps, key=lambda path: int(path.name), default=None)


def _link(base: Path, outbox: Path | None, paths: list[Path]) -> list[str]:
    """Link files; returns the paths of those that were still there."""
    linked = []
    for path in paths:
        name = _name(base, path)
        try:
            if outbox:
                (outbox / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(path, outbox / name)
            else:
                path.stat()
            linked.append(name)
        except FileNotFoundError:
            pass
    return linked


def _name(base: Path, path: Path) -> str:
    return path.relative_to(base).as_posix()


def describe(root: Path, path: str) -> dict:
    """Size and SHA-256 of a file; a log that grows is read as far as it goes now."""
    size = (root / path).stat().st_size
    digest = sha256(root / path, size)
    if digest is None:
        raise FileNotFoundError(errno.ENOENT, "gone meanwhile", path)
    return {"path": path, "size": size, "sha256": digest, "growing": path.endswith(".log")}
