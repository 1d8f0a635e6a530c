"""How a trained network responds to a stream that is delayed or has another tempo."""

from dataclasses import replace

import numpy as np

from mmattn.config import AugmentConfig
from mmattn.data.augment import change_tempo, stretched
from mmattn.data.corpus import Corpus
from mmattn.data.stream import Ragged, pack_streams
from mmattn.model.fusion import fusion_of
from mmattn.train.inference import Predictor

OFFSETS = np.linspace(-0.4, 0.4, 9)  # seconds by which the stream is delayed
TEMPOS = np.linspace(0.8, 1.2, 5)  # of the stream alone


def measure_shifts(network: Predictor, test: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """Whether each clip is predicted correctly if one modality is delayed, or its tempo changed.

    right_at_offset [n, 9], right_at_tempo [n, 5].
    """
    corpus, streams = network.corpus, network.corpus.streams

    def right(other: Corpus, rows: np.ndarray, buckets=None) -> np.ndarray:
        found = network.with_corpus(other, buckets).predict(rows)
        return (found.probabilities.argmax(1) == corpus.labels[test]).astype(float)

    at_offset = []
    # A network that ignores times gives the same result at all offsets.
    for offset in OFFSETS if fusion_of(network.config.model.fusion).uses_times else [0.0]:
        late = {**streams, name: replace(streams[name], delay=offset)}
        at_offset.append(right(replace(corpus, streams=late), test))
    at_tempo = []
    slowest = AugmentConfig(tempo=(TEMPOS[0], 1.0))
    bucket = {other: int(stream.lengths[test].max()) for other, stream in streams.items()}
    bucket[name] = stretched(bucket[name], slowest)
    for tempo in TEMPOS:
        others = {other: stream.select(test) for other, stream in streams.items()}
        changed = _at_tempo(streams[name], test, tempo)
        other = clips_of(corpus, test, {**others, name: changed})
        at_tempo.append(right(other, np.arange(len(test)), [bucket]))
    return {
        "right_at_offset": np.broadcast_to(np.stack(at_offset, 1), (len(test), len(OFFSETS))),
        "right_at_tempo": np.stack(at_tempo, 1),
    }


def clips_of(corpus: Corpus, clips: np.ndarray, streams: dict[str, Ragged]) -> Corpus:
    """A corpus of these clips [n] with other streams."""
    return replace(
        corpus,
        names=tuple(corpus.names[clip] for clip in clips),
        speakers=corpus.speakers[clips],
        labels=corpus.labels[clips],
        streams=streams,
        targets=None,
        cues=None,
    )


def _at_tempo(ragged: Ragged, clips: np.ndarray, tempo: float) -> Ragged:
    streams = [ragged.clip(clip) for clip in clips]
    changed = [change_tempo(stream, tempo, stream.times[0]) for stream in streams]
    return pack_streams(changed, ragged.zero_is_missing)
