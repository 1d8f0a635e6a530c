"""Runs a module as on a plain system: without the names that only Linux or glibc has.

python -m tests.plain MODULE OPTIONS…

What is missing here is missing before anything of the project or its libraries is imported, also
in the processes that a run starts with multiprocessing, which import this module first.
"""

import ctypes
import mmap
import os
import resource
import runpy
import signal
import sys

LINUX = {
    os: (
        *("sched_getaffinity", "sched_setaffinity", "posix_fadvise", "posix_fallocate"),
        *("pidfd_open", "memfd_create", "eventfd", "copy_file_range", "splice"),
    ),
    signal: ("SIGRTMIN", "SIGRTMAX", "SIGPOLL", "SIGPWR", "SIGSTKFLT"),
    mmap: [name for name in dir(mmap) if name.startswith("MADV_")],
    resource: ("prlimit", "RLIMIT_OFILE", "RLIMIT_RTPRIO", "RLIMIT_NICE", "RUSAGE_THREAD"),
}
FUNCTIONS = ("madvise", "mallopt", "prctl", "posix_fadvise", "sched_setaffinity")


class PlainLibrary(ctypes.CDLL):
    """A C library without what glibc or Linux adds."""

    def __getattr__(self, name: str):
        if name in FUNCTIONS:
            raise AttributeError(name)
        return super().__getattr__(name)


def forbid_proc(event: str, arguments: tuple) -> None:
    path = str(arguments[0]) if event == "open" else ""
    if path.startswith("/proc/") and path != "/proc/self/maps":  # threadpoolctl's, on Linux alone
        raise FileNotFoundError(2, "No such file or directory", arguments[0])


for module, names in LINUX.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
if hasattr(os, "process_cpu_count"):  # from Python 3.13 on; it asks for the affinity
    os.process_cpu_count = os.cpu_count
ctypes.CDLL = PlainLibrary
sys.addaudithook(forbid_proc)

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=False)
