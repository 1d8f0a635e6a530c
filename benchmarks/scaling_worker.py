"""The process for one number of devices: JAX can divide the CPU only once per process.

Started by `benchmarks.scaling`. When it is ready, and for each line on standard input, it writes a
line of JSON to its own pipe.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.contenders.ours import Contestant
from benchmarks.memory import megabytes
from benchmarks.scaling import Job, job_from_json
from benchmarks.work import Scale, Work, draw_corpus, make_work
from mmattn.config import ExperimentConfig
from mmattn.data.batches import Batch, Dispatch
from mmattn.model.layers import Training, draw_for_dropout
from mmattn.model.network import Network
from mmattn.train import devices
from mmattn.train.step import random_key


def training(job: Job) -> Callable[[], dict[str, Any]]:
    """A round measures each variant once: {"clips_per_s": [of each batch size, of each steps]}."""
    works = [middle_work(job, batch) for batch in job.batches]
    contestant = Contestant(works[0])
    trainers = [[_trainer(contestant, work, steps) for steps in job.steps] for work in works]

    def train() -> dict[str, Any]:
        rates = [
            [work.clips / _seconds(trainer) for trainer in row]
            for work, row in zip(works, trainers, strict=True)
        ]
        return {"clips_per_s": rates}

    return train


def middle_work(job: Job, batch: int) -> Work:
    """One dispatch of max(job.steps) batches of the middle padded shape.

    One shape, so that each variant compiles once: the best number of devices does not depend on a
    few frames.
    """
    most = max(job.steps)
    return make_work(batch, batch * most, _config(job, batch), job.scale).middle()


def _config(job: Job, batch: int) -> ExperimentConfig:
    train = replace(job.config.train, batch=batch, steps_per_dispatch=max(job.steps))
    return replace(job.config, devices=job.devices, train=train)


def _trainer(contestant: Contestant, work: Work, steps: int) -> Callable[[], Any]:
    """Train on the batches of a work's only dispatch, `steps` per dispatch; already compiled."""
    (dispatch,) = work.dispatches
    train = replace(work.config.train, steps_per_dispatch=steps)
    parts = [
        dispatch._replace(batches=dispatch.batches[at : at + steps])
        for at in range(0, len(dispatch.batches), steps)
    ]
    work = work._replace(config=replace(work.config, train=train), dispatches=parts)
    placed = contestant.place(work)
    contestant.train(placed)
    return partial(contestant.train, placed)


def overhead(job: Job) -> Callable[[], dict[str, Any]]:
    """A round measures, in seconds, the overhead of devices.

    A device has one clip of one frame per step, so that the work on clips, `compute`, is little
    more than reading the parameters; it is measured separately too, to be subtracted.
    """
    most = max(job.steps)
    work = one_frame_work(_config(job, job.devices), job.scale)
    devices.start_devices(job.devices, job.devices)
    jax.local_devices()  # starts the threads
    before = megabytes()
    contestant = Contestant(work)
    trainers = [_trainer(contestant, work, steps) for steps in job.steps]
    for trainer in trainers:
        trainer()
    network = Network(work.config.model, work.widths, work.classes, rngs=nnx.Rngs(0))
    parameters = sum(x.size for x in jax.tree.leaves(nnx.state(network, nnx.Param)))
    about = {
        "parameters": parameters,
        "memory_mb": megabytes("VmHWM") - before,
        "state_mb": sum(x.nbytes for x in jax.tree.leaves(contestant.state)) / job.devices / 1e6,
    }
    compute = gradients_alone(network, contestant, work)
    exchange = _repeated(
        lambda vector: devices.gather(devices.sum_and_scatter(vector)) / job.devices,
        np.ones(-(-parameters // job.devices) * job.devices, np.float32),
        job.devices,
        most,
    )
    dispatch = _repeated(lambda x: x + 1, np.float32(0), job.devices, 1)

    def measure() -> dict[str, Any]:
        return about | {
            "step": [_seconds(trainer) / most for trainer in trainers],
            "compute": _seconds(compute) / most,
            "exchange": _seconds(exchange) / most,
            "dispatch": _seconds(dispatch),
        }

    return measure


def one_frame_work(config: ExperimentConfig, scale: Scale) -> Work:
    """A dispatch of batches with one clip of one frame per device."""
    steps, batch = config.train.steps_per_dispatch, config.train.batch
    corpus = draw_corpus(replace(scale, clips=steps * batch), config.seed)
    one = np.ones(len(corpus), np.int64)
    streams = {name: replace(stream, lengths=one) for name, stream in corpus.streams.items()}
    batches = list(np.arange(len(corpus)).reshape(steps, batch))
    return Work(
        config,
        replace(corpus, streams=streams),
        [Dispatch(dict.fromkeys(streams, 1), batches)],
        np.ones(len(corpus.class_names), np.float32),
    )


def gradients_alone(network: Network, contestant: Contestant, work: Work) -> Callable[[], Any]:
    """Forward and backward for each step of a work's dispatch: no collective, no optimiser."""
    graph, params, statistics = nnx.split(network, nnx.Param, nnx.BatchStat)
    steps = len(work.dispatches[0].batches)

    def run(params, statistics, batches, key):
        def body(step, total):
            batch: Batch = jax.tree.map(lambda x: x[step], batches)
            keys = jax.random.split(jax.random.fold_in(key, step), len(batch.label))
            uniform = jax.vmap(lambda key: draw_for_dropout(key, *network.dropout_shape))(keys)

            def loss(params):
                model = nnx.merge(graph, params, statistics, copy=True)
                return model(batch, Training(uniform, lambda tree: tree)).logits.sum()

            # Use all gradients in the result, or XLA would remove them.
            return total + sum(jnp.vdot(g, g) for g in jax.tree.leaves(jax.grad(loss)(params)))

        return jax.lax.fori_loop(0, steps, body, 0.0)

    compiled = devices.parallel(run, contestant.devices, in_axes=(0, 0, 0, None))
    copies = devices.replicate((params, statistics), contestant.devices)
    ((batches, _),) = contestant.place(work)
    key = random_key(0, "dropout")
    jax.block_until_ready(compiled(*copies, batches, key))
    return lambda: jax.block_until_ready(compiled(*copies, batches, key))


def _repeated(function: Callable, value: np.ndarray, count: int, times: int) -> Callable[[], Any]:
    """Apply a function `times` in one dispatch to each device's array, which is donated."""
    compiled = devices.parallel(
        lambda x: jax.lax.fori_loop(0, times, lambda _, x: function(x), x),
        count,
        in_axes=(0,),
        donate=(0,),
    )
    held = compiled(devices.replicate(value, count))

    def run() -> None:
        nonlocal held
        held = jax.block_until_ready(compiled(held))

    return run


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


TASKS = {"train": training, "overhead": overhead}


def main(pipe: int, job: Job) -> None:
    """Answer {} when ready, then with each round's measurements."""
    if job.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with os.fdopen(pipe, "w", buffering=1) as out:
        work_round = TASKS[job.task](job)
        out.write("{}\n")
        for _ in sys.stdin:
            out.write(json.dumps(work_round()) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), job_from_json(sys.argv[2]))
