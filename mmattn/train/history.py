"""What a training decides from the rows of its epochs so far."""

from collections.abc import Sequence

from mmattn.config import TrainConfig


def best_epoch(history: Sequence[dict]) -> int:
    """The first epoch (from 1) with the highest validation accuracy."""
    accuracies = [row["validation_accuracy"] for row in history]
    return 1 + accuracies.index(max(accuracies))


def finished(history: Sequence[dict], config: TrainConfig) -> bool:
    """Whether the last epoch is done or validation accuracy cannot, or long did not, get better."""
    if not history:
        return False
    best = best_epoch(history)
    perfect = history[best - 1]["validation_accuracy"] == 1
    early = config.patience > 0 and (perfect or len(history) - best >= config.patience)
    return early or len(history) >= config.epochs
