"""Errors that a user can mend: shown as one message, without a traceback."""


class UserError(Exception):
    """Bad input or a bad option; the message says what was expected and what came."""

    exit_code = 2
    label = "error"


class Diverged(UserError):
    """Training met a number that is not finite."""

    exit_code = 3


class Stopped(UserError):
    """SIGTERM came and the run was saved; `--resume` continues it (75 is EX_TEMPFAIL)."""

    exit_code = 75
    label = "stopped"
