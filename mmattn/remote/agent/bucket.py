"""What is under a URI s3://BUCKET/PREFIX: for the laptop, and on the machine in the run's venv.

`bucket JOB push URI [--once]` keeps the results there until the job has ended and `pushed` in JOB
tells how; after SIGTERM it looks once more. `bucket JOB pull URI` brings a run's results here,
`bucket JOB data URI FOLDER` all files under a URI. Each may be started again at any time.

Of a run, there is `manifest.json`, which names files, and an object PATH@SHA256 for each of them,
never replaced by other content: a manifest is true at every moment.
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
TAKEN = ".taken"  # in JOB: what is in the bucket comes from here, or was brought here
THREADS = 8
ONE_THREAD = TransferConfig(use_threads=False)  # a file
POLL_S = 15.0


class Damaged(ValueError):
    """Something in the bucket is not what it should be."""


TROUBLE = (Boto3Error, BotoCoreError, ClientError, Damaged, OSError)


def main() -> dict:
    """Push or pull; returns how the job is, or what was looked for. Exits with 1 if it failed."""
    job, order, uri, *more = sys.argv[1:]
    folder, bucket = Path(job).resolve(), Bucket(uri, boto3.client("s3"))
    if order == "push":
        return keep_pushing(folder, bucket, once=more == ["--once"])
    try:
        return pull(folder, bucket) if order == "pull" else pull_data(bucket, Path(*more))
    except TROUBLE as error:
        sys.exit(f"{order} {uri}: {error}")


def keep_pushing(folder: Path, bucket: Bucket, once: bool) -> dict:
    """Push until the job has ended, or once; returns how the job is."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # it waits until a look is over
    (folder / PUSHED).unlink(missing_ok=True)
    last = once
    while True:
        try:
            job = push(folder, bucket)
            same = describe_job(folder) == job  # else another has been started meanwhile
            if job["state"] in ("ended", "lost") and same and not once:
                write_json(folder / PUSHED, job)
                last = True
            if last:
                return job
        except Exception as error:  # whatever it is: it must not end before the job
            print(f"push: {error!r}", file=sys.stderr, flush=True)
            if last:
                sys.exit(1)
        last = signal.sigtimedwait({signal.SIGTERM}, POLL_S) is not None


def push(folder: Path, bucket: Bucket) -> dict:
    """Have in the bucket what the job in this folder has made until now; returns how the job is."""
    made, there = make_outbox(folder, ".pushing"), bucket.list()
    if MANIFEST in there and not (folder / TAKEN).exists():
        sys.exit("push: another machine's results are there: `pull` first")
    (folder / TAKEN).touch()
    named = {name_of(file): file for file in made["files"]}

    def upload(name: str) -> None:
        file = named[name]
        content = (folder.with_name(".pushing") / file["path"]).read_bytes()[: file["size"]]
        bucket.put(name, content, file["sha256"])

    in_parallel(upload, named.keys() - there.keys())
    bucket.put(MANIFEST, json.dumps(made).encode())
    with suppress(*TROUBLE):  # what is old may stay
        bucket.delete(filter(OF_A_FILE.fullmatch, there.keys() - named.keys()))
    return made["job"]


def pull(folder: Path, bucket: Bucket) -> dict:
    """The results, and the job's logs, once: what is made here is newer. A file here stays."""
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
    """All files under the URI, but for those that are here in the same size and not older."""
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
    """The objects under a URI, by their names below it. Every method raises TROUBLE."""

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
        if MANIFEST not in self.list():  # a machine may be refused to ask for what is not there
            return None
        answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + MANIFEST)
        try:
            return checked(json.loads(answer["Body"].read()))
        except ValueError as error:
            raise Damaged(f"{MANIFEST}: {error}") from error

    def put(self, name: str, content: bytes, digest: str | None = None) -> None:
        """Upload an object of at most 5 GB; S3 refuses content with another SHA-256 than told."""
        found = bytes.fromhex(digest) if digest else hashlib.sha256(content).digest()
        checksum, key = base64.b64encode(found).decode(), self.prefix + name
        self.client.put_object(Bucket=self.bucket, Key=key, Body=content, ChecksumSHA256=checksum)

    def save(self, name: str, path: Path, digest: str | None = None) -> None:
        """Download an object to a path, where it is complete, with this SHA-256, or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial, key = path.with_name(f".{path.name}.partial"), self.prefix + name
        self.client.download_file(self.bucket, key, str(partial), Config=ONE_THREAD)
        if digest not in (None, sha256(partial)):
            raise Damaged(f"{name} arrived otherwise than it was uploaded")
        os.replace(partial, path)

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects."""
        keys = (self.prefix + name for name in names)
        in_parallel(lambda key: self.client.delete_object(Bucket=self.bucket, Key=key), keys)


def checked(manifest: dict) -> dict:
    """The manifest; Damaged if it is none, or leads out of the folder of the results."""
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
    """Whether a name, as a path in a folder, is that of a file in the folder.

    >>> [is_inside(name) for name in ("a/b", "../b", "a/../b", "/b", "a//b", ".", "a/")]
    [True, False, False, False, False, False, False]
    """
    path = PurePosixPath(name)
    elsewhere = path.is_absolute() or ".." in path.parts or not path.parts
    return str(path) == name and not elsewhere and "\0" not in name


def in_parallel(function: Callable[[Any], object], items: Iterable) -> None:
    """Call a function for each; after an error no further ones are begun."""
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(function, items):
            pass
