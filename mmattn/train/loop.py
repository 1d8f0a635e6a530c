"""The one training loop: epochs, validation, checkpoints, early stopping, resuming."""

import copy
import json
import signal
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from mmattn.config import ExperimentConfig, ModelConfig, TrainConfig, config_from_json
from mmattn.console import progress, say
from mmattn.data.batches import Augmentation, Bucket, Dispatch, make_buckets, plan_epoch
from mmattn.data.corpus import Corpus
from mmattn.data.extractor import difference
from mmattn.data.normalise import BLOCKS, Normaliser, fit_normaliser
from mmattn.data.splits import Split
from mmattn.errors import Diverged, Stopped, UserError
from mmattn.evaluate.metrics import METRICS, metric_values
from mmattn.files import write_text
from mmattn.model.fusion import fusion_of
from mmattn.train import devices, processes
from mmattn.train.checkpoints import Checkpoints, Kind
from mmattn.train.history import best_epoch, finished, score_text, shown_scores
from mmattn.train.loss import balanced_class_weights, soft_class_weights
from mmattn.train.predict import (
    ClipInspections,
    ClipPredictions,
    Feed,
    inspect_clips,
    predict_clips,
    to_predictions,
)
from mmattn.train.step import (
    NO_SUMS,
    Learner,
    Settings,
    StepCheck,
    Sums,
    TrainState,
    random_key,
)


class Trainer:
    """One network with its data and devices; what training, resuming and evaluation share."""

    def __init__(
        self,
        config: ExperimentConfig,
        corpus: Corpus,
        normaliser: Normaliser,
        class_weights: np.ndarray | None,
        clips: np.ndarray,
        device_count: int,
    ):
        classes = len(corpus.class_names)
        self.config, self.corpus, self.normaliser = config, corpus, normaliser
        self.device_count = device_count
        self.learner = compiled_learner(
            config.model,
            config.train,
            tuple(corpus.widths.items()),
            classes,
            device_count,
            fusion_of(config.model.fusion).geometry(corpus.streams, config.model),
        )
        self.initial = self.learner.initial(config.seed)
        if class_weights is None:
            class_weights = np.ones(classes, np.float32)
        key, rate = random_key(config.seed, "dropout"), np.float32(config.train.learning_rate)
        self.settings = Settings(key, class_weights, rate)
        buckets = make_buckets(corpus, clips, config.data.buckets)
        self.feed = Feed(corpus, normaliser, buckets, config.train.batch, device_count)
        self.about = {
            "config": config.to_json(),
            "class_names": list(corpus.class_names),
            "widths": corpus.widths,
            "devices": device_count,
            "extractor": corpus.extractor,
        }

    def start(self) -> tuple[TrainState, Sums]:
        """The state before the first step and empty sums, on the devices."""
        return self.learner.shard_state(self.initial), self.no_sums()

    def no_sums(self) -> Sums:
        """Empty sums on the devices."""
        return devices.replicate(NO_SUMS, self.device_count)

    def save(
        self, checkpoints: Checkpoints, kind: Kind, state: TrainState, sums: Sums, **about: Any
    ) -> None:
        """Save a checkpoint; `about` joins what holds for the run."""
        state = self.learner.gather_state(state)
        arrays = self._arrays(state, devices.fetch(sums), self.normaliser)
        checkpoints.save(kind, int(state.step), arrays, {**self.about, **about})

    def load(self, checkpoints: Checkpoints, kind: Kind) -> tuple[TrainState, Sums]:
        """A checkpoint's state on the devices, and its sums; sets the normaliser to its own."""
        about = checkpoints.about(kind)
        if about is None:
            raise UserError(f"{checkpoints.folder}: expected a {kind} checkpoint, found none")
        sums = jax.tree.map(lambda x: np.repeat(x, about["devices"]), NO_SUMS)
        like = self._arrays(self.initial, sums, self.normaliser)
        arrays = checkpoints.load(kind, like)
        self.normaliser = arrays["normaliser"]
        self.feed = self.feed._replace(normaliser=self.normaliser)
        return self.learner.shard_state(arrays["state"]), self._spread(arrays["sums"])

    def _spread(self, sums: Sums) -> Sums:
        """Sums of as many devices as this trainer has; NumPy arrays [D]."""
        count = self.device_count
        if len(sums.clips) == count:
            return sums
        return jax.tree.map(
            lambda x: np.where(np.arange(count) == 0, x.sum(), x.dtype.type(0)), sums
        )

    def predict(self, state: TrainState, clips: np.ndarray) -> ClipPredictions:
        """Predict the clips at these positions [n] of the corpus.

        Raises:
            Diverged: a prediction is not finite.
        """
        found = predict_clips(self.learner, state, self.settings, self.feed, clips)
        bad = ~np.isfinite(found.probabilities).all(1) | ~np.isfinite(found.loss)
        if bad.any():
            names = ", ".join(self.corpus.names[clip] for clip in clips[bad])
            raise Diverged(f"the prediction is not finite for {names}; expected finite numbers")
        return found

    def inspect(self, state: TrainState, clips: np.ndarray) -> ClipInspections:
        """Look inside the network for the clips at these positions [n] of the corpus."""
        return inspect_clips(self.learner, state, self.feed, clips)

    def with_corpus(self, corpus: Corpus, buckets: list[Bucket] | None = None) -> "Trainer":
        """The same network for other clips, which must fit the buckets: these or its own."""
        other = copy.copy(self)
        other.corpus = corpus
        other.feed = self.feed._replace(corpus=corpus, buckets=buckets or self.feed.buckets)
        return other

    @staticmethod
    def _arrays(state: TrainState, sums: Sums, normaliser: Normaliser) -> dict:
        return {"state": state, "sums": sums, "normaliser": normaliser}


