"""The line between processes, without JAX."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmattn.errors import LostProcess, UserError
from mmattn.train import hub, processes
from mmattn.train.hub import LOOPBACK, PARENT, Link, free_port

PATIENCE = 60.0  # seconds, for machines that are busy
MEMBER = """
import sys, time
from mmattn.train import hub, processes
from mmattn.train.hub import LOOPBACK, Link

place, number = (LOOPBACK, int(sys.argv[1])), int(sys.argv[2])
link = Link(place, number, 2)
link.connect(place, 60)
link.exchange(None)
print("met", flush=True)
time.sleep(600)
"""


@pytest.fixture
def place() -> tuple[str, int]:
    """Of process 0."""
    return LOOPBACK, free_port()


@pytest.fixture
def links(place) -> Iterator[list[Link]]:
    """Those of two processes, in this one."""
    links = [Link(place, number, 2) for number in range(2)]
    for link in links:
        link.connect(place, PATIENCE)
    yield links
    for link in links:
        link.leave()


def at_once(work: list[Callable]) -> list:
    with ThreadPoolExecutor() as pool:
        return [future.result(PATIENCE) for future in [pool.submit(one) for one in work]]


@pytest.mark.parametrize("value", ["ä\n", [1.5, None], {"lost": "a value"}, "x" * 10**6])
def test_all_get_what_all_say_in_their_order(links, value):
    said = at_once([lambda n=n: links[n].exchange([n, value]) for n in range(2)])
    assert said == [[[0, value], [1, value]]] * 2


def test_one_that_does_not_say_anything_is_not_waited_for_longer_than_asked(links):
    with pytest.raises(TimeoutError):
        links[0].exchange(1, timeout=0.1)


@pytest.mark.parametrize(("number", "count"), [(1, 2), (2, 2), (1, 3)])
def test_a_process_too_many_is_told_so_and_disturbs_nobody(links, place, number, count):
    one_more = Link(place, number, count)
    one_more.connect(place, PATIENCE)
    one_more._left = True  # or the end of the connection would end this process
    with pytest.raises(UserError, match=f"process {number}: process 0 expects 2 processes, each"):
        one_more.exchange(None, PATIENCE)
    assert at_once([lambda link=link: link.exchange(7) for link in links]) == [[7, 7]] * 2


@pytest.mark.parametrize("greeting", [b"GET / HTTP/1.1\n", b"x" * 10**6, b"[1]\n"])
def test_a_stranger_is_refused(links, place, greeting):
    with socket.create_connection(place, PATIENCE) as stranger:
        stranger.sendall(greeting)
        assert b"process 0 expects 2 processes" in stranger.recv(100)


def test_a_signal_while_others_are_waited_for_counts_at_the_next_question(monkeypatch):
    asked = processes.AgreedStop()

    def signalled(own: bool) -> list[bool]:
        asked.set()
        return [own, False]

    monkeypatch.setattr(processes, "exchange", signalled)
    assert not asked.is_set()
    assert asked.is_set()


def test_bytes_of_jax_go_to_the_coordinator_whose_end_is_not_passed_on(links):
    """Also of a client that comes before the coordinator listens."""
    host, port = links[1].coordinator().split(":")
    with socket.create_connection((host, int(port)), PATIENCE) as client:
        client.sendall(b"to the coordinator")
        host, port = links[0].coordinator().split(":")
        time.sleep(0.5)
        with socket.create_server((host, int(port))) as coordinator:
            coordinator.settimeout(PATIENCE)
            served, _ = coordinator.accept()
            with served:
                assert served.recv(100) == b"to the coordinator"
                served.sendall(b"and back")
            assert client.recv(100) == b"and back"
            client.settimeout(0.5)
            with pytest.raises(TimeoutError):
                client.recv(1)  # an end would be b""


def test_a_long_line_is_no_silence(monkeypatch):
    """Each of its pieces is waited for anew."""
    waits, hearing = [], None

    async def wait_for(work, timeout: float):
        if asyncio.current_task() is hearing:  # of no hub that another test has left behind
            waits.append(timeout)
        return await work

    async def pieces() -> tuple[list[bytes], str]:
        nonlocal hearing
        reader, lines = asyncio.StreamReader(), []
        hearing = asyncio.create_task(hub._hear(reader, 3, lines.append))
        for piece in (b'"lo', b"n", b'g"\n\n"two"', b'\n"three"\n"cut'):
            reader.feed_data(piece)
            while len(waits) < 1 or reader._buffer:
                await asyncio.sleep(0)
        reader.feed_eof()
        return lines, await hearing

    monkeypatch.setattr(hub.asyncio, "wait_for", wait_for)
    assert asyncio.run(pieces()) == ([b'"long"', b'"two"', b'"three"'], "process 3 ended")
    assert waits == [hub.LOST] * 5


def member(port: int, number: int, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", MEMBER, str(port), str(number)],
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_one_that_is_killed_ends_the_other_which_names_it(killed):
    port = free_port()
    both = [member(port, number) for number in range(2)]
    assert [process.stdout.readline() for process in both] == ["met\n"] * 2
    both[killed].kill()
    both[killed].communicate()
    _, text = both[1 - killed].communicate(timeout=PATIENCE)
    assert both[1 - killed].returncode == LostProcess.exit_code
    assert f"lost: process {killed} ended" in " ".join(text.split())


def test_a_process_does_not_outlive_its_launcher():
    alone = member(free_port(), 0, **{PARENT: "1"})  # which is not its parent
    _, text = alone.communicate(timeout=PATIENCE)
    assert alone.returncode == LostProcess.exit_code
    assert "mmattn launch ended" in text
