"""This project, as `python -m experiments.no_aug` trains: the same learner on the same devices."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

# What a user's run imports before its first step counts as start-up.
import mmattn.run.experiment  # noqa: F401
from benchmarks.contenders.base import Contender
from benchmarks.machine import installed
from benchmarks.work import Work, make_work, write_clip
from mmattn.data.batches import Batch, collate, shared_shape
from mmattn.data.normalise import neutral
from mmattn.export.export import write_export
from mmattn.run.run import Run, load_run
from mmattn.train import devices
from mmattn.train.loop import Position, Trainer
from mmattn.train.step import NO_SUMS, Learner, Settings, random_key


class Contestant(Contender):
    """`Learner` with the config's own dispatches and its devices "auto"."""

    def __init__(self, work: Work):
        config = work.config
        self.work, self.run = work, None
        self.devices = devices.start_devices(config.devices, config.train.batch)
        self.learner = Learner(config.model, config.train, work.widths, work.classes, self.devices)
        key, rate = random_key(config.seed, "dropout"), np.float32(config.train.learning_rate)
        self.settings = Settings(key, work.class_weights, rate)
        self.state = self.learner.shard_state(self.learner.initial(config.seed))
        self.no_sums = devices.replicate(NO_SUMS, self.devices)
        self.weights = None

    def place(self, work: Work) -> list[tuple[Batch, np.int32]]:
        train, buckets = work.config.train, [dispatch.bucket for dispatch in work.dispatches]
        return [
            (
                devices.place(
                    collate(
                        work.corpus,
                        dispatch._replace(bucket=shared_shape(dispatch.bucket, buckets)),
                        neutral(work.widths),
                        self.devices,
                        train.batch,
                        train.steps_per_dispatch,
                        own=devices.own_devices(self.devices),
                    )
                ),
                np.int32(len(dispatch.batches)),
            )
            for dispatch in work.dispatches
        ]

    def train(self, placed: list[tuple[Batch, np.int32]]) -> float:
        sums = jax.tree.map(lambda x: x.copy(), self.no_sums)  # the step donates its argument
        for batches, count in placed:
            self.state, sums, _ = self.learner.train(
                self.state, sums, batches, count, self.settings
            )
        self.weights = None
        return float(sum(np.asarray(sums.loss)) / sum(np.asarray(sums.clips)))

    def predict(self, batches: list[Batch]) -> np.ndarray:
        def divide(x):
            return x.reshape(self.devices, 1, -1, *x.shape[1:])

        if self.weights is None:
            self.weights = self.learner.weights(self.state)
        found, weights = [], self.settings.class_weights
        for batch in batches:
            placed = devices.place(jax.tree.map(divide, batch))
            found.append(self.learner.predict(self.weights, placed, weights).probabilities)
        return np.concatenate([np.asarray(x).reshape(-1, x.shape[-1]) for x in found])

    def predict_file(self, path: Path) -> np.ndarray:
        if self.run is None:
            self.run = untrained_run(self.work)
        return self.run.predict(path).probabilities

    def load(self, parameters: dict[str, np.ndarray]) -> None:
        state = self.learner.gather_state(self.state)
        paths = nnx.to_flat_state(state.params)
        for path, variable in paths:
            variable.set_value(parameters[_name(path)])
        params = nnx.from_flat_state(paths)
        self.state, self.weights = self.learner.shard_state(state._replace(params=params)), None

    def first_moments(self) -> dict[str, np.ndarray]:
        moments = optax.tree.get(self.learner.gather_state(self.state).opt_state, "mu")
        return {
            _name(path): np.asarray(variable.get_value())
            for path, variable in nnx.to_flat_state(moments)
        }


def untrained_run(work: Work) -> Run:
    """A run as after training in memory, with initial parameters."""
    run = Run(work.config)
    clips = np.arange(1)
    trainer = Trainer(work.config, work.corpus, neutral(work.widths), None, clips, 1)
    trainer.save(run.checkpoints, "best", Position(*trainer.start()), {"history": []})
    return run


def write_untrained(folder: Path) -> None:
    """Write such a run to `run`, a `clip.npz` to predict and, if possible, `model.onnx`."""
    work = make_work(1, 1)
    run = untrained_run(work)
    run.history, run.split = [], {}
    run.save(folder / "run")
    write_clip(folder / "clip.npz", work.corpus, 0)
    if installed("onnx") and installed("onnxruntime"):
        write_export(folder / "model.onnx", load_run(folder / "run"), "")


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
