"""The addresses that may reach machines: this computer's public address, or a given network."""

import http.client
import ipaddress
import os
import urllib.request
from functools import partial

from mmattn.errors import UserError
from mmattn.remote.ssh import RemoteError

SERVICE = "https://checkip.amazonaws.com"
WIDEST = 16  # bits of the prefix
# Private and reserved addresses, which no machine on the Internet sees.
_INSIDE = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/3"),
]


class _OverIPv4(urllib.request.HTTPSHandler):
    """Connects over IPv4, as to the machines, even where IPv6 is preferred."""

    def https_open(self, request):
        connection = partial(http.client.HTTPSConnection, source_address=("0.0.0.0", 0))
        return self.do_open(connection, request)


def own_network() -> str:
    """This computer's public address as a network, a.b.c.d/32; RemoteError if unknown."""
    url = os.environ.get("MMATTN_IP_SERVICE", SERVICE)
    try:
        with urllib.request.build_opener(_OverIPv4).open(url, timeout=10) as answer:
            return _public(f"{answer.read(100).decode('ascii', 'replace').strip()}/32")
    except (OSError, ValueError) as error:
        raise RemoteError(
            f"{url} did not return this computer's IPv4 address: {error}; set MMATTN_IP_SERVICE "
            "to another such service, or --allow-from to the network to let in"
        ) from error


def network(text: str) -> str:
    """The IPv4 network of --allow-from; UserError if it is not public or too wide."""
    try:
        return _public(text)
    except ValueError as error:
        raise UserError(
            f"--allow-from {text}: expected an IPv4 network, e.g. 203.0.113.0/24: {error}"
        ) from error


def _public(text: str) -> str:
    found = ipaddress.IPv4Network(text)
    inside = any(found.subnet_of(ipaddress.IPv4Network(one)) for one in _INSIDE)
    if inside or found.prefixlen < WIDEST:
        raise ValueError(f"{text}: expected public addresses, at most a /{WIDEST}")
    return str(found)
