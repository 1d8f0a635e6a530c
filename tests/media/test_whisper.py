"""Whisper's states: its input by another way, its weights' values, any length, each at its time."""

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import brentq

from mmattn.config import ExtractConfig
from mmattn.data.stream import make_stream
from mmattn.errors import UserError
from mmattn.media.audio import in_windows
from mmattn.media.extract import extract_clip, extractor_of
from mmattn.media.models import FOLDER, SHA256, WHISPER
from mmattn.media.survey import BadMedia
from mmattn.media.whisper import Whisper, log_mel

RATE = 16000
RAVDESS = os.environ.get("MMATTN_RAVDESS")
# What encoders written in NumPy and JAX (convolutions, attention, positions from the clip's begin)
# make of the weights of model.bin and a clip of RAVDESS: values by layer, state and column.
COLUMNS = [0, 1, 100, 200, 383]
EXPECTED = {
    -1: {
        0: [-1.2937, -0.4337, -0.3048, 0.9720, -0.5413],
        60: [1.1006, 0.7412, 0.0992, 0.8722, -0.2255],
        100: [-0.9066, -0.1025, -0.3734, -0.5923, -0.2446],
        164: [1.0859, 0.5276, 0.7164, -0.1627, -0.6903],
    },
    -2: {
        0: [-2.3125, -1.1307, 0.2333, 0.5771, -0.8340],
        60: [-0.1955, -0.0580, -0.0862, 0.4944, 0.4393],
        100: [-0.8286, -0.6629, 0.4133, -0.3800, 0.3535],
        164: [0.9554, -0.3405, 1.0419, -0.5295, -0.2051],
    },
}


def voice(seconds: float) -> np.ndarray:
    """A tone that rises and falls, in noise."""
    times = np.arange(round(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * (200 * times + 30 * np.sin(5 * times)))
    noise = np.random.default_rng(0).normal(size=len(times))
    return (0.2 * tone * (1 + np.sin(9 * times)) + 0.01 * noise).astype(np.float32)


@pytest.fixture(scope="session")
def whisper(all_models) -> Whisper:
    """Whisper tiny.en."""
    return Whisper("tiny.en", all_models)


@pytest.mark.parametrize("bands", [80, 128])
def test_its_input_is_that_of_the_definition(bands):
    """Frame by frame and band by band: the Fourier sum, triangles drawn by their corners."""

    def mel(frequency: float) -> float:
        if frequency < 1000:
            return 3 * frequency / 200
        return 15 + 27 * np.log(frequency / 1000) / np.log(6.4)

    samples = voice(0.1)
    steps = np.linspace(0, mel(8000), bands + 2)
    corners = [brentq(lambda f, m=m: mel(f) - m, -1, 8001) for m in steps]
    inside = np.arange(400)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * inside / 400)
    waves = np.exp(-2j * np.pi * np.outer(np.arange(201), inside) / 400)
    expected = np.empty((bands, 10))
    for frame in range(10):
        places = np.abs(160 * frame - 200 + inside)
        places = np.where(places < 1600, places, 2 * 1599 - places)  # reflected at both ends
        power = np.abs(waves @ (window * samples[places])) ** 2
        for band in range(bands):
            left, middle, right = corners[band : band + 3]
            height = 2 / (right - left)
            weights = np.interp(40 * np.arange(201), [left, middle, right], [0, height, 0], 0, 0)
            expected[band, frame] = np.log10(max(weights @ power, 1e-10))
    expected = (np.maximum(expected, expected.max() - 8) + 4) / 4
    found = log_mel(samples, bands)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_longer_audio_is_cut_into_windows_of_equal_length():
    heard = []

    def encode(samples, rate):
        heard.append(len(samples))
        return make_stream(samples[::RATE, None], np.arange(len(samples[::RATE])) + 0.5)

    seconds = np.arange(61 * RATE, dtype=np.float32) / RATE
    stream = in_windows(encode)(seconds, RATE)
    assert max(heard) - min(heard) <= 1 and len(heard) == 3
    np.testing.assert_allclose(stream.times, stream.frames[:, 0] + 0.5, atol=1e-4)
    assert stream.valid.all() and len(stream.times) == 63


def test_a_model_that_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=f"{WHISPER}/model.bin.*mmattn download models"):
        Whisper("tiny.en", tmp_path).record()
    with pytest.raises(UserError, match=r"--whisper-model .*expected model\.bin in the folder"):
        Whisper(str(tmp_path), tmp_path).record()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"Systran/faster-whisper-small .*install huggingface_hub"):
        Whisper("small", tmp_path).record()


