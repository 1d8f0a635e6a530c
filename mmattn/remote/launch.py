"""The run's instances: made once, found again, waited for, checked."""

import time

from mmattn.console import say, waiting
from mmattn.remote.access import own_network
from mmattn.remote.cloud import (
    DEADLINE,
    GONE,
    NOT_STARTED,
    OWNER,
    PATIENCE_S,
    PRICE,
    RUN,
    Cloud,
    CloudError,
)
from mmattn.remote.plan import Plan
from mmattn.remote.runs import LOGIN, Member, Run
from mmattn.remote.ssh import (
    CommandFailed,
    Machine,
    NotLoggedIn,
    RemoteError,
    Unreachable,
    make_key,
)
from mmattn.remote.user_data import GUARD, TIMER, user_data

LOST_ANSWER_S = 600  # so long an instance may exist before EC2 lists it


def make_instance(run: Run, plan: Plan) -> None:
    """Key pair, security group, instances and alarms, each made once."""
    cloud = run.cloud()
    adopt(run)
    network = own_network()  # before anything is made
    tags = {RUN: run.name, OWNER: run.owner, "Name": run.label}
    say(f"key pair and security group {run.label}")
    cloud.ensure_key_pair(run.label, make_key(run.key), tags)
    run.group_id = cloud.ensure_group(run.label, tags)
    run.save()
    cloud.admit(run.group_id, network)
    if run.instances > 1:
        cloud.admit_members(run.group_id)
        cloud.ensure_placement(run.label, tags)
    if not run.members:
        _launch(run, cloud, plan, tags)
    for rank, member in enumerate(run.members):
        label = run.label if rank == 0 else f"{run.label}-{rank}"
        cloud.ensure_alarms(label, member.id, run.hours, tags)
    for member in run.members:
        with waiting(f"waiting until {member.id} runs"):
            _wait_for_address(run, member, cloud)


def adopt(run: Run) -> None:
    """Take up instances whose start was answered to no one here; give up those that are gone.

    Afterwards the run has instances, perhaps fewer than were asked for, or a start that may be
    asked for again (a deadline), or neither.
    """
    cloud = run.cloud()
    if not run.members and run.deadline is not None:
        living = [one for one in cloud.instances(run=run.name) if one.state not in GONE]
        late = time.time() > run.deadline - run.hours * 3600 + LOST_ANSWER_S
        if len(living) >= run.instances or (living and late):  # EC2 may not list them all yet
            found = living[-run.instances :]
            run.members = [Member(one.id, launched=one.launched) for one in found]
        elif late:
            _next_machines(run)
    elif run.members:
        gone = [one for one in run.members if _is_gone(cloud, one)]
        for member in gone:
            left = len(run.members) - len(gone)
            needed = f"{left} of {run.instances} are left" if left else "a new machine is needed"
            say(f"{member.id} is gone: {needed}")
        _give_up(run, gone)
    run.save()


def _is_gone(cloud: Cloud, member: Member) -> bool:
    state = cloud.state(member.id)
    return state in GONE or (state is None and time.time() > member.launched + LOST_ANSWER_S)


def _give_up(run: Run, gone: list[Member]) -> None:
    """Forget machines that are gone; a job on those that are left has to be started anew."""
    if len(gone) == len(run.members):
        _next_machines(run)
    elif gone:
        run.members = [one for one in run.members if one not in gone]
        run.started = False


def _next_machines(run: Run) -> None:
    """Forget machines that are gone, or were never there."""
    run.attempt += 1
    run.members, run.trains_on = [], []
    run.deadline = run.uploaded = run.spread = None
    run.built = run.started = False


def _launch(run: Run, cloud: Cloud, plan: Plan, tags: dict[str, str]) -> None:
    if run.deadline is None:
        # Kept before the start: the same call again asks for the same instance.
        run.deadline = float(int(time.time() + run.hours * 3600))
        run.image_id, run.root_device = plan.image.id, plan.image.root_device
        run.disk_gib, run.price = plan.disk_gib, plan.price
        run.save()
    public = make_key(run.host_key)
    say(f"starting {'a' if run.instances == 1 else run.instances} {run.instance_type}")
    try:
        ids = cloud.launch(
            count=run.instances,
            label=run.label,
            token=f"{run.name}-{run.attempt}",
            machine_type=run.instance_type,
            image_id=run.image_id,
            root_device=run.root_device,
            disk_gib=run.disk_gib,
            group_id=run.group_id,
            user_data=user_data(
                run.host_key.read_text(encoding="utf-8"),
                public,
                f"/home/{LOGIN}/{run.base}/job",
                run.deadline,
                run.grace_minutes * 60,
            ),
            spot=run.spot,
            tags={**tags, DEADLINE: f"{run.deadline:.0f}", PRICE: str(run.price or "")},
        )
    except CloudError as error:
        if error.code in NOT_STARTED:  # otherwise there may be instances all the same
            _next_machines(run)
            run.save()
        raise
    run.members = [Member(one, launched=time.time()) for one in ids]
    run.save()


def _wait_for_address(run: Run, member: Member, cloud: Cloud) -> None:
    end = time.monotonic() + PATIENCE_S
    while True:
        found = cloud.instance(member.id)
        if found and found.state in GONE:
            raise _ended(run, member, f"before it ran: {found.reason}")
        if found and found.state == "running" and found.address:
            break
        if time.monotonic() > end:
            state = found.state if found else "unknown to EC2"
            raise CloudError(
                f"{member.id} is {state} after {PATIENCE_S} s and has the public address "
                f"{found and found.address}: do the default subnets of the VPC give one?"
            )
        time.sleep(2)
    member.address, member.private, member.launched = found.address, found.private, found.launched
    run.save()


def _ended(run: Run, member: Member, how: str) -> CloudError:
    """An error about an instance, which the run no longer has."""
    error = CloudError(f"{member.id} ended {how}")
    _give_up(run, [member])
    run.save()
    return error


def wait_for_login(run: Run, machine: Machine) -> None:
    """Until the machine lets this key log in and has finished its first boot.

    Raises:
        RemoteError: it never does, it ended, or it lacks what a run needs.
    """
    end = time.monotonic() + (PATIENCE_S if run.host is None else 30)
    while True:
        try:
            status = machine.run("cloud-init status 2>/dev/null || true", timeout=15)
            if not any(word in status for word in ("running", "not run", "not started")):
                break
            failure = RemoteError(f"{machine.access.name} is still in its first boot")
        except (Unreachable, NotLoggedIn) as error:  # while it boots, it may not know the key
            failure = error
        if run.host is None:
            member = run.members[machine.rank]
            if run.cloud().state(member.id) in GONE:
                raise _ended(run, member, "while it started") from failure
        if time.monotonic() > end:
            raise failure
        time.sleep(2)
    install = "sudo dnf install -y rsync" if run.host is None else "false"
    try:
        machine.run(f"command -v rsync || {install}", timeout=300)
        machine.run("command -v python3")
    except CommandFailed as error:
        raise RemoteError(f"{machine.access.name}: expected python3 and rsync there") from error


def check_end(run: Run, machine: Machine) -> None:
    """That the machine will end itself; one that would not is ended here.

    Raises:
        RemoteError: it would not.
    """
    try:
        for unit in (TIMER, GUARD):  # of several units, systemctl is content with one
            machine.run(f"systemctl is-active {unit}")
    except CommandFailed as error:
        member = run.members[machine.rank]
        run.cloud().terminate([member.id])
        raise _ended(
            run,
            member,
            f"here: its {unit} is {error.output}, so it might not have ended itself",
        ) from error
