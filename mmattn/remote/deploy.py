"""From a plan to a machine that trains, in steps that survive an interruption at any point."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from mmattn.console import say, waiting
from mmattn.errors import UserError
from mmattn.remote.agent.job import SUMMARIES
from mmattn.remote.bucket import is_complete
from mmattn.remote.cloud import GONE
from mmattn.remote.jobs import build_environment, settle, start_training, take_from_bucket
from mmattn.remote.kept import kept_disks, take_up
from mmattn.remote.launch import adopt, check_end, make_instance, renew_host_key, wait_for_login
from mmattn.remote.plan import Plan, confirm, end_text, make_plan, say_plan
from mmattn.remote.runs import NO_MACHINE, OPTIONS, Busy, Run, changing, flag, locked, runs
from mmattn.remote.screen import clock
from mmattn.remote.send import send, survey
from mmattn.remote.ssh import check_tools


def deploy(asked: Run, yes: bool, dry_run: bool) -> None:
    """Start a machine and the training on it, or continue an interrupted deployment.

    A deployment continues if it had the same options. Asks first unless `yes`; a dry run stops
    after the plan. An error says what exists, what it costs, and the next command.
    """
    check_tools()
    with ExitStack() as held:
        with locked("deploy"):
            run = _unfinished(asked) or asked
            if run is not asked:
                held.enter_context(changing("deploy", run))
                say(f"continuing the deployment of {run.name}")
            held.enter_context(telling(run))
            plan, manifest = _confirm(run, yes, dry_run)
            if dry_run:
                return
            if run is asked:
                held.enter_context(locked("deploy", run.folder))
        _work(run, plan, manifest)


def resume(run: Run, yes: bool) -> None:
    """Continue a stopped run, on its machine or a new one; UserError if it runs or is complete."""
    check_tools()
    if any((run.results / name).exists() for name in SUMMARIES):
        raise UserError(f"{run.name} is complete, in {run.results}: nothing to resume")
    if run.uri and is_complete(run.uri):
        raise UserError(f"{run.name} is complete, in {run.uri}: `fab fetch` brings the results")
    with changing("resume", run):
        with telling(run):
            if run.host is None:
                adopt(run)
            if not run.is_past("started"):
                if run.state in NO_MACHINE:
                    kept = "what is on its kept disk" if kept_disks(run) else "what was fetched"
                    say(f"{run.name} has no machine: a new one continues from {run.uri or kept}")
                _work(run, *_confirm(run, yes))
                return
        machines = run.machines()
        about = [machine.call("snapshot") for machine in machines]
        ends = [one["job"]["exit_code"] for one in about if one["job"]["state"] != "running"]
        if about[0]["job"]["state"] == "running" and all(code == 0 for code in ends):
            raise UserError(f"{run.name} is running: `fab monitor` shows it, `fab stop` ends it")
        if about[0]["complete"]:
            raise UserError(f"{run.name} is complete: `fab fetch` brings the results")
        with telling(run):  # with its original code, data and environment
            start_training(run, machines, again=True)
        _say_started(run)


def _confirm(run: Run, yes: bool, dry_run: bool = False) -> tuple[Plan | None, dict[str, str]]:
    """The plan (None for a host) and the files to send; asks unless the machines exist already."""
    plan, manifest = None, survey(run)
    if run.host is None:
        if run.folder.exists() and not dry_run:
            adopt(run)
        plan = make_plan(run, run.cloud())
        if run.deadline is not None:
            say(what_exists(run))
            return plan, manifest
    say_plan(run, plan, len(manifest))
    for other in run.cloud().instances(owner=run.owner) if plan else ():
        if other.run != run.name and other.state not in GONE:
            say(f"also {other.state}: {other.id} ({other.type}) of {other.run}; see `fab ls`")
    if dry_run:
        return plan, manifest
    if plan and plan.price is None:
        confirm("The price is unknown. Deploy?", "--yes is not enough if the price is unknown")
    elif not yes:
        confirm("Deploy?")
    return plan, manifest


def _work(run: Run, plan: Plan | None, manifest: dict[str, str]) -> None:
    """Do all steps that are not done yet."""
    if plan is not None:
        run.save()
        make_instance(run, plan)
        if len(run.members) < run.instances:
            say(f"on {len(run.members)} of {run.instances} machines: the others are gone")
    for machine in run.machines():
        with waiting(f"waiting for {machine.access.name}"):
            wait_for_login(run, machine)
        if run.host is None:
            check_end(run, machine)
            renew_host_key(run, machine)
    if not run.is_past("there"):  # a host: its run exists once a login worked
        run.to("there")
    machines = run.machines()
    settle(run, machines)
    take_up(run, machines[0])
    send(run, machines, manifest)
    build_environment(run, machines)
    take_from_bucket(run, machines)
    start_training(run, machines)
    _say_started(run)


@contextmanager
def telling(run: Run) -> Iterator[None]:
    """Add to an error what may exist now."""
    try:
        yield
    except BaseException as error:  # Ctrl-C above all
        if (run.folder / "state.json").exists() and run.state != "removed":
            if not isinstance(error, UserError):
                say(what_exists(run))
            else:
                error.args = (f"{error}\n{what_exists(run)}",)
        raise


def what_exists(run: Run) -> str:
    """What exists of a run as far as this computer knows, its cost, and the next command."""
    lost = run.state == "lost" and run.began_with is not None  # its deployment was finished
    again = f"`fab resume --run {run.name}`" if lost else "The same command"
    again += f" continues from here; `fab teardown --run {run.name}` removes it all."
    if run.host is not None:
        return f"Files of the run may be on {run.host}. {again}"
    parts = []
    if run.deadline:
        count = len(run.members) or run.instances
        unsure = f"perhaps {count} whose start was requested"
        which = ", ".join(one.id for one in run.members) or unsure
        price = f"{'at most ' * run.spot}${count * (run.price or 0):.2f} an hour"
        price = "unknown price" if run.price is None else price
        parts.append(f"{which} ({run.instance_type}, {price}, ends by {clock(run.deadline)})")
    if run.state == "lost":
        parts.append("perhaps its kept disk")
    parts.append(f"perhaps key pair, security group and alarms {run.label} (cents a month)")
    return f"Now there is in {run.region}: {', '.join(parts)}. {again}"


def _unfinished(asked: Run) -> Run | None:
    """The run with these options whose deployment was interrupted.

    UserError if one with other options was, and may have a machine that no process works on.
    """
    for run in reversed(runs()):
        over = run.state == "removed" or (run.state == "lost" and run.began_with is not None)
        if run.is_past("started") or over or run.host != asked.host:
            continue
        differing = [name for name in OPTIONS if getattr(asked, name) != getattr(run, name)]
        if not differing:
            return run
        if run.deadline is not None:
            with suppress(Busy), locked("deploy", run.folder):
                was = ", ".join(f"--{flag(name)} {getattr(run, name)}" for name in differing)
                raise UserError(
                    f"the deployment of {run.name} was interrupted: it had {was}; repeat it with "
                    f"these options, or remove it with `fab teardown --run {run.name}`"
                )
    return None


def _say_started(run: Run) -> None:
    say(
        f"{run.name} is training. `fab monitor` shows it, `fab fetch --watch` downloads results "
        "as they appear; you may shut this computer down."
    )
    if run.deadline is not None:
        kept = "" if run.uri else "; its disk is kept until the run is complete and fetched"
        say(f"It ends by {clock(run.deadline)}, or {end_text(run)}{kept}.")
