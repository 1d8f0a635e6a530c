"""The branched network: a batch of clips in, logits, attention and frame embeddings out."""

from collections.abc import Hashable
from itertools import count
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from mmattn.config import ModelConfig
from mmattn.data.batches import Batch
from mmattn.data.stream import Stream
from mmattn.model.fusion import fusion_of
from mmattn.model.fusion.fused import Attended
from mmattn.model.layers import BatchNorm, Dropout, Training, time_statistics


class Output(NamedTuple):
    """What the network says of a batch."""

    logits: Array
    """[B, K]"""
    head_logits: Array
    """[B, K] of the dense head: the same, unless a linear classifier has a say beside it."""
    statistics_logits: Array | None
    """[B, K] of the linear classifier on time statistics, if there is one."""
    features: Array
    """[B, P] what the head sees: the pooled branches side by side, or the pooled joint frames."""
    attention: dict[str, Array]
    """By modality, [B, T] temporal attention over the valid frames, 0 elsewhere."""
    embeddings: dict[str, Array]
    """By modality, [B, T, H] the frames after the LSTM layers, 0 in the padding."""
    attended: dict[str, dict[str, Attended]]
    """By modality, what its frames attend to in each other one; empty without cross-attention."""


class StatisticsClassifier(nnx.Module):
    """A linear classifier on time statistics of the frames, blind to their order.

    It says what a linear baseline can say, so that the other branches need not learn it.
    """

    gain = 5.0  # Adam's steps have a fixed size: larger inputs are a larger learning rate

    def __init__(self, features: int, classes: int, rngs: nnx.Rngs):
        self.norm = BatchNorm(5 * features)
        zeros = nnx.initializers.zeros
        self.linear = nnx.Linear(5 * features, classes, kernel_init=zeros, rngs=rngs)

    def __call__(self, streams: list[Stream], training: Training | None, weight: Array) -> Array:
        """Logits [B, K] from normalised frames."""
        statistics = [
            time_statistics(stream.frames.swapaxes(0, 1), stream.valid.T) for stream in streams
        ]
        x = self.norm(jnp.concatenate(statistics, axis=-1), training, weight)
        return self.linear(self.gain * x)


class Network(nnx.Module):
    """An encoder a modality, fusion over time, then a dense head."""

    def __init__(
        self,
        config: ModelConfig,
        widths: dict[str, int],
        classes: int,
        rngs: nnx.Rngs,
        geometry: Hashable = None,
    ):
        """Build with random parameters.

        Args:
            config: sizes and dropout.
            widths: features of a frame, by modality.
            classes: number of classes, K.
            rngs: of the parameters.
            geometry: what the fusion must know of the clips; see its `geometry`.
        """
        streams, fusion = count(), fusion_of(config.fusion)
        self.branches = nnx.Dict(
            {
                name: fusion.Encoder(widths[name], config.units_of(name), config, streams, rngs)
                for name in config.modalities
            }
        )
        embedded = {name: encoder.features for name, encoder in self.branches.items()}
        self.fusion = fusion(embedded, config, geometry, streams, rngs)
        features = self.fusion.features
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
        streams = {name: batch.streams[name] for name in self.branches}
        embeddings = {
            name: encoder.encode(streams[name], training) for name, encoder in self.branches.items()
        }
        fused = self.fusion(self.branches, embeddings, streams, training)
        x = fused.features
        for dense, norm, dropout in zip(self.dense, self.norms, self.dropouts, strict=True):
            x = dropout(norm(jax.nn.relu(dense(x)), training, batch.weight), training)
        logits = head_logits = self.classifier(x)
        statistics_logits = None
        if self.statistics is not None:
            statistics_logits = self.statistics([*streams.values()], training, batch.weight)
            logits = log_mean_probability(head_logits, statistics_logits)
        return Output(
            logits,
            head_logits,
            statistics_logits,
            fused.features,
            fused.attention,
            {name: x.swapaxes(0, 1) for name, x in embeddings.items()},
            fused.attended,
        )


def log_mean_probability(a: Array, b: Array) -> Array:
    """Logits [B, K] whose softmax is the mean of the softmax of both."""
    return jnp.logaddexp(jax.nn.log_softmax(a), jax.nn.log_softmax(b)) - jnp.log(2.0)
