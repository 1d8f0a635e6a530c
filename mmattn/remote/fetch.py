"""Results from the machine: consistent, verified, and never replacing something better.

The machine, or the bucket, lists a consistent copy (`agent/outbox.py`). New files go to a staging
folder beside the run's, are verified there, and only then moved.
"""

import os
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import botocore.exceptions as failures
from boto3.exceptions import RetriesExceededError
from tenacity import stop_never

from mmattn.console import progress, say, say_table
from mmattn.errors import UserError
from mmattn.files import explain_full_disk, write_text
from mmattn.remote.agent.bucket import Bucket, checked, in_parallel
from mmattn.remote.agent.job import SUMMARIES
from mmattn.remote.agent.outbox import sha256
from mmattn.remote.aws import CloudError, client, explained, suppressed
from mmattn.remote.monitor import ask_cloud
from mmattn.remote.runs import Run, is_uri, locked
from mmattn.remote.screen import job_text
from mmattn.remote.ssh import RemoteError, Unreachable, persistent

POLL_S = 15.0
MB = 1_000_000
OUTBOX_S = 300.0  # to hash everything
DROPS = (failures.ConnectionError, failures.HTTPClientError)  # lost connections to a bucket


class Entry(NamedTuple):
    """A file of the results on the machine."""

    path: Path  # in the folder of the results
    size: int
    sha256: str
    growing: bool  # a log: size and hash are of its beginning

    @property
    def step(self) -> Path | None:
        """The folder of its checkpoint, [part/]checkpoints/<kind>/<step>; None outside of one."""
        parts = self.path.parts
        if "checkpoints" not in parts[:-3]:
            return None
        folder = Path(*parts[: parts.index("checkpoints") + 3])
        return folder if folder.name.isdigit() else None

    def is_in(self, folder: Path) -> bool:
        """Whether a folder has the same content, or for a growing file the same beginning."""
        path = folder / self.path
        size = path.stat().st_size if path.is_file() else -1
        fits = size >= self.size if self.growing else size == self.size
        return fits and sha256(path, self.size) == self.sha256


class Results(NamedTuple):
    """The results on the machine, and the state of its job, at a time."""

    entries: list[Entry]
    complete: bool
    job: dict
    time: float  # by the machine's clock

    @property
    def steps(self) -> list[Path]:
        """The folders of the checkpoints."""
        return sorted({entry.step for entry in self.entries if entry.step is not None})


def fetch(run: Run, watch: bool) -> None:
    """Fetch a run's results so far into `run.results`, verified, and report them.

    With `watch`, keep fetching until the job has ended, and reconnect after any drop.
    """
    attempt = persistent(_attempt)
    if watch:
        attempt = attempt.retry_with(stop=stop_never)
    said = None
    with locked("fetch", run.folder / "fetch"):
        while True:
            gone = watch and _pushes_no_more(run)  # before the fetch, which then has its last push
            found = attempt(run, "" if said else "results")
            made = _made(run, found)
            if watch and made != said:
                say(f"fetched: {made}")
            said = made
            if not watch or gone or found.job["state"] in ("ended", "lost"):
                break
            time.sleep(POLL_S)
    if found.complete and run.instance_id and not run.uri:
        try:
            run.cloud().keep_volume(run.instance_id, False)  # all results are here
        except UserError as error:
            say(f"its disk is still kept: {error}")
    _report(run, found)


def fetched_all(run: Run) -> bool:
    """Whether all results on the machine are here, verified and on the disk."""
    os.sync()  # the machine's copy may be deleted next
    return all(entry.is_in(run.results) for entry in _ask(run).entries)


def _attempt(run: Run, title: str) -> Results:
    """Fetch once; Unreachable if a retry may help, RemoteError if the machine is gone."""
    try:
        return fetch_once(run, title)
    except Unreachable as error:
        gone = "" if run.uri else ask_cloud(run, 0)  # a bucket outlives its machine
        raise Unreachable(f"{error}{gone}") from error
    except CloudError as error:
        if isinstance(error.__cause__, DROPS):
            raise Unreachable(str(error)) from error
        raise


def _pushes_no_more(run: Run) -> bool:
    """Whether the machine pushes to a bucket and is known to be gone."""
    try:
        return bool(run.uri) and not ask_cloud(run, 0)
    except RemoteError as error:
        say(str(error))
        return True


def fetch_once(run: Run, title: str = "results") -> Results:
    """Fetch the results as they are now, and note it in the run's state; `title` is shown.

    Unreachable if the connection dropped or a file arrived damaged: what was transferred is kept
    for the next attempt. UserError if the local disk is full, or the training continued here.
    """
    results, staging = run.results, run.results.with_name(f".{run.results.name}.fetching")
    found = _ask(run)
    _check_not_older(found, results)
    missing = [entry for entry in found.entries if not entry.is_in(results)]
    with explain_full_disk(f"{staging}; earlier results are intact"):
        staging.mkdir(parents=True, exist_ok=True)
        wanted = {staging / entry.path for entry in missing}
        for path in staging.rglob("*"):  # left by earlier transfers
            if path.is_file() and path not in wanted:
                path.unlink()
        away = [entry for entry in missing if not entry.is_in(staging)]
        if away:
            if run.uri:
                _download(run.uri, away, staging)
            else:
                _bring(run, away, staging, title)
        bad = [entry.path for entry in missing if not entry.is_in(staging)]
        if bad:
            raise Unreachable(f"{bad[0]} did not arrive intact; nothing was replaced")
        _install(missing, found.steps, staging, results)
        shutil.rmtree(staging)
    run.fetched = "complete" if found.complete else "partial"
    return found


