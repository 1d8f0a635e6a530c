"""From a plan to a training machine at work, in steps that can be cut and repeated anywhere."""

import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mmattn.console import say, waiting
from mmattn.errors import UserError
from mmattn.remote.agent.job import SUMMARIES
from mmattn.remote.bucket import ensure_profile
from mmattn.remote.cloud import GONE, OWNER, RUN, Cloud
from mmattn.remote.jobs import build_environment, settle, start_training, take_from_bucket
from mmattn.remote.kept import kept_disks, take_up
from mmattn.remote.launch import adopt, check_end, make_instance, renew_host_key, wait_for_login
from mmattn.remote.plan import Plan, confirm, make_plan, say_plan
from mmattn.remote.runs import NO_MACHINE, Run, changing, is_busy, locked, runs
from mmattn.remote.send import MANIFEST, send, survey
from mmattn.remote.ssh import check_tools


def deploy(asked: Run, yes: bool, dry_run: bool) -> None:
    """Make a machine and start the training there, or continue where an earlier call was cut.

    Args:
        asked: a run from the options; if one with the same options is unfinished, that continues.
        yes: do not ask.
        dry_run: show the plan and stop.

    Raises:
        UserError: with what exists now, what it costs and how to continue.
    """
    check_tools()
    with ExitStack() as held:
        with locked("deploy"):
            run = _unfinished(asked) or asked
            if run is not asked:
                held.enter_context(changing("deploy", run))
                say(f"continuing the deployment of {run.name}")
            with telling(run):
                plan, manifest = _confirm(run, yes, dry_run)
            if dry_run:
                return
            if run is asked:
                held.enter_context(locked("deploy", run.folder))
            run.save()
        with telling(run):
            _work(run, plan, manifest)


def resume(run: Run, yes: bool) -> None:
    """Continue a run that stopped: on its machine, or on a new one from what was fetched last.

    Raises:
        UserError: the job runs or is complete, or as `deploy`.
    """
    check_tools()
    if any((run.results / name).exists() for name in SUMMARIES):
        raise UserError(f"{run.name} is complete, in {run.results}: there is nothing to resume")
    with changing("resume", run):
        if run.host is None:
            with telling(run):
                adopt(run)
        if not run.is_past("started"):
            if run.state in NO_MACHINE:
                begun = (run.results / "config.json").exists()
                found = "what was fetched" if begun else "the start: nothing was fetched"
                if run.uri or kept_disks(run):
                    found = f"what is in {run.uri}" if run.uri else "what is on its kept disk"
                say(f"{run.name} has no machine: a new one continues from {found}")
            with telling(run):
                _work(run, *_confirm(run, yes))
            return
        machines = run.machines()
        about = [machine.call("snapshot") for machine in machines]
        jobs = [one["job"] for one in about]
        if jobs[0]["state"] == "running" and all(
            job["state"] == "running" or job["exit_code"] == 0 for job in jobs
        ):
            raise UserError(f"{run.name} runs: `fab monitor`; `fab stop` lets it save and end")
        if about[0]["complete"]:
            raise UserError(f"{run.name} is complete: `fab fetch` brings the results")
        with telling(run):  # with the code, data and environment that it began with
            start_training(run, machines, again=True)
        _say_started(run)


def _confirm(run: Run, yes: bool, dry_run: bool = False) -> tuple[Plan | None, dict[str, str]]:
    """Show the plan and ask, unless a machine was made already; no plan for a host.

    Returns the plan and what is to be sent.
    """
    plan, manifest = None, survey(run)
    if run.host is None:
        if run.folder.exists() and not dry_run:
            adopt(run)
        plan = make_plan(run, run.cloud())
        if run.deadline is not None:
            say(what_exists(run))
            return plan, manifest
        cuda = ["jax[cuda12]"] if plan.machine_type.gpus else []
        run.packages = ["boto3"] * bool(run.uri or run.data_uri) + cuda
    say_plan(run, plan, len(manifest))
    if plan is not None:
        _say_others(run, run.cloud())
    if not dry_run:
        confirm("Deploy?", yes, known_price=plan is None or plan.price is not None)
    return plan, manifest


def _work(run: Run, plan: Plan | None, manifest: dict[str, str]) -> None:
    """All steps that are not done yet."""
    if run.host is None:
        profile = None
        if run.uri or run.data_uri:
            tags = {RUN: run.name, OWNER: run.owner}
            profile = ensure_profile(run.label, run.uri, run.data_uri, tags)
        make_instance(run, plan, profile)
        if len(run.members) < run.instances:
            say(f"on {len(run.members)} of {run.instances} machines: the others are gone")
    elif not run.is_past("there"):
        run.to("there")
    machines = run.machines()
    for machine in machines:
        with waiting(f"waiting for {machine.access.name}"):
            wait_for_login(run, machine)
        if run.host is None:
            check_end(run, machine)
            renew_host_key(run, machine)
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
    """Add to a failure what exists, if anything may."""
    try:
        yield
    except UserError as error:
        if run.host is not None and run.folder.exists() and not (run.folder / MANIFEST).exists():
            shutil.rmtree(run.folder)  # nothing was sent: there is no such run
        elif _is_begun(run):
            error.args = (f"{error}\n{what_exists(run)}",)
        raise
    except BaseException:  # Ctrl-C above all
        if _is_begun(run):
            say(what_exists(run))
        raise


