"""Parameters fitted to validation clips: a temperature, and the weights of late fusion.

Temperature scaling makes probabilities less, or more, confident by one number (Guo et al., On
calibration of modern neural networks, ICML 2017). It keeps the most probable class, and with it
accuracy, UAR and F1.
"""

import numpy as np

from mmattn.evaluate.predictions import SMALLEST_PROBABILITY, Predictions, pool_votes

BOUNDS = (-10.0, 10.0)  # of log T and log weights, those of scikit-learn


def temperature(predictions: Predictions) -> float:
    """The T with which `calibrated` best fits the labelled clips.

    Above 1: the predictions were overconfident. T minimises the summed log loss plus half the
    square of log T, a standard normal prior. Without the prior, a few clips that are all predicted
    correctly would make every probability 0 or 1.
    """
    # Imported here: it takes 0.25 s, and a prediction does not need it.
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    known = predictions.labels >= 0
    labels = predictions.labels[known]
    logits = np.log(np.maximum(predictions.probabilities[known], SMALLEST_PROBABILITY))
    true = logits[np.arange(len(labels)), labels]

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return 0.5 * log_temperature**2 + (logsumexp(scale * logits, axis=1) - scale * true).sum()

    found = minimize_scalar(loss, bounds=BOUNDS, method="bounded", options={"xatol": 1e-9})
    return float(np.exp(found.x))


def log_weights(votes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The log weights [M] with which `pool_votes` fits best, fitted jointly with a temperature.

    For votes [N, M, K] on clips with labels [N], -1 for none, it minimises the summed log loss plus
    half the squares of log weights and log temperature: standard normal priors, which keep the
    weights equal unless the clips show otherwise.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    votes, labels = votes[labels >= 0], labels[labels >= 0]

    def loss(found: np.ndarray) -> float:
        scaled = np.exp(-found[0]) * pool_votes(votes, found[1:])
        true = log_softmax(scaled, axis=1)[np.arange(len(labels)), labels]
        return 0.5 * (found @ found) - true.sum()

    start = np.zeros(1 + votes.shape[1])
    return minimize(loss, start, bounds=[BOUNDS] * len(start)).x[1:]


def calibrated(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """p^(1/T) / Σ p^(1/T) [..., K] of probabilities p [..., K]: the softmax of log p / T.

    A p below the smallest normal float32, which a float32 softmax may round to 0, counts as that
    number. A class less probable than the most probable one, or equal to it, stays so.
    """
    p = np.maximum(np.asarray(probabilities, np.float64), SMALLEST_PROBABILITY)
    ratio = p / p.max(axis=-1, keepdims=True)
    # A power can round up to 1: keep it far enough below for the quotients to differ.
    closest = 1 - 4 * np.finfo(np.float64).eps
    powers = np.minimum(ratio ** (1 / temperature), np.where(ratio < 1, closest, 1))
    return powers / powers.sum(axis=-1, keepdims=True)
