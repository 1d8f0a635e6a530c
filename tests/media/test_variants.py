"""Augmented copies of audio: what is heard, and when."""

import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.io import wavfile

from mmattn.config import ExtractConfig
from mmattn.data.feature_file import read_features
from mmattn.errors import UserError
from mmattn.media.audio import loudness
from mmattn.media.extract import extract_clip, extractor_of, write_features
from mmattn.media.parallel import extract_clips
from mmattn.media.variants import Variant, variants_of

RATE = 16000
SECONDS = np.arange(3 * RATE) / RATE
TONE = (0.3 * np.sin(2 * np.pi * 440 * SECONDS)).astype(np.float32)
CLICK = 1.0  # seconds
JITTER = 0.03  # seconds by which FFmpeg's atempo moves what it cuts together


def pitch(samples: np.ndarray) -> float:
    """The loudest frequency (Hz)."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return spectrum.argmax() * RATE / len(samples)


@pytest.mark.parametrize(
    ("kind", "value", "times_as_long", "hertz"),
    [
        ("tempo", 0.9, 1 / 0.9, 440),
        ("tempo", 1.1, 1 / 1.1, 440),
        ("pitch", 12, 1, 880),
        ("pitch", -2, 1, 440 * 2 ** (-2 / 12)),
        ("speed", 0.9, 1 / 0.9, 440 * 0.9),
        ("noise", 20, 1, 440),
    ],
)
def test_tempo_and_pitch_of_a_tone(kind, value, times_as_long, hertz):
    changed = Variant(kind, value).of(TONE, RATE)
    assert changed.dtype == np.float32
    assert len(changed) == round(len(TONE) * times_as_long)
    assert pitch(changed) == pytest.approx(hertz, rel=2e-3)
    end = changed[-RATE // 50 :]  # the tone goes on to the end
    assert np.sqrt(np.mean(end**2)) > 0.05


@pytest.mark.parametrize("ratio", [-5.0, 20.0])
def test_noise_has_the_level_asked_for(ratio):
    noise = Variant("noise", ratio).of(TONE, RATE) - TONE
    assert 10 * np.log10(np.mean(TONE**2) / np.mean(noise**2)) == pytest.approx(ratio, abs=0.05)


def test_the_same_samples_give_the_same_noise_and_others_another():
    noisy = Variant("noise", 20.0)
    first = noisy.of(TONE, RATE) - TONE
    np.testing.assert_array_equal(noisy.of(TONE.copy(), RATE) - TONE, first)
    other = noisy.of(-TONE, RATE) + TONE
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.05
    np.testing.assert_array_equal(noisy.of(0 * TONE, RATE), 0 * TONE)  # silence has no level


@pytest.fixture(scope="module")
def click(tmp_path_factory):
    """A file of audio alone, quiet but for a click."""
    samples = np.random.default_rng(0).normal(0, 1e-3, len(SECONDS))
    samples[int(CLICK * RATE) :][:160] += 0.5 * np.sin(np.arange(160))
    path = tmp_path_factory.mktemp("click") / "click.wav"
    wavfile.write(path, RATE, np.rint(samples * 32767).astype(np.int16))
    return path


PLAIN = ExtractConfig(audio={"audio": "log-mel"}, video={})
CONFIG = replace(
    PLAIN,
    augment_audio={"tempo": (0.8, 1.25), "pitch": (-2.0,), "speed": (0.9,), "noise": (30.0,)},
)


def test_copies_keep_the_seconds_of_the_clip(click, tmp_path):
    write_features(tmp_path / "click.npz", extract_clip(click, CONFIG))
    streams, extractor = read_features(tmp_path / "click.npz")
    made = ("tempo_0_8", "tempo_1_25", "pitch_minus_2", "speed_0_9", "noise_30")
    assert streams.keys() == {"audio", *(f"audio__{name}" for name in made)}
    assert extractor == extractor_of(CONFIG)
    for name, stream in streams.items():
        loudest = stream.times[loudness(stream.frames).argmax()]
        assert loudest == pytest.approx(CLICK, abs=JITTER + 0.0125)
        assert stream.times[-1] == pytest.approx(3, abs=0.04)
        tempo = {"audio__tempo_0_8": 0.8, "audio__tempo_1_25": 1.25, "audio__speed_0_9": 0.9}
        assert np.diff(stream.times) == pytest.approx(0.02 * tempo.get(name, 1.0))
        plain, settings = (extractor[one]["settings"] for one in ("audio", name))
        assert {**settings, "augment": None} == {**plain, "augment": None}
    assert extractor["audio__pitch_minus_2"]["settings"]["augment"] == ["pitch", -2.0]


def test_the_original_stays_as_it_is_without_copies(click):
    plain = extract_clip(click, PLAIN).streams
    np.testing.assert_array_equal(
        plain["audio"].frames, extract_clip(click, CONFIG).streams["audio"].frames
    )


def test_files_without_the_copies_are_not_done(click, tmp_path):
    """They are not passed over as if they had them."""
    write_features(tmp_path / "click.npz", extract_clip(click, PLAIN))
    with pytest.raises(UserError, match="holds other features than requested"):
        extract_clips([click], tmp_path, CONFIG, 1)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"tempo": (1.0, 0.0)}, "--augment-audio tempo=0: expected 0.5 to 2 times"),
        ({"pitch": (13.0,)}, "--augment-audio pitch=13: expected -12 to 12 semitones"),
        ({"noise": (float("nan"),)}, "--augment-audio noise=nan: expected -20 to 100 dB"),
        ({"echo": (1.0,)}, "--augment-audio echo: expected some of tempo, pitch, speed, noise"),
    ],
)
def test_what_cannot_be_made_is_named(asked, message):
    with pytest.raises(UserError, match=re.escape(message)):
        variants_of(asked)


def test_a_copy_asked_for_twice_is_made_once():
    assert variants_of({"tempo": (0.9, 1.1, 0.9)}) == [Variant("tempo", 0.9), Variant("tempo", 1.1)]


def test_copies_of_no_audio(click, tmp_path):
    config = ExtractConfig(audio={}, augment_audio={"noise": (20.0,)})
    with pytest.raises(UserError, match="--audio none: expected audio features, which --augm"):
        extract_clips([click], tmp_path, config, 1)
