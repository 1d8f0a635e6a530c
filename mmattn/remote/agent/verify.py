"""Compares files on the machine with a manifest: `verify JOB` tells the paths that differ.

`manifest.json` in the run's folder maps each path below it to the sha256 of its content.
"""

from __future__ import annotations

import hashlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def main() -> dict[str, list[str]]:
    """Returns the paths that differ, as "wrong"."""
    base = Path(sys.argv[1]).resolve().parent
    manifest = json.loads((base / "manifest.json").read_text(encoding="utf-8"))
    with ThreadPoolExecutor() as pool:
        found = pool.map(sha256, (base / path for path in manifest))
        wrong = [path for path, digest in zip(manifest, found) if manifest[path] != digest]
    return {"wrong": wrong}


def sha256(path: Path, size: int | None = None) -> str | None:
    """The digest of a file's content, or its first bytes, in hexadecimal; None without a file."""
    digest = hashlib.sha256()
    left = sys.maxsize if size is None else size
    try:
        with open(path, "rb") as file:
            while chunk := file.read(min(left, 1 << 20)):
                digest.update(chunk)
                left -= len(chunk)
    except OSError:
        return None
    return digest.hexdigest()
