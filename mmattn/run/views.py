"""Which test clips are shown, and what is shown of them."""

from collections.abc import Mapping

import numpy as np

from mmattn.data.corpus import Corpus
from mmattn.data.normalise import Normaliser, normalised
from mmattn.evaluate.predictions import Predictions
from mmattn.evaluate.views import ClipView, StreamView
from mmattn.train.loop import Trainer
from mmattn.train.step import TrainState


def view_clips(trainer: Trainer, state: TrainState, clips: np.ndarray) -> list[ClipView]:
    """The clips at these positions [n] of the trainer's corpus as its network sees them."""
    found = trainer.predict(state, clips)
    return [
        clip_view(trainer.corpus, clip, trainer.normaliser, *seen)
        for clip, *seen in zip(clips, found.probabilities, found.attention, strict=True)
    ]


def clip_view(
    corpus: Corpus,
    clip: int,
    normaliser: Normaliser,
    probabilities: np.ndarray,
    attention: Mapping[str, np.ndarray],
) -> ClipView:
    """A clip with a network's predictions: probabilities [K]; by modality, attention [T].

    With a label below 0, class and speaker are unknown.
    """
    streams = {
        name: StreamView(stream.times, attention[name], stream.frames, stream.valid)
        for name, stream in normalised(corpus, clip, normaliser).items()
        if name in attention and len(stream.times)
    }
    known = corpus.labels[clip] >= 0
    cues = corpus.cues and [(cue.modality, cue.time, cue.decoy) for cue in corpus.cues[clip]]
    return ClipView(
        corpus.names[clip],
        str(corpus.speakers[clip]) if known else None,
        corpus.class_names[corpus.labels[clip]] if known else None,
        probabilities,
        streams,
        cues,
    )


def choose_rows(predictions: Predictions, count: int) -> np.ndarray:
    """Up to `count` rows, increasing, evenly over right and wrong ones of each class.

    Each of these groups gives its first clip, then each its second, until there are enough.
    """
    labels = predictions.labels
    group = 2 * labels + (predictions.predicted == labels)
    order = np.argsort(group, kind="stable")
    _, first, members = np.unique(group[order], return_index=True, return_counts=True)
    rank = np.empty(len(labels), int)
    rank[order] = np.arange(len(labels)) - np.repeat(first, members)
    return np.sort(np.lexsort((group, rank))[:count])
