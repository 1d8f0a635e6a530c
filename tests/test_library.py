"""What a notebook does, by the functions of the commands, in a process that stays as it was."""

import logging
import signal
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

import mmattn
from experiments import no_aug
from mmattn.config import SyntheticConfig
from mmattn.data.corpus import Corpus
from mmattn.errors import UserError
from mmattn.run.folder import config_to_resume

TIMED = ("clips_per_s", "seconds")
SIZES = {"clips": 48, "speakers": 8, "audio_width": 4, "video_width": 3}
CONFIG = mmattn.Config(
    data=mmattn.DataConfig(buckets=1),
    model=mmattn.ModelConfig(
        units={"audio": (4,), "video": (3,)}, head_units=(5,), head_dropout=(0.1,)
    ),
    train=mmattn.TrainConfig(epochs=3, batch=8, patience=0),
    devices=1,
)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    drawn = SyntheticConfig(**SIZES, audio_rate=12, video_rate=10)
    found = mmattn.load_corpus(synthetic=drawn)
    ages = np.array([str(20 + 5 * int(speaker[-1])) for speaker in found.speakers])
    return replace(found, columns={"sex": np.where(ages < "40", "f", "m"), "age": ages})


@pytest.fixture(scope="module")
def split(corpus):
    return mmattn.split(corpus, validation=0.25, test=0.4, seed=1)


@pytest.fixture(scope="module")
def run(corpus, split):
    return mmattn.fit(corpus, split, CONFIG)


class Recorder(mmattn.Callback):
    """Notes what it is told, and does something at the end of an epoch."""

    def __init__(self, at_end=lambda run, row: None):
        self.heard, self.at_end = [], at_end

    def on_train_begin(self, run):
        self.heard.append(("begin", len(run.history)))

    def on_epoch_end(self, run, row):
        self.heard.append((row["epoch"], len(run.history)))
        self.at_end(run, row)

    def on_train_end(self, run):
        self.heard.append((run.status, len(run.history)))


def measured(run) -> list[dict]:
    """The history without what the clock says."""
    return [{k: v for k, v in row.items() if k not in TIMED} for row in run.history]


def test_a_training_in_memory_gives_scores_and_a_folder(corpus, split, run, tmp_path):
    assert run.complete and [row["epoch"] for row in run.history] == [1, 2, 3]
    found = run.predict_corpus(corpus, split.test)
    assert found.clips == tuple(corpus.names[clip] for clip in split.test)
    right = (found.predicted == corpus.labels[split.test]).mean()
    assert mmattn.scores(found)["accuracy"] == pytest.approx(right)
    table = found.to_pandas()
    assert list(table.columns[:4]) == ["clip", "speaker", "label", "predicted"]
    np.testing.assert_array_equal(table[list(corpus.class_names)], found.probabilities)
    assert set(table["sex"]) == {"f", "m"}
    run.save(tmp_path / "run")
    again = mmattn.load_run(tmp_path / "run")
    other = again.predict_corpus(corpus, split.test)
    np.testing.assert_array_equal(found.probabilities, other.probabilities)
    assert again.complete and again.history == run.history
    clip = tmp_path / "clip.npz"
    arrays = {}
    for name, stream in corpus.streams.items():
        one = stream.clip(split.test[0])
        arrays |= {f"{name}_features": one.frames, f"{name}_timestamps": one.times}
    np.savez(clip, **arrays)
    probabilities = again.predict(clip).probabilities
    np.testing.assert_allclose(probabilities, found.probabilities[0], rtol=1e-5, atol=1e-7)
    with pytest.raises(UserError, match=r"holds a run.* resume=True to continue"):
        mmattn.fit(corpus, split, CONFIG, folder=tmp_path / "run")
    with pytest.raises(UserError, match=r"resume it with mmattn\.fit"):
        config_to_resume(tmp_path / "run", no_aug.CONFIG, no_aug.CONFIG, 1)


def test_scores_by_groups(corpus, run):
    found = run.predict_corpus(corpus)
    by_sex = mmattn.scores(found, by="sex")
    assert set(by_sex.rows) == {"f", "m"} and "accuracy" in by_sex.differences
    women = found.select(found.columns["sex"] == "f")
    assert by_sex.rows["f"]["uar"] == mmattn.scores(women).rows["all"]["uar"]
    by_age = mmattn.scores(found, by={"age": (30, 45)})
    assert list(by_age.rows) == ["30 to 45", "below 30", "from 45"]
    assert set(mmattn.scores(found, by=("sex", "age")).rows) == {
        f"{'f' if age < 40 else 'm'}, {age}" for age in range(20, 60, 5)
    }
    table = by_sex.to_pandas()
    assert table.loc[("f", "UAR"), "value"] == by_sex.rows["f"]["uar"]["value"]
    with pytest.raises(UserError, match=r"scores\['uar'\]: expected scores without `by`"):
        by_sex["uar"]
    with pytest.raises(UserError, match=r"scores\['acc'\]: expected uar, accuracy"):
        mmattn.scores(found)["acc"]
    with pytest.raises(UserError, match="expected increasing edges"):
        mmattn.scores(found, by={"age": (45, 30)})
    with pytest.raises(UserError, match="by height: expected columns of the corpus: sex, age"):
        mmattn.scores(found, by="height")
    with pytest.raises(UserError, match=r"Run\.predict_corpus returns, found Run"):
        mmattn.scores(run)
    with pytest.raises(UserError, match=r"Run\.predict_corpus returns, twice, found Run"):
        mmattn.paired(found, run)
    for clips in ([], [48], ["clip"], [True] * 48):
        with pytest.raises(UserError, match="one or more of the numbers 0 to 47"):
            run.predict_corpus(corpus, clips)


