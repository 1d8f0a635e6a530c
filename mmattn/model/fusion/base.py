"""What a fusion is, and what it gives."""

from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

from flax import nnx
from jax import Array

from mmattn.config import ModelConfig
from mmattn.data.stream import Ragged, Stream
from mmattn.model.encoder import Encoder
from mmattn.model.layers import Training


class Attended(NamedTuple):
    """What the frames of one modality attend to in another."""

    weights: Array  # [B, T, K] mean over the heads; they sum to 1, or to 0 where no frame is near
    distance: Array  # [B, T, K] seconds from the frame to each of K neighbours, later ones positive


class Fused(NamedTuple):
    """One vector a clip, and what the fusion attended to."""

    features: Array  # [B, P]
    attention: dict[str, Array]  # [B, T] over time, of the valid frames, 0 elsewhere
    attended: dict[str, dict[str, Attended]]  # by modality and other one; empty if there is none
    pooled: dict[str, Array]  # [B, H] by modality; empty where they are not pooled one by one


class Fusion(nnx.Module):
    """Makes one vector a clip, of `features` numbers, from the embedded frames of modalities."""

    pools = False  # whether each encoder has temporal attention of its own; see `Encoder.pool`
    uses_times = False
    late = False  # whether each modality is classified by itself; see `Late`
    features: int

    def __init__(self, features, config, geometry, numbers, rngs):
        """Build from the feature dimensions of the embedded frames by modality, the configuration,
        what `geometry` gave, numbers for dropout layers and the parameters' rngs."""

    @staticmethod
    def geometry(
        streams: Mapping[str, Ragged],
        config: ModelConfig,
        round_up: Callable[[int], int] = lambda n: n,
    ) -> Hashable:
        """What must be known of the clips before the network is compiled, with numbers of frames
        that may be rounded up: then it is the same for more clips."""
        return None

    def __call__(
        self,
        encoders: Mapping[str, Encoder],
        embeddings: Mapping[str, Array],
        streams: Mapping[str, Stream],
        training: Training | None,
    ) -> Fused:
        """Fuse the embeddings [T, B, H] that the encoders gave of the streams, all by modality."""
        raise NotImplementedError
