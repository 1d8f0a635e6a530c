"""The commands of `mmattn`: the options of each, and the library function that it calls.

Nothing heavy is imported before a command is called, so that `--help` is quick.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mmattn.config import TOLD, ExtractConfig, ModelFiles, OtherDataConfig
from mmattn.errors import UserError
from mmattn.machine import cores
from mmattn.media import explain_missing_library
from mmattn.server import explain_missing_server

REQUIRED = {"help_behavior_hint": "(required)"}  # instead of an empty default
Workers = int | Literal["auto"]


@dataclass(frozen=True, kw_only=True)
class AsksRun:
    """The options of the commands that predict with a run."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder; the networks of folds or an ensemble are pooled. Or a model file written by
    `mmattn card`; or starter, the model that comes with this package: eight emotions from audio
    alone (extra [media], `mmattn download audio-models`)."""
    checkpoint: Literal["best", "final"] = "best"
    """The best epoch on the validation clips, or the last one."""
    calibrated: bool = True
    """Calibrate probabilities by the temperature fitted to the run's validation clips."""
    media: tyro.conf.OmitArgPrefixes[ModelFiles] = field(default_factory=ModelFiles)

    @property
    def places(self) -> ExtractConfig:
        """Where the models for raw clips are."""
        return ExtractConfig(**vars(self.media))


@dataclass(frozen=True)
class Evaluate:
    """Repeat the evaluation of a run from a checkpoint."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder, e.g. runs/no_aug/20260101-120000."""
    checkpoint: Literal["best", "final"] = "best"
    """The best epoch on the validation clips, or the last one."""
    devices: int | Literal["auto"] | None = None
    """Devices to divide the clips over (default: as many as the run used)."""
    data: OtherDataConfig = field(default_factory=OtherDataConfig)

    def __call__(self) -> None:
        from mmattn.run.evaluate import evaluate_run

        evaluate_run(self.run, self.checkpoint, self.devices, self.data)


@dataclass(frozen=True, kw_only=True)
class Predict(AsksRun):
    """Predict the emotions of clips: raw clips (extra [media]) or feature files."""

    clips: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CLIP...", **REQUIRED)
    ]
    """Clips (.npz are feature files; from others the run's features are extracted), folders of
    clips, manifests, or quoted patterns like 'clips/**/*.mp4'."""
    json: bool = False
    """Print only a JSON document."""
    csv: Path | None = None
    """Write a table, one row per clip, instead of printing each clip's predictions."""
    html: Path | None = None
    """Write an HTML page: attention over time, and the faces where that to the video is highest."""

    def __call__(self) -> None:
        from mmattn.run.predict import predict_run

        predict_run(
            self.run,
            self.clips,
            self.checkpoint,
            self.calibrated,
            self.json,
            self.csv,
            self.html,
            self.places,
        )


@dataclass(frozen=True, kw_only=True)
class Timeline(AsksRun):
    """Predict over time in recordings of any length, for each person (extra [media])."""

    recordings: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RECORDING...", **REQUIRED)
    ]
    """Audio or video, and folders to search for them."""
    to: Path = Path("timelines")
    """Folder for NAME.timeline.json and the files made from it; recordings whose timeline is
    newer are skipped."""
    csv: bool = False
    """Make NAME.csv, a row for each window and person. Without --csv, --html and --srt: all."""
    html: bool = False
    """Make NAME.html: click a moment, and the recording plays from there."""
    srt: bool = False
    """Make NAME.srt, subtitles."""
    window: float = 3.0
    """Length of a window in seconds; should be about that of the training clips."""
    hop: float = 0.5
    """Seconds from the start of a window to that of the next."""
    silence: float = -55.0
    """dB of full scale; a window is silent if less than a twentieth of it is louder."""
    partial: bool = False
    """Predict windows that lack one of the run's modalities from the others; by default they are
    gaps."""

    def __call__(self) -> None:
        from mmattn.run.timeline import FORMATS, Sliding, make_timelines

        make_timelines(
            self.run,
            self.recordings,
            self.to,
            Sliding(self.window, self.hop, self.silence, self.partial),
            [name for name in FORMATS if getattr(self, name)] or FORMATS,
            self.checkpoint,
            self.calibrated,
            self.places,
        )


