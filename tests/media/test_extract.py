import json
from dataclasses import replace

import numpy as np
import pytest
import tyro

from mmattn.config import ExtractConfig
from mmattn.data.feature_file import read_features
from mmattn.errors import UserError
from mmattn.media.align import movement
from mmattn.media.audio import LogMel
from mmattn.media.audio import loudness as loudness_of
from mmattn.media.extract import (
    EXTRACTORS,
    config_like,
    extract_clip,
    extractor_of,
    write_features,
)
from mmattn.media.survey import BadMedia
from tests.media.talking import write_clip


@pytest.fixture(scope="module")
def config(config) -> ExtractConfig:
    return replace(config, video_rate=30)


def opening_and_loudness(found) -> tuple[np.ndarray, np.ndarray]:
    """Of each frame."""
    opening, audio = movement(found.streams, found.extractor)
    return opening.frames[:, 0], np.interp(opening.times, audio.times, audio.frames[:, 0])


@pytest.mark.parametrize("name", ["talking.mp4", "talking.flv"])
def test_mouth_opening_follows_the_loudness(talking, config, name):
    path, truth = talking(name)
    found = extract_clip(path, config)
    opening, loudness = opening_and_loudness(found)
    assert np.corrcoef(opening, loudness)[0, 1] >= 0.85
    assert np.corrcoef(opening, truth.opening[: len(opening)])[0, 1] >= 0.9
    assert found.notes == ()
    assert found.streams["video"].frames.any(axis=1).all()
    assert found.seconds == pytest.approx(3.9, abs=0.1)


@pytest.mark.slow
def test_a_late_start_of_the_video_is_no_shift(talking, config):
    path, _ = talking("late.flv", start_offset=0.2)
    opening, loudness = opening_and_loudness(extract_clip(path, config))
    assert np.corrcoef(opening, loudness)[0, 1] >= 0.85


@pytest.mark.slow
def test_the_larger_of_two_faces_is_followed(talking, config):
    path, truth = talking("two.mp4", faces=2, size=(640, 320))
    opening, _ = opening_and_loudness(extract_clip(path, config))
    assert np.corrcoef(opening, truth.opening[: len(opening)])[0, 1] >= 0.9


def test_the_same_clip_gives_the_same_numbers(talking, config, tmp_path):
    path, _ = talking("short.mp4", seconds=1.0)
    for name in ("one.npz", "two.npz"):
        write_features(tmp_path / name, extract_clip(path, config))
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_a_feature_file_says_what_made_it(talking, config, tmp_path):
    path, _ = talking("short.mp4", seconds=1.0)
    found = extract_clip(path, config)
    write_features(tmp_path / "clip.npz", found)
    streams, extractor = read_features(tmp_path / "clip.npz")
    assert extractor == found.extractor == extractor_of(config)
    assert extractor["audio"]["name"] == "log-mel"
    assert extractor["audio"]["settings"]["hop"] == 0.02
    assert extractor["video"]["settings"]["rate"] == 30
    assert found.done == {
        "audio": ["44100 to 16000 Hz"],
        "video": ["30 frames, at most 30 fps"],
    }
    for name in ("audio", "video"):
        np.testing.assert_array_equal(streams[name].frames, found.streams[name].frames)
        np.testing.assert_array_equal(streams[name].times, found.streams[name].times)
    with np.load(tmp_path / "clip.npz", allow_pickle=False) as archive:
        assert json.loads(str(archive["extractor"])) == extractor
        assert json.loads(str(archive["decoding"])) == {**found.done, "notes": []}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "missing", "note"),
    [
        ("sound.mp4", "video", "it has no video frames"),
        ("sound.wav", "video", "it has no video frames"),
        ("faceless.mp4", "video", "no face is seen in its"),
        ("mute.mp4", "audio", "it has no audio track"),
        ("silent.mp4", "audio", "it has a silent audio track"),
    ],
)
def test_a_modality_that_is_missing_is_missing(lacking_clips, config, name, missing, note):
    found = extract_clip(lacking_clips / name, config)
    assert (
        list(found.streams)
        == list(found.extractor)
        == [{"audio": "video", "video": "audio"}[missing]]
    )
    assert len(found.notes) == 1 and found.notes[0].startswith(note)


