"""Lets the job save and end: `stop JOB [--wait S]`. Prints how the job is then."""

from __future__ import annotations

import argparse
import json
import signal
import time
from pathlib import Path

from mmattn.remote.instance.job import signal_job
from mmattn.remote.instance.snapshot import MARKER, describe_job

POLL_S = 0.2


def main() -> None:
    """Send SIGTERM once, and wait."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path)
    parser.add_argument("--wait", type=float, default=0.0, help="seconds at most")
    options = parser.parse_args()
    print(MARKER + json.dumps(stop(options.job.resolve(), options.wait)))


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


if __name__ == "__main__":
    main()
