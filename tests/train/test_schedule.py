"""The learning rate as a function of the history, and the line about an epoch."""

import jax
import pytest

from mmattn.config import TrainConfig
from mmattn.evaluate.metrics import METRICS
from mmattn.train.callbacks import epoch_line
from mmattn.train.loop import learning_rate


def history(losses) -> list[dict]:
    return [{"validation_loss": loss} for loss in losses]


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


def test_no_line_about_an_epoch_is_wider_than_the_screen():
    said = []
    row = {
        "epoch": 100,
        "train_loss": 1.79181,
        "train_accuracy": 0.5,
        "validation_loss": 10.79181,
        "learning_rate": 5e-4,
        "clips_per_s": 12345.6,
        **{f"validation_{name}": 0.25 for name in METRICS},
    }
    for monitor in ("loss", *(name for name in METRICS if not METRICS[name].soft)):
        said.append(epoch_line([row | {f"validation_{monitor}": 0.125}], monitor))
        assert len(said[-1]) <= 100 and "0.125" in said[-1]
        assert said[-1].startswith("epoch 100  loss 1.7918 / ") and said[-1].endswith("  best")
