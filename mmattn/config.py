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
TOLD = tyro.conf.arg(help_behavior_hint="")  # the help text gives the default


def _named(kind: type, metavar: str) -> tyro.constructors.PrimitiveConstructorSpec:
    """The command-line form of a dict: NAME=VALUE or NAME=VALUE,VALUE… for each entry."""

    def parse(words: list[str]) -> dict:
        found = {}
        for word in words:
            name, _, text = word.partition("=")
            if not (name and text) or name in found:
                raise ValueError(f"{word!r}: expected {metavar}, each name once")
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
    """The hash of a config that holds dicts."""
    return hash(repr(config))


NamedRanges = Annotated[dict[str, Range], _named(float, "MODALITY=LOW,HIGH"), TOLD]
NamedNumbers = Annotated[dict[str, float], _named(float, "MODALITY=NUMBER"), TOLD]
NamedSizes = Annotated[dict[str, tuple[int, ...]], _named(int, "MODALITY=UNITS,…"), TOLD]
NamedShares = Annotated[dict[str, float], _named(float, "NAME=FRACTION"), TOLD]
NamedValues = Annotated[dict[str, tuple[float, ...]], _named(float, "NAME=VALUE,…"), TOLD]
NamedText = Annotated[dict[str, str], _named(str, "NAME=COLUMN"), TOLD]


def kind_of(modality: str) -> str:
    """Audio or video: several features of one are separate modalities.

    >>> kind_of("audio_whisper")
    'audio'
    """
    return modality.partition("_")[0]


def _extractors(kind: str) -> tyro.constructors.PrimitiveConstructorSpec:
    """The command-line form of extractor names; several names make several modalities."""

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
    """Where the models for feature extraction are."""

    models: Path = Path("~/.cache/mmattn/models")
    """The folder where `mmattn download models` put the model files."""
    facenet: Path | None = None
    """FaceNet's weights, the file 20180402-114759-vggface2.pt (with --video facenet)."""
    whisper_model: str = "tiny.en"
    """With --audio whisper: tiny.en (mmattn download models); a folder in CTranslate2 format; or,
    with huggingface_hub installed, a name on the Hugging Face Hub such as small or
    Systran/faster-whisper-large-v3."""
    hf_model: str | None = None
    """With --audio hf: a folder, or a name on the Hugging Face Hub such as
    microsoft/wavlm-base-plus."""
    onnx_model: Path | None = None
    """With --video onnx: a network that takes a face; its first output is the feature vector."""


@dataclass(frozen=True)
class ExtractConfig(ModelFiles):
    """Which features to extract from raw clips."""

    __hash__ = _hash

    audio: Annotated[dict[str, str], _extractors("audio")] = field(
        default_factory=lambda: {"audio": "whisper"}
    )
    """Audio features: whisper, hidden states of Whisper's encoder; log-mel, 64 bands; egemaps,
    openSMILE's eGeMAPSv02 low-level descriptors (extra [opensmile]); hf, hidden states of a speech
    encoder from Hugging Face (extra [transformers]); none. If several are given, each becomes a
    separate modality: audio_log_mel, audio_whisper."""
    video: Annotated[dict[str, str], _extractors("video")] = field(
        default_factory=lambda: {"video": "expression"}
    )
    """Video features: expression, posteriors of 7 facial expressions and their logarithms;
    face-mesh, distances between facial landmarks; a face embedding: dlib, 128 numbers (extra
    [dlib]), facenet, 512 (extra [facenet]), or onnx, by a network of your own (extra [onnx]);
    none, which needs no face models."""
    augment_audio: NamedValues = field(default_factory=dict)
    """Also extract features of augmented copies of the audio, one copy for each value, that
    training can mix in (--augment.variants): tempo=0.9,1.1 (times as fast), pitch=-2,2 (semitones),
    speed=0.9 (both at once, by resampling), noise=20 (signal-to-noise ratio in dB, white noise)."""
    video_rate: float = 15.0
    """Maximum frame rate (fps); clips above it are subsampled."""
    face: Literal["speaker", "largest"] = "speaker"
    """If there are several faces: speaker, track the one whose mouth moves with the audio (the
    largest if that is unclear, or there is no audio); largest, always the largest."""
    whisper_layer: int = -2
    """Layer of the hidden states, 1 the first, -1 the last (with --audio whisper). The last but
    one carries more emotion information than the last."""
    hf_layer: int = -1
    """Layer of the hidden states, 0 before the first, -1 after the last (with --audio hf)."""
    onnx_size: int | None = None
    """Input size in pixels, if the network's file does not fix it (with --video onnx)."""
    onnx_colour: Colour = "rgb"
    """Channel order of that input."""
    onnx_mean: tuple[float, ...] = (0.5,)
    """Subtracted from pixels of 0 to 1: one number, or one for each channel."""
    onnx_std: tuple[float, ...] = (0.5,)
    """Divisor after that: one number, or one for each channel."""
    onnx_margin: float = 1.2
    """Side of the square around the face, relative to the longer side of the detector's box."""


