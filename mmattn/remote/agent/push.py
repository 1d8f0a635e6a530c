"""Keeps the results in a bucket, as they are made: `push JOB URI [--once]`, in the run's venv.

Ends when the job has and all of it is there: then `pushed` in JOB tells how the job ended. SIGTERM
lets it look once more and end.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import signal
import sys
import time
from pathlib import Path

from .bucket import MANIFEST, OF_A_FILE, TROUBLE, Bucket, in_parallel, make_client, name_of
from .job import PUSHED, write_json
from .job import describe as describe_job
from .outbox import Busy, make_outbox

POLL_S = 15.0
TAKEN = ".taken"  # in JOB: what is in the bucket comes from here, or was brought here


def main() -> dict:
    """Push until the job has ended, or once; returns how the job is. Exits with 1 if it failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path)
    parser.add_argument("uri")
    parser.add_argument("--once", action="store_true")
    options = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # it waits until a look is over
    folder, bucket = options.job.resolve(), Bucket(options.uri, make_client())
    (folder / PUSHED).unlink(missing_ok=True)
    job, last = None, options.once
    while True:
        try:
            with open(folder / ".push", "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                job = push(folder, bucket)
            same = describe_job(folder) == job  # else another has been started meanwhile
            if job["state"] in ("ended", "lost") and same and not options.once:
                write_json(folder / PUSHED, job)
                return job
        except (*TROUBLE, Busy) as error:
            job = None
            print(f"push: {error}", file=sys.stderr, flush=True)
        if last:
            return job or sys.exit(1)
        last = signal.sigtimedwait({signal.SIGTERM}, POLL_S) is not None


def push(folder: Path, bucket: Bucket) -> dict:
    """Have in the bucket what the job in this folder has made until now; returns how the job is."""
    job = describe_job(folder)  # before the outbox: then what an ended job has made is all in it
    made = make_outbox(folder.parent, ".pushing")
    there, root = bucket.list(), folder.parent / made["root"]
    if MANIFEST in there and not (folder / TAKEN).exists():
        sys.exit("push: another machine's results are there: `pull` first")
    (folder / TAKEN).touch()
    named = {name_of(file): file for file in made["files"]}

    def upload(name: str) -> None:
        file = named[name]
        with open(root / file["path"], "rb") as content:
            body = content.read(file["size"]) if file["growing"] else content
            bucket.put(name, body, file["sha256"])

    in_parallel(upload, named.keys() - there.keys())
    manifest = json.dumps({**made, "job": job, "time": time.time()}).encode()
    bucket.put(MANIFEST, manifest, hashlib.sha256(manifest).hexdigest())
    left = bucket.delete(filter(OF_A_FILE.fullmatch, there.keys() - named.keys()))
    if left:
        print(f"push: {len(left)} old files stay, e.g. {left[0]}", file=sys.stderr, flush=True)
    return job
