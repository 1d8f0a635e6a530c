import numpy as np
import pytest
from scipy.stats import ttest_1samp

from experiments.alignment.statistics import (
    Difference,
    holm,
    mean_with_interval,
    paired_difference,
    two_way_weights,
    verdict,
)


def effects(rng, seeds=5, speakers=12, seed_sd=0.4, speaker_sd=1.0, noise=0.5) -> np.ndarray:
    """Values [S, P] of expectation 0 with crossed random effects."""
    return (
        seed_sd * rng.standard_normal((seeds, 1))
        + speaker_sd * rng.standard_normal(speakers)
        + noise * rng.standard_normal((seeds, speakers))
    )


def test_weights_draw_one_less_than_there_are_of_each_independently():
    seeds, speakers = two_way_weights(5, 12, 4000, np.random.default_rng(0))
    assert seeds.shape == (4000, 5) and speakers.shape == (4000, 12)
    assert (seeds.sum(axis=1) == 4).all() and (speakers.sum(axis=1) == 11).all()
    np.testing.assert_allclose(seeds.mean(axis=0), 4 / 5, atol=0.05)
    np.testing.assert_allclose(speakers.mean(axis=0), 11 / 12, atol=0.06)
    cross = np.corrcoef(np.concatenate([seeds, speakers], axis=1).T)[:5, 5:]
    assert np.abs(cross).max() < 0.07
    one, _ = two_way_weights(1, 3, 10, np.random.default_rng(0))
    assert (one == 1).all()


def test_the_variance_of_resamples_is_that_of_the_mean():
    speakers = np.random.default_rng(0).standard_normal(8)
    score = mean_with_interval(speakers[None])
    deviation = speakers.std(ddof=1) / np.sqrt(8)
    assert score.value == pytest.approx(speakers.mean())
    assert score.high - score.low == pytest.approx(2 * 1.96 * deviation, rel=0.1)


@pytest.mark.parametrize("seed_sd", [0.0, 0.4])
def test_the_interval_covers_the_truth_about_95_times_in_100(seed_sd):
    rng = np.random.default_rng(1)
    covered, rejected = [], []
    for _ in range(300):
        values = effects(rng, seed_sd=seed_sd)
        difference = paired_difference(values + 3, np.full_like(values, 3), resamples=500)
        covered.append(difference.low <= 0 <= difference.high)
        rejected.append(difference.p < 0.05)
    assert 0.88 <= np.mean(covered) <= 0.99
    assert np.mean(rejected) == pytest.approx(1 - np.mean(covered), abs=0.02)


def test_seeds_that_differ_widen_the_interval():
    rng = np.random.default_rng(0)
    steady = effects(rng, seed_sd=0, noise=0)
    moving = steady + np.array([-2, -1, 0, 1, 2])[:, None]
    widths = [score.high - score.low for score in map(mean_with_interval, (steady, moving))]
    assert widths[1] > 1.5 * widths[0]


def test_pairing_removes_what_arms_share():
    rng = np.random.default_rng(0)
    common = 10 * effects(rng)
    better = common + 0.5 + 0.1 * rng.standard_normal(common.shape)
    difference = paired_difference(better, common)
    assert difference.value == pytest.approx(0.5, abs=0.05)
    assert 0.4 < difference.low < difference.high < 0.6
    assert difference.p == pytest.approx(2 / 10_001)
    swapped = paired_difference(common, better)
    np.testing.assert_allclose(swapped[:3], [-difference[0], -difference[2], -difference[1]])
    assert swapped.p == difference.p


def test_no_difference_at_all():
    values = effects(np.random.default_rng(0))
    assert paired_difference(values, values) == (0, 0, 0, 1)


def test_a_speaker_without_a_value_drops_out_of_both_arms():
    rng = np.random.default_rng(0)
    values, reference = effects(rng), effects(rng)
    values[:, 3], reference[:, 7] = np.nan, np.nan
    kept = np.setdiff1d(np.arange(12), [3, 7])
    difference = paired_difference(values, reference)
    assert difference.value == pytest.approx((values - reference)[:, kept].mean())
    expected = paired_difference(values[:, kept], reference[:, kept])
    np.testing.assert_allclose(difference[1:3], expected[1:3], atol=0.15)
    assert mean_with_interval(values).value == pytest.approx(np.delete(values, 3, axis=1).mean())


def test_too_few_speakers_have_a_value_but_no_interval():
    few = np.ones((5, 4))
    assert mean_with_interval(few).value == 1
    assert np.isnan(mean_with_interval(few)[1:]).all()
    assert np.isnan(paired_difference(few, 0 * few)[1:]).all()
    assert np.isnan(mean_with_interval(np.full((5, 12), np.nan))).all()


def test_the_interval_comes_from_the_seed():
    values = effects(np.random.default_rng(0))
    assert mean_with_interval(values, seed=5) == mean_with_interval(values, seed=5)
    assert mean_with_interval(values, seed=5) != mean_with_interval(values, seed=6)


def test_holm_by_hand():
    # in order 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1; the last is lifted to the one before
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.6, 0.9])), [1, 1])
    np.testing.assert_allclose(holm(np.array([0.02])), [0.02])
    np.testing.assert_allclose(holm(np.array([0.01, np.nan, 0.02])), [0.03, np.nan, 0.04])


@pytest.mark.parametrize(
    ("low", "high", "adjusted_p", "expected"),
    [
        (0.01, 0.08, 0.01, "supported"),
        (0.01, 0.08, 0.05, "inconclusive"),
        (0.00, 0.08, 0.01, "inconclusive"),
        (-0.01, 0.08, 0.2, "inconclusive"),
        (-0.01, 0.02, 0.2, "inconclusive"),
        (-0.01, 0.019, 0.2, "refuted"),
        (-0.08, -0.01, 0.01, "refuted"),
        (0.001, 0.01, 0.2, "refuted"),  # too small to matter, were it there
        (0.001, 0.01, 0.01, "supported"),
        (np.nan, np.nan, np.nan, "inconclusive"),
        (0.01, 0.08, np.nan, "inconclusive"),
    ],
)
def test_the_verdict_of_a_claim(low, high, adjusted_p, expected):
    rise = Difference((low + high) / 2, low, high, adjusted_p)
    fall = Difference(-(low + high) / 2, -high, -low, adjusted_p)
    assert verdict(rise, adjusted_p, 1, 0.02) == expected
    assert verdict(fall, adjusted_p, -1, 0.02) == expected


def test_few_seeds_of_one_sign_are_no_proof():
    """The interval and p are at least those of Student's t over the seeds' means."""
    seeds = np.array([0.025, 0.092, 0.025, 0.021, 0.085])
    values = np.repeat(seeds[:, None], 12, axis=1)
    found = paired_difference(values, np.zeros_like(values))
    expected = ttest_1samp(seeds, 0)
    assert found.p == pytest.approx(expected.pvalue)
    assert found[1:3] == pytest.approx(expected.confidence_interval(0.95))
