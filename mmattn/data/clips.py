"""One clip: its two streams of frames, read from a feature file and checked."""

import ctypes
import io
import mmap
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from mmattn.config import Modality
from mmattn.data.extractor import parse_extractor
from mmattn.data.names import parse_name
from mmattn.machine import c_function

MIN_FRAMES = 5
ATTEMPTS = 5
ADVISED = 2**17  # bytes to read ahead in a call: Linux takes the first read_ahead_kb of more
# What NumPy and zipfile raise on files that are cut short, altered or not archives at all.
_UNREADABLE = (
    EOFError,
    KeyError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


# That of Python's mmap would keep all threads waiting with it.
_madvise = c_function("madvise", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class BadClip(Exception):
    """A feature file that cannot be used; the message says why, with numbers."""


@dataclass(frozen=True)
class Stream:
    """One modality of a clip; no frames [0, F] where the clip lacks it, for prediction alone.

    Or the rows of many clips, one after the other.
    """

    frames: np.ndarray  # [T, F] float32
    times: np.ndarray  # [T] float64 seconds


@dataclass(frozen=True)
class Cue:
    """An event that was put into a synthetic clip."""

    modality: str  # audio or video
    kind: int
    time: float  # seconds, the middle of the event
    decoy: bool  # it says nothing about the class


@dataclass(frozen=True)
class Clip:
    """A clip with the emotion that was meant; `cues` are known for synthetic clips only."""

    name: str
    speaker: str
    emotion: str
    audio: Stream
    video: Stream
    cues: tuple[Cue, ...] | None = None
    extractor: dict[str, dict] = field(default_factory=dict)  # by modality, where the file says


@dataclass(frozen=True)
class Ragged:
    """One modality of many clips; a clip is a run of rows of a shard, so subsets share the rows."""

    shards: tuple[Stream, ...]  # of equal width, perhaps memory-mapped, perhaps with more clips
    shard: np.ndarray  # [N] int64, in which each clip is
    starts: np.ndarray  # [N] int64, first row of each clip there
    lengths: np.ndarray  # [N] int64, frames of each clip
    delay: float = 0.0  # seconds by which all frames are dated later

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def width(self) -> int:
        """Features of a frame."""
        return self.shards[0].frames.shape[1]

    def clip(self, index: int) -> np.ndarray:
        """Frames [T, F] of one clip, not copied."""
        return self.shards[self.shard[index]].frames[self._rows(index)]

    def clip_times(self, index: int) -> np.ndarray:
        """Times [T] of one clip's frames in seconds; not copied without a delay."""
        times = self.shards[self.shard[index]].times[self._rows(index)]
        return times + self.delay if self.delay else times

    def read_ahead(self, index: int) -> None:
        """Have the system begin to read one clip, if its shard is a memory-mapped file.

        It waits only while the disk's queue is full, so that the disk has many reads to do at once.
        Where the C library has no madvise, frames are read when they are used.
        """
        if _madvise is None:
            return
        start, length = int(self.starts[index]), int(self.lengths[index])
        for address, row in self._mapped[self.shard[index]] if length else ():
            first, stop = address + start * row, address + (start + length) * row
            for at in range(first - first % mmap.PAGESIZE, stop, ADVISED):
                _madvise(at, min(ADVISED, stop - at), mmap.MADV_WILLNEED)

    @cached_property
    def _mapped(self) -> list[list[tuple[int, int]]]:
        """Address and bytes of a row of each array of each shard that is memory-mapped."""
        return [
            [
                (array.ctypes.data, array.strides[0])
                for array in (shard.frames, shard.times)
                if isinstance(array.base, mmap.mmap)
            ]
            for shard in self.shards
        ]

    def _rows(self, index: int) -> slice:
        return slice(self.starts[index], self.starts[index] + self.lengths[index])

    def select(self, indices: np.ndarray) -> "Ragged":
        """The clips `indices`, in that order; the frames are shared."""
        return Ragged(self.shards, self.shard[indices], self.starts[indices], self.lengths[indices])

    def longest_span(self, frames: int) -> float:
        """Seconds that so many neighbouring frames of a clip last at most."""
        spans = [0.0]
        for index in np.flatnonzero(self.lengths):
            times = self.clip_times(index)
            last = min(frames, len(times)) - 1
            spans.append((times[last:] - times[: len(times) - last]).max())
        return max(spans)

    def most_within(self, seconds: float) -> int:
        """Frames of a clip that lie within so many seconds at most."""
        counts = [0]
        for index in np.flatnonzero(self.lengths):
            times = self.clip_times(index)
            end = np.searchsorted(times, times + seconds, "right")
            counts.append((end - np.arange(len(times))).max())
        return int(max(counts))

    def spacings(self) -> np.ndarray:
        """Mean seconds from frame to frame of each clip that has two or more frames."""
        times = [self.clip_times(index) for index in np.flatnonzero(self.lengths > 1)]
        return np.array([(one[-1] - one[0]) / (len(one) - 1) for one in times])

    def crop(self, bounds: np.ndarray) -> "Ragged":
        """Of each clip the frames from bounds [N, 2] to before the second; they are shared."""
        starts = self.starts + bounds[:, 0]
        return replace(self, starts=starts, lengths=bounds[:, 1] - bounds[:, 0])


def pack_streams(streams: Sequence[Stream]) -> Ragged:
    """Streams one after the other in memory; they must have the same width."""
    lengths = np.array([len(stream.times) for stream in streams], np.int64)
    frames = np.concatenate([stream.frames for stream in streams])
    times = np.concatenate([stream.times for stream in streams])
    starts = np.cumsum(lengths) - lengths
    return Ragged((Stream(frames, times),), np.zeros_like(lengths), starts, lengths)


def valid_frames(video: np.ndarray) -> np.ndarray:
    """[T] bool of video frames [T, F]: false where no face was found (the row is all zero)."""
    return video.any(axis=-1)


def read_clip(path: Path, audio_rate: float | None = None, video_rate: float | None = None) -> Clip:
    """Read and check a feature file; the rates, in frames a second, serve where it has no times.

    Raises BadClip.
    """
    return decode_clip(path.stem, _read_bytes(path), audio_rate, video_rate)


def decode_clip(
    stem: str, content: bytes, audio_rate: float | None = None, video_rate: float | None = None
) -> Clip:
    """`read_clip` for a file that has been read already."""
    try:
        name = parse_name(stem)
    except ValueError as error:
        raise BadClip(str(error)) from error
    streams, extractor = decode_streams(content, audio_rate, video_rate, ("audio", "video"))
    return Clip(name.stem, name.speaker, name.emotion, **streams, extractor=extractor)


def read_streams(
    path: Path, audio_rate: float | None = None, video_rate: float | None = None
) -> tuple[dict[str, Stream], dict[str, dict]]:
    """`read_clip` for prediction: of any name, and one modality may be missing.

    Raises BadClip.

    Returns:
        The streams that the file has, and its extractor, both by modality.
    """
    return decode_streams(_read_bytes(path), audio_rate, video_rate)


def decode_streams(
    content: bytes,
    audio_rate: float | None = None,
    video_rate: float | None = None,
    required: Collection[Modality] = (),
) -> tuple[dict[str, Stream], dict[str, dict]]:
    """`read_streams` for a file that has been read already; it must have what is `required`."""
    rates = {"audio": audio_rate, "video": video_rate}
    with _open(content) as archive:
        streams = {
            name: _read_stream(archive, name, rate)
            for name, rate in rates.items()
            if name in required or f"{name}_features" in archive.files
        }
        if not streams:
            raise BadClip(f"audio_features and video_features are {_missing(archive)}")
        extractor = _read_extractor(archive)
    if len(streams) == 2:
        _check_overlap(streams["audio"].times, streams["video"].times)
    return streams, extractor


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadClip(f"unreadable: {error.strerror}") from error


@contextmanager
def _open(content: bytes) -> Iterator[np.lib.npyio.NpzFile]:
    try:
        archive = np.load(io.BytesIO(content), allow_pickle=False)
    except _UNREADABLE as error:
        raise BadClip(f"no .npz archive of {len(content)} bytes: {_brief(error)}") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise BadClip("no .npz archive but a single array")
    with archive:
        yield archive


def _brief(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__


def _read_array(archive: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    for attempt in reversed(range(ATTEMPTS)):
        try:
            array = archive[key]
            break
        except _UNREADABLE as error:
            raise BadClip(f"{key} is unreadable: {_brief(error)}") from error
        except SystemError as error:
            # Python 3.11 confuses two threads that parse at the same time, as NumPy does a header.
            if not attempt:
                raise BadClip(f"{key} is unreadable: {_brief(error)}") from error
    # A member that is not in .npy form comes back as its raw bytes.
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise BadClip(f"{key} holds no numbers but {_kind(array)}")
    return array


def _kind(array: np.ndarray | bytes) -> str:
    return f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "raw bytes"


def _missing(archive: np.lib.npyio.NpzFile) -> str:
    return f"missing; the file has {', '.join(archive.files) or 'nothing'}"


def _read_stream(archive: np.lib.npyio.NpzFile, modality: str, rate: float | None) -> Stream:
    key = f"{modality}_features"
    if key not in archive.files:
        raise BadClip(f"{key} is {_missing(archive)}")
    array = _read_array(archive, key)
    if array.ndim != 2 or array.shape[1] == 0:
        raise BadClip(f"{key} is not (frames, features) but {array.shape}")
    if len(array) < MIN_FRAMES:
        raise BadClip(f"{key} has {len(array)} frames, at least {MIN_FRAMES} are needed")
    with np.errstate(over="ignore"):  # too large for float32 becomes inf and is reported
        frames = np.ascontiguousarray(array, np.float32)
    bad_rows = np.flatnonzero(~np.isfinite(frames).all(axis=1))
    if len(bad_rows):
        count = np.count_nonzero(~np.isfinite(frames))
        raise BadClip(f"{key} has {count} values that are not finite, first in frame {bad_rows[0]}")
    return Stream(frames, _read_times(archive, modality, len(frames), rate))


def _read_times(
    archive: np.lib.npyio.NpzFile, modality: str, length: int, rate: float | None
) -> np.ndarray:
    """Seconds [length] of the frames, from the file or else from the rate."""
    key = f"{modality}_timestamps"
    if key not in archive.files:
        if rate is None:
            raise BadClip(f"{key} is missing and --data.{modality}-rate is not given")
        return np.arange(length) / rate
    array = _read_array(archive, key)
    if array.shape != (length,):
        raise BadClip(f"{key} has shape {array.shape}, {length} frames need ({length},)")
    times = array.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(times))
    if len(bad):
        raise BadClip(f"{key} has {len(bad)} values that are not finite, first in frame {bad[0]}")
    back = np.flatnonzero(np.diff(times) <= 0)
    if len(back):
        at = back[0]
        raise BadClip(
            f"{key} does not increase: {times[at]:.4g} s, then {times[at + 1]:.4g} s "
            f"in frame {at + 1}"
        )
    return times


def _read_extractor(archive: np.lib.npyio.NpzFile) -> dict[str, dict]:
    """The records of what made the features, by modality; empty where the file does not say."""
    if "extractor" not in archive.files:
        return {}
    try:
        text = archive["extractor"]
        if not isinstance(text, np.ndarray) or text.dtype.kind != "U" or text.ndim:
            raise ValueError(f"expected one text, found {_kind(text)}")
        return parse_extractor(text.item())
    except (*_UNREADABLE, SystemError) as error:  # the last: a character beyond Unicode
        raise BadClip(f"extractor is unreadable: {_brief(error)}") from error


def _check_overlap(audio: np.ndarray, video: np.ndarray) -> None:
    if min(audio[-1], video[-1]) <= max(audio[0], video[0]):
        raise BadClip(
            f"audio ({audio[0]:.2f} to {audio[-1]:.2f} s) and video ({video[0]:.2f} to "
            f"{video[-1]:.2f} s) do not overlap in time"
        )
