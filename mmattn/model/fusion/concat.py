"""Late joining: each modality is pooled over time by itself, and the results are concatenated."""

from collections.abc import Iterator, Mapping

import jax.numpy as jnp
from flax import nnx
from jax import Array

from mmattn.config import ModelConfig
from mmattn.data.stream import Ragged, Stream
from mmattn.model.encoder import Branch
from mmattn.model.fusion.fused import Fused
from mmattn.model.layers import Training


class Concat(nnx.Module):
    """The pooled branches side by side: blind to when things happen in which modality."""

    Encoder = Branch
    uses_times = False

    def __init__(
        self,
        features: Mapping[str, int],
        config: ModelConfig,
        geometry: None,
        streams: Iterator[int],
        rngs: nnx.Rngs,
    ):
        """Nothing of its own: the encoders have the attention. See `Cross`."""
        self.features = sum(features.values())

    @staticmethod
    def geometry(streams: Mapping[str, Ragged], config: ModelConfig) -> None:
        """Nothing need be known of the clips."""

    def __call__(
        self,
        encoders: Mapping[str, Branch],
        embeddings: Mapping[str, Array],
        streams: Mapping[str, Stream],
        training: Training | None,
    ) -> Fused:
        """See `Cross`."""
        pooled = {
            name: encoders[name].pool(x, streams[name].valid, training)
            for name, x in embeddings.items()
        }
        return Fused(
            jnp.concatenate([x for x, _ in pooled.values()], axis=-1),
            {name: weights for name, (_, weights) in pooled.items()},
            {},
        )
