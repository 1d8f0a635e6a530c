"""`mmattn live` with pages that behave, others, and no browser at all."""

import json
import signal
import socket
from contextlib import closing
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from mmattn.server.session import AUDIO, HEADER
from tests.server.talking_run import Talking, face_models, live, talking_run  # noqa: F401

pytestmark = pytest.mark.slow
SPEECH = 8000 * np.random.default_rng(0).normal(size=(125, 640))  # 5 s, in blocks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where sessions are recorded."""
    return tmp_path_factory.mktemp("recorded")


@pytest.fixture(scope="module")
def address(commands, talking_run, folder):  # noqa: F811
    with live(commands, talking_run.run, "--record", folder, "--window", 2) as (url, _):
        yield urlsplit(url)


def stream(address, kinds="audio", origin=None, **given):
    """A connection like that of the page."""
    url = f"ws://{address.netloc}{address.path}stream?kinds={kinds}"
    return connect(url, origin=origin or f"http://{address.netloc}", **given)


def speak(socket, blocks=SPEECH, start=0.0) -> None:
    for number, block in enumerate(blocks):
        socket.send(HEADER.pack(AUDIO, start + 40 * number) + block.astype("<i2").tobytes())


def answer(socket, kind: str) -> dict:
    """The next answer of a kind."""
    while (found := json.loads(socket.recv(timeout=60)))["type"] != kind:
        pass
    return found


def recorded(socket) -> list[str]:
    """The files that the page is told of."""
    return answer(socket, "saved")["said"].removeprefix("Recorded: ").split(", ")


def test_a_page_is_answered_and_recorded(address, folder, talking_run, commands):  # noqa: F811
    with stream(address) as page:
        speak(page)
        found = answer(page, "window")
        assert found["end"] - found["start"] == pytest.approx(2000)
        assert sum(found["probabilities"]) == pytest.approx(1)
        page.send("end")
        features, table = recorded(page)
        with pytest.raises(ConnectionClosed) as closed:
            page.recv(timeout=60)
    assert closed.value.rcvd.code == 1000
    assert {features, table} <= {*map(str, folder.iterdir())}
    said = commands.run("mmattn", "predict", talking_run.run, features)
    assert "predicted from audio only" in said


def test_a_new_tab_takes_over_and_the_old_one_is_recorded_first(address, folder):
    before = {*folder.iterdir()}
    with stream(address) as old:
        speak(old)
        answer(old, "window")
        with stream(address) as new:
            paths = recorded(old)
            with pytest.raises(ConnectionClosed) as closed:
                old.recv(timeout=60)
            assert closed.value.rcvd.code == 4001
            assert {*map(str, {*folder.iterdir()} - before)} == {*paths}
            speak(new)
            assert answer(new, "window")["probabilities"]


def test_a_bad_message_ends_the_session_with_a_reason(address):
    with stream(address) as page:
        page.send(b"x")
        assert answer(page, "saved")["said"] == "Recorded: nothing, it was too short"
        with pytest.raises(ConnectionClosed) as closed:
            page.recv(timeout=60)
    assert closed.value.rcvd.code == 1007
    assert closed.value.rcvd.reason == "expected a frame or audio, got a message of 1 bytes"
    with stream(address) as page:
        speak(page)
        assert answer(page, "window")


def test_others_are_refused(address):
    wrong = address._replace(path="/wrong/")
    for given in (
        {"address": wrong},
        {"address": address, "origin": "http://evil.example"},
        {"address": address, "kinds": "smell"},
    ):
        with pytest.raises(InvalidStatus, match="403"), stream(**given):
            pass
    for request in (wrong.geturl(), Request(address.geturl(), headers={"Host": "evil.example"})):
        with pytest.raises(HTTPError, match="403") as refused:
            urlopen(request)
        refused.value.close()


def test_only_this_computer_can_reach_it(address):
    assert address.hostname == "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        try:
            other.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            pytest.skip("this machine has no other address")
        own, _ = other.getsockname()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((own, address.port), timeout=5).close()


def test_the_page_may_load_nothing_from_elsewhere(address):
    with closing(urlopen(address.geturl())) as answered:
        policy, text = answered.headers["Content-Security-Policy"], answered.read().decode()
        assert answered.headers["Cache-Control"] == "no-store"
        assert answered.headers["Referrer-Policy"] == "no-referrer"
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "<script" in text
    with pytest.raises(HTTPError, match="404") as missing:
        urlopen(f"{address.geturl()}session.py")
    missing.value.close()


@pytest.mark.parametrize("stored", [[], [".csv", ".npz"]])
def test_ctrl_c_ends_it_well_and_stores_only_what_was_asked(
    commands,
    talking_run,  # noqa: F811
    tmp_path,
    monkeypatch,
    stored,
):
    monkeypatch.chdir(tmp_path)
    words = ("--record", tmp_path) if stored else ()
    with live(commands, talking_run.run, *words) as (url, process):
        with stream(urlsplit(url)) as page:
            speak(page)
            answer(page, "window")
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        assert "Traceback" not in process.stdout.read()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == stored


def test_a_disk_that_cannot_be_written_is_said(commands, talking_run, tmp_path):  # noqa: F811
    folder = tmp_path / "gone"
    folder.mkdir()
    with live(commands, talking_run.run, "--record", folder) as (url, _):
        folder.rmdir()
        with stream(urlsplit(url)) as page:
            speak(page)
            page.send("end")
            said = answer(page, "saved")["said"]
    assert said == f"Not recorded: {folder}: No such file or directory"


def test_what_cannot_be_is_refused_at_once(commands, talking_run, tmp_path):  # noqa: F811
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, expected in (
            (("--port", port), f"--port {port}: "),
            (("--hop", 0), "--hop 0: expected"),
            (("--record", __file__), "expected a folder, or a path where one can be made"),
        ):
            said = commands.run("mmattn", "live", talking_run.run, *words, code=2)
            assert expected in said and "--host" not in said
