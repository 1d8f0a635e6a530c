"""Processes that train together, through JAX's distributed runtime.

Only process 0 reads and writes the run's folder. It sends what it finds there, and its errors, to
the others through a `Link`; the devices compute together through JAX's collectives.
"""

import atexit
import os
import re
import socket
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

from mmattn.config import DistributedConfig
from mmattn.console import keep_libraries_off_the_screen
from mmattn.errors import Diverged, LostProcess, Stopped, UserError
from mmattn.train.hub import BEAT, LOST, Link

HEARTBEAT = 60  # seconds after which JAX aborts, if the link has not ended the process
GOODBYE = 20  # seconds that a process waits at its end for the others
# Texts of errors caused by another process, unlike e.g. a lack of memory.
OF_OTHERS = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "coordination service")
ENDED_TOGETHER = (0, Diverged.exit_code, Stopped.exit_code)
LOOPBACKS = ("127.", "::1")
# Variables in which Slurm and Open MPI give the number of processes, and of this process.
SLURM, OPEN_MPI = "SLURM_STEP_NUM_TASKS SLURM_PROCID", "OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_RANK"
AGREED = {kind.__name__: kind for kind in (Diverged, Stopped)}


class _State:
    """Global state of this process among the others, like JAX's own."""

    link: Link | None = None
    number, count = 0, 1
    alone = False
    agreed = False


def start_processes(config: DistributedConfig) -> None:
    """Connect to the other processes, if any; call it before anything starts JAX's devices.

    Raises:
        UserError: not all processes connect in time, or a machine's name resolves to an address
            that the others cannot reach.
    """
    address, count, number = _place(config)
    if count == 1:
        return
    keep_libraries_off_the_screen()  # Gloo reports each of its connections
    link = Link(_split(address), number, count)
    bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", address)
    patience = f"within {config.timeout:g} s (--distributed.timeout)"
    what = "process 0 " + (f"does not answer {patience}" if number else f"cannot listen at {bind}")
    try:
        own = link.connect(_split(bind), config.timeout)
        what = (
            f"not all {count} processes connected {patience}; each needs a --distributed.process-id"
        )
        addresses = link.exchange([own, _gloo_address()], config.timeout)
    except OSError as error:
        why = f": {error.strerror or error}".removesuffix(": ")
        raise UserError(f"--distributed.coordinator {address}: {what}{why}") from error
    _State.link, _State.number, _State.count = link, number, count
    atexit.register(link.leave)  # before JAX waits for the others
    _check_addresses(addresses)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # `AgreedStop` handles SIGTERM
    jax.distributed.initialize(
        coordinator := link.coordinator(),
        count,
        number,
        coordinator_bind_address=coordinator,
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=GOODBYE,
    )


def _place(config: DistributedConfig) -> tuple[str, int, int]:
    """The coordinator's address, the number of processes, and which of them this is."""
    variables, address = os.environ, config.address
    count, number = config.num_processes, config.process_id
    for names in map(str.split, (SLURM, OPEN_MPI)):
        if number is None and variables.get(names[0], "1") != "1":
            count, number = (int(variables[name]) for name in names)
    if count is None or number is None:
        return "", 1, 0
    if address is None and "SLURM_STEP_NODELIST" in variables:  # "node[001-015],other": node001
        host = re.findall(r"([^,[]+)(?:\[(\w+))?", variables["SLURM_STEP_NODELIST"])[0]
        port = variables.get("JAX_COORDINATOR_PORT", 61440 + int(variables["SLURM_JOB_ID"]) % 4096)
        address = f"{''.join(host)}:{port}"
    if address is None:
        raise UserError(
            f"{count} processes: expected JAX_COORDINATOR_ADDRESS, the address of process 0"
        )
    return address, count, number


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise UserError(f"{address}: expected HOST:PORT of process 0")
    return host.strip("[]"), int(port)


def _gloo_address() -> str | None:
    """Where Gloo listens: the first address of this machine that its host name resolves to."""
    with suppress(OSError):
        for family, *_, address in socket.getaddrinfo(socket.gethostname(), 0):
            with suppress(OSError), socket.socket(family) as one:
                one.bind(address)
                return str(address[0])
    return None


