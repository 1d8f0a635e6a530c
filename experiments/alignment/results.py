"""From the measures of all trainings to paired differences and verdicts.

Everything becomes a value for each seed and speaker [S, P]: the mean over the speaker's test clips
(UAR and macro-F1: from the speaker's confusion matrix, ECE: from the speaker's clips). As all
speakers here have equally many clips of each class, the mean of their UARs is the UAR of all
clips.
"""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.alignment.claims import MEASURES, Claim, Row, claims, compare_arms
from experiments.alignment.measure import LAGS, Measures, rank_agreement
from experiments.alignment.plan import REFERENCE, Block, Study
from experiments.alignment.runner import baseline_folder, load_measures
from experiments.alignment.statistics import (
    Difference,
    Interval,
    mean_with_interval,
    paired_difference,
)
from mmattn.evaluate.correlation import mean_of_known, peak_lag
from mmattn.evaluate.metrics import mcnemar, scores_by_speaker
from mmattn.evaluate.predictions import Predictions
from mmattn.train.shifts import TEMPOS

CUE_TIMES = np.array([0.0, 1.0, 2.0, 3.0, 5.0])  # seconds, edges of the strata


class CurveOf(NamedTuple):
    """A measure over something, of one arm."""

    arm: str
    points: list[Interval]


class Comparison(NamedTuple):
    """A study's results for one block with one fusion."""

    block: Block
    fusion: str
    seconds: float
    """Core seconds of its trainings and measures."""
    speakers: int
    clips: int
    rows: list[Row]
    claims: list[Claim]
    at_offset: list[CurveOf]
    at_tempo: list[CurveOf]
    at_lag: list[CurveOf]
    by_cue_time: list[CurveOf]
    """Accuracy of each arm on the clean test clips, by time of coincidence."""
    cost_by_cue_time: list[CurveOf]
    """Paired difference of that accuracy to `REFERENCE`, of each other arm."""
    by_cue_time_at_tempo: list[CurveOf]
    """Accuracy of `REFERENCE` by time of coincidence, with the audio at each tempo."""
    mcnemar: dict[str, float]
    """p of each arm against `REFERENCE`, by the seeds' mean prediction of each clip."""
    validation_uar: dict[str, float]
    """Of each arm, mean over seeds and folds; selects the best arm."""
    baseline: Interval
    """UAR of the linear baseline."""
    above_baseline: dict[str, Difference]
    """Paired difference of each arm's UAR to it."""

    @property
    def difference_title(self) -> str:
        """A header for the differences of its rows."""
        to_it = all(row.reference == REFERENCE for row in self.rows)
        return f"difference to {REFERENCE}" if to_it else "paired difference"


def compare(study: Study, folder: Path) -> list[Comparison]:
    """Read the measures of a complete study and compare the arms of each block and fusion."""
    return [
        _compare(study, folder, block, fusion) for block in study.blocks for fusion in block.fusions
    ]


def _compare(study: Study, folder: Path, block: Block, fusion: str) -> Comparison:
    runs = {arm: _load_arm(study, folder, block, fusion, arm) for arm in block.arms}
    reference = runs[REFERENCE]
    values = {arm: values_of(seeds) for arm, seeds in runs.items()}
    rows = compare_arms(values)
    baseline = join_folds(
        [load_measures(folder / baseline_folder(block.name, fold)) for fold in block.folds]
    )
    baseline_uar = speaker_scores(baseline)["uar"][None]

    def curves(of: Callable[[Measures], np.ndarray]) -> list[CurveOf]:
        return [_curve(arm, [of(run) for run in seeds], seeds) for arm, seeds in runs.items()]

    def at_tempo(column: int) -> list[np.ndarray]:
        return [_by_cue_time(run, run["right_at_tempo"][:, column]) for run in reference]

    return Comparison(
        block=block,
        fusion=fusion,
        seconds=float(sum(run["seconds"].sum() for seeds in runs.values() for run in seeds)),
        speakers=len(np.unique(reference[0]["speaker"])),
        clips=len(reference[0]["clip"]),
        rows=rows,
        claims=claims(rows, chance=1 / reference[0]["probabilities"].shape[1]),
        at_offset=curves(lambda run: run["right_at_offset"]),
        at_tempo=curves(lambda run: run["right_at_tempo"]),
        at_lag=curves(lambda run: run["lag_curve"]),
        by_cue_time=curves(lambda run: _by_cue_time(run, run["right"])),
        cost_by_cue_time=[
            _cost_by_cue_time(arm, seeds, reference)
            for arm, seeds in runs.items()
            if arm != REFERENCE
        ],
        by_cue_time_at_tempo=[
            _curve(f"tempo {tempo:.1f}", at_tempo(column), reference)
            for column, tempo in enumerate(TEMPOS)
        ],
        mcnemar={
            arm: mcnemar(_right_together(seeds), _right_together(reference))
            for arm, seeds in runs.items()
            if arm != REFERENCE
        },
        validation_uar={
            arm: float(np.mean([run["validation_uar"] for run in seeds]))
            for arm, seeds in runs.items()
        },
        baseline=mean_with_interval(baseline_uar),
        above_baseline={
            arm: paired_difference(found["uar"], np.broadcast_to(baseline_uar, found["uar"].shape))
            for arm, found in values.items()
        },
    )


