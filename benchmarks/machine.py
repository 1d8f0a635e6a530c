"""The machine, and shared parts of the benchmark commands: options in, table and JSON out."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmattn.cli import run_command
from mmattn.console import say
from mmattn.errors import UserError
from mmattn.machine import cores

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "keras", "tensorflow", "torch")


def command(options: type[Callable[[], None]], name: str, description: str) -> None:
    """Run `python -m benchmarks.NAME`: read the options, call them, end the process."""
    run_command(options, f"python -m benchmarks.{name}", description)


def describe() -> dict[str, Any]:
    """Time, machine, versions and command of a measurement."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
        "commit": commit(),
        "command": " ".join(["python", *sys.orig_argv[1:]]),
    }


def cpu_model() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def bytes_from_disk() -> int:
    """Bytes that the system read from disk for this process, without what was in memory."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["read_bytes"])


def forget(paths: Iterable[str | Path]) -> None:
    """Drop files from the page cache, so that the next read needs the disk.

    Pages mapped by a process stay, and so do files in memory (tmpfs).
    """
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)  # dirty pages cannot be dropped
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def installed(package: str) -> str | None:
    """The version of a package, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The checked out commit, marked if files differ from it; None outside a repository."""
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    return result.stdout.strip() if result.returncode == 0 else None


def say_machine(about: dict[str, Any]) -> None:
    """Print what `describe` found."""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    say(
        f"{about['date']}: {about['cores']} cores of {about['cpu']}, {about['memory_gb']} GB\n"
        f"Python {about['python']}, {versions}\n"
        f"commit {about['commit']}: {about['command']}"
    )


def check_json(path: Path | None) -> None:
    """Raise UserError if a result could not be written to `path`, before it is measured."""
    if path is not None and not path.absolute().parent.is_dir():
        raise UserError(f"--json {path}: there is no folder {path.absolute().parent}")


def write_json(path: Path | None, about: dict[str, Any], results: dict[str, Any]) -> None:
    """Write {"machine": about, **results} to `path`, if there is one."""
    if path is not None:
        path.write_text(json.dumps({"machine": about, **results}, indent=1) + "\n")
        say(f"written: {path}")
