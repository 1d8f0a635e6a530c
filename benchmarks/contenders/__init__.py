"""The contenders: one module for each, imported only in the contender's own process."""

from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from benchmarks.contenders.base import Contender
from benchmarks.machine import installed

JEMALLOC = "+jemalloc"
JEMALLOC_PATHS = tuple(
    Path(folder, "libjemalloc.so.2")
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64")
)
# Keep freed memory, in huge pages: no page faults after the first step.
JEMALLOC_CONF = "thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1"


class Needs(NamedTuple):
    """What a contender's process needs."""

    packages: tuple[str, ...] = ()
    """Packages besides those of the project."""
    environment: tuple[tuple[str, str], ...] = ()
    module: str | None = None
    """The module of its class, if it has another name."""


_QUIET_TENSORFLOW = ("TF_CPP_MIN_LOG_LEVEL", "2")
CONTENDERS = {
    "ours": Needs(),
    "ours-scan": Needs(environment=(("MMATTN_KERNEL", "jax"),), module="ours"),  # JAX alone
    "keras-tensorflow": Needs(
        ("keras", "tensorflow"), (("KERAS_BACKEND", "tensorflow"), _QUIET_TENSORFLOW)
    ),
    "keras-jax": Needs(("keras",), (("KERAS_BACKEND", "jax"),)),
    "torch-padded": Needs(("torch",)),
    "torch-packed": Needs(("torch",)),
    "onnxruntime": Needs(("onnx", "onnxruntime")),
    "flax-nnx-rnn": Needs(),
}
DEFAULT = (
    "ours",
    "ours+jemalloc",
    "keras-tensorflow",
    "keras-jax",
    "torch-padded",
    "torch-padded+jemalloc",
    "torch-packed",
    "torch-packed+jemalloc",
    "flax-nnx-rnn",
)


def load(name: str) -> type[Contender]:
    """The class of a contender, of any allocator; imports its framework."""
    name = name.removesuffix(JEMALLOC)
    module = CONTENDERS[name].module or name.replace("-", "_")
    return import_module(f"benchmarks.contenders.{module}").Contestant


def environment(name: str) -> dict[str, str]:
    """Environment variables of a contender's process."""
    found = dict(CONTENDERS[name.removesuffix(JEMALLOC)].environment)
    if name.endswith(JEMALLOC):
        found |= {"LD_PRELOAD": str(jemalloc()), "MALLOC_CONF": JEMALLOC_CONF}
    return found


def missing(name: str) -> str | None:
    """What a contender is missing on this machine, with the install command, or None."""
    needs = CONTENDERS[name.removesuffix(JEMALLOC)]
    lacking = [package for package in needs.packages if not installed(package)]
    if lacking:
        return f"{name} needs {', '.join(lacking)}: pip install -e '.[bench]'"
    if name.endswith(JEMALLOC) and jemalloc() is None:
        return f"{name} needs libjemalloc.so.2: apt-get install libjemalloc2"
    return None


def jemalloc() -> Path | None:
    """The allocator's library, None if it is not installed."""
    return next((path for path in JEMALLOC_PATHS if path.exists()), None)
