"""The packed copy of many feature files: raw binary files, memory-mapped, found by content.

    CACHE/<key>/        one pack: audio-00000.frames, audio-00000.times, video-00000.frames, … in
                        shards of SHARD bytes, clips.npy (where each clip is) and index.json
    CACHE/index/<sig>   the key of the pack for files with these paths, sizes and times of change
    CACHE/.build-*/     a pack in the making, locked for as long as its process lives
    CACHE/lock          held for moments, while a pack is begun or put in its place

The key is made of every file's name and content. A pack appears by renaming a finished folder, so
a half-written one is never seen; what a killed process leaves is removed by the next that builds.
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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from mmattn.console import progress
from mmattn.data.clips import BadClip, Clip, Ragged, Stream, decode_clip
from mmattn.data.extractor import MODALITIES
from mmattn.errors import UserError

FORMAT = 3  # to be raised when reading or packing changes
SHARD = 2**32  # bytes of frames in a file; more only where a single clip is longer
THREADS = 4
OPEN_MAX = 10_240  # files of a process on macOS, whatever its limit says
CHUNK = 64  # files read ahead, so that few clips are in memory
PLACE = np.dtype([(modality, np.int64, 3) for modality in MODALITIES] + [("extractor", np.int64)])
"""Of a clip: shard, first row and frames of each modality; the number of its extractor."""


@dataclass(frozen=True)
class ClipFile:
    """A feature file as found on disk."""

    path: str
    relative: str  # below its root
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True)
class Rates:
    """Frames a second for files without timestamps."""

    audio: float | None = None
    video: float | None = None


@dataclass(frozen=True)
class Pack:
    """All clips of a list of files, in its order; a bad clip has a reason and no frames."""

    audio: Ragged
    video: Ragged
    reasons: tuple[str | None, ...]
    extractors: tuple[dict[str, dict], ...]  # by modality, of each clip; equal ones are one object


def open_pack(files: Sequence[ClipFile], folder: Path, rates: Rates) -> Pack:
    """The packed clips of `files` from the cache `folder`, put there if they are new.

    Raises UserError if the cache cannot be written.
    """
    folder = folder.expanduser()
    stats = [(file.path, file.relative, file.size, file.mtime_ns) for file in files]
    signature = _hash(FORMAT, rates, stats)
    with contextlib.suppress(OSError):
        if pack := _load(folder / (folder / "index" / signature).read_text()):
            return pack
    if pack := _find_by_content(files, folder, rates, signature):
        return pack
    if pack := _load(_build(files, folder, rates, signature)):
        return pack
    raise UserError(f"the cache {folder} was changed by something else while it was in use")


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _content_key(files: Sequence[ClipFile], digests: Sequence[str], rates: Rates) -> str:
    names = [file.relative for file in files]
    return _hash(FORMAT, rates, list(zip(names, digests, strict=True)))


def _find_by_content(
    files: Sequence[ClipFile], folder: Path, rates: Rates, signature: str
) -> Pack | None:
    """The pack of files that were touched or moved but not altered."""
    if not os.path.exists(folder / "index"):
        return None
    digests = list(_in_threads(_digest, files, "Comparing with the cache"))
    key = _content_key(files, digests, rates)
    pack = _load(folder / key)
    if pack and all(digests):
        # Failing to write only means that the next start compares again.
        with contextlib.suppress(OSError):
            _remember(folder, signature, key)
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


def _load(folder: Path) -> Pack | None:
    """Map the pack in `folder`; None if there is none or a file of it is missing or cut short.

    Raises UserError if it has more shards than this process may open files.
    """
    _allow_files()
    try:
        index = json.loads((folder / "index.json").read_text())
        places = np.load(folder / "clips.npy", allow_pickle=False)
        audio, video = (
            _map_stream(folder, modality, index[modality], places[modality])
            for modality in MODALITIES
        )
    except (OSError, ValueError, EOFError) as error:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise UserError(
                f"cannot open the cache {folder}: {error.strerror}; a process has to map all its "
                "files, and `ulimit -n` is how many it may open"
            ) from error
        return None
    reasons = [None] * len(places)
    for clip, reason in index["reasons"].items():
        reasons[int(clip)] = reason
    extractors = tuple(index["extractors"][number] for number in places["extractor"])
    return Pack(audio, video, tuple(reasons), extractors)


def _allow_files() -> None:
    """Let this process open as many files as it may: each that is mapped stays open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_MAX if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _map_stream(folder: Path, modality: str, index: dict, places: np.ndarray) -> Ragged:
    width = index["width"]
    shards = tuple(
        Stream(
            _map_file(folder / f"{modality}-{number:05d}.frames", np.float32, (rows, width)),
            _map_file(folder / f"{modality}-{number:05d}.times", np.float64, (rows,)),
        )
        for number, rows in enumerate(index["rows"])
    )
    return Ragged(shards, *np.ascontiguousarray(places.T))


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
    """Appends one modality of clip after clip to shards, others for each width that is met."""

    def __init__(self, folder: Path, modality: str):
        self.folder, self.modality = folder, modality
        self.places: list[tuple[int, int, int]] = []  # shard, first row, frames
        self.widths: list[int] = []  # 0: a clip without frames
        self.rows: defaultdict[int, list[int]] = defaultdict(lambda: [0])  # of each shard, by width

    def append(self, stream: Stream | None) -> int:
        """Write a clip, or keep count of one that cannot be used; the number of bytes."""
        length, width = stream.frames.shape if stream else (0, 0)
        rows = self.rows[width]
        if rows[-1] and 4 * width * (rows[-1] + length) > SHARD:
            rows.append(0)
        shard = len(rows) - 1
        self.places.append((shard, rows[-1], length))
        self.widths.append(width)
        rows[-1] += length
        if not stream:
            return 0
        for what, array in (("frames", stream.frames), ("times", stream.times)):
            with open(self.folder / f"{self.modality}-{width}-{shard:05d}.{what}", "ab") as file:
                file.write(array)  # array.tofile would say nothing of a full disk
        return stream.frames.nbytes + stream.times.nbytes

    def finish(self, reasons: dict[int, str]) -> dict:
        """Keep the commonest width, add the reason to clips of another; this part of the index."""
        clips = Counter(width for width in self.widths if width)
        width = max(clips, key=lambda width: (clips[width], width), default=0)
        for clip, other in enumerate(self.widths):
            if other not in (0, width):
                self.places[clip] = (0, 0, 0)
                reasons.setdefault(
                    clip,
                    f"{self.modality}_features are {other} wide, "
                    f"{width} in {clips[width]} of {clips.total()} clips",
                )
        for what in ("frames", "times"):
            for path in self.folder.glob(f"{self.modality}-*-*.{what}"):
                _, of_width, shard = path.stem.split("-")
                if int(of_width) == width:
                    path.rename(self.folder / f"{self.modality}-{shard}.{what}")
                else:
                    path.unlink()
            if not width:
                (self.folder / f"{self.modality}-00000.{what}").touch()
        return {"width": width, "rows": self.rows[width]}


