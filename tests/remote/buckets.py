"""A bucket with a run's results in it, and what must always hold of them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import boto3
from moto import backends
from moto.core import DEFAULT_ACCOUNT_ID

from mmattn.remote.agent.bucket import Bucket

NAME = "some-bucket"
URI = f"s3://{NAME}/trainings/one"
PREFIX = "trainings/one/"
OTHERS = {  # that nobody may touch
    "trainings/one.txt": b"beside",
    "trainings/one2/a@" + "0" * 64: b"of another run",
    "trainings/one/notes.txt": b"the user's own",
    "run/a": b"of another prefix",
}


def here(uri: str = URI) -> Bucket:
    """The bucket as the machine's programs see it."""
    return Bucket(uri, boto3.client("s3"))


class Store:
    """The bucket as its owner sees it, whose requests meet no fault."""

    def __init__(self, client: Any):
        self.client, self.name = client, NAME
        client.create_bucket(Bucket=NAME)
        for key, content in OTHERS.items():
            self.write(key, content)

    def write(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=NAME, Key=key, Body=content)

    def read(self) -> dict[str, bytes]:
        """Every object by its key; not by requests, which take long where there are many."""
        keys = backends.get_backend("s3")[DEFAULT_ACCOUNT_ID]["aws"].buckets[NAME].keys
        return {key: keys[key].value for key in list(keys) if key in keys}

    def results(self) -> dict[str, bytes] | None:
        """What the manifest promises, having been looked at; None without a manifest."""
        objects = self.read()
        assert OTHERS.items() <= objects.items()
        if PREFIX + "manifest.json" not in objects:
            return None
        found = {}
        for file in json.loads(objects[PREFIX + "manifest.json"])["files"]:
            content = objects[f"{PREFIX}{file['path']}@{file['sha256']}"]
            assert len(content) == file["size"]
            assert hashlib.sha256(content).hexdigest() == file["sha256"]
            found[file["path"]] = content
        return found

    def leftovers(self) -> set[str]:
        """Objects of the run that its manifest does not name."""
        named = {f"{PREFIX}{path}@{sha256(content)}" for path, content in self.results().items()}
        return self.read().keys() - named - OTHERS.keys() - {PREFIX + "manifest.json"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def files_in(base: Path, *tops: str) -> dict[str, bytes]:
    """Content by path of what is below some folders in base."""
    paths = [path for top in tops for path in (base / top).rglob("*") if path.is_file()]
    return {path.relative_to(base).as_posix(): path.read_bytes() for path in paths}
