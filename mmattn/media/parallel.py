"""Many clips in parallel: it resumes where it stopped, and continues past clips that fail."""

import multiprocessing
import os
import resource
import shlex
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple, TypeVar

from mmattn.config import VARIANT, ExtractConfig
from mmattn.console import SHOWN, be_quiet, counted, progress, say, say_table
from mmattn.data.corpora import CORPORA, MANIFESTS, find_manifest
from mmattn.data.corpora.folders import choose_clips
from mmattn.data.extractor import difference
from mmattn.data.feature_file import BadClip, read_features, training_command
from mmattn.data.manifest import (
    TABLES,
    Manifest,
    read_cells,
    read_manifest,
    rows_of,
    say_lacking,
    write_manifest,
)
from mmattn.errors import Incomplete, UserError
from mmattn.files import check_folder_place, explain_full_disk
from mmattn.machine import end_children, without_interrupt
from mmattn.media import SUFFIXES, egemaps
from mmattn.media.extract import (
    FASTEST,
    audio_beside,
    extract_clip,
    extractor_of,
    write_features,
)
from mmattn.media.survey import BadMedia
from mmattn.media.variants import variants_of

DIED = "the process that read it died"
Result = TypeVar("Result")


class Job(NamedTuple):
    """A clip and the feature file that it becomes."""

    clip: Path
    target: Path


class Done(NamedTuple):
    """The result of a clip."""

    seconds: float = 0.0  # duration of the clip
    notes: tuple[str, ...] = ()
    failure: str | None = None
    work: float = 0.0  # core seconds
    memory: int = 0  # bytes, peak of the process


def extract_clips(clips: Sequence[Path], to: Path, config: ExtractConfig, workers: int) -> None:
    """Extract clips, and the clips of folders, to feature files below the folder `to`.

    Existing feature files newer than their clip are kept.

    Raises:
        UserError: no clips, two clips for one feature file, features of another extractor in `to`,
            a missing model file or library, a full disk.
        Incomplete: some clips failed; the others are done.
    """
    if not 0 < config.video_rate <= FASTEST:
        raise UserError(f"--video-rate {config.video_rate}: expected above 0, at most {FASTEST:g}")
    if not (config.audio or config.video):
        raise UserError("--audio none --video none: expected at least one modality")
    if variants_of(config.augment_audio) and not config.audio:
        raise UserError("--audio none: expected audio features, which --augment-audio needs")
    check_folder_place("to", to)
    tables = {path: table for path in clips if (table := find_manifest(path))}
    listed = [read_manifest(table, target=None) for table in tables.values()]
    lacking = [say_lacking(table.columns) for table in listed]
    jobs = find_jobs([path for path in clips if path not in tables], to, listed)
    _check_table(listed, jobs, to)
    left = [job for job in jobs if not _is_done(job, config)]
    if len(left) < len(jobs):
        say(f"{len(jobs) - len(left)} of {len(jobs)} clips are already in {to}")
    if "egemaps" in config.audio.values():
        say(egemaps.LICENCE)
    if not left:
        _finish(listed, jobs, to, trainable=not any(lacking))
        return
    workers = min(workers, len(left))
    begin = time.perf_counter()
    found: dict[Job, Done] = {}
    with explain_full_disk(f"feature files to {to}"), progress("extract", len(left)) as advance:
        for job, done in run_jobs(extract_to_file, left, config, workers):
            found[job] = done or Done(failure=DIED)
            advance(1)
    good = [job for job in jobs if job not in found or not found[job].failure]
    _finish(listed, good, to, trainable=not any(lacking))
    _say_results(found, time.perf_counter() - begin, workers, to)


