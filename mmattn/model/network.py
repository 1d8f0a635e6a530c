"""The branched network: a batch of clips in, logits, attention and frame embeddings out."""

from itertools import count
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from mmattn.config import ModelConfig
from mmattn.data.batches import Batch, Sequence
from mmattn.model.layers import BatchNorm, Dropout, TemporalAttention, Training, time_statistics
from mmattn.model.lstm import LSTM


class BranchOutput(NamedTuple):
    """What one modality's branch makes of its frames."""

    pooled: Array
    """[B, P]"""
    attention: Array
    """[B, T] weights over the valid frames, 0 elsewhere."""
    embeddings: Array
    """[B, T, H] the frames before pooling, 0 in the padding."""


class Output(NamedTuple):
    """What the network says of a batch."""

    logits: Array
    """[B, K]"""
    head_logits: Array
    """[B, K] of the dense head: the same, unless a linear classifier has a say beside it."""
    statistics_logits: Array | None
    """[B, K] of the linear classifier on time statistics, if there is one."""
    features: Array
    """[B, P] what the head sees: the pooled branches side by side."""
    attention: dict[str, Array]
    """By modality, [B, T]."""
    embeddings: dict[str, Array]
    """By modality, [B, T, H]."""


class Branch(nnx.Module):
    """A bidirectional LSTM stack and temporal attention over one modality."""

    def __init__(self, features: int, units: tuple[int, ...], config: ModelConfig, streams, rngs):
        layers, dropouts = [], []
        for number, width in enumerate(units):
            rate = config.layer_dropout if number else config.input_dropout
            dropouts.append(Dropout(rate, next(streams)))
            layers.append(
                [LSTM(features, width, reverse=back, rngs=rngs) for back in (False, True)]
            )
            features = 2 * width
        self.dropouts = nnx.List(dropouts)
        self.layers = nnx.List(nnx.List(pair) for pair in layers)
        self.attention = TemporalAttention(features, rngs=rngs)
        self.pooled_dropout = Dropout(config.pooled_dropout, next(streams))
        self.features = features

    def __call__(self, sequence: Sequence, training: Training | None) -> BranchOutput:
        """Run over normalised frames; a sequence of length 0 gives zeros."""
        x = sequence.frames.swapaxes(0, 1)
        for dropout, (ahead, back) in zip(self.dropouts, self.layers, strict=True):
            x = dropout(x, training)
            x = jnp.concatenate([ahead(x, sequence.length), back(x, sequence.length)], axis=-1)
        pooled, attention = self.attention(x, sequence.valid.T)
        pooled = self.pooled_dropout(pooled, training)
        return BranchOutput(pooled, attention.T, x.swapaxes(0, 1))


class StatisticsClassifier(nnx.Module):
    """A linear classifier on time statistics of the frames, blind to their order.

    It says what a linear baseline can say, so that the other branches need not learn it.
    """

    gain = 5.0  # Adam's steps have a fixed size: larger inputs are a larger learning rate

    def __init__(self, features: int, classes: int, rngs: nnx.Rngs):
        self.norm = BatchNorm(5 * features)
        zeros = nnx.initializers.zeros
        self.linear = nnx.Linear(5 * features, classes, kernel_init=zeros, rngs=rngs)

    def __call__(
        self, sequences: list[Sequence], training: Training | None, weight: Array
    ) -> Array:
        """Logits [B, K] from normalised frames."""
        statistics = [
            time_statistics(sequence.frames.swapaxes(0, 1), sequence.valid.T)
            for sequence in sequences
        ]
        x = self.norm(jnp.concatenate(statistics, axis=-1), training, weight)
        return self.linear(self.gain * x)


class Network(nnx.Module):
    """One branch a modality, joined by concatenation, then a dense head."""

    def __init__(self, config: ModelConfig, widths: dict[str, int], classes: int, rngs: nnx.Rngs):
        """Build with random parameters.

        Args:
            config: sizes and dropout.
            widths: features of a frame, by modality.
            classes: number of classes, K.
            rngs: of the parameters.
        """
        streams = count()
        units = {"audio": config.audio_units, "video": config.video_units}
        self.branches = nnx.Dict(
            {m: Branch(widths[m], units[m], config, streams, rngs) for m in config.modalities}
        )
        features = sum(branch.features for branch in self.branches.values())
        dense, norms, dropouts = [], [], []
        for width, rate in zip(config.head_units, config.head_dropout, strict=True):
            dense.append(nnx.Linear(features, width, rngs=rngs))
            norms.append(BatchNorm(width))
            dropouts.append(Dropout(rate, next(streams)))
            features = width
        self.dense, self.norms, self.dropouts = nnx.List(dense), nnx.List(norms), nnx.List(dropouts)
        self.classifier = nnx.Linear(features, classes, rngs=rngs)
        frames = sum(widths[modality] for modality in config.modalities)
        self.statistics = StatisticsClassifier(frames, classes, rngs) if config.statistics else None

    def __call__(self, batch: Batch, training: Training | None = None) -> Output:
        """Classify a batch; with `training` given, dropout and batch statistics are on."""
        outputs = {
            name: branch(getattr(batch, name), training) for name, branch in self.branches.items()
        }
        x = features = jnp.concatenate([output.pooled for output in outputs.values()], axis=-1)
        for dense, norm, dropout in zip(self.dense, self.norms, self.dropouts, strict=True):
            x = dropout(norm(jax.nn.relu(dense(x)), training, batch.weight), training)
        logits = head_logits = self.classifier(x)
        statistics_logits = None
        if self.statistics is not None:
            sequences = [getattr(batch, name) for name in self.branches]
            statistics_logits = self.statistics(sequences, training, batch.weight)
            logits = log_mean_probability(head_logits, statistics_logits)
        return Output(
            logits,
            head_logits,
            statistics_logits,
            features,
            {name: output.attention for name, output in outputs.items()},
            {name: output.embeddings for name, output in outputs.items()},
        )


def log_mean_probability(a: Array, b: Array) -> Array:
    """Logits [B, K] whose softmax is the mean of the softmax of both."""
    return jnp.logaddexp(jax.nn.log_softmax(a), jax.nn.log_softmax(b)) - jnp.log(2.0)