@dataclass(frozen=True, kw_only=True)
class Live(AsksRun):
    """Show a run's predictions from camera and microphone in the browser (extra [live])."""

    port: int = 8080
    """Port on 127.0.0.1, which no other computer can reach; 0 takes any free one."""
    browser: bool = True
    """Open the page in your browser; with --no-browser, open the printed address yourself."""
    record: Path | None = None
    """Folder for a feature file and a table of predictions of each session (default: nothing is
    stored)."""
    window: float = 3.0
    """Seconds of audio and video for a prediction."""
    hop: float = 0.5
    """Seconds from one prediction to the next."""

    def __call__(self) -> None:
        with explain_missing_server():
            from mmattn.server.live import live_run
        from mmattn.run.timeline import Sliding

        live_run(
            self.run,
            self.port,
            self.browser,
            self.record,
            Sliding(self.window, self.hop),
            self.checkpoint,
            self.calibrated,
            self.places,
        )


@dataclass(frozen=True, kw_only=True)
class Serve(AsksRun):
    """Predict clips that programs send over HTTP (extra [live]); GET /docs describes the API."""

    host: str = "127.0.0.1"
    """Address to listen on; unless it is a loopback address, other machines can send clips."""
    port: int = 8000
    """Port to listen on; 0 takes any free one."""
    workers: int = 2
    """Number of worker processes; each usually takes up to 1 GB."""
    queue: int = 16
    """Maximum number of waiting requests; further ones get 503 and should retry later."""
    max_size: float = 100
    """Maximum size of a request in MB; larger ones get 413."""
    timeout: float = 60
    """Maximum seconds for an upload (then 408), and for a prediction (then 504)."""
    memory: float = 4
    """GB that a process may allocate for models and a clip after its start (Linux only)."""

    def __call__(self) -> None:
        with explain_missing_server():
            from mmattn.server.pool import Limits
            from mmattn.server.serve import serve_run
        serve_run(
            self.run,
            self.host,
            self.port,
            Limits(self.workers, self.queue, self.max_size, self.timeout, self.memory),
            self.checkpoint,
            self.calibrated,
            self.places,
        )


@dataclass(frozen=True)
class Baseline:
    """Train and test baselines on a run's clips and splits, and compare the run to them."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder."""
    networks: bool = False
    """Besides linear models, train the run's network without its LSTM, with attention and with mean
    pooling."""
    data: OtherDataConfig = field(default_factory=OtherDataConfig)

    def __call__(self) -> None:
        from mmattn.run.evaluate import baseline_of_run

        baseline_of_run(self.run, self.data, self.networks)


@dataclass(frozen=True)
class Compare:
    """Compare a run to its baselines and to other runs with the same test clips."""

    runs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...", **REQUIRED)
    ]
    """The folders of the runs; the others are compared to the first."""

    def __call__(self) -> None:
        from mmattn.run.evaluate import compare_runs

        compare_runs(self.runs)


@dataclass(frozen=True)
class Report:
    """Rewrite a run's report page, report.html."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder."""
    devices: int | Literal["auto"] | None = None
    """Devices to divide the clips over (default: as many as the run used)."""
    data: OtherDataConfig = field(default_factory=OtherDataConfig)

    def __call__(self) -> None:
        from mmattn.run.report import report_run

        report_run(self.run, self.devices, self.data)


@dataclass(frozen=True)
class Card:
    """Write the files to share a run: its networks in one file, and a model card."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a complete run."""
    to: Annotated[Path | None, TOLD] = None
    """Folder for model.npz and CARD.md (default: RUN/shared)."""
    half: bool = False
    """Store parameters in half precision (float16)."""

    def __call__(self) -> None:
        from mmattn.run.card import write_card

        write_card(self.run, self.to or self.run / "shared", self.half)


@dataclass(frozen=True)
class Export:
    """Write a run as one file for other programs, after comparing it with its networks."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a complete run, a model file that `mmattn card` wrote, or starter; the networks
    of folds or an ensemble are pooled inside."""
    to: Path
    """FILE.onnx, for ONNX Runtime in any language; or FILE.stablehlo, for jax.export, with its
    metadata in FILE.json (extra [export])."""
    checkpoint: Literal["best", "final"] = "best"
    """The best epoch on the validation clips, or the last one."""
    calibrated: bool = True
    """Calibrate probabilities by the temperature fitted to the run's validation clips."""

    def __call__(self) -> None:
        from mmattn.export.export import export_run

        export_run(self.run, self.to, self.checkpoint, self.calibrated)


