"""Mean and standard deviation of every feature, from the training clips alone."""

from collections.abc import Callable, Mapping
from functools import reduce

import numpy as np

from mmattn.data.corpus import Corpus
from mmattn.data.stream import Ragged, Stream

BLOCKS = 64  # that clips are measured in, so that the result is the same for any processes
# A standard deviation below this share of the mean is the rounding of float32, not a signal.
_CONSTANT = 1e-6

# By name: MODALITY_mean and MODALITY_std [F] float32, subtracted from and divided into the frames.
Normaliser = dict[str, np.ndarray]


def fit_normaliser(
    corpus: Corpus,
    train: np.ndarray,
    own: range = range(BLOCKS),
    gather: Callable[[dict], dict] = lambda moments: moments,
) -> Normaliser:
    """Statistics over the valid frames of the clips `train` [n]; constant features get 1.

    Each process measures its `own` of the blocks that the clips are divided into, B in all, and
    `gather` joins these moments {modality: [B, 3, F]}: the number of valid frames, their mean and
    sum of squared differences from it. Without clips the statistics leave frames as they are.
    """
    blocks = [*np.array_split(train, BLOCKS)] + own.stop * [train[:0]]
    moments = gather(
        {
            name: np.array([_moments(ragged, blocks[number]) for number in own])
            for name, ragged in corpus.streams.items()
        }
    )
    normaliser = {}
    for name, measured in moments.items():
        count, mean, squares = reduce(_merge, measured, np.zeros(measured.shape[1:]))
        deviation = np.sqrt(squares / np.maximum(count, 1))
        deviation[deviation <= _CONSTANT * np.abs(mean)] = 1.0
        normaliser[f"{name}_mean"] = mean.astype(np.float32)
        normaliser[f"{name}_std"] = deviation.astype(np.float32)
    return normaliser


def neutral(widths: Mapping[str, int]) -> Normaliser:
    """Statistics that leave frames of so many features, by modality, as they are."""
    means = {f"{name}_mean": np.zeros(width, np.float32) for name, width in widths.items()}
    return means | {f"{name}_std": np.ones(width, np.float32) for name, width in widths.items()}


def normalised(
    corpus: Corpus, clip: int, normaliser: Normaliser, variant: str = "", own_clock: bool = False
) -> dict[str, Stream]:
    """The streams of a clip, or of a variant of it, with normalised frames, 0 where not valid."""
    streams = {}
    for name, ragged in corpus.streams.items():
        stream = ragged.clip_or_variant(clip, variant, own_clock)
        frames = stream.frames - normaliser[f"{name}_mean"]
        frames /= normaliser[f"{name}_std"]
        frames *= stream.valid[..., None]
        streams[name] = stream._replace(frames=frames)
    return streams


def _moments(ragged: Ragged, clips: np.ndarray) -> np.ndarray:
    """The moments [3, F] of the clips [n], a clip at a time."""
    total = np.zeros((3, ragged.width))
    for frames, _, valid in map(ragged.clip, clips):
        part = frames[valid].astype(np.float64)
        mean = part.sum(axis=0) / max(len(part), 1)
        squares = ((part - mean) ** 2).sum(axis=0)
        total = _merge(total, np.stack([np.full_like(mean, len(part)), mean, squares]))
    return total


def _merge(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The moments [3, F] of both together.

    By counts, means and sums of squares (Chan et al. 1979): sums of raw squares would lose digits
    where the mean is large.
    """
    (count, mean, squares), (other_count, other_mean, other_squares) = one, other
    total, shift = np.maximum(count + other_count, 1), other_mean - mean
    squares = squares + other_squares + shift**2 * count * other_count / total
    return np.stack([count + other_count, mean + shift * other_count / total, squares])
