"""Four CPU devices, and runs of the real commands that share their compilations."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)

# A run of a few seconds on the built-in corpus.
TINY = (
    *("--data.synthetic.clips", "144", "--data.synthetic.speakers", "12"),
    *("--data.synthetic.audio-rate", "20", "--data.synthetic.audio-width", "8"),
    *("--data.synthetic.video-width", "6", "--data.buckets", "2"),
    *("--model.audio-units", "8", "--model.video-units", "8"),
    *("--model.head-units", "16", "--model.head-dropout", "0.3"),
    *(
        "--train.epochs",
        "12",
        "--train.patience",
        "12",
        "--train.batch",
        "8",
        "--train.steps-per-dispatch",
        "2",
    ),
)


def pytest_collection_modifyitems(items):
    """The longest test goes first, so that all workers end at about the same time."""
    items.sort(key=lambda item: item.path.name != "test_whole.py")


# For processes in which compiling takes longer than what is compiled.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


class Commands:
    """Starts the project's commands as a user does, in processes of their own."""

    tiny = TINY

    def __init__(self, common: Path):
        self.common = common  # a folder of all workers of a test run
        self.environment = {
            **os.environ,
            "COLUMNS": "100",
            "XLA_FLAGS": QUICK,
            "JAX_COMPILATION_CACHE_DIR": str(common / "compilations"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
            "PYTHONWARNINGS": "error",
        }

    def start(self, module: str, *options: object) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", module, *map(str, options)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, module: str, *options: object, code: int = 0) -> str:
        """Run to the end, check the exit code, return what was printed."""
        process = self.start(module, *options)
        text, _ = process.communicate(timeout=300)
        assert process.returncode == code, text
        assert "Traceback" not in text
        return text


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
    made = made_once(
        "tiny", lambda to: commands.run("experiments.no_aug", *TINY, "--devices", 2, "--out", to)
    )
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("run") / "tiny"))