def _check_addresses(addresses: list[tuple[str, str | None]]) -> None:
    """Raise UserError if Gloo, at the second address of a process, cannot be reached."""
    several = not all(own.startswith(LOOPBACKS) for own, _ in addresses)
    for number, (_, named) in enumerate(addresses):
        if named is None or (several and named.startswith(LOOPBACKS)):
            raise agreed(
                f"process {number}: its host name resolves to {named or 'none of its addresses'}; "
                "expected an address that the other processes can reach (see /etc/hosts)"
            )


def count() -> int:
    """The number of processes that train together."""
    return 1 if _State.alone else _State.count


def first() -> bool:
    """Whether this is process 0; only process 0 prints and writes."""
    return _State.number == 0


def share(devices: int) -> int:
    """This process's number of devices, of those of all processes."""
    return devices // _State.count


@contextmanager
def alone() -> Iterator[None]:
    """Within the block, this process uses only its own devices and waits for no other process."""
    _State.alone = True
    try:
        yield
    finally:
        _State.alone = False


def exchange(value: Any) -> list:
    """Every process's JSON value, in process order; all processes must call it."""
    link = None if _State.alone else _State.link
    return [value] if link is None else link.exchange(value)


def from_first(work: Callable[[], Any]) -> Any:
    """The JSON value that `work` returns in process 0; only process 0 calls it.

    All processes wait for each other. A UserError there is raised in every process.
    """
    if count() == 1:
        return work()
    outcome = {}
    if first():
        try:
            outcome = {"value": work()}
        except UserError as error:
            outcome = {"error": type(error).__name__, "text": str(error)}
    found = exchange(outcome)[0]
    if "error" in found:
        raise agreed(found["text"], AGREED.get(found["error"], UserError))
    return found["value"]


def agreed(message: str, kind: type[UserError] = UserError) -> UserError:
    """An error that all processes raise, so that they end together."""
    _State.agreed = True
    if _State.link:
        _State.link.leave()
    return kind(message)


def own_part(things: int) -> range:
    """The numbers of this process's part of `things`, rounded up to equal parts."""
    each = -(-things // count())
    return range(_State.number * each, (_State.number + 1) * each)


def arrays_from_first(tree: Any) -> Any:
    """Process 0's NumPy arrays, bit for bit; the others pass arrays of the same shapes."""
    if count() == 1:
        return tree
    return _from_text(exchange(_to_text(tree) if first() else None)[0], tree)


def arrays_from_all(tree: Any) -> Any:
    """All processes' NumPy arrays of equal shapes, bit for bit, concatenated [N · …]."""
    if count() == 1:
        return tree
    trees = [_from_text(each, tree) for each in exchange(_to_text(tree))]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees)


def _to_text(tree: Any) -> list[str]:
    return [b64encode(np.asarray(leaf).tobytes()).decode() for leaf in jax.tree.leaves(tree)]


def _from_text(texts: list[str], like: Any) -> Any:
    leaves, structure = jax.tree.flatten(like)
    arrays = [
        np.frombuffer(b64decode(text), leaf.dtype).reshape(leaf.shape).copy()
        for text, leaf in zip(texts, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, arrays)


def on_all(tree: Any) -> Any:
    """NumPy arrays, equal in all processes, as JAX arrays replicated over the processes."""
    owners = np.array([jax.local_devices(process)[0] for process in range(count())])
    mesh = Mesh(owners, ("processes",))
    return multihost_utils.host_local_array_to_global_array(tree, mesh, PartitionSpec())


class AgreedStop:
    """Whether any process was asked to stop, as by SIGTERM; all must look equally often."""

    def __init__(self):
        self._asked = False

    def set(self) -> None:
        """This process is asked to stop."""
        self._asked = True

    def is_set(self) -> bool:
        """The same answer in all processes."""
        asked = any(exchange(self._asked))
        if asked:  # otherwise SIGTERM may have just come; the next call reports it
            self._asked = True
        return asked


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """Turn an error caused by another process into one clear message."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if count() == 1 or not any(word in str(error) for word in OF_OTHERS):
            raise
        time.sleep(
            LOST + 2 * BEAT
        )  # meanwhile the link reports the lost process, and ends this one
        reason = str(error).splitlines()[0][:200]
        raise LostProcess(f"{reason}; `--resume` continues where the run was saved") from error


def leave(code: int) -> None:
    """End this process, without waiting for the others unless they end for the same reason."""
    if count() == 1 or _State.agreed or code in ENDED_TOGETHER:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
