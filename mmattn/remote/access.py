"""Where this computer comes from, as the world sees it."""

import ipaddress
import os
import urllib.error
import urllib.request

from mmattn.remote.ssh import RemoteError

SERVICE = "https://checkip.amazonaws.com"


def own_network() -> str:
    """This computer's public address as a network of one: a.b.c.d/32, or /128 for IPv6.

    Asked from SERVICE, or from the address in MMATTN_IP_SERVICE.

    Raises:
        RemoteError: the service does not answer, or with something else than an address.
    """
    url = os.environ.get("MMATTN_IP_SERVICE", SERVICE)
    if not url.startswith(("http://", "https://")):
        raise RemoteError(f"MMATTN_IP_SERVICE={url}: expected an http or https address")
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read(100).decode("ascii", "replace").strip()
    except (OSError, urllib.error.URLError) as error:
        raise RemoteError(
            f"{url} does not tell this computer's address: {_reason(error)}; "
            "MMATTN_IP_SERVICE names another such service"
        ) from error
    try:
        return str(ipaddress.ip_network(ipaddress.ip_address(text)))
    except ValueError as error:
        raise RemoteError(f"{url}: expected an IP address, got {text!r}") from error


def _reason(error: OSError) -> object:
    """Why, without the words in which Python wraps it."""
    inner = getattr(error, "reason", error)
    return getattr(inner, "strerror", None) or inner
