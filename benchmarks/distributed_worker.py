"""One of the processes that `benchmarks.distributed` starts."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import dacite
import jax
import numpy as np
import tyro

from benchmarks.distributed import WEAK
from experiments.no_aug import CONFIG
from mmattn.cli import end_process_after
from mmattn.config import DistributedConfig, ModelConfig
from mmattn.console import be_quiet
from mmattn.data.corpus import open_corpus
from mmattn.data.splits import make_split
from mmattn.train import devices, processes
from mmattn.train.loop import epoch_plan, make_trainer

REPEATS = 8  # exchanges a call, so that dispatch counts little


@dataclass(frozen=True)
class Job:
    """What to measure; see `benchmarks.distributed.Options`."""

    devices: int
    batch: int
    rounds: int
    clips: int
    out: Path
    sizes: tuple[int, ...]
    model: str
    """JSON."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    def __call__(self) -> None:
        processes.start_processes(self.distributed)
        be_quiet()
        devices.start_jax(self.devices, self.devices)
        exchange = {size: exchange_seconds(self, size) for size in self.sizes}
        parameters, strong = training_rate(self, self.batch)
        _, weak = training_rate(self, WEAK * self.devices)
        found = {"exchange": exchange, "parameters": parameters, "strong": strong, "weak": weak}
        processes.from_first(lambda: self.out.write_text(json.dumps(found)) and None)


def seconds(job: Job, work: Callable[[], Any]) -> float:
    """The median time of some work, the first time left out."""
    times = []
    for _ in range(job.rounds + 1):
        begin = perf_counter()
        jax.block_until_ready(work())
        times.append(perf_counter() - begin)
    return median(times[1:])


def exchange_seconds(job: Job, size: int) -> float:
    """Seconds to sum, scatter and gather a vector of float32, as a training step does."""
    count = job.devices

    def repeat(vector):
        def once(_, vector):
            return devices.gather(devices.sum_and_scatter(vector)) / count

        return jax.lax.fori_loop(0, REPEATS, once, vector)

    compiled = devices.parallel(repeat, count, (0,))
    vector = devices.replicate(np.ones(-(-size // count) * count, np.float32), count)
    return seconds(job, lambda: compiled(vector)) / REPEATS


def training_rate(job: Job, batch: int) -> tuple[int, float]:
    """The number of parameters, and clips a second of training on clips that are placed already."""
    synthetic = replace(CONFIG.data.synthetic, clips=job.clips)
    config = replace(
        CONFIG,
        model=dacite.from_dict(ModelConfig, json.loads(job.model), dacite.Config(cast=[tuple])),
        data=replace(CONFIG.data, buckets=1, synthetic=synthetic),
        train=replace(CONFIG.train, batch=batch),
    )
    corpus = open_corpus(config.data)
    split = make_split(corpus, config.data, config.seed, None, 0, 1)
    trainer = make_trainer(config, corpus, split, job.devices)
    steps = config.train.steps_per_dispatch
    dispatch = max(epoch_plan(trainer, split.train, 0), key=lambda one: sum(map(len, one.batches)))
    ((_, placed),) = trainer.feed([dispatch], steps)
    held = [*trainer.start()]

    def train():
        *held[:], check = trainer.learner.train(
            *held, placed, np.int32(len(dispatch.batches)), trainer.settings
        )
        return check

    parameters = sum(x.size for x in jax.tree.leaves(trainer.initial.params))
    return parameters, sum(map(len, dispatch.batches)) / seconds(job, train)


if __name__ == "__main__":
    end_process_after(tyro.cli(Job), processes.leave)