@lru_cache(2)  # the second is of process 0 alone, which writes the results
def compiled_learner(
    model: ModelConfig,
    train: TrainConfig,
    widths: tuple[tuple[str, int], ...],
    classes: int,
    device_count: int,
    geometry: Hashable,
) -> Learner:
    """A learner that all networks of a run share, so that each shape compiles once."""
    return Learner(model, train, dict(widths), classes, device_count, geometry)


def make_trainer(
    config: ExperimentConfig, corpus: Corpus, split: Split, device_count: int
) -> Trainer:
    """A trainer whose normalisation and class weights come from the training clips alone."""
    own = processes.own_part(BLOCKS)
    normaliser = fit_normaliser(corpus, split.train, own, processes.arrays_from_all)
    weights = None
    if config.train.class_weights:
        if corpus.targets is not None:
            weights = soft_class_weights(corpus.targets[split.train])
        else:
            labels = corpus.labels[split.train]
            weights = balanced_class_weights(labels, len(corpus.class_names))
    clips = np.concatenate([split.train, split.validation, split.test])
    return Trainer(config, corpus, normaliser, weights, clips, device_count)


def fit(
    trainer: Trainer,
    split: Split,
    folder: Path,
    resume: bool,
    asked: processes.AgreedStop,
) -> list[dict]:
    """Train to the end, from the latest checkpoint with `resume`; returns a row an epoch.

    The best and the final checkpoint are in `folder` afterwards. Every random choice depends on
    the seed and the step or epoch, so a run that was killed and resumed ends the same.

    Raises:
        Diverged: a loss or gradient is not finite; checkpoints before it are kept.
        Stopped: `asked` was set; the state was saved.
        UserError: the disk is full, or other training clips or features than before.
    """
    config, checkpoints = trainer.config.train, Checkpoints(folder)
    state, sums = trainer.start()
    history, done = [], 0
    about = checkpoints.about("latest") if resume else None
    if about is not None:
        check_extractor(folder, about, trainer.corpus, split.train)
        fitted = trainer.normaliser
        state, sums = trainer.load(checkpoints, "latest")
        if not all(np.array_equal(fitted[name], trainer.normaliser[name]) for name in fitted):
            raise UserError(f"{folder}: the training clips are not those that it began with")
        sums = devices.place_own(sums)
        history, done = about["history"], about["dispatches"]
        say(f"resumed after epoch {len(history)} and {done} dispatches of the next")
    write_metrics(folder, history)
    while not finished(history, config):
        begin = time.perf_counter()
        rate = learning_rate(config, history)
        state, sums, done = _train_epoch(
            trainer, split, state, sums, len(history), done, rate, asked.is_set
        )
        if asked.is_set():
            trainer.save(checkpoints, "latest", state, sums, history=history, dispatches=done)
            raise Stopped(f"SIGTERM in epoch {len(history) + 1} of {folder}: saved")
        row = _epoch_row(trainer, split, state, sums, len(history) + 1, rate, begin)
        history = [*history, row]
        sums, done = trainer.no_sums(), 0
        if best_epoch(history, config.monitor) == len(history):
            trainer.save(checkpoints, "best", state, sums, history=history, dispatches=0)
        if len(history) % config.save_every == 0:
            trainer.save(checkpoints, "latest", state, sums, history=history, dispatches=0)
        write_metrics(folder, history)
        _say_epoch(history, config.monitor)
    trainer.save(checkpoints, "final", state, sums, history=history, dispatches=0)
    return history


