"""Results from the machine: consistent, verified, and never in the place of something better.

The machine makes a consistent copy of hard links (`agent/outbox.py`) and lists what is in it.
What is not here yet goes to a folder beside the run's, is verified there, and only then moved in.
"""

import errno
import fcntl
import os
import random
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from mmattn.console import say, say_table
from mmattn.errors import UserError
from mmattn.files import explain_full_disk, read_json, write_text
from mmattn.remote import bucket
from mmattn.remote.agent.bucket import is_inside
from mmattn.remote.agent.job import SUMMARIES
from mmattn.remote.agent.verify import sha256
from mmattn.remote.cloud import GONE
from mmattn.remote.plan import folder_size
from mmattn.remote.runs import NO_MACHINE, Busy, Run, is_uri
from mmattn.remote.ssh import CommandFailed, Machine, RemoteError, Unreachable

ATTEMPTS = 5  # at files that differ when they arrive
PATIENCE_S = 600.0  # out of touch, without a byte more
LONGEST_WAIT_S = 30.0
POLL_S = 5.0
UNKNOWN = "unknown to EC2"
ENDED = (*GONE, UNKNOWN)
HURRY_S = 1.0  # between polls, and attempts to connect, when the machine is about to end
OUTBOX_S = 300.0  # to hash everything
BUSY = 75  # exit code of an outbox that is held or changes


class Entry(NamedTuple):
    """A file of the results, as the machine has it."""

    path: PurePosixPath
    """run/... or job/..."""
    size: int
    sha256: str
    growing: bool
    """A log: the size and hash are of what was there, more may follow."""

    @property
    def local(self) -> Path:
        """Its place in the folder of the results: that of the run, with the job's in `job`."""
        return Path(*self.path.parts[1:] if self.path.parts[0] == "run" else self.path.parts)

    @property
    def step(self) -> PurePosixPath | None:
        """The folder of the checkpoint that it belongs to: run/[part/]checkpoints/<kind>/<step>."""
        parts = self.path.parts
        if "checkpoints" not in parts[:-3]:
            return None
        folder = PurePosixPath(*parts[: parts.index("checkpoints") + 3])
        return folder if folder.name.isdigit() else None


class Results(NamedTuple):
    """What the machine had when it was asked, and how its job was."""

    entries: list[Entry]
    root: str
    """Folder of the entries in the run's folder on the machine."""
    complete: bool
    job: dict


class Source(Protocol):
    """Where results come from."""

    def news(self) -> tuple[object, bool]:
        """What a new epoch or checkpoint changes, or the job's end; whether time is short."""

    def ask(self) -> Results:
        """What there is now."""

    def bring(self, found: Results, entries: list[Entry], results: Path, staging: Path) -> str:
        """Copy files into staging; returns what was complained of, if anything."""


class OnMachine:
    """The machine itself, by rsync."""

    def __init__(self, machine: Machine):
        self.machine = machine

    def news(self) -> tuple[object, bool]:
        about = self.machine.call("snapshot", "--limit", "0")
        job = [about["job"][key] for key in ("state", "start")]
        now = [job, about["complete"], about["metrics"][-1:], about["checkpoints"]]
        return now, bool(about["guard"] and about["guard"]["reason"])

    def ask(self) -> Results:
        job = self.machine.call("snapshot", "--limit", "0")["job"]
        for attempt in range(ATTEMPTS):
            try:
                about = self.machine.call("outbox", timeout=OUTBOX_S)
                break
            except CommandFailed as error:
                if error.exit_code != BUSY or attempt == ATTEMPTS - 1:
                    raise
        return _results({**about, "job": job})

    def bring(self, found: Results, entries: list[Entry], results: Path, staging: Path) -> str:
        for entry in entries:
            _seed(results / entry.local, staging / entry.path)
        names = staging / "files"
        write_text(names, "".join(f"{entry.path}\0" for entry in entries))
        try:
            self.machine.rsync(
                # That they differ is known; same size and second need not mean the same content.
                "--ignore-times",
                "--no-links",
                "--from0",
                f"--files-from={names}",
                self.machine.remote(f"{found.root}/" if found.root else ""),
                f"{staging}/",
                progress="results",
            )
        except CommandFailed as error:
            if "no space left" in error.output:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            return f"; rsync: {error.output}"  # e.g. a file is gone: the next list is without it
        return ""


