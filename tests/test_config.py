"""What no option may be: one message that names it, says what was expected and what came."""

import math
import re
from dataclasses import replace

import pytest

from experiments import aligned_aug, ravdess_tuned
from mmattn.cli import parse_experiment
from mmattn.config import (
    AugmentConfig,
    DistributedConfig,
    ExperimentConfig,
    config_from_json,
)
from mmattn.errors import UserError

GOOD = ExperimentConfig(name="test")
TEMPO = "expected 0.25 ≤ low ≤ high < 4"


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("augment", {"noise": {"audio": (-0.1, 0.1)}}, "--augment.noise (-0.1, 0.1): expected 0"),
        ("augment", {"noise": {"video": (0.2, 0.1)}}, "--augment.noise (0.2, 0.1): expected 0"),
        ("augment", {"noise": {"video": (0.1, float("nan"))}}, "--augment.noise (0.1, nan): "),
        ("augment", {"scale": {"audio": (0.5, float("inf"))}}, "--augment.scale (0.5, inf): "),
        ("augment", {"tempo": (0.2, 1.0)}, f"--augment.tempo (0.2, 1.0): {TEMPO}"),
        (
            "augment",
            {"own_tempo": {"audio": (1.1, 0.9)}},
            f"--augment.own-tempo (1.1, 0.9): {TEMPO}",
        ),
        (
            "augment",
            {"own_tempo": {"video": (1.0, 4.0)}},
            f"--augment.own-tempo (1.0, 4.0): {TEMPO}",
        ),
        ("augment", {"probability": 1.5}, "--augment.probability 1.5: expected 0 to 1"),
        ("augment", {"dropout": {"video": -0.1}}, "--augment.dropout -0.1: expected 0 to 1"),
        ("augment", {"feature_mask": 2.0}, "--augment.feature-mask 2.0: expected 0 to 1"),
        ("augment", {"drop_modality": 1.1}, "--augment.drop-modality 1.1: expected 0 to 1"),
        ("augment", {"gap": {"video": -1.0}}, "--augment.gap -1.0: expected 0 to 60"),
        ("augment", {"time_mask": 61.0}, "--augment.time-mask 61.0: expected 0 to 60"),
        ("augment", {"variants": {"noise": 1.5}}, "--augment.variants 1.5: expected 0 to 1"),
        (
            "augment",
            {"variants": {"noise": 0.6, "tempo": 0.6}},
            "--augment.variants 1.2 in all: expected at most 1",
        ),
        ("augment", {"mixup": -0.2}, "--augment.mixup -0.2: expected 0 to 100"),
        ("model", {"modalities": ()}, "--model.modalities : expected one or more, each once"),
        ("model", {"modalities": ("",)}, "--model.modalities : expected one or more, each once"),
        ("model", {"modalities": ("a", "a")}, "--model.modalities a a: expected one or more"),
        (
            "model",
            {"units": {"text": (8,)}},
            "--model.units text: no such modality: expected audio video",
        ),
        ("model", {"units": {"audio": ()}}, "--model.units (): expected layers of 1 unit or more"),
        ("train", {"monitor": "acuracy"}, "--train.monitor acuracy: expected uar, accuracy, "),
        ("data", {"tile": ("text",)}, "--data.tile text: no such modality: expected audio video"),
        ("data", {"streams": ("audio",)}, "--model.modalities video: no such modality: expected a"),
        (
            "augment",
            {"gap": {"text": 0.1}},
            "--augment.gap text: no such modality: expected audio video",
        ),
        ("model", {"cross_window": 0.0}, "--model.cross-window 0.0: expected above 0 and at most"),
        ("model", {"cross_window": float("inf")}, "--model.cross-window inf: expected above 0"),
        ("model", {"cross_heads": 0}, "--model.cross-heads 0: expected 1 or more"),
        (
            "model",
            {"cross_units": 9},
            "--model.cross-units 9: expected a multiple of --model.cross-heads 2",
        ),
        ("model", {"cross_units": 0}, "--model.cross-units 0: expected a multiple"),
        ("model", {"branch_loss": -1.0}, "--model.branch-loss -1.0: expected 0 or more; 0 with"),
        ("model", {"fusion": "late", "branch_loss": 0.5}, "--model.branch-loss 0.5: expected 0"),
        ("train", {"patience": -1}, "--train.patience -1: expected 0 or more"),
        ("train", {"save_every": 0}, "--train.save-every 0: expected 1 or more"),
    ],
)
def test_wrong_values_are_named_with_what_was_expected(part, change, message):
    bad = replace(GOOD, **{part: replace(getattr(GOOD, part), **change)})
    with pytest.raises(UserError, match=re.escape(message)):
        bad.check()


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("augment", {"tempo": (0.25, 3.9), "noise": {"audio": (0.0, 5.0)}, "probability": 0.0}),
        ("augment", {"variants": dict.fromkeys("abcdefghij", 0.1)}),
        ("augment", {"mixup": 100.0, "gap": {"video": 60.0}, "drop_modality": 1.0}),
        ("model", {"fusion": "cross", "modalities": ("video", "audio"), "cross_units": 2}),
        ("model", {"fusion": "cross", "modalities": ("audio",)}),
        ("model", {"modalities": ("text", "audio", "video"), "units": {"text": (8, 4)}}),
        ("data", {"streams": ("audio", "text", "video"), "tile": ("text",)}),
        ("train", {"patience": 0, "save_every": 1000}),
    ],
)
def test_values_at_their_ends_are_right(part, change):
    replace(GOOD, **{part: replace(getattr(GOOD, part), **change)}).check()


