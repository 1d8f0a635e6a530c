"""Trackers: callbacks that show a training in TensorBoard, MLflow or W&B.

A tracker gets the config as hyperparameters once, each epoch's row (`train/loss`,
`validation/uar`, …; the step is the epoch) and, after a complete training, the scores of the best
checkpoint (`best/test/uar`) and plots of the curves and the confusion matrix. It never gets
features, faces, tables of clips or weights.

A resumed training continues its curves: epochs that it repeats have equal values and are logged
once.
"""

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory

from mmattn.console import warn
from mmattn.errors import UserError
from mmattn.files import read_json, write_json
from mmattn.train.callbacks import Callback

IDS = "trackers.json"  # in a run's folder: the id of the run in each tracker
LONGEST_PARAMETER = 250  # characters that every MLflow server accepts
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "WANDB_API_KEY")
MLFLOW_STATUS = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
UPLOAD_SECONDS = 120  # that W&B may take at the end of a training; its server may be unreachable


class Tracker(Callback):
    """Base of the trackers. One that fails warns once and is switched off; training continues.

    Subclasses set `name`, as in `TRACKERS` and the package's extras, and have `begin`, `log` and
    `end`. Their constructors raise UserError if a library or a login is missing.
    """

    name: str
    off = False
    next_step = 1  # the tracker already has all earlier steps

    def begin(self, run, known: str | None) -> tuple[str | None, int]:
        """Open the run, that with the `known` id if it exists; returns its id and next step."""
        raise NotImplementedError

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        raise NotImplementedError

    def end(self, run, scores: Mapping[str, float], pictures: list[Path]) -> None:
        """Add scores and PNG files, if `run.status` is "complete", and close."""
        raise NotImplementedError

    def on_train_begin(self, run) -> None:
        self._try(self._begin, run)

    def on_epoch_end(self, run, row: dict[str, float]) -> None:
        self._try(self._log_row, row)

    def on_train_end(self, run) -> None:
        self._try(self._end, run)

    def _try(self, work: Callable, *args) -> None:
        if self.off:
            return
        try:
            work(*args)
        except Exception as error:
            self.off = True
            warn(f"{self.name} is switched off, training continues: {_reason(error)}")

    def _begin(self, run) -> None:
        path = run.folder and run.folder / IDS
        ids = read_json(path) if path and path.exists() else {}
        own, self.next_step = self.begin(run, ids.get(self.name))
        if path and own:
            write_json(path, {**ids, self.name: own})
        for row in run.history:
            self._log_row(row)

    def _log_row(self, row: dict[str, float]) -> None:
        if row["epoch"] >= self.next_step:
            values = {_curve(key): value for key, value in row.items() if key != "epoch"}
            self.log({k: v for k, v in values.items() if math.isfinite(v)}, int(row["epoch"]))

    def _end(self, run) -> None:
        with TemporaryDirectory() as folder:
            if run.status == "complete":
                self.end(run, _best_scores(run), _draw(run, Path(folder)))
            else:
                self.end(run, {}, [])


class TensorBoard(Tracker):
    """Event files in the run's folder, or in `folder`/`run.name`.

    `tensorboard --logdir runs` shows each run by its path.
    """

    name = "tensorboard"

    def __init__(self, folder: str | Path | None = None):
        with _explained(self.name):
            import tensorboardX.event_file_writer
        self.folder, self.library = folder, tensorboardX

    def begin(self, run, known):
        folder = run.folder if self.folder is None else Path(self.folder) / run.name
        if folder is None:
            raise UserError("a run without a folder needs TensorBoard(folder)")
        if run.folder is None:  # its name may be that of another run
            others = (folder.with_name(f"{folder.name}{number}") for number in count(2))
            folder = next(one for one in chain([folder], others) if not one.exists())
        folder.mkdir(parents=True, exist_ok=True)
        resumed = any(folder.glob("events.out.tfevents.*"))
        # Not SummaryWriter: its thread dies on a full disk, and its queue then blocks forever. The
        # suffix, because a second file of the same second and name would overwrite the first.
        writer = self.library.event_file_writer.EventsWriter
        self.writer = writer(str(folder / "events"), f".{time.time_ns()}")
        if not resumed:
            _, start, _ = self.library.summary.hparams(_parameters(run), {})
            self._write(0, summary=start)
            return None, 1
        # From this step on, readers drop the points of earlier files. The last row of the history
        # may be missing: training may have been killed between its checkpoint and its callbacks.
        next_step = max(1, len(run.history))
        log = self.library.proto.event_pb2.SessionLog
        self._write(next_step, session_log=log(status=log.START))
        return None, next_step

    def log(self, values, step):
        kind = self.library.summary.Summary
        points = [kind.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, summary=kind(value=points))

    def end(self, run, scores, pictures):
        from matplotlib.image import imread

        self.log(scores, len(run.history))
        for path in pictures:
            image = self.library.summary.image(path.stem, imread(path), dataformats="HWC")
            self._write(len(run.history), summary=image)
        self.writer.close()

    def _write(self, step: int, **what) -> None:
        event = self.library.proto.event_pb2.Event(wall_time=time.time(), step=step, **what)
        self.writer.write_event(event)
        self.writer.flush()


