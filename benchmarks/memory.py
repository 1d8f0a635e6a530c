"""The memory of a process (Linux)."""

from pathlib import Path


def megabytes(name: str = "VmRSS", process: int | str = "self") -> int:
    """A size in /proc/PROCESS/status: VmRSS is all, RssAnon without files such as the code of
    libraries, VmHWM the peak."""
    status = Path(f"/proc/{process}/status").read_text()
    sizes = dict(line.split(":", 1) for line in status.splitlines())
    return round(int(sizes[name].split()[0]) * 1024e-6)
