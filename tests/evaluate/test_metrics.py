from collections import Counter
from dataclasses import replace
from itertools import combinations_with_replacement
from math import factorial, prod

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import binom
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    mean_squared_error,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from mmattn.errors import UserError
from mmattn.evaluate.metrics import (
    METRICS,
    Metric,
    _joint_draws,
    calibration_bins,
    confusion,
    cross_entropy,
    ece,
    group_scores,
    jensen_shannon,
    mcnemar,
    mean_over_clips,
    metric_values,
    paired,
    per_class,
    scores,
    scores_by_speaker,
)
from mmattn.evaluate.predictions import Predictions

NAMES = ("anger", "disgust", "fear", "happy")


def build(speakers, labels, probabilities, targets=None) -> Predictions:
    clips = tuple(f"clip{row}" for row in range(len(labels)))
    return Predictions(clips, speakers, labels, probabilities, NAMES, targets)


def certain(speakers, labels, predicted) -> Predictions:
    return build(speakers, labels, np.eye(len(NAMES))[predicted])


def drawn(seed=0, clips=300, speakers=9, true_classes=4) -> Predictions:
    random = np.random.default_rng(seed)
    labels = random.integers(0, true_classes, clips)
    logits = random.normal(size=(clips, 4)) + 1.2 * np.eye(4)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return build([f"s{n}" for n in random.integers(0, speakers, clips)], labels, probabilities)


def rows(predictions: Predictions, order) -> Predictions:
    return build(
        predictions.speakers[order], predictions.labels[order], predictions.probabilities[order]
    )


def values(predictions: Predictions) -> dict[str, float]:
    return {name: score["value"] for name, score in scores(predictions, resamples=1).items()}


def assert_scores_equal(actual, expected, keys=("value", "low", "high")) -> None:
    for name in expected:
        for key in keys:
            assert actual[name][key] == pytest.approx(expected[name][key], abs=1e-12), (name, key)


@pytest.mark.parametrize("true_classes", [4, 3])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_values_equal_scikit_learn(true_classes):
    predictions = drawn(true_classes=true_classes)
    labels, predicted = predictions.labels, predictions.predicted
    actual = values(predictions)
    assert len(set(predicted)) == 4  # an absent class is predicted none the less
    assert actual["uar"] == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12)
    assert actual["accuracy"] == pytest.approx(accuracy_score(labels, predicted), abs=1e-12)
    macro_f1 = f1_score(
        labels, predicted, labels=np.unique(labels), average="macro", zero_division=0
    )
    assert actual["macro_f1"] == pytest.approx(macro_f1, abs=1e-12)
    every, probabilities = {"labels": range(4)}, predictions.probabilities
    top2 = top_k_accuracy_score(labels, probabilities, k=2, **every)
    assert actual["top2"] == pytest.approx(top2, abs=1e-12)
    expected = log_loss(labels, probabilities, **every)
    assert actual["log_loss"] == pytest.approx(expected, abs=1e-12)
    # The mean over classes of the squared error is a quarter of the sum.
    brier = 4 * mean_squared_error(np.eye(4)[labels], probabilities)
    assert actual["brier"] == pytest.approx(brier, abs=1e-12)


def test_probability_scores_by_hand():
    rows = [[0.5, 0.3, 0.2, 0], [0.5, 0.3, 0.2, 0], [0.5, 0.3, 0.2, 0], [0, 0, 0, 1]]
    actual = values(build(list("aabb"), [0, 1, 2, 3], rows))
    assert actual["top2"] == pytest.approx(3 / 4)
    assert actual["log_loss"] == pytest.approx(-np.log(0.5 * 0.3 * 0.2 * 1) / 4)
    brier = (0.25 + 0.09 + 0.04) + (0.25 + 0.49 + 0.04) + (0.25 + 0.09 + 0.64) + 0
    assert actual["brier"] == pytest.approx(brier / 4)
    surely_wrong = values(certain(["a", "b"], [0, 1], [1, 0]))
    assert surely_wrong["brier"] == 2 and surely_wrong["log_loss"] == pytest.approx(87.34, 1e-3)


