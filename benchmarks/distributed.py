"""Cost and gain of processes: collectives by message size, and scaling of the training step.

python -m benchmarks.distributed [--shapes 1x1 1x2 2x1 …] [--batch 24] [--json FILE]

A shape is processes × devices of each; the processes are real, with gloo between them on this
machine's loopback. The cores are divided among them, so more devices than cores take turns.
Exchange: the two large collectives of a step, sum and scatter of the gradient and gathering of the
parameters; total: the small one, a sum; both for vectors of several lengths. Scaling: clips/s of
the real training step on full-size clips, strong (one batch divided over the devices) and weak (12
clips per device).
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import dacite

from benchmarks.cluster import Collective
from benchmarks.machine import check_json, command, describe, say_machine, write_json
from benchmarks.scaling import WEAK
from experiments.no_aug import CONFIG
from mmattn.config import ModelConfig
from mmattn.console import say, say_table
from mmattn.errors import UserError
from mmattn.launch import launch
from mmattn.machine import cores


@dataclass(frozen=True)
class Result:
    """Measurements of one shape."""

    processes: int
    devices: int
    """Devices of all processes together."""
    parameters: int
    frames: dict[str, int]
    """Padded length of the clips by modality."""
    dispatch: int
    """Steps per dispatch."""
    exchange: dict[int, float]
    """Seconds to sum, scatter and gather, by vector length (float32)."""
    total: dict[int, float]
    """Seconds to sum, by vector length (float32)."""
    steps: dict[int, float]
    """Seconds of a training step by clips per device."""
    batches: float
    """Clips per second that a process prepares for its devices."""
    collectives: list[Collective]
    """Collectives of the compiled training."""

    @property
    def name(self) -> str:
        """Processes × devices of each."""
        return f"{self.processes} × {self.devices // self.processes}"

    def rate(self, clips: int) -> float:
        """Clips per second with this number per device."""
        return clips * self.devices / self.steps[clips]


@dataclass(frozen=True)
class Options:
    """Measure several processes on this machine."""

    shapes: tuple[str, ...] = ("1x1", "1x2", "2x1", "2x2", "4x1", "2x4")
    """Processes × devices of each."""
    batch: int = CONFIG.train.batch
    """Clips per optimiser step, for strong scaling."""
    clips: tuple[int, ...] = (1, 2, 4, 12, 24)
    """Further numbers of clips per device to measure, if there are no more devices than cores."""
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000, 3_000_000)
    """Lengths of the exchanged vectors (float32)."""
    rounds: int = 5
    """Measurements of each number, of which the median is reported."""
    model: ModelConfig = CONFIG.model
    """The network to train."""
    json: Path | None = None
    """File to write all measurements to."""

    def __call__(self) -> None:
        check_json(self.json)
        shapes = [self.shape(text) for text in self.shapes]
        about = describe()
        say_machine(about)
        results = [self.measure(*shape) for shape in shapes]
        say_results(results, self.batch)
        found = {"batch": self.batch, "results": [asdict(result) for result in results]}
        write_json(self.json, about, found)

    def shape(self, text: str) -> tuple[int, int]:
        """Processes and devices of each."""
        counts = [int(part) if part.isdigit() else 0 for part in text.split("x")]
        if len(counts) != 2 or min(counts) < 1 or self.batch % (counts[0] * counts[1]):
            raise UserError(
                f"--shapes {text}: expected processes x devices, like 2x1, that divide "
                f"--batch {self.batch}"
            )
        return counts[0], counts[1]

    def measure(self, count: int, each: int) -> Result:
        """Start the processes and read the result of process 0."""
        say(f"{count} × {each} …")
        clips = {self.batch // (count * each), WEAK, *(self.clips * (count * each <= cores()))}
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "result.json"
            options = {
                "devices": [count * each],
                "clips": sorted(clips),
                "sizes": self.sizes,
                "rounds": [self.rounds],
                "out": [out],
                "model": [json.dumps(asdict(self.model))],
            }
            words = [str(w) for name, values in options.items() for w in (f"--{name}", *values)]
            launch(count, ["benchmarks.distributed_worker", *words])
            return read_result(json.loads(out.read_text()))


def read_result(found: dict) -> Result:
    """A result from JSON, whose keys are text."""
    for name in ("exchange", "total", "steps"):
        found[name] = {int(key): value for key, value in found[name].items()}
    found["collectives"] = [Collective(*one) for one in found["collectives"]]
    return dacite.from_dict(Result, found)


def bytes_sent(size: int, devices: int) -> int:
    """Bytes that each device sends in an exchange or a total: 2 (D - 1) / D of the vector."""
    return 2 * (devices - 1) * 4 * size // devices


def say_results(results: list[Result], batch: int) -> None:
    """Print the tables; scaling is relative to the first shape."""
    for title, rows in zip(EXCHANGES, exchange_rows(results), strict=True):
        say_table(title, ("float32", *(result.name for result in results)), rows)
    say_table(
        f"Training step, {results[0].parameters:,} parameters: clips/s (times the first)",
        ("processes × devices", "strong", "weak"),
        scaling_rows(results, batch),
    )


EXCHANGES = (
    "Sum and scatter, then gather: ms (bytes each device sends)",
    "Sum: ms (bytes each device sends)",
)


def exchange_rows(results: list[Result]) -> list[list[tuple[str, ...]]]:
    """The rows of both tables of EXCHANGES."""
    return [
        [
            (
                f"{size:,}",
                *(
                    f"{1e3 * found[size]:.2f} ({bytes_sent(size, result.devices):,})"
                    for found, result in zip(times, results, strict=True)
                ),
            )
            for size in times[0]
        ]
        for times in ([one.exchange for one in results], [one.total for one in results])
    ]


def scaling_rows(results: list[Result], batch: int) -> list[tuple[str, ...]]:
    """Strong and weak scaling of each shape."""
    rates = [(one.rate(batch // one.devices), one.rate(WEAK)) for one in results]
    return [
        (one.name, *(f"{rate:.0f} ({rate / first:.2f})" for rate, first in zip(*pair, strict=True)))
        for one, pair in ((one, (own, rates[0])) for one, own in zip(results, rates, strict=True))
    ]


if __name__ == "__main__":
    command(Options, "distributed", __doc__)