@dataclass(frozen=True)
class Manifest:
    """Write a corpus manifest, one row per clip, and summarise what was read from its files."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Raw clips or feature files."""
    corpus: str | None = None
    """Corpus whose naming scheme the files follow: ravdess or crema-d."""
    pattern: str | None = None
    """Or a pattern for the paths, without suffix: '{emotion}/{speaker}_{take}'."""
    audformat: Path | None = None
    """Or a database in audformat, with paths relative to FOLDER (extra [audformat])."""
    ratings: Path | None = None
    """With crema-d: the folder of tabulatedVotes.csv and VideoDemographics.csv."""
    votes: Literal["audio-visual", "voice", "face"] = "audio-visual"
    """Votes that --ratings adds: of raters who saw and heard, only heard, or only saw the clip."""
    to: Path | None = None
    """The manifest (default: FOLDER/manifest.csv); .tsv is tab-separated."""
    overwrite: bool = False
    """Replace an existing manifest."""

    def __call__(self) -> None:
        from mmattn.run.manifest import make_manifest

        make_manifest(
            self.folder,
            self.to or self.folder / "manifest.csv",
            self.corpus,
            self.pattern,
            self.audformat,
            self.ratings,
            self.votes,
            self.overwrite,
        )


@dataclass(frozen=True)
class Extract:
    """Extract feature files from raw clips: mp4, flv, avi, mkv, wav and others (extra [media])."""

    clips: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CLIP...", **REQUIRED)
    ]
    """Clips, folders to search for clips, and manifests of clips."""
    to: Path
    """Folder for the feature files; existing ones are kept, unless their clip is newer."""
    features: tyro.conf.OmitArgPrefixes[ExtractConfig] = field(default_factory=ExtractConfig)
    workers: Workers = "auto"
    """Clips to process in parallel (default: the number of cores)."""

    def __call__(self) -> None:
        with explain_missing_library():
            from mmattn.media.parallel import extract_clips
        extract_clips(self.clips, self.to, self.features, worker_count(self.workers))


@dataclass(frozen=True)
class Probe:
    """Show a clip's streams, which of them `mmattn extract` uses, and possible problems."""

    clip: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CLIP")]
    """A raw clip (extra [media])."""

    def __call__(self) -> None:
        with explain_missing_library():
            from mmattn.media.probe import probe_clip
        probe_clip(self.clip, ExtractConfig.video_rate)


@dataclass(frozen=True)
class Align:
    """Check that audio and mouth movement are in sync; list clips that clearly are not."""

    clips: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CLIP...", **REQUIRED)
    ]
    """Raw clips (extra [media]), feature files made with --audio log-mel --video face-mesh, or
    folders of them."""
    plot: Path | None = None
    """Write a PNG: loudness and mouth opening of the clip that is furthest out of sync."""
    csv: Path | None = None
    """Write a table, one row per clip that can be checked."""
    workers: Workers = "auto"
    """Clips to process in parallel (default: the number of cores)."""
    models: Path = ExtractConfig.models
    """The folder where `mmattn download models` put the model files."""

    def __call__(self) -> None:
        with explain_missing_library():
            from mmattn.media.check import check_clips
        check_clips(self.clips, self.models, worker_count(self.workers), self.plot, self.csv)


@dataclass(frozen=True)
class Download:
    """Download models for feature extraction, or RAVDESS's clips; a second call resumes."""

    what: Annotated[
        Literal["models", "face-models", "audio-models", "ravdess"], tyro.conf.Positional
    ]
    """models: those that the default features, face-mesh and `mmattn align` need (108 MB);
    face-models (37 MB), audio-models (71 MB): the two parts of these; ravdess: its speech clips."""
    to: Path | None = None
    """Folder for the download (default for models: ~/.cache/mmattn/models)."""
    only: Annotated[tuple[str, ...], TOLD] = ()
    """Actors: Actor_01 Actor_02; Audio: the audio-only clips of all actors (default:
    everything)."""

    def __call__(self) -> None:
        with explain_missing_library():
            from mmattn.media.download import download
        download(self.what, self.to, self.only)


@dataclass(frozen=True)
class Launch:
    """Train with several processes on this machine, as one job; they share its cores."""

    command: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODULE ...", **REQUIRED)
    ]
    """An experiment and its options: launch -n 2 experiments.no_aug --seed 1."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 2
    """Number of processes."""

    def __call__(self) -> None:
        from mmattn.launch import launch

        launch(self.n, self.command)


COMMANDS = (
    Evaluate,
    Predict,
    Timeline,
    Live,
    Serve,
    Report,
    Card,
    Export,
    Baseline,
    Compare,
    Manifest,
    Extract,
    Probe,
    Align,
    Download,
    Launch,
)


def worker_count(workers: Workers) -> int:
    """The number of processes to use; UserError if it is below 1."""
    if workers == "auto":
        return cores()
    if workers < 1:
        raise UserError(f"--workers {workers}: expected 1 or more")
    return workers
