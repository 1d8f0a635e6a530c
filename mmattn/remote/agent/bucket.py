"""Files under a URI s3://BUCKET/PREFIX: for this computer, and on the machine in the run's venv.

`bucket JOB push URI [--once]` pushes the results until the job has ended, then writes its state to
`pushed` in JOB; on SIGTERM it pushes once more. `bucket JOB pull URI` downloads a run's results,
`bucket JOB data URI FOLDER` all files under a URI. Each may be restarted at any time.

A run has a `manifest.json` that lists its files, and an object PATH@SHA256 for each of them, never
overwritten with other content: the manifest is valid at any moment.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError

from .job import PUSHED, write_json
from .job import describe as describe_job
from .outbox import make_outbox, sha256

MANIFEST = "manifest.json"
OF_A_FILE = re.compile(r".+@[0-9a-f]{64}", re.DOTALL)
TAKEN = ".taken"  # in JOB: the bucket's results come from here, or were pulled
THREADS = 8
ONE_THREAD = TransferConfig(use_threads=False)  # per file
POLL_S = 15.0


class Damaged(ValueError):
    """Unexpected content in the bucket."""


TROUBLE = (Boto3Error, BotoCoreError, ClientError, Damaged, OSError)


def main() -> dict:
    """Push or pull; returns the job's state, or the count of files. Exits with 1 on failure."""
    job, order, uri, *more = sys.argv[1:]
    folder, bucket = Path(job).resolve(), Bucket(uri, boto3.client("s3"))
    if order == "push":
        return keep_pushing(folder, bucket, once=more == ["--once"])
    try:
        return pull(folder, bucket) if order == "pull" else pull_data(bucket, Path(*more))
    except TROUBLE as error:
        sys.exit(f"{order} {uri}: {error}")


def keep_pushing(folder: Path, bucket: Bucket, once: bool) -> dict:
    """Push until the job has ended, or once; returns the job's state."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # wait until a push is over
    (folder / PUSHED).unlink(missing_ok=True)
    last = once
    while True:
        try:
            job = push(folder, bucket)
            same = describe_job(folder) == job  # else another was started meanwhile
            if job["state"] in ("ended", "lost") and same and not once:
                write_json(folder / PUSHED, job)
                last = True
            if last:
                return job
        except Exception as error:  # no error may end it before the job
            print(f"push: {error!r}", file=sys.stderr, flush=True)
            if last:
                sys.exit(1)
        last = signal.sigtimedwait({signal.SIGTERM}, POLL_S) is not None


def push(folder: Path, bucket: Bucket) -> dict:
    """Push what the job in this folder has made so far; returns the job's state."""
    made, there = make_outbox(folder, ".pushing"), bucket.list()
    if MANIFEST in there and not (folder / TAKEN).exists():
        sys.exit("push: the bucket has another machine's results: `pull` first")
    (folder / TAKEN).touch()
    named = {name_of(file): file for file in made["files"]}

    def upload(name: str) -> None:
        file = named[name]
        content = (folder.with_name(".pushing") / file["path"]).read_bytes()[: file["size"]]
        bucket.put(name, content, file["sha256"])

    in_parallel(upload, named.keys() - there.keys())
    bucket.put(MANIFEST, json.dumps(made).encode())
    with suppress(*TROUBLE):  # old objects may stay
        bucket.delete(filter(OF_A_FILE.fullmatch, there.keys() - named.keys()))
    return made["job"]


def pull(folder: Path, bucket: Bucket) -> dict:
    """Download the results and the job's logs, once, except files that exist here."""
    manifest = None if (folder / TAKEN).exists() else bucket.manifest()
    paths = {}
    for file in manifest["files"] if manifest else ():
        of_job = file["path"].startswith("job/")
        path = folder.parent / ("" if of_job else "run") / file["path"]
        if not path.exists() and (path.suffix == ".log" or not of_job):
            paths[name_of(file)] = path
    in_parallel(lambda name: bucket.save(name, paths[name], name[-64:]), paths)
    (folder / TAKEN).touch()
    return {"files": len(paths)}


