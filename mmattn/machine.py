"""The machine: its cores, its processor, and functions that only some systems have."""

import ctypes
import multiprocessing
import os
import platform
import signal
import subprocess
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path

M_MMAP_THRESHOLD, M_MMAP_MAX = -3, -4  # of glibc's malloc.h
GRACE = 10.0  # seconds in which processes may end that are to


def own_cores() -> list[int]:
    """The numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cores() -> int:
    """How many cores this process may use; NPROC in the environment, which XLA reads too."""
    count = os.environ.get("NPROC", "")
    return int(count) if count.isdecimal() and int(count) else len(own_cores())


def pin(to: Collection[int]) -> None:
    """Bind this process to cores, where the system can: not on macOS."""
    if hasattr(os, "sched_setaffinity"):
        with suppress(OSError):  # a container may forbid it
            os.sched_setaffinity(0, to)


def processor() -> str:
    """The processor's features: code compiled for one may not run on another."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    with suppress(OSError):  # macOS has a name instead of a list of features
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        if name:
            return f"{platform.machine()} {name}"
    return platform.platform()


def c_function(name: str, *arguments: type) -> Callable[..., int] | None:
    """A function of the C library with arguments of these ctypes; None if there is none.

    Other threads run during a call.
    """
    try:
        function = getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # a Python that is linked statically; Windows
        return None
    if function is not None:
        function.argtypes = arguments
    return function


def give_large_memory_back() -> None:
    """Return freed blocks of 1 MB or more, such as video frames, to the system at once (glibc).

    Otherwise glibc keeps them: 12 MB when decoding 1280 x 720.
    """
    if mallopt := c_function("mallopt", ctypes.c_int, ctypes.c_int):
        mallopt(M_MMAP_MAX, 1 << 16)
        mallopt(M_MMAP_THRESHOLD, 1 << 20)


def give_memory_back() -> None:
    """Return memory that glibc has freed but kept, e.g. after compiling, to the system."""
    if trim := c_function("malloc_trim", ctypes.c_size_t):
        trim(0)


@contextmanager
def without_interrupt() -> Iterator[None]:
    """Processes that are started in the block never get Ctrl-C, which a terminal sends to all:
    who started them ends them."""
    resource_tracker.ensure_running()  # to start it would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_children() -> None:
    """End the processes that `multiprocessing` has started."""
    for process in (begun := multiprocessing.active_children()):
        process.terminate()
    for process in begun:
        process.join(GRACE)
        process.kill()