def _build(files: Sequence[ClipFile], folder: Path, rates: Rates, signature: str) -> Path:
    """Read all files into a new pack and put it into the cache; the folder of the pack."""
    sizes: Counter[str] = Counter()
    try:
        with _building(folder) as build:
            digests = _pack(files, build, rates, sizes)
            key = _content_key(files, digests, rates)
            _publish(build, folder / key)
            if all(digests):
                _remember(folder, signature, key)
    except OSError as error:
        needed = sum(file.size for file in files)
        if sizes["packed"]:
            needed *= sizes["packed"] / sizes["read"]
        raise UserError(
            f"cannot write the cache {folder}: {error.strerror}; about {needed / 1e6:.1f} MB "
            "are needed there; --data.cache names another folder"
        ) from error
    return folder / key


def _pack(files: Sequence[ClipFile], build: Path, rates: Rates, sizes: Counter[str]) -> list[str]:
    """Write all clips and the index; the digest of every file. `sizes` counts bytes meanwhile."""
    writers = {modality: _StreamWriter(build, modality) for modality in MODALITIES}
    digests: list[str] = []
    reasons: dict[int, str] = {}  # of bad clips, by number
    extractors: dict[str, int] = {}  # JSON of each that is met, numbered
    extractor: list[int] = []
    clips = _in_threads(lambda file: _read(file, rates), files, "Packing feature files")
    with contextlib.closing(clips):  # or the bar would stay on the screen after an error
        for file, (digest, clip) in zip(files, clips, strict=True):
            if not isinstance(clip, Clip):
                reasons[len(digests)] = clip
            digests.append(digest)
            made_by = json.dumps(clip.extractor if isinstance(clip, Clip) else {}, sort_keys=True)
            extractor.append(extractors.setdefault(made_by, len(extractors)))
            for modality, writer in writers.items():
                stream = getattr(clip, modality) if isinstance(clip, Clip) else None
                sizes["packed"] += writer.append(stream)
            sizes["read"] += file.size
    index = {modality: writer.finish(reasons) for modality, writer in writers.items()}
    index["reasons"] = reasons
    index["extractors"] = [json.loads(made_by) for made_by in extractors]
    places = np.empty(len(files), PLACE)
    for modality, writer in writers.items():
        places[modality] = writer.places
    places["extractor"] = extractor
    with open(build / "clips.npy", "wb") as file:
        np.save(file, places, allow_pickle=False)
    (build / "index.json").write_text(json.dumps(index))
    return digests