def _train_epoch(
    trainer: Trainer,
    split: Split,
    state: TrainState,
    sums: Sums,
    epoch: int,
    done: int,
    rate: float,
    stop: Callable[[], bool],
) -> tuple[TrainState, Sums, int]:
    """Train on the dispatches of an epoch from number `done` on, until its end or a stop.

    Each dispatch is checked while the devices work on the next one.
    """
    config, learner = trainer.config.train, trainer.learner
    settings = trainer.settings._replace(learning_rate=np.float32(rate))
    plan = epoch_plan(trainer, split.train, epoch)
    before = epoch * steps_an_epoch(split, config) + sum(len(d.batches) for d in plan[:done])
    unchecked = None
    augmentation = Augmentation(trainer.config.augment, trainer.config.seed, epoch)
    feed = trainer.feed(plan[done:], config.steps_per_dispatch, augmentation)
    with progress(f"epoch {epoch + 1}", len(split.train)) as advance:
        advance(sum(len(clips) for dispatch in plan[:done] for clips in dispatch.batches))
        for dispatch, (_, placed) in zip(plan[done:], feed, strict=True):
            count = np.int32(len(dispatch.batches))
            state, sums, check = learner.train(state, sums, placed, count, settings)
            if unchecked:
                check_finite(trainer.corpus, *unchecked)
            unchecked = check, dispatch, before, epoch
            before += len(dispatch.batches)
            done += 1
            advance(sum(map(len, dispatch.batches)))
            if stop():
                break
        if unchecked:
            check_finite(trainer.corpus, *unchecked)
    return state, sums, done


def epoch_plan(trainer: Trainer, clips: np.ndarray, epoch: int) -> list[Dispatch]:
    """The dispatches of an epoch (from 0), in an order drawn from (seed, epoch)."""
    config, feed = trainer.config, trainer.feed
    rng = np.random.default_rng([config.seed, epoch])
    steps = config.train.steps_per_dispatch
    return plan_epoch(feed.corpus, clips, feed.buckets, feed.batch, steps, rng)


