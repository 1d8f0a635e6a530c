"""Each modality is pooled over time by itself, and the results are concatenated."""

import jax.numpy as jnp

from mmattn.model.fusion.base import Fused, Fusion


class Concat(Fusion):
    """The pooled branches side by side: blind to when things happen in which modality."""

    pools = True

    def __init__(self, features, config, geometry, numbers, rngs):
        """See `Fusion`; nothing of its own, as the encoders have the attention."""
        self.features = sum(features.values())

    def __call__(self, encoders, embeddings, streams, training) -> Fused:
        """See `Fusion`."""
        pooled, attention = {}, {}
        for name, x in embeddings.items():
            pooled[name], attention[name] = encoders[name].pool(x, streams[name].valid, training)
        return Fused(jnp.concatenate([*pooled.values()], axis=-1), attention, {}, pooled)
