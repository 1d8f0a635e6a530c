"""Runs of an earlier version, see stored/README.md: they evaluate, predict and resume as they did.

Numbers that a network computes are the same to the bit where the libraries and the processor are
those that made the runs, and nearly so elsewhere; splits and batches always are the same.
"""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmattn.config import AugmentConfig
from mmattn.data.batches import Augmentation, Batch, collate
from mmattn.data.corpus import open_corpus
from mmattn.data.splits import SPLITS, split_from_json, split_to_json
from mmattn.data.stream import PADDING
from mmattn.evaluate.metrics import scores
from mmattn.evaluate.predictions import combine, read_predictions
from mmattn.evaluate.tables import Interval, cell_text, titles
from mmattn.files import read_json
from mmattn.machine import processor
from mmattn.run.experiment import plan_parts
from mmattn.run.folder import PREDICTIONS, environment, read_config
from mmattn.run.run import load_run
from mmattn.train.loop import epoch_plan, make_trainer
from tests.run.ended import metrics
from tests.run.named_clips import write_named_clips

STORED = Path(__file__).parent / "stored"
EXPECTED = read_json(STORED / "expected.json")
TRAININGS = ("cross/member0", "cross/member1", "audio")
CLIPS = (
    "RAVDESS/Actor_03/03-01-05-01-02-01-03.npz",
    "RAVDESS/Actor_04/01-01-08-01-01-01-04.npz",
    "RAVDESS/Actor_02/01-01-05-01-02-01-02.npz",  # without a face
)


def fingerprint() -> dict:
    """What the last bits of a network's numbers hang on."""
    about = environment()
    return {
        "processor": hashlib.sha256(processor().encode()).hexdigest(),
        "cores": about["cores"],
        "lstm": about["lstm"],
        "flags": os.environ["XLA_FLAGS"],
        **{name: about["versions"][name] for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
    }


def assert_same(found, expected) -> None:
    if fingerprint() == EXPECTED["environment"]:
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def arrays_of(batch: Batch) -> dict[str, np.ndarray]:
    """Every array of a batch as that version held it: times were 0 in the padding."""
    arrays = {}
    for name, stream in batch.streams.items():
        arrays[f"{name} frames"] = stream.frames
        arrays[f"{name} valid"] = stream.valid
        arrays[f"{name} length"] = stream.length.astype(np.int32)
        arrays[f"{name} times"] = np.where(stream.times < PADDING, stream.times, np.float32(0))
    return {
        **arrays,
        "label": batch.label,
        "other label": batch.mixup_label,
        "share": batch.mixup_lambda,
        "weight": batch.weight,
        "clip": batch.clip,
    }


def batch_digest(batches: Iterable[Batch]) -> dict[str, str]:
    """SHA-256 of each array of all batches, with its shapes and types."""
    digests: dict = {}
    for batch in batches:
        for name, array in arrays_of(batch).items():
            digest = digests.setdefault(name, hashlib.sha256())
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array))
    return {name: digest.hexdigest() for name, digest in digests.items()}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return write_named_clips(tmp_path_factory.mktemp("stored") / "clips")


@pytest.fixture(scope="module")
def runs(clips) -> Path:
    """The folder of the runs, which find their clips; not to be altered."""
    folder = clips.parent / "runs"
    shutil.unpack_archive(STORED / "runs.zip", folder)
    for path in folder.rglob("config.json"):
        path.write_text(path.read_text().replace("/tmp/stored/", f"{clips.parent}/"))
    return folder


@pytest.mark.parametrize("run", ["concat", "cross", "audio"])
def test_splits(runs, run):
    config = read_config(runs / run)
    corpus = open_corpus(config.data, config.streams)
    (parts,) = plan_parts(config, corpus, runs / run).values()
    assert len(parts) == config.ensemble_size
    for part in parts:
        expected = read_json(part.folder / "split.json")
        found = split_to_json(part.split, corpus)
        for name in SPLITS:
            for key in ("labels", "corpora"):  # which runs of version 1 did not write
                del found[name][key]
        assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("run", "augmented"),
    [
        pytest.param(
            "concat",
            True,
            marks=pytest.mark.skipif(
                (platform.system(), platform.machine()) != ("Linux", "x86_64"),
                reason="NumPy draws with the logarithms of the system's C library",
            ),
        ),
        ("concat", False),
        ("cross", False),
    ],
)
def test_batches(runs, run, augmented):
    config = read_config(runs / run)
    corpus = open_corpus(config.data, config.streams)
    (parts,) = plan_parts(config, corpus, runs / run).values()
    batches = two_epochs(parts[-1].config, corpus, parts[-1].split, augmented)
    assert batch_digest(batches) == EXPECTED["batches"][f"{run}{' augmented' * augmented}"]


