"""Nobody wins by doing less: one step of every contender, from the same parameters, is the same.

Each runs in its own process, as in the benchmark; gradients are read from the optimizer after the
very step that is timed, but for the dropout.
"""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import contenders
from benchmarks.contenders.base import draw_parameters
from benchmarks.side_by_side import started
from benchmarks.work import Scale
from benchmarks.worker import Job
from experiments.no_aug import CONFIG
from mmattn.config import ModelConfig

MODEL = ModelConfig(
    units={"audio": (3, 2), "video": (4, 3)},
    head_units=(16, 8),
    input_dropout=0,
    layer_dropout=0,
    pooled_dropout=0,
    head_dropout=(0, 0),
)
SCALE = Scale(clips=60, widths={"audio": 5, "video": 4}, rates={"audio": 2.0, "video": 1.0})
JOB = Job(
    contender="ours",
    task="check",
    batch=6,
    per_bucket=6,
    config=replace(CONFIG, model=MODEL, data=replace(CONFIG.data, buckets=1)),
    scale=SCALE,
)
pytestmark = pytest.mark.slow
PEERS = [name for name in contenders.CONTENDERS if name != "ours"]


def answer(name: str) -> dict:
    with started(replace(JOB, contender=name)) as worker:
        return worker.round()


@pytest.fixture(scope="module")
def ours() -> dict:
    return answer("ours")


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_does_the_same_work(name, ours):
    if why := contenders.missing(name):
        pytest.skip(why)
    theirs = answer(name)
    np.testing.assert_allclose(theirs["probabilities"], ours["probabilities"], atol=1e-5)
    if name == "onnxruntime":  # it only predicts
        return
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
    assert theirs["gradients"].keys() == ours["gradients"].keys()
    for name, expected in ours["gradients"].items():
        largest = np.abs(expected).max()
        assert largest > 1e-3, f"{name} would not be tested"
        gradient = theirs["gradients"][name]
        np.testing.assert_allclose(gradient, expected, 0, atol=1e-4 * largest, err_msg=name)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def direction(x, parameters, name):
    """One direction of a layer over a clip [T, F], frame by frame: [T, H]."""
    kernel, recurrent, bias = (
        parameters[f"{name}.{part}"] for part in ("input_kernel", "recurrent_kernel", "bias")
    )
    h = c = np.zeros(len(recurrent))
    states = []
    for frame in x:
        i, f, o, g = np.split(frame @ kernel + h @ recurrent + bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.array(states)


def pool(x, parameters, branch):
    """The branch's output for a clip [T, F] without padding."""
    for number in range(2):
        layer = f"{branch}.layers.{number}"
        ahead = direction(x, parameters, f"{layer}.0")
        x = np.hstack([ahead, direction(x[::-1], parameters, f"{layer}.1")[::-1]])
    weights = np.exp(np.tanh(x @ parameters[f"{branch}.attention.kernel"]))
    return (weights * x).sum(0) / weights.sum()


def reference_loss(work, parameters) -> float:
    """The training loss in float64, by the textbook and clip by clip."""
    clips = work.dispatches[0].batches[0]
    x = np.array(
        [
            np.concatenate(
                [
                    pool(
                        work.corpus.streams[modality].clip(clip).frames.astype(np.float64),
                        parameters,
                        f"branches.{modality}",
                    )
                    for modality in ("audio", "video")
                ]
            )
            for clip in clips
        ]
    )
    for number in range(2):
        x = x @ parameters[f"dense.{number}.kernel"] + parameters[f"dense.{number}.bias"]
        x = np.maximum(x, 0)
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)
        x = x * parameters[f"norms.{number}.scale"] + parameters[f"norms.{number}.bias"]
    x = x @ parameters["classifier.kernel"] + parameters["classifier.bias"]
    labels = work.corpus.labels[clips]
    p = (np.exp(x) / np.exp(x).sum(1, keepdims=True))[np.arange(len(clips)), labels]
    return float((-((1 - p) ** 2) * np.log(p) * work.class_weights[labels]).mean())


def test_ours_agrees_with_the_equations_in_float64(ours):
    work, rng, step = JOB.work(), np.random.default_rng(0), 1e-6
    lengths = work.corpus.streams["audio"].lengths[work.dispatches[0].batches[0]]
    assert len(set(lengths)) > 1  # the batch is ragged
    parameters = {name: p.astype(np.float64) for name, p in draw_parameters(work).items()}
    assert ours["loss"] == pytest.approx(reference_loss(work, parameters), rel=1e-5)
    for name, gradient in ours["gradients"].items():
        way = rng.standard_normal(parameters[name].shape)
        ends = [
            reference_loss(work, {**parameters, name: parameters[name] + sign * step * way})
            for sign in (1, -1)
        ]
        slope = (ends[0] - ends[1]) / (2 * step)
        limit = 1e-4 * np.linalg.norm(gradient) * np.linalg.norm(way) + 1e-8
        assert (np.array(gradient) * way).sum() == pytest.approx(slope, abs=limit), name
