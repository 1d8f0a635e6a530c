"""How training scales with devices, and the overhead of devices.

python -m benchmarks.scaling [--devices 1 2 …] [--batch 24] [--simulated 8 16 …] [--json FILE]

Scaling: clips/s of the real training step, strong (one batch divided over the devices) and weak
(12 clips per device), each number of devices in its own process, in turn. The answer is what
`--devices auto` should give on this machine.

Overhead: more devices than cores, each with one clip of one frame, so that mostly dispatch, sums
over devices, copies of the state and the optimiser remain. Forward and backward alone are measured
too and subtracted. With fewer cores than devices, all devices' work adds up: growth is at least
linear.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Literal

import dacite
import numpy as np

from benchmarks.machine import (
    REPOSITORY,
    check_json,
    command,
    describe,
    say_machine,
    write_json,
)
from benchmarks.side_by_side import SETTLE
from benchmarks.work import Scale
from experiments.no_aug import CONFIG
from mmattn.config import ExperimentConfig, config_from_json
from mmattn.console import progress, say, say_table
from mmattn.errors import UserError
from mmattn.machine import cores

WEAK = 12  # clips per device


@dataclass(frozen=True)
class Job:
    """The job of the process for one number of devices."""

    task: Literal["train", "overhead"]
    devices: int
    batches: tuple[int, ...]
    """Clips per optimiser step over all devices; each is measured."""
    steps: tuple[int, ...]
    """Optimiser steps per dispatch, in increasing order; each is measured."""
    config: ExperimentConfig
    scale: Scale
    one_core: bool = False
    """Keep the process on one core."""

    def to_json(self) -> str:
        """As one line; `job_from_json` reads it back."""
        return json.dumps({**asdict(self), "config": self.config.to_json()})


def job_from_json(text: str) -> Job:
    """The job of `Job.to_json`."""
    value = json.loads(text)
    config = config_from_json(value.pop("config"))
    return dacite.from_dict(
        Job, {**value, "config": config}, dacite.Config(cast=[tuple], strict=True)
    )


@dataclass(frozen=True)
class Scaling:
    """Measure how training scales with devices."""

    devices: tuple[int, ...] | None = None
    """Numbers of devices to train on; may be empty (default: powers of two up to the number of
    cores, that number, and the nearest divisors of the batch)."""
    batch: int = CONFIG.train.batch
    """Clips per optimiser step in strong scaling."""
    steps_per_dispatch: tuple[int, ...] = (1, CONFIG.train.steps_per_dispatch)
    simulated: tuple[int, ...] = (8, 16, 32, 64, 96)
    """Numbers of devices whose overhead to measure; may be empty."""
    rounds: int = 5
    """Measurements of each, of which the median is reported."""
    json: Path | None = None
    """File to also write the results to."""

    def __call__(self, config: ExperimentConfig = CONFIG, scale: Scale | None = None) -> None:
        """Measure and report; config and scale are smaller in tests."""
        check_json(self.json)
        self.check()
        scale = scale or Scale()
        about, results = describe(), {}
        say_machine(about)
        if self.devices != ():
            rows = measure_scaling(self, config, scale)
            say_scaling(rows, self.batch)
            best = best_devices(rows, auto_devices(self.batch))
            say_best(best)
            results |= {"scaling": rows, "best": best}
        if self.simulated:
            rows = measure_overhead(self, config, scale)
            results |= {"overhead": rows, "growth": say_overhead(rows)}
        write_json(self.json, about, results)

    def check(self) -> None:
        """Raise UserError at the first invalid option."""
        for option, values, least in (
            ("devices", self.devices or (), 1),
            ("batch", (self.batch,), 2),
            ("steps-per-dispatch", self.steps_per_dispatch or (0,), 1),
            ("simulated", self.simulated, 1),
            ("rounds", (self.rounds,), 1),
        ):
            for value in values:
                if value < least:
                    raise UserError(f"--{option} {value}: expected {least} or more")
        if len(set(self.simulated)) == 1:
            raise UserError(f"--simulated {self.simulated[0]}: expected two numbers or more")


def default_devices(batch: int, cores: int) -> list[int]:
    """Powers of two up to the number of cores, that number, and the batch's divisors nearest.

    >>> default_devices(24, 96)
    [1, 2, 4, 8, 12, 16, 24, 32, 64, 96]
    """
    found = {cores, *(2**n for n in range(cores.bit_length()))}
    divisors = [n for n in range(1, min(cores, batch) + 1) if batch % n == 0]
    return sorted(found | {min(divisors, key=lambda n: abs(n - count)) for count in found})


# Scaling


def measure_scaling(options: Scaling, config: ExperimentConfig, scale: Scale) -> list[dict]:
    """A row for each kind of scaling, number of steps a dispatch and number of devices."""
    counts = sorted({1, *(options.devices or default_devices(options.batch, cores()))})
    steps = tuple(sorted(set(options.steps_per_dispatch)))
    # All processes draw the same lengths; each bucket must hold a round of the largest batch.
    largest = max(options.batch, WEAK * counts[-1]) * steps[-1]
    scale = replace(scale, clips=max(scale.clips, 2 * config.data.buckets * largest))
    kinds, jobs = [], []
    for count, one_core in [(1, True), *((count, False) for count in counts)]:
        sizes = {"weak": WEAK * count}
        if count <= options.batch:
            sizes["strong"] = options.batch
        batches = tuple(sorted(set(sizes.values())))
        kinds.append(sizes)
        jobs.append(Job("train", count, batches, steps, config, scale, one_core))
    found = measure(jobs, options.rounds, "Measuring scaling")
    rows = []
    for kind, number in product(("strong", "weak"), range(len(steps))):
        for sizes, job, rounds in zip(kinds, jobs, found, strict=True):
            if kind not in sizes:
                continue
            place = job.batches.index(sizes[kind])
            rates = [one["clips_per_s"][place][number] for one in rounds]
            rows.append(
                {
                    "scaling": kind,
                    "batch": sizes[kind],
                    "steps_per_dispatch": steps[number],
                    "devices": job.devices,
                    "cores": 1 if job.one_core else cores(),
                    "one_core": job.one_core,
                    "clips_per_s": median(rates),
                    "least": min(rates),
                    "most": max(rates),
                }
            )
    return rows


def say_scaling(rows: list[dict], batch: int) -> None:
    """Print a table of each kind of scaling."""
    columns = ("devices", "cores", "steps/dispatch", "clips/s", "spread", "ratio", "efficiency")
    for kind, title in (
        ("strong", f"Strong scaling: {batch} clips per step"),
        ("weak", f"Weak scaling: {WEAK} clips per device and step"),
    ):
        say_table(title, columns, [_cells(row, rows) for row in rows if row["scaling"] == kind])
    say(
        "Ratio: to one device with all cores. Efficiency: to the clips/s of one device on one "
        "core, times the number of cores."
    )


def _cells(row: dict, rows: list[dict]) -> tuple[str, ...]:
    def of_one_device(one_core: bool) -> float:
        like = {**row, "devices": 1, "one_core": one_core}
        names = ("scaling", "steps_per_dispatch", "devices", "one_core")
        return next(
            other["clips_per_s"]
            for other in rows
            if all(other[name] == like[name] for name in names)
        )

    return (
        str(row["devices"]),
        str(row["cores"]),
        str(row["steps_per_dispatch"]),
        f"{row['clips_per_s']:.1f}",
        f"{row['least']:.1f} – {row['most']:.1f}",
        f"{row['clips_per_s'] / of_one_device(False):.2f}",
        f"{row['clips_per_s'] / of_one_device(True) / row['cores']:.2f}",
    )


def best_devices(rows: list[dict], auto: int) -> dict[str, Any]:
    """The number of devices with most clips/s in strong scaling, and what `auto` loses to it.

    Of the numbers of steps per dispatch only the largest is used, as in a run.

    Returns:
        {"devices", "auto", "auto_slower"}: the last is 0.1 if auto has 0.9 of the clips/s, and
        None if it was not measured.
    """
    steps = max(row["steps_per_dispatch"] for row in rows)
    rates = {
        row["devices"]: row["clips_per_s"]
        for row in rows
        if row["scaling"] == "strong" and row["steps_per_dispatch"] == steps and not row["one_core"]
    }
    best = max(rates, key=lambda count: rates[count])
    slower = 1 - rates[auto] / rates[best] if auto in rates else None
    return {"devices": best, "auto": auto, "auto_slower": slower}


def say_best(best: dict[str, Any]) -> None:
    """Print what `best_devices` found."""
    if best["auto"] == best["devices"]:
        verdict = "which is what auto gives"
    elif best["auto_slower"] is None:
        verdict = f"auto gives {best['auto']}, which was not measured"
    else:
        verdict = f"auto gives {best['auto']}, {best['auto_slower']:.1%} slower"
    say(f"Best here: --devices {best['devices']}; {verdict}.")


def auto_devices(batch: int) -> int:
    """What `--devices auto` gives here; asked in a separate process, as it starts JAX."""
    code = f"from mmattn.train.devices import start_devices; print(start_devices('auto', {batch}))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"JAX did not start: exit code {done.returncode}, see above")
    return int(done.stdout)


# Overhead


def measure_overhead(options: Scaling, config: ExperimentConfig, scale: Scale) -> list[dict]:
    """A row for each number of devices; times in milliseconds per step, memory in MB.

    One process after the other: 96 devices take several GB.
    """
    steps = tuple(sorted(set(options.steps_per_dispatch)))
    rows = []
    for count in sorted(set(options.simulated)):
        job = Job("overhead", count, (count,), steps, config, scale)
        (rounds,) = measure([job], options.rounds, f"Measuring {count} devices")
        compute, exchange, dispatch = (
            1000 * median(one[name] for one in rounds)
            for name in ("compute", "exchange", "dispatch")
        )
        step = (1000 * np.median([one["step"] for one in rounds], axis=0)).tolist()
        rows.append(
            {
                "devices": count,
                "parameters": rounds[0]["parameters"],
                "step_ms": dict(zip(map(str, steps), step, strict=True)),
                "compute_ms": compute,
                "overhead_ms": {str(n): t - compute for n, t in zip(steps, step, strict=True)},
                "exchange_ms": exchange,
                "dispatch_ms": dispatch,
                "memory_mb": rounds[0]["memory_mb"],
                "state_mb": rounds[0]["state_mb"],
            }
        )
    return rows


def say_overhead(rows: list[dict]) -> dict[str, float]:
    """Print the table and how each column grows: its exponent of the number of devices."""
    steps = list(rows[0]["step_ms"])
    columns = {
        **{f"overhead, {n} steps/dispatch": [row["overhead_ms"][n] for row in rows] for n in steps},
        "fwd + bwd": [row["compute_ms"] for row in rows],
        "exchange": [row["exchange_ms"] for row in rows],
        "dispatch": [row["dispatch_ms"] for row in rows],
        "memory MB": [row["memory_mb"] for row in rows],
    }
    counts = [row["devices"] for row in rows]
    cells = [
        (
            row["devices"],
            *(f"{values[number]:.4g}" for values in columns.values()),
            f"{row['state_mb']:.1f}",
        )
        for number, row in enumerate(rows)
    ]
    growth = {name: growth_exponent(counts, values) for name, values in columns.items()}
    cells.append(("growth", *(f"{value:.2f}" for value in growth.values()), ""))
    say_table(
        f"Overhead of simulated devices on {cores()} cores: ms per step (dispatch: ms per call)",
        ("devices", *columns, "state MB/device"),
        cells,
    )
    say(
        "Overhead: a step with one frame per device, minus forward and backward. Exchange: sum, "
        f"scatter and gather of one vector of the {rows[0]['parameters']:,} parameters. Growth: "
        "exponent of the number of devices, by least squares of logarithms; 1 is linear. Memory: "
        "the process's peak above JAX without arrays, including compilation."
    )
    slope = np.polyfit(counts, columns["memory MB"], 1)[0]
    say(f"Memory grows by {slope:.0f} MB per device.")
    return growth


def growth_exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The b of y = a·x^b that fits best by least squares of logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


# Processes


def measure(jobs: list[Job], rounds: int, title: str) -> list[list[dict]]:
    """For each job, the answers of its process; jobs take turns in each round."""
    with ExitStack() as stack:
        processes = [stack.enter_context(worker(job)) for job in jobs]
        with progress(title, len(jobs) * (1 + rounds), "answers") as advance:
            found: list[list[dict]] = [[] for _ in jobs]
            for _ in range(1 + rounds):
                for answers, process in zip(found, processes, strict=True):
                    time.sleep(SETTLE)
                    answers.append(next(process))
                    advance(1)
    return [answers[1:] for answers in found]  # the first only says that it is ready


@contextmanager
def worker(job: Job) -> Iterator[Iterator[dict]]:
    """A process for a job: its answers, each measured on request."""
    here, there = os.pipe()
    start = [sys.executable, "-m", "benchmarks.scaling_worker", str(there), job.to_json()]
    process = subprocess.Popen(
        start, cwd=REPOSITORY, stdin=subprocess.PIPE, pass_fds=[there], text=True
    )
    os.close(there)

    def answers() -> Iterator[dict]:
        while line := out.readline():
            yield json.loads(line)
            process.stdin.write("\n")
            process.stdin.flush()
        raise UserError(f"{job.devices} devices: exit code {process.wait()}, see above")

    with process, open(here) as out:
        try:
            yield answers()
        finally:
            process.kill()


if __name__ == "__main__":
    command(Scaling, "scaling", __doc__)
