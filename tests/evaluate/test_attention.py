from itertools import pairwise

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from mmattn.evaluate.attention import (
    agreement,
    centroid_error,
    cue_measures,
    near_cues,
    rank_correlation,
)

TIMES = np.arange(10) * 0.1
ALL = np.ones(10, bool)
CUES = np.array([0.2, 0.7])


def pointing(*seen) -> float:
    return cue_measures(*seen)["pointing"]


def mass(*seen) -> float:
    return cue_measures(*seen)["cue_mass"]


def auroc(*seen) -> float:
    return cue_measures(*seen)["cue_auroc"]


MEASURES = (pointing, mass, auroc, centroid_error)


def bump(times: np.ndarray, middle: float, width: float = 0.05) -> np.ndarray:
    shape = np.exp(-0.5 * ((times - middle) / width) ** 2)
    return shape / shape.sum()


def spike(*frames: int) -> np.ndarray:
    attention = np.full(10, 0.01)
    attention[list(frames)] = 0.5
    return attention


def test_frames_near_a_cue():
    near = near_cues(np.array([0.0, 0.1, 0.25, 0.5]), np.array([0.6, 0.125]), 0.125)
    assert near.tolist() == [True, True, True, True]
    near = near_cues(np.array([0.0, 0.1, 0.5]), np.array([0.25]), 0.125)
    assert near.tolist() == [False, False, False]


@pytest.mark.parametrize(("frame", "hit"), [(1, 1), (2, 1), (3, 1), (4, 0), (5, 0), (7, 1)])
def test_pointing_game_by_hand(frame, hit):
    assert pointing(spike(frame), TIMES, ALL, CUES, 0.11) == hit


def test_uniform_attention_points_by_chance():
    assert pointing(np.full(10, 0.1), TIMES, ALL, CUES, 0.11) == pytest.approx(0.6)
    assert pointing(spike(2, 5), TIMES, ALL, CUES, 0.11) == 0.5


def test_mass_ratio_by_hand():
    assert mass(np.full(10, 0.1), TIMES, ALL, CUES, 0.05) == pytest.approx(1)
    attention = np.zeros(10)
    attention[[2, 5]] = 0.5
    assert mass(attention, TIMES, ALL, CUES, 0.05) == pytest.approx(0.5 / (2 / 10))
    valid = ALL.copy()
    valid[5] = False
    assert mass(attention, TIMES, valid, CUES, 0.05) == pytest.approx(1 / (2 / 9))


def test_auroc_by_hand_and_by_scikit_learn():
    assert auroc(spike(2, 7), TIMES, ALL, CUES, 0.05) == 1
    assert auroc(np.full(10, 0.1), TIMES, ALL, CUES, 0.05) == 0.5
    assert auroc(1 - spike(2, 7), TIMES, ALL, CUES, 0.05) == 0
    attention = np.random.default_rng(0).random(10)
    expected = roc_auc_score(np.isin(np.arange(10), [1, 2, 3, 6, 7, 8]), attention)
    assert auroc(attention, TIMES, ALL, CUES, 0.11) == pytest.approx(expected)
    assert np.isnan(auroc(attention, TIMES, ALL, CUES, 9.0))


@pytest.mark.parametrize("delay", [-0.1, 0.0, 0.04, 0.12])
def test_attention_that_is_late_has_that_centroid_error(delay):
    times, cues = np.arange(400) * 0.01, np.array([3.0, 0.8, 1.9])
    attention = sum(bump(times, cue + delay) for cue in cues) + 0.001
    error = centroid_error(attention, times, np.ones(400, bool), cues, 0.3)
    assert error == pytest.approx(1000 * abs(delay), abs=1)


def test_a_missed_cue_is_off_by_the_window():
    times, cues, valid = np.arange(400) * 0.01, np.array([1.0, 3.0]), np.ones(400, bool)
    assert centroid_error(bump(times, 1.0), times, valid, cues, 0.3) == pytest.approx(150, abs=0.1)
    uniform = np.full(400, 1 / 400) * (1 + 1e-7 * np.random.default_rng(0).standard_normal(400))
    assert centroid_error(uniform, times, valid, cues, 0.3) == pytest.approx(300)
    hidden = (times < 2.5) | (times > 3.5)  # no frame tells of the second cue
    assert centroid_error(bump(times, 1.0), times, hidden, cues, 0.3) == pytest.approx(0, abs=0.1)


