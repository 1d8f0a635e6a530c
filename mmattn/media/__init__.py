"""From clips of audio and video to feature files: download, decode, extract, align."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmattn.errors import UserError

SUFFIXES = (".mp4", ".flv", ".avi", ".mkv", ".mov", ".webm", ".wav", ".flac")


@contextmanager
def explain_missing_library() -> Iterator[None]:
    """Turn the lack of a library for raw clips into a message that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"raw clips need the library {error.name}: pip install 'mmattn[media]'"
        ) from error


def is_feature_file(path: Path) -> bool:
    """Whether a path names a feature file, not a raw clip."""
    return path.suffix.lower() == ".npz"