def test_of_equal_probabilities_the_first_two_classes_are_the_top_two():
    flat = values(build(list("abcd"), range(4), np.full((4, 4), 1 / 4)))
    assert (flat["accuracy"], flat["top2"]) == (0.25, 0.5)
    last_tie = np.tile([0.4, 0.2, 0.2, 0.2], (4, 1))
    hits = [values(build(["a"], [label], last_tie[:1]))["top2"] for label in range(4)]
    assert hits == [1, 1, 0, 0]


def test_perfect_predictions_have_the_best_value_of_every_metric():
    labels = np.arange(8) % 4
    perfect = build(["a"] * 8, labels, np.eye(4)[labels], np.eye(4)[labels])
    assert values(perfect) == {name: metric.best for name, metric in METRICS.items()}
    worse = values(certain(["a"] * 8, labels, np.roll(labels, 1)))
    for name, value in worse.items():
        assert value != METRICS[name].best
        assert (value < 1) if METRICS[name].best else (value > 0)


def test_metric_values_are_those_of_the_scores():
    for predictions in (drawn(), soft()):
        assert metric_values(predictions) == values(predictions)


def test_values_by_hand():
    # anger 2 of 3 right, disgust 0 of 1; predicted: anger 2, disgust 1, fear 1
    actual = values(certain(["a", "a", "b", "b"], [0, 0, 0, 1], [0, 0, 1, 2]))
    assert actual["accuracy"] == pytest.approx(2 / 4)
    assert actual["uar"] == pytest.approx((2 / 3 + 0) / 2)
    assert actual["macro_f1"] == pytest.approx((2 * 2 / (3 + 2) + 0) / 2)


def test_calibration_error_by_hand():
    # Bins are (k/15, (k+1)/15]: 0.41 and 0.46 share (6/15, 7/15]; 0.4 is in (5/15, 6/15].
    top = np.array([0.41, 0.46, 0.4, 0.9, 1.0])
    right = np.array([False, False, True, True, False])
    probabilities = np.stack([top, *[(1 - top) / 3] * 3], axis=1)
    labels = np.where(right, 0, 1)
    expected = (abs(0 - 0.87) + abs(1 - 0.4) + abs(1 - 0.9) + abs(0 - 1.0)) / 5
    assert values(build(list("aabbb"), labels, probabilities))["ece"] == pytest.approx(expected)


def test_calibrated_and_overconfident_predictions():
    labels = np.repeat([0, 1], [7, 3])
    calibrated = np.tile([0.7, 0.1, 0.1, 0.1], (10, 1))
    assert values(build(["a"] * 10, labels, calibrated))["ece"] == pytest.approx(0)
    certain_of_anger = np.tile([1.0, 0, 0, 0], (10, 1))
    assert values(build(["a"] * 10, labels, certain_of_anger))["ece"] == pytest.approx(0.3)


def test_the_order_of_clips_does_not_matter():
    predictions = drawn()
    order = np.random.default_rng(1).permutation(300)
    assert_scores_equal(scores(rows(predictions, order)), scores(predictions))


def test_duplicating_every_speaker_keeps_values_and_narrows_intervals():
    predictions = drawn()
    twins = np.char.add(predictions.speakers, " twin")
    twice = build(
        [*predictions.speakers, *twins],
        np.tile(predictions.labels, 2),
        np.tile(predictions.probabilities, (2, 1)),
    )
    before, after = scores(predictions), scores(twice)
    assert_scores_equal(after, before, keys=["value"])
    for name in ("uar", "accuracy", "macro_f1"):
        width = before[name]["high"] - before[name]["low"]
        assert 0.5 * width < after[name]["high"] - after[name]["low"] < 0.9 * width