def find_jobs(clips: Sequence[Path], to: Path, tables: Sequence[Manifest] = ()) -> list[Job]:
    """Each clip with its feature file; paths below `to` mirror those below the given folder, or the
    folder of a table.

    Raises UserError, also if two clips would have the same file.
    """
    owners: dict[Path, Path] = {}
    found = find_clips(clips, SUFFIXES) if clips or not tables else []
    for table in tables:
        if table.path is None or "" not in table.files:
            raise UserError(f"{table.path}: expected a column file that names raw clips")
        paths = [*map(Path, dict.fromkeys(table.files[""]))]
        if features := [path for path in paths if path.suffix == ".npz"]:
            raise UserError(f"{table.path}: expected raw clips, found feature file {features[0]}")
        found += [(path, path.relative_to(table.path.parent)) for path in paths]
    for clip, below in found:
        target = (to / below).with_suffix(".npz")
        if owners.setdefault(target, clip) != clip:
            raise UserError(
                f"{owners[target]} and {clip} would both become {target}; give a folder above "
                "both, or extract them to different folders"
            )
    return [Job(clip, target) for target, clip in owners.items()]


def _rows(tables: Sequence[Manifest], jobs: Sequence[Job], to: Path) -> list[dict[str, str]]:
    """The rows of the clips of these jobs, with their feature files."""
    place = {str(job.clip): job.target for job in jobs}
    return [
        {**cells, "file": place[file].relative_to(to).as_posix()}
        for table in tables
        for file, cells in zip(table.files[""], rows_of(table.columns), strict=True)
        if file in place
    ]


def _check_table(tables: Sequence[Manifest], jobs: Sequence[Job], to: Path) -> None:
    """UserError if there is a table with other rows: of other clips, or edited by the user."""
    path = to / MANIFESTS[0]
    if not (tables and path.exists()):
        return
    rows = {frozenset(row.items()) for row in _rows(tables, jobs, to)}
    if any(frozenset(row.items()) not in rows for row in read_cells(path)):
        raise UserError(
            f"{path}: its rows differ from {' and '.join(str(table.path) for table in tables)}; "
            "choose another --to for other clips; if it was edited, move it away"
        )


def _finish(tables: Sequence[Manifest], jobs: Sequence[Job], to: Path, trainable: bool) -> None:
    """Write the rows of the extracted clips as a table of their feature files; say what is next,
    which is training if the tables have all that it needs."""
    if not jobs:
        return
    if tables:
        path, rows = to / MANIFESTS[0], _rows(tables, jobs, to)
        write_manifest(path, rows, overwrite=True)
        say(f"{path}: {counted(len(rows), 'clip')}")
    elif table := find_manifest(to):
        say(f"{table} stays as it is: training ignores clips without a row in it")
    if not trainable:
        return
    known = (any(one.row(job.clip.stem) for one in CORPORA.values()) for job in jobs)
    if find_manifest(to) or all(known):
        say(f"next: {training_command(to, [job.target for job in jobs])}")
    elif len(jobs) > 1:
        folder = shlex.quote(str(to))
        say(
            f"next: mmattn manifest {folder} --pattern PATTERN, one that fits the names, such as "
            "'{emotion}/{speaker}_{take}'"
        )


def find_clips(given: Sequence[Path], suffixes: Sequence[str]) -> list[tuple[Path, Path]]:
    """The given clips and those in the given folders, each with its path below that folder; see
    `choose_clips`.

    Args:
        given: clips and folders.
        suffixes: of clips in folders.

    Raises:
        UserError: one does not exist, or a folder has no clips.
    """
    if not given:
        raise UserError("CLIP...: expected clips or folders of clips, one or more")
    found = []
    for path in given:
        if path.is_dir():
            found += [(clip, clip.relative_to(path)) for clip in choose_clips(path, suffixes)]
        elif not path.exists():
            raise UserError(f"{path}: expected a clip or a folder of clips, found nothing")
        elif path.suffix in {".npz", *TABLES} - {*suffixes}:
            raise UserError(f"{path}: expected a raw clip or a folder, not a {path.suffix} file")
        else:
            found.append((path, Path(path.name)))
    return found


def _is_done(job: Job, config: ExtractConfig) -> bool:
    """Whether the feature file exists, is complete and newer than the clip.

    UserError if another extractor made it: nothing is overwritten.
    """
    if not job.target.exists():
        return False
    try:
        _, extractor = read_features(job.target)
    except BadClip as error:
        raise UserError(
            f"{job.target} is not a feature file ({error}); delete it to extract it again, "
            "or choose another --to"
        ) from error
    made = extractor_of(config)
    wanted = {name: made[name] for name in made if name.partition(VARIANT)[0] in extractor}
    if extractor != wanted or not extractor:
        differs = difference(extractor, wanted, none="none") or "it does not name them"
        raise UserError(
            f"{job.target} holds other features than requested ({differs}); choose another --to or "
            "the same options, or delete the files to extract again"
        )
    sources = [job.clip, *filter(None, [audio_beside(job.clip)])]
    return job.target.stat().st_mtime >= max(path.stat().st_mtime for path in sources)


