"""The LSTM in C++ (lstm.cc) for the CPU: as `scan`, but faster; built when first needed."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct

from mmattn.console import complain
from mmattn.errors import UserError
from mmattn.files import CACHE
from mmattn.machine import processor

SOURCE = Path(__file__).with_name("lstm.cc")
# Apple's clang may not know -march=native on ARM.
TUNED = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
FLAGS = (
    *("-std=c++17", "-O3", TUNED, "-fPIC", "-shared", "-w"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)


@cache
def usable() -> bool:
    """Whether to use the kernel: on the CPU, if it can be built.

    MMATTN_KERNEL=jax in the environment selects JAX's scans; it is read once. Raises UserError if
    it has another value.
    """
    asked = os.environ.get("MMATTN_KERNEL", "native")
    if asked not in ("native", "jax"):
        raise UserError(f"MMATTN_KERNEL={asked}: expected native or jax")
    return asked == "native" and jax.default_backend() == "cpu" and load()


@cache
def load() -> bool:
    """Build the kernel, unless an earlier run did, and register it with JAX.

    False without a C++ compiler or, with a message, if it fails.
    """
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return False
    try:
        handlers = ctypes.CDLL(str(library(compiler)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        why = str(getattr(error, "stderr", None) or error).strip()[-300:]
        complain(f"{compiler} could not build the LSTM kernel; using JAX's scans instead: {why}")
        return False
    for name in ("LstmForward", "LstmPredict", "LstmBackward"):
        handler = jax.ffi.pycapsule(getattr(handlers, name))
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return True


def library(compiler: str) -> Path:
    """The library for this source, compiler, $CXXFLAGS, JAX and processor, built if it is new."""
    flags = (*FLAGS, *shlex.split(os.environ.get("CXXFLAGS", "")))
    parts = (SOURCE.read_text(), *flags, version("jaxlib"), os.path.realpath(compiler), processor())
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    path = CACHE.expanduser() / "native" / f"lstm-{key}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o700)  # code in this folder is executed
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            command = [compiler, *flags, f"-I{jax.ffi.include_dir()}", str(SOURCE), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            made.replace(path)  # atomic, also when two runs build at once
    return path


def forward(x, length, input_kernel, recurrent_kernel, bias, reverse):
    """See `scan.forward`; the padding of t is not set."""
    states = (*x.shape[:2], len(recurrent_kernel))
    shapes = states, states, (*x.shape[:2], len(bias))
    inputs = x, jnp.int32(length), input_kernel, recurrent_kernel, bias
    return tuple(_call("LstmForward", shapes)(*inputs, reverse=reverse))


def predict(x, length, ahead, back):
    """Hidden states [T, B, 2 H] of both directions; see `lstm.both`."""
    shape = (*x.shape[:2], len(ahead[1]))
    inputs = x, jnp.int32(length), *ahead, *back
    return jnp.concatenate(_call("LstmPredict", (shape, shape))(*inputs), axis=-1)


def backward(dh, x, h, c, t, length, input_kernel, recurrent_kernel, reverse):
    """See `scan.backward`."""
    gates, with_dx = t.shape[-1], input_kernel is not None
    kernel = input_kernel if with_dx else jnp.zeros((0, gates), x.dtype)
    dx_shape = x.shape if with_dx else (0,)
    shapes = dx_shape, (x.shape[-1], gates), recurrent_kernel.shape, (gates,)
    inputs = dh, x, h, c, t, jnp.int32(length), kernel, recurrent_kernel
    dx, *others = _call("LstmBackward", shapes)(*inputs, reverse=reverse)
    return dx if with_dx else None, *others


def _call(name, shapes):
    results = [ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.ffi.ffi_call(name, results, vmap_method="sequential")