def _load_arm(study: Study, folder: Path, block: Block, fusion: str, arm: str) -> list[Measures]:
    """The measures of an arm's trainings, by seed, with folds joined."""
    cells = [cell for cell in study.cells() if cell[:3] == (block.name, fusion, arm)]
    return [
        join_folds([load_measures(folder / cell.folder) for cell in cells if cell.seed == seed])
        for seed in range(study.seeds)
    ]


def join_folds(folds: list[Measures]) -> Measures:
    """Measures of all folds' test clips, concatenated; adds `right` [n]."""
    joined = {}
    for name, first in folds[0].items():
        parts = [fold[name] for fold in folds]
        if first.ndim > 1 and name.startswith("attention_"):
            width = max(part.shape[1] for part in parts)
            parts = [
                np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=np.nan)
                for part in parts
            ]
        joined[name] = np.concatenate(parts) if first.ndim else np.stack(parts)
    joined["right"] = (joined["probabilities"].argmax(1) == joined["label"]).astype(float)
    return joined


def values_of(seeds: list[Measures]) -> dict[str, np.ndarray]:
    """Every measure that the runs of an arm have, [S, P]."""
    values = {
        measure.key: np.stack([by_speaker(run, run[measure.key]) for run in seeds])
        for measure in MEASURES
        if measure.key in seeds[0]
    }
    found = [speaker_scores(run) for run in seeds]
    values |= {name: np.stack([one[name] for one in found]) for name in found[0]}
    values["peak_lag"] = np.stack(
        [peak_lag(by_speaker(run, run["lag_curve"]), LAGS) for run in seeds]
    )
    values["seed_agreement"] = seed_agreement(seeds)
    return {name: array for name, array in values.items() if not np.isnan(array).all()}


def by_speaker(run: Measures, values: np.ndarray) -> np.ndarray:
    """Mean of [n, …] over each speaker's clips, ignoring NaN: [P, …], speakers in order."""
    speakers = np.unique(run["speaker"])
    own = (np.moveaxis(values[run["speaker"] == speaker], 0, -1) for speaker in speakers)
    return np.stack([mean_of_known(part.astype(float)) for part in own])


def speaker_scores(run: Measures) -> dict[str, np.ndarray]:
    """UAR, accuracy, macro-F1 and ECE of each speaker [P]."""
    classes = tuple(map(str, range(run["probabilities"].shape[1])))
    return scores_by_speaker(
        Predictions(tuple(run["clip"]), run["speaker"], run["label"], run["probabilities"], classes)
    )


def seed_agreement(seeds: list[Measures]) -> np.ndarray:
    """[S, P] mean rank correlation of two seeds' attention, as jackknife pseudo-values.

    Each pair belongs to two seeds, so rows of plain means would be dependent. The pseudo-values
    S θ - (S - 1) θ_(s), with the mean θ over all pairs and θ_(s) over those without seed s, have
    the right mean and are nearly independent, as intervals need (Arvesen 1969). NaN with fewer than
    3 seeds.
    """
    speakers = len(np.unique(seeds[0]["speaker"]))
    count = len(seeds)
    if count < 3:
        return np.full((count, speakers), np.nan)
    few = np.flatnonzero(~np.isnan(seeds[0]["attention_audio"][:, 0]))
    weights = [
        [{m: run[f"attention_{m}"][row] for m in ("audio", "video")} for row in few]
        for run in seeds
    ]
    of_pairs = {}
    for pair in combinations(range(count), 2):
        values = np.full(len(seeds[0]["clip"]), np.nan)
        both = zip(*(weights[seed] for seed in pair), strict=True)
        values[few] = [rank_agreement(*clips) for clips in both]
        of_pairs[pair] = by_speaker(seeds[0], values)
    mean = np.mean(list(of_pairs.values()), axis=0)
    without = [
        np.mean([x for p, x in of_pairs.items() if s not in p], axis=0) for s in range(count)
    ]
    return count * mean - (count - 1) * np.stack(without)


def _curve(arm: str, values: list[np.ndarray], seeds: list[Measures]) -> CurveOf:
    """Means with intervals at each of X places, of values [n, X] for each seed."""
    stacked = np.stack([by_speaker(run, one) for run, one in zip(seeds, values, strict=True)])
    return CurveOf(arm, [mean_with_interval(stacked[..., x]) for x in range(stacked.shape[-1])])


def _cost_by_cue_time(arm: str, seeds: list[Measures], reference: list[Measures]) -> CurveOf:
    own, other = (
        np.stack([by_speaker(run, _by_cue_time(run, run["right"])) for run in runs])
        for runs in (seeds, reference)
    )
    differences = [paired_difference(own[..., x], other[..., x]) for x in range(own.shape[-1])]
    return CurveOf(arm, [Interval(*difference[:3]) for difference in differences])


def _by_cue_time(run: Measures, right: np.ndarray) -> np.ndarray:
    """[n, strata]: right [n] in the column of the stratum of the clip's cues, NaN in others."""
    stratum = np.digitize(run["meeting"], CUE_TIMES) - 1
    columns = np.full((len(right), len(CUE_TIMES) - 1), np.nan)
    for column in range(columns.shape[1]):
        inside = (stratum == column) & ~np.isnan(run["meeting"])
        columns[inside, column] = right[inside]
    return columns


def _right_together(seeds: list[Measures]) -> np.ndarray:
    """Whether the mean of the seeds' probabilities predicts correctly [n]."""
    mean = np.mean([run["probabilities"] for run in seeds], axis=0)
    return mean.argmax(1) == seeds[0]["label"]
