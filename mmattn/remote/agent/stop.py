"""Lets the job save and end: `stop JOB [--wait S] [--kill]`. Tells how the job is then."""

from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path

from .job import LOCK, is_held, signal_job
from .snapshot import describe_job

POLL_S = 0.2
KILL_S = 10.0


def main() -> dict:
    """Send SIGTERM once, and wait; returns the job's state."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path)
    parser.add_argument("--wait", type=float, default=0.0, help="seconds at most")
    parser.add_argument("--kill", action="store_true", help="then kill whatever of it is left")
    options = parser.parse_args()
    folder = options.job.resolve()
    job = stop(folder, options.wait)
    if options.kill and kill(folder):
        job = describe_job(folder)
    return job


def stop(folder: Path, patience_s: float) -> dict:
    """Ask the job to end and wait for it; returns its state as the snapshot has it."""
    end = time.monotonic() + patience_s
    sent = signal_job(folder, signal.SIGTERM)
    while True:
        job = describe_job(folder)
        if job["state"] != "running" or time.monotonic() > end:
            return job
        sent = sent or signal_job(folder, signal.SIGTERM)  # not yet, if it was just starting
        time.sleep(POLL_S)


def kill(folder: Path) -> bool:
    """Kill all processes of the job and wait until they are gone; whether there were any.

    They may outlive the first of them, by whose end the job has ended.
    """
    end = time.monotonic() + KILL_S
    found = is_held(folder / LOCK)
    while is_held(folder / LOCK) and time.monotonic() < end:
        signal_job(folder, signal.SIGKILL, group=True)
        time.sleep(POLL_S)
    return found
