import os

import numpy as np
import pytest

from mmattn.errors import UserError
from mmattn.evaluate.predictions import (
    Predictions,
    combine,
    join,
    pool,
    read_predictions,
    write_predictions,
)


def predictions(**changes) -> Predictions:
    fields = {
        "clips": ("a1", "a2", "b1"),
        "speakers": ["a", "a", "b"],
        "labels": [0, 1, 1],
        "probabilities": [[0.7, 0.3], [0.2, 0.8], [0.6, 0.4]],
        "class_names": ("happy", "sad"),
    }
    return Predictions(**(fields | changes))


TARGETS = [[1, 0], [1 / 3, 2 / 3], [0.5, 0.5]]


def soft(**changes) -> Predictions:
    return predictions(**({"labels": [0, 1, -1], "targets": TARGETS} | changes))


def assert_same(actual: Predictions, expected: Predictions) -> None:
    assert actual.clips == expected.clips
    assert actual.class_names == expected.class_names
    np.testing.assert_array_equal(actual.speakers, expected.speakers)
    np.testing.assert_array_equal(actual.labels, expected.labels)
    np.testing.assert_allclose(actual.probabilities, expected.probabilities, rtol=1e-12)
    assert (actual.targets is None) == (expected.targets is None)
    if expected.targets is not None:
        np.testing.assert_array_equal(actual.targets, expected.targets)


def test_predicted_is_the_most_probable_class_and_the_first_of_a_tie():
    tied = predictions(probabilities=[[0.5, 0.5], [0.2, 0.8], [0.6, 0.4]])
    assert tied.predicted.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clips": (), "speakers": [], "labels": [], "probabilities": []}, "no clips"),
        ({"labels": [0, 1]}, r"labels: expected shape \(3,\), got \(2,\)"),
        ({"speakers": ["a"]}, "speakers: expected shape"),
        ({"class_names": ("happy", "sad", "calm")}, r"expected shape \(3, 3\), got \(3, 2\)"),
        ({"clips": ("a1", "a1", "b1")}, "clips given twice: a1"),
        ({"class_names": ("sad", "sad")}, "class_names given twice: sad"),
        ({"labels": [0, 2, 1]}, "labels outside 0…1: a2"),
        ({"labels": [-1, 0, 1]}, "labels outside 0…1: a1"),
        ({"probabilities": [[0.7, 0.3], [np.nan, 1], [0.6, 0.4]]}, "not finite: a2"),
        ({"probabilities": [[0.7, 0.3], [-0.1, 1.1], [0.6, 0.4]]}, "negative or not finite: a2"),
        ({"probabilities": [[0.7, 0.3], [0.2, 0.8], [0.6, 0.402]]}, "sum to 1 within 0.001: b1"),
        ({"targets": TARGETS, "labels": [-2, 0, 1]}, "labels outside -1…1: a1"),
        ({"targets": TARGETS[:2]}, r"targets: expected shape \(3, 2\), got \(2, 2\)"),
        ({"targets": [[1, 0], [2, 1], [1, 0]]}, "targets that do not sum to 1 within 0.001: a2"),
        ({"targets": [[1, 0], [2, -1], [1, 0]]}, "targets that are negative or not finite: a2"),
        ({"class_names": ("a", "target.a")}, r"begin with target.: \['target.a'\]"),
        ({"class_names": ("", "a")}, "class names that are empty"),
    ],
)
def test_predictions_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        predictions(**changes)


def test_float32_softmax_is_near_enough_to_one():
    logits = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert predictions(probabilities=softmax).probabilities.dtype == np.float64


def test_join_keeps_every_clip_in_order():
    fold = predictions(clips=("c1", "c2", "d1"), speakers=["c", "c", "d"], labels=[1, 0, 0])
    pooled = join([predictions(), fold])
    assert pooled.clips == ("a1", "a2", "b1", "c1", "c2", "d1")
    assert pooled.speakers.tolist() == ["a", "a", "b", "c", "c", "d"]
    assert pooled.labels.tolist() == [0, 1, 1, 1, 0, 0]
    assert_same(join([predictions()]), predictions())


def test_targets_go_along_when_predictions_are_put_together_or_chosen():
    other = soft(clips=("c1", "c2", "d1"), targets=TARGETS[::-1])
    np.testing.assert_array_equal(join([soft(), other]).targets, TARGETS + TARGETS[::-1])
    members = [soft(probabilities=[[one, 1 - one]] * 3) for one in (0.9, 0.5)]
    assert_same(combine(members), soft(probabilities=[[0.75, 0.25]] * 3))
    assert_same(soft().select(np.arange(3)), soft())
    one = soft().select(np.array([False, False, True]))
    assert (one.clips, one.ties, one.targets.tolist()) == (("b1",), 1, [[0.5, 0.5]])
    with pytest.raises(UserError, match="with and without the raters' targets"):
        join([soft(), predictions(clips=("c1", "c2", "d1"))])


