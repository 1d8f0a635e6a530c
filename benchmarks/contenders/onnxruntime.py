"""ONNX Runtime: the trained network as a graph of ONNX operators; it predicts, and trains nothing.

Its LSTM takes both directions of a layer at once. A thread a core, as the others.
"""

from typing import Any, NoReturn

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from benchmarks.contenders.base import (
    BATCH_NORM_EPSILON,
    Contender,
    draw_parameters,
    lstm_layers,
    reorder_gates,
)
from benchmarks.work import Work
from mmattn.data.batches import Batch
from mmattn.errors import UserError
from mmattn.machine import cores


class Contestant(Contender):
    """See the module."""

    trains = False

    def __init__(self, work: Work):
        self.work = work
        self.load(draw_parameters(work))

    def load(self, parameters: dict[str, np.ndarray]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        model = Graph(parameters).model(self.work)
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, ["CPUExecutionProvider"]
        )

    def predict(self, batches: list[Batch]) -> np.ndarray:
        found = []
        for batch in batches:
            feeds = {}
            for name, stream in batch.streams.items():
                feeds[name] = stream.frames.swapaxes(0, 1)
                feeds[f"{name} length"] = stream.length.astype(np.int32)
                feeds[f"{name} valid"] = stream.valid.T
            found.append(self.session.run(["probabilities"], feeds)[0])
        return np.concatenate(found)

    def place(self, work: Work) -> NoReturn:
        raise UserError("onnxruntime predicts, and trains nothing")

    train = first_moments = place


class Graph:
    """Nodes and constants, as they come."""

    def __init__(self, parameters: dict[str, np.ndarray]):
        self.parameters = parameters
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, array: Any) -> str:
        """A name for an array."""
        name = f"constant {len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """The output of a node."""
        name = output or f"{kind} {len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def model(self, work: Work) -> onnx.ModelProto:
        """The whole network; inputs are time-major [T, B, …]."""
        tensor, pooled, inputs = helper.make_tensor_value_info, [], []
        for name, pairs in lstm_layers(work):
            time, kinds = f"T {name}", onnx.TensorProto
            inputs += [
                tensor(name, kinds.FLOAT, [time, "B", work.widths[name]]),
                tensor(f"{name} length", kinds.INT32, ["B"]),
                tensor(f"{name} valid", kinds.BOOL, [time, "B"]),
            ]
            x = name
            for pair in pairs:
                x = self.layer(x, f"{name} length", [layer.name for layer in pair], pair[0].units)
            pooled.append(self.pool(x, f"{name} valid", f"branches.{name}.attention.kernel"))
        x = self.node("Concat", *pooled, axis=-1)
        for number, _ in enumerate(work.config.model.head_units):
            x = self.node("Relu", self.linear(x, f"dense.{number}"))
            scale, bias = (self.parameters[f"norms.{number}.{of}"] for of in ("scale", "bias"))
            blank = self.constant(np.zeros_like(bias)), self.constant(np.ones_like(bias))
            both = self.constant(scale), self.constant(bias)
            x = self.node("BatchNormalization", x, *both, *blank, epsilon=BATCH_NORM_EPSILON)
        self.node("Softmax", self.linear(x, "classifier"), output="probabilities", axis=-1)
        outputs = [tensor("probabilities", onnx.TensorProto.FLOAT, ["B", work.classes])]
        graph = helper.make_graph(self.nodes, "network", inputs, outputs, self.constants)
        # Versions that many releases of ONNX Runtime read.
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def layer(self, x: str, length: str, names: list[str], units: int) -> str:
        """Both directions of an LSTM layer, side by side [T, B, 2 H]."""

        def both(what: str) -> np.ndarray:
            arrays = [self.parameters[f"{name}.{what}"] for name in names]
            return np.stack([reorder_gates(array, "ifog", "iofg").T for array in arrays])

        bias = both("bias")
        weights = both("input_kernel"), both("recurrent_kernel")
        constants = [*map(self.constant, weights), self.constant(np.hstack([bias, 0 * bias]))]
        attributes = {"direction": "bidirectional", "hidden_size": units}
        h = self.node("LSTM", x, *constants, length, **attributes)  # [T, 2, B, H]
        h = self.node("Transpose", h, perm=[0, 2, 1, 3])
        return self.node("Reshape", h, self.constant([0, 0, 2 * units]))

    def pool(self, x: str, valid: str, kernel: str) -> str:
        """The mean over time [B, H] by attention."""
        scores = self.node("MatMul", x, self.constant(self.parameters[kernel]))  # [T, B, 1]
        mask = self.node("Unsqueeze", valid, self.constant([2]))
        least = self.constant(np.float32(-np.inf))
        scores = self.node("Where", mask, self.node("Tanh", scores), least)
        weights = self.node("Softmax", scores, axis=0)
        weighted = self.node("Mul", weights, x)
        return self.node("ReduceSum", weighted, self.constant([0]), keepdims=0)

    def linear(self, x: str, name: str) -> str:
        """x W + b."""
        kernel, bias = (self.constant(self.parameters[f"{name}.{of}"]) for of in ("kernel", "bias"))
        return self.node("Gemm", x, kernel, bias)
