"""The branched network: a batch of clips in, logits, attention and frame embeddings out."""

from collections.abc import Hashable, Mapping
from itertools import count, pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from mmattn.config import ModelConfig
from mmattn.data.batches import Batch
from mmattn.data.stream import Stream
from mmattn.model.encoder import Encoder
from mmattn.model.fusion import fusion_of
from mmattn.model.fusion.base import Fused
from mmattn.model.initial import Keys, zeros
from mmattn.model.layers import BatchNorm, Dropout, Linear, Training, functionals


class Output(NamedTuple):
    """What the network says of a batch."""

    logits: Array  # [B, K]
    head_logits: Array  # [B, K] of the dense head: the same, unless there is a linear classifier
    statistics_logits: Array | None  # [B, K] of the linear classifier on functionals over time
    embeddings: dict[str, Array]  # [B, T, H] the frames after the LSTM layers, 0 in the padding
    fused: Fused  # what the head sees, and the attention behind it


class StatisticsClassifier(nnx.Module):
    """A linear classifier on functionals of the frames over time, blind to their order.

    It says what a linear baseline can say, so that the other branches need not learn it.
    """

    gain = 5.0  # Adam's steps have a fixed size: larger inputs are a larger learning rate

    def __init__(self, features: int, classes: int, rngs: nnx.Rngs | Keys):
        self.norm = BatchNorm(5 * features)
        self.linear = Linear(5 * features, classes, kernel_init=zeros, rngs=rngs)

    def __call__(self, streams: list[Stream], training: Training | None, weight: Array) -> Array:
        """Logits [B, K] from normalised frames."""
        x = [functionals(stream.frames.swapaxes(0, 1), stream.valid.T) for stream in streams]
        x = self.norm(jnp.concatenate(x, axis=-1), training, weight)
        return self.linear(self.gain * x)


class Network(nnx.Module):
    """An encoder a modality, fusion over time, then a dense head."""

    def __init__(
        self,
        config: ModelConfig,
        dimensions: Mapping[str, int],
        classes: int,
        rngs: nnx.Rngs | Keys,
        geometry: Hashable = None,
    ):
        """Build with random parameters.

        `dimensions` are a frame's features by modality; `geometry` is of `Fusion.geometry`.
        """
        numbers, fusion = count(), fusion_of(config.fusion)
        self.branches = nnx.Dict(
            {
                name: Encoder(name, dimensions[name], config, fusion.pools, numbers, rngs)
                for name in config.modalities
            }
        )
        embedded = {name: encoder.features for name, encoder in self.branches.items()}
        self.fusion = fusion(embedded, config, geometry, numbers, rngs)
        sizes = [self.fusion.features, *config.head_units]
        self.dense = nnx.List(Linear(*pair, rngs=rngs) for pair in pairwise(sizes))
        self.norms = nnx.List(BatchNorm(units) for units in config.head_units)
        self.dropouts = nnx.List(
            Dropout(rate, next(numbers), units)
            for rate, units in zip(config.head_dropout, config.head_units, strict=True)
        )
        self.classifier = Linear(sizes[-1], classes, rngs=rngs)
        frames = sum(dimensions[name] for name in config.modalities)
        self.statistics = StatisticsClassifier(frames, classes, rngs) if config.statistics else None

    @property
    def dropout_shape(self) -> tuple[int, int]:
        """How many layers have dropout, and of how many features at most."""
        layers = [layer for _, layer in nnx.iter_modules(self) if isinstance(layer, Dropout)]
        return len(layers), max((layer.features for layer in layers if layer.rate), default=0)

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
        if self.statistics is not None:  # the mean of both classifiers' probabilities
            statistics_logits = self.statistics([*streams.values()], training, batch.weight)
            both = jax.nn.log_softmax(head_logits), jax.nn.log_softmax(statistics_logits)
            logits = jnp.logaddexp(*both) - jnp.log(2.0)
        embeddings = {name: x.swapaxes(0, 1) for name, x in embeddings.items()}
        return Output(logits, head_logits, statistics_logits, embeddings, fused)
