"""From measures to verdicts, on trainings whose differences are known."""

import csv

import numpy as np
import pytest
from matplotlib.image import imread

from experiments.alignment.claims import claims, compare_arms
from experiments.alignment.plan import REFERENCE, Block, Study
from experiments.alignment.plots import plot_curves_over, plot_differences
from experiments.alignment.report import to_csv, to_markdown
from experiments.alignment.results import (
    by_speaker,
    compare,
    join_folds,
    seed_agreement,
    values_of,
)
from experiments.alignment.runner import MEASURES as FILE
from experiments.alignment.runner import baseline_folder
from mmattn.config import AugmentConfig, ExperimentConfig
from tests.alignment.fabricated import SPEAKERS, measures

SEEDS = range(5)


def arm(**options) -> dict[str, np.ndarray]:
    return values_of([join_folds([measures(seed, **options)]) for seed in SEEDS])


@pytest.fixture(scope="module")
def rows():
    return compare_arms(
        {
            REFERENCE: arm(),
            "audio_aug": arm(auroc=0.5, right=0.8, gain=0.3),
            "sync_aug": arm(right=0.98),
        }
    )


def find(rows, key: str, arm: str):
    return next(row for row in rows if (row.measure.key, row.arm) == (key, arm))


def test_a_known_difference_is_found(rows):
    row = find(rows, "cue_auroc", "audio_aug")
    # The noise is the same in both arms, so that the pairs differ by 0.2 exactly.
    assert np.allclose(row.difference[:3], -0.2)
    assert row.difference.p <= row.adjusted_p < 0.01
    assert find(rows, "cue_auroc", REFERENCE).difference is None
    assert find(rows, "cue_auroc", REFERENCE).mean.value == pytest.approx(0.7, abs=0.01)


def test_no_difference_is_none(rows):
    difference = find(rows, "correlation_gain", "audio_aug").difference
    assert difference[:3] == (0, 0, 0)
    assert difference.p == 1


def test_what_no_arm_has_is_left_out(rows):
    assert not any(row.measure.key in ("agreement", "pointing") for row in rows)


def verdicts(rows, chance: float = 1 / 3) -> dict[str, str]:
    return {claim.text.partition(" (")[0]: claim.verdict for claim in claims(rows, chance)}


def test_verdicts(rows):
    decided = verdicts(rows)
    assert decided["audio_aug lowers accuracy of attention"] == "supported"
    assert decided["audio_aug lowers feature correlation"] == "refuted"
    assert decided["sync_aug raises accuracy"] == "supported"
    assert not any("audio_tempo" in text for text in decided)


@pytest.mark.slow
def test_an_arm_is_also_compared_to_the_same_without_loss_of_alignment():
    worse = {"waveform": arm(right=0.6), "waveform_aligned": arm(right=0.6)}
    decided = verdicts(compare_arms({REFERENCE: arm()} | worse))
    assert decided["waveform lowers accuracy"] == "supported"
    assert decided["waveform against waveform_aligned lowers accuracy"] == "refuted"
    decided = verdicts(compare_arms({REFERENCE: arm()} | worse | {"waveform_aligned": arm()}))
    assert decided["waveform against waveform_aligned lowers accuracy"] == "supported"
    assert not any(text.startswith("waveform_aligned") for text in decided)


def test_nothing_above_chance_decides_nothing():
    noise = compare_arms({REFERENCE: arm(gain=0.0), "audio_aug": arm(gain=-0.3)})
    decided = {
        claim.text.partition(" (")[0]: claim.verdict for claim in claims(noise, chance=1 / 3)
    }
    assert decided["audio_aug lowers feature correlation"] == "inconclusive"


def test_no_uar_above_chance_decides_nothing():
    at_chance = compare_arms({REFERENCE: arm(right=0.33), "audio_aug": arm(right=0.33)})
    assert verdicts(at_chance, 0.4)["audio_aug lowers accuracy"] == "inconclusive"
    assert verdicts(at_chance, 0.1)["audio_aug lowers accuracy"] == "refuted"


def test_no_room_to_gain_decides_nothing():
    full = compare_arms({REFERENCE: arm(right=1.0), "sync_aug": arm(right=1.0)})
    assert verdicts(full)["sync_aug raises accuracy"] == "inconclusive"


def test_holm_has_a_family_of_claims_and_one_of_the_rest(rows):
    family = [row for row in rows if row.difference and row.measure.smallest is not None]
    smallest = min(row.difference.p for row in family)
    adjusted = min(row.adjusted_p for row in family)
    assert adjusted == pytest.approx(len(family) * smallest)


def test_means_by_speaker_leave_unknown_clips_out():
    run = {"speaker": np.array(["b", "a", "b", "a"])}
    values = np.array([[1.0, np.nan], [2.0, np.nan], [4.0, 3.0], [np.nan, np.nan]])
    expected = [[2.0, np.nan], [2.5, 3.0]]
    assert np.array_equal(by_speaker(run, values), expected, equal_nan=True)


