"""Mean and deviation of every feature, from the training clips alone."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from mmattn.data.clips import valid_frames
from mmattn.data.corpus import Corpus

# A deviation below this share of the mean is the rounding of float32, not a signal.
_CONSTANT = 1e-6


class Normaliser(NamedTuple):
    """Subtracted from and divided into the frames; float32."""

    audio_mean: np.ndarray  # [Fa]
    audio_std: np.ndarray  # [Fa]
    video_mean: np.ndarray  # [Fv]
    video_std: np.ndarray  # [Fv]


def fit_normaliser(corpus: Corpus, train: np.ndarray) -> Normaliser:
    """Statistics over the valid frames of the clips `train` [n]; constant features get 1."""
    audio = (corpus.audio.clip(index) for index in train)
    video = (corpus.video.clip(index) for index in train)
    faces = (frames[valid_frames(frames)] for frames in video)
    return Normaliser(
        *_mean_and_deviation(audio, corpus.audio.width),
        *_mean_and_deviation(faces, corpus.video.width),
    )


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


def _mean_and_deviation(parts: Iterable[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation [F] over the rows of all parts [T, F], in float64, a part at a time.

    Parts are merged by their counts, means and sums of squares (Chan et al. 1979): sums of raw
    squares would lose digits where the mean is large.
    """
    count = 0
    mean = np.zeros(width)
    squares = np.zeros(width)
    for part in parts:
        if not len(part):
            continue
        part = part.astype(np.float64)
        part_mean = part.mean(axis=0)
        shift = part_mean - mean
        total = count + len(part)
        squares += ((part - part_mean) ** 2).sum(axis=0) + shift**2 * count * len(part) / total
        mean += shift * len(part) / total
        count = total
    deviation = np.sqrt(squares / max(count, 1))
    deviation[deviation <= _CONSTANT * np.abs(mean)] = 1.0
    return mean.astype(np.float32), deviation.astype(np.float32)
