"""Four CPU devices, and the real commands in processes that share imports and compilations."""

import fcntl
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import jax
import pytest

from mmattn.console import LOG

jax.config.update("jax_num_cpu_devices", 4)

# Here and in processes of the tests, because compiling takes longer than what is compiled.
FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if jax.__version_info__ < (0, 11):  # later ones may end at it, as 0.12 does: an unknown flag
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # compiles in a third of the time
os.environ["XLA_FLAGS"] = " ".join(FLAGS)

# A shell gives what it starts in the background SIGINT ignored, and so would the tests' processes.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A run of a few seconds on the built-in corpus.
TINY = (
    *("--data.synthetic.clips", "144", "--data.synthetic.speakers", "12"),
    *("--data.synthetic.audio-rate", "20", "--data.synthetic.audio-width", "8"),
    *("--data.synthetic.video-width", "6", "--data.buckets", "2"),
    *("--model.units", "audio=8", "video=8"),
    *("--model.head-units", "16", "--model.head-dropout", "0.3"),
    *("--train.epochs", "12", "--train.patience", "12"),
    *("--train.batch", "8", "--train.steps-per-dispatch", "2"),
)


# Files whose tests take longest, in the order in which they are started.
LONGEST = ("test_whole.py", "test_predict.py", "test_cli.py", "test_serve.py")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items):
    """Mark what opens pages; the longest go first, so that all workers end together."""
    for item in items:
        if "browser" in item.fixturenames:
            item.add_marker("browser")
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


# Third-party libraries that the commands import, which takes seconds.
HEAVY = ("flax.nnx", "optax", "orbax.checkpoint", "sklearn.linear_model", "matplotlib.figure")


class Commands:
    """The project's commands as a user starts them, in processes of their own."""

    tiny = TINY

    def __init__(self, common: Path):
        self.common = common  # a folder of all workers of a test run
        self.environment = {
            **os.environ,
            "COLUMNS": "100",
            "JAX_COMPILATION_CACHE_DIR": str(common / "compilations"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
            "PYTHONWARNINGS": "error",
        }
        self.forks = multiprocessing.get_context("forkserver")
        self.forks.set_forkserver_preload(list(HEAVY))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            patch.delenv("PYTHONWARNINGS")  # Python may warn of the forks themselves
            forkserver.ensure_running()

    def start(self, module: str, *options: object) -> subprocess.Popen:
        """Start `python -m module`, for a test that does something to the process."""
        return subprocess.Popen(
            [sys.executable, "-m", module, *map(str, options)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, module: str, *options: object, code: int = 0) -> str:
        """Run to the end, check the exit code, return what was printed.

        The process is the fork of one that has imported the heavy libraries already.
        """
        words = [module, *map(str, options)]
        with tempfile.NamedTemporaryFile("r", dir=self.common) as output:
            given = (words, self.environment, output.name)
            process = self.forks.Process(target=_run, args=given)
            process.start()
            try:
                process.join()
            finally:
                process.kill()
            text = output.read()
        assert process.exitcode == code, text
        assert "Traceback" not in text
        return text


def _run(words: list[str], environment: dict[str, str], output: str) -> None:
    """Be `python -W error -m` with its words, and write what is printed to a file."""
    os.environ.update(environment)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    warnings.simplefilter("error")
    descriptor = os.open(output, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


@pytest.fixture(autouse=True)
def plain_log(monkeypatch):
    """What a test does to the project's logger ends with it."""
    for name, value in {"handlers": [], "propagate": True, "level": LOG.level}.items():
        monkeypatch.setattr(LOG, name, value)


@pytest.fixture(scope="session")
def commands(tmp_path_factory) -> Commands:
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    return Commands(base)


@pytest.fixture(scope="session")
def made_once(commands) -> Callable[[str, Callable[[Path], object]], Path]:
    """`made_once(name, make)`: a folder that `make(folder)` has filled, once for all workers."""

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder = commands.common / name
        with open(commands.common / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                partial = folder.with_name(f"{name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                make(partial)
                partial.rename(folder)
        return folder

    return once


@pytest.fixture(scope="session")
def tiny_run(commands, made_once, tmp_path_factory) -> Path:
    """The folder of a complete small run on two devices; each worker has a copy."""

    def make(to: Path) -> None:
        process = commands.start("experiments.no_aug", *TINY, "--devices", 2, "--out", to)
        text, _ = process.communicate()
        assert process.returncode == 0, text

    made = made_once("tiny", make)
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("run") / "tiny"))


@pytest.fixture(scope="session")
def ensemble(commands, made_once) -> Path:
    """The folder of a run of one epoch with an ensemble of two; not to be altered."""
    options = (*commands.tiny, "--devices", 2, "--train.epochs", 1, "--ensemble-size", 2)
    return made_once(
        "ensemble", lambda to: commands.run("experiments.no_aug", *options, "--out", to)
    )