def test_uar_of_balanced_speakers_is_the_mean_of_theirs():
    run = join_folds([measures(0)])
    right = run["probabilities"].argmax(1) == run["label"]
    recalls = [right[run["label"] == label].mean() for label in range(3)]
    assert values_of([run])["uar"].mean() == pytest.approx(np.mean(recalls))


def test_agreement_of_seeds():
    first = join_folds([measures(0)])
    twin, opposite = dict(first), dict(first)
    for name in ("attention_audio", "attention_video"):
        twin[name] = 2 * first[name]
        opposite[name] = 1 - first[name]
    assert seed_agreement([first, twin, first]) == pytest.approx(np.ones((3, SPEAKERS)))
    # Of the pairs one has correlation 1 and two have -1; without the third seed only the first.
    found = seed_agreement([first, twin, opposite])
    assert found == pytest.approx(np.repeat([[1.0], [1.0], [-3.0]], SPEAKERS, axis=1))
    assert np.isnan(seed_agreement([first, twin])).all()


@pytest.mark.slow
def test_agreement_of_seeds_has_the_error_of_its_pairs():
    """Unrelated attention: the t of the pseudo-values is beyond its 95 % as often as it should."""
    beyond = 0
    for trial in range(40):
        seeds = [join_folds([measures(1000 + 5 * trial + seed)]) for seed in range(5)]
        means = seed_agreement(seeds).mean(1)
        beyond += abs(means.mean()) > 2.776 * means.std(ddof=1) / np.sqrt(5)
    assert beyond <= 6


def test_folds_are_joined():
    first, second = measures(0), measures(1)
    second["attention_audio"] = np.pad(second["attention_audio"], ((0, 0), (0, 2)))
    joined = join_folds([first, second])
    count = len(first["clip"])
    assert joined["attention_audio"].shape == (2 * count, 8)
    assert np.array_equal(joined["label"], np.tile(first["label"], 2))
    assert np.array_equal(joined["validation_uar"], [0.8, 0.8])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A complete study of made-up trainings: `audio_aug` is worse by 0.3 in accuracy."""
    folder = tmp_path_factory.mktemp("study")
    arms = {REFERENCE: AugmentConfig(), "audio_aug": AugmentConfig(own_tempo={"audio": (0.9, 1.1)})}
    config = ExperimentConfig(name="compare")
    study = Study((Block("made-up", "Made up.", config, ("concat", "cross"), arms),), seeds=5)
    for cell in study.cells():
        worse = cell.arm == "audio_aug"
        save(folder / cell.folder, measures(cell.seed, right=0.6 if worse else 0.9))
    save(folder / baseline_folder("made-up", None), measures(9, right=0.5))
    return study, folder


def save(folder, arrays) -> None:
    folder.mkdir(parents=True)
    np.savez(folder / FILE, **arrays)


@pytest.fixture(scope="module")
def found(study):
    return compare(*study)


@pytest.mark.slow
def test_a_study_is_compared_to_the_reference_and_the_baseline(found):
    concat, cross = found
    assert (concat.fusion, cross.fusion) == ("concat", "cross")
    assert (concat.speakers, concat.clips) == (SPEAKERS, 96)
    difference = find(concat.rows, "uar", "audio_aug").difference
    assert -0.4 < difference.low < -0.3 < difference.high < -0.2
    assert concat.baseline.value == pytest.approx(0.5, abs=0.1)
    above = concat.above_baseline[REFERENCE]
    assert 0.2 < above.low < 0.4 < above.high
    assert concat.mcnemar["audio_aug"] < 0.01
    assert concat.validation_uar == pytest.approx({REFERENCE: 0.9, "audio_aug": 0.6})


def test_accuracy_by_the_time_of_the_cues(found):
    concat, _ = found
    curve = next(curve for curve in concat.by_cue_time if curve.arm == REFERENCE)
    assert [point.value for point in curve.points] == pytest.approx([0.9] * 4, abs=0.1)


def test_all_results_are_written(found):
    table = list(csv.DictReader(to_csv(found).splitlines()))
    row = next(row for row in table if (row["measure"], row["arm"]) == ("uar", "audio_aug"))
    assert float(row["difference"]) == find(found[0].rows, "uar", "audio_aug").difference.value
    text = "\n".join(to_markdown(found))
    assert "| audio_aug lowers accuracy (UAR) |" in text
    assert "supported" in text


def test_plots_are_drawn(found, tmp_path):
    for draw in (plot_differences, plot_curves_over):
        draw(found[0], tmp_path / "plot.png")
        image = imread(tmp_path / "plot.png")[..., :3]
        inked = (image < 0.9).any(-1)
        assert 0.005 < inked.mean() < 0.5
        edges = np.concatenate([inked[0], inked[-1], inked[:, 0], inked[:, -1]])
        assert not edges.any()  # nothing is cut off


@pytest.mark.slow
def test_the_same_measures_give_the_same_results(study, found):
    assert to_csv(compare(*study)) == to_csv(found)
