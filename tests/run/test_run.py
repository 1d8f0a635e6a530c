"""The whole run: what its folder holds, and that evaluating it again gives the same numbers."""

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from mmattn.config import OtherDataConfig, config_from_json
from mmattn.data.corpus import open_corpus
from mmattn.data.normalise import fit_normaliser
from mmattn.data.splits import split_from_json
from mmattn.errors import Diverged, UserError
from mmattn.evaluate.metrics import paired, scores
from mmattn.evaluate.predictions import read_predictions
from mmattn.evaluate.tables import Interval, cell_text
from mmattn.files import read_json, write_json
from mmattn.run.evaluate import _clips_to_evaluate
from mmattn.run.experiment import _say_if_chance, _say_if_one_tests
from mmattn.run.folder import PREDICTIONS, corpus_of, read_config
from mmattn.run.run import load_run
from mmattn.train.checkpoints import Checkpoints
from mmattn.train.history import best_epoch


def read(path):
    return json.loads(path.read_text())


def test_the_folder_holds_everything(tiny_run):
    assert {path.name for path in tiny_run.iterdir()} == {
        *("config.json", "split.json", "environment.json", "metrics.jsonl", "train.log"),
        *("checkpoints", "predictions.csv", "predictions_validation.csv", "summary.json"),
        *("curves.png", "confusion.png", "attention.png", "report.html"),
    }
    config = config_from_json(read(tiny_run / "config.json"))
    assert config.devices == 2 and config.train.batch == 8
    assert {p.name for p in (tiny_run / "checkpoints").iterdir()} == {"best", "final", "latest"}
    assert read(tiny_run / "environment.json")["starts"][0]["versions"]["jax"]
    assert "epoch  12" in (tiny_run / "train.log").read_text()


def test_metrics_and_the_best_epoch(tiny_run):
    rows = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    accuracies = [row["validation_accuracy"] for row in rows]
    best = best_epoch(rows, "accuracy")
    assert best == 1 + accuracies.index(max(accuracies))
    about = Checkpoints(tiny_run).about("best")
    assert about["history"] == rows[:best]
    log = (tiny_run / "train.log").read_text().splitlines()
    epochs = [line[len("2026-01-01 00:00:00 ") :] for line in log if "  loss " in line]
    assert len(epochs) == 12 and max(map(len, epochs)) <= 100
    assert [line for line in epochs if line.endswith("  best")][-1] == epochs[best - 1]
    assert f"accuracy {rows[-1]['train_accuracy']:.3f} / {accuracies[-1]:.3f}" in epochs[-1]
    assert about["class_names"] == ["anger", "disgust", "fear", "happy", "neutral", "sad"]
    assert about["widths"] == {"audio": 8, "video": 6}


def test_summary_agrees_with_the_predictions(tiny_run):
    summary = read(tiny_run / "summary.json")
    for name, file in PREDICTIONS.items():
        with open(tiny_run / file) as stream:
            rows = list(csv.DictReader(stream))
        right = np.mean([row["label"] == row["predicted"] for row in rows])
        assert summary[name]["accuracy"]["value"] == pytest.approx(right)
        assert summary["clips"][name] == len(rows)
        assert summary[name]["uar"]["low"] <= summary[name]["uar"]["value"]
    best = summary["best_epoch"]
    rows = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    for name, score in summary["validation"].items():
        assert score["value"] == rows[best - 1][f"validation_{name}"]


PREDICT = """
import json, sys
from pathlib import Path
import numpy as np
from mmattn.config import config_from_json
from mmattn.data.corpus import open_corpus
from mmattn.data.splits import split_from_json
from mmattn.train.devices import start_devices
from mmattn.run.run import load_run
run, out = map(Path, sys.argv[1:])
config = config_from_json(json.loads((run / "config.json").read_text()))
corpus = open_corpus(config.data, config.streams)
split = split_from_json(json.loads((run / "split.json").read_text()), corpus)
devices = start_devices(2, 8)
network = load_run(run).predictor(corpus, np.arange(len(corpus)), devices)
found = network.predict(split.test)
np.savez(out, probabilities=found.probabilities, **network.normaliser)
"""


