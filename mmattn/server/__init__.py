"""A run behind an HTTP port of this machine: `mmattn serve` and `mmattn live` (extra [live])."""

from contextlib import AbstractContextManager

from mmattn.errors import explain_missing


def explain_missing_server() -> AbstractContextManager[None]:
    """Turn the lack of a library of the extra [live] into a message that says what to install."""
    return explain_missing("a server needs", "live")
