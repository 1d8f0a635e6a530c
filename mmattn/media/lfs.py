"""Pointers that git-lfs leaves in place of files that were not fetched."""

from pathlib import Path

_FIRST_LINE = b"version https://git-lfs.github.com/spec/v1"
POINTER = "a git-lfs pointer, not a clip; fetch the clips: git lfs pull, in their repository"


def is_pointer(path: Path) -> bool:
    """Whether a file is a pointer, as the specification of git-lfs defines its first line."""
    with open(path, "rb") as file:
        return file.read(len(_FIRST_LINE)) == _FIRST_LINE
