"""A trained run, in a folder or in memory: restores its networks once and predicts with them."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mmattn.config import ExperimentConfig, ExtractConfig
from mmattn.console import be_quiet, say
from mmattn.data.corpus import Corpus
from mmattn.data.stream import Stream
from mmattn.errors import UserError, expect
from mmattn.evaluate.calibration import calibrated
from mmattn.evaluate.metrics import scores
from mmattn.evaluate.predictions import (
    Predictions,
    combine,
    pool,
    predictions_of,
    read_predictions,
)
from mmattn.evaluate.views import ClipView, StreamView, view_clips
from mmattn.files import explain_full_disk, read_json, write_json
from mmattn.machine import end_children, without_interrupt
from mmattn.run.clips import Clip, ClipReader, Failure, Ready
from mmattn.run.folder import (
    PREDICTIONS,
    check_complete,
    check_new,
    make_folder,
    parts_of,
    read_config,
    write_config,
    write_environment,
)
from mmattn.run.shared import MODEL, find_shared, read_shared
from mmattn.train.callbacks import JsonLines
from mmattn.train.checkpoints import Checkpoints, Chosen, Exported, InMemory, about_of
from mmattn.train.devices import start_devices
from mmattn.train.inference import Ensemble, Predictor, Restored, check_fits, restore
from mmattn.train.processes import AgreedStop

Status = Literal["running", "complete", "stopped", "failed"]
CALIBRATED = ("ece", "log_loss", "brier")
AT_ONCE = 256  # clips in memory at once


@dataclass(frozen=True, eq=False)
class Prediction:
    """A run's prediction for a clip, or for a segment of it.

    probabilities [K] of class_names; streams: for each modality that was used, its times [T] (s),
    attention [T] and the features that the network saw; missing: the run's modalities that the clip
    lacks; notes: anything unusual about the clip. The attention sums to one over the frames of a
    modality (fusions concat and late) or of all together (cross).
    """

    clip: Clip
    class_names: tuple[str, ...]
    probabilities: np.ndarray
    streams: dict[str, StreamView]
    missing: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The file."""
        return self.clip.path

    @property
    def predicted(self) -> str:
        """The most probable class."""
        return self.class_names[self.probabilities.argmax()]


class Outcome(NamedTuple):
    """The clips that could be predicted, and the others, in their order."""

    predictions: list[Prediction]
    failures: list[Failure]