def test_the_process_stays_as_it_was(corpus, split, capfd):
    def state():
        logger = logging.getLogger("mmattn")
        about = [*logger.handlers], logger.level, logger.propagate
        return about, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    options = jax.config.values.copy()
    before = state()
    train = replace(CONFIG.train, epochs=1)
    recorder = Recorder()
    mmattn.fit(corpus, split, replace(CONFIG, train=train), [recorder, mmattn.Console()])
    assert state() == before and jax.config.values == options
    out, err = capfd.readouterr()
    (line,) = out.splitlines()
    assert line.startswith("epoch   1  loss ") and err == ""
    assert recorder.heard == [("begin", 0), (1, 1), ("complete", 1)]


@pytest.mark.parametrize("way", ["stop", "interrupt"])
def test_it_can_end_early_and_be_resumed_to_the_same_end(corpus, split, run, tmp_path, caplog, way):
    def end(one, row):
        if row["epoch"] == 2 and way == "interrupt":
            raise KeyboardInterrupt
        if row["epoch"] == 2:
            one.stop()

    recorder = Recorder(end)
    stopped = mmattn.fit(corpus, split, CONFIG, [recorder], tmp_path / "run")
    assert stopped.status == "stopped" and not stopped.complete
    assert recorder.heard == [("begin", 0), (1, 1), (2, 2), ("stopped", 2)]
    assert stopped.predict_corpus(corpus, split.test).probabilities.shape == (len(split.test), 6)
    caplog.set_level("INFO", "mmattn")
    mmattn.load_run(tmp_path / "run")
    assert "/run: its training is not complete: its best checkpoint so far is used" in caplog.text
    recorder = Recorder()
    resumed = mmattn.fit(corpus, split, CONFIG, [recorder], tmp_path / "run", resume=True)
    caplog.clear()
    assert mmattn.load_run(tmp_path / "run").complete and not caplog.text
    assert recorder.heard == [("begin", 2), (3, 3), ("complete", 3)]
    assert resumed.complete and measured(resumed) == measured(run)
    found, expected = (one.predict_corpus(corpus, split.test) for one in (resumed, run))
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    other = replace(CONFIG, seed=5)
    with pytest.raises(UserError, match="expected the config and data that it began with"):
        mmattn.fit(corpus, split, other, folder=tmp_path / "run", resume=True)


def test_a_callback_predicts_with_the_best_so_far(corpus, split):
    found = []

    def predict(run, row):
        found.append(run.predict_corpus(corpus, split.validation))
        about = run.checkpoints.about("best")
        right = (found[-1].predicted == found[-1].labels).mean()
        assert right == about["history"][-1]["validation_accuracy"]

    mmattn.fit(corpus, split, CONFIG, [Recorder(predict)])
    assert len(found) == 3


def test_a_run_saved_in_training_is_a_copy(corpus, split, run, tmp_path):
    def save(one, row):
        assert one.status == "running"
        one.save(tmp_path / str(row["epoch"]))

    whole = mmattn.fit(corpus, split, CONFIG, [Recorder(save)])
    assert whole.folder is None and measured(whole) == measured(run)
    found, expected = (one.predict_corpus(corpus, split.test) for one in (whole, run))
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    assert len(mmattn.load_run(tmp_path / "2").history) == 2
    # It goes on from there.
    resumed = mmattn.fit(corpus, split, CONFIG, folder=tmp_path / "2", resume=True)
    assert resumed.complete and measured(resumed) == measured(run)


def test_a_split_is_that_of_the_corpus_and_of_the_run(corpus, split, tmp_path):
    overlapping = replace(split, test=split.train)
    with pytest.raises(UserError, match=r"in train .* and in test"):
        mmattn.fit(corpus, overlapping, CONFIG)
    with pytest.raises(UserError, match="test clips of the split: expected numbers below 48"):
        mmattn.fit(corpus, replace(split, test=np.array([48])), CONFIG)
    stop = Recorder(lambda run, row: run.stop())
    mmattn.fit(corpus, split, CONFIG, [stop], tmp_path / "run")
    other = mmattn.split(corpus, validation=0.25, test=0.4, seed=2)
    with pytest.raises(UserError, match="expected the split that it began with"):
        mmattn.fit(corpus, other, CONFIG, folder=tmp_path / "run", resume=True)


