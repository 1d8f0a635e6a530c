"""A whole network for tests, compiled once for each shape of batch."""

from functools import partial

import jax
from flax import nnx

from mmattn.config import ModelConfig
from mmattn.data.batches import Batch
from mmattn.model.layers import Training, draw_for_dropout
from mmattn.model.network import Network, Output


class Model:
    """A network with four classes and clear differences in its logits."""

    def __init__(self, config: ModelConfig, widths: dict[str, int], geometry=None):
        network = Network(config, widths, classes=4, rngs=nnx.Rngs(0), geometry=geometry)
        self.dropout_shape = network.dropout_shape
        self.graph, params, self.rest = nnx.split(network, nnx.Param, ...)
        self.params = jax.tree.map(lambda param: 2 * param, params)

    @partial(jax.jit, static_argnums=0)
    def predict(self, batch: Batch) -> Output:
        return nnx.merge(self.graph, self.params, self.rest)(batch)

    @partial(jax.jit, static_argnums=0)
    def train(self, batch: Batch):
        """Logits in training, and the gradients of their sum of squares."""
        keys = jax.random.split(jax.random.key(0), len(batch.label))
        uniform = jax.vmap(lambda key: draw_for_dropout(key, *self.dropout_shape))(keys)

        def loss(params):
            network = nnx.merge(self.graph, params, self.rest, copy=True)
            logits = network(batch, Training(uniform, lambda tree: tree)).logits
            return (logits**2).sum(), logits

        gradients, logits = jax.grad(loss, has_aux=True)(self.params)
        return logits, gradients
