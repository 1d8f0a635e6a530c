"""Mean and deviation of every feature, from the training clips alone."""

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import numpy as np

from mmattn.data.clips import valid_frames
from mmattn.data.corpus import Corpus

BLOCKS = 64  # that clips are measured in, so that the result is the same for any processes
# A deviation below this share of the mean is the rounding of float32, not a signal.
_CONSTANT = 1e-6


class Normaliser(NamedTuple):
    """Subtracted from and divided into the frames; float32."""

    audio_mean: np.ndarray  # [Fa]
    audio_std: np.ndarray  # [Fa]
    video_mean: np.ndarray  # [Fv]
    video_std: np.ndarray  # [Fv]


class Moments(NamedTuple):
    """Of B blocks of clips, over all valid frames; float64."""

    audio: np.ndarray  # [B, 1 + 2 Fa], frames, mean and sum of squared differences from it
    video: np.ndarray  # [B, 1 + 2 Fv]


def fit_normaliser(corpus: Corpus, train: np.ndarray) -> Normaliser:
    """Statistics over the valid frames of the clips `train` [n]; constant features get 1."""
    return normaliser_of(measure_blocks(corpus, train, range(BLOCKS)))


def measure_blocks(corpus: Corpus, train: np.ndarray, own: range) -> Moments:
    """The moments of some of the blocks that the clips `train` [n] are divided into.

    Several processes measure some each. Blocks beyond the last have no frames.
    """
    blocks = [*np.array_split(train, BLOCKS)] + own.stop * [train[:0]]
    audio, video = (
        [
            _moments((valid(stream.clip(clip)) for clip in blocks[number]), stream.width)
            for number in own
        ]
        for stream, valid in ((corpus.audio, np.asarray), (corpus.video, _with_faces))
    )
    return Moments(np.array(audio), np.array(video))


def normaliser_of(moments: Moments) -> Normaliser:
    """The statistics of all blocks together."""
    return Normaliser(*_mean_and_deviation(moments.audio), *_mean_and_deviation(moments.video))


def blank_normaliser(audio_width: int, video_width: int) -> Normaliser:
    """Zeros, to be replaced."""
    widths = (audio_width, audio_width, video_width, video_width)
    return Normaliser(*(np.zeros(width, np.float32) for width in widths))


def normalise_audio(normaliser: Normaliser, frames: np.ndarray) -> np.ndarray:
    """Normalised audio frames [T, Fa] float32."""
    return (frames - normaliser.audio_mean) / normaliser.audio_std


def normalise_video(normaliser: Normaliser, frames: np.ndarray) -> np.ndarray:
    """Normalised video frames [T, Fv] float32; those without a face are zero afterwards too."""
    normal = (frames - normaliser.video_mean) / normaliser.video_std
    return normal * valid_frames(frames)[..., None]


def _with_faces(video: np.ndarray) -> np.ndarray:
    return video[valid_frames(video)]


def _moments(parts: Iterable[np.ndarray], width: int) -> np.ndarray:
    """Frames, mean and squares [1 + 2 F] of the rows of all parts [T, F], a part at a time."""
    total = np.zeros(1 + 2 * width)
    for part in parts:
        if len(part):
            part = part.astype(np.float64)
            mean = part.mean(axis=0)
            total = _merge(total, np.concatenate([[len(part)], mean, ((part - mean) ** 2).sum(0)]))
    return total


def _merge(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The moments [1 + 2 F] of both together, of which the other has some frames.

    By counts, means and sums of squares (Chan et al. 1979): sums of raw squares would lose digits
    where the mean is large.
    """
    (count, (mean, squares)), (frames, (other_mean, other_squares)) = (
        (moments[0], np.split(moments[1:], 2)) for moments in (one, other)
    )
    total, shift = count + frames, other_mean - mean
    squares = squares + other_squares + shift**2 * count * frames / total
    return np.concatenate([[total], mean + shift * frames / total, squares])


def _mean_and_deviation(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation [F] of all blocks [B, 1 + 2 F]."""
    total = reduce(_merge, blocks[blocks[:, 0] > 0], np.zeros(blocks.shape[1]))
    mean, squares = np.split(total[1:], 2)
    deviation = np.sqrt(squares / max(total[0], 1))
    deviation[deviation <= _CONSTANT * np.abs(mean)] = 1.0
    return mean.astype(np.float32), deviation.astype(np.float32)
