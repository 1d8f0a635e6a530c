"""The files of a run's folder that describe the run."""

import fcntl
import os
import platform
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path

import jax

from mmattn.config import ExperimentConfig, OtherDataConfig, config_from_json
from mmattn.data.corpus import Corpus, open_corpus
from mmattn.errors import UserError
from mmattn.evaluate.predictions import read_predictions
from mmattn.files import printable, read_json, write_json
from mmattn.machine import cores
from mmattn.model import native
from mmattn.run.shared import MODEL, find_shared

PREDICTIONS = {"validation": "predictions_validation.csv", "test": "predictions.csv"}
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn")


def check_new(folder: Path, resume: str = "") -> None:
    """UserError if a run or anything else is in the folder.

    `resume` is the option that continues a run, named in the message.
    """
    if (folder / "config.json").exists():
        other = f", or {resume} to continue it" if resume else ""
        raise UserError(f"{folder} holds a run: choose another folder{other}")
    if str(folder.resolve()) != printable(str(folder.resolve())):
        raise UserError(f"{folder}: expected a name in UTF-8, which checkpoints need")
    check_empty(folder)


def check_empty(folder: Path) -> None:
    """UserError if the folder holds more than what every start writes."""
    others = [path.name for path in folder.iterdir() if path.name != "train.log"]
    if others:
        raise UserError(f"{folder}: expected a new or empty folder, it has {others[0]}")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run's folder, without a lock file; UserError if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(f"{folder}: another process is using this run") from error
    finally:
        os.close(descriptor)


def read_config(folder: Path) -> ExperimentConfig:
    """The config of the run in a folder; UserError if there is none."""
    if not (folder / "config.json").exists():
        why = "it has no config.json" if folder.exists() else "it does not exist"
        if (shared := find_shared(folder)) and shared.name == MODEL:
            why = "it is a model without clips, which only predicts"
        if inside := sorted([*folder.glob("*/config.json"), *folder.glob("*/*/config.json")]):
            why += f"; perhaps {inside[-1].parent}"
        raise UserError(f"{folder}: expected a run's folder, but {why}")
    return config_from_json(read_json(folder / "config.json"))


def parts_of(folder: Path) -> list[Path]:
    """The folders of a run's folds or of an ensemble's networks; none for a single training."""
    return sorted([*folder.glob("fold[0-9]*"), *folder.glob("member[0-9]*")])


def corpus_of(run: Path, other: OtherDataConfig, variants: Collection[str] = ()) -> Corpus:
    """The clips of a run, or those that `other` names, with the run's classes and these variants.

    Raises UserError if there is no run, or its clips cannot be read.
    """
    config = read_config(run)
    tested = next(iter(sorted(run.rglob(PREDICTIONS["test"]))), None)
    known = read_predictions(tested).class_names if tested else ()
    data = other.apply(config.data)
    gone = next((root for root in data.roots if not root.expanduser().exists()), None)
    if gone and not other.roots:
        raise UserError(
            f"{gone}: expected the run's feature files, found nothing; --data.roots names where "
            "they are now"
        )
    return open_corpus(data, config.streams, known, variants)


def make_folder(folder: Path | str) -> Path:
    """The folder, created if needed; UserError if that fails."""
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: expected a folder, or a path where one can be made: {error}"
        ) from error
    return folder


def check_complete(folder: Path) -> None:
    """UserError if a run, fold or ensemble has no summary (yet)."""
    if not (folder / "summary.json").exists():
        by_fit = read_config(folder).name == ExperimentConfig.name
        why = "it is not complete: resume it with --resume"
        if by_fit:
            why = "mmattn.fit does not test: train by `python -m experiments.NAME`"
        raise UserError(f"{folder} has no summary.json, as {why}")


def config_to_resume(
    folder: Path, asked: ExperimentConfig, default: ExperimentConfig, processes: int
) -> ExperimentConfig:
    """The stored config of the run to resume.

    Args:
        folder: the run's.
        asked: the config from the command line.
        default: the experiment's own.
        processes: the number that resume it; if it has changed, the number of devices is that of
            the command line.

    Raises:
        UserError: there is no run, or an option differs from the run's. (An option with the
            experiment's own value is indistinguishable from one not given.)
    """
    stored = read_config(folder)
    if stored.name != default.name:
        how = f"python -m experiments.{stored.name}"
        if stored.name == ExperimentConfig.name:
            how = "mmattn.fit(…, resume=True)"
        raise UserError(f"{folder} is a run of {stored.name}: resume it with {how}")
    free = ["out", "resume"]
    if processes != _processes_before(folder, processes):
        free.append("devices")
        stored = replace(stored, devices=asked.devices)
    for name, value, kept, usual in _options(asked, stored, default):
        if (
            name not in free
            and not name.startswith("distributed.")
            and value != usual
            and value != kept
        ):
            raise UserError(f"--{name} {value}: the run to resume has {kept}, which cannot change")
    return replace(stored, out=folder, resume=True)


def _processes_before(folder: Path, now: int) -> int:
    """How many processes last trained the run; `now` if there is no record."""
    path = folder / "environment.json"
    return read_json(path)["starts"][-1].get("processes", 1) if path.exists() else now


def _options(*configs, prefix: str = "") -> Iterator[tuple]:
    for field in fields(configs[0]):
        values = [getattr(config, field.name) for config in configs]
        name = prefix + field.name.replace("_", "-")
        if is_dataclass(values[0]):
            yield from _options(*values, prefix=f"{name}.")
        else:
            yield name, *values


def write_config(folder: Path, config: ExperimentConfig) -> None:
    """Write config.json, before the first step."""
    write_json(folder / "config.json", replace(config, out=None, resume=False).to_json())


def write_environment(folder: Path, processes: int) -> None:
    """Add this start to environment.json: time, machine, versions, command, device, processes."""
    path = folder / "environment.json"
    starts = read_json(path)["starts"] if path.exists() else []
    start = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), **environment()}
    start |= {"device": jax.devices()[0].device_kind, "processes": processes}
    write_json(path, {"starts": [*starts, start]})


def environment() -> dict:
    """Versions, machine and command of this process."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": cores(),
        "lstm": "native" if native.usable() else "scan",
        "command": sys.argv,
        "commit": _commit(),
        "versions": {name: version(name) for name in (*LIBRARIES, "mmattn")},
    }


def _commit() -> str | None:
    """The commit of the running checkout, with a + if files differ; None outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        done = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None
