"""Each modality is pooled over time separately, and the results are concatenated."""

import jax.numpy as jnp

from mmattn.model.fusion.base import Fused, Fusion


class Concat(Fusion):
    """Concatenated pooled branches: ignores temporal alignment between modalities."""

    pools = True

    def __init__(self, features, config, geometry, numbers, rngs):
        """See `Fusion`; it has no parameters, as the encoders do the attention."""
        self.features = sum(features.values())

    def __call__(self, encoders, embeddings, streams, training) -> Fused:
        """See `Fusion`."""
        pooled, attention = {}, {}
        for name, x in embeddings.items():
            pooled[name], attention[name] = encoders[name].pool(x, streams[name].valid, training)
        return Fused(jnp.concatenate([*pooled.values()], axis=-1), attention, {}, pooled)
