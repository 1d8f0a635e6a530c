"""The digest of a file."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path


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
