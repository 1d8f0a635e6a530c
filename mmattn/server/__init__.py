"""A run behind an HTTP port of this machine: `mmattn serve` and `mmattn live` (extra [live])."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmattn.errors import UserError


@contextmanager
def explain_missing_server() -> Iterator[None]:
    """Turn the lack of a library of the extra [live] into a message that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"a server needs the library {error.name}: pip install 'mmattn[live]'"
        ) from error
