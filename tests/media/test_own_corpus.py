"""The README's way from clips to a prediction, by its commands: own class folders and emotions."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mmattn.data.feature_file import read_features
from mmattn.media.models import WHISPER

KINDS = {"audio": "whisper", "video": "expression"}  # the features by default
EMOTIONS = ("awe", "bored", "contempt", "pride", "relief", "shame")
SMALL = (
    *("--model.head-units", "16", "--model.head-dropout", "0.3", "--train.epochs", "2"),
    *("--train.batch", "8", "--data.buckets", "1", "--devices", "1"),
)
UNITS = ("--model.units", "audio=8", "video=8")


@pytest.fixture(scope="module")
def corpus(commands, talking, all_models, tmp_path_factory) -> Path:
    """The features, with their table, of 60 clips of 6 speakers in a folder a class."""
    base = tmp_path_factory.mktemp("own")
    for take in range(60):
        emotion, speaker = EMOTIONS[take // 10], take % 6
        source, _ = talking("two.mp4", seconds=1 + 0.1 * speaker, scale=0.85 + 0.05 * speaker)
        place = base / "clips" / emotion / f"{'abcdef'[speaker]}_{take:02d}.mp4"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place)
    clips, features = base / "clips", base / "features"
    said = commands.run("mmattn", "download", "models")
    assert "Face Mesh" in said and "Whisper" in said and "Fetching" not in said
    said = commands.run("mmattn", "manifest", clips, "--pattern", "{emotion}/{speaker}_{take}")
    assert "60 clips, 6 speakers" in said and f"mmattn extract {clips}/manifest.csv" in said
    said = commands.run("mmattn", "extract", clips / "manifest.csv", "--to", features)
    assert f"--data.roots {features}" in said
    return features


def train(commands, out: Path, *options: object) -> dict:
    """The summary of a run."""
    cache = out.parent / "cache"
    commands.run("experiments.no_aug", *SMALL, *options, "--data.cache", cache, "--out", out)
    return json.loads((out / "summary.json").read_text())


@pytest.mark.slow
def test_from_class_folders_to_a_prediction(commands, corpus, talking, tmp_path):
    run = tmp_path / "run"
    summary = train(commands, run, "--data.roots", corpus, *UNITS)
    assert summary["data"].startswith("60 clips of 6 speakers")
    clip, _ = talking("talking.mp4")
    page = tmp_path / "page.html"
    found = commands.run("mmattn", "predict", run, clip, "--json", "--html", page)
    (found,) = json.loads(found)["predictions"]
    assert tuple(found["probabilities"]) == EMOTIONS and found["attention"].keys() == {*KINDS}
    assert page.read_text().count("data:image/jpeg;base64,") >= 3
    _, extractor = read_features(next(corpus.rglob("*.npz")))
    assert {kind: extractor[kind]["name"] for kind in extractor} == KINDS


@pytest.mark.slow
def test_four_of_six_classes_one_of_them_merged(commands, corpus, tmp_path):
    labels = ("bored", "low=shame,contempt", "relief", "awe")
    run = tmp_path / "run"
    summary = train(commands, run, "--data.roots", corpus, *UNITS, "--data.labels", *labels)
    assert [row["class"] for row in summary["per_class"]] == ["bored", "low", "relief", "awe"]
    assert "10 clips left out: pride" in (run / "train.log").read_text()


@pytest.mark.slow
def test_audio_alone_needs_no_video(commands, corpus, talking, all_models, tmp_path):
    alone = tmp_path / "features"
    shutil.copytree(corpus, alone)
    for path in alone.rglob("*.npz"):
        with np.load(path) as arrays:
            np.savez(path, **{name: arrays[name] for name in arrays if "video" not in name})
    run = tmp_path / "run"
    train(commands, run, "--data.roots", alone, "--model.modalities", "audio")
    clip, _ = talking("talking.mp4")
    models = tmp_path / "models"  # none of faces
    models.mkdir()
    (models / WHISPER).symlink_to(all_models / WHISPER)
    found = json.loads(commands.run("mmattn", "predict", run, clip, "--models", models, "--json"))
    assert list(found["predictions"][0]["attention"]) == ["audio"]


@pytest.mark.slow
def test_audio_and_video_from_different_files(commands, corpus, tmp_path):
    rows = list(csv.DictReader((corpus / "manifest.csv").read_text().splitlines()))
    joined = tmp_path / "joined"
    for row in rows:
        for kind in ("audio", "video"):
            place = joined / kind / row["file"]
            place.parent.mkdir(parents=True, exist_ok=True)
            with np.load(corpus / row["file"]) as arrays:
                kept = {name: arrays[name] for name in arrays if name.startswith(kind)}
                np.savez(place, extractor=arrays["extractor"], **kept)
            row[f"file.{kind}"] = f"{kind}/{row['file']}"
        row["clip"] = Path(row.pop("file")).with_suffix("").as_posix()
        row["corpus"] = "features"
    with (joined / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    apart = train(commands, tmp_path / "apart", "--data.roots", joined / "table.csv", *UNITS)
    together = train(commands, tmp_path / "together", "--data.roots", corpus, *UNITS)
    assert apart["test"] == together["test"]
    assert apart["validation"] == together["validation"]
