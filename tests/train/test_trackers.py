"""Trackers with the real libraries, offline, and what they wrote read back."""

import io
import json
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

from mmattn.config import DataConfig, ExperimentConfig, TrainConfig
from mmattn.errors import UserError
from mmattn.evaluate.plots import plot_confusion
from mmattn.evaluate.predictions import Predictions
from mmattn.files import read_json, write_json
from mmattn.train.trackers import TRACKERS, MLflow, TensorBoard, Tracker, WandB

CLASSES = ("calm", "happy", "sad")
CONFIG = ExperimentConfig("no_aug", train=TrainConfig(learning_rate=3e-4))
Curves = dict[str, list[tuple[int, float]]]


def row(epoch: int) -> dict[str, float]:
    return {
        "epoch": epoch,
        "train_loss": 1.5 / epoch,
        "train_accuracy": 1 - 0.6 / epoch,
        "validation_loss": 0.4 + 1.2 / epoch,
        "validation_accuracy": 0.8 - 0.5 / epoch,
        "validation_uar": 0.75 - 0.5 / epoch,
        "learning_rate": 5e-4,
        "gradient_norm": 2.0 / epoch,
        "clips_per_s": 130.0,
        "seconds": 4.5,
    }


def predictions(right: int) -> Predictions:
    """Of nine clips, three a class; the last ones are wrong."""
    labels = np.repeat([0, 1, 2], 3)
    predicted = np.where(np.arange(9) < right, labels, (labels + 1) % 3)
    speakers = ["a", "b", "c"] * 3
    names = tuple(f"clip{number}" for number in range(9))
    return Predictions(names, speakers, labels, np.eye(3)[predicted], CLASSES)


@dataclass
class Run:
    """What `fit` gives to callbacks."""

    name: str
    folder: Path | None
    history: list[dict] = field(default_factory=list)
    predictions: dict[str, Predictions] = field(default_factory=dict)
    status: str = "running"
    class_names: tuple[str, ...] = CLASSES
    config: ExperimentConfig = CONFIG


def train(tracker: Tracker, run: Run, epochs: int, status: str | None = None) -> None:
    """Play a training from the run's history on; without a status it is killed."""
    tracker.on_train_begin(run)
    for epoch in range(len(run.history) + 1, epochs + 1):
        run.history.append(row(epoch))
        tracker.on_epoch_end(run, run.history[-1])
    if status:
        run.status = status
        if status == "complete":
            run.predictions = {"validation": predictions(9), "test": predictions(6)}
        tracker.on_train_end(run)


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    """A working directory, whose mlflow.db takes seconds to make."""
    return tmp_path_factory.mktemp("trackers")


@pytest.fixture(autouse=True)
def offline(monkeypatch, database):
    monkeypatch.chdir(database)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_API_KEY", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("NETRC", str(database / "netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.fixture
def run(tmp_path, request) -> Run:
    (tmp_path / "run").mkdir()
    return Run(f"no_aug/{request.node.name}", tmp_path / "run")


@pytest.fixture
def make() -> Iterator[Callable[..., Tracker]]:
    """`make(kind, ...)`: a tracker of a new process: what those before it have open is lost."""
    made = []

    def lose() -> None:
        if "wandb" in sys.modules:
            sys.modules["wandb"].teardown()
        for tracker in made:
            if isinstance(tracker, TensorBoard):
                with suppress(ValueError):  # closed already
                    tracker.writer.close()
        made.clear()

    def new(name: str, *options) -> Tracker:
        lose()
        made.append(TRACKERS[name](*options))
        return made[-1]

    yield new
    lose()


class TensorBoardReader:
    """What TensorBoard shows of a run."""

    def __init__(self, run: Run):
        self.events = EventAccumulator(str(run.folder)).Reload()

    def curves(self) -> Curves:
        return {
            tag: [(point.step, point.value) for point in self.events.Scalars(tag)]
            for tag in self.events.Tags()["scalars"]
        }

    def pictures(self) -> dict[str, bytes]:
        tags = self.events.Tags()["images"]
        return {tag: self.events.Images(tag)[-1].encoded_image_string for tag in tags}

    def parameters(self) -> dict:
        metadata = self.events.SummaryMetadata("_hparams_/session_start_info")
        found = parse_session_start_info_plugin_data(metadata.plugin_data.content).hparams
        return {key: getattr(value, value.WhichOneof("kind")) for key, value in found.items()}


