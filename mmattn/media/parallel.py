"""Many clips at once: over all cores, resuming where it stopped, past clips that fail."""

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
from mmattn.console import be_quiet, progress, say, say_table
from mmattn.data.corpora import MANIFESTS, find_manifest, ravdess
from mmattn.data.corpora.folders import list_clips
from mmattn.data.extractor import difference
from mmattn.data.feature_file import BadClip, read_features
from mmattn.data.manifest import Manifest, read_manifest, rows_of, write_manifest
from mmattn.errors import Incomplete, UserError
from mmattn.files import explain_full_disk
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
    """What became of a clip."""

    seconds: float = 0.0  # that the clip lasts
    notes: tuple[str, ...] = ()
    failure: str | None = None
    work: float = 0.0  # seconds of a core that it took
    memory: int = 0  # bytes, the most that the process has had


def extract_clips(clips: Sequence[Path], to: Path, config: ExtractConfig, workers: int) -> None:
    """Extract clips, and those in folders, to feature files below the folder `to`.

    Those that are there already and newer than their clip stay.

    Raises:
        UserError: no clips, two for one feature file, features of another extractor in `to`, a
            model file or library that is missing, a full disk.
        Incomplete: some clips failed; the others are done.
    """
    if not 0 < config.video_rate <= FASTEST:
        raise UserError(f"--video-rate {config.video_rate}: expected above 0, at most {FASTEST:g}")
    if not (config.audio or config.video):
        raise UserError("--audio none --video none: expected one of them")
    if variants_of(config.augment_audio) and not config.audio:
        raise UserError(
            "--audio none: expected audio features, of which --augment-audio makes more"
        )
    tables = {path: table for path in clips if (table := find_manifest(path))}
    listed = [read_manifest(table, target=None) for table in tables.values()]
    jobs = find_jobs([path for path in clips if path not in tables], to, listed)
    left = [job for job in jobs if not _is_done(job, config)]
    if len(left) < len(jobs):
        say(f"{len(jobs) - len(left)} of {len(jobs)} clips are in {to} already")
    if "egemaps" in config.audio.values():
        say(egemaps.LICENCE)
    if not left:
        _write_tables(listed, jobs, to)
        return
    workers = min(workers, len(left))
    begin = time.perf_counter()
    found: dict[Job, Done] = {}
    with explain_full_disk(f"feature files to {to}"), progress("extract", len(left)) as advance:
        for job, done in run_jobs(extract_to_file, left, config, workers):
            found[job] = done or Done(failure=DIED)
            advance(1)
    _write_tables(listed, [job for job in jobs if job not in found or not found[job].failure], to)
    _say_results(found, time.perf_counter() - begin, workers, to)


def find_jobs(clips: Sequence[Path], to: Path, tables: Sequence[Manifest] = ()) -> list[Job]:
    """Each clip with its feature file, which lies in `to` as the clip lies in the folder given, or
    in that of a table.

    Raises UserError, also where two clips would have one file.
    """
    owners: dict[Path, Path] = {}
    found = find_clips(clips, SUFFIXES) if clips or not tables else []
    for table in tables:
        if table.path is None or "" not in table.files:
            raise UserError(f"{table.path}: expected the column file, of raw clips")
        paths = map(Path, dict.fromkeys(table.files[""]))
        found += [(path, path.relative_to(table.path.parent)) for path in paths]
    for clip, below in found:
        target = (to / below).with_suffix(".npz")
        if owners.setdefault(target, clip) != clip:
            raise UserError(f"{owners[target]} and {clip} would both become {target}")
    return [Job(clip, target) for target, clip in owners.items()]


def _write_tables(tables: Sequence[Manifest], jobs: Sequence[Job], to: Path) -> None:
    """The rows of the clips that are extracted, as a table of their feature files.

    Raises UserError if there is a table with other rows: the user may have edited it.
    """
    if not tables:
        return
    path, place = to / MANIFESTS[0], {str(job.clip): job.target for job in jobs}
    rows = [
        {**cells, "file": place[file].relative_to(to).as_posix()}
        for table in tables
        for file, cells in zip(table.files[""], rows_of(table.columns), strict=True)
        if file in place
    ]
    if path.exists() and any(
        row not in rows for row in rows_of(read_manifest(path, target=None).columns)
    ):
        raise UserError(
            f"{path} has other rows than {' and '.join(str(table.path) for table in tables)} "
            "would give; move it away, and the same command writes it anew"
        )
    write_manifest(path, rows, overwrite=True)
    command = f"python -m experiments.no_aug --data.roots {shlex.quote(str(to))}"
    say(f"{path}: {len(rows)} clips; next: {command}")


def find_clips(given: Sequence[Path], suffixes: Sequence[str]) -> list[tuple[Path, Path]]:
    """The clips given and those in the folders given, each with its path below that folder.

    Of a RAVDESS take, folders give only the fullest file: audio and video (01-*) before video
    (02-*) before audio (03-*).

    Args:
        given: clips and folders.
        suffixes: of clips in folders.

    Raises:
        UserError: one of them is not there, or a folder has no clips.
    """
    if not given:
        raise UserError("CLIP...: expected clips or folders of clips, one or more")
    found, left_out = [], 0
    for path in given:
        if path.is_dir():
            listed = [path / below for below in list_clips(path, suffixes)]
            # Of one name the clip with the first suffix.
            inside = sorted({clip.with_suffix(""): clip for clip in reversed(listed)}.values())
            for clip in sorted({*listed} - {*inside}):
                say(f"{clip} is left out: its name is another's but for the suffix")
            chosen = _fullest(inside)
            left_out += len(inside) - len(chosen)
            found += [(clip, clip.relative_to(path)) for clip in chosen]
        elif path.exists():
            found.append((path, Path(path.name)))
        else:
            raise UserError(f"{path}: expected a clip or a folder of clips, there is none")
    if left_out:
        files = "1 file is" if left_out == 1 else f"{left_out} files are"
        say(f"{files} left out: there are files with more of the same takes (01-, 02-, 03-*)")
    return found


