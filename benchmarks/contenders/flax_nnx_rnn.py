"""Flax's own recurrent layers: `nnx.RNN` over `nnx.OptimizedLSTMCell`, time-major, jitted."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from benchmarks.contenders.base import (
    ADAM_B1,
    BATCH_NORM_EPSILON,
    BATCH_NORM_MOMENTUM,
    Contender,
    Layer,
    lstm_layers,
    reorder_gates,
)
from benchmarks.work import Work
from mmattn.data.batches import Batch


class LSTM(nnx.Module):
    """One direction of a layer."""

    def __init__(self, layer: Layer, rngs: nnx.Rngs):
        self.units = layer.units
        cell = nnx.OptimizedLSTMCell(layer.features, layer.units, rngs=rngs)
        self.rnn = nnx.RNN(
            cell, time_major=True, reverse=layer.reverse, keep_order=True, rngs=False
        )

    def __call__(self, x: Array, length: Array) -> Array:
        zero = jnp.zeros((x.shape[1], self.units), x.dtype)
        return self.rnn(x, initial_carry=(zero, zero), seq_lengths=length)


class Branch(nnx.Module):
    """Bidirectional layers and temporal attention over [T, B, F] frames."""

    def __init__(self, pairs: list[tuple[Layer, Layer]], work: Work, rngs: nnx.Rngs):
        model = work.config.model
        self.dropouts = nnx.List(
            nnx.Dropout(model.layer_dropout if n else model.input_dropout, broadcast_dims=(0,))
            for n in range(len(pairs))
        )
        self.layers = nnx.List(nnx.List(LSTM(layer, rngs) for layer in pair) for pair in pairs)
        self.attention = nnx.Linear(2 * pairs[-1][0].units, 1, use_bias=False, rngs=rngs)
        self.pooled_dropout = nnx.Dropout(model.pooled_dropout)

    def __call__(self, x: Array, valid: Array, length: Array, rngs: nnx.Rngs) -> Array:
        for dropout, (ahead, back) in zip(self.dropouts, self.layers, strict=True):
            x = dropout(x, rngs=rngs)
            x = jnp.concatenate([ahead(x, length), back(x, length)], axis=-1)
        scores = jnp.tanh(self.attention(x)[..., 0])
        weights = jax.nn.softmax(scores, axis=0, where=valid)
        return self.pooled_dropout(jnp.einsum("tb,tbh->bh", weights, x), rngs=rngs)


class Network(nnx.Module):
    """The branches and the dense head; attributes are named as in mmattn."""

    def __init__(self, work: Work, rngs: nnx.Rngs):
        model = work.config.model
        self.branches = nnx.Dict(
            {modality: Branch(pairs, work, rngs) for modality, pairs in lstm_layers(work)}
        )
        features = sum(branch.attention.in_features for branch in self.branches.values())
        dense, norms = [], []
        for width in model.head_units:
            dense.append(nnx.Linear(features, width, rngs=rngs))
            norms.append(
                nnx.BatchNorm(
                    width, momentum=BATCH_NORM_MOMENTUM, epsilon=BATCH_NORM_EPSILON, rngs=rngs
                )
            )
            features = width
        self.dense, self.norms = nnx.List(dense), nnx.List(norms)
        self.dropouts = nnx.List(map(nnx.Dropout, model.head_dropout))
        self.classifier = nnx.Linear(features, work.classes, rngs=rngs)

    def __call__(self, streams: dict[str, tuple[Array, Array, Array]], rngs: nnx.Rngs) -> Array:
        pooled = [branch(*streams[name], rngs) for name, branch in self.branches.items()]
        x = jnp.concatenate(pooled, axis=-1)
        for dense, norm, dropout in zip(self.dense, self.norms, self.dropouts, strict=True):
            x = dropout(norm(jax.nn.relu(dense(x))), rngs=rngs)
        return self.classifier(x)


class Contestant(Contender):
    """The network split once; pure functions of its state are jitted, without `nnx.jit`."""

    def __init__(self, work: Work):
        train, rngs = work.config.train, nnx.Rngs(work.config.seed)
        network = Network(work, rngs)
        for_training = nnx.view(network, deterministic=False, use_running_average=False)
        for_prediction = nnx.view(network, deterministic=True, use_running_average=True)
        self.training_graph = nnx.graphdef(for_training)
        self.prediction_graph, params, statistics = nnx.split(
            for_prediction, nnx.Param, nnx.BatchStat
        )
        self.optimizer = optax.adam(train.learning_rate, ADAM_B1)
        self.gamma, self.class_weights = train.gamma, work.class_weights
        self.state = params, statistics, self.optimizer.init(params), rngs.dropout()
        self.step = jax.jit(self._step, donate_argnums=0)
        self.probabilities = jax.jit(self._probabilities)

    def _step(self, state: tuple, streams: dict, label: Array) -> tuple[tuple, Array]:
        params, statistics, moments, key = state
        key, dropout = jax.random.split(key)

        def loss(params):
            network = nnx.merge(self.training_graph, params, statistics, copy=True)
            logits = network(streams, nnx.Rngs(dropout=dropout))
            log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=-1)[:, 0]
            loss = -log_p * (1 - jnp.exp(log_p)) ** self.gamma
            loss = (loss * jnp.asarray(self.class_weights)[label]).mean()
            return loss, nnx.state(network, nnx.BatchStat)

        (loss, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, moments = self.optimizer.update(gradient, moments)
        return (optax.apply_updates(params, updates), statistics, moments, key), loss

    def _probabilities(self, params: nnx.State, statistics: nnx.State, streams: dict) -> Array:
        network = nnx.merge(self.prediction_graph, params, statistics)
        return jax.nn.softmax(network(streams, None))

    def place(self, work: Work) -> list[tuple[dict[str, Any], Array]]:
        return [_place(batch) for batch in work.batches()]

    def train(self, placed: list[tuple[dict[str, Any], Array]]) -> float:
        losses = []
        for batch in placed:
            self.state, loss = self.step(self.state, *batch)
            losses.append(loss)
        return float(np.mean(jax.device_get(losses)))

    def predict(self, batches: list[Batch]) -> np.ndarray:
        found = [self.probabilities(*self.state[:2], _place(batch)[0]) for batch in batches]
        return np.concatenate(jax.device_get(found))

    def load(self, parameters: dict[str, np.ndarray]) -> None:
        def change(path, _):
            name = _name(path)
            return jnp.asarray(_reorder(name, parameters[name], "ifog", "ifgo"))

        self.state = (jax.tree.map_with_path(change, self.state[0]), *self.state[1:])

    def first_moments(self) -> dict[str, np.ndarray]:
        moments = jax.tree.leaves_with_path(optax.tree.get(self.state[2], "mu"))
        return {
            (name := _name(path)): _reorder(name, np.asarray(moment), "ifgo", "ifog")
            for path, moment in moments
        }


def _place(batch: Batch) -> tuple[dict[str, Any], Array]:
    streams = {
        name: (
            jnp.asarray(stream.frames.swapaxes(0, 1)),
            jnp.asarray(stream.valid.T),
            jnp.asarray(stream.length),
        )
        for name, stream in batch.streams.items()
    }
    return streams, jnp.asarray(batch.label)


PARTS = {
    "rnn.cell.dense_i.kernel": "input_kernel",
    "rnn.cell.dense_h.kernel": "recurrent_kernel",
    "rnn.cell.dense_h.bias": "bias",
}


def _name(path: tuple[Any, ...]) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
    for theirs, ours in PARTS.items():
        name = name.replace(theirs, ours)
    return name


def _reorder(name: str, array: np.ndarray, order: str, into: str) -> np.ndarray:
    return reorder_gates(array, order, into) if ".layers." in name else array
