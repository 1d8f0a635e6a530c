"""What plots and the report show of a clip: attention and features over time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmattn.data.corpus import Corpus
from mmattn.data.normalise import Normaliser, normalised
from mmattn.evaluate.predictions import Predictions


@dataclass(frozen=True, eq=False)
class StreamView:
    """One modality of a clip, of T frames.

    times [T] s, increasing; attention [T], the model's output; features [T, F] normalised;
    valid [T] bool, None if all frames are.
    """

    times: np.ndarray
    attention: np.ndarray
    features: np.ndarray
    valid: np.ndarray | None = None

    @property
    def ratio(self) -> np.ndarray:
        """Attention relative to uniform [T]."""
        return ratio_to_uniform(self.attention, self.known)

    @property
    def known(self) -> np.ndarray:
        """The valid frames [T] bool."""
        return np.ones(len(self.times), bool) if self.valid is None else self.valid

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """Start and end (s) of each run of invalid frames."""
        return spans_without_data(self.times, self.known)


@dataclass(frozen=True, eq=False)
class ClipView:
    """What is shown of a clip.

    speaker and label (the true class's name): None if unknown; probabilities [K]; cues: the
    (modality, time in s, is a decoy) of each, if known; streams: by modality, those that the run
    and the clip have.
    """

    clip: str
    speaker: str | None
    label: str | None
    probabilities: np.ndarray
    streams: dict[str, StreamView]
    cues: Sequence[tuple[str, float, bool]] | None = None


def view_clips(
    corpus: Corpus,
    clips: Iterable[int],
    normaliser: Normaliser,
    probabilities: Iterable[np.ndarray],
    attention: Iterable[Mapping[str, np.ndarray]],
) -> list[ClipView]:
    """Clips [n] of a corpus with a network's predictions: probabilities [n, K]; by modality,
    attention [T] of each.

    With a label below 0, class and speaker are unknown.
    """
    views = []
    for clip, shares, own in zip(clips, probabilities, attention, strict=True):
        streams = {
            name: StreamView(stream.times, own[name], stream.frames, stream.valid)
            for name, stream in normalised(corpus, clip, normaliser).items()
            if name in own and len(stream.times)
        }
        known = corpus.labels[clip] >= 0
        speaker = str(corpus.speakers[clip]) if known else None
        label = corpus.class_names[corpus.labels[clip]] if known else None
        cues = [(c.modality, c.time, c.decoy) for c in corpus.cues[clip]] if corpus.cues else None
        views.append(ClipView(corpus.names[clip], speaker, label, shares, streams, cues))
    return views


def choose_rows(predictions: Predictions, count: int) -> np.ndarray:
    """Up to `count` rows, increasing, balanced over correct and wrong clips of each class.

    Each group gives its first clip, then each its second, until there are enough.
    """
    labels = predictions.labels
    group = 2 * labels + (predictions.predicted == labels)
    order = np.argsort(group, kind="stable")
    _, first, members = np.unique(group[order], return_index=True, return_counts=True)
    rank = np.empty(len(labels), int)
    rank[order] = np.arange(len(labels)) - np.repeat(first, members)
    return np.sort(np.lexsort((group, rank))[:count])


def ratio_to_uniform(attention: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Attention [T] over its mean on the valid [T] frames; NaN on the others.

    All NaN without valid frames.
    """
    if not attention[valid].any():
        return np.full(len(attention), np.nan)
    return np.where(valid, attention / attention[valid].mean(), np.nan)


def spans_without_data(times: np.ndarray, valid: np.ndarray) -> list[tuple[float, float]]:
    """Start and end (s) of each run of frames not valid [T], half a frame wider."""
    half = np.diff(times).mean() / 2 if len(times) > 1 else 0.0
    edges = np.flatnonzero(np.diff(np.concatenate([[False], ~valid, [False]]).astype(int)))
    return [
        (float(times[first] - half), float(times[after - 1] + half))
        for first, after in edges.reshape(-1, 2)
    ]
