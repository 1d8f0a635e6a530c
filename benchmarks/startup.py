"""The time until training begins: `python -m experiments.no_aug` in fresh processes.

Seconds from the start of the process to the end of the first step, with XLA's cache empty and then
filled, and the clips/s of the first epoch, which includes compilation. With --other, another
working copy of this project takes turns with this one.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import machine
from benchmarks.side_by_side import check_positive
from mmattn.console import say_table
from mmattn.errors import UserError

FIRST_STEP = """
import os, runpy, sys, time
import jax
from mmattn.train.step import Learner

make = Learner.__init__

def make_and_watch(self, *arguments, **options):
    make(self, *arguments, **options)
    train = self.train

    def first(*arguments):
        jax.block_until_ready(train(*arguments))
        print("first step", time.time(), flush=True)
        os._exit(0)

    self.train = first

Learner.__init__ = make_and_watch
runpy.run_module("experiments.no_aug", run_name="__main__")
"""
COLUMNS = "1st step s, empty cache", "filled cache", "1st epoch clips/s"


@dataclass(frozen=True)
class Startup:
    """Options of the command."""

    rounds: int = 3
    other: Path | None = None
    """Another working copy."""
    json: Path | None = None
    """File to write the results to."""

    def __call__(self) -> None:
        """Measure in turn, print medians, write."""
        check_positive("rounds", self.rounds)
        machine.check_json(self.json)
        about = machine.describe()
        machine.say_machine(about)
        copies = [machine.REPOSITORY, *([self.other.resolve()] if self.other else [])]
        found = {str(copy): [] for copy in copies}
        for _ in range(self.rounds):
            for copy in copies:
                found[str(copy)].append(measure(copy))
        rows = [
            (copy, *(f"{median(values):.1f}" for values in zip(*rounds, strict=True)))
            for copy, rounds in found.items()
        ]
        say_table(f"Start-up, medians of {self.rounds}", ("", *COLUMNS), rows)
        machine.write_json(self.json, about, {"columns": COLUMNS, "rounds": found})


def measure(copy: Path) -> tuple[float, float, float]:
    """The values of `COLUMNS` for a working copy."""
    with tempfile.TemporaryDirectory() as folder:
        empty, filled = (first_step(copy, Path(folder), number) for number in range(2))
    with tempfile.TemporaryDirectory() as folder:
        options = ["--out", f"{folder}/run", "--train.epochs", "1"]
        start(copy, Path(folder), ["-m", "experiments.no_aug", *options])
        row = json.loads(Path(folder, "run", "metrics.jsonl").read_text())
    return empty, filled, row["clips_per_s"]


def first_step(copy: Path, folder: Path, number: int) -> float:
    """Seconds from the start of a process to the end of its first optimiser step."""
    options = ["--out", f"{folder}/{number}", "--train.steps-per-dispatch", "1"]
    begin = time.time()
    text = start(copy, folder, ["-c", FIRST_STEP, *options])
    return float(text.rsplit("first step", 1)[1]) - begin


def start(copy: Path, folder: Path, words: list[str]) -> str:
    """Run this Python on a working copy, with XLA's cache in a folder; returns its output."""
    result = subprocess.run(
        [sys.executable, *words],
        cwd=copy,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache", "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise UserError(f"{copy}: ended with code {result.returncode}:\n{result.stderr[-2000:]}")
    return result.stdout


if __name__ == "__main__":
    machine.command(Startup, "startup", __doc__)
