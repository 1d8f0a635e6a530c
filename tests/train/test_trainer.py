"""A network on other clips, seen from inside; a training with augmentation, saved and resumed."""

import copy
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from mmattn.config import (
    AugmentConfig,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    SyntheticConfig,
    TrainConfig,
)
from mmattn.data.augment import change_tempo
from mmattn.data.batches import Dispatch, collate, make_buckets
from mmattn.data.corpus import Corpus, open_corpus
from mmattn.data.splits import Split, make_split
from mmattn.data.stream import pack_streams
from mmattn.errors import Stopped, UserError
from mmattn.run.run import Run
from mmattn.train.checkpoints import Checkpoints
from mmattn.train.history import best_epoch
from mmattn.train.inference import Predictor, check_extractor
from mmattn.train.loop import Position, Trainer, make_trainer, train

TIMED = ("clips_per_s", "seconds")
SIZES = {"clips": 36, "speakers": 6, "audio_width": 4, "video_width": 3, "audio_rate": 12}
CONFIG = ExperimentConfig(
    name="test",
    data=DataConfig(buckets=1, synthetic=SyntheticConfig(**SIZES, video_rate=10)),
    augment=AugmentConfig(
        tempo=(0.9, 1.1),
        noise={"audio": (0.1, 0.2), "video": (0.1, 0.2)},
        variants={"tempo": 0.5},
        variant_times="own",
        mixup=0.4,
    ),
    model=ModelConfig(
        fusion="cross",
        cross_units=4,
        units={"audio": (4,), "video": (3,)},
        head_units=(5,),
        input_dropout=0.0,
        pooled_dropout=0.0,
        head_dropout=(0.0,),
    ),
    train=TrainConfig(epochs=3, batch=8, save_every=2, patience=0, steps_per_dispatch=1),
)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """With a copy of each clip's audio that takes longer."""
    corpus = open_corpus(CONFIG.data, CONFIG.streams)
    copies = []
    for clip in map(corpus.streams["audio"].clip, range(len(corpus))):
        slow = change_tempo(clip, 0.7, 0.0)
        copies.append(slow._replace(times=slow.times * 0.7))
    return with_audio(corpus, variants={"tempo_0_7": pack_streams(copies)})


@pytest.fixture(scope="module")
def split(corpus) -> Split:
    return make_split(corpus, CONFIG.data, 0)


@pytest.fixture(scope="module")
def trainer(corpus, split) -> Trainer:
    return make_trainer(CONFIG, corpus, split, device_count=2)


def network_of(trainer: Trainer, state) -> nnx.Module:
    """The whole network, on one device."""
    weights = jax.tree.map(lambda x: np.asarray(x)[0], trainer.learner.weights(state))
    return nnx.merge(trainer.learner.graph, *weights)


def with_audio(corpus: Corpus, **changes) -> Corpus:
    """The corpus with another audio stream."""
    audio = replace(corpus.streams["audio"], **changes)
    return replace(corpus, streams=corpus.streams | {"audio": audio})


def test_inside_the_network(trainer, corpus):
    """Embeddings are the network's; gradient × input is the slope as a frame grows."""
    state, _ = trainer.start()
    clips = np.array([7, 2, 30])
    found = trainer.predictor(state).inspect(clips)
    dispatch = Dispatch(trainer.feed.buckets[-1], [clips])
    batch = collate(corpus, dispatch, trainer.feed.normaliser, 1, len(clips), 1)
    batch = jax.tree.map(lambda x: x[0, 0], batch)
    graph, weights = nnx.split(network_of(trainer, state))
    run = jax.jit(lambda weights, batch: nnx.merge(graph, weights)(batch))
    output = run(weights, batch)
    for place, clip in enumerate(clips):
        for name, stream in corpus.streams.items():
            length = stream.lengths[clip]
            np.testing.assert_allclose(
                found.embeddings[place][name], output.embeddings[name][place, :length], atol=1e-6
            )
            assert len(found.gradient_input[place][name]) == length
    for name in ("audio", "video"):
        frame, part = 5, batch.streams[name]
        ends = []
        for factor in (1.01, 0.99):
            frames = part.frames.copy()
            frames[:, frame] *= factor
            streams = batch.streams | {name: part._replace(frames=frames)}
            changed = batch._replace(streams=streams)
            ends.append(np.asarray(run(weights, changed).logits, np.float64))
        highest = output.logits.argmax(1)
        slope = ((ends[0] - ends[1]) / 0.02)[range(len(clips)), highest]
        products = [one[name][frame] for one in found.gradient_input]
        np.testing.assert_allclose(products, slope, atol=5e-6, rtol=0.02)
        assert np.abs(products).min() > 1e-4


