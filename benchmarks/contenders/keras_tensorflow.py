"""Keras on TensorFlow, the earlier system's stack: the step is a `tf.function`."""

from typing import Any

import tensorflow as tf

from benchmarks.contenders.keras_network import KerasContender
from benchmarks.work import Work


class Contestant(KerasContender):
    """See the module."""

    def __init__(self, work: Work):
        super().__init__(work)
        self._step = tf.function(self._train_step)
        self._predict = tf.function(lambda inputs: tf.nn.softmax(self.network(inputs)))

    def _train_step(self, inputs: list[tf.Tensor], label: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = self.loss(label, self.network(inputs, training=True))
        variables = self.network.trainable_variables
        self.optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        return loss

    def step(self, inputs: list[Any], label: Any) -> Any:
        return self._step(inputs, label)

    def probabilities(self, inputs: list[Any]) -> Any:
        return self._predict(inputs)
