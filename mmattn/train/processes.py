"""Processes that train together, through JAX's distributed runtime.

Process 0 alone reads and writes the run's folder. What it finds there, and what it could not do,
goes to the others by a `Link`; what the devices compute together goes by JAX's collectives.
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

HEARTBEAT = 60  # seconds after which JAX aborts, should the link not have ended the process
GOODBYE = 20  # seconds that a process waits at its end for the others
# Texts of a failed call that another process caused, and not, for instance, a lack of memory.
OF_OTHERS = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "coordination service")
ENDED_TOGETHER = (0, Diverged.exit_code, Stopped.exit_code)
LOOPBACKS = ("127.", "::1")
# How Slurm and Open MPI tell how many processes there are, and which this is.
SLURM, OPEN_MPI = "SLURM_STEP_NUM_TASKS SLURM_PROCID", "OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_RANK"
AGREED = {kind.__name__: kind for kind in (Diverged, Stopped)}


class _State:
    """Of this process among the others, as JAX keeps one too."""

    link: Link | None = None
    number, count = 0, 1
    alone = False
    agreed = False


def start_processes(config: DistributedConfig) -> None:
    """Meet the others, if there are any; to be called before anything starts JAX's devices.

    Raises:
        UserError: not all processes come in time, or none reaches the address of a machine's name.
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
        what = f"not all of {count} processes came {patience}; each has a --distributed.process-id"
        addresses = link.exchange([own, _gloo_address()], config.timeout)
    except OSError as error:
        why = f": {error.strerror or error}".removesuffix(": ")
        raise UserError(f"--distributed.coordinator {address}: {what}{why}") from error
    _State.link, _State.number, _State.count = link, number, count
    atexit.register(link.leave)  # before JAX waits for the others
    _check_addresses(addresses)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is heard by `AgreedStop`
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
    said, address = os.environ, config.address
    count, number = config.num_processes, config.process_id
    for names in map(str.split, (SLURM, OPEN_MPI)):
        if number is None and said.get(names[0], "1") != "1":
            count, number = (int(said[name]) for name in names)
    if count is None or number is None:
        return "", 1, 0
    if address is None and "SLURM_STEP_NODELIST" in said:  # as "node[001-015],other": node001
        host = re.findall(r"([^,[]+)(?:\[(\w+))?", said["SLURM_STEP_NODELIST"])[0]
        port = said.get("JAX_COORDINATOR_PORT", 61440 + int(said["SLURM_JOB_ID"]) % 4096)
        address = f"{''.join(host)}:{port}"
    if address is None:
        raise UserError(f"{count} processes: expected JAX_COORDINATOR_ADDRESS, process 0's place")
    return address, count, number


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise UserError(f"{address}: expected HOST:PORT of process 0")
    return host.strip("[]"), int(port)


def _gloo_address() -> str | None:
    """Where Gloo listens: the first address of this machine that its name means."""
    with suppress(OSError):
        for family, *_, address in socket.getaddrinfo(socket.gethostname(), 0):
            with suppress(OSError), socket.socket(family) as one:
                one.bind(address)
                return str(address[0])
    return None


def _check_addresses(addresses: list[tuple[str, str | None]]) -> None:
    """Raise UserError if Gloo, at the second of a process's addresses, would not be reached."""
    several = not all(own.startswith(LOOPBACKS) for own, _ in addresses)
    for number, (_, named) in enumerate(addresses):
        if named is None or (several and named.startswith(LOOPBACKS)):
            raise agreed(
                f"process {number}: the name of its machine means {named or 'no address of it'}; "
                "expected one at which the other processes reach it (see /etc/hosts)"
            )


def count() -> int:
    """The number of processes that work together now."""
    return 1 if _State.alone else _State.count


def first() -> bool:
    """Whether this process is number 0, which alone prints and writes."""
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
    link = None if _State.alone else _State.link
    return [value] if link is None else link.exchange(value)


def from_first(work: Callable[[], Any]) -> Any:
    """What `work` returns in process 0, where alone it is called: a JSON value for the others.

    All processes wait for each other. A UserError there is raised in every process.
    """
    if count() == 1:
        return work()
    said = {}
    if first():
        try:
            said = {"value": work()}
        except UserError as error:
            said = {"error": type(error).__name__, "text": str(error)}
    found = exchange(said)[0]
    if "error" in found:
        raise agreed(found["text"], AGREED.get(found["error"], UserError))
    return found["value"]


def agreed(message: str, kind: type[UserError] = UserError) -> UserError:
    """An error that every process raises, after which they end together."""
    _State.agreed = True
    if _State.link:
        _State.link.leave()
    return kind(message)


def own_part(things: int) -> range:
    """The numbers of this process's share of so many things, or of a few more, to be even."""
    each = -(-things // count())
    return range(_State.number * each, (_State.number + 1) * each)


def arrays_from_first(tree: Any) -> Any:
    """Process 0's NumPy arrays, to the bit; the others give arrays of the same shapes."""
    if count() == 1:
        return tree
    return _from_text(exchange(_to_text(tree) if first() else None)[0], tree)


def arrays_from_all(tree: Any) -> Any:
    """All processes' NumPy arrays of equal shapes, to the bit, one after the other [N · …]."""
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
    """NumPy arrays that every process has, as arrays of which each has a copy on a device."""
    owners = np.array([jax.local_devices(process)[0] for process in range(count())])
    mesh = Mesh(owners, ("processes",))
    return multihost_utils.host_local_array_to_global_array(tree, mesh, PartitionSpec())


class AgreedStop:
    """Whether SIGTERM came to any process; all have to ask equally often."""

    def __init__(self):
        self._asked = False

    def set(self) -> None:
        """SIGTERM came to this process."""
        self._asked = True

    def is_set(self) -> bool:
        """The same answer in all processes."""
        asked = any(exchange(self._asked))
        if asked:  # else SIGTERM may have come meanwhile, which counts at the next question
            self._asked = True
        return asked


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """Turn what fails because of another process into one clear message."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if count() == 1 or not any(word in str(error) for word in OF_OTHERS):
            raise
        time.sleep(LOST + 2 * BEAT)  # meanwhile the link reports who is lost, and ends this process
        reason = str(error).splitlines()[0][:200]
        raise LostProcess(f"{reason}; `--resume` continues where the run was saved") from error


def leave(code: int) -> None:
    """End this process; without waiting for the others, if they do not end for the same reason."""
    if count() == 1 or _State.agreed or code in ENDED_TOGETHER:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
