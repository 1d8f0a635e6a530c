"""The focal loss and class weights: by hand, against formulas in float64, and at extremes."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mmattn.train.loss
from mmattn.train.loss import (
    balanced_class_weights,
    focal_loss,
    soft_class_weights,
    soft_focal_loss,
)

GAMMAS = [0.0, 0.5, 1.0, 2.0, 5.0]
LOGITS = 2 * np.random.default_rng(0).standard_normal((24, 6)).astype(np.float32)
LABELS = np.arange(24, dtype=np.int32) % 6
WEIGHTS = np.array([0.5, 1, 2, 0.25, 3, 1.5], np.float32)


def formula(logits, gamma, class_weights) -> np.ndarray:
    """-α (1 - p)^γ log p in float64."""
    shares = np.exp(np.float64(logits))
    p = (shares / shares.sum(-1, keepdims=True))[np.arange(len(LABELS)), LABELS]
    return -class_weights[LABELS] * (1 - p) ** gamma * np.log(p)


@pytest.mark.parametrize(
    ("label", "gamma", "weights", "expected"),
    [  # p is 3/4 and 1/4
        (0, 0, None, np.log(4 / 3)),
        (1, 0, None, np.log(4)),
        (0, 1, None, 1 / 4 * np.log(4 / 3)),
        (1, 0.5, None, np.sqrt(3 / 4) * np.log(4)),
        (0, 2, None, 1 / 16 * np.log(4 / 3)),
        (1, 2, None, 9 / 16 * np.log(4)),
        (1, 2, [5.0, 2.0], 9 / 8 * np.log(4)),
        (0, 0, [5.0, 2.0], 5 * np.log(4 / 3)),
    ],
)
def test_values_by_hand(label, gamma, weights, expected):
    logits = jnp.log(jnp.array([3.0, 1.0])) + 7
    np.testing.assert_allclose(focal_loss(logits, jnp.array(label), gamma, weights), expected, 2e-6)


def test_gamma_zero_without_weights_is_cross_entropy():
    for logits in (LOGITS, 100 * LOGITS):
        found = focal_loss(logits, LABELS, gamma=0.0)
        expected = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
        # Both round log Σ exp and the logit it is taken from: to the last digit of the larger.
        np.testing.assert_allclose(found, expected, rtol=0, atol=2**-23 * np.abs(logits).max())


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_value_and_gradient_agree_with_the_formula_in_float64(gamma, weights):
    alpha = np.ones(6) if weights is None else np.float64(weights)
    found = focal_loss(LOGITS, LABELS, gamma, weights)
    np.testing.assert_allclose(found, formula(LOGITS, gamma, alpha), rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda logits: focal_loss(logits, LABELS, gamma, weights).sum())(LOGITS)
    steps = 1e-5 * np.eye(6)
    exact = LOGITS.astype(np.float64)
    slopes = [
        (formula(exact + step, gamma, alpha) - formula(exact - step, gamma, alpha)) / 2e-5
        for step in steps
    ]
    np.testing.assert_allclose(gradient, np.stack(slopes, -1), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_gradients_are_finite_at_extreme_logits(gamma):
    value_and_gradient = jax.value_and_grad(lambda x, y: focal_loss(x, y, gamma, WEIGHTS[:3]))
    for size in (0.0, 10.0, 17.0, 90.0, 1e4, 1e30):
        logits = size * jnp.array([1.0, -1.0, 0.0])
        for label in range(3):
            loss, gradient = value_and_gradient(logits, jnp.array(label))
            assert np.isfinite(loss) and loss >= 0
            assert np.isfinite(gradient).all()
            if label == 1 and size:
                assert gradient[1] < 0 < gradient[0]  # however wrong, it learns


def test_leading_axes_may_be_any():
    loss = focal_loss(LOGITS.reshape(2, 3, 4, 6), LABELS.reshape(2, 3, 4), 2.0, WEIGHTS)
    np.testing.assert_array_equal(loss.ravel(), focal_loss(LOGITS, LABELS, 2.0, WEIGHTS))


@pytest.mark.parametrize(
    ("target", "gamma", "weights", "expected"),
    [  # q is 3/4 and 1/4
        ([0.5, 0.5], 0, None, (np.log(4 / 3) + np.log(4)) / 2),
        ([0.5, 0.5], 2, None, (1 / 16 * np.log(4 / 3) + 9 / 16 * np.log(4)) / 2),
        ([0.2, 0.8], 1, [5.0, 2.0], 0.2 * 5 / 4 * np.log(4 / 3) + 0.8 * 2 * 3 / 4 * np.log(4)),
        ([0.75, 0.25], 0, None, np.log(4) - 0.75 * np.log(3)),  # the entropy of q
    ],
)
def test_soft_values_by_hand(target, gamma, weights, expected):
    logits = jnp.log(jnp.array([3.0, 1.0])) + 7
    found = soft_focal_loss(logits, jnp.array(target), gamma, weights)
    np.testing.assert_allclose(found, expected, 2e-6)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_a_one_hot_target_has_the_loss_of_its_label_and_mixed_targets_mix(gamma, weights):
    def soft(logits, targets):
        return soft_focal_loss(logits, targets, gamma, weights)

    one_hot = np.eye(6, dtype=np.float32)[LABELS]
    expected = focal_loss(LOGITS, LABELS, gamma, weights)
    np.testing.assert_allclose(soft(LOGITS, one_hot), expected, rtol=1e-6)
    gradient = jax.grad(lambda logits: soft(logits, one_hot).sum())(LOGITS)
    hard = jax.grad(lambda logits: focal_loss(logits, LABELS, gamma, weights).sum())(LOGITS)
    np.testing.assert_allclose(gradient, hard, rtol=1e-5, atol=1e-6)
    mixed = soft(LOGITS, 0.25 * one_hot + 0.75 * one_hot[::-1])
    expected = 0.25 * soft(LOGITS, one_hot) + 0.75 * soft(LOGITS, one_hot[::-1])
    np.testing.assert_allclose(mixed, expected, rtol=1e-5)


def test_soft_gradients_by_hand_at_two_equal_logits():
    # q = (1/2, 1/2): dL/dz is q - p for γ = 0; for γ = 1 the slope of -(1 - q) log q in q is
    # log q - (1 - q) / q = -log 2 - 1, times p_1 - p_2, times dq/dz = q (1 - q) = 1/4.
    target, at = jnp.array([0.8, 0.2]), jnp.zeros(2)
    cross_entropy = jax.grad(lambda logits: soft_focal_loss(logits, target, 0.0))(at)
    np.testing.assert_allclose(cross_entropy, [-0.3, 0.3], rtol=1e-6)
    focal = jax.grad(lambda logits: soft_focal_loss(logits, target, 1.0))(at)
    slope = -(np.log(2) + 1) * 0.6 / 4
    np.testing.assert_allclose(focal, [slope, -slope], rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_soft_gradients_are_finite_at_extreme_logits(gamma):
    value_and_gradient = jax.value_and_grad(lambda x, p: soft_focal_loss(x, p, gamma, WEIGHTS[:3]))
    for size in (0.0, 10.0, 17.0, 90.0, 1e4, 1e30):
        logits = size * jnp.array([1.0, -1.0, 0.0])
        for target in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.2, 0.5, 0.3]):
            loss, gradient = value_and_gradient(logits, jnp.array(target))
            assert np.isfinite(loss) and loss >= 0
            assert np.isfinite(gradient).all()
            if target[1] and size:
                assert gradient[1] < 0 < gradient[0]


def test_only_without_focus_is_the_target_itself_the_best_prediction():
    target = jnp.array([0.7, 0.2, 0.1])

    def slope(gamma: float) -> jax.Array:
        return jax.grad(lambda logits: soft_focal_loss(logits, target, gamma))(jnp.log(target))

    np.testing.assert_allclose(slope(0.0), 0, atol=1e-7)
    assert slope(2.0)[0] > 0.01  # less of the largest class would be better


def test_soft_class_weights():
    targets = np.array([[0.5, 0.5, 0], [1, 0, 0], [0.75, 0.25, 0], [0.25, 0.75, 0]])
    weights = soft_class_weights(targets)  # masses 2.5, 1.5 and 0, which counts as 1
    np.testing.assert_allclose(weights, [4 / 7.5, 4 / 4.5, 4 / 3], rtol=1e-7)
    hard = balanced_class_weights(LABELS % 4, 6)
    np.testing.assert_array_equal(soft_class_weights(np.eye(6)[LABELS % 4]), hard)
    assert weights.dtype == np.float32


def test_class_weights_by_hand():
    weights = balanced_class_weights(np.array([0, 0, 0, 1]), 2)
    np.testing.assert_allclose(weights, [4 / 6, 4 / 2], rtol=1e-7)
    absent = balanced_class_weights(np.array([2, 0, 0, 2, 2, 0]), 3)
    np.testing.assert_allclose(absent, [6 / 9, 6 / 3, 6 / 9], rtol=1e-7)
    assert weights.dtype == np.float32


def test_the_training_clips_weigh_one_on_average():
    labels = np.random.default_rng(1).choice(6, 500, p=[0.3, 0.3, 0.2, 0.1, 0.08, 0.02])
    weights = balanced_class_weights(labels, 6)
    assert weights[labels].mean() == pytest.approx(1, rel=1e-6)
    of_each_class = np.bincount(labels, weights[labels])
    np.testing.assert_allclose(of_each_class, 500 / 6, rtol=1e-6)


def test_the_examples_in_the_docstrings():
    failed, tried = doctest.testmod(mmattn.train.loss)
    assert (failed, tried) == (0, 2)
