"""Every option of an experiment. Nothing heavy is imported here, so `--help` is quick."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import dacite
import tyro

from mmattn.errors import UserError

Range = tuple[float, float]
Colour = Literal["rgb", "bgr", "grey"]
Tracker = Literal["tensorboard", "mlflow", "wandb"]
Pooling = Literal["attention", "mean"]
VARIANT = "__"  # between a modality and the name of an augmented copy of it, in a feature file
TOLD = tyro.conf.arg(help_behavior_hint="")  # the text tells what happens without the option


def _named(kind: type, metavar: str) -> tyro.constructors.PrimitiveConstructorSpec:
    """How a dict is written on the command line: NAME=VALUE or NAME=VALUE,VALUE… for each entry."""

    def parse(words: list[str]) -> dict:
        found = {}
        for word in words:
            name, _, text = word.partition("=")
            if not (name and text) or name in found:
                raise ValueError(f"{word!r}: expected each once as {metavar}")
            values = tuple(map(kind, text.split(",")))
            found[name] = values if "," in metavar else values[0]
        return found

    def show(value: dict) -> list[str]:
        texts = {k: v if isinstance(v, tuple) else (v,) for k, v in value.items()}
        return [f"{name}={','.join(map(str, values))}" for name, values in texts.items()]

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar=metavar,
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=show,
    )


def _hash(config: object) -> int:
    """Of a config that holds dicts."""
    return hash(repr(config))


NamedRanges = Annotated[dict[str, Range], _named(float, "MODALITY=LOW,HIGH"), TOLD]
NamedNumbers = Annotated[dict[str, float], _named(float, "MODALITY=NUMBER"), TOLD]
NamedSizes = Annotated[dict[str, tuple[int, ...]], _named(int, "MODALITY=UNITS,…"), TOLD]
NamedShares = Annotated[dict[str, float], _named(float, "NAME=FRACTION"), TOLD]
NamedValues = Annotated[dict[str, tuple[float, ...]], _named(float, "NAME=VALUE,…"), TOLD]
NamedText = Annotated[dict[str, str], _named(str, "NAME=COLUMN"), TOLD]


def kind_of(modality: str) -> str:
    """Audio or video, where several features of one are modalities of their own.

    >>> kind_of("audio_whisper")
    'audio'
    """
    return modality.partition("_")[0]


def _extractors(kind: str) -> tyro.constructors.PrimitiveConstructorSpec:
    """How names of extractors are written on the command line; of several, each is a modality."""

    def parse(words: list[str]) -> dict[str, str]:
        if words == ["none"]:
            return {}
        if len(words) == 1:
            return {kind: words[0]}
        return {f"{kind}_{name.replace('-', '_')}": name for name in words}

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME…",
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: list(value.values()) or ["none"],
    )


@dataclass(frozen=True)
class ModelFiles:
    """Where the models are that take features from raw clips."""

    models: Path = Path("~/.cache/mmattn/models")
    """Where `mmattn download models` put the model files."""
    facenet: Path | None = None
    """FaceNet's weights, the file 20180402-114759-vggface2.pt (with --video facenet)."""
    whisper_model: str = "tiny.en"
    """With --audio whisper: tiny.en (mmattn download models); a folder in CTranslate2's form; or,
    with huggingface_hub installed, a name on the Hugging Face Hub such as small or
    Systran/faster-whisper-large-v3."""
    hf_model: str | None = None
    """With --audio hf: a folder, or a name on the Hugging Face Hub such as
    microsoft/wavlm-base-plus."""
    onnx_model: Path | None = None
    """With --video onnx: a network whose input is a face; its first output are the features."""


