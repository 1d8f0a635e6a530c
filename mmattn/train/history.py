"""Decisions about a training, as functions of its history: a row of metrics.jsonl per epoch."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmattn.config import TrainConfig
from mmattn.errors import UserError
from mmattn.evaluate.metrics import METRICS

Row = Mapping[str, float]


class Monitor(NamedTuple):
    """A score that can select the epoch: title, best value (0.0 if lower is better), text form."""

    title: str
    best: float
    form: str = ".3f"


def monitor_of(name: str) -> Monitor:
    """The monitor of a metric that needs no targets, or of the loss; UserError for other names.

    A row holds its value on the validation clips as validation_NAME.
    """
    monitors = {key: Monitor(one.title, one.best) for key, one in METRICS.items() if not one.soft}
    monitors["loss"] = Monitor("loss", 0.0, ".4f")
    if name not in monitors:
        raise UserError(f"--train.monitor {name}: expected {', '.join(monitors)}")
    return monitors[name]


def shown_scores(monitor: str) -> list[str]:
    """The scores in an epoch's line: the loss, the monitor and one of UAR and accuracy."""
    return [*dict.fromkeys(("loss", monitor, "uar", "accuracy"))][:3]


def by_split(row: Row, name: str) -> dict[str, float]:
    """A score's values in a row: "validation", and "train" if measured in training."""
    splits = [split for split in ("train", "validation") if f"{split}_{name}" in row]
    return {split: row[f"{split}_{name}"] for split in splits}


def score_text(row: Row, name: str) -> str:
    """A score's title and its values in a row, e.g. `loss 1.4142 / 1.7321`."""
    monitor = monitor_of(name)
    values = (format(value, monitor.form) for value in by_split(row, name).values())
    return f"{monitor.title} {' / '.join(values)}"


def best_epoch(history: Sequence[Row], monitor: str) -> int:
    """The first epoch (from 1) with the best validation value of the monitor."""
    first = np.argmax if monitor_of(monitor).best else np.argmin
    return 1 + int(first([row[f"validation_{monitor}"] for row in history]))


def end_reason(history: Sequence[Row], config: TrainConfig) -> str:
    """Why training ends after these epochs, in words; empty if it continues."""
    if not history:
        return ""
    if len(history) >= config.epochs:
        return "all epochs are done"
    best, (title, perfect, _) = best_epoch(history, config.monitor), monitor_of(config.monitor)
    if config.patience and history[best - 1][f"validation_{config.monitor}"] == perfect:
        return f"the validation {title} is perfect"
    if config.patience and len(history) - best >= config.patience:
        return f"no better validation {title} in {len(history) - best} epochs"
    return ""
