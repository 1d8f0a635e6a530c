"""Mean and deviation of every feature, from the training clips alone."""

from collections.abc import Iterable, Iterator, Mapping
from functools import reduce

import numpy as np

from mmattn.data.corpus import Corpus
from mmattn.data.stream import Ragged, Stream

BLOCKS = 64  # that clips are measured in, so that the result is the same for any processes
# A deviation below this share of the mean is the rounding of float32, not a signal.
_CONSTANT = 1e-6


# By name: MODALITY_mean and MODALITY_std [F] float32, subtracted from and divided into the frames.
Normaliser = dict[str, np.ndarray]
# By modality, of B blocks of clips [B, 1 + 2 F] float64: the number of valid frames, their mean and
# sum of squared differences from it.
Moments = dict[str, np.ndarray]


def fit_normaliser(corpus: Corpus, train: np.ndarray) -> Normaliser:
    """Statistics over the valid frames of the clips `train` [n]; constant features get 1."""
    return normaliser_of(measure_blocks(corpus, train, range(BLOCKS)))


def measure_blocks(corpus: Corpus, train: np.ndarray, own: range) -> Moments:
    """The moments of some of the blocks that the clips `train` [n] are divided into.

    Several processes measure some each. Blocks beyond the last have no frames.
    """
    blocks = [*np.array_split(train, BLOCKS)] + own.stop * [train[:0]]

    def valid_frames(ragged: Ragged, clips: np.ndarray) -> Iterator[np.ndarray]:
        for frames, _, valid in map(ragged.clip, clips):
            yield frames[valid]

    return {
        name: np.array([_moments(valid_frames(ragged, blocks[n]), ragged.width) for n in own])
        for name, ragged in corpus.streams.items()
    }


def normaliser_of(moments: Moments) -> Normaliser:
    """The statistics of all blocks together."""
    return {
        f"{name}_{what}": values
        for name, blocks in moments.items()
        for what, values in zip(("mean", "std"), _mean_and_deviation(blocks), strict=True)
    }


def blank_normaliser(widths: Mapping[str, int]) -> Normaliser:
    """Zeros for these features of a frame by modality, to be replaced."""
    return {
        f"{name}_{what}": np.zeros(width, np.float32)
        for name, width in widths.items()
        for what in ("mean", "std")
    }


def normalise(normaliser: Normaliser, name: str, stream: Stream) -> Stream:
    """A stream of that modality with normalised frames; those that are not valid become zero."""
    frames = stream.frames - normaliser[f"{name}_mean"]
    frames /= normaliser[f"{name}_std"]
    frames *= stream.valid[..., None]
    return stream._replace(frames=frames)


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