def _fullest(paths: Sequence[Path]) -> list[Path]:
    """The paths without those of RAVDESS takes that a path with a lower first number has too."""
    takes: dict[str, str] = {}
    for stem in (path.stem for path in paths if ravdess.row(path.stem)):
        takes[stem[3:]] = min(takes.get(stem[3:], stem), stem)
    return [
        path for path in paths if not ravdess.row(path.stem) or takes[path.stem[3:]] == path.stem
    ]


def _is_done(job: Job, config: ExtractConfig) -> bool:
    """Whether the feature file is there, whole and newer than the clip.

    UserError if another extractor made it: nothing is overwritten.
    """
    if not job.target.exists():
        return False
    try:
        _, extractor = read_features(job.target)
    except BadClip as error:
        raise UserError(
            f"{job.target} is no feature file ({error}); choose another --to"
        ) from error
    made = extractor_of(config)
    wanted = {name: made[name] for name in made if name.partition(VARIANT)[0] in extractor}
    if extractor != wanted or not extractor:
        raise UserError(
            f"{job.target} holds other features than asked for "
            f"({difference(extractor, wanted) or 'it does not say which'}); "
            "choose another --to, ask for the same by --audio and --video, or delete what is to be "
            "extracted again"
        )
    sources = [job.clip, *filter(None, [audio_beside(job.clip)])]
    return job.target.stat().st_mtime >= max(path.stat().st_mtime for path in sources)


def run_jobs(
    work: Callable[[Job, ExtractConfig], Result],
    jobs: Sequence[Job],
    config: ExtractConfig,
    workers: int,
) -> Iterator[tuple[Job, Result | None]]:
    """Each job with its result, as they end; None if its process died.

    Where a process dies (a decoder that crashes, no memory), those jobs that it may have been at
    are done again one by one, so that the job that kills fails and no other.

    Args:
        work: what a process does with a job and the config; a function of a module.
        jobs: to do.
        config: of the features.
        workers: processes.
    """
    left = list(jobs)
    while left:
        broken = yield from _run(work, left, config, workers)
        begun = 2 * workers + 1  # jobs are begun in order, and the pool hands out one ahead
        for job in broken[:begun]:
            if (yield from _run(work, [job], config, 1)):
                yield job, None
        left = broken[begun:]


def _run(
    work: Callable[..., Result], jobs: Sequence[Job], config: ExtractConfig, workers: int
) -> Generator[tuple[Job, Result], None, list[Job]]:
    """Yields as `run_jobs`; returns the jobs, in order, that are left because a process died."""
    context = multiprocessing.get_context("spawn")  # a fork of threads and models is not safe
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
    except BaseException:  # Ctrl-C too: what is begun need not end, its file is not there yet
        end_children()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _do(work: Callable[..., Result], job: Job, config: ExtractConfig) -> Result:
    try:
        return work(job, config)
    except SystemExit:  # of SIGTERM: the pool would take it for the job's result, and continue
        os._exit(1)


def _start_process() -> None:
    be_quiet()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # half a file is removed


def extract_to_file(job: Job, config: ExtractConfig) -> Done:
    """Extract one clip and write its feature file; what is wrong with the clip is a failure."""
    begin = time.process_time()
    try:
        found = extract_clip(job.clip, config)
        job.target.parent.mkdir(parents=True, exist_ok=True)
        write_features(job.target, found)
    except BadMedia as error:
        return Done(failure=str(error))
    except (UserError, OSError):  # of the options or the disk: all clips would fail
        raise
    except Exception as error:  # one clip never stops the others, whatever FFmpeg makes of it
        return Done(failure=repr(error))
    return Done(found.seconds, found.notes, None, time.process_time() - begin, _most_memory())


def _most_memory() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _say_results(found: dict[Job, Done], seconds: float, workers: int, to: Path) -> None:
    """Say what is worth a word of each clip, and how fast it went; Incomplete if clips failed."""
    results = sorted(found.items())
    noted = [(job.clip, "; ".join(done.notes)) for job, done in results if done.notes]
    failed = [(job.clip, done.failure) for job, done in results if done.failure]
    if noted:
        say_table(f"{len(noted)} clips to note", ("clip", "note"), noted, left=True)
    if failed:
        say_table(f"{len(failed)} clips failed", ("clip", "reason"), failed, left=True)
    good = [done for done in found.values() if not done.failure]
    if good:
        played, work = sum(done.seconds for done in good), sum(done.work for done in good)
        say(
            f"{len(good)} clips of {played:.0f} s in {seconds:.0f} s: on a core a second of clip "
            f"takes {work / played:.2f} s; {workers} at once, at most "
            f"{max(done.memory for done in good) / 1e6:.0f} MB each; features in {to}"
        )
    if failed:
        others = f", the others are in {to}" if good else ""
        raise Incomplete(
            f"{len(failed)} of {len(found)} clips failed (see the table){others}; the same command "
            "tries again"
        )
