"""One modality of a clip: frames, times, validity; and that of many clips, perhaps on the disk."""

import ctypes
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mmattn.machine import c_function

PADDING = np.float32(1e6)  # seconds; the time of a frame of padding, after all others
ADVISED = 2**17  # bytes to read ahead in a call: Linux takes the first read_ahead_kb of more


# That of Python's mmap would keep all threads waiting with it.
_madvise = c_function("madvise", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Stream(NamedTuple):
    """One modality of a clip of T frames, or with leading axes of the clips of a batch.

    A clip that lacks the modality has no frames [0, F]. In a batch shorter clips are padded: frames
    0, times `PADDING`, not valid.
    """

    frames: np.ndarray
    """[…, T, F] float32."""
    times: np.ndarray
    """[…, T] seconds, increasing."""
    valid: np.ndarray
    """[…, T] bool; False where a frame has no data, such as a video frame without a face."""

    @property
    def length(self) -> np.ndarray:
        """[…] frames without the padding, invalid ones included."""
        return (self.times < PADDING).sum(-1)


def make_stream(frames: np.ndarray, times: np.ndarray, zero_is_missing: bool = False) -> Stream:
    """Frames [T, F] at times [T], all valid but for those that are all zero, if so asked."""
    valid = frames.any(axis=1) if zero_is_missing else np.ones(len(frames), bool)
    return Stream(frames, times, valid)


@dataclass(frozen=True)
class Ragged:
    """One modality of many clips; a clip is a run of rows of a shard, so subsets share the rows.

    A shard is frames [R, F] and their times [R], perhaps memory-mapped, perhaps of more clips.
    """

    shards: tuple[tuple[np.ndarray, np.ndarray], ...]  # of equal width
    shard: np.ndarray  # [N] int64, in which each clip is
    starts: np.ndarray  # [N] int64, first row of each clip there
    lengths: np.ndarray  # [N] int64, frames of each clip
    delay: float = 0.0  # seconds by which all frames are dated later
    zero_is_missing: bool = False  # a frame of zeros has no data

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def width(self) -> int:
        """Features of a frame."""
        return self.shards[0][0].shape[1]

    def clip(self, index: int) -> Stream:
        """One clip; its frames are not copied."""
        frames = self.shards[self.shard[index]][0][self._rows(index)]
        return make_stream(frames, self.clip_times(index), self.zero_is_missing)

    def clip_times(self, index: int) -> np.ndarray:
        """Times [T] of one clip's frames in seconds; not copied without a delay."""
        times = self.shards[self.shard[index]][1][self._rows(index)]
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
                for array in shard
                if isinstance(array.base, mmap.mmap)
            ]
            for shard in self.shards
        ]

    def _rows(self, index: int) -> slice:
        return slice(self.starts[index], self.starts[index] + self.lengths[index])

    def select(self, indices: np.ndarray) -> "Ragged":
        """The clips `indices`, in that order; the frames are shared."""
        rows = (self.shard[indices], self.starts[indices], self.lengths[indices])
        return replace(self, shard=rows[0], starts=rows[1], lengths=rows[2])

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


def pack_streams(streams: Sequence[Stream], zero_is_missing: bool = False) -> Ragged:
    """Streams one after the other in memory; they must have the same width."""
    lengths = np.array([len(stream.times) for stream in streams], np.int64)
    frames = np.concatenate([stream.frames for stream in streams])
    times = np.concatenate([stream.times for stream in streams])
    starts = np.cumsum(lengths) - lengths
    shard = np.zeros_like(lengths)
    return Ragged(((frames, times),), shard, starts, lengths, zero_is_missing=zero_is_missing)
