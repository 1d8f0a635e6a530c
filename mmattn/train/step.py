"""Pure functions for a training step and a prediction, and their state."""

import zlib
from collections.abc import Hashable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from threadpoolctl import threadpool_limits

from mmattn.config import ModelConfig, TrainConfig
from mmattn.data.batches import Batch
from mmattn.data.normalise import Normaliser
from mmattn.data.stream import AnyArray
from mmattn.model.initial import Keys
from mmattn.model.layers import Training, draw_for_dropout
from mmattn.model.network import Network, Output
from mmattn.train import devices
from mmattn.train.flat import FlatTree
from mmattn.train.loss import focal_loss, soft_focal_loss


class TrainState(NamedTuple):
    """What a training step changes: trees, or on the devices as `Learner.shard_state` puts it."""

    step: AnyArray
    """int32, optimiser steps done."""
    params: Any
    """nnx.State; on the devices: each device's shard of all parameters in one flat vector."""
    batch_stats: nnx.State
    opt_state: optax.OptState
    """On the devices, moments have the form of params."""


class Weights(NamedTuple):
    """The part of the state that a prediction needs."""

    params: nnx.State
    batch_stats: nnx.State


class Sums(NamedTuple):
    """Sums over the clips seen, divided once at the end; each device has its own."""

    clips: AnyArray
    loss: AnyArray
    correct: AnyArray


class StepCheck(NamedTuple):
    """Shows the step and clips at which training diverged."""

    finite_features: Array
    """[S, B] bool, before the head, where batch norm mixes the clips."""
    finite_loss: Array
    """[S, B] bool."""
    gradient_square: Array
    """[S] sum of the squares of this device's shard of the gradient."""


class Prediction(NamedTuple):
    """The network's output for each clip of a batch."""

    loss: Array
    """[B]"""
    probabilities: Array
    """[B, K]"""
    attention: dict[str, Array]
    """By modality, [B, T]."""
    votes: dict[str, Array]
    """By modality, [B, K] log-probabilities of its own classifier, 0 if a clip lacks it; empty if
    there are no such classifiers."""


class Votes(NamedTuple):
    """The outputs of each of N networks for each clip of a batch."""

    probabilities: Array
    """[N, B, K]"""
    attention: dict[str, Array]
    """By modality, [N, B, T]."""


class Inspection(NamedTuple):
    """Activations inside the network, of each clip of a batch."""

    embeddings: dict[str, Array]
    """By modality, [B, T, H] frames after the LSTM layers, before fusion."""
    gradient_input: dict[str, Array]
    """By modality, [B, T] gradient × input of the highest logit, summed over features."""


class Settings(NamedTuple):
    """Settings that need no recompilation: one compiled step serves every fold and seed."""

    key: AnyArray
    """Random key for dropout."""
    class_weights: AnyArray
    """[K]"""
    learning_rate: AnyArray


NO_SUMS = Sums(np.float32(0), np.float32(0), np.float32(0))


