"""Processes that train together, through JAX's distributed runtime.

Process 0 alone reads and writes the run's folder. What it finds there, and what it could not do,
goes to the others through the coordinator's key-value store; arrays go by collectives.
"""

import ipaddress
import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmattn.config import DistributedConfig
from mmattn.console import complain, keep_libraries_off_the_screen
from mmattn.errors import Diverged, LostProcess, Stopped, UserError
from mmattn.train.watch import Watch

# Seconds after which JAX aborts, should the watch not have ended the process. JAX sends a heartbeat
# only every half of that time, so that after a loss it may abort in the other half.
HEARTBEAT = 60
GOODBYE = 20  # seconds that a process waits at its end for the others
WAIT = 500  # milliseconds of C++ at a time, in which Python hears no Ctrl-C
# What a failed call says if it was another process's doing, and not, for instance, short of memory.
OF_OTHERS = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "coordination service")
ENDED_TOGETHER = (0, Diverged.exit_code, Stopped.exit_code)
AGREED = {kind.__name__: kind for kind in (UserError, Diverged, Stopped)}


class _State:
    """Of this process among the others, as JAX keeps one too."""

    client: Any = None  # of the coordinator's key-value store
    number, count = 0, 1
    alone = False
    agreed = False
    numbers = itertools.count()


def start_processes(config: DistributedConfig) -> None:
    """Meet the other processes; to be called before anything starts JAX's devices.

    Does nothing for a process by itself: without the options and outside of what
    `jax.distributed.initialize` knows (JAX_COORDINATOR_ADDRESS, Slurm, Open MPI).

    Raises:
        UserError: the processes' options do not fit together, or process 0 cannot listen at the
            coordinator's address. If they have not all come within the timeout, the process ends
            with code 2 and says so.
    """
    if config.num_processes == 1 or (config.address is None and not _launched()):
        return
    keep_libraries_off_the_screen()  # Gloo reports each of its connections
    bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", config.address)
    if config.process_id == 0 and bind:
        _check_place(config, bind)
    alarm = threading.Timer(config.timeout, _give_up, [config])
    alarm.start()
    try:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        with _ended_by_ctrl_c():
            jax.distributed.initialize(
                config.address,
                config.num_processes,
                config.process_id,
                initialization_timeout=int(config.timeout) + HEARTBEAT,
                heartbeat_timeout_seconds=HEARTBEAT,
                shutdown_timeout_seconds=GOODBYE,
                coordinator_bind_address=bind,
            )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{_name(config)}: the processes could not meet: {error}") from error
    finally:
        alarm.cancel()
    from jax._src.distributed import global_state  # its store is the only way before devices

    _State.client = global_state.client
    _State.number, _State.count = global_state.process_id, global_state.num_processes
    coordinator = global_state.coordinator_address
    Watch(_State.client, coordinator, _State.number, _State.count).start()
    _listen_towards(coordinator)


def _check_place(config: DistributedConfig, place: str) -> None:
    """Raise UserError where this process, number 0, cannot listen: JAX would crash."""
    host, port = place.rsplit(":", 1)
    try:
        family, *_, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(f"{_name(config)}: process 0 cannot listen at {place}: {why}") from error


@contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process while the block waits in C++, where Python does not hear it."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _listen_towards(coordinator: str) -> None:
    """Let Gloo listen at this machine's address on the way to process 0.

    By itself it takes what the machine's name means, which is often the loopback.
    """
    from jax._src.lib import _jax

    host, port = coordinator.rsplit(":", 1)
    family, *_, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        one.connect(address)  # sends nothing
        own = one.getsockname()[0]
    _jax.make_gloo_tcp_collectives = partial(_jax.make_gloo_tcp_collectives, hostname=own)
    for number, (address, loopback) in enumerate(found := exchange([own, _is_loopback(own)])):
        if loopback and not all(other for _, other in found):
            raise agreed(
                f"{coordinator}: process {number} has the address {address}, at which no other "
                "machine reaches it; expected an address of process 0 that all can reach"
            )


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _launched() -> bool:
    """Whether the environment says that this is one of several processes."""
    names = ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
    return any(os.environ.get(name, "1") != "1" for name in names)


def _name(config: DistributedConfig) -> str:
    return f"--distributed.coordinator {config.address or 'of the environment'}"


def _give_up(config: DistributedConfig) -> None:
    """End the process, which is waiting in C++: an exception would not reach anybody."""
    why = "not all processes came"
    if config.process_id and config.address:
        host, port = config.address.rsplit(":", 1)
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            why = f"process 0 does not answer there ({error.strerror or error})"
    complain(
        f"error: {_name(config)}: {why} within {config.timeout:g} s; expected "
        f"{config.num_processes} processes, each with a --distributed.process-id of its own "
        "(--distributed.timeout waits longer)"
    )
    os._exit(UserError.exit_code)