def test_other_clips_are_predicted_as_by_a_trainer_of_theirs(trainer, corpus):
    state, _ = trainer.start()
    clips = np.arange(9)
    late = with_audio(corpus, delay=0.3)
    network = trainer.predictor(state)
    found = network.with_corpus(late).predict(clips)
    weights = trainer.settings.class_weights
    own = Trainer(CONFIG, late, network.normaliser, weights, clips, 2)
    assert own.learner is trainer.learner  # nothing is compiled anew
    own.feed = own.feed._replace(buckets=make_buckets(late, np.arange(len(late)), 1))
    expected = own.predictor(state).predict(clips)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    np.testing.assert_array_equal(found.loss, expected.loss)
    for one, other in zip(found.attention, expected.attention, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    plain = network.predict(clips)
    assert np.abs(plain.probabilities - expected.probabilities).max() > 1e-5
    assert network.corpus is trainer.corpus is corpus
    longer = [{"audio": 99, "video": 99}]
    assert network.with_corpus(late, longer).feed.buckets == longer != network.feed.buckets


def test_a_clip_without_audio_is_predicted_and_seen_from_inside(trainer, corpus):
    state, _ = trainer.start()
    lengths = corpus.streams["audio"].lengths.copy()
    lengths[2] = 0
    silent = with_audio(corpus, lengths=lengths)
    clips = np.array([7, 2, 30])
    plain = trainer.predictor(state)
    lacking = plain.with_corpus(silent)
    found, expected = lacking.predict(clips), plain.predict(clips)
    assert np.isfinite(found.probabilities).all()
    same = np.isclose(found.probabilities, expected.probabilities, atol=1e-6).all(1)
    assert same.tolist() == [True, False, True]
    inside = lacking.inspect(clips)
    for values in (found.attention[1], inside.gradient_input[1]):
        assert values["audio"].shape == (0,)
        assert len(values["video"]) == corpus.streams["video"].lengths[2]
        assert np.isfinite(values["video"]).all()


@pytest.fixture(scope="module")
def trained(trainer, split, tmp_path_factory) -> Path:
    """The folder of a training of three epochs."""
    folder = tmp_path_factory.mktemp("trained")
    train(trainer, split, Checkpoints(folder), resume=False, asked=threading.Event())
    return folder


def test_checkpoints_are_as_far_apart_as_asked(trained):
    checkpoints = Checkpoints(trained)
    history = checkpoints.about("final")["history"]
    for kind, epochs in (("latest", 2), ("final", 3), ("best", best_epoch(history, "accuracy"))):
        assert len(checkpoints.about(kind)["history"]) == epochs


class AskedAt(threading.Event):
    """Set when it is looked at for the n-th time: after each dispatch, and each epoch."""

    def __init__(self, looks: int):
        super().__init__()
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks <= 0


def assert_same_end(trainer: Trainer, folder: Path, reference: Path) -> None:
    """Not a bit of the checkpoints and of what the epochs measured is different."""
    found, expected = Checkpoints(folder), Checkpoints(reference)
    for kind in ("best", "final"):
        states = [trainer.load(checkpoints, kind) for checkpoints in (found, expected)]
        jax.tree.map(np.testing.assert_array_equal, *states)
        histories = [checkpoints.about(kind)["history"] for checkpoints in (found, expected)]
        for rows in zip(*histories, strict=True):
            one, other = ({k: v for k, v in row.items() if k not in TIMED} for row in rows)
            assert one == other


def test_an_augmented_training_stopped_inside_an_epoch_ends_the_same(
    corpus, trained, split, tmp_path
):
    stopped = make_trainer(CONFIG, corpus, split, device_count=2)
    with pytest.raises(Stopped, match="in epoch 2"):
        train(stopped, split, Checkpoints(tmp_path), resume=False, asked=AskedAt(8))
    about = Checkpoints(tmp_path).about("latest")
    assert (len(about["history"]), about["dispatches"]) == (1, 2)
    resumed = make_trainer(CONFIG, corpus, split, device_count=2)
    train(resumed, split, Checkpoints(tmp_path), resume=True, asked=threading.Event())
    assert_same_end(resumed, tmp_path, trained)


def test_a_training_killed_between_two_saves_ends_the_same(trainer, trained, split, tmp_path):
    folder = tmp_path / "killed"
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "checkpoints" / "final")
    train(trainer, split, Checkpoints(folder), resume=True, asked=threading.Event())
    assert_same_end(trainer, folder, trained)


def test_no_patience_trains_on_at_accuracy_one(corpus, split, tmp_path, monkeypatch):
    trainer = make_trainer(CONFIG, corpus, split, device_count=2)
    predict = Predictor.predict

    def always_right(network, clips):
        sure = np.eye(len(corpus.class_names))[corpus.labels[clips]]
        return predict(network, clips)._replace(probabilities=sure)

    monkeypatch.setattr(Predictor, "predict", always_right)
    rows = train(trainer, split, Checkpoints(tmp_path), resume=False, asked=threading.Event())
    assert [row["validation_accuracy"] for row in rows] == [1, 1, 1]


