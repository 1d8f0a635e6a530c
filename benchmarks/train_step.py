"""Training steps of this project and of its peers, side by side, on the same ragged batches.

A round trains once on the same batches of each length bucket, which are already in the framework's
form; every contender runs in its own process, one at a time.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import gemm, machine
from benchmarks.side_by_side import OURS, Comparison, check_positive, started
from benchmarks.work import make_work
from benchmarks.worker import Job
from mmattn.console import say, say_table

COLUMNS = (
    "contender",
    "clips/s",
    "slowest",
    "fastest",
    "ours is ×",
    "% of GEMM",
    "1st step s",
    "peak MB",
)


@dataclass(frozen=True)
class TrainStep(Comparison):
    """Options of the command."""

    batches: tuple[int, ...] = (24, 64, 256)
    """Clips per optimiser step; one table for each."""
    clips: int = 96
    """Clips of each length bucket in a round, rounded up to whole batches; at most one dispatch."""

    def compare(self, names: Sequence[str]) -> dict[str, Any]:
        """A table for each batch size."""
        check_positive("batches", *self.batches)
        check_positive("clips", self.clips)
        rates = gemm.best_rates()
        say(f"best matrix products, GFLOP/s: {', '.join(f'{n} {r:.0f}' for n, r in rates.items())}")
        results = [self._train(names, batch, max(rates.values())) for batch in self.batches]
        return {"gemm_gflops": rates, "results": results}

    def _train(self, names: Sequence[str], batch: int, best: float) -> dict[str, Any]:
        jobs = [Job(name, "train", batch, self.clips) for name in names]
        work = make_work(batch, self.clips)
        gflop = work.flop / 1e9
        records = self.measure(f"training, batch {batch}", jobs)
        cached = cached_start(jobs[names.index(OURS)]) if OURS in names else None
        rows = [
            (
                name,
                *record.rates(work.clips),
                record.comparison(),
                f"{100 * gflop / record.median_s() / best:.0f}",
                f"{record.start_s:.1f}",
                f"{record.peak_mb:.0f}",
            )
            for name, record in records.items()
        ]
        title = f"Training, batch {batch}: {work.clips} clips per round, {self.rounds} rounds"
        say_table(title, COLUMNS, rows)
        if cached is not None:
            say(f"1st step of ours with a filled compilation cache: {cached:.1f} s")
        return {
            "batch": batch,
            "clips": work.clips,
            "gflop": gflop,
            "cached_start_s": cached,
            "contenders": {name: record.to_json() for name, record in records.items()},
        }


def cached_start(job: Job) -> float:
    """Seconds from the start of a process to its first step, with a filled XLA cache."""
    with tempfile.TemporaryDirectory() as folder:
        cache = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        with started(job, cache):
            pass
        with started(job, cache) as worker:
            return worker.start_s


if __name__ == "__main__":
    machine.command(TrainStep, "train_step", __doc__)
