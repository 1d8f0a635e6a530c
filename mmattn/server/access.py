"""Access to a server on this machine: its address, and checks of Host, Origin and token.

Any page in a browser can send requests to 127.0.0.1. Its Origin reveals it; if its own name
resolves to 127.0.0.1 (DNS rebinding), the Host header does.
"""

import errno
import ipaddress
import secrets
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from mmattn.errors import UserError

LOOPBACK = "127.0.0.1"
FORBIDDEN = 1008  # close code of a WebSocket: policy violation


def is_loopback(host: str) -> bool:
    """Whether a name or address is of this machine only, without asking a name server.

    >>> [is_loopback(host) for host in ("localhost", "127.0.0.2", "::1", "[::1]", "0.0.0.0")]
    [True, True, True, True, False]
    """
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises:
        UserError: the address is not of this machine, or the port is taken or not allowed.
    """
    asked = f"--port {port}" if host == LOOPBACK else f"--host {host} --port {port}"
    if not 0 <= port < 65536:
        raise UserError(f"--port {port}: expected 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"{asked}: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        hint = "; choose another --port" * (error.errno in (errno.EADDRINUSE, errno.EACCES))
        raise UserError(f"{asked}: {error.strerror or error}{hint}") from error
    return listener


def url_of(listener: socket.socket) -> str:
    """The URL of the server behind a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Guard:
    """ASGI middleware that refuses foreign requests with 403, or closes their WebSocket.

    app: the guarded application; loopback: whether the Host header must name this machine, against
    DNS rebinding; token: required first part of the path, if any. An Origin, which browsers send,
    must be the server's own; a WebSocket must have one.
    """

    def __init__(self, app: ASGIApp, loopback: bool = True, token: str | None = None):
        self.app, self.loopback, self.token = app, loopback, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on allowed requests."""
        reason = None if scope["type"] == "lifespan" else self._reason(scope)
        if reason is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(FORBIDDEN, reason)(scope, receive, send)
        else:
            await JSONResponse({"detail": reason}, 403)(scope, receive, send)

    def _reason(self, scope: Scope) -> str | None:
        """Why a request is refused; None if it is not."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.loopback and not is_loopback(_hostname(f"http://{host}")):
            return f"Host {host!r}: expected localhost or 127.0.0.1"
        foreign = origin is not None and origin.partition("://")[2].lower() != host.lower()
        if foreign or (origin is None and scope["type"] == "websocket"):
            return f"Origin {origin!r}: expected the server's own"
        given = scope["path"][1:].partition("/")[0]
        if self.token and not secrets.compare_digest(given.encode(), self.token.encode()):
            return "token: expected the one in the URL that the command printed"
        return None


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # e.g. an unclosed bracket
        return ""