class MLflow(Tracker):
    """A run of MLflow's experiment "mmattn" or MLFLOW_EXPERIMENT_NAME, at MLFLOW_TRACKING_URI.

    Without that variable, MLflow uses mlflow.db and mlruns/ in the working directory. MLflow sends
    telemetry unless MLFLOW_DISABLE_TELEMETRY=true. It retries an unreachable server for minutes,
    see MLFLOW_HTTP_REQUEST_MAX_RETRIES; meanwhile training waits.
    """

    name = "mlflow"

    def __init__(self):
        with _explained(self.name):
            import mlflow

            self.library, self.client = mlflow, mlflow.MlflowClient()
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "mmattn")
            found = self.client.get_experiment_by_name(name)
            self.experiment = found.experiment_id if found else self.client.create_experiment(name)

    def begin(self, run, known):
        query = f"attributes.run_id = '{known}'"
        if known and self.client.search_runs([self.experiment], query):
            self.id = known
            self.client.update_run(known, status="RUNNING")
            curves = self.client.get_run(known).data.metrics
            points = [p for key in curves for p in self.client.get_metric_history(known, key)]
            return known, 1 + max((point.step for point in points), default=0)
        self.id = self.client.create_run(self.experiment, run_name=run.name).info.run_id
        values = {name: str(value) for name, value in _parameters(run).items()}
        short = {name: value for name, value in values.items() if len(value) <= LONGEST_PARAMETER}
        parameter = self.library.entities.Param
        self.client.log_batch(self.id, params=[parameter(*pair) for pair in short.items()])
        self.client.log_dict(self.id, run.config.to_json(), "config.json")
        return self.id, 1

    def log(self, values, step):
        now, metric = int(1000 * time.time()), self.library.entities.Metric
        points = [metric(name, value, now, step) for name, value in values.items()]
        self.client.log_batch(self.id, metrics=points)

    def end(self, run, scores, pictures):
        self.log(scores, len(run.history))
        for path in pictures:
            self.client.log_artifact(self.id, path)
        self.client.set_terminated(self.id, MLFLOW_STATUS[run.status])


class WandB(Tracker):
    """A run of the W&B project "mmattn" or WANDB_PROJECT; see W&B's other variables too.

    With WANDB_MODE=offline it stays in the run's folder until `wandb sync`. A resumed training then
    starts a second folder with the complete curves. Console output and code are not uploaded.
    """

    name = "wandb"

    def __init__(self):
        with _explained(self.name):
            import wandb

            self.library = wandb
            if wandb.setup().settings.mode not in ("offline", "dryrun", "disabled"):
                wandb.login(verify=True)

    def begin(self, run, known):
        self.run = self.library.init(
            project=os.environ.get("WANDB_PROJECT", "mmattn"),
            name=run.name,
            id=known,
            resume="allow",
            config=_parameters(run),
            dir=os.environ.get("WANDB_DIR", run.folder),
            reinit="create_new",  # leaves the user's own run untouched
            settings=self.library.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                finish_timeout=UPLOAD_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        return self.run.id, self.run.step

    def log(self, values, step):
        self.run.log(dict(values), step=step, commit=True)

    def end(self, run, scores, pictures):
        images = {path.stem: self.library.Image(str(path)) for path in pictures}
        if scores or images:
            self.run.log({**scores, **images})
        self.run.finish(exit_code=int(run.status == "failed"))


TRACKERS = {kind.name: kind for kind in (TensorBoard, MLflow, WandB)}


def make_trackers(names: Iterable[str]) -> list[Tracker]:
    """Trackers by name; UserError if a library or a login is missing."""
    return [TRACKERS[name]() for name in names]


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn an error of a library, or a missing library, into a UserError."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"tracker {name}: {error}; expected its libraries: pip install 'mmattn[{name}]'"
        ) from error
    except Exception as error:
        raise UserError(f"tracker {name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """An error on one line of at most 300 characters, without passwords."""
    text = re.sub(r"//[^/\s]*@", "//", f"{type(error).__name__}: {error}")
    for name in SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return " ".join(text.split())[:300]


def _curve(key: str) -> str:
    """The name of a row's key in trackers: train/loss for train_loss."""
    split, _, metric = key.partition("_")
    return f"{split}/{metric}" if split in ("train", "validation") else key


def _parameters(run) -> dict[str, str | bool | float]:
    """The config as hyperparameters, by names such as train.learning_rate; lists as JSON."""
    config = run.config.to_json()
    parts = {key: config.pop(key) for key in list(config) if isinstance(config[key], dict)}
    for part, options in parts.items():
        config |= {f"{part}.{name}": value for name, value in options.items()}
    return {
        name: value if isinstance(value, str | bool | int | float) else json.dumps(value)
        for name, value in config.items()
        if name not in ("out", "resume")
    }


def _best_scores(run) -> dict[str, float]:
    """The scores of each split's predictions, by names such as best/test/uar."""
    from mmattn.evaluate.metrics import scores

    return {
        f"best/{split}/{metric}": score["value"]
        for split, predictions in run.predictions.items()
        for metric, score in scores(predictions, resamples=0).items()
        if score["value"] is not None
    }


def _draw(run, folder: Path) -> list[Path]:
    """PNG files of the curves and of the confusion matrix of the last split."""
    from mmattn.evaluate.plots import plot_confusion, plot_curves

    pictures = [folder / "curves.png"]
    plot_curves(run.history, run.config.train.monitor, pictures[0])
    for split, predictions in list(run.predictions.items())[-1:]:
        pictures.append(folder / "confusion.png")
        plot_confusion(predictions, pictures[1], f"{split.capitalize()} clips")
    return pictures
