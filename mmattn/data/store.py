"""The packed copy of many feature files: raw binary files, memory-mapped, found by content.

    CACHE/<key>/          one pack: audio-64.frames and audio-64.times of 64 features a frame,
                          audio-64.places (each clip's place in them), video-…, and index.json
    CACHE/digests/<name>  the digests of files, by their paths, sizes and modification times
    CACHE/.build/         a pack being built
    CACHE/lock            held while a pack is built, so that only one process builds it

The key depends only on the files' contents: other names, labels or splits need no new pack. A pack
appears by renaming a finished folder, so no reader sees a half-written one; the next build removes
what a killed process left.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from mmattn.console import progress, say
from mmattn.data.feature_file import BadClip, decode
from mmattn.data.stream import Ragged, Stream
from mmattn.errors import UserError
from mmattn.files import write_text

FORMAT = 5  # raise it when reading or packing changes
THREADS = 4
CHUNK = 64  # files read ahead, so that few clips are in memory

Rates = Mapping[str, float]  # frames a second for files without timestamps, by modality


@dataclass(frozen=True)
class Pack:
    """The content of N files, in the requested order."""

    streams: dict[str, Ragged]  # by modality; no frames if a file lacks it or it is unusable
    spans: dict[str, np.ndarray]  # by modality [N, 2], the first and last time in seconds
    reasons: list[dict[str, str]]  # of each file, why a modality is unusable; "" for all modalities
    extractors: list[dict[str, dict]]  # of each file, by modality; equal ones are the same object
    rows: np.ndarray  # [N] int64, equal for files of equal content


def open_pack(files: Sequence[str], folder: Path, rates: Rates) -> Pack:
    """The pack of these files from the cache `folder`; built if new.

    Raises UserError if the cache cannot be written.
    """
    folder = folder.expanduser()
    status = [_size_and_time(file) for file in files]
    note = folder / "digests" / _hash([*zip(files, status, strict=True)])
    try:
        if pack := _find(files, note, rates):
            return pack
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            return _find(files, note, rates) or _build(files, note, rates)
    except OSError as error:
        needed = sum(size for size, _ in status)
        raise UserError(
            f"cannot write the cache {folder}: {error.strerror}; it needs about "
            f"{needed / 1e6:.1f} MB; --data.cache names another folder"
        ) from error


def _size_and_time(file: str) -> tuple[int, int]:
    with suppress(OSError):  # a broken link becomes a bad clip when it is read
        status = os.stat(file)
        return status.st_size, status.st_mtime_ns
    return 0, 0


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _lock(folder: Path) -> AbstractContextManager:
    lock = FileLock(folder / "lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process that packs into {folder}")
        return lock.acquire()


def _find(files: Sequence[str], note: Path, rates: Rates) -> Pack | None:
    """The pack of these files if it exists, even if they were touched, renamed or moved."""
    contents = note.read_text().split() if note.exists() else []
    if len(contents) != len(files):
        if not note.parent.exists():  # nothing is packed yet: avoid reading every file twice
            return None
        contents = [one for one, *_ in _in_threads(_read, files, "Comparing with the cache")]
        with suppress(OSError):  # then the next start compares again
            _remember(files, note, contents)
    with suppress(OSError, ValueError, IndexError):  # missing or damaged
        return _load(note.parents[1], contents, rates)
    return None


def _remember(files: Sequence[str], note: Path, contents: Sequence[str]) -> None:
    """Store the digests of the files, if all could be read, for a quick next start."""
    if not {*files} & {*contents}:
        note.parent.mkdir(exist_ok=True)
        write_text(note, "\n".join(contents))


def _place(contents: Sequence[str], rates: Rates) -> tuple[str, list[str], np.ndarray]:
    """The key of the pack of these contents, its rows in order, and the row of each content."""
    ordered, rows = np.unique(np.array(contents, str), return_inverse=True)
    return _hash(FORMAT, sorted(rates.items()), ordered.tolist()), ordered.tolist(), rows


def _in_threads(work: Callable, files: Sequence[str], title: str) -> Generator:
    """Yield `work(file)` of every file, in order, computed a few files ahead."""
    with ThreadPoolExecutor(THREADS) as pool, progress(title, len(files)) as advance:
        for start in range(0, len(files), CHUNK):
            for result in pool.map(work, files[start : start + CHUNK]):
                yield result
                advance(1)


def _load(folder: Path, contents: Sequence[str], rates: Rates) -> Pack:
    """Memory-map the pack of these contents.

    Raises OSError, ValueError or IndexError if it is missing, damaged or truncated.
    """
    key, ordered, rows = _place(contents, rates)
    index = json.loads((folder / key / "index.json").read_text())
    streams, spans = {}, {}
    for modality, (frames, width) in index["streams"].items():
        path = folder / key / f"{modality}-{width}"
        places = _map(f"{path}.places", np.float64, 4, len(ordered))[:, rows]
        streams[modality] = Ragged(
            _map(f"{path}.frames", np.float32, frames, width),
            _map(f"{path}.times", np.float64, frames),
            *places[:2].astype(np.int64),
        )
        spans[modality] = places[2:].T
    return Pack(
        streams,
        spans,
        [index["reasons"][row] for row in rows],
        [index["extractors"][index["extractor"][row]] for row in rows],
        rows,
    )


def _map(path: str, dtype: type, *shape: int) -> np.ndarray:
    # A plain array: slicing np.memmap takes several times as long.
    return np.asarray(np.memmap(path, dtype, "r", shape=shape))


def _build(files: Sequence[str], note: Path, rates: Rates) -> Pack:
    """Read all files into a new pack and put it in its place."""
    folder = note.parents[1]
    build = folder / ".build"  # the only one: this process has the lock
    shutil.rmtree(build, ignore_errors=True)  # of a killed process
    build.mkdir()
    try:
        contents = _pack(files, build, rates)
        for path in (*build.iterdir(), build):
            _sync(path)
        target = folder / _place(contents, rates)[0]
        shutil.rmtree(target, ignore_errors=True)  # if it exists, it is damaged
        os.rename(build, target)
        _sync(folder)
    finally:
        shutil.rmtree(build, ignore_errors=True)
    _remember(files, note, contents)
    return _load(folder, contents, rates)


def _pack(files: Sequence[str], build: Path, rates: Rates) -> list[str]:
    """Write the streams of all files and the index; returns the digest of each, as `_read`."""
    # By modality, feature dimension and content: frames, first and last time, in file order.
    places: dict[str, dict[int, dict[str, tuple]]] = {}
    reasons: dict[str, dict[str, str]] = {}  # by content
    extractors: dict[str, str] = {}  # JSON, by content
    contents: list[str] = []
    found = _in_threads(lambda file: _read(file, rates), files, "Packing feature files")
    with closing(found):  # or the progress bar would stay on the screen after an error
        for content, streams, extractor in found:
            contents.append(content)
            if content in extractors:
                continue
            extractors[content] = json.dumps(extractor, sort_keys=True)
            reasons[content] = {name: of for name, of in streams.items() if isinstance(of, str)}
            for name in streams.keys() - reasons[content]:
                frames, times, _ = streams[name]
                of_width = places.setdefault(name, {}).setdefault(frames.shape[1], {})
                of_width[content] = (len(frames), times[0], times[-1])
                for what, array in (("frames", frames), ("times", times)):
                    with open(build / f"{name}-{frames.shape[1]}.{what}", "ab") as raw:
                        raw.write(array)  # array.tofile would not report a full disk
    _, ordered, _ = _place(contents, rates)
    kinds = {text: number for number, text in enumerate(dict.fromkeys(extractors.values()))}
    index = {
        "streams": {
            name: _keep_commonest(build, name, widths, ordered, reasons)
            for name, widths in sorted(places.items())
        },
        "reasons": [reasons[content] for content in ordered],
        "extractors": [*map(json.loads, kinds)],
        "extractor": [kinds[extractors[content]] for content in ordered],
    }
    (build / "index.json").write_text(json.dumps(index))
    return contents


def _keep_commonest(
    build: Path, modality: str, widths: dict[int, dict], ordered: Sequence[str], reasons: dict
) -> tuple[int, int]:
    """Frames and width of the most common width; clips of other widths get a reason."""
    width, *others = sorted(widths, key=lambda width: (len(widths[width]), width), reverse=True)
    for other in others:
        for content in widths[other]:
            reasons[content][modality] = (
                f"{modality}_features are {other} wide, "
                f"{width} in {len(widths[width])} of {sum(map(len, widths.values()))} files"
            )
        for path in build.glob(f"{modality}-{other}.*"):
            path.unlink()
    places = np.zeros((4, len(ordered)))  # of each clip: first row, frames, first and last time
    lengths, *times = np.transpose([*widths[width].values()])
    rows = np.searchsorted(ordered, [*widths[width]])
    places[:, rows] = np.cumsum(lengths) - lengths, lengths, *times
    (build / f"{modality}-{width}.places").write_bytes(places.tobytes())
    return int(lengths.sum()), width


def _read(
    file: str, rates: Rates | None = None
) -> tuple[str, dict[str, Stream | str], dict[str, dict]]:
    """SHA-256 of a file, or its path if unreadable; with `rates` also what `decode` finds."""
    digest = file
    try:
        data = Path(file).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        return digest, *(({}, {}) if rates is None else decode(data, rates))
    except OSError as error:
        return digest, {"": f"unreadable: {error.strerror}"}, {}
    except BadClip as error:
        return digest, {"": str(error)}, {}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
