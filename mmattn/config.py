"""Every option of an experiment. Nothing heavy is imported here, so `--help` is quick."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import dacite
import tyro

from mmattn.errors import UserError

Modality = Literal["audio", "video"]


@dataclass(frozen=True)
class SyntheticConfig:
    """The built-in corpus, used when no `--data.roots` are given."""

    rule: Literal["unimodal", "coincidence"] = "unimodal"
    """What tells the class: each cue by itself, or which audio cue meets which video cue."""
    clips: int = 864
    speakers: int = 24
    audio_width: int = 24
    """Features of an audio frame."""
    video_width: int = 16
    """Features of a video frame."""
    audio_rate: float = 100.0
    """Audio frames a second."""
    video_rate: float = 15.0
    """Video frames a second."""
    seed: int = 0


@dataclass(frozen=True)
class DataConfig:
    """Which clips, with which labels, and how they are divided."""

    roots: tuple[Path, ...] = ()
    """Folders of feature files, one .npz a clip (default: the built-in synthetic corpus)."""
    labels: Literal["six", "ravdess8"] = "six"
    """Label scheme of feature files; six: anger, disgust, fear, happy, neutral, sad."""
    max_bad: int = 0
    """Bad clips to put up with before the run stops."""
    audio_rate: float | None = None
    """Audio frames a second, for files without timestamps."""
    video_rate: float | None = None
    """Video frames a second, for files without timestamps."""
    cache: Path = Path("~/.cache/mmattn")
    """Where packed copies of feature files are kept."""
    overlap: bool = False
    """Keep only the time that both streams of a clip cover."""
    split: Literal["speakers", "leaky-clips"] = "speakers"
    """By speaker, or the earlier system's random split of clips, which leaks speakers."""
    validation: float = 0.15
    """Share of the speakers for validation (with folds: of those outside the test fold)."""
    test: float = 0.15
    """Share of the speakers for the test set (without folds)."""
    folds: str | None = None
    """Named test folds: ravdess, crema-d, or a JSON file {"test_speakers": [[…], …]}."""
    fold: int | Literal["all"] = "all"
    """Which fold is the test set, from 0; all: one training for each fold at hand."""
    buckets: int = 4
    """Padded lengths that clips are grouped into; each is compiled once."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


@dataclass(frozen=True)
class OtherDataConfig:
    """Where the clips are now, if not where the run found them."""

    roots: tuple[Path, ...] = ()
    """Folders of feature files (default: the run's). If the run's own validation and test clips
    are not all there, the clips of speakers that it never saw are taken."""
    max_bad: int | None = None
    """Bad clips to put up with (default: the run's)."""
    cache: Path | None = None
    """Where packed copies of feature files are kept (default: the run's)."""

    def apply(self, data: DataConfig) -> DataConfig:
        """The run's data config with what is given here."""
        given = {"roots": self.roots or None, "max_bad": self.max_bad, "cache": self.cache}
        return replace(data, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class ModelConfig:
    """One bidirectional LSTM stack with temporal attention a modality, then a dense head."""

    modalities: tuple[Modality, ...] = ("audio", "video")
    """The branches to build."""
    audio_units: tuple[int, ...] = (128, 64)
    """Units a direction of each audio LSTM layer."""
    video_units: tuple[int, ...] = (256, 128)
    """Units a direction of each video LSTM layer."""
    statistics: bool = False
    """Average with a linear classifier on time statistics of the features, trained jointly."""
    head_units: tuple[int, ...] = (256, 128)
    """Units of each dense layer after the branches are joined."""
    input_dropout: float = 0.2
    """Dropout of features before the first LSTM layer."""
    layer_dropout: float = 0.3
    """Dropout between LSTM layers."""
    pooled_dropout: float = 0.4
    """Dropout after the attention."""
    head_dropout: tuple[float, ...] = (0.5, 0.4)
    """Dropout after each dense layer."""


@dataclass(frozen=True)
class TrainConfig:
    """Loss, optimiser and schedule."""

    epochs: int = 50
    batch: int = 24
    """Clips an optimiser step, over all devices together."""
    learning_rate: float = 5e-4
    weight_decay: float = 0.0
    gamma: float = 2.0
    """Focusing exponent of the focal loss; 0 is cross-entropy."""
    class_weights: bool = True
    """Weigh the classes by n / (k n_c) of the training split."""
    schedule: Literal["plateau", "cosine"] = "plateau"
    """Halve the learning rate on a plateau, or let it fall to 0 over the epochs."""
    plateau: int = 5
    """Epochs without a better validation loss before the learning rate is halved."""
    patience: int = 10
    """Epochs without a better validation accuracy before training stops."""
    steps_per_dispatch: int = 8
    """Optimiser steps that one call to the devices makes; batches are shuffled in such groups."""


@dataclass(frozen=True)
class ExperimentConfig:
    """A whole run: `python -m experiments.NAME --help` lists what can be changed."""

    name: Annotated[str, tyro.conf.Fixed, tyro.conf.Suppress]
    """The experiment's name, the same as its module's."""
    seed: int = 0
    members: int = 1
    """Networks to train, each with validation speakers of its own; their probabilities are
    averaged. Each speaker outside the test set validates one of them; --data.validation is not
    used."""
    devices: int | Literal["auto"] = "auto"
    """CPU devices to divide each batch over (on a GPU machine: GPUs)."""
    out: Path | None = None
    """The run's folder, new or to resume (default: runs/<experiment>/<time>)."""
    resume: bool = False
    """Continue the run in --out from its latest checkpoint, with the options that it began with."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def check(self) -> None:
        """Raise UserError at the first option whose value cannot be."""
        train, model, data = self.train, self.model, self.data
        for option, value, right, expected in (
            ("seed", self.seed, self.seed >= 0, "0 or more"),
            ("members", self.members, self.members > 0, "1 or more"),
            ("train.epochs", train.epochs, train.epochs > 0, "1 or more"),
            ("train.batch", train.batch, train.batch > 1, "2 or more"),
            ("train.learning-rate", train.learning_rate, train.learning_rate > 0, "above 0"),
            ("train.weight-decay", train.weight_decay, train.weight_decay >= 0, "0 or more"),
            ("train.gamma", train.gamma, train.gamma >= 0, "0 or more"),
            ("train.plateau", train.plateau, train.plateau > 0, "1 or more"),
            ("train.patience", train.patience, train.patience > 0, "1 or more"),
            (
                "train.steps-per-dispatch",
                train.steps_per_dispatch,
                train.steps_per_dispatch > 0,
                "1 or more",
            ),
            ("data.buckets", data.buckets, data.buckets > 0, "1 or more"),
            (
                "data.labels / audio-rate / video-rate",
                "without --data.roots",
                bool(data.roots)
                or (data.labels, data.audio_rate, data.video_rate) == ("six", None, None),
                "feature files: the built-in corpus has six classes and its own rates",
            ),
            ("resume", "without --out", bool(self.out) or not self.resume, "the run's folder"),
            ("data.max-bad", data.max_bad, data.max_bad >= 0, "0 or more"),
            (
                "model.modalities",
                model.modalities,
                0 < len(set(model.modalities)) == len(model.modalities),
                "audio, video or both",
            ),
            (
                "model.head-dropout",
                model.head_dropout,
                len(model.head_dropout) == len(model.head_units),
                f"a rate for each of --model.head-units {model.head_units}",
            ),
            *(
                (f"model.{name}", units, bool(units) and min(units) > 0, "layers of 1 unit or more")
                for name, units in (
                    ("audio-units", model.audio_units),
                    ("head-units", model.head_units),
                    ("video-units", model.video_units),
                )
            ),
            *(
                (f"model.{name}", rates, all(0 <= rate < 1 for rate in rates), "0 or more, below 1")
                for name, rates in (
                    ("input-dropout", [model.input_dropout]),
                    ("layer-dropout", [model.layer_dropout]),
                    ("pooled-dropout", [model.pooled_dropout]),
                    ("head-dropout", model.head_dropout),
                )
            ),
        ):
            if not right:
                raise UserError(f"--{option} {value}: expected {expected}")

    def to_json(self) -> dict:
        """As plain JSON values; `config_from_json` reads it back."""
        return json.loads(json.dumps(asdict(self), default=str))


def config_from_json(value: dict) -> ExperimentConfig:
    """The config of a stored run; UserError if a field is missing, unknown or of another type."""
    try:
        return dacite.from_dict(
            ExperimentConfig, value, dacite.Config(cast=[tuple, Path], strict=True)
        )
    except dacite.DaciteError as error:
        raise UserError(f"the stored config does not fit this version: {error}") from error
