"""The network in Keras 3, for either backend; subclasses compile the training step."""

from abc import abstractmethod
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from benchmarks.contenders.base import (
    ADAM_B1,
    BATCH_NORM_EPSILON,
    BATCH_NORM_MOMENTUM,
    Contender,
    lstm_layers,
    reorder_gates,
)
from benchmarks.work import Work
from mmattn.data.batches import Batch


class TemporalAttention(layers.Layer):
    """Mean over time, weighted by the softmax of tanh(x·w) over the valid frames."""

    supports_masking = True  # its mask comes as an argument

    def build(self, shapes):
        self.kernel = self.add_weight(shape=(shapes[0][-1], 1), initializer="glorot_uniform")

    def call(self, inputs):
        x, valid = inputs
        scores = ops.tanh(ops.matmul(x, self.kernel))
        weights = ops.softmax(ops.where(valid[..., None], scores, -1e9), axis=1)
        return ops.sum(weights * x, axis=1)


def build_network(work: Work) -> tuple[keras.Model, dict[str, keras.Variable]]:
    """A model of [frames, valid] of both modalities, and its parameters by name."""
    model, inputs, pooled, named = work.config.model, [], [], {}
    for modality, pairs in lstm_layers(work):
        x = frames = keras.Input((None, work.widths[modality]))
        valid = keras.Input((None,), dtype="bool")
        inputs += [frames, valid]
        for number, (ahead, back) in enumerate(pairs):
            # Dropout that is the same at all times; as `LSTM(dropout=)` it would be in the loop.
            x = layers.SpatialDropout1D(model.layer_dropout if number else model.input_dropout)(x)
            both = layers.Bidirectional(layers.LSTM(ahead.units, return_sequences=True))
            x = both(x, mask=valid)
            named |= _name_lstm(ahead.name, both.forward_layer.cell)
            named |= _name_lstm(back.name, both.backward_layer.cell)
        attention = TemporalAttention()
        pooled.append(layers.Dropout(model.pooled_dropout)(attention([x, valid])))
        named[f"branches.{modality}.attention.kernel"] = attention.kernel
    x = layers.Concatenate()(pooled)
    for number, (width, rate) in enumerate(zip(model.head_units, model.head_dropout, strict=True)):
        dense = layers.Dense(width, activation="relu")
        norm = layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, epsilon=BATCH_NORM_EPSILON)
        x = layers.Dropout(rate)(norm(dense(x)))
        named |= {f"dense.{number}.kernel": dense.kernel, f"dense.{number}.bias": dense.bias}
        named |= {f"norms.{number}.scale": norm.gamma, f"norms.{number}.bias": norm.beta}
    classifier = layers.Dense(work.classes)
    logits = classifier(x)
    named |= {"classifier.kernel": classifier.kernel, "classifier.bias": classifier.bias}
    return keras.Model(inputs, logits), named


def _name_lstm(name: str, cell: layers.LSTMCell) -> dict[str, keras.Variable]:
    return {
        f"{name}.input_kernel": cell.kernel,
        f"{name}.recurrent_kernel": cell.recurrent_kernel,
        f"{name}.bias": cell.bias,
    }


class KerasContender(Contender):
    """Training and prediction; subclasses compile the step."""

    def __init__(self, work: Work):
        train = work.config.train
        keras.utils.set_random_seed(work.config.seed)
        self.gamma, self.class_weights = train.gamma, work.class_weights
        self.network, self.named = build_network(work)
        self.optimizer = keras.optimizers.Adam(train.learning_rate, ADAM_B1)
        self.optimizer.build(self.network.trainable_variables)
        self.network.optimizer = self.optimizer

    def loss(self, label: Any, logits: Any) -> Any:
        """The mean over the batch of the focal loss with class weights."""
        log_p = ops.take_along_axis(ops.log_softmax(logits), label[:, None], axis=-1)[:, 0]
        loss = -log_p * (1 - ops.exp(log_p)) ** self.gamma
        return ops.mean(loss * ops.take(ops.convert_to_tensor(self.class_weights), label))

    def place(self, work: Work) -> list[tuple[list[Any], Any]]:
        return [_place(batch) for batch in work.batches()]

    @abstractmethod
    def step(self, inputs: list[Any], label: Any) -> Any:
        """One optimiser step; returns the loss."""

    @abstractmethod
    def probabilities(self, inputs: list[Any]) -> Any:
        """[B, K]"""

    def train(self, placed: list[tuple[list[Any], Any]]) -> float:
        losses = [self.step(*batch) for batch in placed]
        return float(np.mean([np.asarray(loss) for loss in losses]))

    def predict(self, batches: list[Batch]) -> np.ndarray:
        return np.concatenate(
            [np.asarray(self.probabilities(_place(batch)[0])) for batch in batches]
        )

    def load(self, parameters: dict[str, np.ndarray]) -> None:
        for name, variable in self.named.items():
            variable.assign(_reorder(name, parameters[name], "ifog", "ifgo"))

    def first_moments(self) -> dict[str, np.ndarray]:
        moments = [v for v in self.optimizer.variables if v.path.endswith("_momentum")]
        of = dict(zip((id(v) for v in self.network.trainable_variables), moments, strict=True))
        return {
            name: _reorder(name, np.asarray(of[id(variable)]), "ifgo", "ifog")
            for name, variable in self.named.items()
        }


def _place(batch: Batch) -> tuple[list[Any], Any]:
    arrays = [array for stream in batch.streams.values() for array in (stream.frames, stream.valid)]
    return [ops.convert_to_tensor(array) for array in arrays], ops.convert_to_tensor(batch.label)


def _reorder(name: str, array: np.ndarray, order: str, into: str) -> np.ndarray:
    return reorder_gates(array, order, into) if ".layers." in name else array
