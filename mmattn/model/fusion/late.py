"""Late fusion: each modality is classified separately, and log-probabilities are averaged."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from mmattn.data.stream import Stream
from mmattn.model.fusion.concat import Concat
from mmattn.model.initial import zeros


class Late(Concat):
    """A classifier for each modality, with its own loss, joined by a logarithmic opinion pool.

        log p = Σ_m w_m log p_m + constant,  w = softmax(log_weights) over the clip's modalities

    (Genest & Zidek, Combining probability distributions, Statistical Science 1, 1986). A modality
    that a clip lacks is left out. Under one joint loss modalities compete: the network learns one
    and neglects the others (Huang et al., Modality competition, ICML 2022).
    """

    late = True

    def __init__(self, features, config, geometry, numbers, rngs):
        """See `Fusion`; the weights are not trained, but may be fitted to validation clips."""
        super().__init__(features, config, geometry, numbers, rngs)
        self.log_weights = nnx.BatchStat(zeros(None, (len(features),)))

    def join(self, logits: Mapping[str, Array], streams: Mapping[str, Stream]) -> Array:
        """Joint logits [B, K] from those of each modality; uniform if a clip has no modality."""
        names = sorted(logits)  # in the order of `log_weights`
        present = jnp.stack([streams[name].valid.any(1) for name in names], axis=1)
        weights = jax.nn.softmax(self.log_weights[...][None], where=present)
        votes = jnp.stack([jax.nn.log_softmax(logits[name]) for name in names], axis=1)
        return jnp.einsum("bm,bmk->bk", weights, votes)
