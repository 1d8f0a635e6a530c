"""Lets this machine's name mean its private address: `hosts JOB ADDRESS`.

What listens at its machine's name, as Gloo does, would be out of reach where
cloud-init or an installer has given that name to the loopback.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

HOSTS = Path("/etc/hosts")


def main() -> dict[str, str | None]:
    """Mend /etc/hosts if need be; returns the name and what it means now."""
    name, address = socket.gethostname(), sys.argv[2]
    if meaning(name) != address:
        text = mended(HOSTS.read_text(encoding="utf-8"), name, address)
        command = ["sudo", "-n", "tee", str(HOSTS)]
        subprocess.run(command, input=text, text=True, stdout=subprocess.DEVNULL, check=True)
    return {"name": name, "address": meaning(name)}


def meaning(name: str) -> str | None:
    """The first address of a name, which is what is listened at; None if it has none."""
    try:
        return socket.getaddrinfo(name, None)[0][4][0]
    except OSError:
        return None


def mended(text: str, name: str, address: str) -> str:
    """The content of /etc/hosts in which a name means an address and nothing else.

    >>> mended("127.0.0.1 localhost\\n127.0.1.1 box.here box\\n", "box", "10.0.0.5")
    '10.0.0.5 box\\n127.0.0.1 localhost\\n127.0.1.1 box.here\\n'
    """
    lines = [re.sub(rf"(?<=\s){re.escape(name)}(?=\s|$)", "", line) for line in text.splitlines()]
    return "\n".join([f"{address} {name}", *map(str.rstrip, lines)]) + "\n"
