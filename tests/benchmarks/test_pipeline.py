"""The pipeline: waits are told apart from work, and the command measures all that it says."""

import json
import time
from dataclasses import replace

import jax
import pytest

from benchmarks.machine import forget
from benchmarks.pipeline import Pipeline, timed, train_watched
from mmattn.config import DataConfig, ExperimentConfig, ModelConfig, SyntheticConfig, TrainConfig
from mmattn.data.corpus import open_corpus
from mmattn.data.splits import make_split
from mmattn.errors import UserError
from mmattn.train.loop import epoch_plan, make_trainer

DEVICES = jax.local_device_count()
TINY = ExperimentConfig(
    name="no_aug",
    data=DataConfig(buckets=1),
    model=ModelConfig(
        modalities=("video",), units={"video": (3,)}, head_units=(8,), head_dropout=(0.2,)
    ),
    train=TrainConfig(epochs=1, batch=8, steps_per_dispatch=2),
)


def test_the_time_that_items_are_waited_for(monkeypatch):
    seconds = 0
    monkeypatch.setattr(time, "perf_counter", lambda: seconds)

    def slowly():
        nonlocal seconds
        for item in "abc":
            seconds += 5
            yield item

    waits = []
    for _ in timed(slowly(), waits):
        seconds += 2  # the consumer's own work is no wait
    assert waits == [5, 5, 5, 0]  # the last finds nothing more
    waits = []
    assert list(timed("abc", waits)) == list("abc")
    assert not any(waits)


@pytest.mark.slow
def test_the_share_of_a_real_training_that_waits(tmp_path):
    sizes = SyntheticConfig(clips=72, speakers=8, video_width=6, audio_width=4, audio_rate=10)
    config = replace(TINY, data=replace(TINY.data, synthetic=sizes))
    corpus = open_corpus(config.data, config.streams)
    split = make_split(corpus, config.data, 0)
    trainer = make_trainer(config, corpus, split, DEVICES)
    plan = epoch_plan(trainer, split.train, 0)
    ready = list(trainer.feed(plan, 2))

    slept = []

    def slowly(*_):
        for one in ready:
            begin = time.perf_counter()
            time.sleep(0.2)
            slept.append(time.perf_counter() - begin)  # more on a busy machine
            yield one

    train_watched(trainer, split, tmp_path / "compiling", trainer.feed)
    _, share = train_watched(trainer, split, tmp_path / "ready", lambda *_: ready)
    assert 0 <= share < 0.02
    rate, share = train_watched(trainer, split, tmp_path / "slow", slowly)
    assert 0.5 < share < 1
    assert len(slept) == len(plan)
    assert share * len(split.train) / rate == pytest.approx(sum(slept), rel=0.05)


def test_forgotten_files_are_as_they_were(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    forget([path])
    assert path.read_bytes() == b"content"


@pytest.mark.slow
def test_the_command_measures_what_it_says(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    path = tmp_path / "found.json"
    Pipeline(clips=120, devices=DEVICES, dispatches=2, rounds=1, json=path)(TINY)
    found = json.loads(path.read_text())
    assert found.keys() == {
        "machine", "reading", "feeding", "training", "wait_share", "devices",
    }  # fmt: skip
    assert found["reading"]["files"] == 120
    assert found["reading"]["megabytes"] > 15
    assert len(found["reading"]["rows"]) == 4 and len(found["feeding"]["rows"]) == 4
    assert all(one["seconds"] > 0 for one in found["reading"]["rows"] + found["feeding"]["rows"])
    assert found["feeding"]["batches"] == -(-found["feeding"]["clips"] // 8)
    usual, on_request, beforehand = found["training"]
    assert found["wait_share"] == usual["wait_share"]
    assert on_request["wait_share"] > beforehand["wait_share"]
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("option", ["dispatches", "rounds"])
def test_wrong_options(option):
    with pytest.raises(UserError, match=f"--{option} 0: expected 1 or more"):
        Pipeline(**{option: 0})(TINY)


def test_a_folder_without_clips(tmp_path):
    with pytest.raises(UserError, match=r"empty: expected clips"):
        (tmp_path / "empty").mkdir()
        Pipeline(corpus=tmp_path / "empty")(TINY)
