"""The interface of a fusion, and its output."""

from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

from flax import nnx
from jax import Array

from mmattn.config import ModelConfig
from mmattn.data.stream import Ragged, Stream
from mmattn.model.encoder import Encoder
from mmattn.model.layers import Training


class Attended(NamedTuple):
    """Attention of the frames of one modality to another."""

    weights: Array  # [B, T, K] mean over the heads; they sum to 1, or to 0 if no frame is near
    distance: Array  # [B, T, K] seconds from the frame to each of K neighbours, later ones positive


class Fused(NamedTuple):
    """One vector per clip, and the attention behind it."""

    features: Array  # [B, P]
    attention: dict[str, Array]  # [B, T] over time, of the valid frames, 0 elsewhere
    attended: dict[str, dict[str, Attended]]  # by modality and other modality; may be empty
    pooled: dict[str, Array]  # [B, H] by modality; empty if they are not pooled separately


class Fusion(nnx.Module):
    """Makes one vector per clip, of dimension `features`, from all modalities' embedded frames."""

    pools = False  # whether each encoder has its own temporal attention; see `Encoder.pool`
    uses_times = False
    late = False  # whether each modality is classified separately; see `Late`
    features: int

    def __init__(self, features, config, geometry, numbers, rngs):
        """Build from the feature dimensions of the embedded frames by modality, the config, the
        result of `geometry`, numbers for dropout layers and the rngs of the parameters."""

    @staticmethod
    def geometry(
        streams: Mapping[str, Ragged],
        config: ModelConfig,
        round_up: Callable[[int], int] = lambda n: n,
    ) -> Hashable:
        """What the network must know about the clips before it is compiled. Frame counts may be
        rounded up, so that more sets of clips share a network."""
        return None

    def __call__(
        self,
        encoders: Mapping[str, Encoder],
        embeddings: Mapping[str, Array],
        streams: Mapping[str, Stream],
        training: Training | None,
    ) -> Fused:
        """Fuse the embeddings [T, B, H] of the streams, all by modality."""
        raise NotImplementedError
