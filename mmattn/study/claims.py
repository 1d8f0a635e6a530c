"""What a study claims, how it is decided, and the paired comparison of its arms.

All of it is fixed in code before any run.
"""

from typing import NamedTuple

import numpy as np

from mmattn.evaluate.comparison import (
    Difference,
    Interval,
    Verdict,
    holm,
    mean_with_interval,
    paired_difference,
    verdict,
)
from mmattn.study.plan import REFERENCE


class Measure(NamedTuple):
    """One row of the tables."""

    key: str
    title: str
    smallest: float | None = None
    """The smallest effect that would be worth a claim; None: no claim is about this measure."""
    nothing: float | None = -np.inf
    """Its value where there is nothing to measure; None: the chance of the classes."""


# Fixed before any run. Which of them a claim is about: see `claims`.
MEASURES = (
    Measure("uar", "UAR", 0.02, None),
    Measure("accuracy", "accuracy (WAR)"),
    Measure("macro_f1", "macro-F1 (of a speaker)"),
    Measure("ece", "ECE (of a speaker)"),
    Measure("correlation_gain", "canonical correlation above shuffled", 0.02, 0.0),
    Measure("correlation", "canonical correlation, lag 0"),
    Measure("shift_auc", "AUC of true against shifted pairs"),
    Measure("peak_lag", "lag of the peak (ms)"),
    Measure("cue_auroc", "AUROC of attention for cues", 0.02, 0.5),
    Measure("pointing", "pointing game"),
    Measure("cue_mass", "attention on cues, uniform = 1"),
    Measure("cue_error", "attention to cue (ms)"),
    Measure("agreement", "agreement of the modalities' attention", 0.02),
    Measure("faithfulness", "deletion and insertion, above random", 0.02, 0.0),
    Measure("faithfulness_gradient", "the same of gradient × input"),
    Measure("seed_agreement", "rank correlation between seeds"),
    Measure("random_weights", "rank correlation with random weights"),
    Measure("emap_gap", "accuracy above the additive model (EMAP)"),
)
BENEFITS = {
    "feature correlation": ("correlation_gain",),
    "accuracy of attention": ("cue_auroc", "agreement"),  # the first that the data have
    "interpretability": ("faithfulness",),
    "accuracy": ("uar",),
}
HARMFUL = ("audio_aug", "audio_tempo")  # what the claim says that harms
HELPFUL = ("sync_aug", "aligned_aug", "feature_aug")  # what it proposed next


class Row(NamedTuple):
    """One measure of one arm."""

    measure: Measure
    arm: str
    mean: Interval
    difference: Difference | None
    """Paired, to `REFERENCE`; None for itself."""
    adjusted_p: float
    """Holm over the arms and the measures that claims are about, or over those that are not."""


class Claim(NamedTuple):
    """One claim and what became of it."""

    text: str
    row: Row
    verdict: Verdict


def compare_arms(values: dict[str, dict[str, np.ndarray]]) -> list[Row]:
    """Means and paired differences of all arms, with Holm's correction in two families."""
    rows = []
    for measure in MEASURES:
        for arm, found in values.items():
            if measure.key not in found or measure.key not in values[REFERENCE]:
                continue
            difference = None
            if arm != REFERENCE:
                difference = paired_difference(found[measure.key], values[REFERENCE][measure.key])
            rows.append(
                Row(measure, arm, mean_with_interval(found[measure.key]), difference, np.nan)
            )
    for about_claims in (True, False):
        family = [
            number
            for number, row in enumerate(rows)
            if row.difference and (row.measure.smallest is not None) == about_claims
        ]
        if family:
            adjusted = holm(np.array([rows[number].difference.p for number in family]))
            for number, p in zip(family, adjusted, strict=True):
                rows[number] = rows[number]._replace(adjusted_p=float(p))
    return rows


def claims(rows: list[Row], chance: float) -> list[Claim]:
    """The claims that the arms at hand can answer, each with its verdict.

    A claim is inconclusive where neither arm shows anything to compare: where no interval of the
    mean lies above what the measure is by chance.
    """
    found = {(row.measure.key, row.arm): row for row in rows}
    result = []
    for arms, sign, what in ((HARMFUL, -1, "lowers"), (HELPFUL, 1, "raises")):
        for benefit, keys in BENEFITS.items():
            for arm in arms:
                row = next((found[key, arm] for key in keys if (key, arm) in found), None)
                if row is not None:
                    decided = verdict(row.difference, row.adjusted_p, sign, row.measure.smallest)
                    both = (row.mean, found[row.measure.key, REFERENCE].mean)
                    nothing = chance if row.measure.nothing is None else row.measure.nothing
                    if not any(mean.low > nothing for mean in both):
                        decided = "inconclusive"
                    text = f"{arm} {what} {benefit} ({row.measure.title})"
                    result.append(Claim(text, row, decided))
    return result