class InBucket:
    """The run's bucket, whatever becomes of the machine."""

    def __init__(self, uri: str):
        self.uri = uri

    def news(self) -> tuple[object, bool]:
        found = self._read(Unreachable)  # for a while
        return [found.job, [entry for entry in found.entries if not entry.growing]], False

    def ask(self) -> Results:
        return self._read(RemoteError)

    def _read(self, absent: type[RemoteError]) -> Results:
        manifest = bucket.manifest(self.uri)
        if manifest is None:
            raise absent(f"{self.uri}: nothing there yet")
        return _results(manifest)

    def bring(self, found: Results, entries: list[Entry], results: Path, staging: Path) -> str:
        bucket.bring(self.uri, entries, staging)
        return ""


def _results(about: dict) -> Results:
    entries = [
        Entry(_safe(file["path"]), file["size"], file["sha256"], file["growing"])
        for file in about["files"]
    ]
    return Results(entries, about["root"], about["complete"], about["job"])


def fetch(run: Run, watch: bool) -> None:
    """Fetch what there is of a run's results, verified, and report it.

    Args:
        run: the run; `run.results` is where they go.
        watch: fetch again at each new epoch and checkpoint until the job has ended.

    Raises:
        Busy: another fetch of this run is at work.
        RemoteError: out of touch for too long, or files do not arrive as they are there.
        UserError: no machine, or the disk is full.
    """
    source = InBucket(run.uri) if run.uri else OnMachine(run.machine())
    with _alone(run):
        found = _follow(run, source) if watch else _through_drops(run, source)
    if found.complete and run.instance_id and not run.uri:
        try:
            run.cloud().keep_volume(run.instance_id, False)  # all of it is here
        except UserError as error:
            say(f"its disk is still kept: {error}")
    _report(run, found)


def fetched_all(run: Run, machine: Machine) -> bool:
    """Whether everything that the machine has now is here, verified and on the disk."""
    os.sync()  # the machine's may be deleted next
    return all(
        _matches(run.results / entry.local, entry) for entry in OnMachine(machine).ask().entries
    )


def _follow(run: Run, source: Source) -> Results:
    """Fetch whenever there is something new, until the job has ended; drops are waited out.

    Once the guard has told that it ends the machine, no time is lost: what the job then saves is
    there for less than two minutes.
    """
    seen, lost, ends = None, 0, False
    while True:
        try:
            now, ends = source.news()
            if now != seen:
                found, seen = fetch_once(run, source), now
                epochs = _epochs_done(run.results)
                say(f"fetched: checkpoints {_checkpoints(found)}; {epochs} epochs")
                if found.job["state"] in ("ended", "lost"):
                    return found
            elif run.uri and _state(run) in ENDED:  # it had no time to push more
                return found
            lost = 0
            time.sleep(HURRY_S if ends else POLL_S)
        except RemoteError as error:
            _check_machine(run, error)
            if seen is None and not isinstance(error, Unreachable):
                raise  # later, it is a machine that goes down or is short of something
            if lost == 0:
                say(f"{error}; trying again")
            lost += 1
            time.sleep(HURRY_S if ends else _pause(lost))


def _through_drops(run: Run, source: Source) -> Results:
    """Fetch once, as often as the connection drops, unless nothing comes any more."""
    lost, arrived, last = 0, -1, time.monotonic()
    while True:
        try:
            return fetch_once(run, source)
        except Unreachable as error:
            _check_machine(run, error)
            before, arrived = arrived, folder_size(_staging(run.results))
            if arrived > before:
                lost, last = 0, time.monotonic()
            if time.monotonic() - last > PATIENCE_S:
                raise Unreachable(
                    f"{error}; gave up after {PATIENCE_S / 60:.0f} minutes without a byte more. "
                    f"{_intact(run)}; `fab fetch` continues where this one was"
                ) from error
            lost += 1
            say(f"{error}; trying again")
            time.sleep(_pause(lost))


