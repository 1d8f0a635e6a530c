"""Networks as one ONNX file: predictions from raw features, pooled as in a run."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
from flax import nnx
from onnx import TensorProto

from mmattn.data.corpus import Corpus
from mmattn.data.normalise import Normaliser
from mmattn.evaluate.predictions import SMALLEST_PROBABILITY
from mmattn.export.graph import Graph
from mmattn.model.fusion.cross import Cross, CrossAttention, pair_name
from mmattn.model.fusion.late import Late
from mmattn.model.network import Classifier, Network
from mmattn.train.inference import Restored, learner_for

SMALLEST = np.float32(np.log(SMALLEST_PROBABILITY))
ZERO = np.float32(0)


class Part(NamedTuple):
    """A network with its normaliser and its temperature, None for none."""

    network: Network
    normaliser: Normaliser
    temperature: float | None


class Frames(NamedTuple):
    """One modality of the clips: names of values, [T, B, …] except the length [B]."""

    frames: str  # 0 where not valid
    valid: str
    length: str
    times: str | None  # seconds, if the fusion uses them
    given: str  # [1] T, or 0 if a frame of padding was added


def onnx_model(
    networks: Sequence[Restored],
    temperatures: Sequence[float | None],
    corpus: Corpus,
    metadata: dict[str, str],
) -> onnx.ModelProto:
    """The graph of networks of one architecture.

    Inputs, for each modality NAME: NAME [batch, NAME_frames, F] float32 features as in feature
    files, with any padding; NAME_length [batch] int32, 0 if a clip lacks it; with a fusion that
    uses times, NAME_times [batch, NAME_frames] float32 seconds.

    Outputs: probabilities [batch, K], calibrated and pooled; NAME_attention [batch, NAME_frames],
    the mean of all networks, 0 in the padding.

    Args:
        networks: in the file.
        temperatures: of the networks, None for none.
        corpus: clips with their features and classes.
        metadata: see `Graph.model`.
    """
    config = networks[0].config
    graph, data = learner_for(config, corpus, 1).graph, config.data
    parts = [
        Part(nnx.merge(graph, *one.weights), one.normaliser, temperature)
        for one, temperature in zip(networks, temperatures, strict=True)
    ]
    g, network = Graph(), parts[0].network
    raw = {
        name: _read(g, name, corpus.widths[name], data.zero_is_gap(name), network.fusion.uses_times)
        for name in network.branches
    }
    votes, attention = [], []
    for part in parts:
        logits, weights = _predict(g, part, raw)
        votes.append(_calibrated(g, g.log_softmax(logits), part.temperature))
        attention.append(weights)
    if len(votes) > 1:
        votes = [g("Max", one, SMALLEST) for one in votes]
    g.output(
        "probabilities",
        g("Softmax", g("Mean", *votes), axis=-1),
        ["batch", len(corpus.class_names)],
    )
    for name in raw:
        mean = g("Mean", *(one[name] for one in attention))
        mean = g("Slice", mean, [0], raw[name].given, [0])
        shape = ["batch", f"{name}_frames"]
        g.output(f"{name}_attention", g("Transpose", mean, perm=[1, 0]), shape)
    return g.model("mmattn", metadata)


def call_onnx(content: bytes) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """The function of a file in ONNX Runtime; inputs that it does not have are dropped."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    wanted = [one.name for one in session.get_inputs()]
    names = [one.name for one in session.get_outputs()]

    def call(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = session.run(names, {name: inputs[name] for name in wanted})
        return dict(zip(names, found, strict=True))

    return call


def _read(g: Graph, name: str, width: int, zero_is_gap: bool, timed: bool) -> Frames:
    """The inputs of a modality, with zeros in the padding, and at least one frame."""
    shape = ["batch", f"{name}_frames"]
    x = g.input(name, TensorProto.FLOAT, [*shape, width])
    length = g.input(f"{name}_length", TensorProto.INT32, ["batch"])
    x = g("Transpose", x, perm=[1, 0, 2])
    given = g("Gather", g("Shape", x), [0])
    # Operators may fail without any frame.
    lacks = g.cast(g("Equal", given, [0]), TensorProto.INT64)
    x = g("Pad", x, g("Concat", [0, 0, 0], lacks, [0, 0], axis=0))
    count = g("Gather", g("Shape", x), np.int64(0))
    place = g("Range", np.int64(0), count, np.int64(1))
    long = g.cast(length, TensorProto.INT64)
    valid = inside = g("Less", g("Unsqueeze", place, [1]), g("Unsqueeze", long, [0]))
    x = g("Where", g("Unsqueeze", inside, [2]), x, ZERO)
    if zero_is_gap:
        valid = g.any(g("Not", g("Equal", x, ZERO)), 2)  # false in the padding
    times = None
    if timed:
        times = g("Transpose", g.input(f"{name}_times", TensorProto.FLOAT, shape), perm=[1, 0])
        times = g("Pad", times, g("Concat", [0, 0], lacks, [0], axis=0))
    return Frames(x, valid, length, times, given)


def _predict(g: Graph, part: Part, raw: dict[str, Frames]) -> tuple[str, dict[str, str]]:
    """The logits [B, K] of a network, and its attention [T, B] by modality."""
    network, streams, embeddings = part.network, {}, {}
    for name, encoder in network.branches.items():
        mean, deviation = (part.normaliser[f"{name}_{of}"] for of in ("mean", "std"))
        x = g("Div", g("Sub", raw[name].frames, mean), deviation)
        x = g("Where", g("Unsqueeze", raw[name].valid, [2]), x, ZERO)
        streams[name] = raw[name]._replace(frames=x)
        for pair in encoder.layers:
            x = g.lstm(x, raw[name].length, pair)
        embeddings[name] = x
    if isinstance(network.fusion, Cross):
        fused, attention = _cross(g, network.fusion, embeddings, streams)
        return _classify(g, network, fused, [*streams.values()]), attention
    pooled, attention = {}, {}
    for name, encoder in network.branches.items():
        pooled[name], attention[name] = g.attend(
            embeddings[name], streams[name].valid, encoder.attention
        )
    if not isinstance(network.fusion, Late):
        fused = g("Concat", *pooled.values(), axis=-1)
        return _classify(g, network, fused, [*streams.values()]), attention
    logits = {
        name: _classify(g, classifier, pooled[name], [streams[name]])
        for name, classifier in network.classifiers.items()
    }
    return _late(g, np.asarray(network.fusion.log_weights[...]), logits, streams), attention


def _classify(g: Graph, classifier: Classifier, x: str, streams: list[Frames]) -> str:
    """Logits [B, K], see `Classifier.classify`."""
    for dense, norm in zip(classifier.dense, classifier.norms, strict=True):
        x = g.batch_norm(g("Relu", g.linear(x, dense)), norm)
    head, beside = g.linear(x, classifier.classifier), classifier.statistics
    if beside is None:
        return head
    x = [g.functionals(stream.frames, stream.valid) for stream in streams]
    x = g("Mul", g.batch_norm(g("Concat", *x, axis=-1), beside.norm), np.float32(beside.gain))
    both = [g.log_softmax(one) for one in (head, g.linear(x, beside.linear))]
    most = g("Max", *both)
    shares = g("Sum", *(g("Exp", g("Sub", one, most)) for one in both))
    return g("Add", most, g("Log", shares))  # without -log 2, which softmax ignores


def _late(
    g: Graph, log_weights: np.ndarray, logits: dict[str, str], streams: dict[str, Frames]
) -> str:
    """See `Late.join`."""
    names = sorted(logits)
    present = [g("Unsqueeze", g.any(streams[name].valid, 0), [1]) for name in names]
    weights = g.softmax(log_weights[None], g("Concat", *present, axis=1), axis=1)
    votes = [g("Unsqueeze", g.log_softmax(logits[name]), [1]) for name in names]
    return g.sum(g("Mul", g("Unsqueeze", weights, [2]), g("Concat", *votes, axis=1)), 1)


def _cross(
    g: Graph, fusion: Cross, embeddings: dict[str, str], streams: dict[str, Frames]
) -> tuple[str, dict[str, str]]:
    """See `Cross`: [B, D], and the attention [T, B] by modality.

    Not in chunks: every frame is compared with all frames of the other modality; those outside of
    the window are masked.
    """
    parts = {}
    for name, x in sorted(embeddings.items()):
        project = fusion.project[name]
        kernels = np.split(np.asarray(project.kernel[...]), 4, axis=-1)
        biases = np.split(np.asarray(project.bias[...]), 4)
        parts[name] = [
            g("Add", g("MatMul", x, kernel), bias)
            for kernel, bias in zip(kernels, biases, strict=True)
        ]
    joint, bias = [], []
    for name, (query, _, _, own) in parts.items():
        found = [
            _cross_attend(
                g,
                fusion.cross[pair_name(name, other, parts)],
                fusion.features,
                (query, streams[name].times),
                (key, value, streams[other].times, streams[other].valid),
            )
            for other, (_, key, value, _) in parts.items()
            if other != name
        ]
        if found:
            both = g("Concat", *found, *(g("Mul", own, one) for one in found), axis=-1)
            own = g("Add", own, g.linear(both, fusion.join[name]))
        joint.append(g("Relu", own))
        valid = g.cast(streams[name].valid)
        count = g("Max", g.sum(valid, 0, keep=True), np.float32(1))
        bias.append(g("Sub", g("Mul", valid, ZERO), g("Log", count)))
    valid = g("Concat", *(streams[name].valid for name in parts), axis=0)
    joint, bias = g("Concat", *joint, axis=0), g("Concat", *bias, axis=0)
    pooled, weights = g.attend(joint, valid, fusion.attention, bias)
    lengths = [g("Gather", g("Shape", x), [0]) for x in (embeddings[name] for name in parts)]
    cut = g("Split", weights, g("Concat", *lengths, axis=0), outputs=len(parts), axis=0)
    return pooled, dict(zip(parts, [cut] if len(parts) == 1 else cut, strict=True))


def _cross_attend(g: Graph, attention: CrossAttention, units: int, own: tuple, other: tuple) -> str:
    """See `CrossAttention`, of `units` features in total.

    Args:
        own: query [T, B, D] and times [T, B].
        other: key and value [S, B, D], times and valid [S, B].
    """
    (query, times), (key, value, others, valid) = own, other
    heads, each = attention.heads, units // attention.heads

    def by_head(x: str, perm: list[int]) -> str:
        return g("Transpose", g("Reshape", x, [0, 0, heads, each]), perm=perm)

    query, value = (by_head(x, [1, 2, 0, 3]) for x in (query, value))  # [B, heads, T, D / heads]
    scores = g("MatMul", query, by_head(key, [1, 2, 3, 0]))  # [B, heads, T, S]
    times, others, valid = (g("Transpose", x, perm=[1, 0]) for x in (times, others, valid))
    distance = g("Sub", g("Unsqueeze", others, [1]), g("Unsqueeze", times, [2]))
    near = g("LessOrEqual", g("Abs", distance), np.float32(attention.window))
    near = g("And", near, g("Unsqueeze", valid, [1]))
    centre, log_width = (
        np.asarray(one[...])[None, :, None, None] for one in (attention.centre, attention.log_width)
    )
    away = g("Mul", g("Sub", g("Unsqueeze", distance, [1]), centre), np.exp(-log_width))
    bias = g("Mul", g("Mul", away, away), np.float32(-0.5))
    scores = g("Add", g("Mul", scores, np.float32(each**-0.5)), bias)
    found = g("MatMul", g.softmax(scores, g("Unsqueeze", near, [1]), axis=-1), value)
    return g("Reshape", g("Transpose", found, perm=[2, 0, 1, 3]), [0, 0, units])


def _calibrated(g: Graph, votes: str, temperature: float | None) -> str:
    """Log-probabilities at a temperature; see `mmattn.evaluate.calibration.calibrated`."""
    if temperature is None:
        return votes
    scaled = g("Mul", g("Max", votes, SMALLEST), np.float32(1 / temperature))
    return g.log_softmax(scaled)
