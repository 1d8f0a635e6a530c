"""The smaller parts: temporal attention, batch norm over devices, dropout by clip."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from mmattn.config import Pooling
from mmattn.model.initial import Keys, glorot_uniform, lecun_normal, zeros

# Flax's layer, which also takes `Keys` as its rngs.
Linear: Callable[..., nnx.Linear] = partial(nnx.Linear, kernel_init=lecun_normal, bias_init=zeros)


class Training(NamedTuple):
    """What a forward pass needs besides the clips in training; None means prediction."""

    uniform: Array  # [B, L, F] from `draw_for_dropout`, for each clip
    sum_over_devices: Callable  # sums a tree of arrays over the devices


def draw_for_dropout(key: Array, layers: int, features: int) -> Array:
    """Uniform numbers for all dropout of one clip: [L, F] in [0, 1), from the clip's own key.

    Thus dropout does not depend on how clips are divided over devices. `Network.dropout_shape`
    gives L and F.
    """

    def draw(layer):
        return jax.random.uniform(jax.random.fold_in(key, layer), (features,))

    return jax.vmap(draw)(jnp.arange(layers))


class TemporalAttention(nnx.Module):
    """Weighted mean over time: softmax over the valid frames of the score tanh(x·w), or x·w.

    A bounded score, as in the earlier system, limits the ratio of two frames' weights to e².
    With pooling "mean" all scores are 0, and there is no w.
    """

    def __init__(
        self,
        features: int,
        pooling: Pooling = "attention",
        bounded: bool = True,
        *,
        rngs: nnx.Rngs | Keys,
    ):
        self.bounded = bounded
        learned = pooling == "attention"
        self.kernel = nnx.Param(glorot_uniform(rngs.params(), (features, 1))) if learned else None

    def __call__(self, x: Array, valid: Array, bias: Array | float = 0.0) -> tuple[Array, Array]:
        """Pool frames x [T, B, H] where valid [T, B]; `bias` [T, B] is added to the scores.

        Returns:
            [B, H] the mean and [T, B] the weights: they sum to 1 over the valid frames and are
            0 elsewhere; a clip without any valid frame gives zeros (and finite gradients).
        """
        scores = jnp.zeros(valid.shape) if self.kernel is None else (x @ self.kernel[...])[..., 0]
        scores = (jnp.tanh(scores) if self.bounded else scores) + bias
        weights = jax.nn.softmax(scores, axis=0, where=valid)
        return jnp.einsum("tb,tbh->bh", weights, x), weights


def functionals(x: Array, valid: Array) -> Array:
    """Mean, standard deviation, minimum, maximum, mean absolute change over time of each feature.

    From frames [T, B, F] and valid [T, B] bool: [B, 5 F]; zeros for a clip without any valid frame.
    A change is counted if both neighbours are valid.
    """
    inside = valid[..., None]
    count = jnp.maximum(inside.sum(0), 1)
    mean = jnp.where(inside, x, 0).sum(0) / count
    variance = jnp.where(inside, (x - mean) ** 2, 0).sum(0) / count
    # The square root has no finite gradient at 0.
    deviation = jnp.sqrt(jnp.maximum(variance, 1e-12))
    least, most = jnp.where(inside, x, jnp.inf).min(0), jnp.where(inside, x, -jnp.inf).max(0)
    both = inside[1:] & inside[:-1]
    change = jnp.where(both, jnp.abs(x[1:] - x[:-1]), 0).sum(0) / jnp.maximum(both.sum(0), 1)
    found = jnp.concatenate([mean, deviation, least, most, change], axis=-1)
    return jnp.where(valid.any(0)[:, None], found, 0)


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe & Szegedy, 2015) of [B, F] over the clips of all devices.

    Unlike `flax.nnx.BatchNorm`, which averages the means of the devices, it sums over devices
    before it divides: a batch that fills only some devices, or ends in padding, has the statistics
    of its clips, so the number of devices does not change the training.
    """

    momentum = 0.9
    epsilon = 1e-3

    def __init__(self, features: int):
        ones = jax.device_put(np.ones(features, np.float32))
        self.scale = nnx.Param(ones)
        self.bias = nnx.Param(zeros(None, ones.shape))
        self.mean = nnx.BatchStat(zeros(None, ones.shape))
        self.var = nnx.BatchStat(ones)

    def __call__(self, x: Array, training: Training | None, weight: Array) -> Array:
        """Normalise x [B, F] by the batch in training, by the running statistics otherwise.

        `weight` [B] is 1 for a clip, 0 for padding.
        """
        if training is None:
            mean, var = self.mean[...], self.var[...]
        else:
            sums = jnp.stack([weight @ x, weight @ (x * x)])
            sums, count = training.sum_over_devices((sums, weight.sum()))
            mean, square = sums / count
            var = jnp.maximum(square - mean * mean, 0.0)
            self.mean[...] += (1 - self.momentum) * (lax.stop_gradient(mean) - self.mean[...])
            self.var[...] += (1 - self.momentum) * (lax.stop_gradient(var) - self.var[...])
        return (x - mean) * lax.rsqrt(var + self.epsilon) * self.scale[...] + self.bias[...]


class Dropout(nnx.Module):
    """Dropout whose mask is drawn per clip and feature and kept over time.

    The variational form of Gal & Ghahramani (2016), which is also what `dropout=` of a Keras LSTM
    does. `number` identifies the layer within the network.
    """

    def __init__(self, rate: float, number: int, features: int):
        self.rate, self.number, self.features = rate, number, features

    def __call__(self, x: Array, training: Training | None) -> Array:
        """Zero a fraction `rate` of the features of [B, F] or [T, B, F] and scale up the others."""
        if training is None or self.rate == 0:
            return x
        keep = training.uniform[:, self.number, : self.features] < 1 - self.rate
        return jnp.where(keep, x / (1 - self.rate), 0)
