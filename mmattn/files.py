"""Files that are either complete or absent, and a message for a full disk."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmattn.errors import UserError

CACHE = Path("~/.cache/mmattn")


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: a reader, even after a crash, sees the old or the new one.

    Bytes of a file name that are not UTF-8 are escaped as by `printable`.
    """
    write_bytes(path, printable(text).encode())


def printable(text: str) -> str:
    r"""A text with every lone surrogate escaped; a file name that is not UTF-8 has them.

    >>> print(printable(os.fsdecode(b"J\xfcrgen")))
    J\udcfcrgen
    """
    return text.encode(errors="backslashreplace").decode()


def write_bytes(path: Path, content: bytes) -> None:
    """`write_text` for bytes."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.filename == str(partial):  # of which the user knows nothing
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def check_folder(folder: Path) -> None:
    """Raise UserError unless files can be made in a folder: said before the work, not after it."""
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: expected a folder in which files can be written")


def check_folder_place(option: str, path: Path) -> None:
    """Raise UserError if there is a file where an option asks for a folder, new or not."""
    if path.exists() and not path.is_dir():
        raise UserError(f"--{option} {path}: expected a folder, it is a file")


def check_place(option: str, path: Path) -> None:
    """Raise UserError unless a file can be written there, as an option asks for."""
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--{option} {path}: expected a file in an existing folder")
    check_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON; a number that is not finite raises ValueError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; UserError if the file is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected a JSON file: {error}") from error


@contextmanager
def explain_full_disk(what: str) -> Iterator[None]:
    """Turn "no space left" from any library into one clear message."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error):
            raise UserError(f"no space left on the disk while writing {what}") from error
        raise
