"""The packed copy of many feature files: raw binary files, memory-mapped, found by content.

    CACHE/<key>/        one pack: audio-00000.frames, audio-00000.times, video-00000.frames, … in
                        shards of SHARD bytes, audio.npy, … (where each file is), and index.json
    CACHE/index/<sig>   the key of the pack for files with these paths, sizes and times of change,
                        and their rows in it
    CACHE/.build-*/     a pack in the making
    CACHE/lock          held while a pack is made, so that of several processes one makes it

The key is made of the files' contents alone: other names, labels or splits pack nothing again. A
pack appears by renaming a finished folder, so a half-written one is never seen; what a killed
process leaves is removed by the next that builds.
"""

import contextlib
import errno
import hashlib
import json
import math
import mmap
import os
import resource
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from mmattn.console import progress, say
from mmattn.data.feature_file import BadClip, decode
from mmattn.data.stream import Ragged, Stream
from mmattn.errors import UserError
from mmattn.files import write_text

FORMAT = 4  # to be raised when reading or packing changes
SHARD = 2**32  # bytes of frames in a file; more only where a single clip is longer
THREADS = 4
OPEN_MAX = 10_240  # files of a process on macOS, whatever its limit says
CHUNK = 64  # files read ahead, so that few clips are in memory
PLACE = np.dtype("i8, i8, i8, f8, f8")
PLACE.names = ("shard", "row", "frames", "first", "last")
"""Where one modality of a file is: shard, first row, frames; the first and last time in seconds."""

Rates = Mapping[str, float]  # frames a second for files without timestamps, by modality


@dataclass(frozen=True)
class ClipFile:
    """A feature file as found on disk."""

    path: str
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True)
class Pack:
    """What is in N files, in the order that they were asked for."""

    streams: dict[str, Ragged]  # by modality; no frames where a file lacks it or it is of no use
    spans: dict[str, np.ndarray]  # by modality [N, 2], the first and last time in seconds
    reasons: list[dict[str, str]]  # of each file, why a modality is of no use; "" for all of them
    extractors: list[dict[str, dict]]  # of each file, by modality; equal ones are one object
    rows: np.ndarray  # [N] int64, equal for files of equal content


def open_pack(files: Sequence[ClipFile], folder: Path, rates: Rates) -> Pack:
    """The packed clips of `files` from the cache `folder`, put there if they are new.

    Raises UserError if the cache cannot be written.
    """
    folder = folder.expanduser()
    rates = dict(sorted(rates.items()))
    stats = [(file.path, file.size, file.mtime_ns) for file in files]
    signature = _hash(FORMAT, rates, stats)
    if pack := _recall(folder, signature) or _find_by_content(files, folder, rates, signature):
        return pack
    sizes: Counter[str] = Counter()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            pack = _recall(folder, signature) or _build(files, folder, rates, signature, sizes)
    except OSError as error:
        needed = sum(file.size for file in files)
        if sizes["packed"]:
            needed *= sizes["packed"] / sizes["read"]
        raise UserError(
            f"cannot write the cache {folder}: {error.strerror}; about {needed / 1e6:.1f} MB "
            "are needed there; --data.cache names another folder"
        ) from error
    if not pack:
        raise UserError(f"the cache {folder} was changed by something else while it was in use")
    return pack


def _recall(folder: Path, signature: str) -> Pack | None:
    """The pack that was noted for files as they are now."""
    with contextlib.suppress(OSError, ValueError):
        key, *rows = (folder / "index" / signature).read_text().split()
        return _load(folder / key, np.array(rows, np.int64))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process packs into {folder}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _place(
    files: Sequence[ClipFile], digests: Sequence[str], rates: Rates
) -> tuple[str, dict[str, int], np.ndarray]:
    """The key of the pack of these files, the row of each content in it, and that of each file.

    Contents are in the order of their digests, whoever packs them; of a file that cannot be read
    the path stands for it.
    """
    contents = [digest or file.path for file, digest in zip(files, digests, strict=True)]
    row = {content: number for number, content in enumerate(sorted(set(contents)))}
    rows = np.array([row[content] for content in contents], np.int64)
    return _hash(FORMAT, rates, list(row)), row, rows


