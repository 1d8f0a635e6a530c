"""Mean and standard deviation of every feature, over the training clips only."""

from collections.abc import Callable, Mapping
from functools import reduce

import numpy as np

from mmattn.data.corpus import Corpus
from mmattn.data.stream import Ragged, Stream

BLOCKS = 64  # of clips, summed in order, so that the result is the same for any number of processes
# A standard deviation below this fraction of the mean is float32 rounding, not a signal.
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

    The clips are divided into B blocks. Each process measures its `own` blocks, and `gather`
    collects the moments {modality: [B, 3, F]}: the number of valid frames, their mean and their sum
    of squared deviations. Without clips, the statistics leave frames unchanged.
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
    """Statistics that leave frames unchanged; `widths` are the feature dimensions by modality."""
    means = {f"{name}_mean": np.zeros(width, np.float32) for name, width in widths.items()}
    return means | {f"{name}_std": np.ones(width, np.float32) for name, width in widths.items()}


def normalised(
    corpus: Corpus, clip: int, normaliser: Normaliser, variant: str = "", own_clock: bool = False
) -> dict[str, Stream]:
    """The streams of a clip or a variant of it, with normalised frames, 0 if not valid."""
    streams = {}
    for name, ragged in corpus.streams.items():
        stream = ragged.clip_or_variant(clip, variant, own_clock)
        frames = stream.frames - normaliser[f"{name}_mean"]
        frames /= normaliser[f"{name}_std"]
        frames *= stream.valid[..., None]
        streams[name] = stream._replace(frames=frames)
    return streams


def _moments(ragged: Ragged, clips: np.ndarray) -> np.ndarray:
    """The moments [3, F] of the clips [n], one clip at a time."""
    total = np.zeros((3, ragged.width))
    for frames, _, valid in map(ragged.clip, clips):
        part = frames[valid].astype(np.float64)
        mean = part.sum(axis=0) / max(len(part), 1)
        squares = ((part - mean) ** 2).sum(axis=0)
        total = _merge(total, np.stack([np.full_like(mean, len(part)), mean, squares]))
    return total


def _merge(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The moments [3, F] of both together.

    By counts, means and sums of squared deviations (Chan et al. 1979): sums of raw squares would
    lose digits if the mean is large.
    """
    (count, mean, squares), (other_count, other_mean, other_squares) = one, other
    total, shift = np.maximum(count + other_count, 1), other_mean - mean
    squares = squares + other_squares + shift**2 * count * other_count / total
    return np.stack([count + other_count, mean + shift * other_count / total, squares])