def _is_begun(run: Run) -> bool:
    """Whether anything may have been made for a run that was not removed since."""
    begun = run.key if run.host is None else run.folder / MANIFEST
    return begun.exists() or run.deadline is not None


def what_exists(run: Run) -> str:
    """What there is of a run as far as this computer knows, its cost, and the next command."""
    if run.host is not None:
        return f"Files of the run may be on {run.host}. The same command continues from here."
    parts, again = [], "The same command"
    if run.state == "lost" and run.began_with is not None:
        parts, again = ["perhaps its kept disk"], f"`fab resume --run {run.name}`"
    if run.deadline:
        unsure = "perhaps an instance whose start was asked for"
        if run.instances > 1:
            unsure = f"perhaps {run.instances} instances whose start was asked for"
        which = ", ".join(one.id for one in run.members) or unsure
        count = len(run.members) or run.instances
        price = "unknown price" if run.price is None else f"${count * run.price:.2f} an hour"
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.deadline))
        parts.append(f"{which} ({run.instance_type}, {price}, ends by {end})")
    if run.group_id:
        placement = ", placement group" if run.instances > 1 else ""
        parts.append(f"security group {run.group_id}{placement} and key pair {run.label} (free)")
    elif run.key.exists():
        parts.append(f"perhaps key pair and security group {run.label} (free)")
    if run.members:
        parts.append(f"perhaps alarms {run.label}-* (cents a month)")
    return (
        f"Now there is in {run.region}: {', '.join(parts) or 'nothing'}. {again} "
        f"continues from here; `fab teardown --run {run.name}` removes it all."
    )


def _unfinished(asked: Run) -> Run | None:
    """The run whose deployment was cut, if it is what is asked for.

    One that never had a machine takes up other options.

    Raises:
        UserError: it has other options, and no process is at work on it.
    """
    names = ("experiment", "region", "args", "data", "hours", "grace_minutes", "instance_type")
    names = (*names, "instances", "spot", "subnet", "ami", "allow_from", "results_uri")
    for run in reversed(runs()):
        over = run.state == "removed" or (run.state == "lost" and run.began_with is not None)
        if run.is_past("started") or over or run.host != asked.host:
            continue
        differing = [name for name in names if getattr(asked, name) != getattr(run, name)]
        bare = run.host is None and run.deadline is None
        if bare and not {"experiment", "region"} & set(differing):
            for name in differing:
                setattr(run, name, getattr(asked, name))
            return run
        if not differing:
            return run
        if is_busy(run.folder):
            continue
        raise UserError(
            f"the deployment of {run.name} was cut and is not finished, and its "
            f"{', '.join(differing)} differ: `{command(run)}` finishes it, "
            f"`fab teardown --run {run.name}` removes it"
        )
    return None


def command(run: Run) -> str:
    """The command that deploys a run."""
    options = {
        "--experiment": run.experiment,
        "--args": shlex.join(run.args),
        "--instance-type": run.instance_type,
        "--instances": str(run.instances) if run.instances > 1 else None,
        "--region": run.region,
        "--subnet": run.subnet,
        "--ami": run.ami,
        "--results": run.results_uri,
        "--allow-from": run.allow_from,
        "--host": run.host,
        "--max-hours": f"{run.hours:g}",
        "--grace-minutes": f"{run.grace_minutes:g}",
    }
    words = ["fab", "deploy", *(word for one in run.data for word in ("--data", one))]
    words += [f"{name}={value}" for name, value in options.items() if value]
    return shlex.join(words + ["--spot"] * run.spot)


def _say_others(run: Run, cloud: Cloud) -> None:
    """Other machines of the same owner, which cost money too."""
    for other in cloud.instances(owner=run.owner):
        if other.run != run.name and other.state not in GONE:
            say(f"also {other.state}: {other.id} ({other.type}) of {other.run}; see `fab ls`")


def _say_started(run: Run) -> None:
    say(f"{run.name} trains. `fab monitor` shows it; this computer may be shut.")
    if run.host is None:
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.deadline))
        after = f"when its job has ended and all is in {run.uri}"
        if run.uri is None:
            after = f"{run.grace_minutes:g} min after its job; its disk is kept until all is here"
        say(f"It ends by {end}, or {after}. `fab fetch --watch` brings the results as they come.")
