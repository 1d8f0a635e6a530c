"""Predictions of this project and of its peers, side by side: one clip, its file, and many clips.

Timed from padded arrays in memory to probabilities in memory, for each batch; and from a feature
file to probabilities: with this project's user call, `load_run(RUN).predict(FILE)`, and as fast as
possible with its peers. Then the command, in its own process.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks import contenders, machine
from benchmarks.side_by_side import Comparison, Record, check_positive
from benchmarks.startup import start
from benchmarks.work import make_work
from benchmarks.worker import Job
from mmattn.console import say_table

COMMON = ("ours is ×", "1st s", "peak MB")
EXPORTED = """
import sys, numpy, onnxruntime
session, inputs = onnxruntime.InferenceSession(sys.argv[1]), {}
for key, frames in numpy.load(sys.argv[2]).items():
    if key.endswith("_features"):
        name = key.removesuffix("_features")
        inputs |= {name: frames[None], f"{name}_length": numpy.int32([len(frames)])}
session.run(None, inputs)
"""


@dataclass(frozen=True)
class Predict(Comparison):
    """Options of the command."""

    contenders: tuple[str, ...] = (*contenders.DEFAULT, "onnxruntime")
    """Contenders; +jemalloc after a name loads that allocator."""
    batch: int = 64
    """Batch size for throughput."""
    singles: int = 8
    """Single clips of each length bucket to predict in a round, up to 8."""

    def compare(self, names: Sequence[str]) -> dict[str, Any]:
        """A table of latencies and one of throughput."""
        check_positive("batch", self.batch)
        check_positive("singles", self.singles)
        one = self.measure("one clip", [Job(name, "predict", 1, self.singles) for name in names])
        rows = [
            (name, *(f"{1e3 * s:.1f}" for s in latency(record).values()), *_common(record))
            for name, record in one.items()
        ]
        clips = make_work(1, self.singles).clips
        title = f"Predicting one clip: {clips} in each of {self.rounds} rounds"
        say_table(title, ("contender", "median ms", "95 % ms", *COMMON), rows)

        files = self.measure("files", [Job(name, "file", 1, self.singles) for name in names])
        rows = [
            (name, *(f"{1e3 * s:.1f}" for s in latency(record).values()), *_common(record))
            for name, record in files.items()
        ]
        title = f"Predicting one feature file: {clips} in each of {self.rounds} rounds"
        say_table(title, ("contender", "median ms", "95 % ms", *COMMON), rows)

        starts = [command_seconds() for _ in range(self.rounds)]
        rows = [(what, f"{median(one[what] for one in starts):.1f}") for what in starts[0]]
        say_table("A process for one feature file", ("", "s"), rows)

        many = self.measure(
            f"batches of {self.batch}", [Job(name, "predict", self.batch, 1) for name in names]
        )
        clips = make_work(self.batch, 1).clips
        rows = [(name, *r.rates(clips), *_common(r)) for name, r in many.items()]
        title = f"Predicting batches of {self.batch}: {clips} clips a round, {self.rounds} rounds"
        say_table(title, ("contender", "clips/s", "slowest", "fastest", *COMMON), rows)
        return {
            "one": {name: {**r.to_json(), **latency(r)} for name, r in one.items()},
            "file": {name: {**r.to_json(), **latency(r)} for name, r in files.items()},
            "command": starts,
            "many": {
                "batch": self.batch,
                "clips": clips,
                "contenders": {name: record.to_json() for name, record in many.items()},
            },
        }


def command_seconds() -> dict[str, float]:
    """Seconds of a full-size `mmattn predict RUN FILE`, with XLA's cache empty and then filled;
    and of `mmattn export`'s file with ONNX Runtime, if installed."""
    seconds = {}
    with TemporaryDirectory() as folder:
        script = "import sys, pathlib, benchmarks.contenders.ours as ours\n"
        script += "ours.write_untrained(pathlib.Path(sys.argv[1]))"
        start(machine.REPOSITORY, Path(folder), ["-c", script, folder])
        shutil.rmtree(f"{folder}/cache", ignore_errors=True)
        command = ["-m", "mmattn", "predict", f"{folder}/run", f"{folder}/clip.npz"]
        asked = {"mmattn predict, XLA's cache empty": command, "filled": command}
        if Path(folder, "model.onnx").exists():
            words = ["-c", EXPORTED, f"{folder}/model.onnx", f"{folder}/clip.npz"]
            asked["mmattn export's file, ONNX Runtime"] = words
        for what, words in asked.items():
            begin = time.perf_counter()
            start(machine.REPOSITORY, Path(folder), words)
            seconds[what] = time.perf_counter() - begin
    return seconds


def latency(record: Record) -> dict[str, float]:
    """Seconds of a batch over all rounds: the median and the 95th percentile."""
    seconds = np.concatenate(record.rounds)
    return {"median_s": float(np.median(seconds)), "p95_s": float(np.quantile(seconds, 0.95))}


def _common(record: Record) -> tuple[str, str, str]:
    return record.comparison(), f"{record.start_s:.1f}", f"{record.peak_mb:.0f}"


if __name__ == "__main__":
    machine.command(Predict, "predict", __doc__)