@pytest.mark.slow
def test_one_modality_alone_is_that_of_both(talking, config, tmp_path):
    path, _ = talking("talking.mp4")
    both = extract_clip(path, config)
    for name, other in (("audio", "video"), ("video", "audio")):
        alone = extract_clip(path, replace(config, **{other: {}}))
        assert list(alone.streams) == [name] and alone.notes == ()
        for one, same in zip(alone.streams[name], both.streams[name], strict=True):
            np.testing.assert_array_equal(one, same)
        assert alone.extractor[name] == both.extractor[name]
        assert alone.extractor[other]["name"] == "none"
        assert alone.seconds == pytest.approx(both.seconds, abs=0.1)


def test_audio_alone_needs_no_face_models(talking, lacking_clips, config, tmp_path):
    config = replace(config, models=tmp_path, video={})
    path, _ = talking("short.mp4", seconds=1.0)
    assert list(extract_clip(path, config).streams) == ["audio"]
    with pytest.raises(BadMedia, match=r"no features can be extracted: it has no audio track$"):
        extract_clip(lacking_clips / "mute.mp4", config)


def test_what_is_not_extracted_counts_for_the_length(spoken, faulty_clips, config, tmp_path):
    """Two seconds of audio and four of video are no clip that is cut short."""
    config = replace(config, video={})
    samples, rate = spoken
    pictures = [np.zeros((64, 64, 3), np.uint8)] * 40
    for suffix in (".mp4", ".flv"):
        path = tmp_path / f"short-sound{suffix}"
        write_clip(path, pictures, np.arange(40) / 10, 10, (samples[: 2 * rate], rate, 0))
        found = extract_clip(path, config)
        assert found.streams["audio"].times[-1] == pytest.approx(2, abs=0.1)
        assert found.seconds == pytest.approx(3.95, abs=0.1)
    with pytest.raises(BadMedia, match="cut short: its header says 1"):
        extract_clip(faulty_clips / "cut.flv", config)


@pytest.mark.slow
def test_audio_comes_from_the_same_take(ravdess_clips, config):
    silent = extract_clip(ravdess_clips / "02-01-05-01-02-01-12.mp4", config)
    assert silent.notes == (
        "it has a silent audio track; the audio is from 03-01-05-01-02-01-12.wav",
    )
    whole = extract_clip(ravdess_clips / "01-01-05-01-02-01-12.mp4", config)
    opening, loudness = opening_and_loudness(silent)
    assert np.corrcoef(opening, loudness)[0, 1] >= 0.85
    audios = [one.streams["audio"] for one in (silent, whole)]
    count = min(len(audio.times) for audio in audios)
    heard = (loudness_of(audio.frames[:count]) for audio in audios)
    assert np.corrcoef(*heard)[0, 1] > 0.99
    # The file of audio alone starts with the first frame.
    first = silent.streams["video"].times[0]
    assert audios[0].times[0] == pytest.approx(first + 0.0125, abs=1e-6)
    alone = extract_clip(ravdess_clips / "02-01-06-01-02-01-12.mp4", config)
    assert "audio" not in alone.streams and alone.notes == ("it has a silent audio track",)


def test_bad_clips_say_why(faulty_clips, config):
    for name, words in (
        ("empty.mp4", "the file is empty"),
        ("text.mp4", "no audio or video can be read"),
        ("cut.mp4", "no audio or video can be read"),
        ("cut.flv", r"cut short: its header says 1\.\d s, it ends at 0\.\d s"),
        ("two-hours.flv", r"cut short: its header says 7200.0 s, it ends at 1\.\d s"),
    ):
        with pytest.raises(BadMedia, match=words):
            extract_clip(faulty_clips / name, config)
    assert extract_clip(faulty_clips / "two-hours.mp4", config).seconds < 1.2


def test_a_model_file_that_is_missing_is_named(talking, tmp_path):
    path, _ = talking("short.mp4", seconds=1.0)
    for kinds in ({"audio": {}}, {"video": {}}):
        with pytest.raises(UserError, match="fetch it with: mmattn download models"):
            extract_clip(path, ExtractConfig(models=tmp_path, **kinds))