def count() -> int:
    """The number of processes that work together now."""
    return 1 if _State.alone else _State.count


def first() -> bool:
    """Whether this process is number 0, which says and writes what there is to say and write."""
    return _State.number == 0


def share(devices: int) -> int:
    """How many of the devices of all processes are this one's."""
    return devices // _State.count


@contextmanager
def alone() -> Iterator[None]:
    """While the block runs, this process uses its own devices and waits for no other."""
    _State.alone = True
    try:
        yield
    finally:
        _State.alone = False


def exchange(value: Any) -> list:
    """Every process's JSON value, in the order of the processes; all have to call it."""
    if count() == 1:
        return [value]
    number = next(_State.numbers)
    _put(f"mmattn/{number}/{_State.number}", value)
    return [_get(f"mmattn/{number}/{process}") for process in range(count())]


def from_first(work: Callable[[], Any]) -> Any:
    """What `work` returns in process 0, where alone it is called: a JSON value for the others.

    A UserError there is raised in every process.
    """
    if count() == 1:
        return work()
    key = f"mmattn/{next(_State.numbers)}"
    if first():
        try:
            value = work()
        except UserError as error:
            kind = type(error).__name__
            _put(key, {"error": kind if kind in AGREED else "UserError", "text": str(error)})
            _State.agreed = True
            raise
        _put(key, {"value": value})
        return value
    found = _get(key)
    if "error" in found:
        _State.agreed = True
        raise AGREED[found["error"]](found["text"])
    return found["value"]


def agreed(message: str) -> UserError:
    """An error that every process raises, after which they end together."""
    _State.agreed = True
    return UserError(message)


def _put(key: str, value: Any) -> None:
    _State.client.key_value_set(key, json.dumps(value))


def _get(key: str) -> Any:
    """A value when it is there; the watch ends a wait for a lost process."""
    while True:
        try:
            return json.loads(_State.client.blocking_key_value_get(key, WAIT))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def own_part(things: int) -> range:
    """The numbers of this process's share of so many things, or of a few more, to be even."""
    each = -(-things // count())
    return range(_State.number * each, (_State.number + 1) * each)


def arrays_from_first(tree: Any) -> Any:
    """Process 0's NumPy arrays, to the bit; the others give arrays of the same shapes."""
    if count() == 1:
        return tree
    return _from_bytes(np.asarray(multihost_utils.broadcast_one_to_all(_to_bytes(tree))), tree)


def arrays_from_all(tree: Any) -> Any:
    """All processes' NumPy arrays of equal shapes, to the bit, one after the other [N · …]."""
    if count() == 1:
        return tree
    gathered = np.asarray(multihost_utils.process_allgather(_to_bytes(tree)))
    trees = [_from_bytes(each, tree) for each in gathered]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees)


def _to_bytes(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf).view(np.uint8) for leaf in jax.tree.leaves(tree)])


def _from_bytes(together: np.ndarray, like: Any) -> Any:
    leaves, structure = jax.tree.flatten(like)
    parts = np.split(together, np.cumsum([leaf.nbytes for leaf in leaves])[:-1])
    return jax.tree.unflatten(
        structure,
        [
            part.copy().view(leaf.dtype).reshape(leaf.shape)
            for part, leaf in zip(parts, leaves, strict=True)
        ],
    )


def on_all(tree: Any) -> Any:
    """NumPy arrays that every process has, as arrays of which each has a copy on a device."""
    owners = [jax.local_devices(process)[0] for process in range(count())]
    everywhere = NamedSharding(Mesh(np.array(owners), ("processes",)), PartitionSpec())

    def put(x: np.ndarray) -> jax.Array:
        own = jax.device_put(x, jax.local_devices()[0])
        return jax.make_array_from_single_device_arrays(x.shape, everywhere, [own])

    return jax.tree.map(put, tree)


class AgreedStop:
    """Whether SIGTERM came to any process: true at the same question in all of them.

    JAX's preemption service catches the signal and finds the question; it has to be asked
    equally often everywhere.
    """

    def __init__(self):
        self._asked = itertools.count()
        self._reached = False

    def is_set(self) -> bool:
        if not self._reached:
            self._reached = multihost_utils.reached_preemption_sync_point(next(self._asked))
        return self._reached


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """Turn what fails because of another process into one clear message."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if count() == 1 or not any(word in str(error) for word in OF_OTHERS):
            raise
        reason = re.sub(r"\[external\S*\] ", "", str(error).splitlines()[0])[:200]
        raise LostProcess(
            f"another process ended or is out of reach: {reason}; `--resume` goes on where the run "
            "was saved"
        ) from error


def leave(code: int) -> None:
    """End this process; without waiting for the others, if they do not end for the same reason."""
    if count() == 1 or _State.agreed or code in ENDED_TOGETHER:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
