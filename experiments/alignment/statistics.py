"""The statistics of the study: intervals, paired differences and the verdict on a claim.

Values are [S, P] for S seeds and P speakers: the mean over the speaker's clips; NaN means no value.
Seeds and speakers are crossed random effects, so both are resampled (the pigeonhole bootstrap:
Owen, Annals of Applied Statistics 2007). With few seeds a bootstrap is overconfident: five seeds of
one sign give the smallest possible p, which chance gives once in 16. So an interval is at least as
wide, and p at least as large, as by Student's t of the seeds' means. With one seed, the interval is
only over speakers, not over seeds.
"""

from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import t

RESAMPLES = 10_000
INTERVAL = (0.025, 0.975)
FEWEST_SPEAKERS = 5  # four speakers have the same sign by chance once in eight
SIGNIFICANCE = 0.05

Verdict = Literal["supported", "refuted", "inconclusive"]


class Interval(NamedTuple):
    """A mean with the ends of its 95 % interval; NaN ends: too few speakers."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A mean paired difference, its 95 % interval and two-sided p."""

    value: float
    low: float
    high: float
    p: float


def two_way_weights(
    seeds: int, speakers: int, resamples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """How often each resample draws each seed [R, S] and, independently, each speaker [R, P].

    It draws one fewer than there are: n draws of n would give a variance (n - 1) / n times the
    correct one (McCarthy & Snowden 1985), a fifth too small for five seeds. A single one is drawn.
    """
    return _draws(seeds, resamples, rng), _draws(speakers, resamples, rng)


def mean_with_interval(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean of the values [S, P] that are not NaN, with its interval."""
    value, resampled = _bootstrap(values, resamples, seed)
    return Interval(value, *_ends(value, resampled, values))


def paired_difference(
    values: np.ndarray, reference: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Mean of values - reference, both [S, P] of the same seeds and speakers.

    A cell that is NaN in one is dropped from both. p is the larger of that of Student's t over the
    seeds and, over the R resampled differences d*,
    2 · min(#(d* ≤ 0) + 1, #(d* ≥ 0) + 1) / (R + 1), at most 1.
    """
    value, resampled = _bootstrap(values - reference, resamples, seed)
    tail = min(np.count_nonzero(resampled <= 0), np.count_nonzero(resampled >= 0))
    p = min(1.0, 2 * (tail + 1) / (len(resampled) + 1)) if len(resampled) else np.nan
    error, freedom = _error_over_seeds(values - reference)
    if error > 0:
        p = max(p, float(2 * t.sf(abs(value) / error, freedom)))
    return Difference(value, *_ends(value, resampled, values - reference), p)


def holm(p: np.ndarray) -> np.ndarray:
    """Adjusted p [m] of a family p [m] (Holm 1979); NaN counts in m and stays NaN."""
    order = np.argsort(p)  # NaN last
    steps = np.arange(len(p), 0, -1) * p[order]
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def verdict(
    difference: Difference, adjusted_p: float, claimed_sign: Literal[1, -1], smallest: float
) -> Verdict:
    """The rule for a claim that a difference has a sign, fixed before any run.

    supported: the interval is entirely on the claimed side of 0, and adjusted p < 0.05.
    refuted: not supported, and the interval is entirely below `smallest` in the claimed direction:
    the smallest relevant effect (> 0) is excluded.
    inconclusive: anything else, including NaN.
    """
    low, high = sorted((claimed_sign * difference.low, claimed_sign * difference.high))
    if low > 0 and adjusted_p < SIGNIFICANCE:
        return "supported"
    return "refuted" if high < smallest else "inconclusive"


def _draws(units: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    return rng.multinomial(max(units - 1, 1), np.full(units, 1 / units), size=resamples)


def _bootstrap(values: np.ndarray, resamples: int, seed: int) -> tuple[float, np.ndarray]:
    """Mean of values [S, P] and of each resample [R] with values; empty with few speakers."""
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    value = float(filled.sum() / known.sum()) if known.any() else np.nan
    if np.count_nonzero(known.any(axis=0)) < FEWEST_SPEAKERS:
        return value, np.empty(0)
    weights = two_way_weights(*values.shape, resamples, np.random.default_rng(seed))
    seeds, speakers = (drawn.astype(np.float64) for drawn in weights)
    total = ((seeds @ filled) * speakers).sum(axis=1)
    count = ((seeds @ known) * speakers).sum(axis=1)
    return value, total[count > 0] / count[count > 0]


def _ends(value: float, resampled: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """The wider of the percentile interval and of Student's t over the seeds."""
    if not len(resampled):
        return np.nan, np.nan
    low, high = np.quantile(resampled, INTERVAL)
    error, freedom = _error_over_seeds(values)
    reach = error * t.ppf(INTERVAL[1], freedom) if freedom else 0.0
    return float(min(low, value - reach)), float(max(high, value + reach))


def _error_over_seeds(values: np.ndarray) -> tuple[float, int]:
    """Standard error of the mean of [S, P] over the seeds' own means, and degrees of freedom."""
    known = ~np.isnan(values)
    seeds = known.any(axis=1)
    means = np.where(known, values, 0).sum(axis=1)[seeds] / known.sum(axis=1)[seeds]
    freedom = len(means) - 1
    return (float(means.std(ddof=1) / np.sqrt(len(means))), freedom) if freedom > 0 else (0.0, 0)