def test_a_record_gives_the_config_back(config):
    assert config_like(extractor_of(config), ExtractConfig(models=config.models)) == config
    dlib = ExtractConfig(
        video={"video": "dlib"}, audio={"audio": "egemaps"}, video_rate=10.0, face="largest"
    )
    assert config_like(extractor_of(dlib), ExtractConfig()) == dlib
    audio = {"audio": extractor_of(dlib)["audio"]}
    alone = ExtractConfig(audio={"audio": "egemaps"}, video={})
    assert config_like(audio, ExtractConfig()) == alone


def test_several_extractors_give_each_its_own_stream(talking, config, monkeypatch):
    """As they are alone, and at their own times; a face that one does not see is missing there."""

    class Fine(LogMel):
        def record(self):
            return {**super().record(), "name": "fine"}

    class Sometimes:
        def record(self):
            return {"name": "sometimes", "version": 1, "settings": {}}

        def start(self):
            seen = iter(range(1000))
            return lambda frame, face: np.ones(3, np.float32) if next(seen) % 2 else None

    monkeypatch.setitem(EXTRACTORS["video"], "sometimes", lambda config: Sometimes())
    monkeypatch.setitem(EXTRACTORS["audio"], "fine", lambda config: Fine(hop=0.005))
    path, _ = talking("short.mp4", seconds=1.0)
    words = ["--audio", "log-mel", "fine", "--video", "face-mesh", "sometimes"]
    asked = replace(
        config,
        **{name: getattr(tyro.cli(ExtractConfig, args=words), name) for name in ("audio", "video")},
    )
    found, alone = extract_clip(path, asked), extract_clip(path, config)
    names = {*("audio_log_mel", "audio_fine", "video_face_mesh", "video_sometimes")}
    assert found.streams.keys() == found.extractor.keys() == names
    for name, other in (("audio_log_mel", "audio"), ("video_face_mesh", "video")):
        for one, same in zip(found.streams[name], alone.streams[other], strict=True):
            np.testing.assert_array_equal(one, same)
        assert found.extractor[name] == alone.extractor[other]
    assert len(found.streams["audio_fine"].times) > 3 * len(found.streams["audio_log_mel"].times)
    assert found.streams["video_sometimes"].valid.tolist()[:4] == [False, True] * 2
    assert config_like(found.extractor, config) == asked
    assert movement(found.streams, found.extractor).opening.frames.all()
    one = {"audio_log_mel": found.extractor["audio_log_mel"]}
    like = config_like(one, config)
    assert extract_clip(path, like).streams.keys() == one.keys()


def test_the_options_of_a_record_are_asked_for_again(monkeypatch):
    """But those that are given go before."""

    class Named:
        def __init__(self, model):
            self.model = model

        def record(self):
            return {"name": "whisper", "version": 1, "settings": {"whisper_model": self.model}}

    monkeypatch.setitem(EXTRACTORS["audio"], "whisper", lambda config: Named(config.whisper_model))
    record = {"audio": Named("small").record()}
    assert config_like(record, ExtractConfig()).whisper_model == "small"
    with pytest.raises(UserError, match='whisper_model "mine" instead of "small"'):
        config_like(record, ExtractConfig(whisper_model="mine"))


@pytest.mark.parametrize("words", [["mfcc"], ["none", "log-mel"]])
def test_an_extractor_that_is_not_there_is_named(words):
    config = tyro.cli(ExtractConfig, args=["--audio", *words])
    with pytest.raises(UserError, match=f"--audio {' '.join(words)}: expected none, or some of"):
        extractor_of(config)


def test_names_of_extractors_on_the_command_line():
    config = tyro.cli(ExtractConfig, args=["--audio", "egemaps", "--video", "none"])
    assert config == ExtractConfig(audio={"audio": "egemaps"}, video={})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "openface"}, "video features of 'openface' cannot be extracted"),
        ({"version": 9}, "video: face-mesh version 2 instead of face-mesh version 9; expected fea"),
        ({"settings": {"rate": 30.0, "features": []}}, "video features"),
    ],
    ids=str,
)
def test_features_of_another_version_cannot_be_made(config, change, words):
    extractor = extractor_of(config)
    asked = {**extractor, "video": {**extractor["video"], **change}}
    with pytest.raises(UserError, match=words):
        config_like(asked, config)


def test_another_modality_cannot_be_made(config):
    asked = {"text": {"name": "bert", "version": 1, "settings": {}}}
    with pytest.raises(
        UserError, match="text features of 'bert' cannot be extracted; expected fea"
    ):
        config_like(asked, config)
