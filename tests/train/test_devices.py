"""The number of devices and of steps a dispatch is a matter of speed: the training is the same."""

import os
import subprocess
import sys
from functools import cache
from typing import NamedTuple

import jax
import numpy as np
import pytest

from mmattn.config import (
    AugmentConfig,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    SyntheticConfig,
    TrainConfig,
)
from mmattn.data.batches import Augmentation, Dispatch, make_buckets, plan_epoch
from mmattn.data.corpus import Corpus, open_corpus
from mmattn.data.normalise import fit_normaliser
from mmattn.errors import UserError
from mmattn.model.fusion import fusion_of
from mmattn.train import devices
from mmattn.train.feed import Feed
from mmattn.train.inference import ClipPredictions, Predictor
from mmattn.train.loss import balanced_class_weights
from mmattn.train.step import NO_SUMS, Learner, Settings, Sums, TrainState

BATCH, STEPS, EPOCHS = 10, 4, 2  # on 4 devices 3, 3, 3 and 1 clips
MODEL = ModelConfig(
    units={"audio": (4,), "video": (3,)},
    head_units=(8,),
    input_dropout=0.1,
    pooled_dropout=0.1,
    head_dropout=(0.2,),
)
# Without batch norm: it leaves no gradient but rounding to the bias of a unit that is active in
# every clip, which Adam makes as large as any other.
CROSS = ModelConfig(
    fusion="cross",
    cross_units=4,
    units={"audio": (4,), "video": (3,)},
    head_units=(),
    input_dropout=0.0,
    pooled_dropout=0.0,
    head_dropout=(),
)
AUGMENT = AugmentConfig(tempo=(0.9, 1.1), noise={"audio": (0.1, 0.2)}, mixup=0.5)
WIDTHS = {"audio": 4, "video": 3}


@cache
def corpus() -> Corpus:
    sizes = {"audio_width": WIDTHS["audio"], "video_width": WIDTHS["video"]}
    rates = {"audio_rate": 12, "video_rate": 10}
    data = DataConfig(synthetic=SyntheticConfig(clips=72, speakers=4, **sizes, **rates))
    return open_corpus(data, ("audio", "video"))


@cache
def learner(count: int, model: ModelConfig = MODEL) -> Learner:
    geometry = fusion_of(model.fusion).geometry(corpus().streams, model)
    return Learner(model, TrainConfig(weight_decay=0.01, gamma=2.0), WIDTHS, 6, count, geometry)


CLIPS = np.random.default_rng(0).permutation(72)[:52]  # the last batch has two clips


class Run(NamedTuple):
    """What a training ends with."""

    state: TrainState
    sums: Sums
    gradient_norms: np.ndarray
    """Of each step."""
    predictions: ClipPredictions


def train(
    count: int,
    steps: int = STEPS,
    model: ModelConfig = MODEL,
    augment: AugmentConfig | None = None,
) -> Run:
    """Two epochs on `count` devices, `steps` at most in a dispatch."""
    own = learner(count, model)
    buckets = make_buckets(corpus(), np.arange(len(corpus())), 1)
    feed = Feed(corpus(), fit_normaliser(corpus(), CLIPS), buckets, BATCH, count)
    weights = balanced_class_weights(corpus().labels[CLIPS], 6)
    settings = Settings(jax.random.key(5), weights, np.float32(1e-3))
    state = own.shard_state(own.initial(seed=0))
    sums = devices.replicate(NO_SUMS, count)
    norms = []
    for epoch in range(EPOCHS):
        rng = np.random.default_rng([0, epoch])
        plan = [
            Dispatch(dispatch.bucket, dispatch.batches[at : at + steps])
            for dispatch in plan_epoch(corpus(), CLIPS, buckets, BATCH, STEPS, rng)
            for at in range(0, len(dispatch.batches), steps)
        ]
        augmentation = Augmentation(augment or AugmentConfig(), 0, epoch)
        for dispatch, (_, placed) in zip(plan, feed(plan, steps, augmentation), strict=True):
            number = np.int32(len(dispatch.batches))
            state, sums, check = own.train(state, sums, placed, number, settings)
            norms.extend(np.sqrt(np.asarray(check.gradient_square).sum(0))[:number])
    network = Predictor(ExperimentConfig(), own, own.weights(state), weights, feed)
    predictions = network.predict(np.arange(len(corpus())))
    for copies in jax.tree.leaves((state.step, state.batch_stats, own.weights(state))):
        copies = np.asarray(copies)
        np.testing.assert_array_equal(copies, np.broadcast_to(copies[:1], copies.shape))
    total = jax.tree.map(lambda x: np.asarray(x).sum(), sums)
    return Run(own.gather_state(state), total, np.array(norms), predictions)


@pytest.fixture(scope="module")
def one_device() -> Run:
    return train(1)


