"""The page of a real run, as it comes out of training."""

import csv
import json
import re
import shutil

import numpy as np
import pytest

from mmattn.data.corpus import open_corpus
from mmattn.evaluate.predictions import read_predictions
from mmattn.evaluate.tables import Interval, cell_text, class_table
from mmattn.run.folder import read_config
from mmattn.run.report import write_page
from mmattn.run.run import load_run
from mmattn.train.shifts import OFFSETS


def read(path):
    return json.loads(path.read_text())


@pytest.fixture
def copy(tiny_run, tmp_path):
    """The run in another folder."""
    return shutil.copytree(tiny_run, tmp_path / "run")


def test_a_run_leaves_a_page_that_opens_offline(browser, tiny_run):
    browser.open(tiny_run / "report.html")
    assert browser.complaints() == []
    assert browser.requests() == []
    assert browser.text("h1") == "no_aug: 24 synthetic test clips"
    about = browser.text("header")
    assert "built-in synthetic corpus" in about and "speakers, seed 0" in about
    foot = browser.text("footer")
    assert "Made by python -m experiments.no_aug --data.synthetic.clips 144" in foot


def test_its_scores_are_those_of_the_summary(browser, tiny_run):
    summary = read(tiny_run / "summary.json")
    browser.open(tiny_run / "report.html")
    rows = browser.run(
        "return [...document.querySelectorAll('#scores tr')]"
        ".map((row) => [...row.children].map((cell) => cell.textContent))"
    )
    shown = {row[0]: row[1:] for row in rows}
    for measure, name in (("uar", "UAR"), ("accuracy", "accuracy"), ("macro_f1", "macro-F1")):
        splits = [
            cell_text(Interval(**summary[split][measure])) for split in ("validation", "test")
        ]
        assert shown[name] == splits
    for row in class_table(read_predictions(tiny_run / "predictions.csv")).rows:
        assert shown[row[0]] == [cell_text(cell) for cell in row[1:]]
    assert f"{summary['best_epoch']} of {summary['epochs']}" in browser.text("header")
    train, validation = browser.data("plot-0")
    rows = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(train["y"], [row["train_loss"] for row in rows])
    np.testing.assert_allclose(validation["y"], [row["validation_loss"] for row in rows])


def test_its_curves_pass_through_the_accuracy_of_the_test(browser, tiny_run):
    accuracy = read(tiny_run / "summary.json")["test"]["accuracy"]
    browser.open(tiny_run / "report.html")
    band, offset = browser.data("plot-4")
    np.testing.assert_allclose(offset["x"], 1000 * OFFSETS, atol=1e-9)
    np.testing.assert_allclose(offset["y"], accuracy["value"])  # this network reads no times
    np.testing.assert_allclose(max(band["y"]), accuracy["high"])
    np.testing.assert_allclose(min(band["y"]), accuracy["low"])
    _, tempo = browser.data("plot-5")
    assert tempo["y"][tempo["x"].index(1)] == pytest.approx(accuracy["value"])


def test_its_viewer_shows_the_test_clips(browser, tiny_run):
    with open(tiny_run / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    browser.open(tiny_run / "report.html")
    listed = browser.run("return [...document.querySelectorAll('#clip option')].map(o => o.text)")
    assert listed == [f"{row['clip']} · {row['label']}" for row in rows]
    last = rows[-1]
    browser.choose("#clip", listed[-1])
    verdict = "right" if last["label"] == last["predicted"] else f"predicted {last['predicted']}"
    assert browser.text("#clip-title") == f"{last['clip']}: {last['label']}, {verdict}"
    (bars,) = browser.data("clip-classes")
    np.testing.assert_allclose(bars["x"], [float(p) for p in list(last.values())[4:]], atol=1e-4)
    config = read_config(tiny_run)
    corpus = open_corpus(config.data, config.streams)
    clip = corpus.names.index(last["clip"])
    audio = browser.data("clip-time")[0]
    np.testing.assert_allclose(audio["x"], corpus.streams["audio"].clip_times(clip), atol=1e-5)
    drawn = browser.run(
        "return document.getElementById('clip-time').layout.shapes"
        ".filter((shape) => /cue|decoy/.test(shape.name)).map((shape) => [shape.name, shape.x0])"
    )
    assert {(name, time) for name, time in drawn} == {
        (f"{cue.modality} {'decoy' if cue.decoy else 'cue'}", round(cue.time, 4))
        for cue in corpus.cues[clip]
    }


def test_the_command_writes_the_same_page(commands, tiny_run, copy):
    (copy / "report.html").unlink()
    assert str(copy / "report.html") in commands.run("mmattn", "report", copy)
    assert (copy / "report.html").read_bytes() == (tiny_run / "report.html").read_bytes()


@pytest.mark.slow
def test_a_run_killed_between_page_and_summary_resumes(commands, tiny_run, copy):
    (copy / "summary.json").unlink()
    (copy / "report.html").write_text("half")
    commands.run("experiments.no_aug", "--resume", "--out", copy)
    assert (copy / "report.html").read_bytes() == (tiny_run / "report.html").read_bytes()
    assert read(copy / "summary.json")["test"] == read(tiny_run / "summary.json")["test"]


def test_a_split_that_leaks_is_warned_of(copy):
    document = read(copy / "split.json")
    (copy / "split.json").write_text(json.dumps(document | {"leaking": True}))
    config = read_config(copy)
    corpus = open_corpus(config.data, config.streams)
    write_page(load_run(copy), corpus, 2)
    page = (copy / "report.html").read_text()
    assert re.search('<p class="note" role="note">THE SPLIT LEAKS SPEAKERS', page)


def test_there_is_no_page_of_what_is_not_complete(commands, copy):
    (copy / "summary.json").unlink()
    assert "is not complete" in commands.run("mmattn", "report", copy, code=2)


def test_there_is_no_page_without_the_best_checkpoint(commands, copy):
    shutil.rmtree(copy / "checkpoints" / "best")
    assert "expected a best checkpoint" in commands.run("mmattn", "report", copy, code=2)
