"""Waiting for what another process or machine does."""

import time
from collections.abc import Callable


def wait_until(
    true: Callable[[], object],
    timeout: float = 120,
    interval: float = 0.05,
    why: Callable[[], str] = str,
) -> None:
    """Look again and again, far longer than it takes, for machines that are busy.

    `why` says more where it never comes true.
    """
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end, f"not true in {timeout} s\n{why()}"
        time.sleep(interval)
