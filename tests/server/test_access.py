"""Who is let in by a server on this machine: by address, Host, Origin and token."""

import asyncio
import socket

import pytest
from starlette.responses import PlainTextResponse

from mmattn.errors import UserError
from mmattn.server.access import Guard, is_loopback, listen, url_of

OWN = "127.0.0.1:8000"


async def welcome(scope, receive, send):
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
    else:
        await PlainTextResponse("welcome")(scope, receive, send)


def ask(guard: Guard, kind: str = "http", path: str = "/", **headers: str) -> dict:
    """The first message that an app sends to a request with these headers."""
    scope = {
        **{"type": kind, "method": "GET", "path": path},
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
    }
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(guard(scope, None, send))
    return sent[0]


def status(*given, **headers) -> int:
    return ask(Guard(welcome), *given, **headers)["status"]


@pytest.mark.parametrize("host", [OWN, "127.0.0.1", "localhost:9000", "LOCALHOST", "[::1]:80"])
def test_names_of_this_machine_are_let_in(host):
    assert status(host=host) == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "", "["],
)
def test_a_name_that_was_made_to_resolve_to_this_machine_is_refused(host):
    assert status(host=host) == 403


def test_elsewhere_than_on_loopback_any_host_is_let_in():
    open_to_all = Guard(welcome, loopback=False)
    assert ask(open_to_all, host="emotions.example")["status"] == 200


def test_other_pages_in_the_browser_are_refused():
    assert status(host=OWN, origin=f"http://{OWN}") == 200
    for origin in ("https://evil.example", "null", "http://127.0.0.1:9", ""):
        assert status(host=OWN, origin=origin) == 403
    open_to_all = Guard(welcome, loopback=False)
    assert ask(open_to_all, host="a.example", origin="http://b.example")["status"] == 403


def test_a_websocket_must_come_from_the_own_page():
    guard = Guard(welcome)
    accepted = ask(guard, "websocket", host=OWN, origin=f"http://{OWN}")
    assert accepted == {"type": "websocket.accept"}
    for headers in ({}, {"origin": "http://evil.example"}):
        refused = ask(guard, "websocket", host=OWN, **headers)
        assert refused["type"] == "websocket.close" and refused["code"] == 1008


def test_a_token_must_be_the_right_one():
    guard = Guard(welcome, token="s3cret")
    found = [ask(guard, path=path, host=OWN)["status"] for path in ("/", "/s/", "/ä/s3cret/")]
    assert found == [403, 403, 403]
    assert ask(guard, path="/s3cret/a", host=OWN)["status"] == 200


def test_loopback_is_told_by_the_address():
    assert is_loopback("127.1.2.3") and is_loopback("::1") and is_loopback("localhost")
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org", "")))


def test_a_free_port_and_its_url():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        with socket.create_connection(("127.0.0.1", port)):
            pass


def test_an_address_that_cannot_be_had_is_named():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=rf"^--port {port}: .*in use"):
            listen("127.0.0.1", port)
    for host in ("203.0.113.1", "no.such.invalid"):
        with pytest.raises(UserError, match=f"--host {host} --port 8000: "):
            listen(host, 8000)
    with pytest.raises(UserError, match="--port 70000: expected 0 to 65535"):
        listen("127.0.0.1", 70000)
