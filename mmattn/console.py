"""What the user sees: messages, tables and progress bars, on the screen and in the run's log."""

import io
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

LOG = logging.getLogger("mmattn")
WIDTH = 100
SHOWN = 20  # rows of a table of faults or notes, which may have thousands
PLAIN_INTERVAL = 10.0  # seconds between progress lines without a terminal


class _Console(Console):
    def on_broken_pipe(self):
        """Raise again, as `print` does, instead of an exit with code 1."""
        raise


screen = _Console(file=sys.stdout, width=WIDTH if not sys.stdout.isatty() else None, soft_wrap=True)


class _ScreenHandler(logging.Handler):
    """Prints through rich, so that a message does not tear a progress bar."""

    def emit(self, record):
        # On a terminal, wrap lines between words; elsewhere do not wrap.
        soft = not screen.is_terminal
        message = self.format(record)
        screen.print(message, markup=False, emoji=False, highlight=False, soft_wrap=soft)


class _LogFile(logging.FileHandler):
    """Raises if the log cannot be written, instead of printing a traceback."""

    def handleError(self, record):
        raise


def start_logging() -> None:
    """Send messages to the screen, once per process. Messages of libraries are dropped."""
    if not _is_command():
        LOG.addHandler(_ScreenHandler())
        LOG.setLevel(logging.INFO)
        LOG.propagate = False
        if isinstance(sys.stdout, io.TextIOWrapper):  # a stream with an encoding
            sys.stdout.reconfigure(errors="backslashreplace")


def _is_command() -> bool:
    """Whether messages go to the screen: not in a notebook."""
    return any(isinstance(handler, _ScreenHandler) for handler in LOG.handlers)


def be_quiet() -> None:
    """Show nothing on the screen, as in a worker process; logs are still written."""
    screen.quiet = True
    start_logging()


def keep_libraries_off_the_screen() -> None:
    """Discard what C++ libraries print on standard output; `screen` stays.

    Also discard the traceback that Orbax logs before it raises the error.
    """
    import absl.logging  # noqa: F401  (it would set the level itself when Orbax imports it)

    logging.getLogger("absl").setLevel(logging.CRITICAL)
    sys.stdout.flush()
    screen.file = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append messages, with the time, to `path`, and the exception that ends the block, if any."""
    handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    LOG.addHandler(handler)
    try:
        yield
    except BaseException as error:
        note(repr(error))
        raise
    finally:
        LOG.removeHandler(handler)
        handler.close()


def counted(number: int, noun: str) -> str:
    """A number of things: "1 clip", "2 clips"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def say(message: str) -> None:
    """One message, on the screen and in the log."""
    LOG.info(message)


def warn(message: str) -> None:
    """One message, as `say`; in a library, which prints nothing, as a Python warning."""
    say(message)
    if not _is_command():
        warnings.warn(message, stacklevel=2)


def note(message: str) -> None:
    """One message, only in the log."""
    record = LOG.makeRecord(LOG.name, logging.INFO, "", 0, message, (), None)
    for handler in LOG.handlers:
        if isinstance(handler, _LogFile):
            with suppress(OSError):  # a full disk may be what it reports
                handler.emit(record)


def complain(message: str) -> None:
    """One message on standard error."""
    console = Console(stderr=True)
    soft = not console.is_terminal
    console.print(message, markup=False, emoji=False, highlight=False, soft_wrap=soft)


def say_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    left: bool = False,
    most: int | None = None,
) -> None:
    """A title and a table, at most 100 wide, of the first `most` rows; the title says so.

    The first column is left-aligned, others right-aligned, unless `left`: words, not numbers.
    """
    rows = list(rows)
    if most and len(rows) > most:
        title, rows = f"{title}, the first {most}", rows[:most]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.show_header = any(columns)
    for number, column in enumerate(columns):
        to_right = number > 0 and not left
        table.add_column(column, justify="right" if to_right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    text = io.StringIO()
    Console(width=min(WIDTH, screen.width), file=text).print(Text(title), table)
    say("\n".join(line.rstrip() for line in text.getvalue().splitlines()))


@contextmanager
def progress(title: str, total: int, unit: str = "clips") -> Iterator[Callable[[float], None]]:
    """A bar with rate and time left, or a plain line every ten seconds without a terminal.

    Yields `advance(count)`, to be called as work gets done.
    """
    if screen.is_terminal and _is_command():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            _Rate(unit),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=screen, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda count: bar.advance(task, count)
        return
    yield _PlainProgress(title, total, unit).advance


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show what the process waits for, with a spinner on a terminal."""
    say(what)
    if screen.is_terminal and _is_command():
        with screen.status(what):
            yield
    else:
        yield


class _Rate(TextColumn):
    def __init__(self, unit: str):
        super().__init__("")
        self.unit = unit

    def render(self, task):
        return _rate(task.speed, self.unit) if task.speed else ""


class _PlainProgress:
    def __init__(self, title: str, total: int, unit: str):
        self.title, self.total, self.unit, self.done = title, total, unit, 0.0
        self.start = self.shown = time.monotonic()

    def advance(self, count: float) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.shown >= PLAIN_INTERVAL:
            self.shown = now
            text = f"{self.title}: {self.done:.0f}/{self.total} {self.unit}"
            if rate := self.done / (now - self.start):
                left = max(self.total - self.done, 0.0) / rate
                text += f", {_rate(rate, self.unit)}, {left:.0f} s left"
            say(text)


def _rate(rate: float, unit: str) -> str:
    return f"{rate:.0f} {unit}/s" if rate >= 1 else f"{60 * rate:.1f} {unit}/min"
