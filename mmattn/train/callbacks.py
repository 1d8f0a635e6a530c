"""Callbacks, which only observe a training; decisions, e.g. the best epoch, are in the loop."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from mmattn.files import write_text
from mmattn.train.history import best_epoch, end_reason, score_text, shown_scores

if TYPE_CHECKING:
    from mmattn.run.run import Run


class Callback:
    """Observes a training; with several processes, only process 0 calls it."""

    def on_train_begin(self, run: "Run") -> None:
        """The training begins; after a resume, `run.history` is not empty."""

    def on_epoch_end(self, run: "Run", row: dict[str, float]) -> None:
        """An epoch is over and its checkpoints are saved; `row` is the last of `run.history`."""

    def on_train_end(self, run: "Run") -> None:
        """The training has ended, perhaps by an error or a stop: see `run.status`."""


class JsonLines(Callback):
    """Keeps metrics.jsonl in the run's folder, one line per epoch."""

    def on_train_begin(self, run: "Run") -> None:
        """Write the history that the run resumes with."""
        assert run.folder is not None  # a run in memory has no such callback
        text = "".join(json.dumps(row) + "\n" for row in run.history)
        write_text(run.folder / "metrics.jsonl", text)

    def on_epoch_end(self, run: "Run", row: dict[str, float]) -> None:
        """Rewrite the file, so that it is always complete."""
        self.on_train_begin(run)


class Console(Callback):
    """Prints one line per epoch, and why training ends before its last."""

    def __init__(self, write: Callable[[str], None] = print):
        self.write = write

    def on_epoch_end(self, run: "Run", row: dict[str, float]) -> None:
        """Print the losses and the scores."""
        config = run.config.train
        self.write(epoch_line(run.history, config.monitor))
        if len(run.history) < config.epochs and (reason := end_reason(run.history, config)):
            self.write(f"ended early (train.patience {config.patience}): {reason}")


def epoch_line(history: list[dict], monitor: str) -> str:
    """The last epoch in at most 100 columns: scores of training / validation, or of validation."""
    row = history[-1]
    scores = "  ".join(score_text(row, name) for name in shown_scores(monitor))
    best = "  best" if best_epoch(history, monitor) == len(history) else ""
    return (
        f"epoch {row['epoch']:3d}  {scores}  lr {row['learning_rate']:.1e}  "
        f"{row['clips_per_s']:.0f} clips/s{best}"
    )
