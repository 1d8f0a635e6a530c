"""The encoder of a modality: a bidirectional LSTM stack, with or without pooling over time."""

from collections.abc import Iterator

from flax import nnx
from jax import Array

from mmattn.config import ModelConfig
from mmattn.data.stream import Stream
from mmattn.model.layers import Dropout, TemporalAttention, Training
from mmattn.model.lstm import LSTM, both, one_by_one


class Encoder(nnx.Module):
    """A bidirectional LSTM stack, or none, over the frames of one modality, and their pooling."""

    def __init__(
        self, name: str, features: int, config: ModelConfig, pools: bool, numbers: Iterator, rngs
    ):
        layers, dropouts = [], []
        for number, units in enumerate(config.units_of(name)):
            rate = config.layer_dropout if number else config.input_dropout
            dropouts.append(Dropout(rate, next(numbers), features))
            layers.append(
                [LSTM(features, units, reverse=back, rngs=rngs) for back in (False, True)]
            )
            features = 2 * units
        self.dropouts = nnx.List(dropouts)
        self.layers = nnx.List(nnx.List(pair) for pair in layers)
        self.features = features
        if pools:
            self.attention = TemporalAttention(features, config.pooling, rngs=rngs)
            self.pooled_dropout = Dropout(config.pooled_dropout, next(numbers), features)

    def encode(self, stream: Stream, training: Training | None) -> Array:
        """Embed normalised frames: [T, B, H], 0 in the padding."""
        x, length = stream.frames.swapaxes(0, 1), stream.length
        for dropout, (ahead, back) in zip(self.dropouts, self.layers, strict=True):
            x = dropout(x, training)
            directions = both if training is None else one_by_one
            x = directions(x, length, ahead.weights, back.weights)
        return x

    def pool(self, x: Array, valid: Array, training: Training | None) -> tuple[Array, Array]:
        """Frames [T, B, H] and valid [B, T] -> [B, H] and attention [B, T].

        A clip without valid frames gives zeros.
        """
        pooled, attention = self.attention(x, valid.T)
        return self.pooled_dropout(pooled, training), attention.T
