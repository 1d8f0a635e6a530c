"""Learning rate, best epoch and end of training as functions of the history."""

import jax
import pytest

from mmattn.config import TrainConfig
from mmattn.train.history import best_epoch, finished
from mmattn.train.loop import learning_rate


def history(losses=(), accuracies=()):
    rows = max(len(losses), len(accuracies))
    return [
        {
            "validation_loss": losses[n] if n < len(losses) else 1.0,
            "validation_accuracy": accuracies[n] if n < len(accuracies) else 0.5,
        }
        for n in range(rows)
    ]


def test_the_rate_is_halved_on_a_plateau_and_never_below_the_floor():
    config = TrainConfig(learning_rate=4e-6, plateau=2)
    losses = [1.0, 0.9, 0.95, 0.95, 0.8, 0.9, 0.9] + [0.9] * 10
    rates = [learning_rate(config, history(losses[:n])) for n in range(len(losses) + 1)]
    assert rates[:4] == pytest.approx([4e-6] * 4)
    assert rates[4] == pytest.approx(2e-6)  # two epochs no better than 0.9
    assert rates[5:7] == pytest.approx([2e-6] * 2)
    assert rates[7] == pytest.approx(1e-6)
    assert rates[-1] == pytest.approx(1e-6)


def test_the_cosine_falls_from_the_full_rate_to_zero():
    config = TrainConfig(learning_rate=0.1, epochs=4, schedule="cosine")
    rates = [learning_rate(config, history([1.0] * n)) for n in range(5)]
    assert rates == pytest.approx([0.1, 0.085355, 0.05, 0.014645, 0.0], abs=1e-6)


def test_best_is_the_first_maximum_and_patience_counts_from_it():
    config = TrainConfig(patience=2, epochs=50)
    accuracies = [0.3, 0.6, 0.5, 0.6]
    assert best_epoch(history(accuracies=accuracies)) == 2
    assert not finished([], config)
    assert not finished(history(accuracies=accuracies[:3]), config)
    assert finished(history(accuracies=accuracies), config)


def test_training_ends_with_the_epochs_or_when_nothing_can_get_better():
    assert finished(history(accuracies=[0.1, 0.2]), TrainConfig(epochs=2))
    assert finished(history(accuracies=[0.1, 1.0]), TrainConfig())


def test_without_patience_only_the_epochs_end_the_training():
    config = TrainConfig(patience=0, epochs=6)
    for accuracies in ([1.0], [0.9, *[0.1] * 4], [1.0] * 5):
        assert not finished(history(accuracies=accuracies), config)
    assert finished(history(accuracies=[0.5] * 6), config)


def test_a_longer_history_compiles_nothing_new():
    config = TrainConfig(plateau=3)
    learning_rate(config, history([1.0, 0.9, 0.8]))
    compiled = []
    listen = lambda name, *_, **__: compiled.append(name)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        learning_rate(config, history([1.0] * 12))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not [name for name in compiled if "compile" in name]
