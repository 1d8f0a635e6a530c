"""Classes made of emotions: their order, merging, leaving out; hard and soft labels."""

import numpy as np
import pytest

from mmattn.data.labels import RAVDESS8, SIX, majority, parse_labels, soft_labels
from mmattn.errors import UserError

PRESENT = {"sad", "calm", "neutral", "bored"}


def hard_labels(classes, emotions) -> np.ndarray:
    """Of clips with one vote each."""
    votes = {name: np.array([float(own == name) for own in emotions]) for name in {*emotions}}
    return majority(soft_labels(classes, votes))


def test_without_a_choice_every_emotion_is_a_class():
    classes = parse_labels((), PRESENT)
    assert list(classes) == ["bored", "calm", "neutral", "sad"]
    np.testing.assert_array_equal(hard_labels(classes, ["sad", "bored"]), [3, 0])


def test_order_merging_and_leaving_out():
    classes = parse_labels(["sad", "quiet=neutral,calm"], PRESENT)
    assert list(classes) == ["sad", "quiet"]
    labels = hard_labels(classes, ["calm", "bored", "sad", "neutral", ""])
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, [1, -1, 0, 1, -1])


def test_six_merges_calm_and_leaves_surprised_out():
    classes = parse_labels(("six",), PRESENT)
    assert tuple(classes) == SIX
    np.testing.assert_array_equal(hard_labels(classes, SIX), range(6))
    np.testing.assert_array_equal(hard_labels(classes, ["calm", "surprised"]), [4, -1])


def test_ravdess8_follows_the_codes_of_the_names():
    np.testing.assert_array_equal(hard_labels(parse_labels(("ravdess8",), ()), RAVDESS8), range(8))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["sad", "hapy"], "no row has 'hapy' (the emotions are: bored, calm, neutral, sad)"),
        (["sad", "bored", "sad"], "'sad' is a class twice"),
        (["sad", "quiet=calm", "quiet=neutral"], "'quiet' is a class twice"),
        (["neutral=neutral,calm", "calm"], "'calm' is in two classes"),
        (["quiet=calm,calm", "sad"], "'calm' is in two classes"),
        (["sad", "calm=neutral"], "'calm' is also an emotion, in no class: add it"),
        (["sad"], "two classes or more"),
        (["quiet="], "no row has ''"),
        (["=calm", "sad"], "no class may be named ''"),
        (["label=calm", "sad"], "no class may be named 'label'"),
    ],
)
def test_labels_that_cannot_be(given, words):
    with pytest.raises(UserError) as error:
        parse_labels(given, PRESENT)
    assert words in str(error.value) and f"--data.labels {' '.join(given)}" in str(error.value)


def test_soft_labels_are_shares_after_merging_and_leaving_out():
    votes = {
        "sad": np.array([1.0, 0.25, 0.0]),
        "calm": np.array([1.0, 0.25, 0.0]),
        "neutral": np.array([2.0, 0.0, 0.0]),
        "bored": np.array([6.0, 0.5, 7.0]),
    }
    soft = soft_labels(parse_labels(["sad", "quiet=neutral,calm"], votes), votes)
    assert soft.dtype == np.float32
    np.testing.assert_array_equal(soft, [[0.25, 0.75], [0.5, 0.5], [0, 0]])
    np.testing.assert_array_equal(majority(soft), [1, -1, -1])


def test_a_class_without_votes_has_no_share():
    votes = {"anger": np.array([3.0]), "sad": np.array([1.0])}
    soft = soft_labels(parse_labels(("six",), votes), votes)
    np.testing.assert_array_equal(soft, [[0.75, 0, 0, 0, 0, 0.25]])


def test_a_tie_of_probabilities_is_one_in_spite_of_rounding():
    soft = np.array([[0.1 + 0.2, 0.3, 0.4], [0.1 + 0.2, 0.3, 0.1], [0.2, 0.3, 0.5]])
    np.testing.assert_array_equal(majority(soft), [2, -1, 2])
