"""Pure functions of a training step and of a prediction, and the state they work on."""

import zlib
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from mmattn.config import ModelConfig, TrainConfig
from mmattn.data.batches import Batch
from mmattn.model.layers import Training
from mmattn.model.network import Network, Output
from mmattn.train import devices
from mmattn.train.loss import focal_loss


class TrainState(NamedTuple):
    """All that a training step changes."""

    step: Array
    """int32, optimiser steps done."""
    params: nnx.State
    batch_stats: nnx.State
    opt_state: optax.OptState


class Sums(NamedTuple):
    """Sums over the clips seen, divided once at the end; each device has its own."""

    clips: Array
    loss: Array
    correct: Array


class StepCheck(NamedTuple):
    """What shows the step and the clips with which a training broke."""

    finite_features: Array
    """[S, B] bool, of each clip before the head: later the batch norm mixes the clips."""
    finite_loss: Array
    """[S, B] bool."""
    gradient_norm: Array
    """[S]"""


class Prediction(NamedTuple):
    """What the network says of each clip of a batch."""

    loss: Array
    """[B]"""
    probabilities: Array
    """[B, K]"""
    attention: dict[str, Array]
    """By modality, [B, T]."""


class Settings(NamedTuple):
    """What a run, not a compilation, decides: the same compiled step serves every fold and seed."""

    key: Array
    """Random key of dropout."""
    class_weights: Array
    """[K]"""
    learning_rate: Array


NO_SUMS = Sums(np.float32(0), np.float32(0), np.float32(0))


class Learner:
    """The compiled training steps and prediction of one architecture on a number of devices.

    `train(state, sums, batches, count, settings)` and `predict(state, batches, settings)` take
    arrays with a leading axis of devices, as `collate` makes and `devices.place` puts them, but
    for the count of steps and the settings, which all devices share.
    """

    def __init__(
        self,
        model: ModelConfig,
        train: TrainConfig,
        widths: Mapping[str, int],
        classes: int,
        device_count: int,
    ):
        self._make_network = partial(Network, model, widths, classes)
        self.graph = nnx.graphdef(nnx.eval_shape(self._make_network, seed=0))
        self.gamma = train.gamma
        self.optimizer = make_optimizer(train)
        self.train = devices.parallel(
            self._train_steps, device_count, in_axes=(0, 0, 0, None, None), donate=(0, 1)
        )
        self.predict = devices.parallel(self._predict, device_count, in_axes=(0, 0, None))

    def initial(self, seed: int) -> TrainState:
        """The state before the first step."""

        @jax.jit
        def make(seed):
            _, params, batch_stats = nnx.split(self._make_network(seed), nnx.Param, nnx.BatchStat)
            return TrainState(jnp.int32(0), params, batch_stats, self.optimizer.init(params))

        return make(seed)

    def _train_steps(
        self, state: TrainState, sums: Sums, batches: Batch, count: Array, settings: Settings
    ) -> tuple[TrainState, Sums, StepCheck]:
        """The first `count` of S steps, one after the other, on one device's [S, B, …] clips."""
        fine = jnp.ones(batches.weight.shape, bool)
        check = StepCheck(fine, fine, jnp.zeros(len(fine), jnp.float32))

        def body(number, carry):
            state, sums, check = carry
            batch = jax.tree.map(lambda x: x[number], batches)
            state, step_sums, step_check = self.train_step(state, batch, settings)
            check = jax.tree.map(lambda all, one: all.at[number].set(one), check, step_check)
            return state, jax.tree.map(jnp.add, sums, step_sums), check

        return jax.lax.fori_loop(0, count, body, (state, sums, check))

    def train_step(
        self, state: TrainState, batch: Batch, settings: Settings
    ) -> tuple[TrainState, Sums, StepCheck]:
        """One optimiser step over the clips of all devices; runs inside `devices.parallel`.

        Returns:
            The new state, this device's sums and its check, without the axis of steps.
        """
        clips = devices.sum_over_devices(batch.weight.sum())
        training = Training(
            _clip_keys(settings.key, state.step, len(batch.label)), devices.sum_over_devices
        )

        def mean_loss(params):
            network = nnx.merge(self.graph, params, state.batch_stats, copy=True)
            output = network(batch, training)
            loss = self.loss(output, batch.label, settings)
            return (batch.weight @ loss) / clips, (output, loss, nnx.state(network, nnx.BatchStat))

        gradient, (output, loss, batch_stats) = jax.grad(mean_loss, has_aux=True)(state.params)
        gradient = devices.sum_over_devices(gradient)
        updates, opt_state = self.optimizer.update(gradient, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - settings.learning_rate * u, state.params, updates)
        correct = batch.weight @ (output.logits.argmax(-1) == batch.label)
        return (
            TrainState(state.step + 1, params, batch_stats, opt_state),
            Sums(batch.weight.sum(), batch.weight @ loss, correct),
            StepCheck(
                jnp.isfinite(output.features).all(-1),
                jnp.isfinite(loss),
                optax.tree.norm(gradient),
            ),
        )

    def loss(self, output: Output, labels: Array, settings: Settings) -> Array:
        """The training loss [B] of each clip: focal, plus cross-entropy of the linear classifier.

        Each classifier has a loss of its own, so neither leaves its work to the other.
        """
        weights = settings.class_weights
        loss = focal_loss(output.head_logits, labels, self.gamma, weights)
        if output.statistics_logits is None:
            return loss
        return loss + focal_loss(output.statistics_logits, labels, 0.0, weights)

    def _predict(self, state: TrainState, batches: Batch, settings: Settings) -> Prediction:
        """Predictions [S, B, …] for one device's batches [S, B, …]."""
        network = nnx.merge(self.graph, state.params, state.batch_stats)

        def predict(batch):
            output = network(batch)
            probabilities = jax.nn.softmax(output.logits)
            loss = self.loss(output, batch.label, settings)
            return Prediction(loss, probabilities, output.attention)

        return jax.lax.map(predict, batches)


def _clip_keys(key: Array, step: Array, clips: int) -> Array:
    """A key for each clip's dropout, from the step and the clip's place in the whole batch."""
    key = jax.random.fold_in(key, step)
    places = devices.device_number() * clips + jnp.arange(clips)
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(places)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Adam (Kingma & Ba, 2015) with decoupled decay of the kernels, before the learning rate."""
    return optax.chain(
        optax.scale_by_adam(),
        optax.add_decayed_weights(
            config.weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
        ),
    )


def random_key(seed: int, purpose: str) -> Array:
    """A random key that depends on the seed and on what it is for."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
