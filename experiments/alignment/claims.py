"""The claims of a study, the rule for their verdicts, and the paired comparison of its arms.

Measures and the rule of `verdict` were fixed before any run. Four changes came after the first
results, see docs/alignment.md: claims that cannot be decided (`_undecidable`), Student's t, no
claim about the agreement of the modalities' attention, and canonical correlation fitted within
clips.
"""

from typing import Literal, NamedTuple

import numpy as np

from experiments.alignment.plan import REFERENCE
from experiments.alignment.statistics import (
    Difference,
    Interval,
    Verdict,
    holm,
    mean_with_interval,
    paired_difference,
    verdict,
)


class Measure(NamedTuple):
    """One row of the tables."""

    key: str
    title: str
    smallest: float | None = None
    """The smallest relevant effect; None: no claim is about this measure."""
    nothing: float | Literal["chance"] = 0.0
    """Its value without any effect; chance: that of a guess."""
    most: float = np.inf
    """Its maximum."""


MEASURES = (
    Measure("uar", "UAR", 0.02, "chance", 1.0),
    Measure("accuracy", "accuracy (WAR)"),
    Measure("macro_f1", "macro-F1 (of a speaker)"),
    Measure("ece", "ECE (of a speaker)"),
    Measure("correlation_gain", "canonical correlation above shuffled", 0.02, 0.0, 1.0),
    Measure("correlation_over_wrong_lag", "canonical correlation above that 1 s off"),
    Measure("correlation", "canonical correlation, lag 0"),
    Measure("shift_auc", "AUC of true against shifted pairs"),
    Measure("peak_lag", "lag of the peak (ms)"),
    Measure("cue_auroc", "AUROC of attention for cues", 0.02, 0.5, 1.0),
    Measure("pointing", "pointing game"),
    Measure("cue_mass", "attention on cues, uniform = 1"),
    Measure("cue_error", "attention to cue (ms)"),
    Measure("agreement", "agreement of the modalities' attention"),
    Measure("faithfulness", "deletion and insertion, above random", 0.02, 0.0, 1.0),
    Measure("faithfulness_gradient", "the same of gradient × input"),
    Measure("seed_agreement", "rank correlation between seeds"),
    Measure("random_weights", "rank correlation with random weights"),
    Measure("emap_gap", "accuracy above the additive model (EMAP)"),
)
BENEFITS = {  # the measure of each claimed benefit
    "feature correlation": "correlation_gain",
    "accuracy of attention": "cue_auroc",
    "interpretability": "faithfulness",
    "accuracy": "uar",
}
HARMFUL = (  # harmful according to the claim
    *("audio_aug", "audio_tempo"),
    *("waveform", "waveform_tempo"),
)
HELPFUL = ("sync_aug", "aligned_aug", "feature_aug")  # the proposed alternatives


class Row(NamedTuple):
    """One measure of one arm."""

    measure: Measure
    arm: str
    mean: Interval
    difference: Difference | None
    """Paired, to the reference; None for itself."""
    adjusted_p: float
    """By Holm, over the arms and the measures of claims, or all other measures."""
    reference: str = REFERENCE

    @property
    def title(self) -> str:
        """A display name: the arm, and its reference if that is not `REFERENCE`."""
        return self.arm if self.reference == REFERENCE else f"{self.arm} against {self.reference}"


class Claim(NamedTuple):
    """One claim and its verdict."""

    text: str
    row: Row
    verdict: Verdict


def compare_arms(values: dict[str, dict[str, np.ndarray]]) -> list[Row]:
    """Means and paired differences of all arms, with Holm's correction in two families.

    An arm X is compared to `REFERENCE`, and to its aligned version X_aligned, if there is one.
    """
    pairs = [(arm, REFERENCE) for arm in values]
    pairs += [(arm, f"{arm}_aligned") for arm in values if f"{arm}_aligned" in values]
    rows = []
    for measure in MEASURES:
        for arm, other in pairs:
            found, reference = (values[one].get(measure.key) for one in (arm, other))
            if found is None or reference is None:
                continue
            difference = paired_difference(found, reference) if arm != other else None
            rows.append(Row(measure, arm, mean_with_interval(found), difference, np.nan, other))
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
    """The claims that the given arms can decide, each with its verdict.

    Args:
        rows: from `compare_arms`.
        chance: the UAR of a guess.
    """
    means = {(row.measure.key, row.arm): row.mean for row in rows}
    result = []
    for arms, sign, what in ((HARMFUL, -1, "lowers"), (HELPFUL, 1, "raises")):
        for benefit, key in BENEFITS.items():
            own = [row for row in rows if row.measure.key == key and row.arm in arms]
            for row in sorted(own, key=lambda row: arms.index(row.arm)):
                decided = verdict(row.difference, row.adjusted_p, sign, row.measure.smallest)
                if _undecidable(row, means[key, row.reference], sign, chance):
                    decided = "inconclusive"
                text = f"{row.title} {what} {benefit} ({row.measure.title})"
                result.append(Claim(text, row, decided))
    return result


def _undecidable(row: Row, reference: Interval, sign: int, chance: float) -> bool:
    """Whether arithmetic decides, not the data.

    Neither arm exceeds the value without effect by the smallest effect, so there is nothing to
    lose; or the reference is within the smallest effect of the maximum.
    """
    measure = row.measure
    nothing = chance if measure.nothing == "chance" else measure.nothing
    something = any(
        mean.low > nothing and mean.value >= nothing + measure.smallest
        for mean in (row.mean, reference)
    )
    full = sign > 0 and reference.value + measure.smallest > measure.most
    return not something or full
