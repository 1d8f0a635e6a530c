import time

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mmattn.evaluate.cca import fit_cca
from mmattn.evaluate.correlation import (
    Frames,
    centred_pairs,
    correlation_gain,
    lag_curve,
    peak_lag,
    shuffled,
    true_against_shifted_auc,
)
from tests.evaluate.pairs import canonical_correlations, pairs_at_lag

LAGS = np.linspace(-0.4, 0.4, 21)


def drawn(seed: int, delay: float = 0.0, width: int = 6, noise: float = 0.5) -> Frames:
    """A clip whose modalities show the same two slow signals, the audio later by `delay` (s)."""
    rng = np.random.default_rng([seed, 7])
    duration = rng.uniform(2.5, 4)
    frequency, phase = rng.uniform(0.3, 1.5, (2, 5)), rng.uniform(0, 6.28, (2, 5))

    def signals(times: np.ndarray) -> np.ndarray:
        return np.sin(6.28 * frequency * times[:, None, None] + phase).sum(axis=-1)

    mix = np.random.default_rng(3).standard_normal((2, 2, width))
    audio_times, video_times = np.arange(0, duration, 0.02), np.arange(0.1, duration, 1 / 15)
    audio = signals(audio_times - delay) @ mix[0]
    video = signals(video_times) @ mix[1]
    audio += noise * rng.standard_normal(audio.shape)
    video += noise * rng.standard_normal(video.shape)
    return Frames(audio, audio_times, video, video_times, rng.random(len(video_times)) > 0.1)


def fitted(clips: list[Frames], components: int = 2):
    return fit_cca(*centred_pairs(clips), components)


@pytest.fixture(scope="module")
def held_out() -> list[Frames]:
    return [drawn(seed) for seed in range(100, 120)]


@pytest.fixture(scope="module")
def cca():
    return fitted([drawn(seed) for seed in range(40)])


def test_pairs_are_brought_to_the_times_of_valid_video_frames():
    audio = np.array([[0.0, 10], [2, 20], [4, 30]])
    video, valid = np.arange(5.0)[:, None], np.array([True, True, False, True, True])
    times = np.array([0.0, 1, 2]), np.array([-0.5, 0.5, 0.7, 1.5, 2])
    clip = Frames(audio, times[0], video, times[1], valid)
    away = clip._replace(audio_times=times[0] + 9)
    x, y = centred_pairs([away, clip])
    np.testing.assert_allclose(x, np.array([[1, 15], [3, 25], [4, 30]]) - [[8 / 3, 70 / 3]])
    np.testing.assert_allclose(y, np.array([[1], [3], [4]]) - 8 / 3)


def test_frames_without_a_face_change_nothing():
    clip = drawn(1)
    spoilt = clip._replace(video=np.where(clip.valid[:, None], clip.video, np.nan))
    for before, after in zip(centred_pairs([clip]), centred_pairs([spoilt]), strict=True):
        np.testing.assert_array_equal(before, after)


def test_what_differs_between_clips_alone_does_not_lead_the_fit(held_out):
    def moved(clip: Frames, seed: int) -> Frames:
        level = 30 * np.random.default_rng(seed).standard_normal()
        return clip._replace(audio=clip.audio + level, video=clip.video - level)

    train = [drawn(seed) for seed in range(40)]
    expected = fitted(train)
    faceless = train[0]._replace(valid=np.zeros(len(train[0].valid), bool))
    found = fitted([faceless, *(moved(clip, seed) for seed, clip in enumerate(train))])
    np.testing.assert_allclose(found.x_projection, expected.x_projection, atol=1e-9)
    np.testing.assert_allclose(found.y_projection, expected.y_projection, atol=1e-9)


def test_the_curve_is_the_mean_canonical_correlation_of_the_pairs(cca, held_out):
    curve = lag_curve(cca, held_out[:3], LAGS)
    assert curve.shape == (3, 21)
    for clip, row in zip(held_out, curve, strict=False):
        expected = [canonical_correlations(cca, *pairs_at_lag(clip, lag)).mean() for lag in LAGS]
        np.testing.assert_allclose(row, expected)