def run_jobs(
    work: Callable[[Job, ExtractConfig], Result],
    jobs: Sequence[Job],
    config: ExtractConfig,
    workers: int,
) -> Iterator[tuple[Job, Result | None]]:
    """Each job with its result, as jobs end; None if its process died.

    If a process dies (a decoder crashes, out of memory), the jobs that it may have been running are
    repeated one by one, so that only the job that kills its process fails.

    Args:
        work: what a process does with a job and the config; a module-level function.
        jobs: to do.
        config: of the features.
        workers: processes.
    """
    left = list(jobs)
    while left:
        broken = yield from _run(work, left, config, workers)
        begun = 2 * workers + 1  # jobs start in order, and the pool hands out one ahead
        for job in broken[:begun]:
            if (yield from _run(work, [job], config, 1)):
                yield job, None
        left = broken[begun:]


def _run(
    work: Callable[..., Result], jobs: Sequence[Job], config: ExtractConfig, workers: int
) -> Generator[tuple[Job, Result], None, list[Job]]:
    """Yields as `run_jobs`; returns the jobs, in order, that are left because a process died."""
    context = multiprocessing.get_context("spawn")  # forking with threads and models is unsafe
    pool = ProcessPoolExecutor(workers, context, _start_process)
    try:
        with without_interrupt():
            futures = {pool.submit(_do, work, job, config): job for job in jobs}
        broken = set()
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool:
                broken.add(futures[future])
        return [job for job in jobs if job in broken]
    except BaseException:  # Ctrl-C too: started jobs have no file yet and may be dropped
        end_children()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _do(work: Callable[..., Result], job: Job, config: ExtractConfig) -> Result:
    try:
        return work(job, config)
    except SystemExit:  # from SIGTERM: the pool would take it as the job's result
        os._exit(1)


def _start_process() -> None:
    be_quiet()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a partial file is removed


def extract_to_file(job: Job, config: ExtractConfig) -> Done:
    """Extract one clip and write its feature file; a bad clip gives a failure."""
    begin = time.process_time()
    try:
        found = extract_clip(job.clip, config)
        job.target.parent.mkdir(parents=True, exist_ok=True)
        write_features(job.target, found)
    except BadMedia as error:
        return Done(failure=str(error))
    except (UserError, OSError):  # wrong options or a disk error: all clips would fail
        raise
    except Exception as error:  # no error of one clip stops the others
        return Done(failure=repr(error))
    return Done(found.seconds, found.notes, None, time.process_time() - begin, _most_memory())


def _most_memory() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _say_results(found: dict[Job, Done], seconds: float, workers: int, to: Path) -> None:
    """Print notes on clips, and the speed; raises Incomplete if clips failed."""
    results = sorted(found.items())
    noted = [(job.clip, "; ".join(done.notes)) for job, done in results if done.notes]
    failed = [(job.clip, done.failure) for job, done in results if done.failure]
    if noted:
        title = f"{counted(len(noted), 'clip')} with notes"
        say_table(title, ("clip", "note"), noted, left=True, most=SHOWN)
    if failed:
        say_table(f"{counted(len(failed), 'clip')} failed", ("clip", "reason"), failed, left=True)
    good = [done for done in found.values() if not done.failure]
    if good:
        played, work = sum(done.seconds for done in good), sum(done.work for done in good)
        say(
            f"{counted(len(good), 'clip')} of {played:.0f} s in {seconds:.0f} s: "
            f"{work / played:.2f} core seconds per second of clip; {workers} in parallel, at most "
            f"{max(done.memory for done in good) / 1e6:.0f} MB each; features in {to}"
        )
    if failed:
        others = f", the others are in {to}" if good else ""
        raise Incomplete(
            f"{len(failed)} of {len(found)} clips failed (see the table){others}; the same command "
            "retries them"
        )
