"""Data parallelism: how many devices, and the only uses of `jax.pmap`."""

import ctypes
import hashlib
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmattn.errors import UserError
from mmattn.files import CACHE, processor

AXIS = "devices"
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def start_jax(devices: int | str, batch: int) -> int:
    """Make JAX divide the CPU into devices; to be called before anything else starts JAX.

    Args:
        devices: a number, or "auto": the largest divisor of the batch that is not above the number
            of cores, or every GPU where JAX has some.
        batch: clips an optimiser step.

    Returns:
        The number of devices to use.

    Raises:
        UserError: there are fewer devices than asked for, or more than clips in a batch.
    """
    cores = len(os.sched_getaffinity(0))
    best = max(n for n in range(1, min(cores, batch) + 1) if batch % n == 0)
    count = best if devices == "auto" else int(devices)
    if not 1 <= count <= batch:
        raise UserError(f"--devices {count}: expected 1 to {batch} (--train.batch), or auto")
    jax.config.update("jax_num_cpu_devices", count)
    _keep_compilations()
    _keep_memory()
    found = jax.local_device_count()
    if devices == "auto" and jax.default_backend() != "cpu":
        return min(found, batch)
    if found < count:
        raise UserError(f"--devices {count}: JAX has {found} {jax.default_backend()} device(s)")
    return count


def _keep_compilations() -> None:
    """Let a later start on such a processor find what this one compiled.

    JAX's own variables in the environment come first.
    """
    kind = hashlib.sha256(processor().encode()).hexdigest()[:16]
    for option, value in (
        ("jax_compilation_cache_dir", os.path.expanduser(CACHE / "compiled" / kind)),
        ("jax_persistent_cache_min_compile_time_secs", 0.1),
    ):
        if option.upper() not in os.environ:
            jax.config.update(option, value)


def _keep_memory() -> None:
    """Make glibc keep freed memory: XLA frees its buffers after a call, and fresh pages are slow.

    Everything comes from one heap that never shrinks, because only such memory is used again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)):
            mallopt(option, value)


def parallel(function: Callable, devices: int, in_axes: tuple, donate: tuple = ()) -> Callable:
    """Compile `function` to run on each device with its share of the leading axis."""
    return jax.pmap(
        function,
        axis_name=AXIS,
        in_axes=in_axes,
        donate_argnums=donate,
        devices=jax.local_devices()[:devices],
    )


def sum_over_devices(tree: Any) -> Any:
    """Add up a tree of arrays over the devices; inside `parallel` alone."""
    return jax.lax.psum(tree, AXIS)


def device_number() -> jax.Array:
    """This device's number, 0 to D - 1; inside `parallel` alone."""
    return jax.lax.axis_index(AXIS)


def sum_and_scatter(vector: jax.Array) -> jax.Array:
    """This device's share of the sum over devices of [n]; inside `parallel` alone."""
    return jax.lax.psum_scatter(vector, AXIS, tiled=True)


def gather(share: jax.Array) -> jax.Array:
    """The vector of which each device has a share; inside `parallel` alone."""
    return jax.lax.all_gather(share, AXIS, tiled=True)


def own_share(vector: jax.Array) -> jax.Array:
    """This device's share of a vector that it has whole; inside `parallel` alone."""
    return vector.reshape(jax.lax.axis_size(AXIS), -1)[device_number()]


def place(tree: Any) -> Any:
    """Put arrays with a leading axis of devices onto them, one slice each."""
    devices = len(jax.tree.leaves(tree)[0])
    mesh = Mesh(np.array(jax.local_devices()[:devices]), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(AXIS)))


def replicate(tree: Any, devices: int) -> Any:
    """A copy of a tree on each device: leading axis of `devices`."""
    copies = jax.tree.map(lambda x: np.broadcast_to(x, (devices, *np.shape(x))), tree)
    return place(copies)


def first(tree: Any) -> Any:
    """The first device's copy of a replicated tree, as NumPy arrays."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)