def test_a_pool_is_the_normalised_geometric_mean():
    # sqrt(0.9 * 0.1) = 0.3 twice, and with a class that a model rules out
    np.testing.assert_allclose(pool([np.array([0.9, 0.1]), np.array([0.1, 0.9])]), [0.5, 0.5])
    np.testing.assert_allclose(
        pool([np.array([[0.8, 0.2]]), np.array([[0.5, 0.5]])]), [[2 / 3, 1 / 3]]
    )
    ruled_out = pool([np.array([1.0, 0.0]), np.array([0.5, 0.5])])
    assert ruled_out.sum() == pytest.approx(1, abs=1e-15)
    assert 0 < ruled_out[1] < 1e-18
    one = np.array([0.7, 0.3])
    assert pool([one]) is one


def test_joining_a_clip_twice_or_different_classes_is_an_error():
    with pytest.raises(UserError, match="more than one of the joined predictions: a1"):
        join([predictions(), predictions(clips=("a1", "x", "y"))])
    with pytest.raises(UserError, match=r"happy, sad and sad, happy"):
        join([predictions(), predictions(class_names=("sad", "happy"))])


def test_a_round_trip_through_the_file_is_exact(tmp_path):
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.full(6, 0.01), size=200)  # many near 1e-300
    original = Predictions(
        tuple(f'folder, "{row}"/ü' for row in range(200)),
        random.integers(0, 9, 200),
        random.integers(0, 6, 200),
        probabilities,
        ("anger", "disgust", "fear", "happy, very", "clip", "sad"),
    )
    write_predictions(tmp_path / "predictions.csv", original)
    assert_same(read_predictions(tmp_path / "predictions.csv"), original)


def test_the_file_names_classes_and_replaces_an_older_one(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text("old")
    write_predictions(path, predictions())
    assert path.read_text().splitlines() == [
        "clip,speaker,label,predicted,happy,sad",
        "a1,a,happy,happy,0.7,0.3",
        "a2,a,sad,sad,0.2,0.8",
        "b1,b,sad,happy,0.6,0.4",
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_targets_are_columns_of_their_own_and_a_tie_has_no_label(tmp_path):
    path = tmp_path / "predictions.csv"
    write_predictions(path, soft())
    assert path.read_text().splitlines() == [
        "clip,speaker,label,predicted,happy,sad,target.happy,target.sad",
        "a1,a,happy,happy,0.7,0.3,1.0,0.0",
        f"a2,a,sad,sad,0.2,0.8,{1 / 3},{2 / 3}",
        "b1,b,,happy,0.6,0.4,0.5,0.5",
    ]
    assert_same(read_predictions(path), soft())


def test_a_failed_write_leaves_the_older_file_and_nothing_else(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    path = tmp_path / "predictions.csv"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left"):
        write_predictions(path, predictions())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


HEADER = "clip,speaker,label,predicted,happy,sad\n"
SOFT = HEADER.strip() + ",target.happy,target.sad\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected the header .* got nothing"),
        ("clip,label,happy\n", "expected the header .* got clip,label,happy"),
        ("clip,speaker,label,predicted\n", "expected the header"),
        (HEADER, "expected clips, found only a header"),
        (
            HEADER + "a1,a,happy,happy,0.7,0.3\na2,a,happy,happy,0.7\n",
            ":3: expected 6 fields, got 5",
        ),
        (HEADER + "a1,a,glad,happy,0.7,0.3\n", ":2: class 'glad' is none of happy, sad"),
        (HEADER + "a1,a,happy,happy,0.7,x\n", ":2: a probability is not a number"),
        (HEADER + "a1,a,happy,happy,0.7,0.7\n", "do not sum to 1"),
        (HEADER + "a1,a,happy,happy,nan,0.7\n", "not finite: a1"),
        (HEADER + "a1,a,happy,sad,0.7,0.3\n", "predicted is not the most probable class: a1"),
        (HEADER + "a1,a,happy,happy,0.7,0.3\n" * 2, "clips given twice: a1"),
        (HEADER + '"a1,a,happy', "cannot be read"),
        (HEADER + "a1,a,,happy,0.7,0.3\n", ":2: class '' is none of happy, sad"),
        (SOFT + "a1,a,,happy,0.7,0.3\n", ":2: expected 8 fields, got 6"),
        (SOFT + "a1,a,,,0.7,0.3,1,0\n", ":2: class '' is none of happy, sad"),
        (SOFT + "a1,a,,happy,0.7,0.3,1,1\n", "targets that do not sum to 1"),
        (HEADER.replace("happy", "sad") + "a1,a,sad,sad,0.7,0.3\n", "class_names given twice"),
    ],
)
def test_a_malformed_file_is_a_user_error_that_says_where(tmp_path, content, message):
    path = tmp_path / "predictions.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_predictions(path)
    assert str(path) in str(caught.value)


def test_a_missing_or_binary_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_predictions(tmp_path / "missing.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_predictions(tmp_path / "binary.csv")
