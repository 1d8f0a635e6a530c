"""The interface of contenders, and their common parts."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.work import Work
from mmattn.data.batches import Batch
from mmattn.data.feature_file import FEATURES
from mmattn.data.stream import Stream

ADAM_B1 = 0.9
BATCH_NORM_EPSILON = 1e-3
BATCH_NORM_MOMENTUM = 0.9


class Contender(ABC):
    """The network of `Work.config`, its training step and its prediction, in one framework.

    Parameters and gradients go in and out as a dict of arrays in the layout of mmattn, named by
    their path in `mmattn.model.network.Network`, e.g. branches.audio.layers.0.1.input_kernel;
    see `parameter_shapes`.
    """

    trains = True

    @abstractmethod
    def __init__(self, work: Work):
        """Build the network with its initial parameters."""

    @abstractmethod
    def place(self, work: Work) -> Any:
        """The batches as arrays of the framework, placed for the steps."""

    @abstractmethod
    def train(self, placed: Any) -> float:
        """One optimiser step for each batch; waits for the end. Returns the mean loss."""

    @abstractmethod
    def predict(self, batches: list[Batch]) -> np.ndarray:
        """Probabilities [n, K] of all clips, in order, from padded arrays [B, …]."""

    def predict_file(self, path: Path) -> np.ndarray:
        """Probabilities [K] of a feature file, read as fast as possible, without checks."""
        streams = {}
        with np.load(path) as arrays:
            for name in arrays:
                if name.endswith(FEATURES):
                    frames, modality = arrays[name][None], name.removesuffix(FEATURES)
                    times = np.zeros(frames.shape[:2], np.float32)
                    streams[modality] = Stream(frames, times, np.ones(frames.shape[:2], bool))
        label = np.zeros(1, np.int32)
        return self.predict([Batch(streams, label, *[None] * (len(Batch._fields) - 2))])[0]

    @abstractmethod
    def load(self, parameters: dict[str, np.ndarray]) -> None:
        """Replace the parameters."""

    @abstractmethod
    def first_moments(self) -> dict[str, np.ndarray]:
        """Adam's first moments: after a single step 1 - ADAM_B1 times the gradient."""


class Layer(NamedTuple):
    """One direction of an LSTM layer."""

    name: str
    features: int
    units: int
    reverse: bool


def lstm_layers(work: Work) -> Iterator[tuple[str, list[tuple[Layer, Layer]]]]:
    """Of each modality: its name and, for each layer, both directions."""
    model = work.config.model
    for modality, features in work.widths.items():
        pairs = []
        for number, units in enumerate(model.units_of(modality)):
            prefix = f"branches.{modality}.layers.{number}"
            pairs.append(
                tuple(Layer(f"{prefix}.{back:d}", features, units, back) for back in (False, True))
            )
            features = 2 * units
        yield modality, pairs


def parameter_shapes(work: Work) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter, by name."""
    shapes, joined = {}, 0
    for modality, pairs in lstm_layers(work):
        for layer in (layer for pair in pairs for layer in pair):
            shapes[f"{layer.name}.input_kernel"] = (layer.features, 4 * layer.units)
            shapes[f"{layer.name}.recurrent_kernel"] = (layer.units, 4 * layer.units)
            shapes[f"{layer.name}.bias"] = (4 * layer.units,)
        pooled = 2 * pairs[-1][0].units
        shapes[f"branches.{modality}.attention.kernel"] = (pooled, 1)
        joined += pooled
    for number, width in enumerate(work.config.model.head_units):
        shapes[f"dense.{number}.kernel"] = (joined, width)
        shapes[f"dense.{number}.bias"] = shapes[f"norms.{number}.scale"] = (width,)
        shapes[f"norms.{number}.bias"] = (width,)
        joined = width
    shapes["classifier.kernel"], shapes["classifier.bias"] = (joined, work.classes), (work.classes,)
    return shapes


def draw_parameters(work: Work) -> dict[str, np.ndarray]:
    """Random parameters, the same for all contenders, none of them 0 or 1."""
    rng = np.random.default_rng(0)
    return {
        name: rng.uniform(-1, 1, shape).astype(np.float32) + ("scale" in name)
        for name, shape in parameter_shapes(work).items()
    }


def reorder_gates(array: np.ndarray, order: str, into: str, axis: int = -1) -> np.ndarray:
    """The four gates of an LSTM kernel or bias in another order, e.g. from "ifog" into "ifgo"."""
    gates = dict(zip(order, np.split(array, 4, axis), strict=True))
    return np.concatenate([gates[gate] for gate in into], axis)
