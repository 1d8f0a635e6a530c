"""Train on EC2, or on any machine with SSH: `fab --list`, `fab deploy --help`."""

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fabric import Connection, task

from mmattn.cli import end_process_after
from mmattn.errors import UserError
from mmattn.remote.runs import DEFAULTS, OPTIONS, Run, flag

HERE = Path(__file__).parent
RUN = "name of the run (default: the latest that was not torn down)"


def order(iterable: Sequence[str] = (), **about: str) -> Callable:
    """A Fabric task whose errors are one message, and whose result is the exit code.

    `iterable` are the options that may be repeated, `about` is the help for each, but for --run.
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def work(context, *args, **kwargs):
            if context.config.run.dry or isinstance(context, Connection):
                sys.exit("-R, -H: expected `fab deploy` with --dry-run, --host; nothing was done")
            if HERE in Path.cwd().parents:  # .fab and the code are there
                sys.exit(f"expected to be called in {HERE}; nothing was done")

            def call():
                if code := function(context, *args, **kwargs):
                    sys.exit(code)

            end_process_after(call)

        run = {"run": RUN} if "run" in inspect.signature(function).parameters else {}
        options = {"help": run | about, "iterable": iterable, "auto_shortflags": False}
        return task(**options)(work)

    return decorate


def _default(name: str) -> str | bool | list:
    """What Fabric has of an option that is not given; "" for none."""
    value = getattr(DEFAULTS, name)
    return value if name in ("data", "spot") else f"{value or ''}".removesuffix(".0")


ASKED = {name: flag(name).replace("-", "_") for name in OPTIONS}  # as parameters of `deploy`
HELP = {
    ASKED[name]: text + (f" (default: {_default(name)})" if _default(name) else "")
    for name, text in OPTIONS.items()
}


def _with_options(function: Callable) -> Callable:
    """A function that has, for Fabric, a parameter for each of OPTIONS."""
    context, *own, _ = inspect.signature(function).parameters.values()
    asked = [
        inspect.Parameter(parameter, context.kind, default=_default(name))
        for name, parameter in ASKED.items()
    ]
    function.__signature__ = inspect.Signature([context, *asked, *own])
    return function


@order(["data"], **HELP, yes="do not ask", dry_run="show the plan and its cost, and stop")
@_with_options
def deploy(context, yes=False, dry_run=False, **asked):
    """Make a machine, send code and data, start the training; called again, it continues."""
    from mmattn.remote import deploy as remote
    from mmattn.remote.plan import new_run

    if "--data" in sys.argv and not asked["data"]:  # Fabric takes this for no data
        raise UserError("--data: expected a folder")
    given = {name: asked[parameter] for name, parameter in ASKED.items()}
    remote.deploy(new_run(**given), yes, dry_run)


@order(quick="one report, then stop", follow="the job's log, byte for byte, instead of the screen")
def monitor(context, run="", quick=False, follow=False):
    """Show state, curves, machine, cost and log until the job ends; exit with its code."""
    from mmattn.remote.monitor import monitor as watch

    return watch(Run.find(run), quick, follow)


@order(
    watch="fetch whatever comes, until the job has ended",
    then_teardown="when all is here, end the machine and remove all that was made for it",
)
def fetch(context, run="", watch=False, then_teardown=False):
    """Bring checkpoints, log, metrics and plots here, verified; at any time."""
    from mmattn.remote.fetch import fetch as bring
    from mmattn.remote.teardown import teardown as remove

    found = Run.find(run)
    bring(found, watch)
    if then_teardown:
        remove(found.name, None, force=False)


@order(
    region="where a run is that this computer does not know",
    force="even if the job runs or its results are not fetched",
)
def teardown(context, run="", region="", force=False):
    """End the machine and remove all that was made for it; fails if anything is left."""
    from mmattn.remote.teardown import teardown as remove

    remove(run or None, region or None, force)


@order(region="another to look in, besides those of the runs in .fab")
def ls(context, region=""):
    """List your runs: machines by their tags, cost so far, what was fetched."""
    from mmattn.remote.teardown import list_runs

    list_runs(region or None)


@order()
def stop(context, run=""):
    """Let the job save and end; without --results the machine stays for a while."""
    from mmattn.remote import jobs

    jobs.stop(Run.find(run))


@order(yes="do not ask before a new machine is made")
def resume(context, run="", yes=False):
    """Continue a stopped job; if its machine is lost, on a new one from disk, bucket or fetched."""
    from mmattn.remote import deploy as remote

    remote.resume(Run.find(run), yes)


@order()
def ssh(context, run=""):
    """Open a shell on the machine."""
    Run.find(run).machine().shell()
