"""The branched network: a batch of clips in, logits, attention and frame embeddings out."""

from itertools import count
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from mmattn.config import ModelConfig
from mmattn.data.batches import Batch, Sequence
from mmattn.model.fusion import Attended, CrossFusion, Reach
from mmattn.model.layers import BatchNorm, Dropout, TemporalAttention, Training, time_statistics
from mmattn.model.lstm import LSTM


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
    attended: dict[str, Attended]
    """By modality, what its frames attend to in the other one; empty without cross-attention."""


class Encoder(nnx.Module):
    """A bidirectional LSTM stack over the frames of one modality."""

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
        self.features = features

    def encode(self, sequence: Sequence, training: Training | None) -> Array:
        """Embed normalised frames: [T, B, H], 0 in the padding."""
        x = sequence.frames.swapaxes(0, 1)
        for dropout, (ahead, back) in zip(self.dropouts, self.layers, strict=True):
            x = dropout(x, training)
            x = jnp.concatenate([ahead(x, sequence.length), back(x, sequence.length)], axis=-1)
        return x


class Branch(Encoder):
    """An encoder and temporal attention over its frames."""

    def __init__(self, features: int, units: tuple[int, ...], config: ModelConfig, streams, rngs):
        super().__init__(features, units, config, streams, rngs)
        self.attention = TemporalAttention(self.features, rngs=rngs)
        self.pooled_dropout = Dropout(config.pooled_dropout, next(streams))

    def pool(self, x: Array, valid: Array, training: Training | None) -> tuple[Array, Array]:
        """Frames [T, B, H] and valid [B, T] -> [B, H] and attention [B, T].

        A clip without valid frames gives zeros.
        """
        pooled, attention = self.attention(x, valid.T)
        return self.pooled_dropout(pooled, training), attention.T


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
    """An encoder a modality, fusion over time, then a dense head."""

    def __init__(
        self,
        config: ModelConfig,
        widths: dict[str, int],
        classes: int,
        rngs: nnx.Rngs,
        reach: dict[str, Reach] | None = None,
    ):
        """Build with random parameters.

        Args:
            config: sizes and dropout.
            widths: features of a frame, by modality.
            classes: number of classes, K.
            rngs: of the parameters.
            reach: for cross-attention: see `fusion.CrossFusion`.
        """
        streams = count()
        units = {"audio": config.audio_units, "video": config.video_units}
        branch = Branch if config.fusion == "concat" else Encoder
        self.branches = nnx.Dict(
            {m: branch(widths[m], units[m], config, streams, rngs) for m in config.modalities}
        )
        embedded = {name: branch.features for name, branch in self.branches.items()}
        features = sum(embedded.values())
        fusion = None
        if config.fusion == "cross":
            fusion = CrossFusion(embedded, config, reach, next(streams), rngs=rngs)
            features = fusion.features
        self.fusion = fusion
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
        sequences = {name: getattr(batch, name) for name in self.branches}
        embeddings = {
            name: branch.encode(sequences[name], training) for name, branch in self.branches.items()
        }
        if self.fusion is not None:
            features, attention, attended = self.fusion(embeddings, sequences, training)
        else:
            pooled = {
                name: branch.pool(embeddings[name], sequences[name].valid, training)
                for name, branch in self.branches.items()
            }
            features = jnp.concatenate([x for x, _ in pooled.values()], axis=-1)
            attention, attended = {name: weights for name, (_, weights) in pooled.items()}, {}
        x = features
        for dense, norm, dropout in zip(self.dense, self.norms, self.dropouts, strict=True):
            x = dropout(norm(jax.nn.relu(dense(x)), training, batch.weight), training)
        logits = head_logits = self.classifier(x)
        statistics_logits = None
        if self.statistics is not None:
            statistics_logits = self.statistics([*sequences.values()], training, batch.weight)
            logits = log_mean_probability(head_logits, statistics_logits)
        return Output(
            logits,
            head_logits,
            statistics_logits,
            features,
            attention,
            {name: x.swapaxes(0, 1) for name, x in embeddings.items()},
            attended,
        )


def log_mean_probability(a: Array, b: Array) -> Array:
    """Logits [B, K] whose softmax is the mean of the softmax of both."""
    return jnp.logaddexp(jax.nn.log_softmax(a), jax.nn.log_softmax(b)) - jnp.log(2.0)
