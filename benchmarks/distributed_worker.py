"""One of the processes that `benchmarks.distributed` starts."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import dacite
import jax
import numpy as np
import tyro

from benchmarks.cluster import read_program
from benchmarks.contenders.ours import Contestant
from benchmarks.distributed import Result
from benchmarks.work import Work, make_work
from experiments.no_aug import CONFIG
from mmattn.cli import end_process_after
from mmattn.config import DistributedConfig, ModelConfig
from mmattn.console import be_quiet
from mmattn.train import devices, processes

REPEATS = 8  # exchanges per call, so that dispatch matters little


@dataclass(frozen=True)
class Job:
    """What to measure; see `benchmarks.distributed.Options`."""

    devices: int
    clips: tuple[int, ...]
    """Clips per device in a step."""
    sizes: tuple[int, ...]
    rounds: int
    out: Path
    model: str
    """JSON."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    def __call__(self) -> None:
        processes.start_processes(self.distributed)
        be_quiet()
        works = {clips: self.work(clips * self.devices) for clips in self.clips}
        middle = works[self.clips[-1]]
        contestant = Contestant(middle)
        learner, dispatch = contestant.learner, CONFIG.train.steps_per_dispatch
        trainings = {clips: training(contestant, work) for clips, work in works.items()}
        place = self.seconds(lambda: contestant.place(middle))
        result = Result(
            processes=processes.count(),
            devices=self.devices,
            parameters=int(learner.flat.ends[-1]),
            frames={f"{name}_frames": n for name, n in middle.dispatches[0].bucket.items()},
            dispatch=dispatch,
            exchange={size: self.repeated(exchange, size) for size in self.sizes},
            total={size: self.repeated(total, size) for size in self.sizes},
            steps={n: self.seconds(train) / dispatch for n, (_, train) in trainings.items()},
            batches=middle.clips / processes.count() / place,
            collectives=read_program(trainings[self.clips[0]][0](), self.devices),
        )
        processes.from_first(lambda: self.out.write_text(json.dumps(asdict(result))) and None)

    def work(self, batch: int) -> Work:
        """One full dispatch of the middle one of the padded shapes, of full-size clips."""
        model = dacite.from_dict(ModelConfig, json.loads(self.model), dacite.Config(cast=[tuple]))
        config = replace(CONFIG, model=model, devices=self.devices)
        return make_work(batch, batch * config.train.steps_per_dispatch, config).middle()

    def seconds(self, work: Callable[[], Any]) -> float:
        """The median time of some work, without the first."""
        processes.exchange(None)  # one may compile for longer than gloo waits
        times = []
        for _ in range(self.rounds + 1):
            begin = perf_counter()
            jax.block_until_ready(work())
            times.append(perf_counter() - begin)
        return median(times[1:])

    def repeated(self, once: Callable, size: int) -> float:
        """Seconds of an operation on a vector of `size` float32 on each device."""
        compiled = devices.parallel(
            lambda vector: jax.lax.fori_loop(0, REPEATS, lambda _, x: once(x), vector),
            self.devices,
            (0,),
        )
        length = -(-size // self.devices) * self.devices
        vector = devices.replicate(np.ones(length, np.float32), self.devices)
        return self.seconds(lambda: compiled(vector)) / REPEATS


def exchange(vector: jax.Array) -> jax.Array:
    """Sum, scatter and gather a vector, as a training step does with all parameters."""
    return devices.gather(devices.sum_and_scatter(vector)) / jax.lax.axis_size(devices.AXIS)


def total(vector: jax.Array) -> jax.Array:
    """Sum a vector, as a training step does with the statistics of the batch norm."""
    return devices.sum_over_devices(vector) / jax.lax.axis_size(devices.AXIS)


def training(contestant: Contestant, work: Work) -> tuple[Callable[[], str], Callable[[], Any]]:
    """Training on clips already on the devices: the text of its program, and a call."""
    ((batches, count),) = contestant.place(work)
    learner, settings = contestant.learner, contestant.settings
    sums = jax.tree.map(lambda x: x.copy(), contestant.no_sums)  # the step donates it
    held = [learner.shard_state(learner.initial(CONFIG.seed)), sums]

    def text():
        uniform = learner.draw(held[0].step, batches.weight, settings.key)
        return learner.steps.lower(*held, batches, uniform, count, settings).compile().as_text()

    def train():
        *held[:], check = learner.train(*held, batches, count, settings)
        return check

    return text, train


if __name__ == "__main__":
    end_process_after(tyro.cli(Job), processes.leave)