class Run:
    """A training, or several that belong together: folds or the networks of an ensemble.

    folder: or the model file that it comes from; None if the run is only in memory; config; parts:
    the runs of the folds or networks, empty for a single training; checkpoint: the one it predicts
    with; status; predictions: by split, if made in this process; trust: lines on what it is and how
    far to trust it, if it comes from a model file.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        folder: Path | None = None,
        parts: Sequence["Run"] = (),
        checkpoint: Chosen = "best",
        media: ExtractConfig | None = None,
        calibrated: bool = True,
        exported: Exported | None = None,
    ):
        """See `load_run`."""
        self.config, self.folder, self.parts, self.checkpoint = config, folder, parts, checkpoint
        self.checkpoints = exported or (InMemory() if folder is None else Checkpoints(folder))
        self.status: Status = "running"
        self.trust: tuple[str, ...] = ()
        self.predictions: dict[str, Predictions] = {}
        self.asked = AgreedStop()
        self._media, self._calibrated = media or ExtractConfig(), calibrated
        self._network: Restored | None = None
        self._ensemble: Ensemble | None = None

    @property
    def name(self) -> str:
        """A display name: the experiment and the folder."""
        if self.folder is None:
            return self.config.name
        folder = self.folder.absolute()
        parts = (folder.parent if folder.name == MODEL else folder).parts
        return "/".join(parts[parts.index(self.config.name) if self.config.name in parts else -1 :])

    @property
    def saved_in(self) -> Path:
        """Its folder or model file; UserError if it is only in memory."""
        if self.folder is None:
            raise UserError("the run is only in memory, expected one in a folder; see Run.save")
        return self.folder

    @property
    def complete(self) -> bool:
        """Whether its training is complete."""
        return self.status == "complete"

    def save(self, folder: Path | str) -> None:
        """Write a run in memory to a new folder, as if it had been trained there.

        During training, the folder gets a copy of the best so far.

        Raises:
            UserError: it has a folder, the new one is not empty, or the disk is full.
        """
        if not isinstance(self.checkpoints, InMemory):
            raise UserError(f"the run is already in {self.folder}")
        check_new(folder := make_folder(folder))
        copy = Run(self.config, folder)
        copy.history, checkpoints = self.history, Checkpoints(folder)
        with explain_full_disk(f"the run {folder}"):
            self.checkpoints.write(checkpoints)
            write_environment(folder, 1)
            write_json(folder / "split.json", self.split)
            JsonLines().on_train_begin(copy)
            write_config(folder, self.config)
        if self.status != "running":
            self.folder, self.checkpoints = folder, checkpoints

    def take(self, history: list[dict]) -> None:
        """Update to the rows and checkpoints that its training has now."""
        self.history, self._network, self._ensemble = history, None, None
        self.__dict__.pop("about", None)

    def stop(self) -> None:
        """Stop its training: after this epoch in `on_epoch_end`, else after the current steps."""
        self.asked.set()

    @property
    def networks(self) -> list["Run"]:
        """Its trainings of one network each."""
        return [network for part in self.parts for network in part.networks] or [self]

    @cached_property
    def history(self) -> list[dict]:
        """The rows of metrics.jsonl, one per epoch; empty for several trainings."""
        path = self.saved_in / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @cached_property
    def split(self) -> dict:
        """The content of the first training's split.json; UserError for a model file, which has
        none."""
        if isinstance(self.networks[0].checkpoints, Exported):
            raise UserError(f"{self.folder}: a shared model has no clips; expected a run's folder")
        return read_json(self.networks[0].saved_in / "split.json")

    @cached_property
    def about(self) -> dict:
        """The JSON of the first network's checkpoint; UserError if there is none."""
        return about_of(self.networks[0].checkpoints, self.checkpoint)

    def restored(self) -> list[Restored]:
        """Its networks as stored in their checkpoints."""
        return [network._restored(self._reader.corpus(["none"], [{}])) for network in self.networks]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the probabilities."""
        return tuple(self.about["class_names"])

    @property
    def widths(self) -> dict[str, int]:
        """Feature dimension by modality."""
        return self.about["widths"]

    @property
    def extractor(self) -> dict[str, dict]:
        """The extractors of the features it was trained on, by modality, if the files name them."""
        return self.about.get("extractor", {})

    def predictor(self, corpus: Corpus, clips: np.ndarray, device_count: int = 1) -> Predictor:
        """The first network, ready to predict clips [n] of a corpus.

        Raises:
            UserError: the corpus has other features or classes.
        """
        network = self.networks[0]
        check_fits(network.checkpoints, network.about, corpus, clips)
        return network._restored(corpus, device_count).predictor(corpus, clips, device_count)

    def predict_corpus(
        self, corpus: Corpus, clips: np.ndarray | None = None, device_count: int = 1
    ) -> Predictions:
        """Predict clips [n] of a corpus, by default all; several networks are pooled.

        Raises:
            UserError: the corpus has other features or classes, or lacks a clip.
        """
        expect("corpus", corpus, Corpus, "what mmattn.load_corpus returns")
        every = np.arange(len(corpus))
        clips = every if clips is None else np.asarray(clips)
        if not (clips.size and clips.dtype.kind in "iu" and np.isin(clips, every).all()):
            raise UserError(f"clips: expected one or more of the numbers 0 to {every[-1]}")
        found = [
            network._calibrate(network.predictor(corpus, clips, device_count).predict(clips)[1])
            for network in self.networks
        ]
        return predictions_of(corpus, clips, pool(found))

    def views(self, corpus: Corpus, clips: np.ndarray) -> list[ClipView]:
        """Clips [n] of a corpus as the first network sees them: attention, features, cues.

        Raises:
            UserError: the corpus has other features or classes.
        """
        views = self.predictor(corpus, clips).views(clips)
        calibrate = self.networks[0]._calibrate
        return [replace(one, probabilities=calibrate(one.probabilities)) for one in views]

    def predict(self, path: Path | str) -> Prediction:
        """Predict one clip, raw or a feature file.

        Raises:
            UserError: it cannot be predicted; the message gives the reason.
        """
        predictions, failures = self.predict_all([path])
        for failure in failures:
            raise UserError(f"{failure.path}: {failure.reason}")
        return predictions[0]

    def predict_all(
        self,
        clips: Sequence[Path | str | Clip],
        advance: Callable[[int], None] = lambda count: None,
    ) -> Outcome:
        """Predict several clips, which is much faster than one by one.

        Args:
            clips: clips, or paths of raw clips or feature files.
            advance: called with 1 after each clip is read.

        Raises:
            UserError: the run, or something that raw clips need, is unusable.
        """
        reader = self._reader

        def read(clip: Path | str | Clip) -> Ready | Failure:
            found = reader.read(clip if isinstance(clip, Clip) else Clip(Path(clip)))
            advance(1)
            return found

        found = self._ask(map(read, clips))
        predictions = [one for one in found if isinstance(one, Prediction)]
        return Outcome(predictions, [one for one in found if isinstance(one, Failure)])

    def predict_streams(
        self, clips: Sequence[Mapping[str, Stream]], names: Sequence[str] | None = None
    ) -> list[Prediction | Failure]:
        """Predict clips whose streams, by modality, are in memory, as `predict_all` does files.

        Args:
            clips: features from the run's own extractor, see `extraction`; times in seconds.
            names: the path in their predictions and failures (default: 0, 1, …).

        Returns:
            In the order of the clips, predictions or failures.
        """
        reader, named = self._reader, zip(names or map(str, count()), clips, strict=False)
        return self._ask(reader.take(Clip(Path(name)), streams) for name, streams in named)

    def extraction(self) -> ExtractConfig:
        """The config that extracts the run's features from raw clips.

        Raises:
            UserError: the feature files do not name their extractor, or this version's differs.
        """
        return self._reader.extraction()

    @property
    def _reader(self) -> ClipReader:
        shared = self.folder if isinstance(self.networks[0].checkpoints, Exported) else None
        about = self.class_names, self.widths, self.extractor
        return ClipReader(self.config, *about, self._media, shared)

    @property
    def is_calibrated(self) -> bool:
        """Whether it predicts with each network's temperature."""
        return self._calibrated and all(one.about.get("temperature") for one in self.networks)

    def calibrated(self, split: str) -> Predictions | None:
        """The stored predictions with its temperatures applied; None if a network has none."""
        if self.parts:
            found = [one for part in self.parts if (one := part.calibrated(split))]
            return combine(found) if len(found) == len(self.parts) else None
        if (temperature := self.about.get("temperature")) is None:
            return None
        raw = read_predictions(self.saved_in / PREDICTIONS[split])
        return replace(raw, probabilities=calibrated(raw.probabilities, temperature))

    def calibrated_scores(self, splits: Iterable[str]) -> dict[str, dict] | None:
        """By split, the scores that a temperature changes; None if a network has none."""
        found = {}
        for name in splits:
            if (predictions := self.calibrated(name)) is None:
                return None
            every = scores(predictions, self.config.seed)
            found[name] = {key: every[key] for key in CALIBRATED}
        return found

    def _restored(self, corpus: Corpus, device_count: int = 1) -> Restored:
        """The network of a single training, restored once."""
        if self._network is None:
            self._network = restore(self.checkpoints, self.checkpoint, corpus, device_count)
        return self._network

    def _calibrate(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities […, K] of a single training, calibrated if so set."""
        temperature = self.about.get("temperature") if self._calibrated else None
        return calibrated(probabilities, temperature) if temperature else probabilities

    def _ask(self, clips: Iterable[Ready | Failure]) -> list[Prediction | Failure]:
        """Predict the clips; those that failed already are kept."""
        clips, found = iter(clips), []
        while some := list(islice(clips, AT_ONCE)):
            views = iter(self._views([one for one in some if isinstance(one, Ready)]))
            found += [
                self._prediction(one, next(views)) if isinstance(one, Ready) else one
                for one in some
            ]
        return found

    def _prediction(self, ready: Ready, view: ClipView | None) -> Prediction | Failure:
        if view is None:
            reason = "the prediction is not finite; expected finite numbers"
            return Failure(ready.clip, reason)
        found = view.probabilities, view.streams
        return Prediction(ready.clip, self.class_names, *found, ready.missing, ready.notes)

    def _views(self, clips: Sequence[Ready]) -> list[ClipView | None]:
        """Each clip with the networks' mean attention; None where that is not finite."""
        if not clips:
            return []
        names, streams = [one.clip.title for one in clips], [one.streams for one in clips]
        corpus = self._reader.corpus(names, streams)
        networks = [network._restored(corpus) for network in self.networks]
        if self._ensemble is None:
            self._ensemble = Ensemble(networks)
        probabilities, attention = self._ensemble.predict(corpus)
        finite = np.isfinite(probabilities).all(axis=(1, 2))
        probabilities[~finite] = 1
        given = [
            network._calibrate(probabilities[:, number])
            for number, network in enumerate(self.networks)
        ]
        views = view_clips(
            corpus,
            range(len(corpus)),
            networks[0].normaliser,
            pool(given),
            [{name: of.mean(axis=0) for name, of in one.items()} for one in attention],
        )
        return [view if fine else None for view, fine in zip(views, finite, strict=True)]


def load_run(
    folder: Path | str,
    checkpoint: Chosen = "best",
    media: ExtractConfig | None = None,
    calibrated: bool = True,
    apart: bool = False,
) -> Run:
    """A run of a folder or a model file, ready to predict clips.

    Args:
        folder: the run's; the networks of folds or an ensemble are pooled. Or a model file written
            by `mmattn card`, or its folder; or starter, the model that comes with the package.
        checkpoint: of each network.
        media: where the models for raw clips are, if not in the default places.
        calibrated: calibrate probabilities by the temperature fitted to the validation clips, if
            there is one (for each network, before pooling).
        apart: have another process read the checkpoints, so that this one is 45 MB smaller.

    Raises:
        UserError: no run, folds or an ensemble that are not complete, a damaged file, or no such
            checkpoint.
    """
    folder = Path(folder)
    options = {"checkpoint": checkpoint, "media": media, "calibrated": calibrated}
    if file := find_shared(folder):
        run = _from_file(file, **options)
    else:
        run = _load(folder, read_config(folder), **options)
        if apart:
            _restore_apart(run)
    run.about  # noqa: B018, to say at once if it lacks
    if not run.complete:
        say(f"{folder}: its training is not complete: its {checkpoint} checkpoint so far is used")
    return run


def _restore_apart(run: Run) -> None:
    """Restore the networks of a run in another process: Orbax, TensorStore and what restoring
    compiles stay in memory to the end of a process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        try:
            with without_interrupt():
                asked = other.submit(_restore, run.saved_in, run.checkpoint)
            restored = asked.result()
        except BaseException:  # Ctrl-C too
            end_children()
            raise
    for network, one in zip(run.networks, restored, strict=True):
        network.about, network._network = one.about, one


def _restore(folder: Path, checkpoint: Chosen) -> list[Restored]:
    be_quiet()
    start_devices(1, batch=1)
    return load_run(folder, checkpoint).restored()


def _load(folder: Path, config: ExperimentConfig, **options: Any) -> Run:
    """The run of a folder; only a whole run and a training have their own config."""
    parts = parts_of(folder)
    if parts:
        check_complete(folder)
    if (folder / "config.json").exists():
        config = read_config(folder)
    run = Run(config, folder, [_load(part, config, **options) for part in parts], **options)
    ended = (folder / "summary.json").exists() or (folder / "checkpoints/final").is_dir()
    run.status = "complete" if ended else "stopped"
    return run


def _from_file(path: Path, **options: Any) -> Run:
    """The run of a model file; its networks are named as if it were a folder."""
    config, trust, networks = read_shared(path)
    parts = [Run(config, path / name, exported=one, **options) for name, one in networks.items()]
    run = parts[0] if len(parts) == 1 else Run(config, path, parts, **options)
    run.trust, run.status = trust, "complete"
    return run
