"""Fusion on a common time axis: frames of one modality attend to nearby frames of the others.

All streams have times in seconds, and only time differences enter: shifting all streams changes
nothing, shifting one does.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from itertools import permutations
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from mmattn.config import ModelConfig
from mmattn.data.stream import PADDING, Ragged
from mmattn.model.fusion.base import Attended, Fused, Fusion
from mmattn.model.initial import zeros
from mmattn.model.layers import Dropout, Linear, TemporalAttention

CHUNK_S = 1.0  # seconds of frames that attend to the same slice of the other modality
NARROWEST = 0.05  # seconds, initial width of the narrowest head
ROUNDING = 1e-4  # seconds; keeps a frame at the window's edge inside despite rounding


class Window(NamedTuple):
    """How attention from one modality to another is cut into chunks."""

    chunk: int  # frames per chunk
    others: int  # frames of the other modality that a chunk can see


def window_of(
    own: Ragged, other: Ragged, window: float, round_up: Callable[[int], int] = lambda n: n
) -> Window:
    """The chunks in which frames of `own` see all frames of `other` within `window` seconds.

    It is valid for the given clips, and for the same clips at other tempos: these have the same
    mean spacing, evenly, but other lengths. Clips may lack a modality.
    """
    chunk = round_up(max(own.most_within(CHUNK_S), 1))
    span = max(own.longest_span(chunk), (chunk - 1) * own.spacings().max(initial=0))
    seen = span + 2 * (window + ROUNDING)
    others = max(other.most_within(seen), int(seen / other.spacings().min(initial=np.inf)) + 1)
    return Window(chunk, round_up(others + 1))  # one more, as times are rounded


class CrossAttention(nnx.Module):
    """Multi-head attention from frames of one modality to those of another within a window.

    Head h weighs a neighbour at distance δ (s) by softmax(q·k / √d - ½ ((δ - μ_h) / σ_h)²): content
    as in Vaswani et al. (2017), and a Gaussian bias whose centre and width are learned.

    Queries are taken in chunks, each with a slice of the other modality's frames, so memory grows
    linearly with time.
    """

    def __init__(self, config: ModelConfig, chunks: Window):
        """Heads of graded widths, all centred on the frame itself; `chunks` is from `window_of`."""
        heads, window = config.cross_heads, config.cross_window
        self.centre = nnx.Param(zeros(None, (heads,)))
        widths = np.geomspace(min(NARROWEST, window), window, heads)
        self.log_width = nnx.Param(jax.device_put(np.log(widths).astype(np.float32)))
        self.heads, self.window, self.chunks = heads, window + ROUNDING, chunks

    def __call__(
        self, query: Array, times: Array, key: Array, value: Array, others: Array, valid: Array
    ) -> tuple[Array, Attended]:
        """Attend from query [B, T, D] at `times` [B, T] to key and value [B, S, D] at `others`.

        Times are increasing seconds, `PADDING` in the padding; `valid` [B, S] belongs to the keys.

        Returns:
            [B, T, D], zeros if no valid frame is within the window; the weights.
        """
        clips, length, units = query.shape
        slots = min(self.chunks.others, key.shape[1])
        padding = (0, -length % self.chunks.chunk)
        times = jnp.pad(times, ((0, 0), padding), constant_values=PADDING)
        times = times.reshape(clips, -1, self.chunks.chunk)
        start = jax.vmap(jnp.searchsorted)(others, times[:, :, 0] - self.window)
        start = jnp.clip(start, 0, key.shape[1] - slots)
        cut = jax.vmap(jax.vmap(partial(lax.dynamic_slice_in_dim, slice_size=slots), (None, 0)))
        key, value, others, valid = (cut(x, start) for x in (key, value, others, valid))
        query = jnp.pad(query, ((0, 0), padding, (0, 0))).reshape(*times.shape, units)
        query, key, value = (  # [B, chunks, heads, frames, D / heads]
            x.reshape(*x.shape[:3], self.heads, -1).swapaxes(2, 3) for x in (query, key, value)
        )
        distance = others[:, :, None, :] - times[..., None]
        near = (jnp.abs(distance) <= self.window) & valid[:, :, None, :]
        scores = jnp.einsum("bchqd,bchkd->bchqk", query, key) / jnp.sqrt(query.shape[-1])
        centre, log_width = (
            x[...][None, None, :, None, None] for x in (self.centre, self.log_width)
        )
        bias = -0.5 * ((distance[:, :, None] - centre) * jnp.exp(-log_width)) ** 2
        weights = jax.nn.softmax(scores + bias, where=near[:, :, None])
        attended = jnp.einsum("bchqk,bchkd->bcqhd", weights, value)
        attended = attended.reshape(clips, -1, units)[:, :length]
        weights, distance = (
            x.reshape(clips, -1, slots)[:, :length] for x in (weights.mean(2), distance)
        )
        return attended, Attended(weights, distance)


class Cross(Fusion):
    """Each modality attends to every other, then temporal attention over the frames of all.

    With a frame's own projection u and its attention output a over the others, its joint frame is
    relu(u + W [a, u ⊙ a]): the product (Kim et al., 2017) separates a coincidence from its parts.
    In the temporal attention all modalities have equal weight, whatever their frame rates.
    """

    uses_times = True

    def __init__(self, features, config, geometry, numbers, rngs):
        """See `Fusion`."""
        units, others = config.cross_units, len(features) - 1
        # Query, key, value and own projection in one layer.
        self.project = nnx.Dict(
            {name: Linear(size, 4 * units, rngs=rngs) for name, size in features.items()}
        )
        self.cross = nnx.Dict({name: CrossAttention(config, chunks) for name, chunks in geometry})
        linear = partial(Linear, 2 * units * others, units, use_bias=False, rngs=rngs)
        self.join = nnx.Dict({name: linear() for name in features if others})
        self.attention = TemporalAttention(units, config.pooling, bounded=False, rngs=rngs)
        self.dropout = Dropout(config.pooled_dropout, next(numbers), units)
        self.features = units

    @staticmethod
    def geometry(
        streams: Mapping[str, Ragged],
        config: ModelConfig,
        round_up: Callable[[int], int] = lambda n: n,
    ) -> tuple[tuple[str, Window], ...]:
        """The chunks of each ordered pair of the model's modalities, for these clips."""
        names, window = config.modalities, config.cross_window
        return tuple(
            (
                pair_name(one, other, names),
                window_of(streams[one], streams[other], window, round_up),
            )
            for one, other in permutations(names, 2)
        )

    def __call__(self, encoders, embeddings, streams, training) -> Fused:
        """See `Fusion`; the temporal attention sums to 1 over all modalities together."""
        parts = {
            name: jnp.split(self.project[name](x.swapaxes(0, 1)), 4, axis=-1)
            for name, x in sorted(embeddings.items())
        }
        joint, bias, attended = [], [], dict[str, dict[str, Attended]]()
        for name, (query, _, _, own) in parts.items():
            _, times, valid = streams[name]
            found, attended[name] = [], {}
            for other, (_, key, value, _) in parts.items():
                if other != name:
                    attend, (_, *there) = self.cross[pair_name(name, other, parts)], streams[other]
                    one, attended[name][other] = attend(query, times, key, value, *there)
                    found.append(one)
            if found:
                both = jnp.concatenate([*found, *(own * one for one in found)], axis=-1)
                own = own + self.join[name](both)
            joint.append(jax.nn.relu(own))
            # Biases that give each modality the same total weight, however many frames it has.
            count = jnp.maximum(valid.sum(1, keepdims=True), 1)
            bias.append(jnp.broadcast_to(-jnp.log(count), valid.shape))
        joint, bias = jnp.concatenate(joint, axis=1), jnp.concatenate(bias, axis=1)
        valid = jnp.concatenate([streams[name].valid for name in parts], axis=1)
        pooled, weights = self.attention(joint.swapaxes(0, 1), valid.T, bias.T)
        ends = np.cumsum([len(embeddings[name]) for name in parts])[:-1]
        attention = dict(zip(parts, jnp.split(weights.T, ends, axis=1), strict=True))
        return Fused(self.dropout(pooled, training), attention, attended, {})


def pair_name(name: str, other: str, modalities: Collection[str]) -> str:
    """The name of the attention from one modality to another; with two, the first's name."""
    return name if len(modalities) == 2 else f"{name}-{other}"  # no modality name has a -
