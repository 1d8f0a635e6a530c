"""Keras on JAX: the step is jitted from the stateless calls, as Keras's own guide does."""

from typing import Any

import jax
import numpy as np

from benchmarks.contenders.keras_network import KerasContender
from benchmarks.work import Work


class Contestant(KerasContender):
    """See the module."""

    def __init__(self, work: Work):
        super().__init__(work)
        self._step = jax.jit(self._train_step, donate_argnums=0)
        self._predict = jax.jit(self._predict_step)
        self.state = self._read()

    def _read(self) -> tuple[list, list, list]:
        network = self.network
        groups = (
            network.trainable_variables,
            network.non_trainable_variables,
            self.optimizer.variables,
        )
        return tuple([variable.value for variable in group] for group in groups)

    def _train_step(self, state: tuple[list, list, list], inputs: list, label: Any) -> tuple:
        trainable, fixed, optimizer = state

        def loss(trainable):
            logits, new = self.network.stateless_call(trainable, fixed, inputs, training=True)
            return self.loss(label, logits), new

        (loss, fixed), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
        trainable, optimizer = self.optimizer.stateless_apply(optimizer, gradients, trainable)
        return (trainable, fixed, optimizer), loss

    def _predict_step(self, state: tuple[list, list, list], inputs: list) -> Any:
        return jax.nn.softmax(self.network.stateless_call(*state[:2], inputs)[0])

    def step(self, inputs: list[Any], label: Any) -> Any:
        self.state, loss = self._step(self.state, inputs, label)
        return loss

    def probabilities(self, inputs: list[Any]) -> Any:
        return self._predict(self.state, inputs)

    def load(self, parameters: dict[str, np.ndarray]) -> None:
        super().load(parameters)
        self.state = self._read()

    def first_moments(self) -> dict[str, np.ndarray]:
        for variable, value in zip(self.optimizer.variables, self.state[2], strict=True):
            variable.assign(value)
        return super().first_moments()
