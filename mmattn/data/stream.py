"""One modality of a clip: frames, times, validity; and of many clips, possibly on disk."""

import ctypes
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from mmattn.machine import c_function

PADDING = np.float32(1e6)  # seconds; the time of padding frames, after all others
ADVISED = 2**17  # bytes to read ahead per call: Linux reads at most read_ahead_kb of each
AnyArray = Any  # NumPy's, or inside the network JAX's

# The madvise of Python's mmap blocks all threads.
_madvise = c_function("madvise", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Stream(NamedTuple):
    """One modality of a clip of T frames, or with leading axes of the clips of a batch.

    A clip that lacks the modality has no frames [0, F]. In a batch, shorter clips are padded:
    frames 0, times `PADDING`, not valid.
    """

    frames: AnyArray  # […, T, F] float32
    times: AnyArray  # […, T] seconds, increasing
    valid: AnyArray  # […, T] bool; False if a frame has no data, e.g. video without a face

    @property
    def length(self) -> AnyArray:
        """[…] number of frames without padding, including invalid frames."""
        return (self.times < PADDING).sum(-1)


def make_stream(frames: np.ndarray, times: np.ndarray, zero_is_missing: bool = False) -> Stream:
    """Frames [T, F] at times [T]; all valid, or with `zero_is_missing` all but the zero frames."""
    valid = np.any(frames, axis=1) if zero_is_missing else np.ones(len(frames), bool)
    return Stream(frames, times, valid)


@dataclass(frozen=True)
class Ragged:
    """One modality of many clips; a clip is a range of rows, so that subsets share the rows."""

    frames: np.ndarray  # [R, F], possibly memory-mapped, possibly of more clips
    times: np.ndarray  # [R] seconds
    starts: np.ndarray  # [N] int64, first row of each clip
    lengths: np.ndarray  # [N] int64, frames of each clip
    delay: float = 0.0  # seconds added to all times
    zero_is_missing: bool = False  # an all-zero frame has no data
    variants: Mapping[str, "Ragged"] = field(default_factory=dict)  # augmented copies of all clips
    begins: np.ndarray | None = None  # [N] seconds at which clips begin, if they were cropped

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def width(self) -> int:
        """Feature dimension."""
        return self.frames.shape[1]

    def clip(self, index: int) -> Stream:
        """One clip; its frames are not copied."""
        start = self.starts[index]
        frames = self.frames[start : start + self.lengths[index]]
        return make_stream(frames, self.clip_times(index), self.zero_is_missing)

    def clip_or_variant(self, index: int, name: str, own_clock: bool) -> Stream:
        """The variant of that name of one clip, or the clip itself if there is no such variant.

        Its times are those of the clip. With `own_clock` it begins with the clip and keeps its own
        duration: its frames have the spacing of the original.
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
        """Times [T] of one clip's frames in seconds; copied only if there is a delay."""
        start = self.starts[index]
        times = self.times[start : start + self.lengths[index]]
        return times + self.delay if self.delay else times

    def read_ahead(self, index: int) -> None:
        """Ask the system to start reading one clip from memory-mapped files.

        It blocks only while the disk's queue is full, so many reads are in flight at once. If the C
        library has no madvise, frames are read when they are used.
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
        """The clips `indices`, in that order; frames are not copied."""
        variants = {name: variant.select(indices) for name, variant in self.variants.items()}
        begins = None if self.begins is None else self.begins[indices]
        starts, lengths = self.starts[indices], self.lengths[indices]
        return replace(self, starts=starts, lengths=lengths, variants=variants, begins=begins)

    def crop(self, bounds: np.ndarray) -> "Ragged":
        """Of each clip, the frames in the half-open range bounds [N, 2]; they are not copied."""
        starts = self.starts + bounds[:, 0]
        return replace(self, starts=starts, lengths=bounds[:, 1] - bounds[:, 0])

    def longest(self, frames: int) -> int:
        """Maximum frames of the clips of at most `frames` frames, and of their variants."""
        short = self.lengths <= frames
        found = (one.lengths[short].max(initial=0) for one in self.variants.values())
        return int(max([frames, *found]))

    def _times(self, least: int = 1) -> Iterator[np.ndarray]:
        """The times of each clip and variant of at least `least` frames."""
        for one in (self, *self.variants.values()):
            yield from map(one.clip_times, np.flatnonzero(one.lengths >= least).tolist())

    def longest_span(self, frames: int) -> float:
        """Maximum duration (s) of `frames` neighbouring frames of a clip."""
        spans = [0.0]
        for times in self._times():
            last = min(frames, len(times)) - 1
            spans.append((times[last:] - times[: len(times) - last]).max())
        return max(spans)

    def most_within(self, seconds: float) -> int:
        """Maximum number of a clip's frames within `seconds`."""
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
