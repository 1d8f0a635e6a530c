"""Layers as ONNX operators. Frames are time-major [T, B, …], as in the model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from flax import nnx
from onnx import TensorProto, helper

from mmattn.model.layers import BatchNorm, TemporalAttention
from mmattn.model.lstm import LSTM

# Versions that ONNX Runtime reads since 1.12 (2022).
OPSET, IR_VERSION = 17, 8
LEAST = np.finfo(np.float32).min  # a score whose softmax is 0
GATES = [0, 2, 1, 3]  # permutes our order i, f, o, g into that of ONNX, i, o, f, c

Value = str | np.ndarray | np.generic | list[int]


class Graph:
    """Nodes and constants in the order of their creation; values are identified by name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        """An input of the file; a string in the shape names an axis of any size."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, value: str, shape: Sequence[int | str]) -> None:
        """Make a float32 value an output of the file."""
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def __call__(self, kind: str, *inputs: Value, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; arrays and lists of integers are constants.

        Returns:
            The name of its output, or a list of names if it has several.
        """
        names = [f"{kind}_{len(self.nodes)}_{number}" for number in range(outputs)]
        sources = [one if isinstance(one, str) else self._constant(one) for one in inputs]
        self.nodes.append(helper.make_node(kind, sources, names, **attributes))
        return names if outputs > 1 else names[0]

    def _constant(self, value: Any) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def model(self, name: str, metadata: dict[str, str]) -> onnx.ModelProto:
        """The whole model, with its metadata."""
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.constants)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
        helper.set_model_props(model, metadata)
        return model

    def cast(self, value: str, kind: int = TensorProto.FLOAT) -> str:
        """Cast to another type."""
        return self("Cast", value, to=kind)

    def sum(self, value: str, axis: int, keep: bool = False) -> str:
        """The sum over an axis, possibly empty."""
        return self("ReduceSum", value, [axis], keepdims=int(keep))

    def any(self, value: str, axis: int, keep: bool = False) -> str:
        """Whether any is true over an axis, possibly empty."""
        return self("Greater", self.sum(self.cast(value), axis, keep), np.float32(0))

    def softmax(self, scores: Value, where: str, axis: int) -> str:
        """Masked softmax: 0 outside `where`, even if all is masked."""
        found = self("Softmax", self("Where", where, scores, LEAST), axis=axis)
        return self("Where", where, found, np.float32(0))

    def log_softmax(self, logits: str) -> str:
        """Log-softmax over the classes, the last axis."""
        return self("LogSoftmax", logits, axis=-1)

    def linear(self, x: str, layer: nnx.Linear) -> str:
        """x W + b, or x W, for any number of axes."""
        found = self("MatMul", x, np.asarray(layer.kernel[...]))
        return found if layer.bias is None else self("Add", found, np.asarray(layer.bias[...]))

    def batch_norm(self, x: str, norm: BatchNorm) -> str:
        """Batch normalisation by the running statistics."""
        scale, bias, mean, var = (
            np.asarray(one[...], np.float64) for one in (norm.scale, norm.bias, norm.mean, norm.var)
        )
        factor = (scale / np.sqrt(var + norm.epsilon)).astype(np.float32)
        centred = self("Sub", x, mean.astype(np.float32))
        return self("Add", self("Mul", centred, factor), bias.astype(np.float32))

    def lstm(self, x: str, length: str, pair: Sequence[LSTM]) -> str:
        """Both directions of a layer, concatenated: [T, B, F] and length [B] -> [T, B, 2 H]."""

        def both(number: int) -> np.ndarray:
            found = []
            for layer in pair:
                gates = np.split(np.asarray(layer.weights[number]), 4, axis=-1)
                found.append(np.concatenate([gates[gate] for gate in GATES], axis=-1).T)
            return np.ascontiguousarray(found)

        weights, recurrent, bias = map(both, range(3))
        units = recurrent.shape[-1]
        bias = np.hstack([bias, np.zeros_like(bias)])  # of the input and of the recurrent product
        attributes = {"direction": "bidirectional", "hidden_size": units}
        h = self("LSTM", x, weights, recurrent, bias, length, **attributes)  # [T, 2, B, H]
        return self("Reshape", self("Transpose", h, perm=[0, 2, 1, 3]), [0, 0, 2 * units])

    def attend(
        self, x: str, valid: str, attention: TemporalAttention, bias: str | None = None
    ) -> tuple[str, str]:
        """See `TemporalAttention`: [T, B, H], valid and bias [T, B] -> [B, H] and [T, B]."""
        if attention.kernel is None:
            scores = self("Mul", self.cast(valid), np.float32(0))
        else:
            kernel = np.asarray(attention.kernel[...])
            scores = self("Squeeze", self("MatMul", x, kernel), [2])
            scores = self("Tanh", scores) if attention.bounded else scores
        scores = scores if bias is None else self("Add", scores, bias)
        weights = self.softmax(scores, valid, axis=0)
        return self.sum(self("Mul", self("Unsqueeze", weights, [2]), x), 0), weights

    def functionals(self, x: str, valid: str) -> str:
        """See `mmattn.model.layers.functionals`: [T, B, F], valid [T, B] -> [B, 5 F]."""
        zero, least, most = np.float32(0), LEAST, -LEAST

        def mean(values: str, where: str) -> str:
            count = self("Max", self.sum(self.cast(where), 0), np.float32(1))
            return self("Div", self.sum(self("Where", where, values, zero), 0), count)

        def cut(value: str, start: int, stop: int) -> str:
            return self("Slice", value, [start], [stop], [0])

        inside = self("Unsqueeze", valid, [2])
        centre = mean(x, inside)
        away = self("Sub", x, centre)
        deviation = self("Max", mean(self("Mul", away, away), inside), np.float32(1e-12))
        end = np.iinfo(np.int64).max
        near = self("And", cut(inside, 1, end), cut(inside, 0, -1))
        change = self("Abs", self("Sub", cut(x, 1, end), cut(x, 0, -1)))
        found = [
            centre,
            self("Sqrt", deviation),
            self("ReduceMin", self("Where", inside, x, most), axes=[0], keepdims=0),
            self("ReduceMax", self("Where", inside, x, least), axes=[0], keepdims=0),
            mean(change, near),
        ]
        known = self.any(valid, 0)
        joined = self("Concat", *found, axis=-1)
        return self("Where", self("Unsqueeze", known, [1]), joined, zero)
