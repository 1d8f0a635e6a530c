"""On macOS and plain Linux: the same results without the names that only Linux or glibc has."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from mmattn.data.feature_file import read_features

IMPORT_ALL = """
import importlib, pkgutil
import tests.plain, experiments, mmattn

for package in (mmattn, experiments):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if module.name.endswith(".__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # of an extra that is not installed
            assert not error.name.startswith(("mmattn", "experiments")), error
"""


def test_every_module_can_be_imported():
    subprocess.run([sys.executable, "-c", IMPORT_ALL], check=True)


def write_clips(folder: Path) -> list[Path]:
    """Feature files of 12 actors, each with 8 emotions."""
    folder.mkdir()
    paths = []
    for actor, emotion in product(range(1, 13), range(1, 9)):
        rng = np.random.default_rng([actor, emotion])
        paths.append(folder / f"01-01-0{emotion}-01-01-01-{actor:02d}.npz")
        np.savez(
            paths[-1],
            audio_features=emotion + rng.normal(size=(30 + actor, 5)),
            audio_timestamps=np.arange(30 + actor) / 20,
            video_features=rng.normal(size=(22, 4)),
            video_timestamps=np.arange(22) / 15,
        )
    return paths


@pytest.fixture(scope="module")
def runs(commands, tmp_path_factory) -> dict[str, Path]:
    """The same run as usual and on a plain system, each with its evaluation and predictions."""
    folder = tmp_path_factory.mktemp("portable")
    clips = write_clips(folder / "clips")
    found = {}
    for name, words in (("usual", []), ("plain", ["tests.plain"])):
        found[name] = folder / name
        commands.run(
            *(*words, "experiments.no_aug", "--out", folder / name),
            *("--data.roots", folder / "clips", "--data.cache", folder / f"cache-{name}"),
            *("--data.labels", "ravdess8", "--devices", 2, "--train.batch", 8),
            *("--train.epochs", 3, "--train.patience", 3, "--train.steps-per-dispatch", 2),
            *(
                "--model.units",
                "audio=8",
                "video=8",
                "--model.head-units",
                8,
                "--model.head-dropout",
                0.3,
            ),
        )
        summary = (folder / name / "summary.json").read_bytes()
        commands.run(*words, "mmattn", "evaluate", folder / name)
        assert (folder / name / "summary.json").read_bytes() == summary
        said = commands.run(*words, "mmattn", "predict", folder / name, *clips[:3], "--json")
        (folder / name / "said.json").write_text(said)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("file", ["predictions.csv", "split.json", "config.json"])
def test_a_run_is_the_same(runs, file):
    found, expected = (
        (runs[name] / file).read_text().replace(f"cache-{name}", "") for name in ("plain", "usual")
    )
    assert found == expected


@pytest.mark.slow
def test_epochs_and_predictions_are_the_same(runs):
    def epochs(name: str) -> list[dict]:
        rows = map(json.loads, (runs[name] / "metrics.jsonl").read_text().splitlines())
        speed = ("seconds", "clips_per_s")
        return [{key: row[key] for key in row if key not in speed} for row in rows]

    def predictions(name: str) -> list[dict]:
        return json.loads((runs[name] / "said.json").read_text())["predictions"]

    assert epochs("plain") == epochs("usual") and len(epochs("plain")) == 3
    assert predictions("plain") == predictions("usual") and len(predictions("plain")) == 3


@pytest.mark.slow
def test_sound_is_extracted_the_same(commands, tmp_path):
    pytest.importorskip("av")
    (tmp_path / "clips").mkdir()
    for number in (1, 2):
        samples = np.random.default_rng(number).normal(0, 3000, 16_000).astype(np.int16)
        wavfile.write(tmp_path / "clips" / f"03-01-0{number}-01-01-01-01.wav", 16_000, samples)
    for name, words in (("usual", []), ("plain", ["tests.plain"])):
        options = ("--to", tmp_path / name, "--audio", "log-mel", "--video", "none", "--workers", 2)
        text = commands.run(*words, "mmattn", "extract", tmp_path / "clips", *options)
        assert "2 clips of 2 s" in text
    for path in (tmp_path / "usual").iterdir():
        expected, _ = read_features(path)
        found, _ = read_features(tmp_path / "plain" / path.name)
        np.testing.assert_array_equal(found["audio"].frames, expected["audio"].frames)
