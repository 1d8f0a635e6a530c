"""The one training loop: epochs, validation, checkpoints, early stopping, resuming."""

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from mmattn.config import ExperimentConfig, TrainConfig
from mmattn.console import progress, say
from mmattn.data.batches import Augmentation, Dispatch, make_buckets, plan_epoch
from mmattn.data.corpus import Corpus
from mmattn.data.normalise import BLOCKS, Normaliser, fit_normaliser
from mmattn.data.splits import Split
from mmattn.errors import Diverged, Stopped, UserError
from mmattn.evaluate.calibration import log_weights, temperature
from mmattn.evaluate.metrics import METRICS, metric_values
from mmattn.evaluate.predictions import Predictions, pool_votes, predictions_of
from mmattn.model.fusion import fusion_of
from mmattn.train import devices, processes
from mmattn.train.checkpoints import Checkpoints, InMemory, Kind, about_of
from mmattn.train.feed import Feed
from mmattn.train.history import best_epoch, end_reason
from mmattn.train.inference import Predictor, check_extractor, learner_for
from mmattn.train.loss import balanced_class_weights, soft_class_weights
from mmattn.train.step import NO_SUMS, Settings, StepCheck, Sums, TrainState, random_key


class Position(NamedTuple):
    """The position of a training within an epoch."""

    state: TrainState
    sums: Sums
    dispatches: int = 0
    """Dispatches done."""
    norms: tuple[float, ...] = ()
    """Norm of the gradient at each of their steps."""


class Trainer:
    """One network in training, with its data and devices."""

    def __init__(
        self,
        config: ExperimentConfig,
        corpus: Corpus,
        normaliser: Normaliser,
        class_weights: np.ndarray | None,
        clips: np.ndarray,
        device_count: int,
    ):
        self.config, self.corpus, self.device_count = config, corpus, device_count
        self.learner = learner_for(config, corpus, device_count)
        self.initial = self.learner.initial(config.seed)
        if class_weights is None:
            class_weights = np.ones(len(corpus.class_names), np.float32)
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

    def predictor(self, state: TrainState) -> Predictor:
        """The network in this state."""
        weights = self.learner.weights(state)
        return Predictor(self.config, self.learner, weights, self.settings.class_weights, self.feed)

    @property
    def fits_weights(self) -> bool:
        """Whether modality weights are fitted to validation clips."""
        model = self.config.model
        return fusion_of(model.fusion).late and model.late_weights == "validation"

    def fit_weights(
        self, state: TrainState, clips: np.ndarray, votes: np.ndarray
    ) -> tuple[TrainState, dict[str, float], np.ndarray]:
        """Fit the modality weights to the votes [n, M, K] for clips [n].

        Returns:
            The state with the weights; the weights by modality, of sum 1; probabilities [n, K].
        """
        labels = self.corpus.labels[clips]
        fitted = np.array(processes.from_first(lambda: log_weights(votes, labels).tolist()))
        shares = np.exp(fitted) / np.exp(fitted).sum()
        weights = dict(zip(sorted(self.config.model.modalities), shares.tolist(), strict=True))
        probabilities = np.exp(pool_votes(votes, fitted))
        return self.learner.with_log_weights(state, fitted), weights, probabilities

    def save(
        self, checkpoints: Checkpoints | InMemory, kind: Kind, at: Position, about: dict
    ) -> None:
        """Save a checkpoint of the training; `about` is added to its JSON."""
        state = self.learner.gather_state(at.state)
        about = {**about, "dispatches": at.dispatches, "gradient_norms": at.norms}
        arrays = self._arrays(state, devices.fetch(at.sums))
        checkpoints.save(kind, int(state.step), arrays, {**self.about, **about})

    def load(self, checkpoints: Checkpoints | InMemory, kind: Kind) -> tuple[TrainState, Sums]:
        """A checkpoint's state and sums on the devices; UserError if its normaliser differs."""
        count = about_of(checkpoints, kind)["devices"]
        sums = jax.tree.map(lambda x: np.repeat(x, count), NO_SUMS)
        arrays = checkpoints.load(kind, self._arrays(self.initial, sums))
        fitted = self.feed.normaliser
        if not all(np.array_equal(fitted[name], arrays["normaliser"][name]) for name in fitted):
            raise UserError(f"{checkpoints}: the training clips differ from those it began with")
        state = self.learner.shard_state(arrays["state"])
        return state, devices.place_own(self._spread(arrays["sums"]))

    def _spread(self, sums: Sums) -> Sums:
        """The sums for this trainer's number of devices; NumPy arrays [D]."""
        count = self.device_count
        if len(sums.clips) == count:
            return sums
        return jax.tree.map(
            lambda x: np.where(np.arange(count) == 0, x.sum(), x.dtype.type(0)), sums
        )

    def _arrays(self, state: TrainState, sums: Sums) -> dict:
        return {"state": state, "sums": sums, "normaliser": self.feed.normaliser}


def make_trainer(
    config: ExperimentConfig, corpus: Corpus, split: Split, device_count: int
) -> Trainer:
    """A trainer whose normalisation and class weights come from the training clips only."""
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


