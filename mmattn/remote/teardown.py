"""The end of a run's machine, and what there is by the tags."""

import shutil
import time

from mmattn.console import say, say_table, waiting
from mmattn.errors import UserError
from mmattn.remote.bucket import delete_profile, profile_remains
from mmattn.remote.cloud import GONE, Cloud, CloudError, Instance
from mmattn.remote.deploy import telling
from mmattn.remote.fetch import fetched_all
from mmattn.remote.jobs import stop_jobs
from mmattn.remote.kept import kept_disks
from mmattn.remote.runs import FOLDER, NAME, Run, changing, locked, runs
from mmattn.remote.ssh import RemoteError

SETTLE_S = 15  # until EC2 lists a new instance
VOLUME_S = 60
HELP_FORCE = "--force removes it all the same"


def teardown(name: str | None, region: str | None, force: bool) -> None:
    """End a run's machine and delete all that was made for it; report what is left, by the tags.

    It works without the local state too, which is why a name may be given that only EC2 knows.

    Args:
        name: of the run; None for the latest.
        region: of a run without local state.
        force: do not ask whether the results were fetched.

    Raises:
        UserError: results are not fetched, or something is left.
    """
    if name is not None and not NAME.fullmatch(name):  # EC2 would take * for any
        raise UserError(f"--run {name}: expected a run's full name, e.g. from `fab ls`")
    known = name is None or any(run.name == name for run in runs())
    if not known:
        with locked("teardown"):
            _end(Run(name, name.split("-")[0], region=region), force, known=False)
        return
    run = Run.find(name)
    with changing("teardown", run):
        if run.host is None:
            _end(run, force, known=True)
        else:
            _clear_host(run, force)


def _end(run: Run, force: bool, known: bool) -> None:
    """End a run's machines on EC2 and delete what was made for them."""
    with telling(run):
        cloud = run.cloud()
        run.region = cloud.region
        remains = _remains(run, cloud)
    if not known and not remains:
        raise UserError(f"--run {run.name}: neither {FOLDER} nor {cloud.region} knows such a run")
    if not force:
        _check_fetched(run, cloud, known)
    try:
        _remove(run, cloud, remains)
    except CloudError as error:
        error.args = (f"{error}\n{_perhaps_left(cloud, remains)}",)
        raise
    except KeyboardInterrupt:
        say(_perhaps_left(cloud, remains))
        raise
    if known:
        run.group_id = None
        run.attempt += 1  # of which EC2 knows no start yet
        run.to("removed")
    _check_gone(run, cloud)
    say(f"{run.name}: nothing is left in {cloud.region}")


def _check_gone(run: Run, cloud: Cloud) -> None:
    """CloudError if anything is left; a volume may be listed a while longer than its instance."""
    end = time.monotonic() + VOLUME_S
    while left := _all_remains(run, cloud):
        if set(left) != {"volume"} or time.monotonic() > end:
            raise CloudError(
                f"still there in {cloud.region}: {_listed(left)}. Call "
                f"`fab teardown --run {run.name}` again in a minute"
            )
        time.sleep(2)


def _perhaps_left(cloud: Cloud, remains: dict[str, list[str]]) -> str:
    return (
        f"Perhaps still there in {cloud.region}: {_listed(remains)}. An instance costs until it "
        "has ended: the same command continues from here"
    )


def _listed(remains: dict[str, list[str]]) -> str:
    return "; ".join(f"{kind} {', '.join(names)}" for kind, names in remains.items())


def _all_remains(run: Run, cloud: Cloud) -> dict[str, list[str]]:
    """What EC2 and IAM list of a run."""
    role = profile_remains(run.label) if run.uri or run.data_uri else {}
    return cloud.remains(run.name, run.label) | role


def _remains(run: Run, cloud: Cloud) -> dict[str, list[str]]:
    """What exists of a run, also an instance that EC2 does not list by its tags yet."""
    remains = _all_remains(run, cloud)
    listed = remains.get("instance", [])
    others = [one.id for one in run.members if one.id not in listed]
    living = listed + [one for one in others if cloud.state(one) not in (None, "terminated")]
    if living:
        return {**remains, "instance": living}
    if not run.members and run.deadline is not None:
        with waiting("a start was asked for whose answer never came: looking for the instance"):
            time.sleep(SETTLE_S)
        return _all_remains(run, cloud)
    return remains


