"""Waiting for what another process or machine does."""

import time
from collections.abc import Callable


def wait_until(true: Callable[[], object], timeout: float = 120) -> None:
    """Look again and again; far longer than it takes, for machines that are busy."""
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end, f"not true in {timeout} s"
        time.sleep(0.05)