def _pause(lost: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return min(LONGEST_WAIT_S, 2.0**lost) * random.uniform(0.5, 1)


def _check_machine(run: Run, error: RemoteError) -> None:
    """RemoteError if the machine that does not answer is known to be no more."""
    state = _state(run)
    if state in ENDED and run.uri:
        raise RemoteError(f"{error}, and its machine is {state}: nothing will come") from error
    if state in ENDED:
        raise RemoteError(
            f"the machine {run.instance_id} is {state}. {_intact(run)}; its "
            "disk is kept until all is fetched: `fab resume` continues from it on a new machine"
        ) from error


def _state(run: Run) -> str | None:
    """EC2's word for the machine's state; None if there is none, or it cannot be asked."""
    if run.instance_id is None:
        return UNKNOWN if run.state in NO_MACHINE else None
    try:
        return run.cloud().state(run.instance_id) or UNKNOWN
    except UserError:  # no network, or no credentials here
        return None


def _intact(run: Run) -> str:
    if run.fetched is None:
        return "Nothing was fetched before"
    return f"What was fetched before is intact in {run.results}"


def fetch_once(run: Run, source: Source) -> Results:
    """Fetch the results as they are now, and note it in the run's state.

    Raises:
        Unreachable: the connection dropped; what came is kept for the next time.
        RemoteError: a file arrives otherwise than it is there, each time.
        UserError: the local disk is full.
    """
    results, staging = run.results, _staging(run.results)
    with explain_full_disk(f"{results}; what was fetched before is intact"):
        try:
            found = _verified(source, results, staging)
            _install(found.entries, staging, results)
        except OSError:
            shutil.rmtree(staging, ignore_errors=True)  # leave no full disk behind
            raise
        shutil.rmtree(staging)
        run.fetched = "complete" if found.complete else "partial"
    return found


def _verified(source: Source, results: Path, staging: Path) -> Results:
    """Bring what is missing into staging until all of it is as the machine lists it."""
    for _ in range(ATTEMPTS):
        found = source.ask()
        _check_not_older(found.entries, results)
        staging.mkdir(parents=True, exist_ok=True)
        missing = [
            entry
            for entry in found.entries
            if not _matches(results / entry.local, entry)
            and not _matches(staging / entry.path, entry)
        ]
        trouble = source.bring(found, missing, results, staging) if missing else ""
        bad = [entry for entry in missing if not _matches(staging / entry.path, entry)]
        if not bad:
            return found
    raise RemoteError(
        f"{bad[0].path} arrived otherwise than it is on the machine, {ATTEMPTS} times: expected "
        f"{bad[0].size} bytes with SHA-256 {bad[0].sha256[:12]}…{trouble}. Nothing in {results} "
        "was replaced; `fab fetch` tries again"
    )


def _safe(text: str) -> PurePosixPath:
    """A path from the machine; RemoteError if it leads out of the results."""
    path = PurePosixPath(text)
    if not is_inside(text) or len(path.parts) < 2 or path.parts[0] not in ("run", "job"):
        raise RemoteError(f"the machine names {text!r} as a result: expected run/… or job/…")
    return path


def _check_not_older(entries: list[Entry], results: Path) -> None:
    """UserError if a local checkpoint is of a later step than the machine's."""
    for step in _steps(entries):
        folder = results / Path(*step.parts[1:-1])
        if folder.is_dir():
            newer = [
                int(path.name) for path in _numbered(folder) if int(path.name) > int(step.name)
            ]
            if newer:
                raise UserError(
                    f"{folder}/{max(newer)} is newer than the machine's {step.name}: the training "
                    f"continued here. Move {results} elsewhere to fetch"
                )


def _seed(old: Path, staged: Path) -> None:
    """Let rsync send only what is new in a file of which there is an older one.

    It never writes into a file that is there, so the older one may be the same by a hard link.
    """
    if old.is_file() and not staged.exists():
        with suppress(OSError):
            staged.parent.mkdir(parents=True, exist_ok=True)
            os.link(old, staged)


def _matches(path: Path, entry: Entry) -> bool:
    """Whether a file is what the machine has, or begins with it if it grows."""
    if not path.is_file():
        return False
    size = path.stat().st_size
    if size < entry.size or (size > entry.size and not entry.growing):
        return False
    return sha256(path, entry.size) == entry.sha256


def _install(entries: list[Entry], staging: Path, results: Path) -> None:
    """Move what is in staging into the results so that a stop at any point leaves them usable.

    New checkpoints come complete and before the old ones go, the best before the latest; summaries
    come last, for with its summary a run is complete.
    """
    steps = sorted(_steps(entries))
    for step in steps:
        target = results / Path(*step.parts[1:])
        if not target.exists():
            members = {staging / entry.path for entry in entries if entry.step == step}
            _clear_others(staging / step, members)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / step, target)
    summary = {entry: entry.path.name in SUMMARIES for entry in entries}
    for entry in sorted(entries, key=lambda entry: (summary[entry], -len(entry.path.parts))):
        target = results / entry.local
        if not _matches(target, entry):
            target.parent.mkdir(parents=True, exist_ok=True)
            if entry.growing:
                _keep_other_log(target, staging / entry.path)
                os.truncate(staging / entry.path, entry.size)
            os.replace(staging / entry.path, target)
    for step in steps:
        for old in _numbered(results / Path(*step.parts[1:-1])):
            if int(old.name) < int(step.name):
                shutil.rmtree(old)


