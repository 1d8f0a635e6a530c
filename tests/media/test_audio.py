import numpy as np
import pytest

from mmattn.media.audio import FLOOR, LogMel, loudness, mel_filters
from mmattn.media.survey import BadMedia

RATE = 16000


def tone(frequency: float, seconds: float = 0.5, amplitude: float = 0.5) -> np.ndarray:
    times = np.arange(round(seconds * RATE)) / RATE
    return (amplitude * np.sin(2 * np.pi * frequency * times)).astype(np.float32)


def test_times_are_the_middles_of_the_windows():
    stream = LogMel()(tone(440, 0.1), RATE)
    np.testing.assert_allclose(stream.times, [0.0125, 0.0325, 0.0525, 0.0725])
    assert stream.frames.shape == (4, 64) and stream.frames.dtype == np.float32


@pytest.mark.parametrize("frequency", [200, 440, 1000, 3000, 7000])
def test_a_tone_is_loudest_in_the_band_whose_middle_is_nearest_in_mel(frequency):
    frames = LogMel()(tone(frequency), RATE).frames
    ends = 2595 * np.log10(1 + np.array([20, 8000]) / 700)
    middles = np.linspace(*ends, 66)[1:-1]
    nearest = np.abs(middles - 2595 * np.log10(1 + frequency / 700)).argmin()
    assert (np.abs(frames.argmax(axis=1) - nearest) <= 1).all()


def test_twice_the_amplitude_adds_the_logarithm_of_four():
    quiet, loud = (LogMel()(tone(1000, amplitude=a), RATE).frames for a in (0.25, 0.5))
    band = loud[0].argmax()
    np.testing.assert_allclose(loud[:, band] - quiet[:, band], np.log(4), atol=1e-3)
    np.testing.assert_allclose(loudness(loud) / loudness(quiet), 2, rtol=1e-3)


def test_an_onset_is_in_the_windows_that_hold_it():
    samples = np.concatenate([np.zeros(8000, np.float32), tone(500)])
    stream = LogMel()(samples, RATE)
    heard = loudness(stream.frames) > 0.01
    assert stream.times[heard][0] == pytest.approx(0.5, abs=0.0125)
    assert (stream.frames[0] == np.float32(np.log(FLOOR))).all()


def test_filters_are_triangles_that_add_up_to_one_between_the_outer_middles():
    filters = mel_filters(10, 100.0, 4000.0, 4096, RATE)
    assert filters.shape == (10, 2049)
    middles = np.fft.rfftfreq(4096, 1 / RATE)[filters.argmax(axis=1)]
    inside = (np.fft.rfftfreq(4096, 1 / RATE) > middles[0] + 4) & (
        np.fft.rfftfreq(4096, 1 / RATE) < middles[-1] - 4
    )
    np.testing.assert_allclose(filters[:, inside].sum(axis=0), 1)
    assert (filters.max(axis=1) > 0.95).all()


def test_audio_shorter_than_a_window_is_refused():
    with pytest.raises(BadMedia, match=r"lasts 10\.0 ms; expected 25 ms"):
        LogMel()(tone(440, 0.01), RATE)