def _find_by_content(
    files: Sequence[ClipFile], folder: Path, rates: Rates, signature: str
) -> Pack | None:
    """The pack of files that were touched, renamed or moved but not altered."""
    if not os.path.exists(folder / "index"):
        return None
    digests = list(_in_threads(_digest, files, "Comparing with the cache"))
    key, _, rows = _place(files, digests, rates)
    pack = _load(folder / key, rows)
    if pack and all(digests):
        # Failing to write only means that the next start compares again.
        with contextlib.suppress(OSError):
            _remember(folder, signature, key, rows)
    return pack


def _digest(file: ClipFile) -> str:
    """SHA-256 of the file's content; empty if it cannot be read."""
    try:
        with open(file.path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""


def _in_threads(work: Callable, files: Sequence[ClipFile], title: str) -> Iterator:
    """`work(file)` of every file, in order, a few ahead of what has been taken."""
    with ThreadPoolExecutor(THREADS) as pool, progress(title, len(files)) as advance:
        for start in range(0, len(files), CHUNK):
            for result in pool.map(work, files[start : start + CHUNK]):
                yield result
                advance(1)


# Reading a pack


def _read_index(folder: Path) -> dict:
    return json.loads((folder / "index.json").read_text())


def _load(folder: Path, rows: np.ndarray) -> Pack | None:
    """Map these rows of the pack in `folder`; None if it is missing, damaged or cut short.

    Raises UserError if it has more shards than this process may open files.
    """
    _allow_files()
    try:
        index = _read_index(folder)
        streams, spans = {}, {}
        for modality, shards in index["streams"].items():
            places = np.load(folder / f"{modality}.npy", allow_pickle=False)[rows]
            streams[modality] = _map_stream(folder, modality, shards, places)
            spans[modality] = np.stack([places["first"], places["last"]], axis=1)
    except (OSError, ValueError, EOFError, IndexError) as error:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise UserError(
                f"cannot open the cache {folder}: {error.strerror}; a process has to map all its "
                "files, and `ulimit -n` is how many it may open"
            ) from error
        return None
    return Pack(
        streams,
        spans,
        [index["reasons"].get(str(row), {}) for row in rows],
        [index["extractors"][index["extractor"][row]] for row in rows],
        rows,
    )


def _allow_files() -> None:
    """Let this process open as many files as it may: each that is mapped stays open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_MAX if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _map_stream(folder: Path, modality: str, index: dict, places: np.ndarray) -> Ragged:
    width = index["width"]
    shards = tuple(
        (
            _map_file(folder / f"{modality}-{number:05d}.frames", np.float32, (rows, width)),
            _map_file(folder / f"{modality}-{number:05d}.times", np.float64, (rows,)),
        )
        for number, rows in enumerate(index["rows"])
    )
    return Ragged(shards, *(np.ascontiguousarray(places[n]) for n in ("shard", "row", "frames")))


def _map_file(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """Raises OSError if there is no file, ValueError if it has another size."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if (found := os.path.getsize(path)) != size:
        raise ValueError(f"{path} has {found} bytes, expected {size}")
    if not size:  # an empty file cannot be mapped
        return np.zeros(shape, dtype)
    with open(path, "rb") as file:
        return np.ndarray(shape, dtype, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))


# Writing a pack


class _StreamWriter:
    """Appends one modality of file after file to shards, others for each width that is met."""

    def __init__(self, folder: Path, modality: str):
        self.folder, self.modality = folder, modality
        self.places: dict[str, tuple] = {}  # by content, as PLACE says
        self.widths: dict[str, int] = {}
        self.rows: defaultdict[int, list[int]] = defaultdict(lambda: [0])  # of each shard, by width

    def append(self, content: str, stream: Stream) -> int:
        """Write a stream; the number of bytes."""
        length, width = stream.frames.shape
        rows = self.rows[width]
        if rows[-1] and 4 * width * (rows[-1] + length) > SHARD:
            rows.append(0)
        shard = len(rows) - 1
        self.places[content] = (shard, rows[-1], length, stream.times[0], stream.times[-1])
        self.widths[content] = width
        rows[-1] += length
        for what, array in (("frames", stream.frames), ("times", stream.times)):
            with open(self.folder / f"{self.modality}-{width}-{shard:05d}.{what}", "ab") as file:
                file.write(array)  # array.tofile would say nothing of a full disk
        return stream.frames.nbytes + stream.times.nbytes

    def finish(self, row: Mapping[str, int], reasons: dict[str, dict[str, str]]) -> dict:
        """Keep the commonest width, add the reason to others; this part of the index."""
        files = Counter(self.widths.values())
        width = max(files, key=lambda width: (files[width], width))
        places = np.zeros(len(row), PLACE)
        for content, other in self.widths.items():
            if other == width:
                places[row[content]] = self.places[content]
            else:
                reasons[content][self.modality] = (
                    f"{self.modality}_features are {other} wide, "
                    f"{width} in {files[width]} of {files.total()} files"
                )
        for path in self.folder.glob(f"{self.modality}-*-*.*"):
            *_, of_width, shard = path.stem.split("-")
            if int(of_width) == width:
                path.rename(self.folder / f"{self.modality}-{shard}{path.suffix}")
            else:
                path.unlink()
        with open(self.folder / f"{self.modality}.npy", "wb") as file:
            np.save(file, places, allow_pickle=False)
        return {"width": width, "rows": self.rows[width]}