def test_an_interrupt_before_the_first_epoch_is_one(corpus, split):
    class Now(mmattn.Callback):
        def on_train_begin(self, run):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mmattn.fit(corpus, split, CONFIG, [Now()])


def test_folds_leave_one_speaker_out(corpus):
    splits = list(mmattn.folds(corpus, by="speaker", validation=0.3))
    assert len(splits) == 8
    np.testing.assert_array_equal(np.sort(np.concatenate([one.test for one in splits])), range(48))
    for one in splits:
        speakers = [set(corpus.speakers[clips]) for clips in one.clips.values()]
        assert not set.intersection(*speakers) and len(speakers[2]) == 1


def test_a_split_that_leaks_warns(corpus):
    takes = np.array([str(clip % 7) for clip in range(48)])
    mixed = replace(corpus, columns={"take": takes})
    with pytest.warns(mmattn.LeakWarning, match="LEAKS SPEAKERS"):
        split = mmattn.split(mixed, disjoint=["take"])
    assert split.leaking is True
    unknown = replace(corpus, speakers=np.full(48, ""))
    with pytest.raises(UserError, match="48 of 48 clips have no speaker"):
        mmattn.split(unknown)


def test_wrong_options_are_clear(corpus, split, tmp_path):
    with pytest.raises(UserError, match="fit trains one network"):
        mmattn.fit(corpus, split, replace(CONFIG, ensemble_size=2))
    with pytest.raises(UserError, match="devices 99: expected 1 to"):
        mmattn.fit(corpus, split, replace(CONFIG, devices=99))
    with pytest.raises(UserError, match="nowhere"):
        mmattn.load_corpus("/nowhere")
    with pytest.raises(ValueError, match=r"train\.batch"):
        mmattn.fit(corpus, split, replace(CONFIG, train=mmattn.TrainConfig(batch=1)))
    for train, what in (({"schedule": "linear"}, "schedule"), ({"epochs": 1.5}, "epochs")):
        with pytest.raises(UserError, match=rf"train\.{what}"):
            mmattn.fit(corpus, split, replace(CONFIG, train=mmattn.TrainConfig(**train)))
    with pytest.raises(UserError, match=r"expected mmattn\.Config, found TrainConfig"):
        mmattn.fit(corpus, split, CONFIG.train)
    with pytest.raises(UserError, match=r"corpus: .* mmattn\.load_corpus returns, found str"):
        mmattn.fit("FEATURES", split, CONFIG)
    with pytest.raises(UserError, match=r"split: .* mmattn\.split returns.*, found NoneType"):
        mmattn.fit(corpus, None, CONFIG)
    with pytest.raises(UserError, match=r"callbacks: .* mmattn\.Callback, found type"):
        mmattn.fit(corpus, split, CONFIG, [mmattn.Console])
    with pytest.raises(UserError, match=r"paths: expected paths, .*, found list"):
        mmattn.load_corpus(["FEATURES"])
    with pytest.raises(UserError, match=r"corpus: .*, found str"):
        mmattn.split("FEATURES")
    deaf = replace(corpus, streams={"audio": corpus.streams["audio"]})
    with pytest.raises(UserError, match="modalities video: the corpus has audio"):
        mmattn.fit(deaf, split, CONFIG)
    copies = replace(CONFIG, augment=mmattn.AugmentConfig(variants={"tempo": 0.5}))
    with pytest.raises(UserError, match=r"augment\.variants tempo: .* found none"):
        mmattn.fit(corpus, split, copies)
    with pytest.raises(UserError, match=r"data\.test 0: expected above 0, below 1"):
        mmattn.split(corpus, test=0)
    with pytest.raises(UserError, match="devices 0: expected 1 or more"):
        mmattn.start(0)
    (file := tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: expected a folder"):
        mmattn.fit(corpus, split, CONFIG, folder=file)


def test_a_folder_of_its_name_does_not_hide_it(tmp_path):
    """As a clone does from the folder beside it."""
    (tmp_path / "mmattn").mkdir()
    command = [sys.executable, "-c", "import mmattn; mmattn.Config"]
    assert not subprocess.run(command, cwd=tmp_path).returncode


def test_to_import_the_package_is_light():
    script = "import sys, mmattn; print([n for n in ('jax', 'numpy', 'tyro') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_every_name_is_there():
    assert {*mmattn.__all__} <= {*dir(mmattn)}
    assert all(getattr(mmattn, name) for name in mmattn.__all__)
    with pytest.raises(AttributeError, match="no attribute 'evaluate_all'"):
        mmattn.evaluate_all  # noqa: B018
