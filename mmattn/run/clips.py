"""Clips ready for the networks of a run: read or extracted, cut, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmattn.config import ExperimentConfig, ExtractConfig, ModelFiles, kind_of
from mmattn.data.corpus import Corpus, crop_and_tile
from mmattn.data.extractor import difference
from mmattn.data.feature_file import MIN_FRAMES, BadClip, read_features
from mmattn.data.stream import Stream, make_stream, pack_streams
from mmattn.errors import UserError
from mmattn.media import explain_missing_library, is_feature_file


class Clip(NamedTuple):
    """A clip or a segment of it: a raw clip or a feature file."""

    path: Path
    start: float = np.nan
    """Seconds; NaN if the clip begins with its file."""
    end: float = np.nan
    """Seconds; NaN if it ends with its file."""

    @property
    def times(self) -> str:
        """Start and end of a segment, in words; empty for a whole file."""
        if np.isnan((self.start, self.end)).all():
            return ""
        end = "its end" if np.isnan(self.end) else f"{self.end:g} s"
        return f"{np.nan_to_num(self.start):g} s to {end}"

    @property
    def title(self) -> str:
        """Its path, and the times of a segment."""
        return ", ".join(filter(None, (str(self.path), self.times)))

    def cut(self, stream: Stream) -> Stream:
        """The frames from start to end. Raises BadClip if they are too few."""
        if not self.times:
            return stream
        inside = ~((stream.times < self.start) | (stream.times > self.end))
        if (count := inside.sum()) < MIN_FRAMES:
            raise BadClip(f"{count} frames from {self.times}, expected {MIN_FRAMES} or more")
        return Stream(*(array[inside] for array in stream))


class Failure(NamedTuple):
    """A clip that cannot be predicted, and why."""

    clip: Clip
    reason: str

    @property
    def path(self) -> Path:
        """The file."""
        return self.clip.path


class Ready(NamedTuple):
    """A clip ready for the network; a missing modality has no frames."""

    clip: Clip
    streams: dict[str, Stream]
    missing: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ClipReader:
    """Prepares clips for the networks of a run.

    config: of the run; class_names, widths, extractor: what `Run` says; media: where the models
    for raw clips are; shared: the model file that the run comes from, if it comes from one.
    """

    config: ExperimentConfig
    class_names: tuple[str, ...]
    widths: dict[str, int]
    extractor: dict[str, dict]
    media: ExtractConfig
    shared: Path | None

    def read(self, clip: Clip) -> Ready | Failure:
        """Read or extract a clip as for training."""
        try:
            streams, extractor, notes = self._read(clip.path)
            last = max((stream.times[-1] for stream in streams.values()), default=np.nan)
            if clip.end > last + 0.1:  # a frame may be earlier than the end of the clip
                notes += (
                    f"the segment is to end at {clip.end:g} s, the last frame is at {last:.2f} s",
                )
            streams = {name: clip.cut(stream) for name, stream in streams.items()}
            return self._fit(clip, streams, extractor, notes)
        except BadClip as error:
            return Failure(clip, str(error))

    def take(self, clip: Clip, streams: Mapping[str, Stream]) -> Ready | Failure:
        """A clip whose streams, by modality, are made as the run's own features are."""
        try:
            return self._fit(clip, dict(streams), self.extractor, ())
        except BadClip as error:
            return Failure(clip, str(error))

    def extraction(self) -> ExtractConfig:
        """The config that extracts the run's features from raw clips.

        Raises:
            UserError: the feature files do not name their extractor, or this version's differs.
        """
        used = self.config.model.modalities
        if unsaid := [name for name in used if name not in self.extractor]:
            raise UserError(
                f"the run was trained on {' and '.join(unsaid)} features that do not name their "
                f"extractor, so they cannot be extracted from a raw clip; expected a feature file "
                f"(.npz) made in the same way"
            )
        if self.shared:
            self._check_models({name: self.extractor[name]["settings"] for name in used})
        with explain_missing_library():
            from mmattn.media.extract import config_like
        return config_like(self.extractor, self.media)

    def _check_models(self, settings: dict[str, dict]) -> None:
        """UserError if a model file's settings would download a model not named by the user."""
        for modality, own in settings.items():
            for option in ("whisper_model", "hf_model"):
                usual, given = getattr(ModelFiles, option), getattr(self.media, option)
                if option in own and given == usual != own[option]:
                    raise UserError(
                        f"{self.shared}: its {modality} features need the model "
                        f"{own[option]!r}, which is not downloaded unasked; if you trust it, add "
                        f"--{option.replace('_', '-')} {own[option]}"
                    )

    def corpus(self, names: Sequence[str], clips: Sequence[dict[str, Stream]]) -> Corpus:
        """A corpus of clips of unknown class and speaker."""
        return Corpus(
            description="clips to predict",
            names=tuple(names),
            speakers=np.full(len(names), ""),
            labels=np.full(len(names), -1, np.int32),
            class_names=self.class_names,
            streams={
                name: pack_streams(
                    [streams.get(name) or self._no(name) for streams in clips],
                    self.config.data.zero_is_gap(name),
                )
                for name in self.widths
            },
            extractor=self.extractor,
        )

    def _fit(
        self,
        clip: Clip,
        streams: dict[str, Stream],
        extractor: dict[str, dict],
        notes: tuple[str, ...],
    ) -> Ready:
        """Streams by modality, ready for the network. Raises BadClip."""
        used = self.config.model.modalities
        streams, blind = self._with_data(streams)
        there = [name for name in used if name in streams]
        if not there:
            lacks = f"it has no {' and no '.join(used)}, which the run needs"
            raise BadClip("; ".join([lacks, *blind]))
        self._check_features({name: streams[name] for name in there}, extractor)
        streams = self._as_in_training(str(clip.path), streams)
        missing = tuple(name for name in used if name not in there)
        notes += tuple(f"no {name}: predicted from {' and '.join(there)} only" for name in missing)
        kept = {name: streams[name] if name in there else self._no(name) for name in self.widths}
        return Ready(clip, kept, missing, (*blind, *notes))

    def _read(self, path: Path) -> tuple[dict[str, Stream], dict[str, dict], tuple[str, ...]]:
        """The streams of a clip and their extractors, by modality, and notes. Raises BadClip."""
        if is_feature_file(path):
            return *read_features(path, self.config.data.rates, self.widths), ()
        with explain_missing_library():
            from mmattn.media.extract import extract_clip
            from mmattn.media.survey import BadMedia
        try:
            config = self.extraction()
        except UserError as error:
            why = str(error) if path.is_file() else "expected a clip, there is no such file"
            raise BadClip(why) from error
        try:
            found = extract_clip(path, config)
        except BadMedia as error:
            raise BadClip(str(error)) from error
        return found.streams, found.extractor, found.notes

    def _with_data(self, streams: dict[str, Stream]) -> tuple[dict[str, Stream], tuple[str, ...]]:
        """The streams that have data, and notes about those that have none."""
        kept = {
            name: stream
            for name, stream in streams.items()
            if not self.config.data.zero_is_gap(name) or stream.frames.any()
        }
        blind = [
            f"no {'face' if kind_of(name) == 'video' else 'data'} in any of its "
            f"{len(stream.times)} {name} frames"
            for name, stream in streams.items()
            if name not in kept
        ]
        return kept, tuple(blind)

    def _check_features(self, streams: dict[str, Stream], extractor: dict[str, dict]) -> None:
        """BadClip if the features differ in kind from those the run was trained on."""
        both = (
            {name: made_by[name] for name in streams if name in made_by}
            for made_by in (extractor, self.extractor)
        )
        if differs := difference(*both):
            raise BadClip(f"its features differ from those the run was trained on: {differs}")
        for name, stream in streams.items():
            count, width = stream.frames.shape
            if count < MIN_FRAMES:
                raise BadClip(f"its {name} has {count} frames; expected {MIN_FRAMES}")
            if width != self.widths[name]:
                raise BadClip(
                    f"{name} has {width} features per frame, the run was trained on "
                    f"{self.widths[name]}"
                )

    def _as_in_training(self, name: str, streams: dict[str, Stream]) -> dict[str, Stream]:
        """Apply the run's data options to a clip. Raises BadClip."""
        try:
            corpus = crop_and_tile(self.corpus([name], [streams]), self.config.data)
        except UserError as error:
            raise BadClip(str(error).removeprefix(f"{name}: ")) from error
        return {name: stream.clip(0) for name, stream in corpus.streams.items()}

    def _no(self, modality: str) -> Stream:
        return make_stream(np.zeros((0, self.widths[modality]), np.float32), np.zeros(0))
