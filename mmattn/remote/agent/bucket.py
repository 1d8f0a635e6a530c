"""What is under a URI s3://BUCKET/PREFIX: for this machine's programs and for the laptop.

Of a run, that is `manifest.json`, which names files, and an object PATH@SHA256 for each of them. No
object is ever replaced by other content: a manifest is true at every moment, also when the machine
is cut off between two requests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

MANIFEST = "manifest.json"
OF_A_FILE = re.compile(r"(run|job)/.+@[0-9a-f]{64}", re.DOTALL)
THREADS = 8
ATTEMPTS = 5  # at a download that is cut; boto3 itself tries again what gets no answer


class Damaged(ValueError):
    """Something in the bucket is not what it should be."""


TROUBLE = (BotoCoreError, ClientError, Damaged, OSError)


def make_client(service: str = "s3") -> Any:
    """A client that is patient; its threads share connections."""
    config = Config(
        region_name=os.environ.get("AWS_REGION"),  # which boto3 does not read
        retries={"mode": "standard", "max_attempts": 6},
        connect_timeout=10,
        max_pool_connections=THREADS,
    )
    return boto3.client(service, config=config)


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
        """The run's manifest; None if there is none. Damaged if a path leads elsewhere."""
        if MANIFEST not in self.list():  # a machine may be refused to ask for what is not there
            return None
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + MANIFEST)
            manifest = json.loads(answer["Body"].read())
            names = {file["path"]: name_of(file) for file in manifest["files"]}
        except self.client.exceptions.NoSuchKey:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged(f"{MANIFEST} is none: {error!r}") from error
        for path, name in names.items():
            if not OF_A_FILE.fullmatch(name) or not is_inside(path):
                raise Damaged(f"{MANIFEST} names {path!r}: expected run/… or job/… and a SHA-256")
        return manifest

    def put(self, name: str, content: bytes | BinaryIO, sha256: str) -> None:
        """Upload an object of at most 5 GB; S3 refuses content that has another hash."""
        checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
        key = self.prefix + name
        self.client.put_object(Bucket=self.bucket, Key=key, Body=content, ChecksumSHA256=checksum)

    def save(self, name: str, path: Path, sha256: str | None = None) -> None:
        """Download an object to a path, where it is complete or not at all, with its time.

        It is verified by its hash, or where none is known by its ETag, if that is an MD5.
        """
        for attempt in range(ATTEMPTS):
            try:
                return self._save(name, path, sha256)
            except (BotoCoreError, Damaged):
                if attempt == ATTEMPTS - 1:
                    raise

    def _save(self, name: str, path: Path, sha256: str | None) -> None:
        answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + name)
        etag = re.fullmatch('"([0-9a-f]{32})"', answer["ETag"])  # not of an upload in parts
        plain = etag and "kms" not in answer.get("ServerSideEncryption", "")
        digest = hashlib.sha256() if sha256 else hashlib.md5(usedforsecurity=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with open(partial, "wb") as file:
            for chunk in answer["Body"].iter_chunks(1 << 20):
                digest.update(chunk)
                file.write(chunk)
        if (sha256 or plain) and digest.hexdigest() != (sha256 or etag[1]):
            raise Damaged(f"{name} arrived otherwise than it was uploaded")
        os.utime(partial, (answer["LastModified"].timestamp(),) * 2)
        os.replace(partial, path)

    def delete(self, names: Iterable[str]) -> list[str]:
        """Delete objects; returns those that S3 would not delete."""
        keys, left = [{"Key": self.prefix + name} for name in names], []
        for begin in range(0, len(keys), 1000):  # S3's most for one request
            some = {"Objects": keys[begin : begin + 1000], "Quiet": True}
            answer = self.client.delete_objects(Bucket=self.bucket, Delete=some)
            left += [one["Key"] for one in answer.get("Errors", [])]
        return left


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
