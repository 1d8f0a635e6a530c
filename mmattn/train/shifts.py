"""What a trained network makes of audio that comes late or runs at another tempo than the video."""

from dataclasses import replace

import numpy as np

from mmattn.config import AugmentConfig
from mmattn.data.augment import Frames, change_tempo, stretched
from mmattn.data.batches import Bucket
from mmattn.data.clips import Ragged, Stream, pack_streams
from mmattn.data.corpus import Corpus
from mmattn.train.loop import Trainer
from mmattn.train.step import TrainState

OFFSETS = np.linspace(-0.4, 0.4, 9)  # seconds that the audio comes late
TEMPOS = np.linspace(0.8, 1.2, 5)  # of the audio alone


def measure_shifts(trainer: Trainer, state: TrainState, test: np.ndarray) -> dict[str, np.ndarray]:
    """Whether each clip is right when its audio comes late, or runs at another tempo.

    right_at_offset [n, 9], right_at_tempo [n, 5].
    """
    corpus = trainer.corpus
    reads_times = trainer.config.model.fusion == "cross"  # else all offsets are the same to it

    def right(other: Corpus, rows: np.ndarray, buckets=None) -> np.ndarray:
        found = trainer.with_corpus(other, buckets).predict(state, rows)
        return (found.probabilities.argmax(1) == corpus.labels[test]).astype(float)

    at_offset = []
    for offset in OFFSETS if reads_times else [0.0]:
        audio = replace(corpus.audio, delay=offset)
        at_offset.append(right(replace(corpus, audio=audio), test))
    at_tempo = []
    slowest = AugmentConfig(tempo=(TEMPOS[0], 1.0))
    longest = corpus.audio.lengths[test].max(), corpus.video.lengths[test].max()
    bucket = Bucket(int(stretched(longest[0], slowest)), int(longest[1]))
    for tempo in TEMPOS:
        audio = pack_streams([_at_tempo(corpus.audio, clip, tempo) for clip in test])
        other = clips_of(corpus, test, audio=audio, video=corpus.video.select(test))
        at_tempo.append(right(other, np.arange(len(test)), [bucket]))
    return {
        "right_at_offset": np.broadcast_to(np.stack(at_offset, 1), (len(test), len(OFFSETS))),
        "right_at_tempo": np.stack(at_tempo, 1),
    }


def clips_of(corpus: Corpus, clips: np.ndarray, audio: Ragged, video: Ragged) -> Corpus:
    """A corpus of these clips [n] with other streams."""
    return replace(
        corpus,
        names=tuple(corpus.names[clip] for clip in clips),
        speakers=corpus.speakers[clips],
        labels=corpus.labels[clips],
        audio=audio,
        video=video,
        cues=None,
    )


def _at_tempo(audio: Ragged, clip: int, tempo: float) -> Stream:
    frames, times = audio.clip(clip), audio.clip_times(clip)
    changed = change_tempo(Frames(frames, times, np.ones(len(frames), bool)), tempo, times[0])
    return Stream(changed.frames, changed.times)
