import json

import numpy as np
import pytest

from mmattn.config import ExtractConfig
from mmattn.data.clips import read_streams
from mmattn.errors import UserError
from mmattn.media.align import movement
from mmattn.media.audio import loudness as loudness_of
from mmattn.media.decode import BadMedia
from mmattn.media.extract import config_like, extract_clip, extractor_of, write_features


@pytest.fixture(scope="module")
def config(face_models) -> ExtractConfig:
    return ExtractConfig(models=face_models, video_rate=30)


def opening_and_loudness(found) -> tuple[np.ndarray, np.ndarray]:
    """Of each picture."""
    opening, sound = movement({"audio": found.audio, "video": found.video}, found.extractor)
    return opening.frames[:, 0], np.interp(opening.times, sound.times, sound.frames[:, 0])


@pytest.mark.parametrize("name", ["talking.mp4", "talking.flv"])
def test_mouth_opening_follows_the_loudness(talking, config, name):
    path, truth = talking(name)
    found = extract_clip(path, config)
    opening, loudness = opening_and_loudness(found)
    assert np.corrcoef(opening, loudness)[0, 1] >= 0.85
    assert np.corrcoef(opening, truth.opening[: len(opening)])[0, 1] >= 0.9
    assert found.notes == ()
    assert found.video.frames.any(axis=1).all()
    assert found.seconds == pytest.approx(3.9, abs=0.1)


def test_a_late_start_of_the_video_is_no_shift(talking, config):
    path, _ = talking("late.flv", start_offset=0.2)
    opening, loudness = opening_and_loudness(extract_clip(path, config))
    assert np.corrcoef(opening, loudness)[0, 1] >= 0.85


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
    streams, extractor = read_streams(tmp_path / "clip.npz")
    assert extractor == found.extractor == extractor_of(config)
    assert extractor["audio"]["name"] == "log-mel"
    assert extractor["audio"]["settings"]["hop"] == 0.02
    assert extractor["video"]["settings"]["rate"] == 30
    for name in ("audio", "video"):
        np.testing.assert_array_equal(streams[name].frames, getattr(found, name).frames)
        np.testing.assert_array_equal(streams[name].times, getattr(found, name).times)
    with np.load(tmp_path / "clip.npz", allow_pickle=False) as archive:
        assert json.loads(str(archive["extractor"])) == extractor


@pytest.mark.parametrize(
    ("name", "missing", "note"),
    [
        ("sound.mp4", "video", "it has no pictures"),
        ("sound.wav", "video", "it has no pictures"),
        ("faceless.mp4", "video", "no face is seen in its"),
        ("mute.mp4", "audio", "it has no sound track"),
        ("silent.mp4", "audio", "it has a silent sound track"),
    ],
)
def test_a_modality_that_is_missing_is_missing(lacking_clips, config, name, missing, note):
    found = extract_clip(lacking_clips / name, config)
    assert getattr(found, missing) is None and missing not in found.extractor
    assert len(found.extractor) == 1
    assert len(found.notes) == 1 and found.notes[0].startswith(note)


def test_sound_comes_from_the_same_take(ravdess_clips, config):
    silent = extract_clip(ravdess_clips / "02-01-05-01-02-01-12.mp4", config)
    assert silent.notes == (
        "it has a silent sound track; the sound is from 03-01-05-01-02-01-12.wav",
    )
    whole = extract_clip(ravdess_clips / "01-01-05-01-02-01-12.mp4", config)
    opening, loudness = opening_and_loudness(silent)
    assert np.corrcoef(opening, loudness)[0, 1] >= 0.85
    count = min(len(silent.audio.times), len(whole.audio.times))
    heard = (loudness_of(one.audio.frames[:count]) for one in (silent, whole))
    assert np.corrcoef(*heard)[0, 1] > 0.99
    # The file of sound alone starts with the first picture.
    assert silent.audio.times[0] == pytest.approx(silent.video.times[0] + 0.0125, abs=1e-6)
    alone = extract_clip(ravdess_clips / "02-01-06-01-02-01-12.mp4", config)
    assert alone.audio is None and alone.notes == ("it has a silent sound track",)


def test_bad_clips_say_why(faulty_clips, config):
    for name, words in (
        ("empty.mp4", "the file is empty"),
        ("text.mp4", "no sound or picture can be read"),
        ("cut.mp4", "no sound or picture can be read"),
        ("cut.flv", r"cut short: its header says 1\.\d s, it ends at 0\.\d s"),
        ("two-hours.flv", r"cut short: its header says 7200.0 s, it ends at 1\.\d s"),
    ):
        with pytest.raises(BadMedia, match=words):
            extract_clip(faulty_clips / name, config)
    assert extract_clip(faulty_clips / "two-hours.mp4", config).seconds < 1.2


def test_a_model_file_that_is_missing_is_named(talking, tmp_path):
    path, _ = talking("short.mp4", seconds=1.0)
    with pytest.raises(UserError, match="mmattn download face-models"):
        extract_clip(path, ExtractConfig(models=tmp_path))


def test_a_record_gives_the_config_back(config):
    assert config_like(extractor_of(config), ExtractConfig(models=config.models)) == config
    dlib = ExtractConfig(video="dlib", audio="egemaps", video_rate=10.0)
    assert config_like(extractor_of(dlib), ExtractConfig()) == dlib
    audio = {"audio": extractor_of(dlib)["audio"]}
    assert config_like(audio, ExtractConfig()) == ExtractConfig(audio="egemaps")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "openface"}, "video features by 'openface' are not made here"),
        ({"version": 9}, "video: face-mesh version 1 instead of 9"),
        ({"settings": {"rate": 30.0, "features": []}}, "video features"),
    ],
    ids=str,
)
def test_features_of_another_version_cannot_be_made(config, change, words):
    extractor = extractor_of(config)
    asked = {**extractor, "video": {**extractor["video"], **change}}
    with pytest.raises(UserError, match=words):
        config_like(asked, config)