class MLflowReader:
    """What MLflow has of a run."""

    def __init__(self, run: Run):
        self.client = MLflow().client
        self.run = self.client.get_run(read_json(run.folder / "trackers.json")["mlflow"])

    def curves(self) -> Curves:
        found, own = self.client, self.run.info.run_id
        return {
            key: [(point.step, point.value) for point in found.get_metric_history(own, key)]
            for key in self.run.data.metrics
        }

    def pictures(self) -> dict[str, bytes]:
        folder = Path(self.run.info.artifact_uri)
        return {path.stem: path.read_bytes() for path in folder.glob("*.png")}

    def parameters(self) -> dict:
        return self.run.data.params


class WandBReader:
    """What W&B wrote of a run offline, in the last folder that it began."""

    def __init__(self, run: Run):
        import wandb

        wandb.teardown()  # waits until all is written
        self.folder = max(
            run.folder.glob("wandb/offline-run-*"), key=lambda p: p.stat().st_ctime_ns
        )
        (file,) = self.folder.glob("run-*.wandb")
        self.records = wandb_records(file.read_bytes())

    def curves(self) -> Curves:
        curves: Curves = {}
        for record in self.records:
            values = {
                "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            for key, value in values.items():
                if isinstance(value, float | int) and not key.startswith("_"):
                    curves.setdefault(key, []).append((values["_step"], value))
        return curves

    def pictures(self) -> dict[str, bytes]:
        return {
            path.name.split("_")[0]: path.read_bytes()
            for path in self.folder.glob("files/media/images/*.png")
        }

    def parameters(self) -> dict:
        (run,) = (record.run for record in self.records if record.HasField("run"))
        return {item.key: json.loads(item.value_json) for item in run.config.update}


def wandb_records(content: bytes) -> list:
    """The records of a .wandb file: a log as LevelDB writes it, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    place, parts, records = 7, b"", []
    while place < len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(parts))
            parts = b""
    return records


READERS = {"tensorboard": TensorBoardReader, "mlflow": MLflowReader, "wandb": WandBReader}
LOGGED = {  # of a row's keys
    "train/loss": "train_loss",
    "validation/uar": "validation_uar",
    "learning_rate": "learning_rate",
    "gradient_norm": "gradient_norm",
    "clips_per_s": "clips_per_s",
}
SLOW = {"mlflow", "wandb"}  # half a second or more a training
each_tracker = pytest.mark.parametrize("name", TRACKERS)
each_tracker_slowly = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in TRACKERS]
)


def check_curves(found: Curves, epochs: int) -> None:
    """Every epoch once, with the row's value."""
    for curve, key in LOGGED.items():
        assert [step for step, _ in found[curve]] == list(range(1, epochs + 1)), curve
        values = [row(epoch)[key] for epoch in range(1, epochs + 1)]
        assert [value for _, value in found[curve]] == pytest.approx(values)
    assert "epoch" not in found


@each_tracker_slowly
def test_a_complete_training(name, make, run):
    train(make(name), run, 4, "complete")
    reader = READERS[name](run)
    found = reader.curves()
    check_curves(found, 4)
    assert [value for _, value in found["best/test/uar"]] == [pytest.approx(2 / 3)]
    assert [value for _, value in found["best/validation/accuracy"]] == [1]
    parameters = reader.parameters()
    assert float(parameters["train.learning_rate"]) == 3e-4
    assert parameters["model.fusion"] == "concat"
    assert json.loads(parameters["model.modalities"]) == ["audio", "video"]
    assert "out" not in parameters
    pictures = reader.pictures()
    assert set(pictures) == {"curves", "confusion"}
    plot_confusion(run.predictions["test"], run.folder / "expected.png", "Test clips")
    expected = imread(run.folder / "expected.png")
    assert np.array_equal(imread(io.BytesIO(pictures["confusion"])), expected)


@pytest.mark.slow
@each_tracker
@pytest.mark.parametrize("saved", [0, 3, 5])
def test_a_training_that_is_killed_and_resumed_has_each_epoch_once(name, saved, make, run):
    train(make(name), run, 5)
    resumed = replace(run, history=[row(epoch) for epoch in range(1, saved + 1)])
    train(make(name), resumed, 7, "complete")
    reader = READERS[name](run)
    check_curves(reader.curves(), 7)
    assert float(reader.parameters()["train.learning_rate"]) == 3e-4


@each_tracker_slowly
def test_a_training_that_is_tracked_from_its_resuming_on_has_all_epochs(name, make, run):
    run.history = [row(1), row(2)]
    train(make(name), run, 3, "complete")
    check_curves(READERS[name](run).curves(), 3)


@each_tracker_slowly
def test_an_epoch_whose_callbacks_were_not_called_is_logged_after_the_resuming(name, make, run):
    train(make(name), run, 2)
    resumed = replace(run, history=[row(epoch) for epoch in range(1, 4)])  # its checkpoint was made
    train(make(name), resumed, 4, "complete")
    check_curves(READERS[name](run).curves(), 4)


@each_tracker_slowly
def test_a_stopped_training_is_closed_and_can_be_resumed(name, make, run):
    train(make(name), run, 2, "stopped")
    assert READERS[name](run).pictures() == {}
    run.status = "running"
    train(make(name), run, 3, "complete")
    check_curves(READERS[name](run).curves(), 3)


@each_tracker_slowly
def test_numbers_that_are_not_finite_are_left_out(name, make, run):
    tracker = make(name)
    tracker.on_train_begin(run)
    for uar in (0.5, float("nan"), float("inf")):
        epoch = len(run.history) + 1
        run.history.append({**row(epoch), "validation_uar": uar})
        tracker.on_epoch_end(run, run.history[-1])
    run.status = "failed"
    tracker.on_train_end(run)
    found = READERS[name](run).curves()
    assert found["validation/uar"] == [(1, 0.5)]
    assert len(found["train/loss"]) == 3


@each_tracker_slowly
def test_folds_are_runs_of_their_own(name, make, run):
    tracker = make(name)
    folds = [replace(run, folder=run.folder / fold, history=[]) for fold in ("fold0", "fold1")]
    for epochs, fold in enumerate(folds, start=1):
        fold.folder.mkdir()
        train(tracker, fold, epochs, "complete")
    for epochs, fold in enumerate(folds, start=1):
        check_curves(READERS[name](fold).curves(), epochs)


def test_tensorboard_elsewhere(make, run, tmp_path):
    run.folder = None
    for name in (run.name, f"{run.name}2"):  # another run in memory has the same name
        train(make("tensorboard", tmp_path / "logs"), run, 2, "complete")
        curves = TensorBoardReader(replace(run, folder=tmp_path / "logs" / name)).curves()
        check_curves(curves, 2)


def test_tensorboard_needs_a_folder(run):
    with pytest.warns(UserWarning, match=r"needs TensorBoard\(folder\)"):
        train(TensorBoard(), replace(run, folder=None), 2, "complete")


@pytest.mark.slow
def test_mlflow_names_status_and_config(make, run, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    tracker = make("mlflow")
    for number, (status, expected) in enumerate(
        [(None, "RUNNING"), ("stopped", "KILLED"), ("failed", "FAILED"), ("complete", "FINISHED")]
    ):
        train(tracker, run, number + 1, status)
        found = MLflowReader(run)
        assert (found.run.info.run_name, found.run.info.status) == (run.name, expected)
    assert found.client.get_experiment(found.run.info.experiment_id).name == "another"
    assert read_json(Path(found.run.info.artifact_uri) / "config.json") == run.config.to_json()


def test_mlflow_leaves_long_parameters_to_the_config(make, run):
    roots = tuple(Path("/data") / str(number) for number in range(50))
    run.config = ExperimentConfig("no_aug", data=DataConfig(roots=roots))
    train(make("mlflow"), run, 1, "complete")
    found = MLflowReader(run)
    assert "data.roots" not in found.parameters() and "data.labels" in found.parameters()
    config = read_json(Path(found.run.info.artifact_uri) / "config.json")
    assert len(config["data"]["roots"]) == 50


def test_mlflow_begins_anew_where_the_run_is_not_known(make, run):
    write_json(run.folder / "trackers.json", {"mlflow": "0" * 32, "wandb": "kept"})
    run.history = [row(1), row(2)]
    train(make("mlflow"), run, 3, "complete")
    check_curves(MLflowReader(run).curves(), 3)
    assert read_json(run.folder / "trackers.json")["wandb"] == "kept"


@pytest.mark.slow
def test_wandb_leaves_the_users_own_run_alone(make, run):
    tracker = make("wandb")
    import wandb

    own = wandb.init(project="own", dir=run.folder)
    train(tracker, run, 1, "complete")
    assert wandb.run is own
    own.finish()


def test_wandb_gets_no_code_and_no_console(make, run, capfd):
    tracker = make("wandb")
    train(tracker, run, 1)
    print("on the console")
    run.status = "stopped"
    tracker.on_train_end(run)
    found = WandBReader(run)
    names = {path.name for path in found.folder.rglob("*") if path.is_file()}
    assert not {"diff.patch", "output.log", Path(__file__).name} & names
    assert not any(
        record.HasField("output") or record.HasField("output_raw") for record in found.records
    )


@contextmanager
def full_disk(tracker: TensorBoard) -> Iterator[None]:
    """No file can grow."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def deleted_run(tracker: MLflow) -> Iterator[None]:
    tracker.client.delete_run(tracker.id)
    yield


@contextmanager
def ended_service(tracker: WandB) -> Iterator[None]:
    tracker.library.teardown()
    yield


FAULTS = {"tensorboard": full_disk, "mlflow": deleted_run, "wandb": ended_service}


@each_tracker
def test_a_tracker_that_fails_says_so_once_and_is_off(name, make, run):
    tracker = make(name)
    train(tracker, run, 1)
    with FAULTS[name](tracker), pytest.warns(UserWarning) as told:
        tracker.on_epoch_end(run, row(2))
        tracker.on_epoch_end(run, row(3))
    tracker.on_train_end(run)
    (message,) = (str(one.message) for one in told)
    assert message.startswith(f"{name} is switched off, training continues: ")


@pytest.mark.parametrize(
    "name, library", [("tensorboard", "tensorboardX"), ("mlflow", "mlflow"), ("wandb", "wandb")]
)
def test_a_missing_library_is_named_with_its_extra(name, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        UserError, match=rf"tracker {name}: .*{library}.*pip install 'mmattn\[{name}\]'"
    ):
        TRACKERS[name]()


def test_mlflow_server_that_is_not_there(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"tracker mlflow: .*127\.0\.0\.1") as raised:
        MLflow()
    assert "hunter2" not in str(raised.value)


def test_wandb_without_a_login(make, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match=r"tracker wandb: .*login"):
        make("wandb")


@pytest.mark.slow  # W&B asks it several times
def test_wandb_server_that_is_not_there(make, monkeypatch):
    key = 40 * "5"
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    with pytest.raises(UserError, match=r"tracker wandb: AuthenticationError") as raised:
        make("wandb")
    assert key not in str(raised.value)


def test_messages_have_no_secrets(make, run, monkeypatch):
    """Whatever the library puts into what it raises."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abracadabra")

    class Failing(Tracker):
        name = "failing"

        def begin(self, run, known):
            raise OSError("Bearer abracadabra at\npostgresql://me:p@ss@host/db: refused")

    with pytest.warns(UserWarning) as told:
        Failing().on_train_begin(run)
    expected = "OSError: Bearer *** at postgresql://host/db: refused"
    (message,) = (str(one.message) for one in told)
    assert message == f"failing is switched off, training continues: {expected}"


def test_importing_callbacks_and_trackers_is_quick():
    heavy = "{'jax', 'matplotlib', 'tensorboardX', 'mlflow', 'wandb'}"
    code = f"import sys, mmattn.train.trackers; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