def two_epochs(config, corpus, split, augmented: bool) -> Iterable[Batch]:
    """In several lengths: the run itself has one, which compiles sooner."""
    config = replace(config, data=replace(config.data, buckets=3))
    if not augmented:
        config = replace(config, augment=AugmentConfig())
    trainer = make_trainer(config, corpus, split, 1)
    for epoch in range(2):
        plan = epoch_plan(trainer, split.train, epoch)
        augmentation = Augmentation(config.augment, config.seed, epoch)
        for dispatch in plan:  # each bucket was padded to its own shape
            layout = 1, config.train.batch, config.train.steps_per_dispatch
            yield collate(corpus, dispatch, trainer.feed.normaliser, *layout, augmentation)


@pytest.mark.parametrize("training", TRAININGS)
def test_checkpoints_give_their_predictions(runs, training):
    folder = runs / training
    config = read_config(folder)
    corpus = open_corpus(config.data, config.streams)
    split = split_from_json(read_json(folder / "split.json"), corpus)
    every = np.concatenate([*split.clips.values()])
    network = load_run(folder).predictor(corpus, every)
    for name, file in PREDICTIONS.items():
        clips, stored = split.clips[name], read_predictions(folder / file)
        assert stored.clips == tuple(corpus.names[clip] for clip in clips)
        assert stored.class_names == corpus.class_names
        assert_same(network.predict(clips).probabilities, stored.probabilities)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["cross", "audio"])
def test_evaluate(commands, runs, run):
    data = ("--data.roots", *read_config(runs / run).data.roots, "--data.cache", runs / "cache")
    text = commands.run("mmattn", "evaluate", runs / run, *data)
    lines = [line.split() for line in text.splitlines()]
    for name in (name for name in TRAININGS if name.startswith(run)):
        summary = read_json(runs / name / "summary.json")
        for measure, title in titles(summary["test"]).items():
            row = " ".join(
                [title, *(cell_text(Interval(**summary[name][measure])) for name in PREDICTIONS)]
            )
            assert row.split() in lines
    if run == "audio":
        return
    members = [read_predictions(runs / name / PREDICTIONS["test"]) for name in TRAININGS[:2]]
    together = scores(combine(members), read_config(runs / run).seed)
    for measure, title in titles(together).items():
        assert f"{title} {cell_text(Interval(**together[measure]))}".split() in lines


@pytest.mark.slow
@pytest.mark.parametrize("run", ["cross", "audio"])
def test_predict(commands, runs, clips, run):
    found = predict(commands, runs / run, clips)
    expected = EXPECTED["predictions"][run]
    assert found.keys() == expected.keys()
    for name in expected:
        assert list(found[name]) == list(expected[name])
        # Padded otherwise than in that version, which moves the last bit.
        np.testing.assert_allclose([*found[name].values()], [*expected[name].values()], rtol=1e-5)


def predict(commands, run: Path, clips: Path) -> dict[str, dict[str, float]]:
    """The probabilities by clip and class."""
    paths = [clips / name for name in CLIPS]
    document = json.loads(commands.run("mmattn", "predict", run, *paths, "--json"))
    predictions = document["predictions"]
    return {name: one["probabilities"] for name, one in zip(CLIPS, predictions, strict=True)}


@pytest.mark.slow
def test_resume(commands, runs, tmp_path):
    """Stopped inside its third epoch, it ends as the one that was not."""
    resumed, whole = shutil.copytree(runs / "concat", tmp_path / "concat"), runs / "whole"
    text = commands.run("experiments.no_aug", "--resume", "--out", resumed)
    assert "resumed after epoch 2 and 2 dispatches of the next" in text
    for found, expected in zip(metrics(resumed), metrics(whole), strict=True):
        assert found.keys() >= expected.keys()
        assert_same([found[name] for name in expected], [*expected.values()])
    for name in PREDICTIONS.values():
        found, expected = (read_predictions(run / name) for run in (resumed, whole))
        assert found.clips == expected.clips
        assert found.class_names == expected.class_names
        np.testing.assert_array_equal(found.speakers, expected.speakers)
        np.testing.assert_array_equal(found.labels, expected.labels)
        assert_same(found.probabilities, expected.probabilities)
