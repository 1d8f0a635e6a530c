"""What is measured on a trained network, on one whose answers are known or cannot matter."""

import numpy as np
import pytest

from experiments.alignment.measure import few_of_each, measure, meeting_times, rank_agreement
from mmattn.data.corpus import open_corpus
from mmattn.data.splits import make_split
from mmattn.train.loop import make_trainer
from mmattn.train.shifts import OFFSETS, TEMPOS
from tests.alignment.small import CONFIG


@pytest.fixture(scope="module", params=["concat", pytest.param("cross", marks=pytest.mark.slow)])
def measured(request):
    """An untrained network's measures, its predictions, and the labels."""
    from dataclasses import replace

    config = replace(CONFIG, model=replace(CONFIG.model, fusion=request.param))
    corpus = open_corpus(config.data, config.streams)
    split = make_split(corpus, config.data, 0)
    trainer = make_trainer(config, corpus, split, 1)
    state, _ = trainer.start()
    network = trainer.predictor(state)
    found = network.predict(split.test)
    return request.param, measure(network, split, 0), found, corpus.labels[split.test]


@pytest.mark.slow
def test_every_clip_has_a_row(measured):
    _, measures, found, labels = measured
    assert all(len(values) == len(labels) for values in measures.values())
    assert np.array_equal(measures["probabilities"], found.probabilities)
    assert np.array_equal(measures["label"], labels)


def test_no_shift_and_no_change_of_tempo_change_nothing(measured):
    _, measures, found, labels = measured
    right = found.probabilities.argmax(1) == labels
    assert np.array_equal(measures["right_at_offset"][:, OFFSETS == 0][:, 0], right)
    assert np.array_equal(measures["right_at_tempo"][:, TEMPOS == 1][:, 0], right)


def test_pooling_each_branch_cannot_see_an_offset(measured):
    fusion, measures, _, _ = measured
    if fusion == "concat":
        assert (np.ptp(measures["right_at_offset"], axis=1) == 0).all()


def test_ranges(measured):
    _, measures, _, _ = measured
    for name, least, most in (
        *(("correlation", -1, 1), ("shift_auc", 0, 1), ("agreement", 0, 1), ("pointing", 0, 1)),
        *(("cue_auroc", 0, 1), ("cue_error", 0, 300), ("emap_gap", -1, 1)),
        *(("deletion_attention", 0, 1), ("insertion_random", 0, 1), ("random_weights", -1, 1)),
    ):
        known = measures[name][~np.isnan(measures[name])]
        assert len(known), name
        assert least <= known.min() <= known.max() <= most, name


def test_costly_measures_are_of_the_same_few_clips(measured):
    _, measures, _, _ = measured
    known = ~np.isnan(measures["faithfulness"])
    assert np.array_equal(known, ~np.isnan(measures["attention_audio"][:, 0]))
    speakers, counts = np.unique(measures["speaker"][known], return_counts=True)
    assert len(speakers) == 6
    assert set(counts) == {6}


def test_meetings_are_where_the_true_cues_are():
    corpus = open_corpus(CONFIG.data, CONFIG.streams)
    times = meeting_times(corpus, np.arange(20))
    for clip, time in enumerate(times):
        true = [cue.time for cue in corpus.cues[clip] if not cue.decoy]
        assert max(abs(np.array(true) - time)) <= 0.04 + 1e-9


def test_few_of_each_speaker():
    speakers = np.array(["a"] * 5 + ["b"] * 2)
    assert np.array_equal(few_of_each(speakers, 3), [0, 2, 4, 5, 6])


def test_rank_agreement_leaves_padding_out():
    a = {"audio": np.array([0.2, 0.5, 0.3, np.nan]), "video": np.array([0.1, 0.9, 0, 0])}
    b = {"audio": np.array([0.4, 1.0, 0.6, np.nan]), "video": np.array([0.9, 0.1, 0, 0])}
    assert rank_agreement(a, b) == pytest.approx(0)
