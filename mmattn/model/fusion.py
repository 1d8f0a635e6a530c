"""Fusion on a common time axis: frames of one modality attend to near frames of the other.

Both sequences carry their times in seconds, and only differences of times enter, so a shift of
both streams changes nothing and a shift of one does.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mmattn.config import ModelConfig
from mmattn.data.batches import Sequence
from mmattn.data.clips import Ragged
from mmattn.model.layers import Dropout, TemporalAttention, Training

CHUNK_S = 1.0  # seconds of frames that attend to the same slice of the other modality
NARROWEST = 0.05  # seconds, initial width of the narrowest head
ROUNDING = 1e-4  # seconds; a frame at the window's edge is near, however its time is rounded
FAR = 1e6  # seconds; the time of padding, beyond every window


class Reach(NamedTuple):
    """How cross-attention from one modality is cut into chunks."""

    chunk: int
    """Frames of a chunk."""
    others: int
    """Frames of the other modality that a chunk can see."""


def reach_of(own: Ragged, other: Ragged, window: float) -> Reach:
    """The reach with which frames of `own` see all of `other` within `window` seconds.

    It serves the clips given, and the same clips at other tempos, which have the same mean spacing,
    evenly, but other lengths. Clips may lack a modality.
    """
    chunk = max(own.most_within(CHUNK_S), 1)
    span = max(own.longest_span(chunk), (chunk - 1) * own.spacings().max(initial=0))
    seen = span + 2 * (window + ROUNDING)
    others = max(other.most_within(seen), int(seen / other.spacings().min(initial=np.inf)) + 1)
    return Reach(chunk, others + 1)  # one more, as times are rounded


class Attended(NamedTuple):
    """What the frames of one modality attend to in the other."""

    weights: Array
    """[B, T, K] mean over the heads; they sum to 1, or to 0 where no frame is near."""
    distance: Array
    """[B, T, K] seconds from the frame to each of K neighbours, later ones positive."""


class CrossAttention(nnx.Module):
    """Multi-head attention from frames of one modality to those of the other within a window.

    Head h weighs a neighbour at distance δ (s) by softmax(q·k / √d - ½ ((δ - μ_h) / σ_h)²): content
    as in Vaswani et al. (2017), and a Gaussian bias whose centre and width are learned.

    Queries are taken in chunks, each with a slice of the other modality's frames, so memory grows
    linearly with time.
    """

    def __init__(self, config: ModelConfig, reach: Reach):
        """Heads of graded widths, all centred on the frame itself.

        Args:
            config: heads and window.
            reach: see `reach_of`.
        """
        heads, window = config.cross_heads, config.cross_window
        self.centre = nnx.Param(jnp.zeros(heads))
        self.log_width = nnx.Param(jnp.log(jnp.geomspace(min(NARROWEST, window), window, heads)))
        self.heads, self.window, self.reach = heads, window + ROUNDING, reach

    def __call__(
        self, query: Array, times: Array, key: Array, value: Array, others: Array, valid: Array
    ) -> tuple[Array, Attended]:
        """Attend.

        Args:
            query: [B, T, D] of the frames that attend.
            times: [B, T] their times (s), increasing; `FAR` in the padding.
            key: [B, S, D] of the other modality's frames.
            value: [B, S, D] likewise.
            others: [B, S] their times, likewise.
            valid: [B, S] bool.

        Returns:
            [B, T, D], zeros where no valid frame is within the window; the weights.
        """
        clips, length, units = query.shape
        slots = min(self.reach.others, key.shape[1])
        padding = -length % self.reach.chunk
        times = jnp.pad(times, ((0, 0), (0, padding)), constant_values=FAR)
        times = times.reshape(clips, -1, self.reach.chunk)
        start = jax.vmap(jnp.searchsorted)(others, times[:, :, 0] - self.window)
        start = jnp.clip(start, 0, key.shape[1] - slots)
        key, value, others, valid = (_slices(x, start, slots) for x in (key, value, others, valid))
        query = jnp.pad(query, ((0, 0), (0, padding), (0, 0))).reshape(*times.shape, units)
        query, key, value = (self._split(x) for x in (query, key, value))
        distance = others[:, :, None, :] - times[..., None]
        near = (jnp.abs(distance) <= self.window) & valid[:, :, None, :]
        scores = jnp.einsum("bchqd,bchkd->bchqk", query, key) / jnp.sqrt(query.shape[-1])
        weights = jax.nn.softmax(scores + self._bias(distance), where=near[:, :, None])
        attended = jnp.einsum("bchqk,bchkd->bcqhd", weights, value)
        attended = attended.reshape(clips, -1, units)[:, :length]
        weights, distance = (
            x.reshape(clips, -1, slots)[:, :length] for x in (weights.mean(2), distance)
        )
        return attended, Attended(weights, distance)

    def _bias(self, distance: Array) -> Array:
        """[B, C, T, S] seconds -> [B, C, heads, T, S]"""
        centre, log_width = (
            x[None, None, :, None, None] for x in (self.centre[...], self.log_width[...])
        )
        return -0.5 * ((distance[:, :, None] - centre) * jnp.exp(-log_width)) ** 2

    def _split(self, x: Array) -> Array:
        """[B, C, T, D] -> [B, C, heads, T, D / heads]"""
        return x.reshape(*x.shape[:3], self.heads, -1).swapaxes(2, 3)


class CrossFusion(nnx.Module):
    """Cross-attention both ways, then temporal attention over the frames of both modalities.

    With a frame's own projection u and what it attends to a, its joint frame is
    relu(u + W [a, u ⊙ a]): the product (Kim et al., 2017) tells a coincidence from its parts. In
    the temporal attention both modalities have the same say, whatever their frame rates.
    """

    def __init__(
        self,
        features: dict[str, int],
        config: ModelConfig,
        reach: dict[str, Reach],
        stream: int,
        *,
        rngs: nnx.Rngs,
    ):
        """Build with random parameters.

        Args:
            features: of an embedded frame, by modality.
            config: heads, units, window and dropout.
            reach: by modality; see `reach_of`.
            stream: random stream of the dropout.
            rngs: of the parameters.
        """
        units = config.cross_units
        # Query, key, value and own projection at once.
        self.project = nnx.Dict(
            {name: nnx.Linear(width, 4 * units, rngs=rngs) for name, width in features.items()}
        )
        self.cross = nnx.Dict({name: CrossAttention(config, reach[name]) for name in features})
        self.join = nnx.Dict(
            {name: nnx.Linear(2 * units, units, use_bias=False, rngs=rngs) for name in features}
        )
        self.attention = TemporalAttention(units, bounded=False, rngs=rngs)
        self.dropout = Dropout(config.pooled_dropout, stream)
        self.features = units

    def __call__(
        self,
        embeddings: dict[str, Array],
        sequences: dict[str, Sequence],
        training: Training | None,
    ) -> tuple[Array, dict[str, Array], dict[str, Attended]]:
        """Fuse and pool.

        Args:
            embeddings: by modality, [T, B, H].
            sequences: by modality; their times and valid frames.
            training: see `Training`.

        Returns:
            [B, units]; by modality, the temporal attention [B, T], which sums to 1 over both
            together; by modality, what its frames attend to in the other.
        """
        times = {name: _times(sequence) for name, sequence in sequences.items()}
        parts = {
            name: jnp.split(self.project[name](x.swapaxes(0, 1)), 4, axis=-1)
            for name, x in embeddings.items()
        }
        joint, bias, attended = [], [], {}
        for name, other in (("audio", "video"), ("video", "audio")):
            query, _, _, own = parts[name]
            _, key, value, _ = parts[other]
            valid = sequences[other].valid
            found, attended[name] = self.cross[name](
                query, times[name], key, value, times[other], valid
            )
            both = jnp.concatenate([found, own * found], axis=-1)
            joint.append(jax.nn.relu(own + self.join[name](both)))
            bias.append(_same_say(sequences[name].valid))
        joint, bias = jnp.concatenate(joint, axis=1), jnp.concatenate(bias, axis=1)
        valid = jnp.concatenate([sequences["audio"].valid, sequences["video"].valid], axis=1)
        pooled, weights = self.attention(joint.swapaxes(0, 1), valid.T, bias.T)
        split = times["audio"].shape[1]
        attention = {"audio": weights.T[:, :split], "video": weights.T[:, split:]}
        return self.dropout(pooled, training), attention, attended


def _same_say(valid: Array) -> Array:
    """Scores [B, T] by which as many frames as there are weigh as much as one."""
    count = jnp.maximum(valid.sum(1, keepdims=True), 1)
    return jnp.broadcast_to(-jnp.log(count), valid.shape)


def _times(sequence: Sequence) -> Array:
    """[B, T] seconds; far away in the padding, so that times never decrease."""
    inside = jnp.arange(sequence.times.shape[-1]) < sequence.length[:, None]
    return jnp.where(inside, sequence.times, FAR)


def _slices(x: Array, start: Array, size: int) -> Array:
    """[B, S, …] and starts [B, C] -> [B, C, size, …]"""

    def one_clip(clip, starts):
        return jax.vmap(lambda at: jax.lax.dynamic_slice_in_dim(clip, at, size))(starts)

    return jax.vmap(one_clip)(x, start)
