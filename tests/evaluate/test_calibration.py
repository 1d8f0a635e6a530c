import numpy as np
import pytest
import sklearn
from scipy.special import softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from mmattn.evaluate.calibration import calibrated, log_weights, temperature
from mmattn.evaluate.metrics import metric_values
from mmattn.evaluate.predictions import Predictions, pool_votes


def build(labels, probabilities, targets=None) -> Predictions:
    clips = tuple(f"clip{row}" for row in range(len(labels)))
    names = tuple(f"class {number}" for number in range(np.shape(probabilities)[1]))
    return Predictions(clips, ["s"] * len(labels), labels, probabilities, names, targets)


def drawn(scale=1.0, clips=400, seed=0) -> Predictions:
    """Predictions whose logits are `scale` times those that the labels were drawn from."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(clips, 4))
    labels = (softmax(logits, axis=1).cumsum(axis=1) < random.random((clips, 1))).sum(axis=1)
    return build(labels, softmax(scale * logits, axis=1))


def apply(predictions: Predictions, temperature: float) -> Predictions:
    return build(predictions.labels, calibrated(predictions.probabilities, temperature))


def test_the_temperature_by_hand():
    # Right in 3 of 4 clips, always sure to 0.9: p^(1/T) is to give odds of 3 instead of 9.
    sure = build(1000 * [0, 0, 0, 1], np.tile([0.9, 0.1], (4000, 1)))
    assert temperature(sure) == pytest.approx(2, rel=3e-3)
    sure = build([0, 0, 0, 1], np.tile([0.9, 0.1], (4, 1)))
    assert 1.2 < temperature(sure) < 1.8  # of few clips the prior draws it to 1
    np.testing.assert_allclose(apply(sure, 2).probabilities, np.tile([0.75, 0.25], (4, 1)))
    assert calibrated(np.array([0.64, 0.32, 0.04]), 2) == pytest.approx(
        np.array([0.8, 0.32**0.5, 0.2]) / (1 + 0.32**0.5)
    )


def test_a_known_factor_on_the_logits_is_undone():
    once, thrice = temperature(drawn()), temperature(drawn(scale=3))
    assert once == pytest.approx(1, abs=0.15)  # the labels were drawn from these very numbers
    assert thrice == pytest.approx(3 * once, rel=0.02)
    np.testing.assert_allclose(
        apply(drawn(scale=3), thrice).probabilities, apply(drawn(), once).probabilities, atol=0.01
    )
    assert temperature(apply(drawn(), once)) == pytest.approx(1, abs=0.01)


def test_log_loss_and_calibration_get_better_and_nothing_else_changes():
    before = drawn(scale=3)
    best = temperature(before)
    after = apply(before, best)
    was, found = metric_values(before), metric_values(after)
    assert found["ece"] < 0.5 * was["ece"]
    for name in ("accuracy", "uar", "macro_f1", "top2"):
        assert found[name] == was[name]
    for other in (0.9 * best, 1.1 * best):
        assert found["log_loss"] < metric_values(apply(before, other))["log_loss"]


@pytest.mark.skipif(
    tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 8), reason="scikit-learn lacks it"
)
def test_it_is_the_temperature_of_scikit_learn():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 300)
    x = random.normal(size=(300, 5)) + 1.5 * np.eye(3, 5)[labels]
    network = LogisticRegression(C=1e3).fit(x[:30], labels[:30])  # of few clips: too sure
    scaled = CalibratedClassifierCV(FrozenEstimator(network), method="temperature", ensemble=False)
    scaled.fit(x[30:], labels[30:])
    validation = build(labels[30:], network.predict_proba(x[30:]))
    found = temperature(validation)
    assert found > 1.2
    np.testing.assert_allclose(
        calibrated(validation.probabilities, found), scaled.predict_proba(x[30:]), atol=0.01
    )


def test_clips_that_are_all_right_make_predictions_surer_within_reason():
    few, many = (temperature(build(n * [0, 1], n * [[0.9, 0.1], [0.2, 0.8]])) for n in (1, 30))
    assert 0.1 < many < few < 1


def test_nothing_to_tell_leaves_predictions_as_they_are():
    assert temperature(build([0, 1], np.full((2, 2), 0.5))) == pytest.approx(1)


def test_clips_without_a_label_do_not_count():
    hard = drawn()
    rows, labels = hard.probabilities, hard.labels
    uniform = np.full_like(rows, 1 / 4)
    known = temperature(hard)
    assert temperature(build(labels, rows, uniform)) == known
    tied = build([*labels, -1, -1], [*rows, *np.eye(4)[:2]], [*uniform, *uniform[:2]])
    assert temperature(tied) == pytest.approx(known)
    assert temperature(build(np.full(len(rows), -1), rows, uniform)) == pytest.approx(1)


def test_probabilities_that_were_rounded_to_zero():
    predictions = build(999 * [0, 0, 1, 1], 999 * [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = temperature(predictions)
    expected = np.tile([3 / 4, 1 / 4], (2, 1))
    np.testing.assert_allclose(apply(predictions, found).probabilities[:2], expected, rtol=0.01)
    assert calibrated(np.eye(3), 1.0) == pytest.approx(np.eye(3))


@pytest.mark.parametrize("temperature", [1e-4, 0.3, 1.0, 3.0, 2e4])
def test_the_most_probable_class_stays_to_the_last_bit(temperature):
    random = np.random.default_rng(0)
    p = random.dirichlet(np.ones(6), 2000)
    p[:500] = np.nextafter(p[:500].max(axis=1, keepdims=True), 0)  # all but one, which is above
    p[np.arange(500), random.integers(0, 6, 500)] *= 1 + 2.0**-52
    p[500:1000, 2:] = p[500:1000].max(axis=1, keepdims=True)  # ties
    found = calibrated(p, temperature)
    np.testing.assert_array_equal(found.argmax(axis=1), p.argmax(axis=1))
    most = [x == x.max(axis=1, keepdims=True) for x in (found, p)]
    np.testing.assert_array_equal(*most)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert found[0].shape == calibrated(p[0], temperature).shape == (6,)


def test_a_pool_of_votes_by_hand():
    votes = np.log([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], [[0.5, 0.3, 0.2], [1, 1, 1]]])
    once = np.sqrt([0.5 * 0.1, 0.3 * 0.1, 0.2 * 0.8])
    np.testing.assert_allclose(np.exp(pool_votes(votes)), [once / once.sum(), [0.5, 0.3, 0.2]])
    powers = np.array([0.5, 0.3, 0.2]) ** 0.75 * np.array([0.1, 0.1, 0.8]) ** 0.25
    weighted = np.exp(pool_votes(votes, np.log([3, 1])))
    np.testing.assert_allclose(weighted, [powers / powers.sum(), [0.5, 0.3, 0.2]])


def test_weights_of_votes_are_those_of_the_logits_that_drew_the_labels():
    """log p = 3 a + b, of which each vote knows one: their weights are as 3 to 1."""
    random = np.random.default_rng(0)
    own = random.normal(size=(4000, 2, 4))
    shares = softmax(3 * own[:, 0] + own[:, 1], axis=1)
    labels = (shares.cumsum(axis=1) < random.random((4000, 1))).sum(axis=1)
    votes = np.log(softmax(own, axis=2))
    found = log_weights(votes, labels)
    assert np.exp(found[0] - found[1]) == pytest.approx(3, rel=0.15)
    ties = np.where(np.arange(4000) % 3, labels, -1)
    expected = log_weights(votes[ties >= 0], ties[ties >= 0])
    np.testing.assert_array_equal(log_weights(votes, ties), expected)
    assert sum(found) == pytest.approx(0, abs=1e-3)


def test_where_the_clips_do_not_tell_the_weights_are_equal():
    labels = np.arange(12) % 3
    right = np.log(0.9 * np.eye(3)[labels] + 0.1 / 3)
    np.testing.assert_allclose(log_weights(np.stack([right, right], 1), labels), 0, atol=1e-3)
    lacks = np.stack([right, 0 * right], 1)  # no clip has the second modality
    np.testing.assert_allclose(log_weights(lacks, labels), 0, atol=1e-3)
