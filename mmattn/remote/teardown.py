"""`fab teardown` and `fab ls`."""

import shutil
import time

from mmattn.console import say, say_table, waiting
from mmattn.errors import UserError
from mmattn.remote.bucket import delete_profile, profile_remains
from mmattn.remote.cloud import GONE, Cloud, CloudError
from mmattn.remote.deploy import telling
from mmattn.remote.fetch import fetched_all
from mmattn.remote.jobs import stop_jobs
from mmattn.remote.kept import kept_disks
from mmattn.remote.runs import FOLDER, NAME, Run, changing, locked, runs
from mmattn.remote.ssh import RemoteError

SETTLE_S = 15  # until EC2 lists a new instance
HELP_FORCE = "--force removes it anyway"


def teardown(name: str | None, region: str | None, force: bool) -> None:
    """Terminate a run's machine and delete all that was made for it; UserError if any is left.

    Name None is the latest run; a run without local state is found by its tags in `region`. Without
    `force`, UserError while results are not fetched.
    """
    if name is not None and not NAME.fullmatch(name):  # EC2 reads * as any
        raise UserError(f"--run {name}: expected a run's full name, e.g. from `fab ls`")
    if name is None or any(run.name == name for run in runs()):
        run = Run.find(name)
        with changing("teardown", run):
            if run.host is not None:
                _clear_host(run, force)
            else:
                _end(run, force)
    elif not force:
        raise UserError(
            f"--run {name}: not in {FOLDER}, so its results cannot be fetched from here; --force "
            "removes what AWS has of it"
        )
    else:
        with locked("teardown"):
            _end(Run(name, "", region=region), force)


def _end(run: Run, force: bool) -> None:
    """Terminate a run's machines on EC2 and delete what was made for them."""
    cloud = run.cloud()
    remains = _remains(run, cloud)
    unanswered = not run.members and run.deadline is not None and "instance" not in remains
    if unanswered:
        with waiting("a start request got no answer: looking for its instance"):
            time.sleep(SETTLE_S)
        remains = _remains(run, cloud)
    known = bool(run.experiment)
    if not (known or remains):
        raise UserError(f"--run {run.name}: no such run in {cloud.region}, nor in {FOLDER}")
    if not force:
        _check_results(run, cloud)
    with telling(run):
        _remove(run, cloud, remains)
    if known:
        run.attempt += 1  # a new start, for EC2
        run.to("removed")
    if left := _remains(run, cloud):
        names = "; ".join(f"{kind} {', '.join(names)}" for kind, names in left.items())
        raise CloudError(
            f"still in {cloud.region}: {names}. Run `fab teardown --run {run.name}` again in a "
            "minute"
        )
    say(f"{run.name}: nothing is left in {cloud.region}")
    if unanswered and "instance" not in remains:
        say("EC2 may take minutes to list an instance: check again with `fab ls`")


def _remains(run: Run, cloud: Cloud) -> dict[str, list[str]]:
    """What EC2 and IAM list of a run, and known instances not yet listed by their tags."""
    found = cloud.remains(run.name, run.label)
    if run.uses_bucket or not run.experiment:
        found |= profile_remains(run.label)
    listed = found.get("instance", [])
    others = [one.id for one in run.members if one.id not in listed]
    living = [one for one in others if cloud.state(one) not in (None, "terminated")]
    return {**found, "instance": listed + living} if living else found


def _check_results(run: Run, cloud: Cloud) -> None:
    """UserError if a machine or its disk has results that may not be here."""
    if run.began_with and run.fetched != "complete" and (kept := kept_disks(run)):
        raise UserError(
            f"{kept[0]['VolumeId']} has results of {run.name} that may not have been fetched: `fab "
            f"resume` continues from it; {HELP_FORCE}"
        )
    first = run.members[0] if run.members else None  # it has the results
    if first and first.address and cloud.state(first.id) not in (None, *GONE):
        _check_fetched(run)


def _check_fetched(run: Run) -> None:
    """UserError if the machine has results that are not here, or does not answer."""
    if not (run.is_past("sent") or run.leader is not None):
        return  # no job was started: there are no results
    try:
        machine = run.machine()
        state = machine.call("snapshot")["job"]["state"]
        if state == "running":
            raise UserError(f"{run.name} is still training: `fab stop` first; {HELP_FORCE}")
        if state == "absent":
            return
        pushed = f"test ! -e {run.base}/job/pushed || echo yes"
        fetched = machine.run(pushed).strip() if run.uri else fetched_all(run)
    except RemoteError as error:
        raise UserError(
            f"{error}\nCannot check whether all results were fetched; {HELP_FORCE}"
        ) from error
    if not fetched:
        why = "were not fetched: `fab fetch` first"
        if run.uri:
            why = f"are not in {run.uri} yet: wait, or see push/job.log by `fab ssh`"
        raise UserError(f"{run.name} has results that {why}; {HELP_FORCE}")


def _remove(run: Run, cloud: Cloud, remains: dict[str, list[str]]) -> None:
    for kind, names in remains.items():
        with waiting(f"deleting {kind} {', '.join(names)}"):
            if kind == "instance":
                cloud.terminate(names)
            elif kind == "role":
                delete_profile(run.label)
            else:
                for name in names:
                    cloud.delete(kind, name)
    for key in (run.key, run.host_key):
        for half in (key, key.with_name(f"{key.name}.pub")):
            half.unlink(missing_ok=True)


def _clear_host(run: Run, force: bool) -> None:
    """Delete a run's files from a --host; with `force`, forget the run in any case."""
    if not force:
        _check_fetched(run)
    try:
        machine = run.machine()
        for job in ("build", "job"):  # either would keep writing into the deleted folder
            stop_jobs([machine], job)
        machine.run(f"rm -rf {run.base}", timeout=300)
        say(f"{run.name}: nothing is left on {run.host}")
    except RemoteError as error:
        if not force:
            raise
        say(f"{error}\nfiles of the run may be left on {run.host}")
    shutil.rmtree(run.folder)
    say(f"{run.name} is forgotten here")


def list_runs(region: str | None) -> None:
    """Print this user's runs in `region` and the regions of runs known here, by their tags."""
    here = {run.name: run for run in runs()}
    regions = {run.region for run in here.values() if run.host is None}
    if region or not here:
        regions.add(region)
    rows = []
    for cloud in map(Cloud, sorted(regions, key=str)):
        owner = cloud.caller()
        living = [one for one in cloud.instances(owner=owner) if one.state not in GONE]
        left = cloud.left_behind(owner)
        for one in living:
            left.pop(one.run, None)
            ends = f"{(one.deadline - time.time()) / 3600:.1f} h" if one.deadline else ""
            hours = (time.time() - one.launched) / 3600
            cost = f"{'at most ' * one.spot}${hours * one.price:.2f}" if one.price else ""
            rows.append(
                (one.run, cloud.region, one.state, one.type + " spot" * one.spot, ends, cost)
            )
        rows += [
            (name, cloud.region, f"left: {' '.join(ids)}", "", "", "") for name, ids in left.items()
        ]
    for run in here.values():
        if run.name not in [row[0] for row in rows]:
            state = "on a host" if run.host else run.state
            rows.append((run.name, run.host or run.region or "", state, "", "", ""))
    rows = [
        (*row, (here[row[0]].fetched or "not fetched") if row[0] in here else "elsewhere")
        for row in rows
    ]
    columns = ("run", "where", "state", "type", "ends within", "cost", "results")
    say_table("Runs", columns, rows, left=True)
