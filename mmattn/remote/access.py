"""From where machines may be reached: this computer, as the world sees it, or a network."""

import http.client
import ipaddress
import os
from contextlib import closing
from urllib.parse import urlsplit

from mmattn.errors import UserError
from mmattn.remote.ssh import RemoteError

SERVICE = "https://checkip.amazonaws.com"
WIDEST = 16  # bits of the prefix
# What a computer has behind its router. No machine on the Internet sees such an address.
_INSIDE = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/3"),
]


def own_network() -> str:
    """This computer's public IPv4 address as a network of one: a.b.c.d/32.

    Asked from SERVICE, or from the address in MMATTN_IP_SERVICE.

    Raises:
        RemoteError: the service does not answer, or with something else than such an address.
    """
    url = os.environ.get("MMATTN_IP_SERVICE", SERVICE)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise RemoteError(f"MMATTN_IP_SERVICE={url}: expected an http or https address")
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    try:
        # From an IPv4 address, as machines are reached, also where IPv6 would be preferred.
        with closing(kind(parts.netloc, timeout=10, source_address=("0.0.0.0", 0))) as connection:
            connection.request("GET", parts.path or "/")
            text = connection.getresponse().read(100).decode("ascii", "replace").strip()
    except (OSError, http.client.HTTPException) as error:
        raise RemoteError(
            f"{url} does not tell this computer's address: "
            f"{getattr(error, 'strerror', None) or error}; MMATTN_IP_SERVICE names another such "
            "service, --allow-from a network to let in"
        ) from error
    try:
        address = ipaddress.IPv4Network(ipaddress.IPv4Address(text))
    except ValueError as error:
        raise RemoteError(f"{url}: expected an IPv4 address, got {text!r}") from error
    if _is_inside(address):
        raise RemoteError(
            f"{url}: expected a public address, got {text}: --allow-from names the network from "
            "which this computer reaches the Internet"
        )
    return str(address)


def network(text: str) -> str:
    """The IPv4 network of --allow-from; UserError if it is no public one, or too wide."""
    try:
        found = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise UserError(
            f"--allow-from {text}: expected an IPv4 network, as 203.0.113.0/24: {error}"
        ) from error
    if found.prefixlen < WIDEST:
        raise UserError(f"--allow-from {text}: expected a network no wider than /{WIDEST}")
    if _is_inside(found):
        raise UserError(
            f"--allow-from {text}: expected public addresses: machines are reached by theirs"
        )
    return str(found)


def _is_inside(found: ipaddress.IPv4Network) -> bool:
    return any(found.subnet_of(ipaddress.IPv4Network(one)) for one in _INSIDE)