@dataclass(frozen=True)
class SyntheticConfig:
    """The built-in corpus, used when no `--data.roots` are given."""

    rule: Literal["unimodal", "coincidence"] = "unimodal"
    """What defines the class: each cue by itself, or which audio cue coincides with which video
    cue."""
    clips: int = 864
    speakers: int = 24
    audio_width: int = 24
    """Feature dimension of an audio frame."""
    video_width: int = 16
    """Feature dimension of a video frame."""
    audio_rate: float = 100.0
    """Audio frames per second."""
    video_rate: float = 15.0
    """Video frames per second."""
    seed: int = 0


@dataclass(frozen=True)
class DataConfig:
    """Which clips, with which labels, and how they are divided."""

    __hash__ = _hash

    roots: Annotated[tuple[Path, ...], TOLD] = ()
    """Corpora: manifests, or folders that have a manifest.csv or are named as RAVDESS or CREMA-D
    (default: the built-in synthetic corpus)."""
    labels: Annotated[tuple[str, ...], TOLD] = ()
    """Classes in order, e.g. anger happy neutral=neutral,calm; clips of other emotions are left
    out. Or six (these and disgust, fear, sad) or ravdess8 (default: all emotions of a manifest; six
    for files named as RAVDESS or CREMA-D)."""
    target: str = "emotion"
    """The manifest column that holds the label."""
    soft: bool = False
    """Train on soft labels from the raters' votes, the columns emotion.CLASS; a clip whose emotion
    is in no class stays if it has votes for classes."""
    columns: NamedText = field(default_factory=dict)
    """Columns with another name in the manifest, e.g. speaker=speaker_id."""
    streams: Annotated[tuple[str, ...], TOLD] = ()
    """Modalities that every clip must have (default: those of the model)."""
    zero_is_missing: tuple[str, ...] = ("video",)
    """Modalities in which an all-zero frame means missing data, such as no face. video includes
    every video_NAME."""
    max_bad: int = 0
    """Maximum number of unreadable clips to tolerate before the run stops."""
    rates: NamedNumbers = field(default_factory=dict)
    """Frames per second of files without timestamps."""
    cache: Path = Path("~/.cache/mmattn")
    """Where packed copies of feature files are kept."""
    overlap: bool = False
    """Crop each clip to the time that all its streams cover."""
    tile: Annotated[tuple[str, ...], TOLD] = ()
    """Modalities whose frames are all replaced by their mean over the clip: a control without
    dynamics, like the earlier system's audio features."""
    split: Literal["speakers", "column", "leaky-clips"] = "speakers"
    """speakers: by speaker; column: by the manifest's column split; leaky-clips: the earlier
    system's random split of clips, which leaks speakers."""
    disjoint: tuple[str, ...] = ("speaker",)
    """Columns whose values may not occur in two splits."""
    validation: float = 0.15
    """Fraction of the speakers for validation (with folds: of the speakers outside the test
    fold)."""
    test: float = 0.15
    """Fraction of the speakers for the test set (without folds)."""
    folds: str | None = None
    """Test folds: a column of the manifest, one fold for each value (speaker: leave one speaker
    out); ravdess or crema-d, as published; or a JSON file {"test_speakers": [[…], …]}."""
    fold: int | Literal["all"] = "all"
    """Which fold is the test set, from 0; all: train once for each fold."""
    groups: Annotated[tuple[str, ...], TOLD] = ()
    """Manifest columns to also report scores by (default: corpus and sex, if they
    have several values)."""
    buckets: int = 4
    """Number of length buckets: a batch has clips of similar length."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def zero_is_gap(self, modality: str) -> bool:
        """Whether a frame of zeros of this modality has no data."""
        return not {modality, kind_of(modality)}.isdisjoint(self.zero_is_missing)

    def check(self) -> None:
        """Raise UserError at the first invalid option."""
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
            *((f"data.{name}", of, 0 < of < 1, "above 0, below 1") for name, of in shares.items()),
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
    """Feature files in place of those of the run or experiment, e.g. if they have moved."""

    roots: Annotated[tuple[Path, ...], TOLD] = ()
    """Folders of feature files, or manifests (default: those of the run or study, if any). If some
    of a run's own validation or test clips are missing there, `mmattn evaluate` uses the clips of
    unseen speakers instead."""
    max_bad: Annotated[int | None, TOLD] = None
    """Maximum number of unreadable clips to tolerate (default: as the run or experiment)."""
    cache: Annotated[Path | None, TOLD] = None
    """Where packed copies of feature files are kept (default: as the run or experiment)."""

    def apply(self, data: DataConfig) -> DataConfig:
        """The run's data config with these values."""
        given = vars(self) | {"roots": self.roots or None}
        return replace(data, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training clips, drawn anew in each epoch; none by default.

    It acts on normalised features: every feature has standard deviation 1. For each clip a strength
    is drawn uniformly between the two numbers of a range.
    """

    __hash__ = _hash

    pick: Literal["all", "one-or-all"] = "all"
    """all: apply all the operations that are set; one-or-all: at random one of them or all, as the
    earlier system did."""
    probability: float = 1.0
    """Fraction of the clips to augment."""
    noise: NamedRanges = field(default_factory=dict)
    """Standard deviation of additive Gaussian noise on a modality's features."""
    scale: NamedRanges = field(default_factory=dict)
    """Factor on the features of a modality."""
    own_tempo: NamedRanges = field(default_factory=dict)
    """Tempo of one modality alone, which breaks its alignment with the others; above 1 is
    faster."""
    tempo: Range = (1.0, 1.0)
    """Tempo of all streams together, on their common time axis."""
    dropout: NamedNumbers = field(default_factory=dict)
    """Fraction of a modality's features that are set to their mean throughout a clip."""
    gap: NamedNumbers = field(default_factory=dict)
    """Longest gap (s) in which frames of a modality are marked as missing."""
    time_mask: float = 0.0
    """Longest stretch (s) that is set to the mean in all modalities at once."""
    feature_mask: float = 0.0
    """Largest fraction of features, in one band, that is set to the mean, in each modality."""
    drop_modality: float = 0.0
    """Fraction of the clips that lose one modality."""
    variants: NamedShares = field(default_factory=dict)
    """Fraction of the clips whose audio features are replaced by those of an augmented copy (mmattn
    extract --augment-audio): tempo=0.5 draws from all tempos, tempo_0_9=0.5 uses that one. Not
    affected by pick and probability."""
    variant_times: Literal["clip", "own"] = "clip"
    """Timestamps of the copies. clip: those of the clip, so that they stay aligned with the video;
    own: those of the copy, as in the earlier system, so that a changed tempo breaks alignment."""
    mixup: float = 0.0
    """Parameter of the Beta distribution that mixup draws its lambda from; 0: no mixup."""


@dataclass(frozen=True)
class ModelConfig:
    """A bidirectional LSTM stack for each modality, fusion with temporal attention, dense head."""

    __hash__ = _hash

    modalities: tuple[str, ...] = ("audio", "video")
    """Modalities to encode, by their names in the feature files (NAME_features)."""
    fusion: str = "concat"
    """concat: pool each modality over time and concatenate; late: classify each modality
    separately, with its own loss, and average the log-probabilities; cross: frames of each modality
    attend to those of the others by content and distance in seconds, and are pooled together on
    their common time axis."""
    late_weights: Literal["equal", "validation"] = "equal"
    """Weights of the modalities in the average: equal, or fitted to the validation clips after each
    epoch (fusion late)."""
    branch_loss: float = 0.0
    """Weight of an auxiliary loss for each modality, from a separate head used only in training
    (fusions concat and cross); 0: no such heads."""
    cross_window: float = 0.5
    """Attention window: seconds to either side that a frame attends to (fusion cross)."""
    cross_heads: int = 2
    """Attention heads, each with its own temporal offset (fusion cross)."""
    cross_units: int = 64
    """Feature dimension of the joint frames (fusion cross)."""
    encoder: Literal["lstm", "none"] = "lstm"
    """lstm: a bidirectional LSTM stack for each modality; none: the features as they are."""
    units: NamedSizes = field(default_factory=dict)
    """Units per direction of each LSTM layer (default: 128,64; video=256,128)."""
    pooling: Pooling = "attention"
    """How frames are pooled: by temporal attention, or by their mean."""
    statistics: bool = False
    """Average with a jointly trained linear classifier on functionals (mean, standard deviation, …)
    of the features over time."""
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
        """Units per direction of each LSTM layer of a modality; empty without an LSTM."""
        if self.encoder == "none":
            return ()
        default = (256, 128) if kind_of(modality) == "video" else (128, 64)
        return self.units.get(modality, default)


@dataclass(frozen=True)
class TrainConfig:
    """Loss, optimiser and schedule."""

    epochs: int = 50
    batch: int = 24
    """Clips per optimiser step, over all devices together."""
    learning_rate: float = 5e-4
    weight_decay: float = 0.0
    gamma: float = 2.0
    """Focusing parameter of the focal loss; 0 is cross-entropy."""
    class_weights: bool = True
    """Weight the classes by n / (k n_c) of the training split."""
    schedule: Literal["plateau", "cosine"] = "plateau"
    """Halve the learning rate on a plateau, or let it fall to 0 over the epochs."""
    monitor: str = "accuracy"
    """Validation metric that selects the best epoch: accuracy, uar, macro_f1, top2, ece, log_loss,
    brier or loss."""
    plateau: int = 5
    """Epochs without a lower validation loss before the learning rate is halved."""
    patience: int = 10
    """Epochs without a better monitor before training stops, which it also does when the monitor is
    perfect; 0: no early stopping."""
    save_every: int = 1
    """Save a checkpoint to resume from every so many epochs; the best and the last are always
    saved."""
    steps_per_dispatch: int = 8
    """Optimiser steps in one call to the devices; batches are shuffled in groups of this size."""


@dataclass(frozen=True)
class DistributedConfig:
    """Processes that train together; `mmattn launch` starts them on one machine."""

    coordinator: str | None = None
    """HOST:PORT where process 0 waits for the others; it does not authenticate them. Or set
    JAX_COORDINATOR_ADDRESS."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, from 0. Only process 0 writes the run's folder."""
    timeout: float = 120.0
    """Seconds to wait for all processes."""

    @property
    def address(self) -> str | None:
        """The coordinator's address."""
        return self.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")

    def check(self) -> None:
        """Raise UserError unless the options are consistent."""
        address, count, number = self.address, self.num_processes, self.process_id
        if not 0 < self.timeout <= 86400:
            raise UserError(
                f"--distributed.timeout {self.timeout}: expected above 0 and at most 86400 seconds"
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
    """All options of a run: `python -m experiments.NAME --help` lists them."""

    name: Annotated[str, tyro.conf.Fixed, tyro.conf.Suppress] = "fit"
    """The experiment's name, that of its module."""
    seed: int = 0
    ensemble_size: int = 1
    """Number of networks, each with its own validation speakers; the prediction is the geometric
    mean of their probabilities. Each speaker outside the test set validates one of them;
    --data.validation is not used."""
    devices: int | Literal["auto"] = "auto"
    """CPU devices (or GPUs), over all processes, to divide each batch over."""
    track: Annotated[tuple[Tracker, ...], TOLD] = ()
    """Also log losses, scores and plots to these trackers (extras [tensorboard], [mlflow],
    [wandb])."""
    out: Path | None = None
    """The run's folder, new or to resume (default: runs/<experiment>/<time>)."""
    resume: bool = False
    """Continue the run in --out from its latest checkpoint, with its original options."""
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
        """Raise UserError at the first invalid option."""
        # Slow to import, and `--help` does not need them.
        from mmattn.model.fusion import fusion_of
        from mmattn.train.history import monitor_of

        self.distributed.check()
        if self.resume and self.out:  # the run's stored options are used, which were checked
            return
        self.data.check()
        monitor_of(self.train.monitor)
        fusion_of(self.model.fusion)
        train, model, data, augment = self.train, self.model, self.data, self.augment
        _check(
            ("seed", self.seed, self.seed >= 0, "0 or more"),
            ("ensemble_size", self.ensemble_size, self.ensemble_size > 0, "1 or more"),
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
        """As plain JSON values, without `distributed`; `config_from_json` reads it back."""
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
    """A config written by an earlier version, in the fields of this one."""
    value = {"ensemble_size" if name == "members" else name: of for name, of in value.items()}
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
