"""What watches a training. What decides, such as the best epoch, is in the loop."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from mmattn.files import write_text
from mmattn.train.history import best_epoch

if TYPE_CHECKING:
    from mmattn.run.run import Run


class Callback:
    """Watches a training; of several processes, the first alone calls it."""

    def on_train_begin(self, run: "Run") -> None:
        """The training begins; after a resume, `run.history` is not empty."""

    def on_epoch_end(self, run: "Run", row: dict[str, float]) -> None:
        """An epoch is over and its checkpoints are saved; `row` is the last of `run.history`."""

    def on_train_end(self, run: "Run") -> None:
        """The training is over, also after an error or a stop: see `run.status`."""


class JsonLines(Callback):
    """Keeps metrics.jsonl in the run's folder, a line an epoch."""

    def on_train_begin(self, run: "Run") -> None:
        """Write what the run is resumed with."""
        text = "".join(json.dumps(row) + "\n" for row in run.history)
        write_text(run.folder / "metrics.jsonl", text)

    def on_epoch_end(self, run: "Run", row: dict[str, float]) -> None:
        """Write all anew, so that the file is always complete."""
        self.on_train_begin(run)


class Console(Callback):
    """Prints a line an epoch."""

    def __init__(self, write: Callable[[str], None] = print):
        self.write = write

    def on_epoch_end(self, run: "Run", row: dict[str, float]) -> None:
        """Print the losses and the scores."""
        self.write(epoch_line(row, run.history))


def epoch_line(row: dict[str, float], history: list[dict]) -> str:
    """Losses and scores of an epoch, training / validation, in 100 columns."""
    best = "  best so far" if best_epoch(history) == row["epoch"] else ""
    return (
        f"epoch {row['epoch']:3d}  loss {row['train_loss']:.4f} / {row['validation_loss']:.4f}  "
        f"accuracy {row['train_accuracy']:.3f} / {row['validation_accuracy']:.3f}  "
        f"UAR {row['validation_uar']:.3f}  rate {row['learning_rate']:.1e}  "
        f"{row['clips_per_s']:.0f} clips/s{best}"
    )
