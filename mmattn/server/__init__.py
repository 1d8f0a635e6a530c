"""A run served on an HTTP port of this machine: `mmattn serve`, `mmattn live` (extra [live])."""

from contextlib import AbstractContextManager

from mmattn.errors import explain_missing


def explain_missing_server() -> AbstractContextManager[None]:
    """Turn a missing library of the extra [live] into a message that says what to install."""
    return explain_missing("a server needs", "live")
