"""One modality of a clip: frames, times, validity; and that of many clips, perhaps on the disk."""

import ctypes
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from mmattn.machine import c_function

PADDING = np.float32(1e6)  # seconds; the time of a frame of padding, after all others
ADVISED = 2**17  # bytes to read ahead in a call: Linux takes the first read_ahead_kb of more
AnyArray = Any  # NumPy's or, of a batch that the network sees, JAX's

# That of Python's mmap would keep all threads waiting with it.
_madvise = c_function("madvise", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Stream(NamedTuple):
    """One modality of a clip of T frames, or with leading axes of the clips of a batch.

    A clip that lacks the modality has no frames [0, F]. In a batch shorter clips are padded: frames
    0, times `PADDING`, not valid.
    """

    frames: AnyArray  # […, T, F] float32
    times: AnyArray  # […, T] seconds, increasing
    valid: AnyArray  # […, T] bool; False where a frame has no data, as video without a face

    @property
    def length(self) -> AnyArray:
        """[…] frames without the padding, invalid ones included."""
        return (self.times < PADDING).sum(-1)


def make_stream(frames: np.ndarray, times: np.ndarray, zero_is_missing: bool = False) -> Stream:
    """Frames [T, F] at times [T], all valid but for those that are all zero, if so asked."""
    valid = np.any(frames, axis=1) if zero_is_missing else np.ones(len(frames), bool)
    return Stream(frames, times, valid)


@dataclass(frozen=True)
class Ragged:
    """One modality of many clips; a clip is a run of rows, so that subsets share the rows."""

    frames: np.ndarray  # [R, F], perhaps memory-mapped, perhaps of more clips
    times: np.ndarray  # [R] seconds
    starts: np.ndarray  # [N] int64, first row of each clip
    lengths: np.ndarray  # [N] int64, frames of each clip
    delay: float = 0.0  # seconds by which all frames are dated later
    zero_is_missing: bool = False  # a frame of zeros has no data
    variants: Mapping[str, "Ragged"] = field(default_factory=dict)  # augmented copies of all clips
    begins: np.ndarray | None = None  # [N] seconds at which clips begin, if less of them is kept

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def width(self) -> int:
        """Features of a frame."""
        return self.frames.shape[1]

    def clip(self, index: int) -> Stream:
        """One clip; its frames are not copied."""
        start = self.starts[index]
        frames = self.frames[start : start + self.lengths[index]]
        return make_stream(frames, self.clip_times(index), self.zero_is_missing)

    def clip_or_variant(self, index: int, name: str, own_clock: bool) -> Stream:
        """One clip in the variant of that name, or as it is where there is no such variant.

        Its times are those of the clip. With `own_clock` it begins with the clip and takes the
        time that it lasts by itself: its frames are as far apart as those of the original.
        """
        if name not in self.variants:
            return self.clip(index)
        stream = self.variants[name].clip(index)
        if not own_clock:
            return stream
        own, original = (
            (times[-1] - times[0]) / (len(times) - 1)
            for times in (stream.times, self.clip_times(index))
        )
        begin = stream.times[0] if self.begins is None else self.begins[index]
        return stream._replace(times=begin + (stream.times - begin) * (original / own))

    def clip_times(self, index: int) -> np.ndarray:
        """Times [T] of one clip's frames in seconds; not copied without a delay."""
        start = self.starts[index]
        times = self.times[start : start + self.lengths[index]]
        return times + self.delay if self.delay else times

    def read_ahead(self, index: int) -> None:
        """Have the system begin to read one clip from memory-mapped files.

        It waits only while the disk's queue is full, so that the disk has many reads to do at once.
        Where the C library has no madvise, frames are read when they are used.
        """
        start, length = int(self.starts[index]), int(self.lengths[index])
        if _madvise is None or length == 0:
            return
        for array in (self.frames, self.times):
            if isinstance(array.base, np.memmap):
                first = array.ctypes.data + start * array.strides[0]
                stop = first + length * array.strides[0]
                for at in range(first - first % mmap.PAGESIZE, stop, ADVISED):
                    _madvise(at, min(ADVISED, stop - at), mmap.MADV_WILLNEED)

    def select(self, indices: np.ndarray) -> "Ragged":
        """The clips `indices`, in that order; the frames are shared."""
        variants = {name: variant.select(indices) for name, variant in self.variants.items()}
        begins = None if self.begins is None else self.begins[indices]
        starts, lengths = self.starts[indices], self.lengths[indices]
        return replace(self, starts=starts, lengths=lengths, variants=variants, begins=begins)

    def crop(self, bounds: np.ndarray) -> "Ragged":
        """Of each clip the frames from bounds [N, 2] to before the second; they are shared."""
        starts = self.starts + bounds[:, 0]
        return replace(self, starts=starts, lengths=bounds[:, 1] - bounds[:, 0])

    def longest(self, frames: int) -> int:
        """Most frames that a clip of up to so many frames, or a variant of it, can have."""
        short = self.lengths <= frames
        found = (one.lengths[short].max(initial=0) for one in self.variants.values())
        return int(max([frames, *found]))

    def _times(self, least: int = 1) -> Iterator[np.ndarray]:
        """Of each clip, and each variant, that has so many frames."""
        for one in (self, *self.variants.values()):
            yield from map(one.clip_times, np.flatnonzero(one.lengths >= least).tolist())

    def longest_span(self, frames: int) -> float:
        """Seconds that so many neighbouring frames of a clip last at most."""
        spans = [0.0]
        for times in self._times():
            last = min(frames, len(times)) - 1
            spans.append((times[last:] - times[: len(times) - last]).max())
        return max(spans)

    def most_within(self, seconds: float) -> int:
        """Frames of a clip that lie within so many seconds at most."""
        counts = [0]
        for times in self._times():
            end = np.searchsorted(times, times + seconds, "right")
            counts.append(int((end - np.arange(len(times))).max()))
        return max(counts)

    def spacings(self) -> np.ndarray:
        """Mean seconds from frame to frame of each clip and variant of two or more frames."""
        return np.array([(one[-1] - one[0]) / (len(one) - 1) for one in self._times(2)])


def pack_streams(streams: Sequence[Stream], zero_is_missing: bool = False) -> Ragged:
    """Streams one after the other in memory; they must have the same width."""
    lengths = np.array([len(stream.times) for stream in streams], np.int64)
    frames = np.concatenate([stream.frames for stream in streams])
    times = np.concatenate([stream.times for stream in streams])
    starts = np.cumsum(lengths) - lengths
    return Ragged(frames, times, starts, lengths, zero_is_missing=zero_is_missing)