def steps_an_epoch(split: Split, config: TrainConfig) -> int:
    """Optimiser steps of an epoch: the last batch may be incomplete."""
    return -(-len(split.train) // config.batch)


def check_finite(
    corpus: Corpus, check: StepCheck, dispatch: Dispatch, before: int, epoch: int
) -> None:
    """Raise Diverged at the first step with a loss or gradient that is not finite.

    Args:
        corpus: names the clips.
        check: of all devices, with a leading axis D.
        dispatch: the clips of each step.
        before: steps before this dispatch.
        epoch: from 0.
    """
    features, losses, squares = devices.to_host(check)
    for number, clips in enumerate(dispatch.batches):
        bad_features, bad_loss = (
            ~found[:, number].ravel()[: len(clips)] for found in (features, losses)
        )
        if not bad_loss.any() and np.isfinite(squares[:, number]).all():
            continue
        what = "loss" if bad_loss.any() else "gradient"
        culprits = next((bad for bad in (bad_features, bad_loss) if bad.any()), slice(None))
        names = [corpus.names[clip] for clip in clips[culprits]]
        raise Diverged(
            f"training diverged at step {before + number + 1} (epoch {epoch + 1}): the {what} is "
            f"not finite for {', '.join(names)}; expected finite numbers. Checkpoints of earlier "
            "epochs are kept. A lower --train.learning-rate or an outlier in these clips may be it."
        )


def _epoch_row(
    trainer: Trainer,
    split: Split,
    state: TrainState,
    sums: Sums,
    epoch: int,
    rate: float,
    begin: float,
) -> dict:
    """Evaluate on the validation clips: one line of metrics.jsonl."""
    trained = time.perf_counter() - begin
    total = jax.tree.map(lambda x: float(x.sum(dtype=np.float64)), devices.fetch(sums))
    predictions = trainer.predict(state, split.validation)
    found = metric_values(to_predictions(trainer.corpus, split.validation, predictions))
    return {
        "epoch": epoch,
        "train_loss": total.loss / total.clips,
        "train_accuracy": total.correct / total.clips,
        "validation_loss": float(predictions.loss.mean()),
        **{
            f"validation_{name}": float(found[name])
            for name, metric in METRICS.items()
            if not metric.soft
        },
        "learning_rate": rate,
        "clips_per_s": len(split.train) / trained,
        "seconds": time.perf_counter() - begin,
    }


def learning_rate(config: TrainConfig, history: list[dict]) -> float:
    """The rate of the next epoch.

    Halved on a plateau of the validation loss, at least 1e-6; or a half cosine over the epochs.
    """
    if config.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(config.learning_rate, config.epochs)
        return float(schedule(len(history)))
    state, update = _plateau(config)
    for row in history:
        state = update(state, row["validation_loss"])
    return config.learning_rate * float(state.scale)


@lru_cache(1)
def _plateau(config: TrainConfig) -> tuple[optax.contrib.ReduceLROnPlateauState, Callable]:
    """The first state and a compiled update: as it is, optax compiles anew at each call."""
    plateau = optax.contrib.reduce_on_plateau(
        factor=0.5, patience=config.plateau, min_scale=min(1.0, 1e-6 / config.learning_rate)
    )
    return plateau.init(()), jax.jit(lambda state, loss: plateau.update((), state, value=loss)[1])


def write_metrics(folder: Path, history: list[dict]) -> None:
    """Write metrics.jsonl, a line an epoch; process 0 does."""
    text = "".join(json.dumps(row) + "\n" for row in history)
    processes.from_first(lambda: write_text(folder / "metrics.jsonl", text))


def _say_epoch(history: list[dict], monitor: str) -> None:
    row = history[-1]
    scores = "  ".join(score_text(row, name) for name in shown_scores(monitor))
    best = "  best" if best_epoch(history, monitor) == len(history) else ""
    say(
        f"epoch {row['epoch']:3d}  {scores}  lr {row['learning_rate']:.1e}  "
        f"{row['clips_per_s']:.0f} clips/s{best}"
    )


@contextmanager
def sigterm_asks() -> Iterator[processes.AgreedStop]:
    """An event that SIGTERM sets instead of ending the process, or any of several processes."""
    asked = processes.AgreedStop()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def restore(
    folder: Path, kind: Kind, corpus: Corpus, clips: np.ndarray, device_count: int
) -> tuple[Trainer, TrainState]:
    """The network of a run's checkpoint, with its own normalisation, ready to predict clips [n].

    Raises:
        UserError: there is no such checkpoint, or the corpus has other features or classes.
    """
    checkpoints = Checkpoints(folder)
    about = checkpoints.about(kind)
    if about is None:
        raise UserError(f"{folder}: expected a {kind} checkpoint, found none")
    check_extractor(folder, about, corpus, clips)
    if corpus.widths != about["widths"]:
        raise UserError(
            f"{folder} was trained on features a frame {about['widths']}, the clips have "
            f"{corpus.widths}"
        )
    if list(corpus.class_names) != about["class_names"]:
        raise UserError(
            f"{folder} was trained on the classes {', '.join(about['class_names'])}, the clips "
            f"have {', '.join(corpus.class_names)}"
        )
    config = config_from_json(about["config"])
    blank = fit_normaliser(corpus, clips[:0])
    trainer = Trainer(config, corpus, blank, None, clips, device_count)
    return trainer, trainer.load(checkpoints, kind)[0]


def check_extractor(folder: Path, about: dict, corpus: Corpus, clips: np.ndarray) -> None:
    """Raise UserError if the features of the clips [n] were not made as those of a checkpoint.

    Only the modalities that its network uses and the clips have are compared.
    """
    modalities = about["config"]["model"]["modalities"]
    used = [m for m in modalities if corpus.streams[m].lengths[clips].any()]
    # Checkpoints of earlier versions do not store it.
    both = corpus.extractor, about.get("extractor", {})
    found = difference(*({m: own[m] for m in used if m in own} for own in both))
    if found:
        raise UserError(
            f"{folder}: the clips' features are not those that it was trained on: {found}"
        )