def test_identical_speakers_have_no_interval_width():
    one = drawn(clips=40, speakers=1)
    order = np.tile(np.arange(40), 5)
    five = rows(one, order)
    five = build(np.repeat(list("abcde"), 40), five.labels, five.probabilities)
    for score in scores(five).values():
        assert score["low"] == pytest.approx(score["value"], abs=1e-12)
        assert score["high"] == pytest.approx(score["value"], abs=1e-12)


def test_the_interval_of_two_speakers_can_be_enumerated():
    # Speaker a all right, b all wrong: accuracy 0, ½, 1 with probability ¼, ½, ¼.
    two = certain(["a", "a", "b", "b"], [0, 1, 0, 1], [0, 1, 1, 0])
    assert scores(two)["accuracy"] == {"value": 0.5, "low": 0.0, "high": 1.0}


def test_the_interval_weighs_speakers_by_their_clips():
    # a: 3 of 3 right, b: 0 of 1; resamples aa, ab, bb give 1, ¾, 0: never ½.
    two = certain(["a", "a", "a", "b"], [0, 0, 0, 0], [0, 0, 0, 1])
    assert scores(two)["accuracy"] == {"value": 0.75, "low": 0.0, "high": 1.0}


def test_a_class_that_a_resample_lacks_is_left_out_of_its_mean():
    # a has anger alone, right; b has disgust alone, wrong. UAR: aa 1 (not ½), ab ½, bb 0.
    two = certain(["a", "b"], [0, 1], [0, 0])
    assert scores(two)["uar"] == {"value": 0.5, "low": 0.0, "high": 1.0}
    assert scores(two)["macro_f1"]["high"] == 1.0


def test_the_interval_of_five_speakers_equals_the_enumeration_of_all_resamples():
    predictions = drawn(seed=3, clips=200, speakers=5)
    clips_of = [np.flatnonzero(predictions.speakers == s) for s in np.unique(predictions.speakers)]
    every = []
    for speakers in combinations_with_replacement(range(5), 5):
        chosen = np.concatenate([clips_of[speaker] for speaker in speakers])
        value = f1_score(predictions.labels[chosen], predictions.predicted[chosen], average="macro")
        orders = factorial(5) // prod(factorial(n) for n in Counter(speakers).values())
        every += [value] * orders
    assert len(every) == 5**5
    score = scores(predictions, resamples=50_000)["macro_f1"]
    width = score["high"] - score["low"]
    low, high = np.quantile(every, [0.025, 0.975])
    assert score["low"] == pytest.approx(low, abs=0.03 * width)
    assert score["high"] == pytest.approx(high, abs=0.03 * width)


def test_the_interval_comes_from_the_seed():
    predictions = drawn()
    assert scores(predictions, seed=5) == scores(predictions, seed=5)
    assert scores(predictions, seed=5) != scores(predictions, seed=6)


def test_one_speaker_has_values_but_no_interval():
    for score in scores(drawn(speakers=1)).values():
        assert isinstance(score["value"], float)
        assert score["low"] is None and score["high"] is None


def test_the_confusion_matrix_equals_scikit_learn():
    predictions = drawn()
    expected = confusion_matrix(predictions.labels, predictions.predicted)
    np.testing.assert_array_equal(confusion(predictions), expected)
    assert confusion(predictions).dtype.kind == "i"


def test_per_class_equals_scikit_learn():
    predictions = drawn()
    expected = precision_recall_fscore_support(predictions.labels, predictions.predicted)
    for row, name, *numbers in zip(per_class(predictions), NAMES, *expected, strict=True):
        assert row["class"] == name
        actual = [row["precision"], row["recall"], row["f1"], row["clips"]]
        np.testing.assert_allclose(actual, numbers, atol=1e-12)


def test_per_class_leaves_undefined_ratios_open():
    anger, disgust, fear, happy = per_class(certain(["a", "b"], [0, 1], [0, 2]))
    assert anger == {"class": "anger", "precision": 1, "recall": 1, "f1": 1, "clips": 1}
    assert disgust == {"class": "disgust", "precision": None, "recall": 0, "f1": 0, "clips": 1}
    assert fear == {"class": "fear", "precision": 0, "recall": None, "f1": 0, "clips": 0}
    assert happy == {"class": "happy", "precision": None, "recall": None, "f1": None, "clips": 0}