def test_the_monitor_selects_the_epoch_and_ends_the_training(
    trainer, corpus, split, tmp_path, monkeypatch
):
    """All clips are right from the first epoch on, and most surely so in the second."""
    trainer, predict, sure = copy.copy(trainer), Predictor.predict, [0.5, 0.9, 0.7]
    options = replace(CONFIG.train, monitor="log_loss", patience=1, epochs=9)
    trainer.config = replace(CONFIG, train=options)
    coming = iter(sure)

    def right(network, clips):
        p, classes = next(coming), len(corpus.class_names)
        rows = np.full((len(clips), classes), (1 - p) / (classes - 1))
        rows[np.arange(len(clips)), corpus.labels[clips]] = p
        return predict(network, clips)._replace(probabilities=rows)

    monkeypatch.setattr(Predictor, "predict", right)
    rows = train(trainer, split, Checkpoints(tmp_path), resume=False, asked=threading.Event())
    assert [row["validation_accuracy"] for row in rows] == [1, 1, 1]
    assert [row["validation_log_loss"] for row in rows] == pytest.approx(-np.log(sure))
    assert len(Checkpoints(tmp_path).about("best")["history"]) == 2


RECORDS = {
    "audio": {"name": "log-mel", "version": 1, "settings": {"hop": 0.02}},
    "video": {"name": "face-mesh", "version": 2, "settings": {"rate": 15.0}},
}
OTHER = RECORDS | {"audio": {"name": "log-mel", "version": 1, "settings": {"hop": 0.01}}}


@pytest.fixture(scope="module")
def known(corpus, split, tmp_path_factory) -> Path:
    """A folder of checkpoints, as before the first step, on clips that name their extractor."""
    folder = tmp_path_factory.mktemp("known")
    trainer = make_trainer(CONFIG, replace(corpus, extractor=RECORDS), split, device_count=2)
    for kind in ("best", "final", "latest"):
        trainer.save(Checkpoints(folder), kind, Position(*trainer.start()), {"history": []})
    return folder


@pytest.mark.parametrize("kind", ["best", "final", "latest"])
def test_checkpoints_name_the_extractor_and_refuse_features_of_another(corpus, known, kind):
    assert Checkpoints(known).about(kind)["extractor"] == RECORDS
    clips = np.arange(3)
    run = Run(CONFIG, known, checkpoint=kind)
    assert run.extractor == RECORDS
    run.predictor(replace(corpus, extractor=RECORDS), clips, 2)
    reason = rf"{known}.*trained on: audio hop 0\.01 instead of 0\.02$"
    with pytest.raises(UserError, match=reason):
        run.predictor(replace(corpus, extractor=OTHER), clips, 2)
    with pytest.raises(UserError, match="audio: an unnamed one instead of log-mel"):
        run.predictor(corpus, clips, 2)


def test_a_resumed_training_needs_features_of_the_same_extractor(corpus, split, known):
    other = make_trainer(CONFIG, replace(corpus, extractor=OTHER), split, device_count=2)
    with pytest.raises(UserError, match=r"audio hop 0\.01 instead of 0\.02"):
        train(other, split, Checkpoints(known), resume=True, asked=threading.Event())


def about(modalities: tuple[str, ...] = ("audio", "video"), **more) -> dict:
    """Of a checkpoint."""
    model = replace(CONFIG.model, fusion="concat", modalities=modalities)
    return {"config": replace(CONFIG, model=model).to_json(), **more}


def test_a_modality_that_is_not_used_or_not_there_may_be_of_another_extractor(corpus):
    clips, folder = np.arange(3), Path("run")
    other = replace(corpus, extractor=OTHER)
    check_extractor(folder, about(("video",), extractor=RECORDS), other, clips)
    with pytest.raises(UserError, match=r"run: .* audio hop"):
        check_extractor(folder, about(("audio",), extractor=RECORDS), other, clips)
    silent = with_audio(corpus, lengths=0 * corpus.streams["audio"].lengths)
    video_alone = replace(silent, extractor={"video": RECORDS["video"]})
    check_extractor(folder, about(extractor=RECORDS), video_alone, clips)


def test_a_checkpoint_of_before_says_nothing(corpus):
    clips, folder = np.arange(3), Path("run")
    check_extractor(folder, about(), corpus, clips)
    check_extractor(folder, about(extractor={}), corpus, clips)
    known = replace(corpus, extractor=RECORDS)
    with pytest.raises(UserError, match="audio: log-mel version 1 instead of an unnamed one"):
        check_extractor(folder, about(), known, clips)