def pull_data(bucket: Bucket, folder: Path) -> dict:
    """Download all files under the URI, except those here with the same size and not older."""
    files = {name: one for name, one in bucket.list().items() if not name.endswith("/")}
    bad = [name for name in files if not is_inside(name)]
    if bad or not files:
        raise Damaged(f"expected paths of files, found {bad[0] if bad else 'nothing'!r}")

    def is_missing(name: str) -> bool:
        path, one = folder / name, files[name]
        here = path.stat() if path.is_file() else None
        changed = one["LastModified"].timestamp()
        return here is None or here.st_size != one["Size"] or here.st_mtime < changed

    in_parallel(lambda name: bucket.save(name, folder / name), filter(is_missing, files))
    return {"files": len(files)}


class Bucket:
    """The objects under a URI, by their names below it. Methods raise TROUBLE."""

    def __init__(self, uri: str, client: Any):
        self.bucket, _, prefix = uri[len("s3://") :].partition("/")
        self.prefix, self.client = prefix.rstrip("/") + "/", client

    def list(self) -> dict[str, dict]:
        """`Size`, `LastModified` and more of each object."""
        pages = self.client.get_paginator("list_objects_v2")
        pages = pages.paginate(Bucket=self.bucket, Prefix=self.prefix)
        listed = (one for page in pages for one in page.get("Contents", []))
        return {one["Key"][len(self.prefix) :]: one for one in listed}

    def manifest(self) -> dict | None:
        """The run's manifest; None if there is none."""
        if MANIFEST not in self.list():  # S3 may answer "forbidden" for a missing object
            return None
        answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + MANIFEST)
        try:
            return checked(json.loads(answer["Body"].read()))
        except ValueError as error:
            raise Damaged(f"{MANIFEST}: {error}") from error

    def put(self, name: str, content: bytes, digest: str | None = None) -> None:
        """Upload an object of at most 5 GB; S3 refuses content that does not match its SHA-256."""
        found = bytes.fromhex(digest) if digest else hashlib.sha256(content).digest()
        checksum, key = base64.b64encode(found).decode(), self.prefix + name
        self.client.put_object(Bucket=self.bucket, Key=key, Body=content, ChecksumSHA256=checksum)

    def save(self, name: str, path: Path, digest: str | None = None) -> None:
        """Download an object to a path, atomically; Damaged if its SHA-256 differs."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial, key = path.with_name(f".{path.name}.partial"), self.prefix + name
        self.client.download_file(self.bucket, key, str(partial), Config=ONE_THREAD)
        if digest not in (None, sha256(partial)):
            raise Damaged(f"{name} was damaged on the way")
        os.replace(partial, path)

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects."""
        keys = (self.prefix + name for name in names)
        in_parallel(lambda key: self.client.delete_object(Bucket=self.bucket, Key=key), keys)


def checked(manifest: dict) -> dict:
    """The manifest; Damaged if it is invalid, or has paths outside of the results' folder."""
    try:
        bad = [one["path"] for one in manifest["files"] if not is_inside(one["path"])]
    except (KeyError, TypeError) as error:
        raise Damaged(f"expected a list of results, found none: {error!r}") from error
    if bad:
        raise Damaged(f"expected paths of results, found {bad[0]!r}")
    return manifest


def name_of(file: dict) -> str:
    """The name of a file's object."""
    return f"{file['path']}@{file['sha256']}"


def is_inside(name: str) -> bool:
    """Whether a name, as a relative path, stays inside its folder.

    >>> [is_inside(name) for name in ("a/b", "../b", "a/../b", "/b", "a//b", ".", "a/")]
    [True, False, False, False, False, False, False]
    """
    path = PurePosixPath(name)
    elsewhere = path.is_absolute() or ".." in path.parts or not path.parts
    return str(path) == name and not elsewhere and "\0" not in name


def in_parallel(function: Callable[[Any], object], items: Iterable) -> None:
    """Call a function for each item; after an error no more are started."""
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(function, items):
            pass
