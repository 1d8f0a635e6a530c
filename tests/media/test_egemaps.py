"""openSMILE's features: as many as it says, at the right times, with the right pitch."""

import sys

import numpy as np
import pytest

from mmattn.errors import UserError
from mmattn.media.egemaps import EGeMAPS
from mmattn.media.survey import BadMedia

RATE = 16000
LOUDNESS, PITCH = 0, 10  # columns


@pytest.fixture
def opensmile():
    pytest.importorskip("opensmile", reason="openSMILE is not installed: extra [opensmile]")


def seconds(duration: float) -> np.ndarray:
    return np.arange(round(duration * RATE)) / RATE


def voice(times: np.ndarray, pitch: float) -> np.ndarray:
    """Sound with 19 harmonics."""
    waves = (np.sin(2 * np.pi * pitch * number * times) / number for number in range(1, 20))
    return (0.2 * sum(waves)).astype(np.float32)


@pytest.mark.usefixtures("opensmile")
@pytest.mark.parametrize(("samples", "frames"), [(960, 2), (1119, 2), (1120, 3), (20000, 121)])
def test_frames_are_counted_as_by_the_formula(samples, frames):
    stream = EGeMAPS().start()(np.zeros(samples, np.float32), RATE)
    assert stream.frames.shape == (frames, 25)
    assert stream.frames.dtype == np.float32 and np.isfinite(stream.frames).all()
    np.testing.assert_allclose(stream.times, 0.01 + 0.01 * np.arange(frames), atol=1e-9)


@pytest.mark.usefixtures("opensmile")
@pytest.mark.parametrize("pitch", [110, 220, 440])
def test_the_pitch_of_a_tone_is_in_semitones_above_27_5_hz(pitch):
    tone = 0.3 * np.sin(2 * np.pi * pitch * seconds(1)).astype(np.float32)
    found = EGeMAPS().start()(tone, RATE).frames[10:-10, PITCH]
    np.testing.assert_allclose(found, 12 * np.log2(pitch / 27.5), atol=0.1)


@pytest.mark.usefixtures("opensmile")
@pytest.mark.parametrize("onset", [0.5, 0.743])
@pytest.mark.parametrize(("column", "window"), [(LOUDNESS, 0.02), (PITCH, 0.06)])
def test_an_onset_is_found_when_it_is_heard(onset, column, window):
    times = seconds(1.5)
    stream = EGeMAPS().start()(np.where(times < onset, 0, voice(times, 150)), RATE)
    values = stream.frames[:, column]
    found = stream.times[np.argmax(values > values.max() / 2)]
    assert abs(found - onset) <= 0.01 + window / 2


@pytest.mark.usefixtures("opensmile")
def test_loud_audio_does_not_wrap():
    square = np.sign(voice(seconds(0.5), 200))
    features = EGeMAPS().start()
    quieter = features(0.999 * square, RATE).frames
    np.testing.assert_allclose(features(square, RATE).frames, quieter, rtol=0.02, atol=0.05)
    np.testing.assert_allclose(features(1.5 * square, RATE).frames, quieter, rtol=0.02, atol=0.05)


@pytest.mark.usefixtures("opensmile")
def test_the_audio_that_is_given_stays_and_gives_the_same_again():
    audio = voice(seconds(0.5), 150)
    before = audio.copy()
    first = EGeMAPS().start()(audio, RATE)
    np.testing.assert_array_equal(audio, before)
    np.testing.assert_array_equal(EGeMAPS().start()(audio, RATE).frames, first.frames)


@pytest.mark.parametrize("samples", [0, 959])
def test_audio_shorter_than_a_window_says_so(samples):
    with pytest.raises(BadMedia, match=rf"lasts {samples / 16:.1f} ms; expected 60 ms"):
        EGeMAPS().start()(np.zeros(samples, np.float32), RATE)


def test_without_opensmile_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opensmile", None)
    with pytest.raises(UserError, match=r"openSMILE.*pip install 'mmattn\[opensmile\]'"):
        EGeMAPS().start()(np.zeros(RATE, np.float32), RATE)