def test_scores_by_speaker_are_those_of_the_speaker_s_clips_alone():
    predictions = drawn()
    found = scores_by_speaker(predictions)
    for place, speaker in enumerate(np.unique(predictions.speakers)):
        alone = values(rows(predictions, predictions.speakers == speaker))
        assert {name: score[place] for name, score in found.items()} == pytest.approx(alone)


def test_calibration_bins_give_the_error_of_the_scores():
    predictions = drawn()
    bins = calibration_bins(predictions)
    assert bins[:, 0].sum() == len(predictions.clips)
    assert ece(bins) == pytest.approx(values(predictions)["ece"], abs=1e-12)


def test_the_mean_over_clips_has_the_interval_of_the_scores():
    predictions = drawn()
    right = predictions.predicted == predictions.labels
    both = np.stack([right, ~right], axis=1).astype(float)
    mean, low, high = mean_over_clips(both, predictions.speakers, seed=3)
    accuracy = scores(predictions, seed=3)["accuracy"]
    for found, key in ((mean, "value"), (low, "low"), (high, "high")):
        assert found[0] == pytest.approx(accuracy[key], abs=1e-12)
    assert mean.sum() == pytest.approx(1)
    assert low[1] == pytest.approx(1 - high[0])


def test_the_mean_over_clips_of_one_speaker_has_no_interval():
    mean, low, high = mean_over_clips(np.array([[1.0], [0.0]]), np.array(["a", "a"]))
    assert mean == [0.5] and np.isnan(low) and np.isnan(high)


def soft(seed=0, clips=300, speakers=9) -> Predictions:
    """Predictions of clips whose targets are votes of three raters, with ties."""
    random = np.random.default_rng(seed)
    targets = random.multinomial(3, np.full(4, 1 / 4), clips) / 3
    labels = np.where(targets.max(1) > 0.5, targets.argmax(1), -1)
    hard = drawn(seed, clips, speakers)
    return build(hard.speakers, labels, hard.probabilities, targets)


def test_without_targets_there_are_the_scores_of_labels_alone():
    assert list(scores(drawn())) == [name for name in METRICS if not METRICS[name].soft]
    assert list(scores(soft())) == [*scores(drawn()), "cross_entropy", "js_divergence"]


def test_distances_of_distributions_by_hand():
    p, q = np.array([[0.5, 0.5, 0], [1, 0, 0], [0, 1, 0]]), np.array([[0.5, 0.25, 0.25]])
    entropy = -(0.5 * np.log(0.5) + 0.5 * np.log(0.25)), np.log(2), np.log(4)
    np.testing.assert_allclose(cross_entropy(p, q), entropy)
    np.testing.assert_allclose(jensen_shannon(p, np.roll(p, 1, axis=0))[1:], [0.3112781, 1], 1e-6)
    assert (jensen_shannon(p, p) == 0).all()
    nowhere = cross_entropy(np.array([1.0, 0]), np.array([0.0, 1]))
    assert (
        nowhere == pytest.approx(-np.log(np.finfo(np.float32).tiny)) == pytest.approx(87.34, 1e-3)
    )


def test_soft_scores_equal_scipy_and_scikit_learn():
    predictions = soft()
    targets, probabilities = predictions.targets, predictions.probabilities
    actual = values(predictions)
    divergence = np.mean(jensenshannon(targets, probabilities, base=2, axis=1) ** 2)
    assert actual["js_divergence"] == pytest.approx(divergence, abs=1e-12)
    clips, classes = np.nonzero(targets)
    expected = log_loss(classes, probabilities[clips], sample_weight=targets[clips, classes])
    assert actual["cross_entropy"] == pytest.approx(expected, abs=1e-12)


