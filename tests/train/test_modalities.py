"""A third modality by config alone: from files through the cache and augmentation to a training."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from mmattn.config import AugmentConfig, DataConfig, ExperimentConfig, ModelConfig, TrainConfig
from mmattn.data.batches import Augmentation
from mmattn.data.corpus import open_corpus
from mmattn.data.splits import make_split
from mmattn.evaluate.metrics import metric_values
from mmattn.train.checkpoints import Checkpoints
from mmattn.train.inference import restore
from mmattn.train.loop import epoch_plan, make_trainer, train

RATES = {"audio": 20, "video": 8, "text": 4}
WIDTHS = {"audio": 4, "video": 3, "text": 5}
CONFIG = ExperimentConfig(
    name="test",
    data=DataConfig(buckets=1, rates={"text": 4.0}, zero_is_missing=("video", "text")),
    augment=AugmentConfig(
        tempo=(0.9, 1.1),
        noise={"text": (0.1, 0.2), "audio": (0.1, 0.2)},
        own_tempo={"text": (0.9, 1.1)},
        dropout={"text": 0.1},
        drop_modality=0.1,
        mixup=0.2,
    ),
    model=ModelConfig(
        modalities=("audio", "text", "video"),
        units=dict.fromkeys(WIDTHS, (4,)),
        cross_units=8,
        head_units=(8,),
        head_dropout=(0.0,),
    ),
    train=TrainConfig(epochs=8, batch=8, learning_rate=2e-2, patience=0, save_every=8),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """60 clips of 6 speakers whose text alone, in files of its own, tells the class."""
    root = tmp_path_factory.mktemp("clips")
    rows = ["file.audio,file.video,file.text,speaker,emotion"]
    rng = np.random.default_rng(0)
    for clip in range(60):
        seconds, kind = rng.uniform(2, 3), clip % 3
        streams = {
            name: rng.standard_normal((int(seconds * RATES[name]), WIDTHS[name])) for name in RATES
        }
        streams["text"][:, kind] += 3
        streams["text"][1] = 0
        both = {f"{name}_features": streams[name] for name in ("audio", "video")}
        both |= {
            f"{name}_timestamps": np.arange(len(streams[name])) / RATES[name]
            for name in ("audio", "video")
        }
        np.savez(root / f"{clip}.npz", **both)
        np.savez(root / f"{clip}-text.npz", text_features=streams["text"])
        name = f"{clip}.npz"
        rows.append(f"{name},{name},{clip}-text.npz,{clip % 6},{('bored', 'glad', 'proud')[kind]}")
    (root / "manifest.csv").write_text("\n".join([*rows, ""]))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["late", "concat", "cross"])
def test_it_trains_with_a_third_modality(root, tmp_path, fusion):
    data = replace(CONFIG.data, roots=(root,), cache=tmp_path / "cache")
    model = replace(CONFIG.model, fusion=fusion, late_weights="validation")
    config = replace(CONFIG, data=data, model=model)
    config.check()
    corpus = open_corpus(data, config.streams)
    assert corpus.widths == {"audio": 4, "text": 5, "video": 3}
    text = corpus.streams["text"].clip(7)
    np.testing.assert_array_equal(text.times, np.arange(len(text.times)) / 4)
    assert np.flatnonzero(~text.valid).tolist() == [1]
    split = make_split(corpus, data, 0)
    trainer = make_trainer(config, corpus, split, device_count=2)
    plan = epoch_plan(trainer, split.train, 0)
    batch, _ = next(
        trainer.feed(plan, config.train.steps_per_dispatch, Augmentation(config.augment, 0, 0))
    )
    valid = batch.streams["text"].frames[batch.streams["text"].valid]
    assert np.abs(valid.mean(0)).max() < 0.5 and 0.5 < valid.std() < 1.5  # normalised
    checkpoints = Checkpoints(tmp_path)
    history = train(trainer, split, checkpoints, resume=False, asked=threading.Event())
    assert history[-1]["validation_accuracy"] > 0.6 > history[0]["train_accuracy"]
    if fusion == "late":  # the modality that tells the class weighs most, after a restart too
        restored = restore(checkpoints, "final", corpus, 2)
        weights = restored.about["late_weights"]
        assert weights["text"] > 1.1 * max(weights["audio"], weights["video"])
        kept = restored.weights.batch_stats["fusion"]["log_weights"][...]
        np.testing.assert_allclose(softmax(kept), [*weights.values()], rtol=1e-6)
        predictions = restored.predictor(corpus, split.validation, 2).predictions(split.validation)
        log_loss = metric_values(predictions)["log_loss"]
        assert log_loss == pytest.approx(history[-1]["validation_log_loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["audio", "text"])
def test_it_trains_on_one_modality_where_files_of_others_are_of_no_use(root, tmp_path, name):
    """Nothing of the others is looked at, in training as in prediction."""
    table = (root / "manifest.csv").read_text()
    other = root.parent / f"{root.name}-{name}"
    other.mkdir(exist_ok=True)
    for path in root.glob("*.npz"):
        of_it = path.stem.endswith("-text") == (name == "text")
        (other / path.name).write_bytes(path.read_bytes() if of_it else b"no features")
    (other / "manifest.csv").write_text(table)
    model = replace(CONFIG.model, modalities=(name,), units={name: (4,)})
    rates = CONFIG.data.rates if name == "text" else {}
    data = replace(CONFIG.data, roots=(other,), cache=tmp_path / "cache", rates=rates)
    options = replace(CONFIG.train, epochs=1)
    config = replace(CONFIG, data=data, model=model, train=options, augment=AugmentConfig())
    config.check()
    corpus = open_corpus(data, config.streams)
    assert len(corpus) == 60 and [*corpus.streams] == [name]
    split = make_split(corpus, data, 0)
    trainer = make_trainer(config, corpus, split, device_count=1)
    (row,) = train(trainer, split, Checkpoints(tmp_path), resume=False, asked=threading.Event())
    assert np.isfinite(row["validation_loss"])
