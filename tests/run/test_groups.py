"""A corpus with groups and raters' targets: what a run and its evaluation say of them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from mmattn.console import log_to, start_logging
from mmattn.data.corpus import Corpus, open_corpus
from mmattn.data.splits import Split, split_from_json, split_to_json
from mmattn.evaluate.baseline import corpus_statistics, functionals
from mmattn.evaluate.baseline import test_baseline as baseline_predictions
from mmattn.evaluate.metrics import group_scores, scores
from mmattn.evaluate.predictions import predictions_of, read_predictions
from mmattn.files import write_json
from mmattn.run.evaluate import _test_network
from mmattn.run.experiment import write_results
from mmattn.run.folder import PREDICTIONS, read_config
from mmattn.run.run import load_run


@pytest.fixture(scope="module")
def split(tiny_run) -> Split:
    config = read_config(tiny_run)
    corpus = open_corpus(config.data, config.streams)
    return split_from_json(json.loads((tiny_run / "split.json").read_text()), corpus)


@pytest.fixture(scope="module")
def corpus(tiny_run, split) -> Corpus:
    """The run's corpus with a group column, raters' targets and ties outside of the training."""
    config = read_config(tiny_run)
    corpus = open_corpus(config.data, config.streams)
    random = np.random.default_rng(0)
    labels = np.where(random.random(len(corpus)) < 0.2, -1, corpus.labels)
    labels[split.train] = corpus.labels[split.train]
    takes = {"take": random.choice(["first", "second"], len(corpus))}
    return replace(
        corpus,
        labels=labels.astype(np.int32),
        groups=takes,
        columns=takes,
        targets=random.dirichlet(np.ones(6), len(corpus)),
    )


def test_results_have_groups_ties_and_soft_scores(tiny_run, corpus, split, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    write_json(run / "split.json", split_to_json(split, corpus))
    predictions = {
        name: predictions_of(corpus, split.clips[name], read_predictions(run / file).probabilities)
        for name, file in PREDICTIONS.items()
    }
    trained = load_run(run)
    trained.config = replace(trained.config, seed=3)
    write_results(trained, run, predictions, corpus, "no training")
    summary = json.loads((run / "summary.json").read_text())
    test = predictions["test"]
    assert summary["test"] == scores(test, 3) and "cross_entropy" in summary["test"]
    cells = corpus.groups["take"][split.test]
    assert summary["groups"] == group_scores(test, {"take": cells}, 3)
    assert summary["groups"]["take"]["values"]["first"]["clips"] == (cells == "first").sum()
    assert test.ties and summary["ties"] == {name: one.ties for name, one in predictions.items()}
    np.testing.assert_array_equal(read_predictions(run / "predictions.csv").targets, test.targets)
    page = (run / "report.html").read_text()
    assert "Scores by group" in page
    assert f"{test.ties} of {len(test.clips)} test clips have no label" in page


def test_evaluation_says_groups_and_ties(tiny_run, corpus, split, tmp_path):
    start_logging()
    with log_to(tmp_path / "log"):
        found = _test_network(load_run(tiny_run, calibrated=False), corpus, 2)
    text = (tmp_path / "log").read_text()
    assert f"{tiny_run}, test, by take" in text
    assert f"{found.ties} of {len(found.clips)} test clips have no label" in text
    np.testing.assert_array_equal(found.targets, corpus.targets[split.test])


def test_statistics_are_those_of_one_modality_after_the_other(corpus):
    both = corpus_statistics(corpus, ("audio", "video"))
    alone = [corpus_statistics(corpus, (name,)) for name in ("audio", "video")]
    np.testing.assert_array_equal(both, np.concatenate(alone, axis=1))
    of_audio = functionals(corpus.streams["audio"].clip(3))
    np.testing.assert_array_equal(alone[0][3], of_audio)


def test_the_baseline_is_fitted_to_clips_with_a_label(corpus, split):
    statistics = corpus_statistics(corpus, ("audio", "video"))
    labels = corpus.labels.copy()
    labels[split.train[::5]] = -1
    known = replace(
        split,
        train=split.train[labels[split.train] >= 0],
        validation=split.validation[labels[split.validation] >= 0],
    )
    tied = replace(corpus, labels=labels)
    found = baseline_predictions(tied, statistics, split)
    expected = baseline_predictions(tied, statistics, known)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    assert found.ties and found.targets is not None
