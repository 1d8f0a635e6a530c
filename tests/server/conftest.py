"""A server that tests share, a clip for it, and a browser for the pages."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmattn.run.run import Run, load_run
from tests.report.conftest import browser  # noqa: F401
from tests.server.served import SMALL, Server, clip_of, wait_until


@pytest.fixture(scope="session")
def shared(commands, tmp_path_factory, clip) -> Iterator[Server]:
    """Two processes, four places more, small limits."""
    limits = ("--max-size", SMALL / 1e6, "--queue", 4, "--memory", 0.3)
    with Server(commands, tmp_path_factory.mktemp("serve"), *limits) as one:
        with ThreadPoolExecutor() as clients:  # the first clip of a process takes longer
            assert list(clients.map(one.predict, [clip] * 2))
        yield one


@pytest.fixture
def server(shared) -> Iterator[Server]:
    """After a test all processes wait for clips, no place is taken and no file is there."""
    yield shared
    idle = {"status": "ok", "workers": 2, "places": 6, "taken": 0}
    wait_until(lambda: shared.health().items() >= idle.items())
    assert shared.left() == []


@pytest.fixture(scope="session")
def run() -> Run:
    return load_run("starter")


@pytest.fixture(scope="session")
def clip(run) -> bytes:
    return clip_of(run, 0)
