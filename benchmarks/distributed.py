"""What processes cost and bring: collectives by message size, and scaling of the training step.

python -m benchmarks.distributed [--processes 1 2 …] [--devices 1] [--batch 24] [--json FILE]

Exchange: the two collectives of a step, sum and scatter of the gradient and gathering of the
parameters, for vectors of several lengths, on this machine's loopback. Scaling: clips/s of the real
training step, strong (one batch divided over the processes) and weak (12 clips a device). The
processes are real ones with gloo between them; the cores are divided among them, so that beyond the
number of cores all of them add up.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.machine import check_json, command, describe, say_machine, write_json
from experiments.no_aug import CONFIG
from mmattn.config import ModelConfig
from mmattn.console import say, say_table
from mmattn.errors import UserError
from mmattn.launch import launch

WEAK = 12  # clips a device


@dataclass(frozen=True)
class Result:
    """What one number of processes takes."""

    processes: int
    devices: int
    """Of all processes together."""
    parameters: int
    exchange: dict[int, float]
    """Seconds by the number of float32 in the vector."""
    strong: float
    """Clips a second of one batch divided over the devices."""
    weak: float
    """Clips a second of 12 clips a device."""


@dataclass(frozen=True)
class Options:
    """Measure several processes on this machine."""

    processes: tuple[int, ...] = (1, 2)
    """Numbers of processes."""
    devices: int = 1
    """CPU devices of each process."""
    batch: int = 24
    """Clips an optimiser step, for strong scaling."""
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
    """Lengths of the vectors that are exchanged, in float32."""
    rounds: int = 5
    """Each number is the median of so many."""
    clips: int = 432
    """Clips of the synthetic corpus."""
    model: ModelConfig = CONFIG.model
    """The network to train."""
    json: Path | None = None
    """Where to write everything measured."""

    def __call__(self) -> None:
        check_json(self.json)
        for count in self.processes:
            if count < 1 or self.batch % (count * self.devices):
                raise UserError(
                    f"--processes {count}: expected numbers that with --devices {self.devices} "
                    f"divide --batch {self.batch}"
                )
        about = describe()
        say_machine(about)
        results = [self.measure(count) for count in self.processes]
        say_results(results)
        write_json(self.json, about, {"results": [asdict(result) for result in results]})

    def measure(self, count: int) -> Result:
        """Start so many processes and read what process 0 found."""
        say(f"{count} × {self.devices} …")
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "result.json"
            options = {
                "devices": count * self.devices,
                "batch": self.batch,
                "rounds": self.rounds,
                "clips": self.clips,
                "model": json.dumps(asdict(self.model)),
                "out": out,
            }
            words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
            launch(
                count,
                ["benchmarks.distributed_worker", *words, "--sizes", *map(str, self.sizes)],
            )
            found = json.loads(out.read_text())
        exchange = {int(size): seconds for size, seconds in found.pop("exchange").items()}
        return Result(count, count * self.devices, exchange=exchange, **found)


def bytes_sent(size: int, devices: int) -> int:
    """What each device sends in the two collectives of a ring: 2 (D - 1) / D of the vector."""
    return 2 * (devices - 1) * 4 * size // devices


def say_results(results: list[Result]) -> None:
    """Print both tables; scaling is relative to the first number of processes."""
    first = results[0]
    say_table(
        "Sum and scatter, then gather: ms (bytes each device sends)",
        ("float32", *(f"{result.processes} × {_each(result)}" for result in results)),
        [
            (
                f"{size:,}",
                *(
                    f"{1e3 * result.exchange[size]:.2f} ({bytes_sent(size, result.devices):,})"
                    for result in results
                ),
            )
            for size in first.exchange
        ],
    )
    say_table(
        f"Training step, {first.parameters:,} parameters: clips/s (times the first)",
        ("processes × devices", "strong", "weak"),
        [
            (
                f"{result.processes} × {_each(result)}",
                f"{result.strong:.0f} ({result.strong / first.strong:.2f})",
                f"{result.weak:.0f} ({result.weak / first.weak:.2f})",
            )
            for result in results
        ],
    )


def _each(result: Result) -> int:
    return result.devices // result.processes


if __name__ == "__main__":
    command(Options, "distributed", __doc__)
