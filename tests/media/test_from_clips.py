"""From clips named as RAVDESS's to predictions, with other features than those by default."""

import json
import wave

import numpy as np
import pytest

import mmattn
from tests.media.training import EMOTIONS, KINDS, SMALL

pytestmark = pytest.mark.slow


def test_a_new_clip_is_predicted(commands, clip_run, talking, tmp_path):
    _, _, folder = clip_run
    clip, _ = talking("talking.mp4")
    page = tmp_path / "page.html"
    words = commands.run("mmattn", "predict", folder, clip, "--html", page)
    assert "most at" in words and "talking.mp4: " in words
    assert page.read_text().count("data:image/jpeg;base64,") >= 3


def test_a_raw_clip_gives_what_its_feature_file_and_the_run_itself_gave(commands, clip_run):
    clips, features, folder = clip_run
    name = "Actor_01/01-01-05-01-01-01-01"
    raw, file = (
        json.loads(commands.run("mmattn", "predict", folder, path, "--json"))["predictions"][0]
        for path in (clips / f"{name}.mp4", features / f"{name}.npz")
    )
    assert raw["probabilities"] == file["probabilities"]
    assert raw["attention"] == file["attention"]
    tested = (folder / "predictions.csv").read_text().splitlines()
    header, row = tested[0].split(","), tested[1].split(",")
    path = next(clips.rglob(f"{row[0]}.mp4"))
    found = mmattn.load(folder, calibrated=False).predict(path)
    for emotion, probability in zip(found.class_names, found.probabilities, strict=True):
        (column,) = [n for n, title in enumerate(header) if title in (emotion, f"p_{emotion}")]
        assert probability == pytest.approx(float(row[column]), abs=1e-6)


def test_missing_modalities_and_bad_clips_are_said(commands, clip_run, lacking_clips, faulty_clips):
    _, _, folder = clip_run
    paths = [lacking_clips / name for name in ("mute.mp4", "faceless.mp4", "sound.wav")]
    bad = faulty_clips / "text.mp4"
    words = commands.run("mmattn", "predict", folder, *paths, bad, code=1)
    assert words.count("predicted from video only") == 1
    assert words.count("predicted from audio only") == 2
    assert "no audio or video can be read" in words and "1 of 4 clips" in words


def test_a_run_on_some_of_several_features(commands, clip_run, tmp_path):
    """Raw clips get the features that the run was trained on, as they were extracted."""
    clips, features, folder = clip_run[0], tmp_path / "features", tmp_path / "run"
    kinds = ("--audio", "egemaps", "log-mel", "--video", "face-mesh")
    commands.run("mmattn", "extract", clips, "--to", features, *kinds)
    used = ("--model.modalities", "audio_egemaps", "video", "--model.units", "audio_egemaps=8")
    options = ("--data.roots", features, "--data.cache", tmp_path / "cache", *SMALL, *used)
    commands.run("experiments.no_aug", *options, "video=8", "--out", folder)
    name, page = "Actor_01/01-01-05-01-01-01-01", tmp_path / "page.html"
    paths = (clips / f"{name}.mp4", features / f"{name}.npz")
    raw, file = json.loads(commands.run("mmattn", "predict", folder, *paths, "--json"))[
        "predictions"
    ]
    assert raw["attention"].keys() == {"audio_egemaps", "video"}
    assert raw["probabilities"] == file["probabilities"]
    commands.run("mmattn", "predict", folder, paths[0], "--html", page)
    assert page.read_text().count("data:image/jpeg;base64,") >= 3


def test_other_features_are_refused(commands, clip_run, tmp_path):
    clips, _, folder = clip_run
    other = tmp_path / "other"
    clip = next(clips.rglob("*.mp4"))
    commands.run("mmattn", "extract", clip, "--to", other, *KINDS, "--video-rate", "10")
    words = commands.run("mmattn", "predict", folder, other / f"{clip.stem}.npz", code=1)
    assert "video rate 10.0 instead of 15.0" in words.replace("\n", " ")


def test_audio_files_alone_train_a_network_of_audio_alone(commands, all_models, tmp_path):
    clips, run = tmp_path / "clips", tmp_path / "run"
    clips.mkdir()
    for actor in range(1, 7):
        for emotion in EMOTIONS:
            tone = np.sin(np.arange(11200) * (0.05 * int(emotion) + 0.003 * actor))
            with wave.open(str(clips / f"03-01-{emotion}-01-01-01-{actor:02d}.wav"), "wb") as file:
                file.setparams((1, 2, 16000, 0, "NONE", ""))
                file.writeframes((9000 * tone).astype("<i2").tobytes())
    commands.run("mmattn", "extract", clips, "--to", tmp_path / "features")
    data = ("--data.roots", tmp_path / "features", "--data.cache", tmp_path / "cache")
    audio = ("--model.modalities", "audio", "--train.epochs", "1", "--devices", "1")
    commands.run("experiments.no_aug", *data, *audio, "--out", run)
    assert (run / "predictions.csv").exists()