def train(
    trainer: Trainer,
    split: Split,
    checkpoints: Checkpoints | InMemory,
    resume: bool,
    asked: processes.AgreedStop,
    begin: Callable[[list[dict]], None] = lambda history: None,
    report: Callable[[list[dict]], None] = lambda history: None,
) -> list[dict]:
    """Train to the end, from the latest checkpoint with `resume`; returns one row per epoch.

    Afterwards `checkpoints` has the best and the final checkpoint. Every random choice depends on
    the seed and the step or epoch, so a run that was killed and resumed gives the same result.

    Args:
        trainer: for the split's clips.
        split: of the trainer's corpus.
        checkpoints: where checkpoints are stored.
        resume: continue from the latest checkpoint, if there is one.
        asked: whether to stop.
        begin: called with the history before the first epoch; after a resume it is not empty.
        report: called with the history after each epoch, when its checkpoints are saved.

    Raises:
        Diverged: a loss or gradient is not finite; checkpoints before it are kept.
        Stopped: `asked` was set; the state was saved.
        UserError: the disk is full, or the training clips or features have changed.
    """
    config = trainer.config.train
    history, at = [], Position(*trainer.start())
    about = checkpoints.about("latest") if resume else None
    if about is not None:
        check_extractor(checkpoints, about, trainer.corpus, split.train)
        norms = tuple(about.get("gradient_norms", ()))  # runs of version 1 have none
        at = Position(*trainer.load(checkpoints, "latest"), about["dispatches"], norms)
        history = about["history"]
        say(f"resumed after epoch {len(history)} and {at.dispatches} dispatches of the next")
    begin(history)
    weights = None

    def validate() -> tuple[float, Predictions]:
        nonlocal at, weights
        found = trainer.predictor(at.state).predict(split.validation)
        if trainer.fits_weights:
            state, weights, shares = trainer.fit_weights(at.state, split.validation, found.votes)
            at = at._replace(
                state=state
            )  # the losses are those of each modality alone, and stay the same
            found = found._replace(probabilities=shares)
        own = predictions_of(trainer.corpus, split.validation, found.probabilities)
        return float(found.loss.mean()), own

    def save(kind: Kind, **about: Any) -> None:
        trainer.save(checkpoints, kind, at, {"history": history, **about})

    found = None
    while not end_reason(history, config):
        start = time.perf_counter()
        rate = learning_rate(config, history)
        if not asked.is_set():
            at = _train_epoch(trainer, split, at, len(history), rate, asked.is_set)
        if asked.is_set():
            save("latest")
            raise Stopped(f"stopped in epoch {len(history) + 1} of {checkpoints}: saved")
        trained = time.perf_counter() - start
        loss, found = validate()
        row = _epoch_row(at, len(history) + 1, rate, loss, found)
        row["clips_per_s"] = len(split.train) / trained
        history = [*history, row | {"seconds": time.perf_counter() - start}]
        at = Position(at.state, trainer.no_sums())
        if best_epoch(history, config.monitor) == len(history):
            save("best", temperature=temperature(found), late_weights=weights)
        if len(history) % config.save_every == 0:
            save("latest")
        report(history)
    found = found or validate()[1]
    save("final", temperature=temperature(found), late_weights=weights)
    return history


def _train_epoch(
    trainer: Trainer, split: Split, at: Position, epoch: int, rate: float, stop: Callable[[], bool]
) -> Position:
    """Train on the remaining dispatches of an epoch (from 0), until its end or a stop.

    Each dispatch is checked while the devices work on the next one.
    """
    config, learner = trainer.config.train, trainer.learner
    settings = trainer.settings._replace(learning_rate=np.float32(rate))
    state, sums, done, norms = at
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
                norms = norms + gradient_norms(trainer.corpus, *unchecked)
            unchecked = check, dispatch, before, epoch
            before += len(dispatch.batches)
            done += 1
            advance(sum(map(len, dispatch.batches)))
            if stop():
                break
        if unchecked:
            norms = norms + gradient_norms(trainer.corpus, *unchecked)
    return Position(state, sums, done, norms)


def epoch_plan(trainer: Trainer, clips: np.ndarray, epoch: int) -> list[Dispatch]:
    """The dispatches of an epoch (from 0), in an order drawn from (seed, epoch)."""
    config, feed = trainer.config, trainer.feed
    rng = np.random.default_rng([config.seed, epoch])
    steps = config.train.steps_per_dispatch
    return plan_epoch(feed.corpus, clips, feed.buckets, feed.batch, steps, rng)


def steps_an_epoch(split: Split, config: TrainConfig) -> int:
    """Optimiser steps per epoch: the last batch may be incomplete."""
    return -(-len(split.train) // config.batch)


def gradient_norms(
    corpus: Corpus, check: StepCheck, dispatch: Dispatch, before: int, epoch: int
) -> tuple[float, ...]:
    """The norm of each step's gradient; Diverged at the first gradient or loss that is not finite.

    Args:
        corpus: for the names of the clips.
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
            "epochs, if any, are kept. Try a lower --train.learning-rate; look for outliers in "
            "these clips."
        )
    norms = np.sqrt(squares.sum(axis=0, dtype=np.float64))
    return tuple(norms[: len(dispatch.batches)].tolist())


def _epoch_row(at: Position, epoch: int, rate: float, loss: float, found: Predictions) -> dict:
    """The row of an epoch: scores on the training and, from `found`, the validation clips."""
    total = jax.tree.map(lambda x: float(x.sum(dtype=np.float64)), devices.fetch(at.sums))
    values = metric_values(found)
    return {
        "epoch": epoch,
        "train_loss": total.loss / total.clips,
        "train_accuracy": total.correct / total.clips,
        "validation_loss": loss,
        **{
            f"validation_{name}": float(values[name])
            for name, metric in METRICS.items()
            if not metric.soft
        },
        "learning_rate": rate,
        **({"gradient_norm": float(np.mean(at.norms))} if at.norms else {}),
    }


def learning_rate(config: TrainConfig, history: list[dict]) -> float:
    """The learning rate of the next epoch.

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
    """The first state and a compiled update: plain optax recompiles at each call."""
    plateau = optax.contrib.reduce_on_plateau(
        factor=0.5, patience=config.plateau, min_scale=min(1.0, 1e-6 / config.learning_rate)
    )
    return plateau.init(()), jax.jit(lambda state, loss: plateau.update((), state, value=loss)[1])