def test_the_checkpoint_predicts_the_same_to_the_last_bit(commands, tiny_run, tmp_path):
    """In a process like that which trained."""
    words = (sys.executable, "-c", PREDICT, tiny_run, tmp_path / "found.npz")
    subprocess.run(words, env=commands.environment, check=True)
    found = np.load(tmp_path / "found.npz")
    stored = read_predictions(tiny_run / "predictions.csv")
    np.testing.assert_array_equal(found["probabilities"], stored.probabilities)
    config = config_from_json(read(tiny_run / "config.json"))
    corpus = open_corpus(config.data, config.streams)
    split = split_from_json(read(tiny_run / "split.json"), corpus)
    for name, expected in fit_normaliser(corpus, split.train).items():
        np.testing.assert_array_equal(found[name], expected)


def test_evaluate_gives_the_same_numbers(commands, tiny_run):
    text = commands.run("mmattn", "evaluate", tiny_run)
    summary = read(tiny_run / "summary.json")
    for name in ("validation", "test"):
        for score in summary[name].values():
            assert cell_text(Interval(**score)) in text
    commands.run("mmattn", "evaluate", tiny_run, "--checkpoint", "final")


def assert_shown(run, text: str) -> None:
    """What baselines wrote, and how far the run is ahead of them, is in the text."""
    own = read_predictions(run / "predictions.csv")
    for name, found in read(run / "baseline.json")["test"]["together"].items():
        baseline = read_predictions(run / "baselines" / f"{name}.csv")
        assert found == scores(baseline)
        lead = paired(own, baseline)
        row = " ".join(line for line in text.splitlines() if line.startswith(f" {name} "))
        assert cell_text(Interval(**found["uar"])) in row
        assert cell_text(Interval(**lead.differences["uar"])) in row
        assert row.endswith(f"{lead.mcnemar:.4f}")