def _steps(entries: list[Entry]) -> set[PurePosixPath]:
    return {entry.step for entry in entries if entry.step is not None}


def _numbered(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.isdigit()]


def _clear_others(folder: Path, members: set[Path]) -> None:
    """Delete what cut transfers left among a checkpoint's files."""
    for path in folder.rglob("*"):
        if path.is_file() and path not in members:
            path.unlink()
    for path in sorted(folder.rglob(".rsync-partial"), reverse=True):
        path.rmdir()


def _keep_other_log(log: Path, staged: Path) -> None:
    """Put a log aside that is not the beginning of the new one: another machine's."""
    if not log.exists():
        return
    size = log.stat().st_size
    if staged.stat().st_size < size or sha256(log, size) != sha256(staged, size):
        number = 1
        while (kept := log.with_name(f"{log.stem}.{number}{log.suffix}")).exists():
            number += 1
        os.replace(log, kept)


def _staging(results: Path) -> Path:
    return results.with_name(f".{results.name}.fetching")


@contextmanager
def _alone(run: Run) -> Iterator[None]:
    """Be the only fetch of a run."""
    with open(run.folder / "fetch.lock", "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(f"another `fab fetch` of {run.name} is at work here") from error
        yield


def _report(run: Run, found: Results) -> None:
    """Say what is here now, what is not, and how to evaluate it."""
    results, names = run.results, [entry.local for entry in found.entries]
    logs = [(name, (results / name).stat().st_size) for name in names if name.suffix == ".log"]
    rows = [
        ("checkpoints", _checkpoints(found)),
        ("epochs in metrics.jsonl", _epochs_done(results)),
        ("logs", ", ".join(f"{name} {size} bytes" for name, size in logs if size) or "none"),
        ("plots", sum(name.suffix == ".png" for name in names)),
        ("summary", "yes" if found.complete else "no"),
    ]
    say_table(f"Fetched to {results}: {len(names)} files, verified", ("", "here now"), rows)
    if not found.complete:
        say(progress_text(results, found))
    best = any(step.parts[1:3] == ("checkpoints", "best") for step in _steps(found.entries))
    if (
        found.complete or best
    ) and not run.is_study:  # parts are evaluated together, when all are there
        say(f"next: {evaluate_command(run)}")


def _checkpoints(found: Results) -> str:
    """`best 96, latest 108`, or with parts how many there are of each kind."""
    kinds: dict[str, list[str]] = {}
    for step in sorted(_steps(found.entries)):
        kinds.setdefault(step.parts[-2], []).append(step.name)
    texts = [
        f"{kind} {steps[0] if len(steps) == 1 else f'of {len(steps)} parts'}"
        for kind, steps in kinds.items()
    ]
    return ", ".join(texts) or "none"


def _metrics(results: Path) -> Path | None:
    """The metrics of the run, or of the part that is being trained."""
    files = results.rglob("metrics.jsonl")
    return max(files, key=lambda path: path.stat().st_mtime, default=None)


def _epochs_done(results: Path) -> int:
    path = _metrics(results)
    return len(path.read_text(encoding="utf-8").splitlines()) if path else 0


def progress_text(results: Path, found: Results) -> str:
    """Why there is no final checkpoint or no summary: how far the job is, or how it ended."""
    final = any(step.parts[-2] == "final" for step in _steps(found.entries))
    missing = "no summary" if final else "no final checkpoint"
    where, metrics = "before the first epoch", _metrics(results)
    if metrics is not None:
        epochs = read_json(metrics.parent / "config.json")["train"]["epochs"]
        where = f"in epoch {min(_epochs_done(results) + 1, epochs)} of {epochs}"
        if metrics.parent != results:
            where += f" of {metrics.parent.relative_to(results)}"
    if found.job["state"] == "running":
        return f"{missing} yet: the job is {where}"
    if found.job["state"] == "ended":
        return f"{missing}: the job ended with exit code {found.job['exit_code']} {where}"
    return f"{missing}: the job is {found.job['state']}, {where}"


def evaluate_command(run: Run) -> str:
    """The command that evaluates what was fetched, on this computer's copy of the data."""
    roots = ["FOLDER" if is_uri(one) else one for one in run.data]  # evaluation reads no bucket
    roots = ["--data.roots", *roots] if roots else []
    return shlex.join(["mmattn", "evaluate", str(run.results), *roots])
