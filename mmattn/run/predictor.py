"""A trained run's predictions for new clips, raw ones or feature files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from mmattn.config import ExtractConfig, config_from_json
from mmattn.data.corpus import Corpus, crop_and_tile
from mmattn.data.extractor import difference
from mmattn.data.feature_file import BadClip, read_features
from mmattn.data.stream import Stream, make_stream, pack_streams
from mmattn.errors import Diverged, UserError
from mmattn.evaluate.views import ClipView, StreamView
from mmattn.media import explain_missing_library, is_feature_file
from mmattn.run.folder import check_complete, parts_of, read_config
from mmattn.run.views import view_clips
from mmattn.train.checkpoints import Checkpoints
from mmattn.train.loop import restore


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a run predicts for a clip.

    probabilities [K] of class_names; streams: of each modality that was predicted from, its times
    [T] (s) and attention [T], with the features that the network saw; missing: the modalities that
    the run uses and the clip lacks; notes: what was unusual about it. The attention sums to one
    over the frames of a modality (fusion concat) or of both together (cross).
    """

    path: Path
    class_names: tuple[str, ...]
    probabilities: np.ndarray
    streams: dict[str, StreamView]
    missing: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def predicted(self) -> str:
        """The most probable class."""
        return self.class_names[self.probabilities.argmax()]


class Failure(NamedTuple):
    """A clip that cannot be predicted, and why."""

    path: Path
    reason: str


class Outcome(NamedTuple):
    """Of the clips asked about, in their order, those that could be predicted and the others."""

    predictions: list[Prediction]
    failures: list[Failure]


class _Ready(NamedTuple):
    """A clip as the network may see it; a modality that it lacks has no frames."""

    path: Path
    streams: dict[str, Stream]
    missing: tuple[str, ...]
    notes: tuple[str, ...]


