"""The work that all contenders share: ragged batches of the full-size corpus, and its FLOP.

Lengths are those that `benchmarks.full_size` draws for RAVDESS and CREMA-D together; clips are
grouped by the project's own buckets, so batches have the padded shapes of training.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.full_size import CLIPS, RATES, SECONDS, SPREAD, WIDTHS
from experiments.no_aug import CONFIG
from mmattn.config import ExperimentConfig, ModelConfig
from mmattn.data.batches import Batch, Bucket, Dispatch, collate, make_buckets, plan_epoch
from mmattn.data.corpus import Corpus
from mmattn.data.labels import SIX
from mmattn.data.normalise import neutral
from mmattn.data.stream import Ragged, Stream
from mmattn.errors import UserError

TRAINING_SHARE = 0.8  # of the 8,882 clips; the default split trains on 0.7


@dataclass(frozen=True)
class Scale:
    """How large the clips are; the default is full size."""

    clips: int = round(TRAINING_SHARE * sum(CLIPS.values()))
    """Clips in the corpus; the buckets depend on all their lengths."""
    widths: dict[str, int] = field(default_factory=lambda: dict(WIDTHS))
    """Feature dimension by modality."""
    rates: dict[str, float] = field(default_factory=lambda: dict(RATES))
    """Frames per second, by modality."""


class Work(NamedTuple):
    """What a contender builds, and the batches it is measured on."""

    config: ExperimentConfig
    """The experiment; its `train.batch` is the batch size."""
    corpus: Corpus
    dispatches: list[Dispatch]
    """Whole batches of one bucket each."""
    class_weights: np.ndarray
    """[K]"""

    @property
    def widths(self) -> dict[str, int]:
        """Feature dimension by modality."""
        return self.corpus.widths

    @property
    def classes(self) -> int:
        """The number of classes, K."""
        return len(self.corpus.class_names)

    @property
    def clips(self) -> int:
        """Clips in all batches."""
        return sum(map(len, self._batches()))

    @property
    def flop(self) -> int:
        """FLOP of a training step on all batches."""
        lengths = {name: stream.lengths for name, stream in self.corpus.streams.items()}
        return sum(
            clip_flop(self.config.model, self.widths, {m: int(n[clip]) for m, n in lengths.items()})
            for batch in self._batches()
            for clip in batch
        )

    def batches(self) -> list[Batch]:
        """Padded arrays [B, …] of each batch, for contenders that take one at a time."""
        found = []
        for dispatch in self.dispatches:
            steps, size = len(dispatch.batches), self.config.train.batch
            arrays = collate(self.corpus, dispatch, neutral(self.widths), 1, size, steps)
            found += [_batch_at(arrays, n) for n in range(steps)]
        return found

    def singles(self) -> list["Work"]:
        """Each batch as separate work."""
        return [
            self._replace(dispatches=[Dispatch(dispatch.bucket, [batch])])
            for dispatch in self.dispatches
            for batch in dispatch.batches
        ]

    def middle(self) -> "Work":
        """Its dispatch of the middle padded shape: a single shape compiles once."""
        return self._replace(dispatches=[self.dispatches[len(self.dispatches) // 2]])

    def _batches(self) -> list[np.ndarray]:
        return [batch for dispatch in self.dispatches for batch in dispatch.batches]


def _batch_at(batch: Batch, step: int) -> Batch:
    streams = {
        name: Stream(*(array[0, step] for array in stream))
        for name, stream in batch.streams.items()
    }
    return Batch(streams, *(array if array is None else array[0, step] for array in batch[1:]))


def make_work(
    batch: int, per_bucket: int, config: ExperimentConfig = CONFIG, scale: Scale | None = None
) -> Work:
    """The work; the same for the same arguments.

    Args:
        batch: clips per batch.
        per_bucket: clips of each bucket, rounded up to whole batches, at most one dispatch.
        config: the experiment.
        scale: of the clips, full size by default.
    """
    config = replace(config, train=replace(config.train, batch=batch))
    corpus = draw_corpus(scale or Scale(), config.seed)
    clips = np.arange(len(corpus))
    buckets = make_buckets(corpus, clips, config.data.buckets)
    steps = min(-(-per_bucket // batch), config.train.steps_per_dispatch)
    rng = np.random.default_rng(config.seed)
    plan = plan_epoch(corpus, clips, buckets, batch, steps, rng)
    dispatches = [_first_full(plan, bucket, batch, steps) for bucket in buckets]
    # Unequal, so that tests notice a contender that ignores them.
    class_weights = np.linspace(0.5, 1.5, len(corpus.class_names), dtype=np.float32)
    return Work(config, corpus, dispatches, class_weights)


def _first_full(plan: list[Dispatch], bucket: Bucket, batch: int, steps: int) -> Dispatch:
    for dispatch in plan:
        if dispatch.bucket == bucket and sum(map(len, dispatch.batches)) == batch * steps:
            return dispatch
    raise UserError(f"batches of {batch} clips: a bucket has fewer than {steps} of them")


def draw_corpus(scale: Scale, seed: int) -> Corpus:
    """Clips with the lengths of both corpora; they share a block of noise to save memory."""
    rng = np.random.default_rng(seed)
    shares = np.array(list(CLIPS.values())) / sum(CLIPS.values())
    means = np.array(list(SECONDS.values()))[rng.choice(len(CLIPS), scale.clips, p=shares)]
    seconds = np.maximum(1.0, means * (1 + SPREAD * rng.standard_normal(scale.clips)))
    labels = rng.integers(len(SIX), size=scale.clips, dtype=np.int32)
    streams = {
        modality: _draw_stream(np.rint(seconds * scale.rates[modality]), width, rng)
        for modality, width in scale.widths.items()
    }
    return Corpus(
        description=f"noise with the lengths of {scale.clips} clips",
        names=tuple(f"clip {number}" for number in range(scale.clips)),
        speakers=np.zeros(scale.clips, str),
        labels=labels,
        class_names=SIX,
        streams=streams,
    )


def _draw_stream(lengths: np.ndarray, width: int, rng: np.random.Generator) -> Ragged:
    lengths = lengths.astype(np.int64)
    rows = 2 * int(lengths.max())
    frames = rng.standard_normal((rows, width), np.float32)
    starts = rng.integers(rows - lengths)
    return Ragged(frames, np.zeros(rows), starts, lengths)


def write_clip(path: Path, corpus: Corpus, clip: int) -> None:
    """Write a clip as a feature file."""
    arrays = {}
    for name, stream in corpus.streams.items():
        frames = stream.clip(clip).frames
        arrays[f"{name}_features"] = frames
        arrays[f"{name}_timestamps"] = np.arange(len(frames)) / RATES[name]
    np.savez(path, **arrays)


def clip_flop(model: ModelConfig, widths: dict[str, int], frames: dict[str, int]) -> int:
    """FLOP of the matrix products of the LSTM layers for one clip, forward and backward.

    A direction of a layer multiplies [T, F] by [F, 4H] and, over the steps, [T, H] by [H, 4H].
    Backward takes twice as much, except for the gradient of the network's input, which is not used.

    Args:
        model: the layers.
        widths: feature dimension by modality.
        frames: without padding, by modality.

    >>> clip_flop(ModelConfig(), {"audio": 89, "video": 512}, {"audio": 380, "video": 57})
    1453441024
    """
    total = 0
    for modality, features in widths.items():
        for number, units in enumerate(model.units_of(modality)):
            a_column = 2 * 2 * frames[modality] * 4 * units  # both directions; multiply and add
            total += a_column * (3 * (features + units) - (0 if number else features))
            features = 2 * units
    return total
