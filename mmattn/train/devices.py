"""Data parallelism: how many devices, and the only uses of `jax.pmap`."""

import ctypes
import hashlib
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmattn.errors import UserError
from mmattn.files import CACHE
from mmattn.machine import c_function, cores, processor
from mmattn.train import processes

AXIS = "devices"
# Options of XLA's CPU compiler: half the compile time, and the program is as fast; see
# benchmarks/NOTES.md.
QUICK_TO_COMPILE = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def start_devices(devices: int | str, batch: int) -> int:
    """Make JAX divide the CPU into devices; call it before anything else starts JAX.

    Args:
        devices: their number over all processes, or "auto": the largest divisor of the batch that
            gives no process more devices than cores, or every GPU if JAX has any.
        batch: clips per optimiser step.

    Returns:
        The number of devices to use over all processes; each process has the same number.

    Raises:
        UserError: there are too few devices, more devices than clips in a batch, or the number is
            not a multiple of the processes.
    """
    each = processes.count()
    fewest = min(processes.exchange(cores()))
    count = each * most_dividing(fewest, batch / each) if devices == "auto" else int(devices)
    if each > batch:
        raise processes.agreed(f"{each} processes: more than the {batch} clips of --train.batch")
    if not 1 <= count <= batch:
        raise processes.agreed(f"--devices {count}: expected 1 to {batch} (--train.batch), or auto")
    if count % each:
        raise processes.agreed(
            f"--devices {count}: expected a multiple of the {each} processes, or auto"
        )
    start(count // each)
    found = min(processes.exchange(jax.local_device_count()))
    if devices == "auto" and jax.default_backend() != "cpu":
        return min(found, batch // each) * each
    if found * each < count:
        raise processes.agreed(
            f"--devices {count}: JAX has {found * each} {jax.default_backend()} device(s)"
        )
    return count


def start(devices: int | str = "auto") -> None:
    """Make this process fast: CPU devices, a compilation cache on disk, freed memory kept.

    Call it before JAX is used. Without it, the library changes none of these.

    Args:
        devices: number of devices to divide the CPU into; "auto": one per core.

    Raises:
        UserError: JAX has started with another number, or the number is below 1.
    """
    count = cores() if devices == "auto" else int(devices)
    if count < 1:
        raise UserError(f"devices {devices}: expected 1 or more")
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        if jax.local_device_count() != count:
            raise UserError(
                f"JAX started with {jax.local_device_count()} devices; call mmattn.start() first"
            ) from error
    _keep_compilations()
    _keep_memory()


def fitting_devices(devices: int | str, batch: int) -> int:
    """How many of JAX's devices to use: `devices`, or for "auto" the most that divide the batch.

    Raises:
        UserError: JAX has fewer.
    """
    found = jax.local_device_count()
    if devices == "auto":
        return most_dividing(found, batch)
    if not 1 <= int(devices) <= min(found, batch):
        raise UserError(f"devices {devices}: expected 1 to {min(found, batch)} (JAX has {found})")
    return int(devices)


def most_dividing(devices: int, clips: float) -> int:
    """The largest number of up to `devices` that divides the clips; 1 if there is none."""
    return max((n for n in range(1, min(devices, int(clips)) + 1) if clips % n == 0), default=1)


def _keep_compilations() -> None:
    """Cache compilations on disk for later starts on this kind of processor.

    JAX's environment variables take precedence. With several processes, JAX caches what process 0
    compiled; the others compile at each start.
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

    Everything comes from one heap that never shrinks, because only that memory is reused.
    """
    mallopt = c_function("mallopt", ctypes.c_int, ctypes.c_int)
    if mallopt is not None:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)):
            mallopt(option, value)


def parallel(function: Callable, devices: int, in_axes: tuple, donate: tuple = ()) -> Callable:
    """Compile `function` to run on each device with its shard of the leading axis.

    Each process calls it with the shards of its own devices and gets their results.
    """
    mapped = jax.pmap(
        function,
        axis_name=AXIS,
        in_axes=in_axes,
        donate_argnums=donate,
        devices=_chosen(devices),
    )
    return quickly_compiled(mapped)