def test_the_interval_of_a_soft_score_can_be_enumerated():
    # a: no divergence in one clip, b: 1 bit in each of three; aa 0, ab 3/4, bb 1.
    targets = np.eye(4)[[0, 1, 1, 1]]
    two = build(list("abbb"), [0, 1, 1, 1], np.eye(4)[[0, 2, 2, 2]], targets)
    assert scores(two)["js_divergence"] == pytest.approx({"value": 0.75, "low": 0, "high": 1})


def test_ties_count_in_soft_scores_alone():
    predictions = soft()
    known = predictions.labels >= 0
    assert 0 < predictions.ties == (~known).sum()
    found = scores(predictions)
    without = scores(rows(predictions, known))
    for name in without:
        assert found[name] == without[name]
    assert found["cross_entropy"] != scores(predictions.select(known))["cross_entropy"]
    assert confusion(predictions).sum() == known.sum() == calibration_bins(predictions)[:, 0].sum()


def test_without_any_label_there_are_soft_scores_alone():
    predictions = soft().select(soft().labels < 0)
    found = scores(predictions)
    for name, score in found.items():
        if METRICS[name].soft:
            assert score["low"] < score["value"] < score["high"]
        else:
            assert score == {"value": None, "low": None, "high": None}


def test_resamples_without_a_label_are_left_out():
    # a has one right clip, b a tie: aa and ab give 1, bb gives nothing.
    two = build(["a", "b"], [0, -1], np.eye(4)[[0, 0]], [[1, 0, 0, 0], [0.5, 0.5, 0, 0]])
    assert scores(two)["accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_an_unknown_speaker_leaves_no_interval():
    predictions = drawn()
    speakers = np.where(predictions.speakers == "s3", "", predictions.speakers)
    unknown = build(speakers, predictions.labels, predictions.probabilities)
    for name, score in scores(unknown).items():
        assert score == {"value": scores(predictions)[name]["value"], "low": None, "high": None}
    mean, low, high = mean_over_clips(predictions.probabilities, speakers)
    np.testing.assert_allclose(mean, predictions.probabilities.mean(axis=0))
    assert np.isnan(low).all() and np.isnan(high).all()


def test_a_new_metric_is_one_entry_of_the_table(monkeypatch):
    error = Metric(
        "error rate", "share of wrong clips", 0.0, lambda sums: 1 - METRICS["accuracy"].value(sums)
    )
    monkeypatch.setitem(METRICS, "error", error)
    predictions = drawn()
    found = scores(predictions)
    assert found["error"]["value"] == pytest.approx(1 - found["accuracy"]["value"])
    assert found["error"]["low"] == pytest.approx(1 - found["accuracy"]["high"])
    by_speaker = scores_by_speaker(predictions)
    np.testing.assert_allclose(by_speaker["error"], 1 - by_speaker["accuracy"])
    halves = np.where(np.isin(predictions.speakers, ["s1", "s2", "s3"]), "one", "two")
    column = group_scores(predictions, {"half": halves})["half"]
    assert "error" in column["values"]["one"] and "error" in column["differences"]


def test_group_rows_are_the_scores_of_the_clips_of_the_group():
    predictions = soft()
    sex = np.where(np.isin(predictions.speakers, ["s1", "s2", "s3"]), "female", "male")
    sex[predictions.speakers == "s4"] = ""
    column = group_scores(predictions, {"sex": sex}, seed=4)["sex"]
    assert list(column["values"]) == ["female", "male", "unknown"]
    for name, speakers in (("female", 3), ("male", 5), ("unknown", 1)):
        own = sex == (name if name != "unknown" else "")
        expected = {"speakers": speakers, "clips": int(own.sum())}
        assert column["values"][name] == expected | scores(predictions.select(own), seed=4)
    for name, gap in column["differences"].items():
        ends = {gap["highest"], gap["lowest"]}
        assert ends == {"female", "male"}  # not those who are of no known group
        one, other = (column["values"][end][name]["value"] for end in ends)
        assert gap["value"] == pytest.approx(abs(one - other))


def groups_of(speakers, labels, predicted, cells, seed=0) -> dict:
    """Repeat the clips five times: columns may have a value for every fifth clip."""
    five = certain(np.repeat(speakers, 5), np.repeat(labels, 5), np.repeat(predicted, 5))
    return group_scores(five, {"column": np.repeat(cells, 5)}, seed)["column"]


def test_the_interval_of_a_difference_can_be_enumerated():
    # x: a right, b wrong, so 0, ½, 1; y: c and d right. The larger is y.
    column = groups_of(list("abcd"), [0] * 4, [0, 1, 0, 0], list("xxyy"))
    expected = {"highest": "y", "lowest": "x", "value": 0.5, "low": 0.0, "high": 1.0}
    assert column["differences"]["accuracy"] == expected


def test_groups_of_different_speakers_are_drawn_apart():
    # x and y are alike; drawn alike, their difference would always be 0.
    column = groups_of(list("abcd"), [0] * 4, [0, 1, 0, 1], list("xxyy"))
    gap = column["differences"]["accuracy"]
    assert (gap["value"], gap["low"], gap["high"]) == (0, -1, 1)


def test_every_resample_has_as_many_speakers_of_each_group():
    x, y, shared = np.array(["a", "b", "c"]), np.array(["d", "e"]), np.array(["e", "f"])
    names, drawn = _joint_draws([y, x, shared], seed=0, resamples=500)
    assert names.tolist() == list("abcdef")
    assert (drawn[:, :3].sum(axis=1) == 3).all()
    assert (drawn[:, 3:].sum(axis=1) == 3).all()  # of d, e and f, who belong together
    assert (drawn.max(axis=0) >= 2).all() and (drawn.min(axis=0) == 0).all()


def test_groups_of_the_same_speakers_are_drawn_together():
    # Each of five speakers is right in 2 of 4 clips more under "high" than under "low".
    speakers = np.repeat(list("abcde"), 8)
    cells = np.tile(np.repeat(["high", "low"], 4), 5)
    right = np.concatenate([[1, 1, 1, one, 1, 0, 0, one] for one in (0, 1, 0, 1, 1)])
    column = groups_of(speakers, [0] * 40, 1 - right, cells)
    gap = column["differences"]["accuracy"]
    assert [gap["value"], gap["low"], gap["high"]] == pytest.approx([0.5, 0.5, 0.5])
    own = column["values"]["high"]["accuracy"]
    assert own["low"] < own["value"] < own["high"]


def test_of_several_groups_those_furthest_apart_are_compared():
    column = groups_of(list("abcdef"), [0] * 6, [0, 1, 0, 0, 1, 1], list("xxyyzz"))
    gap = column["differences"]["accuracy"]
    assert (gap["highest"], gap["lowest"], gap["value"]) == ("y", "z", 1)


def test_a_group_of_one_speaker_is_not_compared_with_larger_ones():
    column = groups_of(list("abcde"), [0] * 5, [0, 1, 0, 0, 1], list("xxyyz"))
    assert column["values"]["z"]["accuracy"] == {"value": 0.0, "low": None, "high": None}
    assert column["differences"]["accuracy"]["lowest"] == "x"


@pytest.mark.parametrize("speakers", ["abcc", ["", "", "", ""]])
def test_differences_without_enough_known_speakers_have_no_interval(speakers):
    column = groups_of(list(speakers), [0] * 4, [0, 1, 0, 0], list("xyyy"))
    gap = column["differences"]["accuracy"]
    assert gap["value"] == pytest.approx(1 / 3) and gap["low"] is gap["high"] is None
    assert column["values"]["x"]["speakers"] == len(set(speakers[0]))


def test_columns_that_divide_nothing_or_into_too_small_groups_are_left_out():
    predictions = drawn(clips=30)
    columns = {
        "language": np.full(30, "deu"),
        "empty": np.full(30, ""),
        "six": np.arange(30) % 6,
        "age": np.arange(30) % 7,
    }
    found = group_scores(predictions, columns)
    assert found["language"] == found["empty"] == {"left_out": "all 30 clips have the same value"}
    assert found["age"]["left_out"].startswith("7 values in 30 clips; expected at most 100")
    assert list(found["six"]["values"]) == list("012345")
    many = group_scores(drawn(clips=600), {"dialogue": np.arange(600) % 101})
    assert many["dialogue"]["left_out"].startswith("101 values in 600 clips")


def test_mcnemar_by_hand():
    # one clip only a gets right, five only b: 2 · (1 + 6) / 2⁶
    right_a = np.array([1, 0, 0, 0, 0, 0, 1, 1, 0], bool)
    right_b = np.array([0, 1, 1, 1, 1, 1, 1, 1, 0], bool)
    assert mcnemar(right_a, right_b) == pytest.approx(14 / 64)
    assert mcnemar(right_b, right_a) == pytest.approx(14 / 64)
    assert mcnemar(right_a, right_a) == 1
    many_a, many_b = np.zeros((2, 60), bool)
    many_a[:12], many_b[12:50] = True, True
    assert mcnemar(many_a, many_b) == pytest.approx(2 * binom.cdf(12, 50, 0.5))


def test_a_constant_lead_has_an_interval_of_no_width():
    """Each speaker has two clips of each of two classes; the other model errs once in each."""
    speakers, labels = np.repeat(list("abcde"), 4), np.tile([0, 0, 1, 1], 5)
    one = certain(speakers, labels, labels)
    other = certain(speakers, labels, np.where(np.arange(20) % 4 == 3, 2, labels))
    found = paired(one, other)
    assert found.differences["uar"] == {"value": 0.25, "low": 0.25, "high": 0.25}
    assert found.differences["accuracy"]["low"] == pytest.approx(0.25)
    assert found.mcnemar == pytest.approx(2 / 2**5)  # five clips, of which the first has all
    back = paired(other, one.select(np.arange(20)[::-1]))
    assert back.differences["uar"] == {"value": -0.25, "low": -0.25, "high": -0.25}


def test_paired_differences_come_from_the_same_resamples_as_scores():
    one, other = drawn(), drawn()
    flat = replace(other, probabilities=np.full((300, 4), 0.25))  # always the first class
    expected, found = scores(one), paired(one, flat).differences["uar"]
    assert scores(flat)["uar"] == {"value": 0.25, "low": 0.25, "high": 0.25}
    for end in ("value", "low", "high"):
        assert found[end] == pytest.approx(expected["uar"][end] - 0.25)
    same = paired(one, other)
    assert same.mcnemar == 1
    assert {(d["value"], d["low"], d["high"]) for d in same.differences.values()} == {(0, 0, 0)}


def test_two_models_whose_errors_differ_by_hand():
    # a is right in the first two clips, b in the last: UAR 1/2 + 1/2 · 1/2 against 1/2 · 1/2.
    labels = [0, 1, 1]
    a, b = certain(["s"] * 3, labels, [0, 1, 0]), certain(["s"] * 3, labels, [1, 0, 1])
    found = paired(a, b)
    assert found.differences["uar"] == {"value": 0.5, "low": None, "high": None}  # one speaker
    assert found.mcnemar == 1  # two clips against one: 2 · (1 + 3) / 8


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda p: p.select(np.arange(299)), "of 299 and 300 clips, 1 are in only one: clip299"),
        (
            lambda p: replace(p, labels=p.labels[::-1]),
            "labels cannot be compared: of clip1 happy and fear",
        ),
        (lambda p: replace(p, speakers=p.speakers[::-1]), r"different speakers \(.*\) cannot be"),
        (
            lambda p: replace(p, class_names=("x", "y", "z", "d")),
            "classes cannot .*: of x, y, z, d and of anger",
        ),
    ],
)
def test_predictions_of_other_clips_are_not_compared(other, message):
    with pytest.raises(UserError, match=message):
        paired(drawn(), other(drawn()))
