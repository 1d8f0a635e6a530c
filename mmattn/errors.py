"""Errors that a user can fix: shown as one message, without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input or a bad option; the message gives the expected and the actual value."""

    exit_code = 2
    label = "error"


class Diverged(UserError):
    """Training diverged: a number is not finite."""

    exit_code = 3


class Stopped(UserError):
    """SIGTERM came and the run was saved; `--resume` continues it (75 is EX_TEMPFAIL)."""

    exit_code = 75
    label = "stopped"


class LostProcess(UserError):
    """Another process of the training is gone (76 is EX_PROTOCOL); `--resume` continues it."""

    exit_code = 76
    label = "lost"


class Incomplete(UserError):
    """Some clips could not be used; all others were processed."""

    exit_code = 1
    label = "incomplete"


class Misaligned(UserError):
    """Audio and video of some clips are out of sync."""

    exit_code = 4
    label = "misaligned"


def expect(name: str, value: object, kind: type | tuple[type, ...], expected: str) -> None:
    """Raise UserError unless an argument of the library's functions is of a class."""
    if not isinstance(value, kind):
        raise UserError(f"{name}: expected {expected}, found {type(value).__name__}")


@contextmanager
def explain_missing(what: str, extra: str) -> Iterator[None]:
    """Turn a missing library into a message that names the extra that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"{what} the library {error.name}: pip install 'mmattn[{extra}]'"
        ) from error
