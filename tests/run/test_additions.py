"""What a user adds in one place each: a modality, a corpus, a fusion, a metric."""

import json
from pathlib import Path

import numpy as np
import pytest

OWN = '''
import re
from dataclasses import replace
from types import SimpleNamespace

from experiments.no_aug import CONFIG
from mmattn.cli import experiment
from mmattn.data.corpora import CORPORA
from mmattn.evaluate.metrics import METRICS, Metric
from mmattn.model.fusion import FUSIONS
from mmattn.model.fusion.concat import Concat


def row(stem):
    match = re.fullmatch(r"own-(\\w+)-([a-z]+)-\\d+", stem)
    return match and {"corpus": "own", "speaker": match[1], "emotion": match[2], "sex": "female"}


class Halved(Concat):
    """Every pooled vector at half its size."""

    def __call__(self, *inputs):
        fused = super().__call__(*inputs)
        return fused._replace(features=fused.features / 2)


CORPORA["own"] = SimpleNamespace(TITLE="OWN", EXAMPLE="own-anna-happy-1", FOLDS=[], row=row)
FUSIONS["halved"] = Halved
METRICS["error"] = Metric(
    "error rate", "fraction of wrong clips", 0.0, lambda sums: 1 - METRICS["accuracy"].value(sums)
)
experiment(replace(CONFIG, name="own"), __doc__)
'''
SMALL = (
    *("--model.head-units", "16", "--model.head-dropout", "0.3", "--train.epochs", "2"),
    *("--train.batch", "8", "--data.buckets", "1", "--devices", "1"),
)
WIDTHS = {"audio": (20, 4), "video": (10, 3), "text": (3, 5)}  # frames a second, features


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A clip of each of six emotions, twice, of six speakers; each has audio, video and text."""
    folder = tmp_path_factory.mktemp("three") / "clips"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for speaker in "abcdef":
        for emotion in ("anger", "disgust", "fear", "happy", "neutral", "sad"):
            for take in range(2):
                seconds = rng.uniform(2, 3)
                arrays = {}
                for name, (rate, width) in WIDTHS.items():
                    frames = int(rate * seconds)
                    drawn = rng.standard_normal((frames, width)).astype(np.float32)
                    arrays |= {f"{name}_features": drawn}
                    arrays |= {f"{name}_timestamps": np.arange(frames) / rate}
                np.savez(folder / f"own-{speaker}-{emotion}-{take}.npz", **arrays)
    return folder


@pytest.fixture
def own(commands, tmp_path, monkeypatch) -> Path:
    """A module of experiments that adds a corpus, a fusion and a metric, and its folder."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.setitem(commands.environment, "PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["halved", "cross"])
def test_three_modalities_in_a_corpus_of_one_s_own(commands, own, clips, fusion):
    run = own / "run"
    options = (
        *("--data.roots", clips, "--data.cache", own / "cache", "--out", run),
        *("--model.modalities", *WIDTHS, "--model.units", "audio=8", "video=8", "text=4"),
        *("--model.fusion", fusion, "--model.cross-units", "8"),
    )
    said = commands.run("own", *SMALL, *options)
    assert "72 OWN clips of 6 speakers" in said and "error rate" in said
    summary = json.loads((run / "summary.json").read_text())
    test = summary["test"]
    assert test["error"]["value"] == pytest.approx(1 - test["accuracy"]["value"])
    assert summary["groups"] == {}  # one corpus, of one sex
    assert "text" in (run / "report.html").read_text()