class Learner:
    """The compiled training steps and prediction of one architecture on a number of devices.

    `train(state, sums, batches, count, settings)`, `predict(weights, batches, class_weights)` and
    `inspect(weights, batches)` take arrays with a leading axis of devices, made by `collate` and
    placed by `devices.place`, except the count of steps, the settings and the class weights, which
    all devices share; `weights(state)` are those of a state.

    Between steps each device keeps an equal shard of the parameters and of the optimiser's
    moments, both as flat vectors (Rajbhandari et al., ZeRO, 2020): a step gathers the parameters,
    sums and scatters the gradient, in one collective each, and no update is computed twice.
    """

    def __init__(
        self,
        model: ModelConfig,
        train: TrainConfig,
        widths: Mapping[str, int],
        classes: int,
        device_count: int,
        geometry: Hashable = None,
    ):
        self._make_network = partial(Network, model, widths, classes, geometry=geometry)
        network = self._make_network(rngs=Keys(None))  # for its shapes
        self.graph, *states = nnx.split(network, nnx.Param, nnx.BatchStat)
        self._params, self._batch_stats = states
        self.gamma, self.branch_loss = train.gamma, model.branch_loss
        self.weight_decay = train.weight_decay
        self.optimizer = optax.chain(optax.scale_by_adam())  # Kingma & Ba, 2015
        self.device_count = device_count
        self.flat = FlatTree(self._params, device_count)
        self.dropout_shape = network.dropout_shape
        self.draw = devices.parallel(self._draw_for_dropout, device_count, in_axes=(0, 0, None))
        self.steps = devices.parallel(
            self._train_steps, device_count, in_axes=(0, 0, 0, 0, None, None), donate=(0, 1)
        )
        self.weights = devices.parallel(self._weights, device_count, in_axes=(0,))
        self.predict = devices.parallel(self._predict, device_count, in_axes=(0, 0, None))
        self.inspect = devices.parallel(self._inspect, device_count, in_axes=(0, 0))
        self.ensemble = devices.quickly_compiled(jax.jit(self.ask_ensemble))

    def train(
        self, state: TrainState, sums: Sums, batches: Batch, count: np.int32, settings: Settings
    ) -> tuple[TrainState, Sums, StepCheck]:
        """The first `count` of S steps, see above; state and sums are donated."""
        # Separate from the steps, so that it compiles once, not for each clip length.
        uniform = self.draw(state.step, batches.weight, settings.key)
        return self.steps(state, sums, batches, uniform, count, settings)

    @threadpool_limits.wrap(limits=1)  # the matrices are small: more threads are slower
    def initial(self, seed: int) -> TrainState:
        """The state before the first step, as trees of NumPy arrays."""
        network = self._make_network(rngs=Keys(seed))
        _, *states = nnx.split(network, nnx.Param, nnx.BatchStat)
        params, batch_stats = jax.tree.map(np.asarray, states)
        return self.blank()._replace(params=params, batch_stats=batch_stats)

    def blank(self) -> TrainState:
        """A state of zeros, for the shapes of its NumPy arrays."""
        moments = jax.eval_shape(self.optimizer.init, self._params)
        shapes = self._params, self._batch_stats, moments
        return TrainState(np.int32(0), *jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))

    def shard_state(self, state: TrainState) -> TrainState:
        """Put a state of trees on the devices."""

        def divide(tree):
            return devices.place_own(self.flat.ravel(tree).reshape(self.device_count, -1))

        moments = jax.tree.map(
            lambda x: divide(x) if _is_state(x) else devices.replicate(x, self.device_count),
            state.opt_state,
            is_leaf=_is_state,
        )
        step, batch_stats = devices.replicate((state.step, state.batch_stats), self.device_count)
        return TrainState(step, divide(state.params), batch_stats, moments)

    def gather_state(self, state: TrainState) -> TrainState:
        """The state on the devices as trees of NumPy arrays."""

        def join(x):
            return self.flat.unravel(devices.fetch(x).ravel()) if x.ndim > 1 else devices.first(x)

        step, batch_stats = devices.first((state.step, state.batch_stats))
        return TrainState(
            step, join(state.params), batch_stats, jax.tree.map(join, state.opt_state)
        )

    def with_log_weights(self, state: TrainState, log_weights: np.ndarray) -> TrainState:
        """A state on the devices with these modality weights [M]; see `Late`."""
        batch_stats = jax.tree.map(lambda x: x, state.batch_stats)
        kept = batch_stats["fusion"]["log_weights"]
        kept.set_value(devices.replicate(log_weights.astype(np.float32), self.device_count))
        return state._replace(batch_stats=batch_stats)

    def _weights(self, state: TrainState) -> Weights:
        """The parameters, complete on each device; runs inside `devices.parallel`."""
        return Weights(self.flat.unravel(devices.gather(state.params)), state.batch_stats)

    def _draw_for_dropout(self, step: Array, weight: Array, key: Array) -> Array:
        """The numbers [S, B, L, F] for S steps from this one, for one device's clips [S, B].

        A clip's key depends on the step and on the clip's place over all devices.
        """
        steps, clips = weight.shape
        places = devices.device_number() * clips + jnp.arange(clips)

        def draw(step, place):
            own = jax.random.fold_in(jax.random.fold_in(key, step), place)
            return draw_for_dropout(own, *self.dropout_shape)

        each = jax.vmap(jax.vmap(draw, (None, 0)), (0, None))
        return each(step + jnp.arange(steps), places)

    def _train_steps(
        self,
        state: TrainState,
        sums: Sums,
        batches: Batch,
        uniform: Array,
        count: Array,
        settings: Settings,
    ) -> tuple[TrainState, Sums, StepCheck]:
        """The first `count` of S steps, one after the other, on one device's [S, B, …] clips."""
        fine = jnp.ones(batches.weight.shape, bool)
        check = StepCheck(fine, fine, jnp.zeros(len(fine), jnp.float32))

        def body(number, carry):
            state, sums, check = carry
            batch, numbers = jax.tree.map(lambda x: x[number], (batches, uniform))
            training = Training(numbers, devices.sum_over_devices)
            state, step_sums, step_check = self.train_step(state, batch, training, settings)
            check = jax.tree.map(lambda all, one: all.at[number].set(one), check, step_check)
            return state, jax.tree.map(jnp.add, sums, step_sums), check

        state, sums, check = jax.lax.fori_loop(0, count, body, (state, sums, check))
        return state, sums, devices.all_gather(check)

    def train_step(
        self, state: TrainState, batch: Batch, training: Training, settings: Settings
    ) -> tuple[TrainState, Sums, StepCheck]:
        """One optimiser step over the clips of all devices; runs inside `devices.parallel`.

        Returns:
            The new state, this device's sums and its check, without the axis of steps.
        """
        clips = devices.sum_over_devices(batch.weight.sum())

        def mean_loss(params):
            network = nnx.merge(self.graph, params, state.batch_stats, copy=True)
            output = network(batch, training)
            loss = self.loss(output, batch, settings.class_weights)
            return (batch.weight @ loss) / clips, (output, loss, nnx.state(network, nnx.BatchStat))

        params = self._weights(state).params
        gradient, (output, loss, batch_stats) = jax.grad(mean_loss, has_aux=True)(params)
        gradient = devices.sum_and_scatter(self.flat.ravel(gradient))
        updates, opt_state = self.optimizer.update(gradient, state.opt_state)
        if self.weight_decay:  # decoupled, only of kernels (Loshchilov & Hutter, 2019)
            kernels = devices.own_shard(self.flat.mark(lambda shape: len(shape) > 1))
            updates += self.weight_decay * kernels * state.params
        correct = batch.weight @ (output.logits.argmax(-1) == batch.label)
        return (
            TrainState(
                state.step + 1,
                state.params - settings.learning_rate * updates,
                batch_stats,
                opt_state,
            ),
            Sums(batch.weight.sum(), batch.weight @ loss, correct),
            StepCheck(
                jnp.isfinite(output.fused.features).all(-1), jnp.isfinite(loss), gradient @ gradient
            ),
        )

    def loss(self, output: Output, batch: Batch, class_weights: Array) -> Array:
        """The training loss [B] of each clip: focal, plus cross-entropy of the linear classifier.

        Each classifier has its own loss, so that none relies on another. The losses of the clip's
        modalities are summed; if there is a joint classifier, the sum is added to its loss, times
        the branch weight. For a mixed clip, it is the mean over both labels, weighted by lambda
        (Zhang et al., 2018).
        """

        def mixed(logits, gamma):
            if batch.target is not None:
                return soft_focal_loss(logits, batch.target, gamma, class_weights)
            own, other = (
                focal_loss(logits, labels, gamma, class_weights)
                for labels in (batch.label, batch.mixup_label)
            )
            return batch.mixup_lambda * own + (1 - batch.mixup_lambda) * other

        def of(vote):
            loss = mixed(vote.head, self.gamma)
            return loss if vote.statistics is None else loss + mixed(vote.statistics, 0.0)

        loss: AnyArray = sum(
            jnp.where(batch.streams[name].valid.any(1), of(vote), 0)
            for name, vote in output.votes.items()
        )
        return loss if output.joint is None else of(output.joint) + self.branch_loss * loss

    def _predict(self, weights: Weights, batches: Batch, class_weights: Array) -> Prediction:
        """Predictions [S, B, …] for one device's batches [S, B, …]."""
        network = nnx.merge(self.graph, *weights)

        def predict(batch):
            output = network(batch)
            probabilities = jax.nn.softmax(output.logits)
            loss = self.loss(output, batch, class_weights)
            votes = {
                name: jax.nn.log_softmax(vote.logits) * batch.streams[name].valid.any(1)[:, None]
                for name, vote in output.votes.items()
            }
            return Prediction(loss, probabilities, output.fused.attention, votes)

        return jax.lax.map(predict, batches)

    def ask_ensemble(self, weights: Weights, normalisers: Normaliser, batch: Batch) -> Votes:
        """Outputs of N networks, stacked on the leading axis, for a batch [B, …] not normalised."""

        def ask(network):
            weights, normaliser = network
            streams = {
                name: stream._replace(
                    frames=(stream.frames - normaliser[f"{name}_mean"])
                    / normaliser[f"{name}_std"]
                    * stream.valid[..., None]
                )
                for name, stream in batch.streams.items()
            }
            output = nnx.merge(self.graph, *weights)(batch._replace(streams=streams))
            return Votes(jax.nn.softmax(output.logits), output.fused.attention)

        return jax.lax.map(ask, (weights, normalisers))

    def _inspect(self, weights: Weights, batches: Batch) -> Inspection:
        """Activations for one device's batches [S, B, …]."""
        network = nnx.merge(self.graph, *weights)

        def inspect(batch):
            def highest_logits(frames):
                streams = {
                    name: batch.streams[name]._replace(frames=x) for name, x in frames.items()
                }
                output = network(batch._replace(streams=streams))
                return output.logits.max(-1).sum(), output.embeddings

            frames = {name: batch.streams[name].frames for name in network.branches}
            gradient, embeddings = jax.grad(highest_logits, has_aux=True)(frames)
            product = jax.tree.map(lambda g, x: (g * x).sum(-1), gradient, frames)
            return Inspection(embeddings, product)

        return jax.lax.map(inspect, batches)


def _is_state(x) -> bool:
    return isinstance(x, nnx.State)


def random_key(seed: int, purpose: str) -> Array:
    """A random key that depends on the seed and the purpose."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


@lru_cache(4)
def compiled_learner(
    model: ModelConfig,
    train: TrainConfig,
    widths: tuple[tuple[str, int], ...],
    classes: int,
    device_count: int,
    geometry: Hashable,
) -> Learner:
    """A learner that all networks of a run share, so that each shape compiles once."""
    return Learner(model, train, dict(widths), classes, device_count, geometry)
