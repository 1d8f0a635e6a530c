"""Train on EC2, or on any machine with SSH: `fab --list`, `fab deploy --help`."""

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from fabric import Connection, task

from mmattn.cli import end_process_after
from mmattn.errors import UserError

RUN = "name of the run (default: the latest that was not torn down)"


def order(**options) -> Callable:
    """A Fabric task whose errors are one message, and whose result is the exit code."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def work(context, *args, **kwargs):
            code = None
            if context.config.run.dry and "dry_run" not in kwargs:
                sys.exit("-R (--dry): only `fab deploy` has a plan to show; nothing was done")
            if Path(__file__).parent in Path.cwd().parents:  # .fab and the code are there
                sys.exit(f"expected to be called in {Path(__file__).parent}; nothing was done")
            if isinstance(context, Connection):  # once for each host of -H
                sys.exit("-H: expected --run, or --host of `fab deploy`; nothing was done")

            def call():
                nonlocal code
                code = function(context, *args, **kwargs)

            end_process_after(call)
            if code:
                sys.exit(code)

        work.__signature__ = inspect.signature(function)
        return task(auto_shortflags=False, **options)(work)

    return decorate


@order(
    iterable=["data"],
    help={
        "experiment": "a file of experiments/ (default: no_aug)",
        "args": "the experiment's options, e.g. '--train.epochs 40'",
        "data": "folder of feature files to send, or s3://BUCKET/PREFIX for the machine to read; "
        "may be repeated (default: the built-in corpus)",
        "results": "s3://BUCKET/PREFIX for results as they are made (default: the machine's disk)",
        "instance-type": "EC2's name for the machine (default: c5.24xlarge, 96 vCPU)",
        "instances": "how many such machines train together (default: 1)",
        "spot": "a spot machine: a third of the price, but it may be taken away",
        "max-hours": "the machine ends itself after this long, whatever happens (default: 6)",
        "grace-minutes": "the machine ends itself this long after its job has ended (default: 60)",
        "region": "of EC2 (default: that of your AWS configuration)",
        "subnet": "of your own VPC (default: those of the default VPC)",
        "ami": "image to boot, an Amazon Linux 2023 (default: the newest; for GPUs with driver)",
        "allow-from": "IPv4 network that may reach it (default: this computer's address alone)",
        "host": "user@address[:port] of a machine that exists, instead of EC2",
        "yes": "do not ask",
        "dry-run": "show the plan and its cost, and stop",
    },
)
def deploy(
    context,
    experiment="no_aug",
    args="",
    data=None,
    results="",
    instance_type="c5.24xlarge",
    instances="1",
    spot=False,
    max_hours="6",
    grace_minutes="60",
    region="",
    subnet="",
    ami="",
    allow_from="",
    host="",
    yes=False,
    dry_run=False,
):
    """Make a machine, send code and data, start the training; called again, it continues."""
    from mmattn.remote import deploy as remote
    from mmattn.remote.plan import new_run

    if "--data" in sys.argv and not data:  # Fabric takes this for no data
        raise UserError("--data: expected a folder")
    asked = new_run(
        experiment,
        args,
        data or [],
        hours=max_hours,
        grace_minutes=grace_minutes,
        host=host or None,
        region=region or None,
        instance_type=instance_type,
        instances=instances,
        spot=spot,
        subnet=subnet or None,
        ami=ami or None,
        allow_from=allow_from or None,
        results=results or None,
    )
    remote.deploy(asked, yes, dry_run or context.config.run.dry)


@order(
    help={
        "run": RUN,
        "quick": "one report, then stop",
        "follow": "the job's log, byte for byte, instead of the screen",
    }
)
def monitor(context, run="", quick=False, follow=False):
    """Show state, curves, machine, cost and log until the job ends; exit with its code."""
    from mmattn.remote.monitor import monitor as watch

    return watch(_find(run), quick, follow)


@order(
    help={
        "run": RUN,
        "watch": "fetch whatever comes, until the job has ended",
        "then-teardown": "when all is here, end the machine and remove all that was made for it",
    }
)
def fetch(context, run="", watch=False, then_teardown=False):
    """Bring checkpoints, log, metrics and plots here, verified; at any time."""
    from mmattn.remote.fetch import fetch as bring
    from mmattn.remote.teardown import teardown as remove

    found = _find(run)
    bring(found, watch)
    if then_teardown:
        remove(found.name, None, force=False)


@order(
    help={
        "run": RUN,
        "region": "where a run is that this computer does not know",
        "force": "even if the job runs or its results are not fetched",
    }
)
def teardown(context, run="", region="", force=False):
    """End the machine and remove all that was made for it; fails if anything is left."""
    from mmattn.remote.teardown import teardown as remove

    remove(run or None, region or None, force)


@order(help={"region": "another to look in, besides those of the runs in .fab; all for every one"})
def ls(context, region=""):
    """List your runs: machines by their tags, cost so far, what was fetched."""
    from mmattn.remote.teardown import list_runs

    list_runs(region or None)


@order(help={"run": RUN})
def stop(context, run=""):
    """Let the job save and end; the machine stays for a while."""
    from mmattn.remote import control

    control.stop(_find(run))


@order(help={"run": RUN, "yes": "do not ask before a new machine is made"})
def resume(context, run="", yes=False):
    """Continue a stopped job; on a new machine from what was fetched, if its own is lost."""
    from mmattn.remote import deploy as remote

    remote.resume(_find(run), yes)


@order(help={"run": RUN})
def hold(context, run=""):
    """Keep the machine of an ended job until its deadline."""
    from mmattn.remote import control

    control.hold(_find(run))


@order(help={"run": RUN})
def ssh(context, run=""):
    """Open a shell on the machine."""
    _find(run).machine().shell()


def _find(name: str):
    from mmattn.remote.runs import Run

    return Run.find(name or None)