def quickly_compiled(function: jax.stages.Wrapped) -> Callable:
    """A compiled function, compiled with fast options if it runs on the CPU in one process."""
    # XLA_FLAGS takes precedence. Ahead-of-time compiled programs of several processes would need
    # the arrays of all processes.
    told = "XLA_FLAGS" in os.environ or processes.count() > 1
    return function if told or jax.default_backend() != "cpu" else _QuicklyCompiled(function)


class _QuicklyCompiled:
    """A function of `jax.pmap` or `jax.jit`, compiled with non-default XLA options.

    `jax.pmap` takes no options, and `jax.jit` only those that it knows.
    """

    def __init__(self, function: jax.stages.Wrapped):
        self.lower = function.lower
        self._programs: dict[tuple, jax.stages.Compiled] = {}

    def __call__(self, *arguments):
        leaves, structure = jax.tree.flatten(arguments)
        shapes = structure, *((x.shape, x.dtype) for x in leaves)
        if shapes not in self._programs:
            lowered = self.lower(*arguments)
            try:
                self._programs[shapes] = lowered.compile(compiler_options=QUICK_TO_COMPILE)
            except jax.errors.JaxRuntimeError:  # another version of XLA has no such option
                self._programs[shapes] = lowered.compile()
        return self._programs[shapes](*arguments)


def _chosen(devices: int) -> list[jax.Device]:
    """The same number of devices of each process, in order of the processes."""
    if processes.count() == 1:
        return jax.local_devices()[:devices]
    each = devices // processes.count()
    return [
        device
        for process in range(processes.count())
        for device in jax.local_devices(process)[:each]
    ]


def own_devices(devices: int) -> slice:
    """The slice of the devices of all processes that are this process's."""
    each = devices // processes.count()
    start = jax.process_index() * each if processes.count() > 1 else 0
    return slice(start, start + each)


def sum_over_devices(tree: Any) -> Any:
    """Sum a tree of arrays over the devices; only inside `parallel`."""
    return jax.lax.psum(tree, AXIS)


def device_number() -> jax.Array:
    """This device's number, 0 to D - 1; only inside `parallel`."""
    return jax.lax.axis_index(AXIS)


def sum_and_scatter(vector: jax.Array) -> jax.Array:
    """This device's shard of the sum over devices of [n]; only inside `parallel`."""
    return jax.lax.psum_scatter(vector, AXIS, tiled=True)


def gather(shard: jax.Array) -> jax.Array:
    """The vector whose shards the devices hold; only inside `parallel`."""
    return jax.lax.all_gather(shard, AXIS, tiled=True)


def own_shard(vector: jax.Array) -> jax.Array:
    """This device's shard of a complete vector; only inside `parallel`."""
    return vector.reshape(jax.lax.axis_size(AXIS), -1)[device_number()]


def all_gather(tree: Any) -> Any:
    """Give each process the arrays of all devices, see `to_host`; only inside `parallel`."""
    if processes.count() == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS), tree)


def to_host(tree: Any) -> Any:
    """The NumPy arrays [D, …] of all devices, from the result of `all_gather`."""
    if processes.count() == 1:
        return jax.tree.map(np.asarray, tree)
    return first(tree)


def fetch(tree: Any) -> Any:
    """The NumPy arrays [D, …] of all devices; the devices must be idle."""
    if processes.count() == 1:
        return jax.tree.map(np.asarray, tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def place(tree: Any) -> Any:
    """Put arrays with a leading axis of this process's devices onto them, one slice each."""
    devices = len(jax.tree.leaves(tree)[0])
    mesh = Mesh(np.array(jax.local_devices()[:devices]), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(AXIS)))


def place_own(tree: Any) -> Any:
    """Put this process's slices of arrays with a leading axis of all devices onto its devices."""
    return place(jax.tree.map(lambda x: x[own_devices(len(x))], tree))


def replicate(tree: Any, devices: int) -> Any:
    """A copy of a tree on each device of all processes; this process puts its own."""
    copies = jax.tree.map(lambda x: np.broadcast_to(x, (devices, *np.shape(x))), tree)
    return place_own(copies)


def first(tree: Any) -> Any:
    """The first device's copy of a replicated tree, as NumPy arrays."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)