def test_related_clips_correlate_and_shuffled_or_far_shifted_ones_do_not(cca, held_out):
    gain = correlation_gain(cca, held_out, np.random.default_rng(0))
    assert gain.aligned.shape == gain.shuffled.shape == gain.wrong_lag.shape == (20,)
    assert gain.aligned.min() > 0.8
    assert abs(gain.shuffled.mean()) < 0.15
    assert gain.wrong_lag.mean() < 0.3


def test_unrelated_modalities_gain_nothing():
    train = shuffled([drawn(seed) for seed in range(40)], np.random.default_rng(1))
    clips = shuffled([drawn(seed) for seed in range(100, 140)], np.random.default_rng(2))
    gain = correlation_gain(fitted(train), clips, np.random.default_rng(0))
    assert abs(gain.aligned.mean()) < 0.15
    assert abs((gain.aligned - gain.shuffled).mean()) < 0.15
    assert true_against_shifted_auc(fitted(train), clips).mean() == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("delay", [-0.15, 0.0, 0.09, 0.2])
def test_the_peak_is_at_the_known_delay_of_the_audio(cca, delay):
    clips = [drawn(seed, delay) for seed in range(100, 120)]
    curve = lag_curve(cca, clips, LAGS)
    assert peak_lag(curve.mean(axis=0), LAGS) == pytest.approx(1000 * delay, abs=8)
    np.testing.assert_allclose(peak_lag(curve, LAGS), 1000 * delay, atol=40)


def test_the_peak_of_a_parabola_is_exact_and_ends_are_kept():
    inner = [-((LAGS - top) ** 2) for top in (0.073, -0.35, 0.37)]
    curves = np.stack([*inner, LAGS, -LAGS, np.full(21, np.nan), np.zeros(21)])
    np.testing.assert_allclose(
        peak_lag(curves, LAGS), [73, -350, 370, 400, -400, np.nan, -400], atol=1e-9
    )


def test_true_pairs_are_told_from_shifted_ones(cca, held_out):
    shifts = (-0.5, -0.3, 0.3, 0.5)
    auc = true_against_shifted_auc(cca, held_out, shifts)
    curve = lag_curve(cca, held_out, [0.0, *shifts])
    expected = [roc_auc_score([1, 0, 0, 0, 0], row) for row in curve]
    np.testing.assert_allclose(auc, expected)
    assert auc.mean() > 0.95
    late = true_against_shifted_auc(cca, [drawn(seed, 0.3) for seed in range(100, 120)], (0.3,))
    assert late.mean() < 0.05


def test_shifts_past_the_end_drop_out_and_a_clip_without_faces_has_no_value(cca, held_out):
    clip = held_out[0]
    blind = clip._replace(valid=np.zeros_like(clip.valid))
    assert true_against_shifted_auc(cca, [clip], (0.5, 9.0)) == true_against_shifted_auc(
        cca, [clip], (0.5,)
    )
    assert np.isnan(true_against_shifted_auc(cca, [blind, clip], (9.0,))).all()
    gain = correlation_gain(cca, [blind, clip], np.random.default_rng(0))
    assert np.isnan([gain.aligned[0], gain.shuffled[0], gain.wrong_lag[0]]).all()
    assert np.isfinite([gain.aligned[1], gain.shuffled[1], gain.wrong_lag[1]]).all()


def test_every_clip_gets_the_audio_of_another(held_out):
    for seed in range(5):
        mixed = shuffled(held_out, np.random.default_rng(seed))
        sources = [next(n for n, c in enumerate(held_out) if c.audio is m.audio) for m in mixed]
        assert sorted(sources) == list(range(20))
        assert all(source != row for row, source in enumerate(sources))
        assert all(m.video is c.video for m, c in zip(mixed, held_out, strict=True))


def test_the_whole_is_quick():
    clips = [drawn(seed, width=64) for seed in range(100)]
    begin = time.process_time()
    cca = fitted(clips, components=8)
    correlation_gain(cca, clips, np.random.default_rng(0))
    peak_lag(lag_curve(cca, clips, LAGS), LAGS)
    true_against_shifted_auc(cca, clips)
    assert time.process_time() - begin < 1  # about 0.15 s
