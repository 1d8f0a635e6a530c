"""What decides about a training, as functions of its history."""

import pytest

from mmattn.config import TrainConfig
from mmattn.errors import UserError
from mmattn.evaluate.metrics import METRICS, Metric
from mmattn.train.history import best_epoch, end_reason, monitor_of, score_text, shown_scores


def history(values, monitor="accuracy") -> list[dict]:
    return [{f"validation_{monitor}": value} for value in values]


@pytest.mark.parametrize(
    ("monitor", "values"),
    [
        ("accuracy", [0.3, 0.6, 0.5, 0.6]),
        ("uar", [0.3, 0.6, 0.5, 0.6]),
        ("log_loss", [1.3, 0.6, 0.7, 0.6]),
        ("loss", [1.3, 0.6, 0.7, 0.6]),
    ],
)
def test_best_is_the_first_of_the_best_values_and_patience_counts_from_it(monitor, values):
    config = TrainConfig(patience=2, epochs=50, monitor=monitor)
    rows = history(values, monitor)
    assert best_epoch(rows, monitor) == 2
    assert not end_reason([], config)
    assert not end_reason(rows[:3], config)
    title = monitor_of(monitor).title
    assert end_reason(rows, config) == f"no better validation {title} in 2 epochs"


def test_the_accuracy_of_a_run_of_an_earlier_version_needs_no_other_metric():
    rows = [{"validation_accuracy": 0.3, "validation_loss": 1.0, "validation_uar": 0.2}] * 2
    assert best_epoch(rows, TrainConfig().monitor) == 1
    assert not end_reason(rows, TrainConfig())


def test_training_ends_with_the_epochs():
    assert end_reason(history([0.1, 0.2]), TrainConfig(epochs=2))


@pytest.mark.parametrize("monitor", [*(n for n in METRICS if not METRICS[n].soft), "loss"])
def test_training_ends_when_nothing_can_get_better(monitor):
    best, config = monitor_of(monitor).best, TrainConfig(monitor=monitor)
    assert end_reason(history([0.5, best], monitor), config)
    assert not end_reason(history([0.5, 1 - best], monitor), config)


def test_without_patience_only_the_epochs_end_the_training():
    config = TrainConfig(patience=0, epochs=6)
    for accuracies in ([1.0], [0.9, *[0.1] * 4], [1.0] * 5):
        assert not end_reason(history(accuracies), config)
    assert end_reason(history([0.5] * 6), config)


def test_what_there_is_not_cannot_be_monitored(monkeypatch):
    for name in ("acuracy", "validation_loss", "js_divergence"):
        with pytest.raises(UserError, match=rf"--train.monitor {name}: expected .*uar, .*loss"):
            monitor_of(name)
    error = Metric("error rate", "share of wrong clips", 0.0, lambda sums: sums)
    monkeypatch.setitem(METRICS, "error", error)
    assert best_epoch(history([0.3, 0.2], "error"), "error") == 2


def test_a_line_shows_the_monitor_beside_the_loss():
    assert shown_scores("accuracy") == ["loss", "accuracy", "uar"]
    assert shown_scores("uar") == ["loss", "uar", "accuracy"]
    assert shown_scores("loss") == ["loss", "uar", "accuracy"]
    assert shown_scores("brier") == ["loss", "brier", "uar"]
    row = {"train_loss": 2**0.5, "validation_loss": 3**0.5, "validation_macro_f1": 0.25}
    assert score_text(row, "loss") == "loss 1.4142 / 1.7321"
    assert score_text(row, "macro_f1") == "macro-F1 0.250"