def test_a_frame_belongs_to_the_nearest_cue_alone():
    # Frames 2 and 5 of cues 0.2 and 0.5: each would pull the other's centre by 0.15 s.
    assert centroid_error(spike(2, 5), TIMES, ALL, np.array([0.2, 0.5]), 0.4) == pytest.approx(0)


def test_invalid_frames_and_padding_have_no_influence():
    rng = np.random.default_rng(0)
    attention, valid = rng.random(10), rng.random(10) > 0.3
    spoilt = np.concatenate([np.where(valid, attention, 99.0), [77.0] * 5])
    padded_times, padded_valid = np.append(TIMES, [0.7] * 5), np.append(valid, [False] * 5)
    for measure in MEASURES:
        expected = measure(attention[valid], TIMES[valid], ALL[valid], CUES, 0.11)
        assert np.isfinite(expected)
        assert measure(attention, TIMES, valid, CUES, 0.11) == expected
        assert measure(spoilt, padded_times, padded_valid, CUES, 0.11) == expected


def test_the_scale_of_attention_does_not_matter():
    attention = np.random.default_rng(1).random(10)
    for measure in MEASURES:
        expected = measure(attention, TIMES, ALL, CUES, 0.11)
        assert measure(7 * attention, TIMES, ALL, CUES, 0.11) == pytest.approx(expected)


@pytest.mark.parametrize("measure", MEASURES)
def test_nothing_to_measure(measure):
    attention = np.random.default_rng(1).random(10)
    assert np.isnan(measure(attention, TIMES, ~ALL, CUES, 0.11))
    assert np.isnan(measure(attention, TIMES, ALL, np.empty(0), 0.11))
    assert np.isnan(measure(attention, TIMES, ALL, np.array([50.0]), 0.11))
    empty = np.empty(0)
    assert np.isnan(measure(empty, empty, np.empty(0, bool), CUES, 0.11))


def test_the_same_distribution_at_other_frame_rates_agrees():
    audio_times, video_times = np.arange(300) * 0.01, 0.02 + np.arange(44) / 15
    for middle in (0.4, 1.5, 2.6):
        audio, video = bump(audio_times, middle, 0.2), bump(video_times, middle, 0.2)
        assert agreement(audio, audio_times, video, video_times) > 0.995
    uniform = np.full(300, 1 / 300), audio_times, np.full(44, 1 / 44), video_times
    assert agreement(*uniform) == pytest.approx(1, abs=1e-12)


def test_disjoint_attention_does_not_agree_and_half_agrees_between():
    audio_times, video_times = np.arange(300) * 0.01, np.arange(45) / 15
    audio = bump(audio_times, 0.5)
    assert agreement(audio, audio_times, bump(video_times, 2.5), video_times) < 1e-6
    shifted = [
        agreement(audio, audio_times, bump(video_times, 0.5 + shift), video_times)
        for shift in (0.0, 0.05, 0.1, 0.2, 0.4)
    ]
    assert all(before > after for before, after in pairwise(shifted))


def test_agreement_equals_scipy_where_a_bin_is_a_frame():
    rng = np.random.default_rng(0)
    a, b = rng.dirichlet(np.ones(10), 2)
    expected = 1 - jensenshannon(a, b, base=2) ** 2
    assert agreement(a, TIMES, b, TIMES) == pytest.approx(expected)
    assert agreement(b, TIMES, 5 * a, TIMES) == pytest.approx(expected)


def test_agreement_is_over_the_common_seconds():
    a, b = np.random.default_rng(0).random((2, 10))
    later = np.append(9.0, a), np.append(-0.1, TIMES)  # the first frame is before the video
    assert agreement(*later, b, TIMES) == pytest.approx(agreement(a, TIMES, b, TIMES))
    assert np.isnan(agreement(a, TIMES, b, TIMES + 5))
    assert np.isnan(agreement(np.zeros(10), TIMES, b, TIMES))


def test_rank_correlation_by_hand_and_ties():
    a, valid = np.array([0.1, 0.5, 9.0, 0.3, 0.2]), np.array([True, True, False, True, True])
    assert rank_correlation(a, np.exp(a), valid) == pytest.approx(1)
    assert rank_correlation(a, -a, valid) == pytest.approx(-1)
    b = np.array([0.4, 0.4, 0.0, 0.1, 0.4])
    expected = np.corrcoef(rankdata(a[valid]), rankdata(b[valid]))[0, 1]
    assert rank_correlation(a, b, valid) == pytest.approx(expected)
    assert np.isnan(rank_correlation(a, np.full(5, 0.2), valid))
    assert np.isnan(rank_correlation(a, b, np.zeros(5, bool)))