def _build(
    files: Sequence[ClipFile], folder: Path, rates: Rates, signature: str, sizes: Counter[str]
) -> Pack | None:
    """Read all files into a new pack and put it in its place; `sizes` counts bytes meanwhile."""
    for leftover in folder.glob(".build-*"):  # of a killed process: this one has the lock
        shutil.rmtree(leftover, ignore_errors=True)
    build = Path(tempfile.mkdtemp(prefix=".build-", dir=folder))
    try:
        digests, key, rows = _pack(files, build, rates, sizes)
        for path in (*build.iterdir(), build):
            _sync(path)
        target = folder / key
        if target.exists() and not _load(target, rows):  # damaged; as a leftover it is removed
            os.rename(target, tempfile.mkdtemp(prefix=".build-", dir=folder))
        if not target.exists():
            os.rename(build, target)
            _sync(folder)
        if all(digests):
            _remember(folder, signature, key, rows)
        return _load(target, rows)
    finally:
        shutil.rmtree(build, ignore_errors=True)


def _pack(
    files: Sequence[ClipFile], build: Path, rates: Rates, sizes: Counter[str]
) -> tuple[list[str], str, np.ndarray]:
    """Write all files and the index; the digests, the key and the row of each file."""
    writers: dict[str, _StreamWriter] = {}
    reasons: defaultdict[str, dict[str, str]] = defaultdict(dict)  # by content, as all here
    extractor: dict[str, str] = {}  # JSON
    digests: list[str] = []
    found = _in_threads(lambda file: _read(file, rates), files, "Packing feature files")
    with contextlib.closing(found):  # or the bar would stay on the screen after an error
        for file, (digest, streams, made_by) in zip(files, found, strict=True):
            digests.append(digest)
            sizes["read"] += file.size
            if (content := digest or file.path) in extractor:
                continue
            extractor[content] = json.dumps(made_by, sort_keys=True)
            for modality, stream in streams.items():
                if isinstance(stream, str):
                    reasons[content][modality] = stream
                    continue
                writer = writers.setdefault(modality, _StreamWriter(build, modality))
                sizes["packed"] += writer.append(content, stream)
    key, row, rows = _place(files, digests, rates)
    kinds = {made_by: number for number, made_by in enumerate(sorted(set(extractor.values())))}
    index = {
        "streams": {name: writers[name].finish(row, reasons) for name in sorted(writers)},
        "reasons": {row[content]: reason for content, reason in reasons.items()},
        "extractors": [json.loads(made_by) for made_by in kinds],
        "extractor": [kinds[extractor[content]] for content in row],
    }
    (build / "index.json").write_text(json.dumps(index))
    return digests, key, rows


def _read(file: ClipFile, rates: Rates) -> tuple[str, dict[str, Stream | str], dict[str, dict]]:
    """SHA-256 of a file, what is in it, and its extractor; see `decode`."""
    digest = ""
    try:
        content = Path(file.path).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        return digest, *decode(content, rates)
    except OSError as error:
        return "", {"": f"unreadable: {error.strerror}"}, {}
    except BadClip as error:
        return digest, {"": str(error)}, {}


def _remember(folder: Path, signature: str, key: str, rows: np.ndarray) -> None:
    """Note what in which pack belongs to files as they are now, for a quick second start."""
    (folder / "index").mkdir(exist_ok=True)
    write_text(folder / "index" / signature, " ".join([key, *map(str, rows)]))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