class Predictor:
    """The networks of a run, ready for clips; several are averaged.

    trainings: the folders of the networks; extractor: what made the features that they were
    trained on, by modality, as far as their files tell.
    """

    def __init__(
        self,
        run: Path,
        checkpoint: Literal["best", "final"] = "best",
        media: ExtractConfig | None = None,
    ):
        """Read what the run is.

        Args:
            run: its folder; of folds or an ensemble, all networks are asked.
            checkpoint: of each.
            media: where the models for raw clips are. What is extracted is the run's affair.

        Raises:
            UserError: no run, one that is not complete, or no such checkpoint.
        """
        self.run, self.checkpoint = run, checkpoint
        read_config(run)
        self.trainings = _trainings(run)
        about = Checkpoints(self.trainings[0]).about(checkpoint)
        if about is None:
            raise UserError(f"{self.trainings[0]}: expected a {checkpoint} checkpoint, found none")
        self.config = config_from_json(about["config"])
        self.class_names, self.widths = tuple(about["class_names"]), about["widths"]
        self.extractor = about.get("extractor", {})
        self._media = media or ExtractConfig()

    def predict(self, path: Path | str) -> Prediction:
        """Predict one clip.

        Raises:
            UserError: it cannot be predicted; the message tells why.
        """
        predictions, failures = self.predict_all([path])
        for failure in failures:
            raise UserError(f"{failure.path}: {failure.reason}")
        return predictions[0]

    def predict_all(
        self, paths: Sequence[Path | str], advance: Callable[[int], None] = lambda count: None
    ) -> Outcome:
        """Predict clips at once, which is much faster than one by one.

        Args:
            paths: of raw clips or feature files.
            advance: called with 1 after each clip that was read.

        Raises:
            UserError: something is wrong with the run or with what raw clips need.
        """
        ready, failures = [], []
        for path in map(Path, paths):
            try:
                ready.append(self._prepare(path))
            except BadClip as error:
                failures.append(Failure(path, str(error)))
            advance(1)
        predictions, others = self._ask(ready)
        return Outcome(predictions, failures + others)

    def extraction(self) -> ExtractConfig:
        """What takes from raw clips the features that the run was trained on.

        Raises:
            UserError: their files do not tell what made them, or this version makes others.
        """
        used = self.config.model.modalities
        if unsaid := [name for name in used if name not in self.extractor]:
            raise UserError(
                f"the run was trained on {' and '.join(unsaid)} features that do not say what made "
                f"them, so it cannot be known how to extract the like from a raw clip; expected a "
                f"feature file (.npz) made as they were"
            )
        with explain_missing_library():
            from mmattn.media.extract import config_like
        return config_like(self.extractor, self._media)

    def _prepare(self, path: Path) -> _Ready:
        """Read or extract a clip as for training. Raises BadClip."""
        streams, extractor, notes = self._read(path)
        used = self.config.model.modalities
        streams, blind = self._with_data(streams)
        there = [name for name in used if name in streams]
        if not there:
            lacks = f"it has no {' and no '.join(used)}, from which the run predicts"
            raise BadClip("; ".join([lacks, *blind]))
        self._check_features({name: streams[name] for name in there}, extractor)
        streams = self._as_in_training(str(path), streams)
        missing = tuple(name for name in used if name not in there)
        notes += tuple(f"no {name}: predicted from {' and '.join(there)} alone" for name in missing)
        kept = {name: streams[name] if name in there else self._no(name) for name in self.widths}
        return _Ready(path, kept, missing, (*blind, *notes))

    def _read(self, path: Path) -> tuple[dict[str, Stream], dict[str, dict], tuple[str, ...]]:
        """The streams of a clip, what made them, both by modality, and notes. Raises BadClip."""
        if is_feature_file(path):
            return *read_features(path, self.config.data.rates, self.widths), ()
        with explain_missing_library():
            from mmattn.media.decode import BadMedia
            from mmattn.media.extract import extract_clip
        try:
            config = self.extraction()
        except UserError as error:
            raise BadClip(str(error)) from error
        try:
            found = extract_clip(path, config)
        except BadMedia as error:
            raise BadClip(str(error)) from error
        return found.streams, found.extractor, found.notes

    def _with_data(self, streams: dict[str, Stream]) -> tuple[dict[str, Stream], tuple[str, ...]]:
        """The streams without those of which no frame has data, and notes about them."""
        kept = {
            name: stream
            for name, stream in streams.items()
            if name not in self.config.data.zero_is_missing or stream.frames.any()
        }
        blind = [
            f"no {'face' if name == 'video' else 'data'} in any of its {len(stream.times)} {name} "
            "frames"
            for name, stream in streams.items()
            if name not in kept
        ]
        return kept, tuple(blind)

    def _check_features(self, streams: dict[str, Stream], extractor: dict[str, dict]) -> None:
        """BadClip where features are not such as the run was trained on."""
        both = (
            {name: made_by[name] for name in streams if name in made_by}
            for made_by in (extractor, self.extractor)
        )
        if differs := difference(*both):
            raise BadClip(f"its features are not those that the run was trained on: {differs}")
        for name, stream in streams.items():
            width = stream.frames.shape[1]
            if width != self.widths[name]:
                raise BadClip(
                    f"{name} has {width} features a frame, the run was trained on "
                    f"{self.widths[name]}"
                )

    def _as_in_training(self, name: str, streams: dict[str, Stream]) -> dict[str, Stream]:
        """What the run's data options make of a clip. Raises BadClip."""
        try:
            corpus = crop_and_tile(self._corpus([name], [streams]), self.config.data)
        except UserError as error:
            raise BadClip(str(error).removeprefix(f"{name}: ")) from error
        return {name: stream.clip(0) for name, stream in corpus.streams.items()}

    def _corpus(self, names: Sequence[str], clips: Sequence[dict[str, Stream]]) -> Corpus:
        """Clips whose classes and speakers are not known."""
        return Corpus(
            description="clips to predict",
            names=tuple(names),
            speakers=np.full(len(names), ""),
            labels=np.full(len(names), -1, np.int32),
            class_names=self.class_names,
            streams={
                name: pack_streams(
                    [streams.get(name) or self._no(name) for streams in clips],
                    name in self.config.data.zero_is_missing,
                )
                for name in self.widths
            },
            extractor=self.extractor,
        )

    def _no(self, modality: str) -> Stream:
        return make_stream(np.zeros((0, self.widths[modality]), np.float32), np.zeros(0))

    def _ask(self, ready: Sequence[_Ready]) -> Outcome:
        """Ask the networks about clips; one that breaks them is asked about alone."""
        if not ready:
            return Outcome([], [])
        try:
            views = self._views(ready)
        except Diverged as error:
            if len(ready) == 1:
                return Outcome([], [Failure(ready[0].path, str(error))])
            alone = [self._ask([one]) for one in ready]
            return Outcome(*(list(chain(*parts)) for parts in zip(*alone, strict=True)))
        predictions = [
            Prediction(
                one.path,
                self.class_names,
                view.probabilities,
                view.streams,
                one.missing,
                one.notes,
            )
            for one, view in zip(ready, views, strict=True)
        ]
        return Outcome(predictions, [])

    def _views(self, ready: Sequence[_Ready]) -> list[ClipView]:
        """Each clip as the networks see it, in their mean."""
        corpus = self._corpus([str(one.path) for one in ready], [one.streams for one in ready])
        clips = np.arange(len(ready))
        seen = []
        for training in self.trainings:
            trainer, state = restore(training, self.checkpoint, corpus, clips, 1)
            seen.append(view_clips(trainer, state, clips))
        return [_mean_view(views) for views in zip(*seen, strict=True)]


def _trainings(folder: Path) -> list[Path]:
    """The folders of a run's networks: of its folds or ensembles, or its own.

    Raises UserError if not all of them are there.
    """
    parts = parts_of(folder)
    if not parts:
        return [folder]
    check_complete(folder)
    return [training for part in parts for training in _trainings(part)]


def _mean_view(views: Sequence[ClipView]) -> ClipView:
    """The mean of the networks' predictions for a clip; features as the first sees them."""
    first = views[0]
    streams = {
        name: replace(
            stream, attention=np.mean([view.streams[name].attention for view in views], axis=0)
        )
        for name, stream in first.streams.items()
    }
    probabilities = np.mean([view.probabilities for view in views], axis=0)
    return replace(first, probabilities=probabilities, streams=streams)
