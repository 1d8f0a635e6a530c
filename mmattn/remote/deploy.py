"""From a plan to a training machine at work, in steps that can be cut and repeated anywhere."""

import time

from mmattn.console import say, waiting
from mmattn.errors import UserError
from mmattn.remote.cloud import GONE, Cloud
from mmattn.remote.launch import check_end, lives, make_instance, next_machine, wait_for_login
from mmattn.remote.plan import Plan, confirm, make_plan, say_plan
from mmattn.remote.runs import Run, locked, runs
from mmattn.remote.ssh import check_tools
from mmattn.remote.start import build_environment, start_training
from mmattn.remote.upload import upload


def deploy(asked: Run, yes: bool, dry_run: bool) -> None:
    """Make a machine and start the training there, or go on where an earlier call was cut.

    Args:
        asked: a run from the options; if one with the same options is unfinished, that goes on.
        yes: do not ask.
        dry_run: show the plan and stop.

    Raises:
        UserError: with what exists now, what it costs and how to go on.
    """
    check_tools()
    with locked("deploy"):
        run = _unfinished(asked) or asked
        if run is not asked:
            say(f"going on with the deployment of {run.name}")
        _confirm_and_work(run, yes, dry_run)


def resume(run: Run, yes: bool) -> None:
    """Continue a run that stopped: on its machine, or on a new one from what was fetched last.

    Raises:
        UserError: the job still runs, or as `deploy`.
    """
    check_tools()
    with locked("resume"):
        if run.host is None and not lives(run):
            next_machine(run)
            found = "what was fetched" if (run.results / "config.json").exists() else "the start"
            say(f"{run.name} has no machine any more: a new one goes on from {found}")
            _confirm_and_work(run, yes)
            return
        machine = run.machine()
        if machine.call("snapshot")["job"]["state"] == "running":
            raise UserError(f"{run.name} runs: `fab monitor`; `fab stop` lets it save and end")
        start_training(run, machine)  # with the code, data and environment that it began with
        _say_started(run)


def _confirm_and_work(run: Run, yes: bool, dry_run: bool = False) -> None:
    plan = None
    if run.host is None:
        cloud = run.cloud()
        plan = make_plan(run, cloud)
    say_plan(run, plan)
    if plan is not None:
        _say_others(run, cloud)
    if dry_run:
        return
    confirm("Deploy?", yes)
    run.save()
    _work(run, plan)


def _work(run: Run, plan: Plan | None) -> None:
    """All steps that are not done yet; a failure says what exists."""
    try:
        if run.host is None:
            make_instance(run, plan)
        machine = run.machine()
        with waiting(f"waiting for {machine.access.name}"):
            wait_for_login(run, machine)
        if run.host is None:
            check_end(machine)
        upload(run, machine)
        build_environment(run, machine)
        start_training(run, machine)
    except KeyboardInterrupt:
        say(f"interrupted. {what_exists(run)}")
        raise
    except UserError as error:
        error.args = (f"{error}\n{what_exists(run)}",)
        raise
    _say_started(run)


def what_exists(run: Run) -> str:
    """What there is of a run as far as this computer knows, its cost, and the next command."""
    if run.host is not None:
        return f"Files of the run may be on {run.host}. The same command goes on from here."
    parts = []
    if run.instance_id:
        price = "unknown" if run.price is None else f"${run.price:.2f}"
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.deadline))
        parts.append(f"{run.instance_id} ({run.instance_type}, {price} an hour, ends by {end})")
    elif run.deadline:
        parts.append("perhaps an instance whose start was asked for")
    if run.group_id:
        parts.append(f"security group {run.group_id} and key pair {run.label} (free)")
    return (
        f"Now there is in {run.region}: {', '.join(parts) or 'nothing'}. The same command goes on "
        f"from here; `fab teardown --run {run.name}` removes it all."
    )


def _unfinished(asked: Run) -> Run | None:
    """The run whose deployment was cut, if it is what is asked for.

    Raises:
        UserError: it has other options.
    """
    found = [run for run in runs() if not run.started and run.host == asked.host]
    if not found:
        return None
    run = found[-1]
    names = ("experiment", "args", "data", "hours", "grace_minutes", "region", "instance_type")
    for name in (*names, "spot"):
        mine, theirs = getattr(asked, name), getattr(run, name)
        if mine != theirs:
            raise UserError(
                f"the deployment of {run.name} was cut and is not finished; it has {name} "
                f"{theirs}, not {mine}: finish it with its own options, or "
                f"`fab teardown --run {run.name}`"
            )
    return run


def _say_others(run: Run, cloud: Cloud) -> None:
    """Other machines of the same owner, which cost money too."""
    for other in cloud.instances(owner=run.owner):
        if other.run != run.name and other.state not in GONE:
            say(f"also {other.state}: {other.id} ({other.type}) of {other.run}; see `fab ls`")


def _say_started(run: Run) -> None:
    say(f"{run.name} trains. `fab monitor` shows it; this computer may go.")
    if run.host is None:
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.deadline))
        say(f"It ends by {end}, or {run.grace_minutes:g} min after its job, with all that is on it:")
        say("`fab fetch --watch` brings the results as they come.")