def assert_same_run(found: Run, expected: Run, size: float = 5e-6):
    """Equal but for the order in which float32 numbers are added up; `size` of the parameters."""

    def close(found, expected, size: float):
        np.testing.assert_allclose(found, expected, rtol=0, atol=size)

    assert found.state.step == expected.state.step
    jax.tree.map(lambda a, b: close(a, b, size), found.state.params, expected.state.params)
    jax.tree.map(
        lambda a, b: close(a, b, 5e-6), found.state.batch_stats, expected.state.batch_stats
    )
    assert found.sums.clips == expected.sums.clips
    assert found.sums.correct == expected.sums.correct
    np.testing.assert_allclose(found.sums.loss, expected.sums.loss, rtol=1e-5)
    np.testing.assert_allclose(found.gradient_norms, expected.gradient_norms, rtol=1e-5)
    close(found.predictions.probabilities, expected.predictions.probabilities, 1e-5)
    close(found.predictions.loss, expected.predictions.loss, 1e-5)
    for weights, theirs in zip(
        found.predictions.attention, expected.predictions.attention, strict=True
    ):
        jax.tree.map(lambda a, b: close(a, b, 1e-5), weights, theirs)


def test_the_training_is_one(one_device):
    """What the others are compared with: all of its parts change, and all clips are counted."""
    initial = learner(1).initial(seed=0)
    assert one_device.state.step == EPOCHS * -(-len(CLIPS) // BATCH)
    assert one_device.sums.clips == EPOCHS * len(CLIPS)
    assert len(one_device.gradient_norms) == one_device.state.step
    for part in ("params", "batch_stats"):
        before, after = getattr(initial, part), getattr(one_device.state, part)
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, after)
        assert min(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_any_number_of_devices_gives_the_same_training(one_device, count):
    assert_same_run(train(count), one_device)


@pytest.mark.slow
def test_cross_attention_and_augmented_mixed_clips_train_alike_on_any_number_of_devices():
    expected = train(1, model=CROSS, augment=AUGMENT)
    assert_same_run(train(4, model=CROSS, augment=AUGMENT), expected, size=2e-5)


def test_one_step_a_dispatch_gives_the_same_training(one_device):
    assert_same_run(train(1, steps=1), one_device)


def test_arrays_are_placed_replicated_and_read_back():
    tree = {"a": np.arange(12.0).reshape(4, 3), "b": np.arange(4)}
    placed = devices.place(tree)
    assert [shard.device for shard in placed["a"].addressable_shards] == jax.local_devices()
    np.testing.assert_array_equal(devices.first(placed)["a"], tree["a"][0])
    copies = devices.replicate(tree, 2)
    assert copies["a"].shape == (2, 4, 3)
    jax.tree.map(np.testing.assert_array_equal, devices.first(copies), tree)


def test_sums_and_numbers_of_devices():
    def run(x):
        return devices.sum_over_devices({"sum": x}), devices.device_number()

    sums, numbers = devices.parallel(run, 4, (0,))(np.arange(4.0))
    assert sums["sum"].tolist() == [6] * 4
    assert numbers.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [0, 25, -1, "30"])
def test_more_devices_than_clips_or_none_are_refused(count):
    with pytest.raises(UserError, match=rf"--devices {count}: expected 1 to 24"):
        devices.start_devices(count, batch=24)


class ToldJax:
    """Stands in for JAX where it has not started: a CPU has what it is told, a GPU machine two."""

    def __init__(self, backend: str, gpus: int = 2):
        self.config, self.count = self, 1
        self.backend, self.gpus = backend, gpus

    def update(self, option: str, value: object) -> None:
        if option == "jax_num_cpu_devices":
            self.count = value

    def default_backend(self) -> str:
        return self.backend

    def local_device_count(self) -> int:
        return self.count if self.backend == "cpu" else self.gpus


@pytest.mark.parametrize(
    ("cores", "batch", "count"), [(4, 24, 4), (5, 24, 4), (7, 10, 5), (16, 7, 7), (6, 7, 1)]
)
def test_auto_is_the_largest_divisor_of_the_batch_within_the_cores(
    monkeypatch, cores, batch, count
):
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(devices, "jax", ToldJax("cpu"))
    assert devices.start_devices("auto", batch) == count
    assert devices.jax.count == count


def test_gpus_are_counted_and_not_made(monkeypatch):
    monkeypatch.setattr(devices, "jax", ToldJax("gpu"))
    assert devices.start_devices("auto", 24) == 2
    assert devices.start_devices(1, 24) == 1
    with pytest.raises(UserError, match=r"--devices 3: JAX has 2 gpu device\(s\)"):
        devices.start_devices(3, 24)


def test_the_cpu_is_divided_before_jax_starts():
    program = (
        "import jax; from mmattn.train.devices import start_devices; "
        "print(start_devices('3', 24), jax.local_device_count())"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == ["3", "3"]


@pytest.mark.parametrize("options", [devices.QUICK_TO_COMPILE, {"xla_no_such_option": True}])
def test_programs_run_alike_whatever_options_they_are_compiled_with(monkeypatch, options):
    monkeypatch.delenv("XLA_FLAGS")  # which would come first
    monkeypatch.setattr(devices, "QUICK_TO_COMPILE", options)

    def run(x, y, key):
        draw = jax.random.uniform(key, ())
        return x + devices.sum_over_devices(y["y"]) + devices.device_number(), draw

    compiled, key = devices.parallel(run, 2, (0, 0, None), donate=(0,)), jax.random.key(1)
    for length in (1, 3, 3):  # other shapes are other programs
        x = devices.place(np.ones((2, length), np.float32))
        found, draw = compiled(x, {"y": np.arange(2.0, dtype=np.float32)}, key)
        np.testing.assert_array_equal(found, np.broadcast_to([[2.0], [3.0]], (2, length)))
        np.testing.assert_array_equal(draw, np.repeat(jax.random.uniform(key, ()), 2))
        assert x.is_deleted()
