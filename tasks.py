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

    `iterable` names the options that may be repeated; `about` has each option's help, except --run.
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def work(context, *args, **kwargs):
            if context.config.run.dry or isinstance(context, Connection):
                sys.exit("-R, -H: use --dry-run, --host of `fab deploy` instead; nothing was done")
            if HERE in Path.cwd().parents:  # .fab and the code are in HERE
                sys.exit(f"run fab in {HERE}; nothing was done")

            def call():
                if code := function(context, *args, **kwargs):
                    sys.exit(code)

            end_process_after(call)

        run = {"run": RUN} if "run" in inspect.signature(function).parameters else {}
        options = {"help": run | about, "iterable": iterable, "auto_shortflags": False}
        return task(**options)(work)

    return decorate


def _default(name: str) -> str | bool | list:
    """Fabric's default of an option; "" for none."""
    value = getattr(DEFAULTS, name)
    return value if name in ("data", "spot") else f"{value or ''}".removesuffix(".0")


ASKED = {name: flag(name).replace("-", "_") for name in OPTIONS}  # as parameters of `deploy`
HELP = {
    ASKED[name]: text + (f" (default: {_default(name)})" if _default(name) else "")
    for name, text in OPTIONS.items()
}


def _with_options(function: Callable) -> Callable:
    """Give a function, for Fabric, a parameter for each of OPTIONS."""
    context, *own, _ = inspect.signature(function).parameters.values()
    asked = [
        inspect.Parameter(parameter, context.kind, default=_default(name))
        for name, parameter in ASKED.items()
    ]
    function.__signature__ = inspect.Signature([context, *asked, *own])
    return function


@order(["data"], **HELP, yes="do not ask", dry_run="show the plan and its cost, and exit")
@_with_options
def deploy(context, yes=False, dry_run=False, **asked):
    """Start a machine, send code and data, start training; run it again to continue."""
    from mmattn.remote import deploy as remote
    from mmattn.remote.plan import new_run

    if "--data" in sys.argv and not asked["data"]:  # Fabric takes this for no data
        raise UserError("--data: expected a folder")
    given = {name: asked[parameter] for name, parameter in ASKED.items()}
    remote.deploy(new_run(**given), yes, dry_run)


@order(quick="print one report and exit", follow="copy the job's log instead of the screen")
def monitor(context, run="", quick=False, follow=False):
    """Show state, curves, machine, cost and log until the job ends; exit with its code."""
    from mmattn.remote.monitor import monitor as watch

    return watch(Run.find(run), quick, follow)


@order(
    watch="keep fetching until the job has ended",
    then_teardown="after that, run `fab teardown`",
)
def fetch(context, run="", watch=False, then_teardown=False):
    """Download and verify checkpoints, log, metrics and plots, at any time."""
    from mmattn.remote.fetch import fetch as bring
    from mmattn.remote.teardown import teardown as remove

    found = Run.find(run)
    bring(found, watch)
    if then_teardown:
        remove(found.name, None, force=False)


@order(
    region="region of a run that this computer does not know",
    force="even if the job is running or its results are not fetched",
)
def teardown(context, run="", region="", force=False):
    """Terminate the machine and delete all that was made for it; fails if anything is left."""
    from mmattn.remote.teardown import teardown as remove

    remove(run or None, region or None, force)


@order(region="also look in this region, besides those of the runs in .fab")
def ls(context, region=""):
    """List your runs: machines (found by their tags), cost so far, what was fetched."""
    from mmattn.remote.teardown import list_runs

    list_runs(region or None)


@order()
def stop(context, run=""):
    """Let the job save and end; without --results the machine stays up for a while."""
    from mmattn.remote import jobs

    jobs.stop(Run.find(run))


@order(yes="do not ask before starting a new machine")
def resume(context, run="", yes=False):
    """Continue a stopped job, on a new machine if its own is lost."""
    from mmattn.remote import deploy as remote

    remote.resume(Run.find(run), yes)


@order()
def ssh(context, run=""):
    """Open a shell on the machine."""
    Run.find(run).machine().shell()
