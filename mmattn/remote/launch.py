"""The run's instances: started once, found again, waited for, checked."""

import time
from typing import Any

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from mmattn.console import say, waiting
from mmattn.remote.access import own_network
from mmattn.remote.aws import CloudError
from mmattn.remote.bucket import ensure_profile
from mmattn.remote.cloud import DEADLINE, GONE, PATIENCE_S, PRICE, tagged
from mmattn.remote.plan import Plan
from mmattn.remote.runs import Member, Run
from mmattn.remote.ssh import (
    CommandFailed,
    Machine,
    NotLoggedIn,
    RemoteError,
    Unreachable,
    make_key,
)
from mmattn.remote.user_data import GUARD, TIMER, user_data

LOST_ANSWER_S = 600  # an instance may exist this long before EC2 lists it
FULL = ("InsufficientInstanceCapacity", "SpotMaxPriceTooLow", "Unsupported")  # in one zone


def make_instance(run: Run, plan: Plan) -> None:
    """Make instance profile, key pair, security group, instances and alarms, each once."""
    cloud = run.cloud()
    adopt(run)
    network = run.allow_from or own_network()  # may fail: before anything is made
    if run.uses_bucket:
        ensure_profile(run.label, run.uri, run.data_uri, run.tags)
    say(f"key pair and security group {run.label}")
    cloud.ensure_key_pair(run.label, make_key(run.key), run.tags)
    group = cloud.ensure_group(run.label, plan.subnets[0]["VpcId"], run.tags)
    cloud.admit(group, network)
    if run.instances > 1:
        cloud.admit_members(group)
        cloud.ensure_placement(run.label, run.tags)
    untried = list(plan.subnets)
    while not run.members:
        if run.deadline is None:
            # Saved before the start: a repeated call requests the same instance.
            run.deadline = float(int(time.time() + run.hours * 3600))
            run.price = plan.price
            run.request = _request(run, plan, untried.pop(0), group)
            run.to("asked")
        _launch(run, untried)
    for rank, member in enumerate(run.members):
        label = run.label if rank == 0 else f"{run.label}-{rank}"
        cloud.ensure_alarms(label, member.id, run.hours, run.tags)
    for rank, member in enumerate(run.members):
        with waiting(f"waiting until {member.id} runs"):
            _wait_for_address(run, member)
        if run.uri is None:
            cloud.keep_volume(member.id, keep=rank == 0)  # the first has the results


def _request(run: Run, plan: Plan, subnet: dict, group: str) -> dict[str, Any]:
    """The parameters of RunInstances, except user data and token."""
    tags = {**run.tags, DEADLINE: f"{run.deadline:.0f}", PRICE: str(run.price or "")}
    door = {"DeviceIndex": 0, "SubnetId": subnet["SubnetId"], "Groups": [group]}
    door |= {"DeleteOnTermination": True, "AssociatePublicIpAddress": True}
    return {
        **plan.request,
        "KeyName": run.label,
        "NetworkInterfaces": [door],
        "TagSpecifications": tagged(tags, "instance", "volume"),
        **({"Placement": {"GroupName": run.label}} if run.instances > 1 else {}),
        **({"IamInstanceProfile": {"Name": run.label}} if run.uses_bucket else {}),
    }


def adopt(run: Run) -> None:
    """Adopt instances whose start request got no answer; drop those that are gone.

    The run then has instances, perhaps fewer than were requested; or only a deadline, if the start
    may be requested again; or neither.
    """
    cloud = run.cloud()
    if run.members:
        gone = [one for one in run.members if _is_gone(one, cloud.state(one.id))]
        for member in gone:
            left = len(run.members) - len(gone)
            needed = f"{left} of {run.instances} are left" if left else "a new machine is needed"
            say(f"{member.id} is gone: {needed}")
        if len(gone) == len(run.members):
            cloud.terminate([one.id for one in gone])  # waits until their disks are free
            _forget(run)
        elif gone:  # the job on the others must be restarted
            run.members = [one for one in run.members if one not in gone]
            run.to("there")
    elif run.deadline is not None:
        living = [one for one in cloud.instances(run=run.name) if one.state not in GONE]
        late = time.time() > run.deadline - run.hours * 3600 + LOST_ANSWER_S
        if len(living) >= run.instances or (living and late):  # EC2 may not list them all yet
            found = living[-run.instances :]
            run.members = [Member(one.id, launched=one.launched) for one in found]
            run.to("there")
        elif late:
            _forget(run)


