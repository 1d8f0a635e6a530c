"""What a fusion gives."""

from typing import NamedTuple

from jax import Array


class Attended(NamedTuple):
    """What the frames of one modality attend to in another."""

    weights: Array
    """[B, T, K] mean over the heads; they sum to 1, or to 0 where no frame is near."""
    distance: Array
    """[B, T, K] seconds from the frame to each of K neighbours, later ones positive."""


class Fused(NamedTuple):
    """One vector a clip, and what the fusion attended to."""

    features: Array
    """[B, P]"""
    attention: dict[str, Array]
    """By modality, [B, T] temporal attention over the valid frames, 0 elsewhere."""
    attended: dict[str, dict[str, Attended]]
    """By modality, what its frames attend to in each other one; empty without cross-attention."""
