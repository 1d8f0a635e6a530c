"""The branched network: a batch of clips in, logits, attention and frame embeddings out."""

from collections.abc import Hashable, Iterator, Mapping
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
from mmattn.model.fusion.late import Late
from mmattn.model.initial import Keys, zeros
from mmattn.model.layers import BatchNorm, Dropout, Linear, Training, functionals

# Weight, in the batch norm of a modality's classifier, of a clip without that modality: almost 0,
# but a batch of only such clips still has a mean.
LACKING = 1e-6


class Vote(NamedTuple):
    """A classifier's output for a batch."""

    logits: Array  # [B, K]
    head: Array  # [B, K] of the dense head: equal to logits without a linear classifier
    statistics: Array | None  # [B, K] of the linear classifier on functionals over time


class Output(NamedTuple):
    """The network's output for a batch."""

    logits: Array  # [B, K]
    joint: Vote | None  # of the classifier on all modalities together; None for fusion late
    votes: dict[str, Vote]  # of the single-modality classifiers, if any
    embeddings: dict[str, Array]  # [B, T, H] the frames after the LSTM layers, 0 in the padding
    fused: Fused  # what the head sees, and the attention behind it


class StatisticsClassifier(nnx.Module):
    """A linear classifier on functionals of the frames over time, which ignores their order.

    It learns what a linear baseline can, so that the other branches need not.
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


class Classifier(nnx.Module):
    """A dense head on pooled features and, optionally, a linear classifier beside it."""

    def __init__(
        self,
        features: int,
        frames: int,
        classes: int,
        config: ModelConfig,
        numbers: Iterator[int],
        rngs: nnx.Rngs | Keys,
    ):
        """Build for pooled features; `frames` is the feature dimension of the frames, 0 without a
        linear classifier on them."""
        sizes = [features, *config.head_units]
        self.dense = nnx.List(Linear(*pair, rngs=rngs) for pair in pairwise(sizes))
        self.norms = nnx.List(BatchNorm(units) for units in config.head_units)
        self.dropouts = nnx.List(
            Dropout(rate, next(numbers), units)
            for rate, units in zip(config.head_dropout, config.head_units, strict=True)
        )
        self.classifier = Linear(sizes[-1], classes, rngs=rngs)
        self.statistics = StatisticsClassifier(frames, classes, rngs) if frames else None

    def classify(
        self, x: Array, streams: list[Stream], training: Training | None, weight: Array
    ) -> Vote:
        """Classify pooled features [B, H] and the streams they come from."""
        for dense, norm, dropout in zip(self.dense, self.norms, self.dropouts, strict=True):
            x = dropout(norm(jax.nn.relu(dense(x)), training, weight), training)
        head = self.classifier(x)
        if self.statistics is None:
            return Vote(head, head, None)
        statistics = self.statistics(streams, training, weight)
        # The mean of both classifiers' probabilities.
        both = jax.nn.log_softmax(head), jax.nn.log_softmax(statistics)
        return Vote(jnp.logaddexp(*both) - jnp.log(2.0), head, statistics)


class Network(Classifier):
    """An encoder for each modality, fusion over time, and a classifier: joint or, late, of each.

    With a branch loss, each modality has a classifier besides the joint one. The joint classifier
    is the network itself, so that its parameters keep the names used in checkpoints.
    """

    def __init__(
        self,
        config: ModelConfig,
        dimensions: Mapping[str, int],
        classes: int,
        rngs: nnx.Rngs | Keys,
        geometry: Hashable = None,
    ):
        """Build with random parameters.

        `dimensions` are feature dimensions by modality; `geometry` is from `Fusion.geometry`.
        """
        numbers, fusion = count(), fusion_of(config.fusion)
        own = fusion.late or config.branch_loss > 0
        self.branches = nnx.Dict(
            {
                name: Encoder(name, dimensions[name], config, fusion.pools or own, numbers, rngs)
                for name in config.modalities
            }
        )
        embedded = {name: encoder.features for name, encoder in self.branches.items()}
        self.fusion = fusion(embedded, config, geometry, numbers, rngs)
        frames = {name: dimensions[name] * config.statistics for name in config.modalities}
        if not fusion.late:
            total = sum(frames.values())
            super().__init__(self.fusion.features, total, classes, config, numbers, rngs)
            frames = dict.fromkeys(
                frames, 0
            )  # a linear classifier beside a head does not train its encoder
        self.classifiers = nnx.Dict(
            {
                name: Classifier(embedded[name], frames[name], classes, config, numbers, rngs)
                for name in (config.modalities if own else ())
            }
        )

    @property
    def dropout_shape(self) -> tuple[int, int]:
        """The number of dropout layers, and the maximum number of their features."""
        layers = [layer for _, layer in nnx.iter_modules(self) if isinstance(layer, Dropout)]
        return len(layers), max((layer.features for layer in layers if layer.rate), default=0)

    def __call__(self, batch: Batch, training: Training | None = None) -> Output:
        """Classify a batch; with `training` given, dropout and batch statistics are on."""
        streams = {name: batch.streams[name] for name in self.branches}
        embeddings = {
            name: encoder.encode(streams[name], training) for name, encoder in self.branches.items()
        }
        fused = self.fusion(self.branches, embeddings, streams, training)
        votes = {}
        for name, classifier in self.classifiers.items():
            stream = streams[name]
            if name in fused.pooled:
                pooled = fused.pooled[name]
            else:
                pooled, _ = self.branches[name].pool(embeddings[name], stream.valid, training)
            weight = batch.weight * jnp.where(stream.valid.any(1), 1, LACKING)
            votes[name] = classifier.classify(pooled, [stream], training, weight)
        if isinstance(self.fusion, Late):
            joint = None
            logits = self.fusion.join({name: vote.logits for name, vote in votes.items()}, streams)
        else:
            joint = self.classify(fused.features, [*streams.values()], training, batch.weight)
            logits = joint.logits
        embeddings = {name: x.swapaxes(0, 1) for name, x in embeddings.items()}
        return Output(logits, joint, votes, embeddings, fused)