def test_baselines_of_a_run_and_the_run_beside_them(commands, tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    assert_shown(run, commands.run("mmattn", "baseline", run))
    names = ["linear", "linear-late", "linear-audio", "linear-video"]
    assert list(read(run / "baseline.json")["test"]["together"]) == names
    late, audio, video = (
        read_predictions(run / "baselines" / f"{name}.csv").probabilities for name in names[1:]
    )
    product = np.sqrt(audio * video)
    np.testing.assert_allclose(late, product / product.sum(axis=1, keepdims=True), rtol=1e-9)
    text = commands.run("mmattn", "compare", run, tiny_run)
    assert_shown(run, text)
    assert f"{tiny_run} " in text and "1.0000" in text


@pytest.mark.slow
def test_networks_without_lstm_among_the_baselines(commands, tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    assert_shown(run, commands.run("mmattn", "baseline", run, "--networks"))
    found = read(run / "baseline.json")["test"]["together"]
    assert found.keys() > {"attention-pooling", "mean-pooling"}
    assert found["attention-pooling"] != found["mean-pooling"]
    options = ("--model.encoder", "none", "--model.pooling", "mean", "--out", tmp_path / "mean")
    commands.run("experiments.no_aug", *commands.tiny, *options, "--devices", 2)
    trained, baseline = tmp_path / "mean/predictions.csv", run / "baselines/mean-pooling.csv"
    assert trained.read_bytes() == baseline.read_bytes()


def test_a_broken_training_names_step_and_clips(commands, tmp_path):
    text = commands.run(
        "experiments.no_aug",
        *commands.tiny,
        *("--devices", 2, "--train.learning-rate", "1e30", "--out", tmp_path / "run"),
        code=3,
    )
    assert "training diverged at step 2 (epoch 1)" in text
    assert "synthetic-0" in text and "--train.learning-rate" in text


def test_other_clips_are_those_of_speakers_never_seen(tiny_run):
    config = config_from_json(read(tiny_run / "config.json"))
    corpus = open_corpus(config.data, config.streams)
    document = read(tiny_run / "split.json")
    splits = _clips_to_evaluate(document, corpus)
    split = split_from_json(document, corpus)
    np.testing.assert_array_equal(splits["test"], split.test)
    renamed = replace(corpus, names=tuple(f"other-{name}" for name in corpus.names))
    np.testing.assert_array_equal(_clips_to_evaluate(document, renamed)["unseen"], split.test)
    moved = replace(corpus, speakers=np.strings.add("moved-", corpus.speakers))
    del document["test"]["clips"][0]
    document["test"]["clips"].append("gone")
    np.testing.assert_array_equal(_clips_to_evaluate(document, moved)["unseen"], split.test)
    seen = np.isin(corpus.speakers, document["train"]["speakers"])
    all_seen = np.where(seen, corpus.speakers, document["train"]["speakers"][0])
    with pytest.raises(UserError, match="unseen speakers"):
        _clips_to_evaluate(document, replace(renamed, speakers=all_seen))


def test_the_folder_above_a_run_is_no_run(tiny_run):
    with pytest.raises(UserError, match=f"has no config.json; perhaps {tiny_run}$"):
        read_config(tiny_run.parent)


def test_clips_that_have_moved(tiny_run, tmp_path):
    config = read_json(tiny_run / "config.json")
    config["data"]["roots"] = ["/gone"]
    write_json(tmp_path / "config.json", config)
    with pytest.raises(UserError, match=r"^/gone: .* --data.roots names where"):
        corpus_of(tmp_path, OtherDataConfig())


def test_advice_for_chance_and_for_one_test_speaker(tiny_run, caplog):
    caplog.set_level("INFO", "mmattn")
    config = config_from_json(read(tiny_run / "config.json"))
    corpus = open_corpus(config.data, config.streams)
    split = split_from_json(load_run(tiny_run).split, corpus)
    chance = 1 / len({*corpus.labels[split.validation].tolist()})
    _say_if_chance(chance + 1e-6, corpus, split)
    assert not caplog.text
    _say_if_chance(chance, corpus, split)
    assert f"Validation UAR {chance:.3f} is no better than chance" in caplog.text
    one = replace(split, test=np.flatnonzero(corpus.speakers == corpus.speakers[0]))
    for data, which in (
        (config.data, replace(split, test=np.arange(len(corpus)))),
        (replace(config.data, folds="speaker"), one),
        (replace(config.data, split="column"), one),
    ):
        _say_if_one_tests(data, corpus, which)
        assert "--data.folds" not in caplog.text
    _say_if_one_tests(config.data, corpus, one)
    assert "--data.folds speaker tests each in turn" in caplog.text


def test_clips_that_do_not_fit_the_network(tiny_run):
    config = config_from_json(read(tiny_run / "config.json"))
    corpus = open_corpus(config.data, config.streams)
    clips = np.arange(len(corpus))
    run = load_run(tiny_run)
    run.predictor(corpus, clips)
    classes = replace(corpus, class_names=corpus.class_names[:-1])
    with pytest.raises(UserError, match=r"classes anger, disgust.*sad, the clips have anger"):
        run.predictor(classes, clips, 2)
    synthetic = replace(config.data.synthetic, audio_width=9)
    wide = open_corpus(replace(config.data, synthetic=synthetic), config.streams)
    with pytest.raises(UserError, match=r"'audio': 8.*'audio': 9"):
        run.predictor(wide, clips, 2)


def test_a_prediction_that_is_not_finite_names_its_clip(tiny_run):
    config = config_from_json(read(tiny_run / "config.json"))
    corpus = open_corpus(config.data, config.streams)
    clips = np.arange(4)
    network = load_run(tiny_run).predictor(corpus, clips, 2)
    corpus.streams["video"].clip(2).frames[3] = np.nan
    with pytest.raises(Diverged, match=f"not finite for {corpus.names[2]};"):
        network.predict(clips)