def test_a_name_is_fetched_from_the_hub(tmp_path, monkeypatch):
    class Hub:
        @staticmethod
        def snapshot_download(repository, allow_patterns):
            if repository != "Systran/faster-whisper-small":
                raise OSError("no network")
            (tmp_path / "model.bin").write_bytes(b"weights")
            return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    assert Whisper("small", FOLDER).record()["settings"]["whisper_model"] == "small"
    with pytest.raises(UserError, match="mine/big cannot be downloaded: no network"):
        Whisper("mine/big", FOLDER).record()


def test_the_record_tells_the_model_and_not_where_it_lies(tmp_path):
    for folder in ("a/mine", "b/mine"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "model.bin").write_bytes(b"weights")
    records = [Whisper(str(tmp_path / name / "mine"), FOLDER).record() for name in "ab"]
    digest = hashlib.sha256(b"weights").hexdigest()
    assert records[0] == records[1]
    expected = {"whisper_model": "mine", "sha256": digest, "whisper_layer": -1}
    assert records[0]["settings"] == expected


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"no model")
    with pytest.raises(UserError, match=f"--whisper-model {tmp_path}: not a Whisper model"):
        Whisper(str(tmp_path), FOLDER).start()
    (tmp_path / "model.bin").write_bytes(bytes(18))  # without variables
    with pytest.raises(UserError, match="--whisper-layer -2: expected 1 to 0"):
        Whisper(str(tmp_path), FOLDER, -2).start()


def test_without_ctranslate2_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(UserError, match=r"library ctranslate2: pip install 'mmattn\[media\]'"):
        Whisper("tiny.en", FOLDER).start()


@pytest.mark.slow
def test_the_states_of_a_clip_are_the_same_alone_and_after_others(whisper):
    features = whisper.start()
    alone = features(voice(2), RATE)
    assert alone.frames.shape == (100, 384) and alone.frames.dtype == np.float32
    np.testing.assert_allclose(alone.times, 0.01 + 0.02 * np.arange(100))
    features(voice(5)[::-1], RATE)
    np.testing.assert_array_equal(features(voice(2), RATE).frames, alone.frames)
    np.testing.assert_array_equal(whisper.start()(voice(2), RATE).frames, alone.frames)


@pytest.mark.slow
def test_a_layer_by_its_number_from_either_end(whisper):
    one, same = (Whisper("tiny.en", FOLDER, layer).start()(voice(1), RATE) for layer in (2, -3))
    np.testing.assert_array_equal(one.frames, same.frames)
    for layer in (0, 5, -5):
        words = rf"^--whisper-layer {layer}: expected 1 to 4, .* or -4"
        with pytest.raises(UserError, match=words):
            Whisper("tiny.en", FOLDER, layer).start()


@pytest.mark.slow
def test_any_length(whisper):
    features = whisper.start()
    assert len(features(voice(0.1), RATE).times) == 5
    assert len(features(voice(30), RATE).times) == 1500
    audio = voice(31)
    stream = features(audio, RATE)
    np.testing.assert_allclose(stream.times, 0.01 + 0.02 * np.arange(1550), atol=1e-9)
    halves = [features(half, RATE).frames for half in np.split(audio, 2)]
    np.testing.assert_array_equal(stream.frames, np.concatenate(halves))
    with pytest.raises(BadMedia, match=r"lasts 10\.0 ms; expected 20 ms"):
        features(voice(0.01), RATE)


@pytest.mark.slow
def test_a_state_has_the_time_of_what_it_hears(whisper):
    """A click changes the state that stands for its time more than others."""
    features = whisper.start()
    audio = voice(4)
    before = features(audio, RATE)
    for time in (0.25, 2.01, 3.57):
        clicking = audio.copy()
        clicking[round((time - 0.002) * RATE) : round((time + 0.002) * RATE)] += 0.5
        change = np.linalg.norm(features(clicking, RATE).frames - before.frames, axis=1)
        assert before.times[change.argmax()] == pytest.approx(time, abs=0.011)


@pytest.mark.slow
@pytest.mark.skipif(not RAVDESS, reason="MMATTN_RAVDESS names no folder")
@pytest.mark.parametrize("layer", EXPECTED)
def test_the_states_of_a_real_clip_are_those_of_another_implementation(whisper, layer):
    clip = Path(RAVDESS) / "ravdess_clips/Actor_01/01-01-08-01-01-02-01.mp4"
    config = ExtractConfig(audio={"audio": "whisper"}, video={}, whisper_layer=layer)
    found = extract_clip(clip, config)
    states = found.streams["audio"].frames
    assert states.shape == (165, 384)
    for row, values in EXPECTED[layer].items():
        np.testing.assert_allclose(states[row, COLUMNS], values, atol=1e-3)
    assert found.extractor["audio"] == extractor_of(config)["audio"]
    assert found.extractor["audio"]["settings"]["sha256"] == SHA256[f"{WHISPER}/model.bin"]
