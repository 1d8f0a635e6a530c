"""A run in one file: it predicts as the run does, its card tells what it is, damage is found."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mmattn
from mmattn.config import ExtractConfig, OtherDataConfig
from mmattn.data.corpus import Corpus
from mmattn.errors import UserError
from mmattn.evaluate.metrics import per_class
from mmattn.evaluate.predictions import Predictions, read_predictions
from mmattn.evaluate.tables import Interval, Table, cell_text, markdown
from mmattn.files import read_json
from mmattn.media.models import fetch_models
from mmattn.run.card import _by_class, card, trust
from mmattn.run.folder import corpus_of
from mmattn.run.run import load_run

STARTER = Path(mmattn.__file__).parent / "starter"
ROOT = STARTER.parents[1]


@pytest.fixture(scope="session")
def corpus(ensemble) -> Corpus:
    return corpus_of(ensemble, OtherDataConfig())


@pytest.fixture(scope="session")
def shared(commands, ensemble, tmp_path_factory) -> Path:
    """The folder of the model file and card of two networks; not to be altered."""
    folder = tmp_path_factory.mktemp("shared") / "ours"
    text = commands.run("mmattn", "card", ensemble, "--to", folder)
    assert f"{folder}/model.npz: 0." in text and f"`mmattn predict {folder} CLIP`" in text
    assert f"{folder}/CARD.md: read it before you share it, " in text
    return folder


def test_it_predicts_as_its_run(ensemble, shared, corpus):
    expected, some = load_run(ensemble), np.arange(20)
    for path in (shared, shared / "model.npz"):
        run = load_run(path)
        assert run.complete and run.class_names == expected.class_names
        assert [one.folder.name for one in run.networks] == ["member0", "member1"]
        assert run.is_calibrated == expected.is_calibrated
        found, known = (one.predict_corpus(corpus, some) for one in (run, expected))
        np.testing.assert_array_equal(found.probabilities, known.probabilities)
        with pytest.raises(UserError, match="a shared model has no clips"):
            _ = run.split
    raw = [load_run(path, calibrated=False) for path in (ensemble, shared)]
    one, other = (run.predict_corpus(corpus, some).probabilities for run in raw)
    np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_half_the_precision_is_nearly_the_same(commands, tiny_run, shared, corpus, tmp_path):
    commands.run("mmattn", "card", tiny_run, "--to", tmp_path / "whole")
    commands.run("mmattn", "card", tiny_run, "--to", tmp_path / "half", "--half")
    sizes = [(tmp_path / name / "model.npz").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.8 * sizes[1]
    runs = (load_run(tmp_path / "half"), load_run(tiny_run))
    found, expected = (run.predict_corpus(corpus).probabilities for run in runs)
    assert 0 < np.abs(found - expected).max() < 0.01


def test_a_card_does_not_call_known_speakers_unseen(tiny_run):
    run = load_run(tiny_run)
    assert "On unseen speakers: UAR" in trust(run)[1] and "on unseen speakers" in card(run)
    run.split["leaking"] = True
    assert "On its test clips: UAR" in trust(run)[1] and "unseen" not in card(run)


@pytest.mark.slow
def test_the_screen_says_how_far_to_trust_it(commands, ensemble, shared, corpus, tmp_path):
    streams = {name: stream.clip(0) for name, stream in corpus.streams.items()}
    arrays = {f"{name}_features": one.frames for name, one in streams.items()}
    arrays |= {f"{name}_timestamps": one.times for name, one in streams.items()}
    np.savez(tmp_path / "clip.npz", **arrays)
    page = tmp_path / "page.html"
    text = commands.run("mmattn", "predict", shared, tmp_path / "clip.npz", "--html", page)
    first, second, third, *_ = text.splitlines()
    assert first.startswith("no_aug: 6 classes from audio and video, trained on built-in")
    uar = Interval(**read_json(ensemble / "summary.json")["test"]["uar"])
    assert f"On unseen speakers: UAR {cell_text(uar)}, chance 0.167." in second
    assert third == f"Its card: {shared}/CARD.md"
    assert f"{shared}/model.npz: pool of 2 networks (member0, member1)" in text
    assert text.count("chance 0.167") == 1 and "chance 0.167" in page.read_text()
    found = json.loads(commands.run("mmattn", "predict", shared, tmp_path / "clip.npz", "--json"))
    assert found["networks"] == 2 and found["trust"] == [first, second]


def test_the_card_has_the_numbers_of_the_run(ensemble, shared):
    text, summary = (shared / "CARD.md").read_text(), read_json(ensemble / "summary.json")
    for split, name, title in (("test", "uar", "UAR"), ("test", "ece", "ECE")):
        assert f"| {title} | {cell_text(Interval(**summary[split][name]))} |" in text
    for row in per_class(read_predictions(ensemble / "predictions.csv")):
        assert f"| {row['class']} | {cell_text(row['recall'])}" in text
    for words in ("What not to use it for", "2 networks, pooled by", "experiments.no_aug"):
        assert words in text
    assert "| built-in |" in text and "not known: fill in" in text


def test_a_corpus_of_ones_own_has_gaps_and_no_paths(commands, tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "a run")
    started = read_json(run / "environment.json")
    started["starts"][0]["command"] += ["--data.roots", "/home/anna/CLIPS", "--out=/home/anna/a"]
    (run / "environment.json").write_text(json.dumps(started))
    config = read_json(run / "config.json")
    config["data"] |= {"roots": ["/home/anna/CLIPS"], "cache": "/home/anna/cache"}
    (run / "config.json").write_text(json.dumps(config))
    split = read_json(run / "split.json")
    split["train"]["corpora"], split["validation"]["corpora"] = ["mine", "ravdess"], ["theirs"]
    (run / "split.json").write_text(json.dumps(split))
    text = commands.run("mmattn", "card", run)
    folder = run / "shared"
    assert "times 'not known: fill in'" in text and f"predict '{folder}' CLIP" in text
    card = (folder / "CARD.md").read_text()
    assert "| mine and theirs | 120 | not known: fill in |" in card
    assert "--data.roots CLIPS --out=a\n" in card and "anna" not in card
    with np.load(folder / "model.npz") as arrays:
        about = json.loads(arrays["about"].item())
    assert about["config"]["data"]["roots"] == ["CLIPS"] and "anna" not in json.dumps(about)
    assert about["trust"][0].endswith("trained on mine and theirs.")  # there are no gaps to fill in


def test_the_recall_of_a_class_has_an_interval_over_speakers():
    test = Predictions(
        ("a1", "a2", "b1", "b2"),
        np.array(["a", "a", "b", "b"]),
        np.array([0, 1, 0, 1]),
        np.eye(3)[[0, 1, 1, 1]],
        ("anger", "fear", "happy"),
    )
    anger, fear, happy = _by_class(test, seed=0)
    assert anger == ("anger", Interval(0.5, 0.0, 1.0), 1.0, 2)
    assert fear == ("fear", Interval(1.0, 1.0, 1.0), pytest.approx(2 / 3), 2)
    assert happy == ("happy", Interval(None), None, 0)
    alone = test.select(test.speakers == "a")
    assert next(_by_class(alone, seed=0)) == ("anger", Interval(1.0), 1.0, 1)


def test_a_table_in_markdown():
    table = Table("left out", ("a", "b"), [("x|y", Interval(0.5, 0.25, 1))])
    assert [*markdown(table)] == [
        "| a | b |",
        "|---|---|",
        "| x\\|y | 0.500 [0.250, 1.000] |",
    ]


def altered(shared: Path, change) -> bytes:
    """The model file after `change(arrays, about)`."""
    with np.load(shared / "model.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    about = json.loads(arrays.pop("about").item())
    change(arrays, about)
    content = io.BytesIO()
    np.savez(content, about=np.array(json.dumps(about)), **arrays)
    return content.getvalue()


BIAS = "state.params.classifier.bias.value"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda arrays, about: about.update(format=2), "reads format 1, it has 2"),
        (lambda arrays, about: about.pop("widths"), "widths"),
        (lambda arrays, about: about.update(more=1), "more"),
        (lambda arrays, about: about.update(class_names="anger"), "class_names"),
        (lambda arrays, about: about["trust"].append("\x1b[2J"), "expected printable text"),
        (lambda arrays, about: about.update(networks=[]), "one or more networks"),
        (lambda arrays, about: about["networks"].pop(), "expected arrays of 1 networks"),
        (lambda arrays, about: about["networks"][0].update(temperature=-1.0), "above 0"),
        (lambda arrays, about: about["config"].update(rate=1), "does not fit this version"),
        (lambda arrays, about: about["class_names"].append("anger"), "distinct names"),
        (lambda arrays, about: about["widths"].update(audio=0), "widths above 0"),
        (
            lambda arrays, about: about["widths"].pop("video"),
            "expected the feature dimension of video",
        ),
        (lambda arrays, about: about["config"]["model"].update(head_units=[0]), "--model.head-"),
        (
            lambda arrays, about: about["widths"].update(audio=10**13),
            "expected [0-9]+ or more numbers",
        ),
        (
            lambda arrays, about: about["config"]["model"].update(units={"audio": [10**5] * 2}),
            "expected 10000000000 or more numbers per network, found [0-9]",
        ),
        (lambda arrays, about: arrays[BIAS].fill(np.nan), "expected finite numbers"),
        (lambda arrays, about: arrays.update({BIAS: np.array(["a"] * 2)}), "expected finite"),
    ],
)
def test_a_file_with_a_fault(shared, tmp_path, change, words):
    (tmp_path / "model.npz").write_bytes(altered(shared, change))
    with pytest.raises(UserError, match=rf"^{tmp_path}/model.npz: (?s:.*){words}"):
        load_run(tmp_path)


def test_no_model_that_a_file_names_is_fetched_unasked(shared, tmp_path):
    settings = {"whisper_model": "someone/else", "whisper_layer": -1, "sha256": "0"}
    records = {
        "audio": {"name": "whisper", "version": 1, "settings": settings},
        "video": {"name": "none", "version": 1, "settings": {}},
    }
    changed = altered(shared, lambda arrays, about: about.update(extractor=records))
    (tmp_path / "model.npz").write_bytes(changed)
    with pytest.raises(UserError, match=r"downloaded unasked.*add --whisper-model someone/else"):
        load_run(tmp_path).extraction()
    given = ExtractConfig(whisper_model=str(tmp_path / "mine"))
    with pytest.raises(UserError, match="'none' cannot be extracted"):  # what comes after it
        load_run(tmp_path, media=given).extraction()


@pytest.mark.parametrize("change", ["lacks", "has more", "is shorter"])
def test_a_file_that_does_not_fit_its_config(shared, corpus, tmp_path, change):
    def alter(arrays, about):
        bias = arrays.pop(BIAS)
        if change != "lacks":
            arrays[BIAS] = bias[:, 1:] if change == "is shorter" else bias
        if change == "has more":
            arrays["state.params.more"] = bias

    (tmp_path / "model.npz").write_bytes(altered(shared, alter))
    with pytest.raises(UserError, match=r"model.npz does not fit this network: expected state\."):
        load_run(tmp_path).predict_corpus(corpus, np.arange(2))


def test_what_is_no_model_file(commands, shared, tmp_path):
    path = tmp_path / "model.npz"
    content = (shared / "model.npz").read_bytes()
    np.save(array := tmp_path / "array.npy", np.zeros(3))
    (text := tmp_path / "model.onnx").write_text("no archive")
    np.savez(features := tmp_path / "clip.npz", audio_features=np.zeros((5, 2)))
    np.savez(pickled := tmp_path / "pickled.npz", about=np.array([{}], object))
    for damaged in (b"", b"no archive", content[:-1000], content[1000:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="expected a run's folder, or a model file"):
            load_run(path)
    for other, words in (
        (array, "NpzFile|files"),
        (text, "is no .npz file"),
        (features, "no about"),
        (pickled, "pickle"),
    ):
        with pytest.raises(UserError, match=words):
            load_run(other)
    with pytest.raises(UserError, match="expected a final checkpoint, found none"):
        load_run(shared, "final")
    text = commands.run("mmattn", "predict", tmp_path / "lost.npz", features, code=2)
    assert text == f"error: {tmp_path}/lost.npz: expected a run's folder, but it does not exist\n"
    text = commands.run("mmattn", "card", shared, code=2)
    assert "expected a run's folder, but it is a model without clips" in text


def test_the_starter_is_small_and_has_its_card():
    assert sum(path.stat().st_size for path in STARTER.iterdir()) <= 2_000_000
    with np.load(STARTER / "model.npz", allow_pickle=False) as archive:
        about = json.loads(archive["about"].item())
        assert all(archive[name].dtype.kind in "fU" for name in archive.files)
    assert about["config"]["data"]["roots"] == ["FEATURES"]
    text = (STARTER / "CARD.md").read_text()
    for words in (
        *(
            "RAVDESS",
            "CC BY-NC-SA 4.0",
            "12 speakers",
            "article 5(1)(f)",
            "| sex | female | male |",
        ),
        *("UAR | 0.", "ECE, calibrated | 0.", "| surprised | 0.", "whisper_layer -2", "MIT"),
    ):
        assert words in text
    assert "fill in" not in text and "/home" not in text and "/tmp" not in text


def test_the_starter_predicts_as_it_did(tmp_path, monkeypatch):
    """For frames that anyone can make: the weights and what is computed of them are the same."""
    monkeypatch.chdir(tmp_path)
    time = np.arange(100)[:, None]
    frames = np.sin(0.1 * time * np.arange(1, 385) ** 0.5).astype(np.float32)
    run = load_run("starter")
    assert run.name == "starter"
    record = json.dumps(run.extractor)
    times = 0.02 * np.arange(100)
    np.savez("clip.npz", audio_features=frames, audio_timestamps=times, extractor=record)
    np.testing.assert_allclose(run.predict("clip.npz").probabilities, EXPECTED, atol=1e-4)
    assert len(run.trust) == 2 and "UAR 0." in run.trust[1]
    Path("starter").mkdir()
    with pytest.raises(UserError, match="starter: expected a run's folder"):
        load_run("starter")


EXPECTED = (0.04217, 0.02993, 0.05047, 0.02214, 0.09703, 0.01773, 0.07964, 0.66088)


@pytest.mark.slow
def test_the_starter_on_a_real_clip(commands, tmp_path):
    pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed: extra [media]")
    folder = Path(os.environ.get("MMATTN_RAVDESS", "/nowhere"), "ravdess_clips/Actor_01")
    if not folder.is_dir():
        pytest.skip("MMATTN_RAVDESS does not name a folder with RAVDESS's clips")
    try:
        fetch_models("audio-models")
    except UserError as error:
        pytest.skip(f"the audio models cannot be fetched: {error}")
    clip, silent = (
        folder / f"0{take}.mp4" for take in ("1-01-08-01-01-02-01", "2-01-01-01-01-01-01")
    )
    text = commands.run("mmattn", "predict", "starter", clip)
    lines = text.splitlines()
    assert lines[0].startswith("starter: 8 classes from audio, trained on RAVDESS (CC BY-NC-SA")
    assert "UAR 0." in lines[1] and "chance 0.125" in lines[1]
    assert lines[2] == f"Its card: {STARTER}/CARD.md"
    assert f"{clip}: surprised" in lines
    text = commands.run("mmattn", "predict", "starter", silent, code=1)
    assert all(words in text for words in ("no features can be", "it has a silent", "audio track"))
    text = commands.run("mmattn", "predict", "starter", clip, "--models", tmp_path, code=1)
    assert "fetch it with: mmattn download models" in " ".join(text.split())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["build_py", "sdist"])
def test_the_starter_is_in_what_is_installed(tmp_path, command):
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    for name in ("mmattn", "experiments", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    build = f"from setuptools import setup; setup(script_args=['{command}', '-d', 'out'])"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, check=True)
    for archive in (tmp_path / "out").glob("*.tar.gz"):
        shutil.unpack_archive(archive, tmp_path / "out")
    for name in ("model.npz", "CARD.md"):
        (found,) = (tmp_path / "out").rglob(f"mmattn/starter/{name}")
        assert found.read_bytes() == (STARTER / name).read_bytes()
