"""From where machines may be reached: this computer, as the world sees it, or a network."""

import ipaddress
import os
import urllib.request

from mmattn.errors import UserError
from mmattn.remote.ssh import RemoteError

SERVICE = "https://checkip.amazonaws.com"  # it has an IPv4 address alone, as machines have
WIDEST = 16  # bits of the prefix


def own_network() -> str:
    """This computer's public IPv4 address as a network of one: a.b.c.d/32.

    Asked from SERVICE, or from the address in MMATTN_IP_SERVICE.

    Raises:
        RemoteError: the service does not answer, or with something else than such an address.
    """
    url = os.environ.get("MMATTN_IP_SERVICE", SERVICE)
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read(100).decode("ascii", "replace").strip()
        return f"{ipaddress.IPv4Address(text)}/32"
    except (OSError, ValueError) as error:
        raise RemoteError(
            f"{url} does not tell this computer's IPv4 address: {error}; MMATTN_IP_SERVICE names "
            "another such service, --allow-from a network to let in"
        ) from error


def network(text: str) -> str:
    """The IPv4 network of --allow-from; UserError if it is no public one, or too wide."""
    try:
        found = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise UserError(
            f"--allow-from {text}: expected an IPv4 network, as 203.0.113.0/24: {error}"
        ) from error
    if found.prefixlen < WIDEST or found.is_private:
        raise UserError(f"--allow-from {text}: expected public addresses, at most a /{WIDEST}")
    return str(found)
