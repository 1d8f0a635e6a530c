"""The command line: `python -m experiments.NAME` and `mmattn COMMAND`.

Nothing heavy is imported before the options are read, so that `--help` is quick.
"""

import os
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Annotated, Any, Union

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

from mmattn import __version__
from mmattn.config import ExperimentConfig
from mmattn.console import complain, start_logging
from mmattn.errors import UserError

OPTIONS = ConstructorRegistry()
FILLED = "filled"  # marks what the rule below has already handled


@OPTIONS.struct_rule
def _filled(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Options as tyro makes them, but without the source's line breaks in their help."""
    if FILLED in info.markers:
        return None
    marked = replace(info, markers=(*info.markers, FILLED))
    if not isinstance(spec := ConstructorRegistry.get_struct_spec(marked), StructConstructorSpec):
        return None
    fields = [replace(one, helptext=partial(_fill, one.helptext)) for one in spec.fields]
    return replace(spec, fields=tuple(fields))


def _fill(text: str | Callable[[], str | None] | None) -> str | None:
    """A help text on one line."""
    text = text() if callable(text) else text
    return text and " ".join(text.split())


def _wrap(text: str | None) -> str | None:
    """A description, wrapped: tyro joins lines to one, unless they are indented."""
    width = min(100, shutil.get_terminal_size().columns)
    return text and "\n\n".join(
        part if "\n " in part else textwrap.fill(part, width, subsequent_indent=" ")
        for part in text.split("\n\n")
    )


def experiment(default: ExperimentConfig, description: str | None) -> None:
    """The command of an experiment: read options, train, evaluate, end the process."""

    def work():
        with _cut_short(), OPTIONS:
            config = parse_experiment(default, description)
        config.check()  # before the imports, which take seconds
        from mmattn.run.experiment import run_experiment

        run_experiment(config, default)

    end_process_after(work, _leave)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C as usual, but in an import, which C++ libraries may answer with a crash: there is
    nothing yet to be cleaned up."""
    while frame:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os.write(2, b"interrupted\n")  # not by rich, whose imports it may be in
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


def _leave(code: int) -> None:
    if processes := sys.modules.get("mmattn.train.processes"):  # else there are none yet
        processes.leave(code)
    sys.exit(code)


@contextmanager
def _cut_short() -> Iterator[None]:
    """While options are parsed, `--help | head` ends the process without an error."""
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    yield  # --help ends the process here
    signal.signal(signal.SIGPIPE, before)


def parse_experiment(
    default: ExperimentConfig, description: str | None, words: Sequence[str] | None = None
) -> ExperimentConfig:
    """An experiment's config from its options; ends the process if they are wrong.

    Args:
        default: the experiment's own config.
        description: for --help.
        words: the options; by default those of this process.
    """
    prog = f"python -m experiments.{default.name}"
    config = tyro.cli(
        ExperimentConfig, description=_wrap(description), default=default, prog=prog, args=words
    )
    # Drop the experiment's own settings for modalities that the user left out.
    for (part, name, of), (*_, own) in zip(
        config.by_modality(), default.by_modality(), strict=True
    ):
        asked = {
            modality: value
            for modality, value in of.items()
            if modality in config.streams or own.get(modality) != value
        }
        config = replace(config, **{part: replace(getattr(config, part), **{name: asked})})
    return config


def main() -> None:
    """The `mmattn` command: everything but experiments."""
    from mmattn.commands import COMMANDS

    if sys.argv[1:] == ["--version"]:
        return print(__version__)
    if sys.argv[1:2] == ["launch"] and "--" not in sys.argv:
        sys.argv[2:] = _part_launch(sys.argv[2:])
    named = [Annotated[one, tyro.conf.subcommand(one.__name__.lower())] for one in COMMANDS]
    run_command(
        Union[tuple(named)],  # noqa: UP007
        prog="mmattn",
        description="Prepare data; evaluate and use runs. Training: python -m experiments.no_aug.\n"
        "Install an extra, such as [media], with: pip install 'mmattn[media]'. Version: --version",
    )


def _part_launch(words: list[str]) -> list[str]:
    """The words after `mmattn launch` with -- before the experiment, whose options are its own.

    >>> _part_launch(["experiments.no_aug", "-n", "4", "--seed", "1"])
    ['-n', '4', '--', 'experiments.no_aug', '--seed', '1']
    """
    starts = (n for n, word in enumerate(words) if word.startswith("experiments."))
    start = next(starts, len(words))
    own, command = words[:start], words[start:]
    if "-n" in command:  # as tyro's usage line has it; no experiment has such an option
        place = command.index("-n")
        own += command[place : place + 2]
        del command[place : place + 2]
    return [*own, "--", *command]


def run_command(command: Any, prog: str, description: str | None) -> None:
    """Build a command from its options, and call it without arguments."""

    def work():
        with _cut_short(), OPTIONS:
            built = tyro.cli(command, prog=prog, description=_wrap(description))
        built()
        # While Python ends, which takes half a second, an interrupt would kill it: a failure.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, _interrupt)
    end_process_after(work)


def end_process_after(work: Callable[[], Any], leave: Callable[[int], Any] = sys.exit) -> None:
    """Do the work; a user error is shown as one message and sets the exit code.

    Args:
        work: what to do.
        leave: ends the process with an exit code if the work fails.
    """
    start_logging()
    sys.unraisablehook = _show_dropped
    try:
        work()
        sys.stdout.flush()
        return
    except BrokenPipeError:  # as `… | head` does: the reader has left
        code = 128 + signal.SIGPIPE
    except UserError as error:
        complain(f"{error.label}: {error}")
        code = error.exit_code
    except OSError as error:
        complain(f"error: {error.filename or 'a file'}: {error.strerror or error}")
        code = UserError.exit_code
    except KeyboardInterrupt as interrupt:
        complain("; ".join(["interrupted", *map(str, interrupt.args)]))
        code = 130
    except Exception:
        sys.excepthook(*sys.exc_info())
        code = 1
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # Python would print an exception when it flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    leave(code)


def _show_dropped(dropped: Any, show: Callable[[Any], None] = sys.__unraisablehook__) -> None:
    """Print what could not be raised, with two exceptions.

    An interrupt in a callback of the garbage collector, which JAX has, comes again. And TensorStore
    calls the closed event loop if an interrupt ended the reading of a checkpoint.
    """
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        main = threading.main_thread().ident  # so that what it waits in, such as a sleep, ends
        threading.Timer(0.01, signal.pthread_kill, [main, signal.SIGINT]).start()
    elif str(dropped.exc_value) != "Event loop is closed":
        show(dropped)