def _ask(run: Run) -> Results:
    """List the results on the machine, or in the bucket."""
    with explained(run.uri or run.name):
        if run.uri:
            manifest = Bucket(run.uri, client("s3")).manifest()
        else:
            manifest = checked(run.machine().call("outbox", timeout=OUTBOX_S))
    if manifest is None:
        raise RemoteError(f"{run.uri}: no results yet")
    try:
        files = [Entry(**{**file, "path": Path(file["path"])}) for file in manifest["files"]]
        return Results(files, manifest["complete"], manifest["job"], manifest["time"])
    except (KeyError, TypeError) as error:
        raise RemoteError(
            f"the list of results is of another version of mmattn: {error}"
        ) from error


def _check_not_older(found: Results, results: Path) -> None:
    """UserError if a local checkpoint has a later step than the machine's."""
    for step in found.steps:
        newest = max(_numbers(results / step.parent), default=0)
        if newest > int(step.name):
            raise UserError(
                f"{results / step.parent}/{newest} is newer than the machine's {step.name}: the "
                f"training continued here. Move {results} elsewhere to fetch"
            )


def _numbers(kind: Path) -> list[int]:
    """The steps of the checkpoints of a kind."""
    return [int(path.name) for path in kind.glob("*") if path.name.isdigit()]


def _bring(run: Run, entries: Sequence[Entry], staging: Path, title: str) -> None:
    """Copy files from the machine's outbox into staging."""
    names, machine = run.folder / "fetch" / "names", run.machine()
    write_text(names, "".join(f"{entry.path}\0" for entry in entries))
    machine.rsync(
        # The files are known to differ, even if size and time (in seconds) are equal.
        *("--ignore-times", "--no-links", "--from0", f"--files-from={names}"),
        # Not within a checkpoint, whose folder is moved as a whole.
        f"--partial-dir={names.parent.resolve()}",
        # Of a file with an older copy here, only what is new is sent.
        f"--compare-dest={run.results.resolve()}",
        *(machine.remote("outbox/"), f"{staging}/"),
        progress=title,
    )


def _download(uri: str, entries: Sequence[Entry], staging: Path) -> None:
    """Copy files from the bucket into staging."""
    bucket, total = Bucket(uri, client("s3")), sum(entry.size for entry in entries)

    def one(entry: Entry) -> None:
        with suppressed("404", "NoSuchKey"):  # replaced, with a newer manifest
            bucket.save(f"{entry.path}@{entry.sha256}", staging / entry.path, entry.sha256)
        advance(entry.size / MB)

    try:
        with explained(uri), progress("fetch", -(-total // MB), "MB") as advance:
            in_parallel(one, entries)
    except RetriesExceededError as error:
        raise Unreachable(f"{uri}: {error}") from error


def _install(missing: Sequence[Entry], steps: Sequence[Path], staging: Path, results: Path) -> None:
    """Move files from staging into the results; a stop at any point leaves those usable.

    New checkpoints come before old ones are deleted, the best before the latest, and summaries
    last: a run with a summary is complete.
    """
    for step in steps:
        if not (results / step).exists():
            (results / step).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / step, results / step)
    rest = [entry.path for entry in missing if (staging / entry.path).exists()]
    for path in sorted(rest, key=lambda path: (path.name in SUMMARIES, -len(path.parts))):
        (results / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / path, results / path)
    for step in steps:
        for number in _numbers(results / step.parent):
            if number < int(step.name):
                shutil.rmtree(results / step.with_name(str(number)))


def _report(run: Run, found: Results) -> None:
    """Print what is here now, the state of the job, and the command that evaluates the run."""
    rows = [
        ("training", _made(run, found)),
        ("summary", "yes" if found.complete else "not yet"),
        ("job", job_text(found.job, found.time)[0]),
    ]
    title = f"Fetched to {run.results}: {len(found.entries)} files, verified"
    say_table(title, ("", ""), rows, left=True)
    best = any(step.parts[:2] == ("checkpoints", "best") for step in found.steps)
    if (found.complete or best) and not run.is_study:  # parts are evaluated together
        roots = ["FOLDER" if is_uri(one) else one for one in run.data]  # evaluate reads no bucket
        options = ["--data.roots", *roots] if roots else []
        say(f"next: {shlex.join(['mmattn', 'evaluate', str(run.results), *options])}")


def _made(run: Run, found: Results) -> str:
    """How many checkpoints and epochs are here, over all parts."""
    counts = Counter(step.parent.name for step in found.steps)
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items())) or "none"
    metrics = [path.read_text(encoding="utf-8") for path in run.results.rglob("metrics.jsonl")]
    return f"checkpoints: {kinds}; epochs: {sum(len(one.splitlines()) for one in metrics)}"
