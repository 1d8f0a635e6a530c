"""Folds and ensembles: what their parts are and how they are put together."""

import json
from itertools import combinations

import numpy as np
import pytest

from mmattn.data.splits import SPLITS
from mmattn.evaluate.metrics import scores
from mmattn.evaluate.predictions import read_predictions
from mmattn.evaluate.tables import Interval, cell_text

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(commands, tmp_path_factory):
    """Two folds of two speakers each, an ensemble of two for each."""
    folder = tmp_path_factory.mktemp("parts")
    folds = {"test_speakers": [[f"synthetic-{n:03d}" for n in pair] for pair in ((0, 1), (2, 3))]}
    (folder / "folds.json").write_text(json.dumps(folds))
    commands.run(
        "experiments.no_aug",
        *commands.tiny,
        *("--devices", 2, "--train.epochs", 1, "--ensemble-size", 2),
        *("--data.folds", folder / "folds.json", "--out", folder / "run"),
    )
    return folder / "run"


def split(folder):
    return json.loads((folder / "split.json").read_text())


def test_the_members_validate_every_other_speaker_once(run):
    tests = {"synthetic-000", "synthetic-001"}, {"synthetic-002", "synthetic-003"}
    for fold, test in enumerate(tests):
        members = [split(run / f"fold{fold}" / f"member{member}") for member in range(2)]
        validation = [set(member["validation"]["speakers"]) for member in members]
        assert not validation[0] & validation[1]
        assert validation[0] | validation[1] | test == {f"synthetic-{n:03d}" for n in range(12)}
        for member in members:
            splits = [set(member[name]["speakers"]) for name in SPLITS]
            assert splits[2] == test
            assert not any(a & b for a, b in combinations(splits, 2))


def test_an_ensemble_is_the_geometric_mean_of_its_members(run):
    fold = run / "fold1"
    members = [read_predictions(fold / f"member{m}" / "predictions.csv") for m in range(2)]
    together = read_predictions(fold / "predictions.csv")
    mean = np.sqrt(members[0].probabilities * members[1].probabilities)
    mean /= mean.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(together.probabilities, mean, rtol=1e-12)
    assert not np.array_equal(members[0].probabilities, members[1].probabilities)
    validation = read_predictions(fold / "predictions_validation.csv")
    assert len(set(validation.speakers)) == 10


def test_folds_are_pooled_and_averaged(run):
    summary = json.loads((run / "summary.json").read_text())
    folds = [read_predictions(run / f"fold{fold}" / "predictions.csv") for fold in range(2)]
    mean = np.mean([scores(fold)["uar"]["value"] for fold in folds])
    assert summary["mean_over_folds"]["test"]["uar"] == pytest.approx(mean)
    pooled = read_predictions(run / "predictions.csv")
    assert pooled.clips == folds[0].clips + folds[1].clips
    assert summary["test"] == scores(pooled)


def test_evaluate_and_baseline_walk_the_parts(commands, run):
    summary = json.loads((run / "summary.json").read_text())
    text = commands.run("mmattn", "evaluate", run)
    assert cell_text(Interval(**summary["test"]["uar"])) in text
    commands.run("mmattn", "baseline", run)
    found = json.loads((run / "baseline.json").read_text())["test"]
    assert list(found) == ["fold0", "fold1", "together"]
    together = read_predictions(run / "baselines/linear-late.csv")
    assert together.clips == read_predictions(run / "predictions.csv").clips
    assert scores(together) == found["together"]["linear-late"]


def test_a_run_in_parts_resumes(commands, run):
    before = (run / "predictions.csv").read_bytes()
    (run / "fold1" / "member1" / "summary.json").unlink()
    (run / "predictions.csv").unlink()
    text = commands.run("experiments.no_aug", "--resume", "--out", run)
    assert "fold0/member0 is complete" in text
    assert "fold1/member1 is complete" not in text
    assert (run / "predictions.csv").read_bytes() == before


def test_the_page_of_folds_has_the_pooled_scores(commands, run):
    assert list(run.rglob("report.html")) == [run / "report.html"]
    before = (run / "report.html").read_bytes()
    page = before.decode()
    summary = json.loads((run / "summary.json").read_text())
    assert "<h1>no_aug: 48 synthetic test clips</h1>" in page
    assert all(cell_text(Interval(**score)) in page for score in summary["test"].values())
    assert "fold0, fold1, each an ensemble of 2" in page
    assert "24 of 24 test clips" in page and "as predicted by fold0/member0 alone." in page
    assert "Learning curves" not in page
    commands.run("mmattn", "report", run)
    assert (run / "report.html").read_bytes() == before


def test_the_page_of_an_ensemble(commands, ensemble):
    summary = json.loads((ensemble / "summary.json").read_text())
    before = (ensemble / "report.html").read_bytes()
    page = before.decode()
    for name in ("validation", "test"):
        assert all(cell_text(Interval(**score)) in page for score in summary[name].values())
    assert "as predicted by member0 alone" in page
    commands.run("mmattn", "report", ensemble)
    assert (ensemble / "report.html").read_bytes() == before