def _is_gone(member: Member, state: str | None) -> bool:
    late = time.time() > (member.launched or 0) + LOST_ANSWER_S
    return state in GONE or (state is None and late)


def _forget(run: Run, to: str = "lost") -> None:
    """Forget machines that are gone or never existed; the next start is a new request."""
    run.attempt += 1
    run.to(to)


def _launch(run: Run, untried: list[dict]) -> None:
    """Start the instances; if the zone is full, return so that the next one is tried."""
    say(f"starting {'a' if run.instances == 1 else run.instances} {run.instance_type}")
    token = f"{run.name}-{run.attempt}"
    asked = {**(run.request or {}), "UserData": user_data(run), "ClientToken": token}
    try:
        ids = run.cloud().launch(asked)
    except CloudError as error:
        if error.refused:  # otherwise there may be instances
            _forget(run, "planned" if run.began_with is None else "lost")
        if error.code not in FULL or not untried:
            raise
        say(f"{error.code} there: trying {untried[0]['AvailabilityZone']}")
    else:
        run.members = [Member(one, launched=time.time()) for one in ids]
        run.to("there")


def _wait_for_address(run: Run, member: Member) -> None:
    try:
        run.cloud().wait("instance_running", InstanceIds=[member.id])
    except CloudError:
        _check_alive(run, member)
        raise
    found = run.cloud().instance(member.id)
    if found is None or found.address is None:
        raise CloudError(f"{member.id} has no public address: its subnet assigned none")
    member.address, member.private, member.launched = found.address, found.private, found.launched
    run.save()


def _check_alive(run: Run, member: Member) -> None:
    """CloudError if an instance has ended; it is then dropped from the run."""
    found = run.cloud().instance(member.id)
    if found and found.state in GONE:
        adopt(run)
        raise CloudError(f"{member.id} has ended: {found.reason}")


def wait_for_login(run: Run, machine: Machine) -> None:
    """Wait until the machine has booted and accepts the key; RemoteError if it lacks a program."""

    def look_at_ec2(_) -> None:
        if run.host is None:
            _check_alive(run, run.members[machine.rank])

    patience = PATIENCE_S if run.host is None else 30
    for attempt in Retrying(
        retry=retry_if_exception_type((Unreachable, NotLoggedIn)),  # booting, without the key yet
        stop=stop_after_delay(patience),
        wait=wait_fixed(2),
        before_sleep=look_at_ec2,
        reraise=True,
    ):
        with attempt:
            machine.run("true", timeout=15)
            machine.run("cloud-init status --wait >/dev/null 2>&1 || true", timeout=patience)
    install = "sudo dnf install -y rsync" if run.host is None else "false"
    try:
        machine.run(f"command -v python3 && (command -v rsync || {install})", timeout=300)
    except CommandFailed as error:
        raise RemoteError(f"{machine.access.name}: expected python3 and rsync") from error


def renew_host_key(run: Run, machine: Machine) -> None:
    """Replace the host key of the user data by one made there; both count until it is seen."""
    member = run.members[machine.rank]
    if member.sealed:
        return
    made = "/etc/ssh/ssh_host_ed25519_key"
    make = f"rm -f {made}.new*; ssh-keygen -q -t ed25519 -N '' -f {made}.new; cat {made}.new.pub"
    if member.proof is None:
        member.proof = " ".join(machine.run(f'sudo sh -c "{make}"').split()[:2])
        run.save()
    put = f"test ! -e {made}.new || mv {made}.new {made}; mv -f {made}.new.pub {made}.pub"
    reload = "systemctl reload ssh || systemctl reload sshd"
    run.machine(machine.rank).run(f'sudo sh -c "{put}; {reload}"')
    member.sealed = True
    run.machine(machine.rank).run("true")
    run.save()


def check_end(run: Run, machine: Machine) -> None:
    """Check that the machine will end itself; otherwise terminate it and raise RemoteError."""
    try:
        for unit in (TIMER, GUARD):  # given several units, is-active needs only one of them
            machine.run(f"systemctl is-active {unit}")
    except CommandFailed as error:
        member = run.members[machine.rank].id
        run.cloud().terminate([member])
        adopt(run)
        raise RemoteError(
            f"{member} was terminated: its {unit} is {error.output}; it might never end itself"
        ) from error