def test_a_stored_config_comes_back_whole():
    augment = AugmentConfig(
        pick="one-or-all", tempo=(0.9, 1.1), noise={"audio": (0.0, 0.1)}, mixup=0.4
    )
    config = replace(GOOD, augment=augment, model=replace(GOOD.model, fusion="cross"))
    assert config_from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((None, 2, None), "expected all of coordinator, num-processes, process-id, there is no"),
        (("host:1", None, 0), "there is no --distributed.num-processes"),
        (("host", 2, 0), "--distributed.coordinator host: expected HOST:PORT"),
        ((":1", 2, 0), "--distributed.coordinator :1: expected HOST:PORT"),
        (("host:99999", 2, 0), "--distributed.coordinator host:99999: expected HOST:PORT"),
        (("host:1", 0, 0), "--distributed.num-processes 0: expected 1 or more"),
        (("host:1", 2, 2), "--distributed.process-id 2: expected 0 to 1"),
        ((None, None, None, 0.0), "--distributed.timeout 0.0: expected above 0 and at most"),
        ((None, None, None, math.inf), "--distributed.timeout inf: expected above 0 and at most"),
    ],
)
def test_processes_whose_options_do_not_fit_together(values, message):
    with pytest.raises(UserError, match=re.escape(message)):
        replace(GOOD, distributed=DistributedConfig(*values)).check()


def test_processes_are_no_part_of_what_a_run_stores():
    several = replace(GOOD, distributed=DistributedConfig("[::1]:80", 2, 1))
    several.check()
    assert several.to_json() == GOOD.to_json()
    assert config_from_json(several.to_json()) == GOOD


def test_what_an_experiment_sets_goes_with_the_modality_that_is_left_out():
    words = ["--data.roots", "clips", "--model.modalities", "audio"]
    augment = parse_experiment(aligned_aug.CONFIG, "", words).augment
    assert (augment.noise, augment.dropout, augment.gap) == ({"audio": (0.05, 0.2)}, {}, {})
    with pytest.raises(UserError, match=r"--augment\.gap video: no such modality"):
        parse_experiment(aligned_aug.CONFIG, "", [*words, "--augment.gap", "video=0.1"]).check()
    config = parse_experiment(ravdess_tuned.CONFIG, "", words)
    assert config.model.units == {"audio": (32,)}
    config.check()
    with pytest.raises(UserError, match=r"--model\.units text: no such modality"):
        parse_experiment(ravdess_tuned.CONFIG, "", [*words, "--model.units", "text=8"]).check()
