"""`mmattn export`: what users do with the file, what it tells, and what is refused."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from mmattn.config import OtherDataConfig
from mmattn.errors import UserError
from mmattn.export import export
from mmattn.export.check import inputs_of
from mmattn.export.export import USE_HERE, export_run, write_export
from mmattn.export.onnx_file import call_onnx
from mmattn.files import read_json
from mmattn.run.card import USE, card
from mmattn.run.folder import corpus_of
from mmattn.run.run import load_run

ROOT = Path(__file__).parents[2]
WITHOUT_JAX = "import sys; sys.modules |= dict.fromkeys(('jax', 'flax', 'mmattn'))\n"
WITHOUT_MMATTN = "import sys; sys.modules['mmattn'] = None\n"


def written_in_docs(language: str, number: int = 0) -> str:
    """A piece of code of docs/export.md."""
    text = (ROOT / "docs/export.md").read_text()
    return re.findall(rf"^```{language}\n(.+?)^```$", text, re.MULTILINE | re.DOTALL)[number]


@pytest.fixture(scope="module")
def exported(commands, ensemble, tmp_path_factory) -> Path:
    """A folder with two networks in both formats; not to be altered."""
    folder = tmp_path_factory.mktemp("exported")
    for kind in ("onnx", "stablehlo"):
        text = commands.run("mmattn", "export", ensemble, "--to", folder / f"model.{kind}")
        assert re.search(
            r"model\.\w+: 0\.\d+ MB, differs from the networks by at most .e-0[5-9] ", text
        )
    return folder


@pytest.fixture(scope="module")
def corpus(ensemble):
    return corpus_of(ensemble, OtherDataConfig())


def metadata_of(path: Path) -> dict[str, str]:
    return onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map


@pytest.mark.slow
def test_it_predicts_as_the_run(ensemble, exported, corpus):
    found = call_onnx((exported / "model.onnx").read_bytes())(inputs_of(corpus))
    expected = load_run(ensemble).predict_corpus(corpus).probabilities
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "number"), [(WITHOUT_JAX, 0), (WITHOUT_MMATTN, 1)], ids=["onnx", "stablehlo"]
)
def test_the_lines_of_the_docs(ensemble, exported, corpus, tmp_path, code, number):
    for path in exported.iterdir():
        shutil.copy(path, tmp_path)
    streams = {name: ragged.clip(3) for name, ragged in corpus.streams.items()}
    arrays = {f"{name}_features": one.frames for name, one in streams.items()}
    arrays |= {f"{name}_timestamps": one.times for name, one in streams.items()}
    np.savez(tmp_path / "clip.npz", **arrays)
    words = [sys.executable, "-c", code + written_in_docs("python", number)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = load_run(ensemble).predict(tmp_path / "clip.npz")
    rows = zip(expected.class_names, expected.probabilities, strict=True)
    assert done.stdout.splitlines() == [f"{label:10} {share:.3f}" for label, share in rows]


def test_what_it_tells(ensemble, exported):
    run, about = load_run(ensemble), metadata_of(exported / "model.onnx")
    assert json.loads(about["classes"]) == [*run.class_names]
    assert json.loads(about["modalities"]) == ["audio", "video"]
    assert json.loads(about["extractor"]) == {"audio": None, "video": None}  # drawn numbers
    assert about["card"] == card(run).replace(USE, USE_HERE) and "mmattn card" not in about["card"]
    assert about["licence"] == "not known: fill in"
    assert about["networks"] == "2" and about["calibrated"] == "true"
    assert "Crop" not in about["before"]
    assert read_json(exported / "model.json") == about


def test_what_has_to_be_done_before_is_told(ensemble, tmp_path):
    run = load_run(ensemble)
    run.config = replace(run.config, data=replace(run.config.data, overlap=True, tile=("video",)))
    write_export(tmp_path / "model.onnx", run, "")
    about = metadata_of(tmp_path / "model.onnx")
    assert "Crop the modalities" in about["before"] and "every frame of video" in about["before"]


@pytest.mark.slow
def test_a_model_file_brings_its_card(commands, ensemble, tmp_path):
    commands.run("mmattn", "card", ensemble, "--to", tmp_path / "shared")
    options = ("--to", tmp_path / "model.onnx", "--no-calibrated")
    commands.run("mmattn", "export", tmp_path / "shared", *options)
    about = metadata_of(tmp_path / "model.onnx")
    assert about["card"] == (tmp_path / "shared/CARD.md").read_text().replace(USE, USE_HERE)
    assert about["calibrated"] == "false"
    (tmp_path / "shared/CARD.md").unlink()
    commands.run("mmattn", "export", tmp_path / "shared/model.npz", *options[:2])
    about = metadata_of(tmp_path / "model.onnx")
    assert about["card"] == about["licence"] == "not known: fill in"
    assert about["calibrated"] == "true"


@pytest.mark.slow
def test_starter(commands, tmp_path):
    commands.run("mmattn", "export", "starter", "--to", tmp_path / "model.onnx")
    about = metadata_of(tmp_path / "model.onnx")
    assert about["licence"] == "CC BY-NC-SA 4.0, as of the data" and about["networks"] == "12"
    assert json.loads(about["extractor"])["audio"]["name"] == "whisper"
    (audio, _) = onnxruntime.InferenceSession(tmp_path / "model.onnx").get_inputs()
    assert audio.shape == ["batch", "audio_frames", 384]


def test_a_file_that_would_predict_otherwise_is_not_written(ensemble, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_text("what was there")
    monkeypatch.setattr(export, "TOLERANCE", 1e-12)
    with pytest.raises(UserError, match=r"it differs from the networks by \d\.\de-0\d on"):
        write_export(path, load_run(ensemble), "")
    assert path.read_text() == "what was there" and [*tmp_path.iterdir()] == [path]


def test_a_library_that_lacks_is_named(ensemble, tmp_path, monkeypatch):
    for name in ("graph", "onnx_file"):
        monkeypatch.delitem(sys.modules, f"mmattn.export.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"needs more libraries: .*mmattn\[export\].*onnx"):
        write_export(tmp_path / "model.onnx", load_run(ensemble), "")
    assert not [*tmp_path.iterdir()]


def test_what_is_refused(ensemble, tmp_path):
    with pytest.raises(UserError, match=r"model\.pt: expected a name that ends in \.onnx or"):
        export_run(ensemble, tmp_path / "model.pt")
    with pytest.raises(UserError, match="expected a file in an existing folder"):
        export_run(ensemble, tmp_path / "none/model.onnx")
    with pytest.raises(UserError, match="expected a run's folder"):
        export_run(tmp_path, tmp_path / "model.onnx")
    copy = Path(shutil.copytree(ensemble, tmp_path / "run"))
    (copy / "summary.json").unlink()
    with pytest.raises(UserError, match="complete"):
        export_run(copy, tmp_path / "model.onnx")
    (tmp_path / "model.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match=r"overwrite .*model\.json, which is not from an export"):
        export_run(ensemble, tmp_path / "model.stablehlo")
    assert (tmp_path / "model.json").read_text() == '{"mine": 1}'


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [2, 4, 6])
def test_ctrl_c_leaves_the_whole_file_or_none(commands, tmp_path, seconds):
    with commands.start("mmattn", "export", "starter", "--to", tmp_path / "a.onnx") as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=120)[0]
    there = {path.name for path in tmp_path.iterdir()}
    assert (process.returncode, there) in ((130, set()), (0, {"a.onnx"})), said
    assert "Traceback" not in said
