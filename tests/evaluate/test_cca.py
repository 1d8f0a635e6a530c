import numpy as np
import pytest
from sklearn.cross_decomposition import CCA as ReferenceCCA

from mmattn.evaluate.cca import fit_cca
from tests.evaluate.pairs import canonical_correlations


def related(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that share one latent at correlation 0.8 and another at 0.5; the rest is noise."""
    rng = np.random.default_rng(seed)
    latent, x_noise, y_noise = rng.standard_normal((3, count, 4))
    share = np.array([0.8, 0.5, 0, 0])
    x, y = latent, share * latent + np.sqrt(1 - share**2) * y_noise
    mixing = np.random.default_rng(1)
    x = np.concatenate([x, x_noise[:, :1]], axis=1) @ mixing.standard_normal((5, 5))
    return x + 3, y @ mixing.standard_normal((4, 4)) - 7


def test_the_correlations_of_known_latents_are_found_on_held_out_pairs():
    cca = fit_cca(*related(20_000), components=3, ridge=1e-6)
    held_out = canonical_correlations(cca, *related(20_000, seed=5))
    np.testing.assert_allclose(held_out, [0.8, 0.5, 0], atol=0.03)


def test_without_a_ridge_it_equals_scikit_learn():
    x, y = related(500)
    reference = ReferenceCCA(n_components=2, max_iter=5000, tol=1e-12).fit(x, y)
    pairs = zip(*(scores.T for scores in reference.transform(x, y)), strict=True)
    expected = [np.corrcoef(a, b)[0, 1] for a, b in pairs]
    actual = canonical_correlations(fit_cca(x, y, 2, ridge=0.0), x, y)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_scale_offset_and_rotation_of_an_embedding_do_not_matter():
    x, y = related(300)
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((5, 5)))[0]
    moved = 1000 * x @ turn + 4
    plain = canonical_correlations(fit_cca(x, y, 4, 0.1), x, y)
    np.testing.assert_allclose(canonical_correlations(fit_cca(moved, y, 4, 0.1), moved, y), plain)


def test_the_ridge_keeps_noise_from_being_fitted():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 40, 30))  # nearly as many columns as pairs, nothing shared
    free, held = (canonical_correlations(fit_cca(x, y, 1, r), x, y)[0] for r in (1e-9, 10.0))
    assert held < 0.95 < 0.999 < free


def test_a_constant_embedding_has_no_correlation_and_dead_units_do_no_harm():
    x, y = related(300)
    constant = np.full((300, 3), 0.1, np.float32)
    cca = fit_cca(constant, y, 2)
    assert np.isnan(canonical_correlations(cca, constant, y)).all()
    dead = np.concatenate([x, constant], axis=1)
    with_dead = canonical_correlations(fit_cca(dead, y, 2, 1e-6), dead, y)
    np.testing.assert_allclose(
        with_dead, canonical_correlations(fit_cca(x, y, 2, 1e-6), x, y), atol=1e-4
    )


def test_too_few_pairs_have_no_correlation():
    x, y = related(300)
    cca = fit_cca(x, y, 2)
    assert np.isnan(canonical_correlations(cca, x[:7], y[:7])).all()
    assert np.isfinite(canonical_correlations(cca, x[:8], y[:8])).all()
    assert cca.x_projection.dtype == np.float64


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_half_the_precision_gives_nearly_the_same(dtype):
    x, y = related(300)
    expected = canonical_correlations(fit_cca(x, y, 2), x, y)
    x, y = x.astype(dtype), y.astype(dtype)
    np.testing.assert_allclose(canonical_correlations(fit_cca(x, y, 2), x, y), expected, atol=1e-4)
