"""Real jobs, started by the program that the deployment starts them with, without systemd."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mmattn.remote.agent.job import LOCK, STATUS, is_held, read_json
from tests.remote.programs import PYTHON, program
from tests.remote.waiting import wait_until


def pytest_report_collectionfinish() -> str:
    """Which Python runs the agent's programs: 3.9 is that of Amazon Linux 2023."""
    return f"agent's programs: {PYTHON}"


class Job:
    """A job's folder in a run's, and what the tests do to it."""

    wait_until = staticmethod(wait_until)

    def __init__(self, folder: Path):
        self.base, self.folder = folder.parent, folder
        folder.mkdir()
        (self.base / "code").mkdir(exist_ok=True)

    def order(self, *words: object, **streams) -> dict:
        """Give the job's program an order; returns what it answers."""
        command = program("job", self.folder, *words)
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **streams)
        return json.loads(done.stdout.removeprefix("mmattn:"))

    def python(self, code: str) -> None:
        """Start a job of Python code, and wait until it says "ready" in its log."""
        ready = self.log.count(b"ready")
        self.order("start", sys.executable, "-uc", code)
        wait_until(lambda: self.log.count(b"ready") > ready and self.status["pid"])

    def run(self, *command: str) -> dict:
        """Run a command to its end; returns the status."""
        self.order("start", *command)
        return self.wait()

    def wait(self) -> dict:
        """Wait for the end; returns the status."""
        wait_until(lambda: "exit_code" in (self.status or {}) and not self.held)
        return self.status

    def kill(self, attendant: bool = False) -> None:
        """Kill its first process, and first the one that waits for that where it is asked for."""
        if attendant:
            os.kill(self.attendant, signal.SIGKILL)
        os.kill(self.status["pid"], signal.SIGKILL)

    @property
    def attendant(self) -> int:
        """The process that waits for the job's end."""
        text = Path(f"/proc/{self.status['pid']}/stat").read_bytes()
        return int(text.rpartition(b")")[2].split()[1])

    @property
    def status(self) -> dict | None:
        return read_json(self.folder / STATUS)

    @property
    def held(self) -> bool:
        return is_held(self.folder / LOCK)

    @property
    def log(self) -> bytes:
        path = self.folder / "job.log"
        return path.read_bytes() if path.exists() else b""

    def clean_up(self) -> None:
        with suppress(ProcessLookupError, LookupError, TypeError):
            if self.held:
                os.killpg(self.status["pid"], signal.SIGKILL)


@pytest.fixture
def job_in() -> Iterator[Callable[[Path], Job]]:
    """Makes a job in a run's folder."""
    jobs = []

    def make(base: Path, name: str = "job") -> Job:
        jobs.append(Job(base / name))
        return jobs[-1]

    yield make
    for job in jobs:
        job.clean_up()


@pytest.fixture
def job(job_in, tmp_path) -> Job:
    """The training's job."""
    return job_in(tmp_path)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A folder on a disk of 256 KB."""
    folder = tmp_path / "small"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(["mount", *options], capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("needs a disk of its own, which only root may mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def fill() -> Callable[[Path], Path]:
    """Fills the disk that a folder is on with one file, which it returns."""

    def fill(folder: Path) -> Path:
        path = folder / "filler"
        with open(path, "ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"x" * 512)
        return path

    return fill
