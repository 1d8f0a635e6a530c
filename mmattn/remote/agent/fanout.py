"""Copies this machine's code and data to the run's other machines: `fanout JOB ADDRESS...`.

JOB has `key`, which the others let in for this alone, and `known_hosts`, by which they prove
themselves. The key is deleted at the end, whatever it is.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

PARTS = ("agent", "code", "data", "manifest.json")
ATTEMPTS, PAUSE_S = 5, 3.0
KEY_HOURS = 4  # after which the key is worth nothing, whatever was left


def main() -> None:
    """Copy; exits with 1 if a machine has not got everything."""
    folder = Path(sys.argv[1]).resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        left = copy(folder, sys.argv[2:])
    finally:
        (folder / "key").unlink(missing_ok=True)
    if left:
        sys.exit(f"not copied to {', '.join(left)}")


def copy(folder: Path, addresses: list[str]) -> list[str]:
    """Copy to all at once, again where it is cut; returns the addresses where it failed."""
    left = addresses
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE_S if attempt else 0)
        copies = {one: subprocess.Popen(command(folder, one), cwd=folder.parent) for one in left}
        left = [one for one, process in copies.items() if process.wait()]
        if not left:
            break
    return left


def command(folder: Path, address: str) -> list[str]:
    """The rsync to one machine, into the folder of the same name."""
    options = {
        "IdentityFile": folder / "key",
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": folder / "known_hosts",
        "StrictHostKeyChecking": "yes",
        "BatchMode": "yes",
        "ConnectTimeout": 10,
        "ServerAliveInterval": 5,
        "ServerAliveCountMax": 3,
    }
    shell = " ".join(["ssh", "-F", "none", *(f"-o{key}={value}" for key, value in options.items())])
    parts = [part for part in PARTS if (folder.parent / part).exists()]
    rsync = ["rsync", "--archive", "--delete", "--partial-dir=.rsync-partial", "--timeout=30"]
    return [*rsync, "-e", shell, *parts, f"{address}:{folder.parent}/"]