def _check_fetched(run: Run, cloud: Cloud, known: bool) -> None:
    """UserError if the machine has results that are not here."""
    living = [one.id for one in cloud.instances(run=run.name) if one.state not in GONE]
    begun = run.began_with is not None or not known
    if begun and run.fetched != "complete" and (kept := kept_disks(run)):
        raise UserError(
            f"{kept[0]['VolumeId']} has results of {run.name} that were perhaps not fetched: `fab "
            f"resume` continues from it; {HELP_FORCE}"
        )
    if not living or (run.members and run.instance_id not in living):
        return  # the results were on the first
    if not known:
        raise UserError(
            f"{run.name} is not in {FOLDER}, so its results cannot be fetched from here; "
            f"{HELP_FORCE}"
        )
    if run.address is None or not (run.is_past("sent") or run.leader is not None):
        return  # the deployment never came so far that there could be results
    try:
        machine = run.machine()
        state = machine.call("snapshot")["job"]["state"]
        if state == "running":
            raise UserError(f"{run.name} still trains: `fab stop` first; {HELP_FORCE}")
        if state == "absent":
            fetched = True
        elif run.uri:
            fetched = bool(machine.run(f"test ! -e {run.base}/job/pushed || echo yes").strip())
        else:
            fetched = fetched_all(run, machine)
    except RemoteError as error:
        raise UserError(
            f"{error}\nWhether all results were fetched cannot be asked; {HELP_FORCE}"
        ) from error
    if not fetched:
        raise UserError(
            f"{run.name} has results that were not fetched: `fab fetch` first; {HELP_FORCE}"
        )


def _remove(run: Run, cloud: Cloud, remains: dict[str, list[str]]) -> None:
    instances = remains.get("instance", [])
    if instances:
        with waiting(f"ending {', '.join(instances)}"):
            cloud.terminate(instances)
    if {"role", "instance profile"} & set(remains):
        with waiting(f"deleting role {run.label}"):
            delete_profile(run.label)
    for kind in ("alarm", "volume", "security group", "placement group", "key pair"):
        for name in remains.get(kind, []):
            with waiting(f"deleting {kind} {name}"):
                cloud.delete(kind, name)
    for secret in (run.key, run.host_key):
        secret.unlink(missing_ok=True)
        secret.with_name(f"{secret.name}.pub").unlink(missing_ok=True)


def _clear_host(run: Run, force: bool) -> None:
    """Delete a run's files from a machine that is not ours to end; with `force`, forget the run."""
    try:
        _delete_there(run, force)
    except RemoteError as error:
        if not force:
            raise
        say(f"{error}\nfiles of the run may be left on {run.host}")
    shutil.rmtree(run.folder)
    say(f"{run.name} is forgotten here")


def _delete_there(run: Run, force: bool) -> None:
    """Stop a run's jobs on its host and delete its folder."""
    machine = run.machine()
    begun = f"test -d {run.base}/agent -o -e {run.base}/job/status.json && echo yes || true"
    if machine.run(begun).strip():  # without an agent, `call` refuses
        job = machine.call("snapshot")["job"]
        if job["state"] == "running" and not force:
            raise UserError(f"{run.name} still runs on {run.host}: `fab stop` first")
        if job["state"] != "absent" and not force and not fetched_all(run, machine):
            raise UserError(
                f"{run.name} has results that were not fetched: `fab fetch` first; {HELP_FORCE}"
            )
        for job in ("build", "job"):  # either would write on into what is being deleted
            stop_jobs([machine], job)
    machine.run(f"rm -rf {run.base}", timeout=300)
    say(f"{run.name}: nothing is left on {run.host}")


def list_runs(region: str | None) -> None:
    """Say every run of this user: machines and leftovers by their tags, and what is known here.

    Args:
        region: to look in besides those of the known runs; "all" for every one of the account.
    """
    here = {run.name: run for run in runs()}
    regions = {run.region for run in here.values() if run.host is None}
    asked = {region} if region else set()
    if region == "all":
        asked = set(Cloud(None).regions())
    clouds = [Cloud(one) for one in sorted(regions | asked)]
    if not clouds:
        try:
            clouds = [Cloud(None)]
            clouds[0].caller()
        except UserError as error:
            if not here:
                raise
            clouds = []
            say(f"EC2 was not asked: {error}")
    rows, listed = [], set()
    for cloud in clouds:
        found = cloud.instances(owner=cloud.caller())
        living = [one for one in found if one.state not in GONE]
        rows += [_row(one, cloud.region, here.get(one.run)) for one in living]
        listed |= {one.run for one in living}
        for name, left in cloud.left_behind(cloud.caller()).items():
            if name not in listed:
                results = _fetched(here[name]) if name in here else "elsewhere"
                rows.append((name, cloud.region, f"left: {' '.join(left)}", "", "", "", results))
                listed.add(name)
    for run in here.values():
        if run.name not in listed:
            where = run.host or run.region or ""
            state = "on a host" if run.host else run.state
            rows.append((run.name, where, state, "", "", "", _fetched(run)))
    if not rows:
        say("no runs")
        return
    columns = ("run", "where", "state", "type", "ends within", "cost", "results")
    say_table("Runs", columns, rows, left=True)


def _row(one: Instance, region: str, run: Run | None) -> tuple[str, ...]:
    ends = f"{(one.deadline - time.time()) / 3600:.1f} h" if one.deadline else ""
    hours = (time.time() - one.launched) / 3600
    cost = f"${hours * one.price:.2f}" if one.price else ""
    results = _fetched(run) if run else "elsewhere"
    return (one.run, region, one.state, one.type + " spot" * one.spot, ends, cost, results)


def _fetched(run: Run) -> str:
    return run.fetched or "not fetched"