def _read(file: ClipFile, rates: Rates) -> tuple[str, Clip | str]:
    """SHA-256 of a file and the clip in it, or the reason why there is none."""
    try:
        content = Path(file.path).read_bytes()
    except OSError as error:
        return "", f"unreadable: {error.strerror}"
    digest = hashlib.sha256(content).hexdigest()
    try:
        return digest, decode_clip(Path(file.path).stem, content, rates.audio, rates.video)
    except BadClip as error:
        return digest, str(error)


@contextlib.contextmanager
def _building(folder: Path) -> Iterator[Path]:
    """A new folder to build in, locked while the block runs and removed if it is still there."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with FileLock(folder / "lock"):
            _remove_leftovers(folder)
            build = Path(tempfile.mkdtemp(prefix=".build-", dir=folder))
            stack.enter_context(FileLock(build / "lock"))
            stack.callback(shutil.rmtree, build, ignore_errors=True)
        yield build


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed processes were building: a lock goes with its process."""
    for leftover in folder.glob(".build-*"):
        in_use_or_gone = contextlib.suppress(Timeout, FileNotFoundError)
        with in_use_or_gone, FileLock(leftover / "lock", timeout=0):
            shutil.rmtree(leftover, ignore_errors=True)


def _publish(build: Path, target: Path) -> None:
    """Put a finished pack in its place, unless another process has put the same there."""
    for path in (*build.iterdir(), build):
        _sync(path)
    with FileLock(target.parent / "lock"):
        if _load(target):
            return
        if target.exists():  # damaged; as a leftover it is removed later
            os.rename(target, tempfile.mkdtemp(prefix=".build-", dir=target.parent))
        (build / "lock").unlink()
        os.rename(build, target)
        _sync(target.parent)


def _remember(folder: Path, signature: str, key: str) -> None:
    """Note which pack belongs to files as they are now, for a quick second start."""
    with FileLock(folder / "lock"):
        (folder / "index").mkdir(exist_ok=True)
        partial = folder / "index.partial"
        partial.write_text(key)
        os.replace(partial, folder / "index" / signature)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