@dataclass(frozen=True)
class ExtractConfig(ModelFiles):
    """Which features are taken from raw clips."""

    __hash__ = _hash

    audio: Annotated[dict[str, str], _extractors("audio")] = field(
        default_factory=lambda: {"audio": "whisper"}
    )
    """By modality, its features: whisper, states of Whisper's encoder; log-mel, 64 bands; egemaps,
    openSMILE's eGeMAPSv02 low-level descriptors (extra [opensmile]); hf, hidden states of a speech
    encoder of Hugging Face (extra [transformers]); none. Of several, each becomes a modality of its
    own: audio_log_mel, audio_whisper."""
    video: Annotated[dict[str, str], _extractors("video")] = field(
        default_factory=lambda: {"video": "expression"}
    )
    """By modality, its features: expression, posteriors of 7 facial expressions and their
    logarithms; face-mesh, distances in the face's geometry; a face embedding: dlib, 128 numbers
    (extra [dlib]), facenet, 512 (extra [facenet]), or onnx, by a network of your own (extra
    [onnx]); none, which needs no face models."""
    augment_audio: NamedValues = field(default_factory=dict)
    """Also the features of augmented copies of the audio, one a value, that training can mix in
    (--augment.variants): tempo=0.9,1.1 (times as fast), pitch=-2,2 (semitones), speed=0.9 (both at
    once, by resampling), noise=20 (dB of signal over white noise)."""
    video_rate: float = 15.0
    """Maximum frame rate (fps); clips that have more are thinned out."""
    face: Literal["speaker", "largest"] = "speaker"
    """Of several faces, follow the one whose mouth follows the audio (the largest if that cannot be
    told, or there is no audio); or always the largest."""
    whisper_layer: int = -2
    """Which layer's states, 1 the first, -1 the last (with --audio whisper). The last but one tells
    more of emotion than the last."""
    hf_layer: int = -1
    """Which hidden states, 0 before the first layer, -1 after the last (with --audio hf)."""
    onnx_size: int | None = None
    """Side of the network's input in pixels, if its file leaves that open (with --video onnx)."""
    onnx_colour: Colour = "rgb"
    """Order of its channels."""
    onnx_mean: tuple[float, ...] = (0.5,)
    """Subtracted from pixels of 0 to 1: one number, or one a channel."""
    onnx_std: tuple[float, ...] = (0.5,)
    """What they are divided by after that, the same way."""
    onnx_margin: float = 1.2
    """Side of the square around the face, over the longer side of the detector's box."""


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

    __hash__ = _hash

    roots: Annotated[tuple[Path, ...], TOLD] = ()
    """Corpora: manifests, or folders that have a manifest.csv or are named as RAVDESS or CREMA-D
    (default: the built-in synthetic corpus)."""
    labels: Annotated[tuple[str, ...], TOLD] = ()
    """Classes in order, as anger happy neutral=neutral,calm; what is not named is left out. Or six
    (these and disgust, fear, sad) or ravdess8 (default: all of a manifest; six of named files)."""
    target: str = "emotion"
    """The manifest's column of the label."""
    soft: bool = False
    """Train on the raters' votes, the columns emotion.CLASS, instead of one label a clip."""
    columns: NamedText = field(default_factory=dict)
    """Columns that the manifest calls otherwise, as speaker=speaker_id."""
    streams: Annotated[tuple[str, ...], TOLD] = ()
    """Modalities that every clip must have (default: those of the model)."""
    zero_is_missing: tuple[str, ...] = ("video",)
    """Modalities in which a frame of zeros has no data: no face was found. video is video_NAME
    too."""
    max_bad: int = 0
    """Maximum number of unreadable clips to tolerate before the run stops."""
    rates: NamedNumbers = field(default_factory=dict)
    """Frames a second of files without timestamps."""
    cache: Path = Path("~/.cache/mmattn")
    """Where packed copies of feature files are kept."""
    overlap: bool = False
    """Keep only the time that all streams of a clip cover."""
    tile: Annotated[tuple[str, ...], TOLD] = ()
    """Modalities of which every frame of a clip becomes their mean: a control without dynamics, as
    the earlier system's audio features were."""
    split: Literal["speakers", "column", "leaky-clips"] = "speakers"
    """By speaker, by the manifest's column split, or the earlier system's random split of
    clips, which leaks speakers."""
    disjoint: tuple[str, ...] = ("speaker",)
    """Columns of which no value may be in two of the splits."""
    validation: float = 0.15
    """Fraction of the speakers for validation (with folds: of those outside the test fold)."""
    test: float = 0.15
    """Fraction of the speakers for the test set (without folds)."""
    folds: str | None = None
    """Test folds: a column of the manifest, one fold a value (speaker leaves one speaker out);
    ravdess or crema-d, as published; or a JSON file {"test_speakers": [[…], …]}."""
    fold: int | Literal["all"] = "all"
    """Which fold is the test set, from 0; all: one training for each fold at hand."""
    groups: Annotated[tuple[str, ...], TOLD] = ()
    """The manifest's columns that scores are also given by (default: corpus and sex)."""
    buckets: int = 4
    """Groups of clips of like length that batches are made of."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def zero_is_gap(self, modality: str) -> bool:
        """Whether a frame of zeros of this modality has no data."""
        return not {modality, kind_of(modality)}.isdisjoint(self.zero_is_missing)

    def check(self) -> None:
        """Raise UserError at the first option whose value cannot be."""
        least = {
            **{"clips": 1, "speakers": 1, "audio_width": 3, "video_width": 3, "seed": 0},
            **{"audio_rate": 10, "video_rate": 10},  # or bumps fall between two frames
        }
        drawn = {name: getattr(self.synthetic, name) for name in least}
        shares = {"validation": self.validation, "test": self.test}
        _check(
            ("data.buckets", self.buckets, self.buckets > 0, "1 or more"),
            (
                "data.labels / rates / soft / groups",
                "without --data.roots",
                bool(self.roots) or not (self.labels or self.rates or self.soft or self.groups),
                "feature files: the built-in corpus has six classes, its own rates and no columns",
            ),
            ("data.max-bad", self.max_bad, self.max_bad >= 0, "0 or more"),
            *((f"data.{name}", of, 0 < of < 1, "between 0 and 1") for name, of in shares.items()),
            *(
                ("data.rates", f"{name}={rate}", 0 < rate < math.inf, "above 0")
                for name, rate in self.rates.items()
            ),
            *(
                (f"data.synthetic.{name}", value, value >= least[name], f"{least[name]} or more")
                for name, value in drawn.items()
            ),
        )


@dataclass(frozen=True)
class OtherDataConfig:
    """Where the clips are now, if not where the run found them."""

    roots: Annotated[tuple[Path, ...], TOLD] = ()
    """Folders of feature files (default: the run's). If the run's own validation and test clips
    are not all there, the clips of speakers that it never saw are taken."""
    max_bad: int | None = None
    """Maximum number of unreadable clips to tolerate (default: the run's)."""
    cache: Path | None = None
    """Where packed copies of feature files are kept (default: the run's)."""

    def apply(self, data: DataConfig) -> DataConfig:
        """The run's data config with what is given here."""
        given = vars(self) | {"roots": self.roots or None}
        return replace(data, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to training clips, anew in each epoch; nothing by default.

    It acts on normalised features: every feature has standard deviation 1. A strength is drawn for
    each clip between the two numbers of a range.
    """

    __hash__ = _hash

    pick: Literal["all", "one-or-all"] = "all"
    """Do all that is asked for, or, by chance, one of it or all, as the earlier system did."""
    probability: float = 1.0
    """Fraction of the clips that are changed at all."""
    noise: NamedRanges = field(default_factory=dict)
    """Standard deviation of Gaussian noise added to the features of a modality."""
    scale: NamedRanges = field(default_factory=dict)
    """Factor on the features of a modality."""
    own_tempo: NamedRanges = field(default_factory=dict)
    """Tempo of a modality alone, which breaks its alignment with the others; above 1 is faster."""
    tempo: Range = (1.0, 1.0)
    """One tempo for all streams on their common time axis."""
    dropout: NamedNumbers = field(default_factory=dict)
    """Fraction of a modality's features that are set to their mean throughout a clip."""
    gap: NamedNumbers = field(default_factory=dict)
    """Longest gap (s) in which frames of a modality are marked as without data."""
    time_mask: float = 0.0
    """Longest stretch (s) that is set to the mean in all modalities at once."""
    feature_mask: float = 0.0
    """Largest fraction of neighbouring features that is set to the mean, in each modality."""
    drop_modality: float = 0.0
    """Fraction of the clips that lose one modality."""
    variants: NamedShares = field(default_factory=dict)
    """Fraction of the clips whose audio is replaced by an augmented copy, whose features are in the
    files (mmattn extract --augment-audio): tempo=0.5 takes one of all tempos, tempo_0_9=0.5 that
    one. It is apart from pick and probability."""
    variant_times: Literal["clip", "own"] = "clip"
    """Where the copies lie in time: as the clip, so that they stay aligned with the video; or on a
    clock of their own, as the earlier system did, which breaks the alignment of another tempo."""
    mixup: float = 0.0
    """Parameter of the Beta distribution that tells how two clips are mixed; 0: they are not."""


@dataclass(frozen=True)
class ModelConfig:
    """One bidirectional LSTM stack a modality, fusion with temporal attention, dense heads."""

    __hash__ = _hash

    modalities: tuple[str, ...] = ("audio", "video")
    """The encoders to build, by the names of the features in the files (NAME_features)."""
    fusion: str = "concat"
    """concat: pool each modality over time and concatenate; late: classify each modality by itself,
    with a loss of its own, and average the log-probabilities; cross: let frames of one modality
    attend to those of the others by content and distance in seconds, and pool all on their common
    time axis."""
    late_weights: Literal["equal", "validation"] = "equal"
    """Weights of the modalities in that average: equal, or fitted to the validation clips after
    each epoch (fusion late)."""
    branch_loss: float = 0.0
    """Weight of an auxiliary loss of each modality, by a head of its own, in training alone
    (fusions concat and cross); 0: no such heads."""
    cross_window: float = 0.5
    """Seconds to either side that a frame attends to (fusion cross)."""
    cross_heads: int = 2
    """Attention heads, each with a distance in time of its own (fusion cross)."""
    cross_units: int = 64
    """Feature dimension of the joint frames (fusion cross)."""
    encoder: Literal["lstm", "none"] = "lstm"
    """lstm: a bidirectional LSTM stack a modality; none: the features as they are."""
    units: NamedSizes = field(default_factory=dict)
    """Units a direction of each LSTM layer (default: 128,64; video=256,128)."""
    pooling: Pooling = "attention"
    """How frames become one vector: by temporal attention, or as their mean."""
    statistics: bool = False
    """Average with a linear classifier on functionals of the features over time, trained
    jointly."""
    head_units: tuple[int, ...] = (256, 128)
    """Units of each dense layer between pooled features and classes."""
    input_dropout: float = 0.2
    """Dropout of features before the first LSTM layer."""
    layer_dropout: float = 0.3
    """Dropout between LSTM layers."""
    pooled_dropout: float = 0.4
    """Dropout after the attention."""
    head_dropout: tuple[float, ...] = (0.5, 0.4)
    """Dropout after each dense layer."""

    def units_of(self, modality: str) -> tuple[int, ...]:
        """Units a direction of each LSTM layer of a modality; no layers, no units."""
        if self.encoder == "none":
            return ()
        default = (256, 128) if kind_of(modality) == "video" else (128, 64)
        return self.units.get(modality, default)


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
    monitor: str = "accuracy"
    """What selects the best epoch, of the validation clips: accuracy, uar, macro_f1, top2, ece,
    log_loss, brier or loss."""
    plateau: int = 5
    """Epochs without a better validation loss before the learning rate is halved."""
    patience: int = 10
    """Epochs in which the monitor gets no better before training stops; 0: only at its end."""
    save_every: int = 1
    """Epochs between two checkpoints to resume from; the best and the last are always saved."""
    steps_per_dispatch: int = 8
    """Optimiser steps that one call to the devices makes; batches are shuffled in such groups."""


@dataclass(frozen=True)
class DistributedConfig:
    """Processes that train together; `mmattn launch` starts them on one machine."""

    coordinator: str | None = None
    """HOST:PORT where process 0 waits for the others; anyone who reaches it is let in. Or in
    JAX_COORDINATOR_ADDRESS."""
    num_processes: int | None = None
    """How many there are."""
    process_id: int | None = None
    """Which one this is, from 0. It alone writes the run's folder."""
    timeout: float = 120.0
    """Seconds to wait for all processes."""

    @property
    def address(self) -> str | None:
        """The coordinator's."""
        return self.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")

    def check(self) -> None:
        """Raise UserError unless the options fit together."""
        address, count, number = self.address, self.num_processes, self.process_id
        if not 0 < self.timeout <= 86400:
            raise UserError(
                f"--distributed.timeout {self.timeout}: expected above 0 seconds, at most a day's"
            )
        if (self.coordinator, count, number) == (None, None, None):
            return
        if address is None or count is None or number is None:
            given = {"coordinator": address, "num-processes": count, "process-id": number}
            missing = [name for name, value in given.items() if value is None]
            raise UserError(
                f"--distributed: expected all of {', '.join(given)}, "
                f"there is no --distributed.{missing[0]}"
            )
        host, _, port = address.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 65536):
            raise UserError(f"--distributed.coordinator {address}: expected HOST:PORT")
        if count < 1:
            raise UserError(f"--distributed.num-processes {count}: expected 1 or more")
        if not 0 <= number < count:
            raise UserError(
                f"--distributed.process-id {number}: expected 0 to "
                f"{count - 1} (--distributed.num-processes)"
            )


@dataclass(frozen=True)
class ExperimentConfig:
    """A run: `python -m experiments.NAME --help` lists what can be changed."""

    name: Annotated[str, tyro.conf.Fixed, tyro.conf.Suppress] = "fit"
    """The experiment's name, the same as its module's."""
    seed: int = 0
    members: int = 1
    """Ensemble size: networks with validation speakers of their own, of whose probabilities the
    geometric mean is taken. Each speaker outside the test set validates one of them;
    --data.validation is not used."""
    devices: int | Literal["auto"] = "auto"
    """CPU devices of all processes together to divide each batch over (or GPUs)."""
    track: Annotated[tuple[Tracker, ...], TOLD] = ()
    """Also log losses, scores and plots there (extras [tensorboard], [mlflow], [wandb])."""
    out: Path | None = None
    """The run's folder, new or to resume (default: runs/<experiment>/<time>)."""
    resume: bool = False
    """Continue the run in --out from its latest checkpoint, with the options that it began with."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    @property
    def streams(self) -> tuple[str, ...]:
        """The modalities that every clip must have."""
        return self.data.streams or self.model.modalities

    def by_modality(self) -> Iterator[tuple[str, str, dict]]:
        """The part, name and value of each option whose values are named by modality."""
        yield "model", "units", self.model.units
        yield "data", "rates", self.data.rates
        for name in ("noise", "scale", "own_tempo", "dropout", "gap"):
            yield "augment", name, getattr(self.augment, name)

    def check(self) -> None:
        """Raise UserError at the first option whose value cannot be."""
        from mmattn.train.history import monitor_of  # takes a while: `--help` does without

        self.distributed.check()
        if self.resume and self.out:  # the options that count are the run's, checked long ago
            return
        self.data.check()
        monitor_of(self.train.monitor)
        train, model, data, augment = self.train, self.model, self.data, self.augment
        _check(
            ("seed", self.seed, self.seed >= 0, "0 or more"),
            ("members", self.members, self.members > 0, "1 or more"),
            ("train.epochs", train.epochs, train.epochs > 0, "1 or more"),
            ("train.batch", train.batch, train.batch > 1, "2 or more"),
            ("train.learning-rate", train.learning_rate, train.learning_rate > 0, "above 0"),
            ("train.weight-decay", train.weight_decay, train.weight_decay >= 0, "0 or more"),
            ("train.gamma", train.gamma, train.gamma >= 0, "0 or more"),
            ("train.plateau", train.plateau, train.plateau > 0, "1 or more"),
            ("train.patience", train.patience, train.patience >= 0, "0 or more"),
            ("train.save-every", train.save_every, train.save_every > 0, "1 or more"),
            (
                "train.steps-per-dispatch",
                train.steps_per_dispatch,
                train.steps_per_dispatch > 0,
                "1 or more",
            ),
            *(
                (f"augment.{name}", ends, least <= ends[0] <= ends[1] < most, expected)
                for name, least, most, expected in (
                    ("noise", 0, math.inf, "0 ≤ low ≤ high"),
                    ("scale", 0, math.inf, "0 ≤ low ≤ high"),
                    ("tempo", 0.25, 4, "0.25 ≤ low ≤ high < 4"),
                    ("own_tempo", 0.25, 4, "0.25 ≤ low ≤ high < 4"),
                )
                for ends in _each(getattr(augment, name))
            ),
            *(
                (f"augment.{name}", value, 0 <= value <= most, f"0 to {most}")
                for name, most in (
                    ("probability", 1),
                    ("dropout", 1),
                    ("feature_mask", 1),
                    ("drop_modality", 1),
                    ("gap", 60),
                    ("time_mask", 60),
                    ("mixup", 100),
                    ("variants", 1),
                )
                for value in _each(getattr(augment, name))
            ),
            (
                "augment.variants",
                f"{sum(augment.variants.values()):g} in all",
                sum(augment.variants.values()) <= 1 + 1e-9,
                "at most 1",
            ),
            (
                "model.cross-window",
                model.cross_window,
                0 < model.cross_window <= 60,
                "above 0 and at most 60 seconds",
            ),
            (
                "model.branch-loss",
                model.branch_loss,
                0 <= model.branch_loss <= (0 if model.fusion == "late" else math.inf),
                "0 or more; 0 with --model.fusion late, where each branch has its own loss",
            ),
            ("model.cross-heads", model.cross_heads, model.cross_heads > 0, "1 or more"),
            (
                "model.cross-units",
                model.cross_units,
                0 < model.cross_heads <= model.cross_units
                and model.cross_units % model.cross_heads == 0,
                f"a multiple of --model.cross-heads {model.cross_heads}",
            ),
            ("resume", "without --out", bool(self.out) or not self.resume, "the run's folder"),
            (
                "model.modalities",
                " ".join(model.modalities),
                all(model.modalities) and 0 < len({*model.modalities}) == len(model.modalities),
                "one or more, each once",
            ),
            *(
                (option, f"{name}: no such modality", name in self.streams, " ".join(self.streams))
                for option, names in (
                    ("model.modalities", model.modalities),
                    ("data.tile", data.tile),
                    *((f"{part}.{name}", of) for part, name, of in self.by_modality()),
                )
                for name in names
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
                    ("head-units", model.head_units),
                    *(("units", units) for units in model.units.values()),
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
        )

    def to_json(self) -> dict:
        """As plain JSON values, but for the processes; `config_from_json` reads it back."""
        value = json.loads(json.dumps(asdict(self), default=str))
        del value["distributed"]
        return value


def _check(*options: tuple[str, object, bool, str]) -> None:
    """Raise UserError at the first (option, value, whether it is right, what was expected)."""
    for option, value, right, expected in options:
        if not right:
            raise UserError(f"--{option.replace('_', '-')} {value}: expected {expected}")


def _each(value: dict | float | Range) -> list:
    """The values of a dict, or the value itself."""
    return [*value.values()] if isinstance(value, dict) else [value]


def config_from_json(value: dict, what: str = "the stored config") -> ExperimentConfig:
    """The config of a stored run; UserError if a field is missing, unknown or of another type."""
    try:
        return dacite.from_dict(
            ExperimentConfig, _renewed(value), dacite.Config(cast=[tuple, Path], strict=True)
        )
    except (dacite.DaciteError, TypeError, ValueError) as error:
        raise UserError(f"{what} does not fit this version: {error}") from error


def _renewed(value: dict) -> dict:
    """The config of a run of version 1, which had audio and video alone, as this one has it."""
    if "audio_units" not in value.get("model", {}):
        return value
    data, model, augment = (dict(value[part]) for part in ("data", "model", "augment"))

    def moved(part: dict, name: str, neutral: object) -> dict:
        both = {one: part.pop(f"{one}_{name}", neutral) for one in ("audio", "video")}
        return {one: number for one, number in both.items() if number != neutral}

    model["units"] = moved(model, "units", None)
    data |= {
        "rates": moved(data, "rate", None),
        "labels": [data["labels"]] if data["roots"] else [],
        "streams": ["audio", "video"],
        "tile": ["audio"] if data.pop("tile_audio") else [],
    }
    augment |= {
        "noise": moved(augment, "noise", [0.0, 0.0]),
        "scale": moved(augment, "scale", [1.0, 1.0]),
        "own_tempo": moved(augment, "tempo", [1.0, 1.0]),
        "dropout": moved(augment, "dropout", 0.0),
        "gap": moved(augment, "gap", 0.0),
    }
    return {**value, "data": data, "model": model, "augment": augment}
