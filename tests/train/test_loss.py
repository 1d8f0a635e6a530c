"""The focal loss and class weights: by hand, against formulas in float64, and at extremes."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mmattn.train.loss
from mmattn.train.loss import balanced_class_weights, focal_loss

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


def test_the_example_in_the_docstring():
    failed, tried = doctest.testmod(mmattn.train.loss)
    assert (failed, tried) == (0, 1)
