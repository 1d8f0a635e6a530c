"""The run's instance: made once, found again, waited for, checked."""

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
from mmattn.remote.runs import LOGIN, Run
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
    """Key pair, security group, instance and alarms, each made once."""
    cloud = run.cloud()
    adopt(run)
    network = own_network()  # before anything is made
    tags = {RUN: run.name, OWNER: run.owner, "Name": run.label}
    say(f"key pair and security group {run.label}")
    cloud.ensure_key_pair(run.label, make_key(run.key), tags)
    run.group_id = cloud.ensure_group(run.label, tags)
    run.save()
    cloud.admit(run.group_id, network)
    if run.instance_id is None:
        _launch(run, cloud, plan, tags)
    cloud.ensure_alarms(run.label, run.instance_id, run.hours, tags)
    with waiting(f"waiting until {run.instance_id} runs"):
        _wait_for_address(run, cloud)


def adopt(run: Run) -> None:
    """Take up an instance whose start was answered to nobody; give up one that is gone.

    Afterwards the run has an instance, or a start that may be asked for again (a deadline), or
    neither.
    """
    cloud = run.cloud()
    if run.instance_id is None and run.deadline is not None:
        living = [one for one in cloud.instances(run=run.name) if one.state not in GONE]
        if living:
            run.instance_id, run.launched = living[-1].id, living[-1].launched
        elif time.time() > run.deadline - run.hours * 3600 + LOST_ANSWER_S:
            _next_machine(run)
    elif run.instance_id is not None:
        state = cloud.state(run.instance_id)
        forgotten = state is None and time.time() > run.launched + LOST_ANSWER_S
        if state in GONE or forgotten:
            say(f"{run.instance_id} is gone: a new machine is needed")
            _next_machine(run)
    run.save()


def _next_machine(run: Run) -> None:
    """Forget a machine that is gone, or was never there."""
    run.attempt += 1
    run.instance_id = run.address = run.deadline = run.launched = run.uploaded = None
    run.built = run.started = False


def _launch(run: Run, cloud: Cloud, plan: Plan, tags: dict[str, str]) -> None:
    if run.deadline is None:
        # Kept before the start: the same call again asks for the same instance.
        run.deadline = float(int(time.time() + run.hours * 3600))
        run.image_id, run.root_device = plan.image.id, plan.image.root_device
        run.disk_gib, run.price = plan.disk_gib, plan.price
        run.save()
    public = make_key(run.host_key)
    say(f"starting a {run.instance_type}")
    try:
        run.instance_id = cloud.launch(
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
        if error.code in NOT_STARTED:  # otherwise there may be an instance all the same
            _next_machine(run)
            run.save()
        raise
    run.launched = time.time()
    run.save()


def _wait_for_address(run: Run, cloud: Cloud) -> None:
    end = time.monotonic() + PATIENCE_S
    while True:
        found = cloud.instance(run.instance_id)
        if found and found.state in GONE:
            raise _ended(run, f"before it ran: {found.reason}")
        if found and found.state == "running" and found.address:
            break
        if time.monotonic() > end:
            state = found.state if found else "unknown to EC2"
            raise CloudError(
                f"{run.instance_id} is {state} after {PATIENCE_S} s and has the public address "
                f"{found and found.address}: do the default subnets of the VPC give one?"
            )
        time.sleep(2)
    run.address, run.launched = found.address, found.launched
    run.save()


def _ended(run: Run, how: str) -> CloudError:
    """An error about the run's instance, which it no longer has."""
    error = CloudError(f"{run.instance_id} ended {how}")
    _next_machine(run)
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
        if run.host is None and run.cloud().state(run.instance_id) in GONE:
            raise _ended(run, "while it started") from failure
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
        run.cloud().terminate([run.instance_id])
        raise _ended(
            run,
            f"here: its {unit} is {error.output}, so it might not have ended itself",
        ) from error
