"""Canonical correlation analysis with a ridge, fitted on training pairs, measured on others."""

from typing import NamedTuple

import numpy as np

MIN_PAIRS = 8  # with fewer, a correlation is unreliable
_CONSTANT = 1e-12  # variance over mean square, below which a column is constant up to rounding


class CCA(NamedTuple):
    """Means and projections of canonical correlation analysis, the highest correlation first."""

    x_mean: np.ndarray  # [Hx]
    y_mean: np.ndarray  # [Hy]
    x_projection: np.ndarray  # [Hx, K]
    y_projection: np.ndarray  # [Hy, K]


def fit_cca(x: np.ndarray, y: np.ndarray, components: int, ridge: float = 0.01) -> CCA:
    """Canonical correlation analysis of pairs x [n, Hx], y [n, Hy], with a ridge (Vinod 1976).

    The singular vectors of the whitened cross-covariance. Each covariance gets `ridge` times its
    mean variance added to its diagonal, so the scale of an embedding does not matter. `components`
    is at most min(Hx, Hy).
    """
    from scipy.linalg import solve_triangular  # imported here: a prediction does not need it

    x_mean, y_mean = x.mean(axis=0, dtype=np.float64), y.mean(axis=0, dtype=np.float64)
    x, y = x - x_mean, y - y_mean
    x_factor, y_factor = _factor(x, ridge), _factor(y, ridge)
    whitened = solve_triangular(x_factor, x.T @ y / len(x), lower=True)
    whitened = solve_triangular(y_factor, whitened.T, lower=True).T
    left, _, right = np.linalg.svd(whitened, full_matrices=False)
    return CCA(
        x_mean,
        y_mean,
        solve_triangular(x_factor, left[:, :components], lower=True, trans="T"),
        solve_triangular(y_factor, right[:components].T, lower=True, trans="T"),
    )


def pearson(x: np.ndarray, y: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Correlation [..., K] of x [..., n, K] and y [..., n, K] over the rows kept [..., n].

    NaN if one of them is constant, or with fewer than 8 rows.
    """
    weight, count = kept[..., None], kept.sum(axis=-1)[..., None]

    def centred(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = (values * weight).sum(axis=-2, keepdims=True) / np.maximum(count, 1)[..., None, :]
        values = (values - mean) * weight
        squares = (values**2).sum(axis=-2)
        constant = squares <= _CONSTANT * count * mean[..., 0, :] ** 2
        return values, np.where(constant | (count < MIN_PAIRS), np.nan, squares)

    (x, x_squares), (y, y_squares) = centred(x), centred(y)
    return (x * y).sum(axis=-2) / np.sqrt(x_squares * y_squares)


def _factor(centred: np.ndarray, ridge: float) -> np.ndarray:
    """Lower Cholesky factor [H, H] of the covariance of centred [n, H] with its ridge."""
    covariance = centred.T @ centred / len(centred)
    variance = covariance.trace() / len(covariance)
    # A constant embedding correlates with nothing, whatever it is divided by.
    added = ridge * variance if variance else 1.0
    return np.linalg.cholesky(covariance + added * np.eye(len(covariance)))
