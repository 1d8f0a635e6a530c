"""Runs of several machines, as EC2 and the screen have them: made together, told apart, removed."""

import io
import math
import os
import subprocess
import time

import pytest
from rich.console import Console

from mmattn.errors import UserError
from mmattn.remote import jobs, launch, teardown
from mmattn.remote.cloud import Cloud
from mmattn.remote.deploy import what_exists
from mmattn.remote.jobs import PORT, check_names, settle
from mmattn.remote.launch import adopt, make_instance
from mmattn.remote.monitor import TAIL, Link
from mmattn.remote.plan import cost_text, make_plan
from mmattn.remote.runs import Member, Run
from mmattn.remote.screen import report
from mmattn.remote.ssh import RemoteError, Unreachable
from tests.remote.machines.cloud_api import Fault, lost_answers
from tests.remote.test_monitor import ENDED, FakeMachine, instance, make_snapshot

pytestmark = pytest.mark.slow

ALL = {
    "instances": 3,
    "key pairs": 1,
    "security groups": 1,
    "placement groups": 1,
    "volumes": 3,
    "alarms": 6,
}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    for module in ("botocore.waiter", "tenacity.nap"):
        monkeypatch.setattr(f"{module}.time.sleep", lambda _: None)


@pytest.fixture
def three(run) -> Run:
    """A run of three machines, as far as EC2 goes."""
    run.instances = 3
    return make(run)


def make(run: Run) -> Run:
    run.save()
    make_instance(run, make_plan(run, run.cloud()))
    return Run.find(run.name)


def starts(api) -> list[dict[str, str]]:
    made = [call.parameters for call in api.calls if call.action == "RunInstances"]
    return [one for one in made if "DryRun" not in one]


def test_they_are_started_together_or_not_at_all(three, cloud_api):
    assert cloud_api.resources() == ALL
    (start,) = starts(cloud_api)
    assert (start["MinCount"], start["MaxCount"]) == ("3", "3")
    assert start["Placement.GroupName"] == three.label
    assert len({one.private for one in three.members}) == 3
    (made,) = (call for call in cloud_api.calls if call.action == "CreatePlacementGroup")
    assert (made.parameters["GroupName"], made.parameters["Strategy"]) == (three.label, "cluster")


def test_one_machine_is_asked_for_as_ever(run, cloud_api):
    make(run)
    (start,) = starts(cloud_api)
    assert (start["MinCount"], start["MaxCount"]) == ("1", "1")
    assert not [name for name in start if name.startswith("Placement")]
    assert "placement groups" not in cloud_api.resources()
    assert "--distributed" not in " ".join(jobs._command(run, False, 0))


def test_they_reach_each_other_and_no_other_reaches_them(three, cloud_api):
    ec2 = Cloud("us-east-1").ec2
    group_id = three.cloud().group(three.label)
    (group,) = ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
    rules = {
        (rule["IpProtocol"], rule["FromPort"], rule["ToPort"]): (
            [one["CidrIp"] for one in rule["IpRanges"]],
            [one["GroupId"] for one in rule["UserIdGroupPairs"]],
        )
        for rule in group["IpPermissions"]
    }
    assert rules == {
        ("tcp", 22, 22): (["192.0.2.7/32"], []),
        ("tcp", 0, 65535): ([], [group_id]),
    }
    three.cloud().admit(group_id, "192.0.2.9/32")  # this computer has moved
    for one in cloud_api.launched():
        private = {f"{member.private}/32" for member in three.members}
        assert one.admitted == {"192.0.2.9/32", *private}


def test_each_process_is_told_its_rank_and_a_private_coordinator(three):
    for rank in range(3):
        assert jobs._command(three, True, rank)[-8:] == [
            *("--distributed.coordinator", f"{three.members[0].private}:{PORT}"),
            *("--distributed.num-processes", "3"),
            *("--distributed.process-id", str(rank)),
            *("--distributed.timeout", str(120 + 3 * 15)),
        ]


def test_a_lost_answer_gives_the_same_machines_in_the_same_order(run, cloud_api):
    cloud_api.faults.append(lost_answers("RunInstances"))
    run.instances = 3
    with pytest.raises(UserError):
        make(run)
    cut = Run.find(run.name)
    assert "perhaps 3 whose start was requested" in what_exists(cut)
    cloud_api.faults.clear()
    assert [one.id for one in make(cut).members] == [one.id for one in cloud_api.launched()]
    assert cloud_api.resources() == ALL


def test_some_that_ec2_lists_are_not_taken_for_all(run, cloud_api, monkeypatch):
    cloud_api.faults.append(lost_answers("RunInstances"))
    run.instances = 3
    with pytest.raises(UserError):
        make(run)
    cloud_api.faults.clear()
    listed = Cloud.instances
    monkeypatch.setattr(Cloud, "instances", lambda *a, **b: listed(*a, **b)[:2])
    assert len(make(Run.find(run.name)).members) == 3
    assert cloud_api.resources() == ALL


@pytest.mark.parametrize("action", ["CreatePlacementGroup", "AuthorizeSecurityGroupIngress"])
def test_a_refusal_before_the_start_leaves_nothing_that_costs(run, cloud_api, action):
    cloud_api.faults.append(Fault(action, "UnauthorizedOperation", math.inf))
    run.instances = 3
    with pytest.raises(UserError, match=r"docs/remote-policy\.json"):
        make(run)
    assert "instances" not in cloud_api.resources()
    cloud_api.faults.clear()
    make(Run.find(run.name))
    assert cloud_api.resources() == ALL


def test_no_room_for_all_is_none(run, cloud_api):
    cloud_api.faults.append(Fault("RunInstances", "InsufficientInstanceCapacity", math.inf))
    run.instances = 3
    with pytest.raises(UserError, match="RunInstances: InsufficientInstanceCapacity"):
        make(run)
    assert "instances" not in cloud_api.resources()
    teardown.teardown(run.name, None, force=False)
    assert not cloud_api.resources()


@pytest.mark.parametrize("lost", [[1], [0], [0, 2]])
def test_the_run_continues_with_those_that_are_left(three, cloud_api, lost):
    for state in ("sent", "built", "started"):
        three.to(state)
    ids = [one.id for one in three.members]
    for rank in lost:
        cloud_api.end(ids[rank], "Server.SpotInstanceTermination")
    adopt(three)
    left = [one for rank, one in enumerate(ids) if rank not in lost]
    assert [one.id for one in three.members] == left
    assert (three.state, three.attempt) == ("there", 1)
    assert len(starts(cloud_api)) == 1
    assert "--distributed.num-processes" in jobs._command(three, True, 0) or len(left) == 1


def test_when_all_are_gone_as_many_new_ones_are_made(three, cloud_api):
    for member in three.members:
        cloud_api.end(member.id, "Server.SpotInstanceTermination")
    again = make(three)
    assert (len(again.members), again.attempt) == (3, 2)
    assert cloud_api.resources()["instances"] == 3


class Recorder:
    """A machine that keeps what it was told."""

    def __init__(self, rank: int):
        self.rank, self.base, self.told = rank, "mmattn/x", []

    def run(self, command: str, timeout: float = 30) -> str:
        self.told.append(command)
        return "yes\n"

    def call(self, module: str, *options: str, **_) -> dict:
        self.told.append(f"{module} {' '.join(options)}")
        return {}


@pytest.mark.parametrize("lost", [0, 1])
def test_jobs_of_an_earlier_set_are_ended_and_stale_results_forgotten(three, lost):
    three.leader = three.instance_id
    for state in ("sent", "built", "started"):
        three.to(state)
    first = [Recorder(rank) for rank in range(3)]
    settle(three, first)
    assert not any(machine.told for machine in first)
    del three.members[lost]
    three.to("there")
    rest = [Recorder(0), Recorder(1)]
    settle(three, rest)
    assert all("job end 120" in machine.told for machine in rest)
    removed = [f"rm -rf {three.base}/run {three.base}/job"]
    assert [one for one in rest[0].told if one.startswith("rm ")] == (removed if lost == 0 else [])


@pytest.mark.parametrize("known", [True, False])
def test_teardown_ends_all_also_those_that_only_their_tags_know(three, cloud_api, known):
    if not known:
        (three.folder / "state.json").unlink()
    teardown.teardown(three.name, "us-east-1", force=True)
    assert not cloud_api.resources()


def test_teardown_asks_for_no_results_of_a_first_machine_that_is_gone(three, cloud_api):
    cloud_api.end(three.instance_id, "Server.SpotInstanceTermination")
    teardown.teardown(three.name, None, force=False)
    assert not cloud_api.resources()


def test_a_placement_group_that_is_left_is_told(three, monkeypatch):
    delete = Cloud.delete
    monkeypatch.setattr(
        Cloud, "delete", lambda self, kind, *of: kind[0] == "p" or delete(self, kind, *of)
    )
    with pytest.raises(UserError, match=f"still in us-east-1: placement group {three.label}"):
        teardown.teardown(three.name, None, force=True)


def test_each_is_listed(three, monkeypatch):
    shown = []
    monkeypatch.setattr(teardown, "say_table", lambda *table, **_: shown.extend(table[2]))
    teardown.list_runs(None)
    assert [row[:3] for row in shown] == [(three.name, "us-east-1", "running")] * 3


def test_the_plan_costs_as_many_times_as_much(run):
    one = float(cost_text(run, 4.08, 0.01).rpartition("$")[2].split()[0])
    run.instances = 3
    text = cost_text(run, 4.08, 0.01)
    assert "3 x $4.08 an hour" in text
    assert float(text.rpartition("$")[2].split()[0]) == pytest.approx(3 * one, abs=0.02)


def test_what_exists_names_all_and_their_price(three):
    text = what_exists(three)
    assert all(one.id in text for one in three.members)
    assert "$12.24 an hour" in text


@pytest.mark.parametrize("age", [0, launch.LOST_ANSWER_S + 60])
def test_those_of_a_start_that_are_left_are_taken_up_when_ec2_must_list_all(three, cloud_api, age):
    """The answer was lost, and one has ended since."""
    ids = [one.id for one in three.members]
    cloud_api.end(ids[1], "Server.SpotInstanceTermination")
    three.members = []
    three.deadline = time.time() - age + three.hours * 3600
    adopt(three)
    assert [one.id for one in three.members] == ([] if age == 0 else [ids[0], ids[2]])


# Starting on all


class JobMachine(Recorder):
    """A machine with a job in some state."""

    def __init__(self, rank: int, state: str, exit_code: int | None = None):
        super().__init__(rank)
        self.job = {"state": state, "exit_code": exit_code}

    def call(self, module: str, *options: str, **more) -> dict:
        super().call(module, *options, **more)
        if options[:1] == ("start",):
            self.job = {"state": "running", "exit_code": None}
        return {"job": self.job}


@pytest.mark.parametrize(
    ("states", "due"),
    [
        (("running", "running", "running"), False),
        (("running", "absent", "absent"), True),  # the start was cut
        (("lost", "running", "running"), True),
    ],
)
def test_what_has_ended_on_one_is_started_on_all(three, monkeypatch, states, due):
    for state in ("sent", "built", "started"):
        three.to(state)
    monkeypatch.setattr(jobs, "check_names", lambda *_: None)
    monkeypatch.setattr(jobs.time, "sleep", lambda _: None)
    machines = [JobMachine(rank, state) for rank, state in enumerate(states)]
    jobs.start_training(three, machines)
    for rank, machine in enumerate(machines):
        ended = "job end 120" in machine.told
        assert ended == due
        started = [told for told in machine.told if told.startswith("job start")]
        assert [f"--distributed.process-id {rank}" in one for one in started] == [True] * due


def test_a_name_that_still_means_the_loopback_is_told(three):
    class Named(Recorder):
        def run(self, command: str, **_) -> str:
            return f"{three.members[0].private}\n" if self.rank == 0 else "127.0.1.1\n"

    private = three.members[1].private.replace(".", r"\.")
    with pytest.raises(RemoteError, match=f"machine 1: expected its name to resolve to {private}"):
        check_names(three, [Named(0), Named(1)])


def test_a_name_is_taken_from_the_loopback_wherever_it_stands(tmp_path):
    name, hosts = os.uname().nodename, tmp_path / "hosts"
    hosts.write_text(f"127.0.1.1 {name} {name}\n127.0.1.1 {name}.here {name}\n::1 localhost\n")
    script = jobs.NAME.format(address="192.0.2.5").replace("sudo -n", "")
    subprocess.run(["sh", "-c", script.replace("/etc/hosts", str(hosts))], check=True)
    lines = [line.split() for line in hosts.read_text().splitlines()]
    assert lines == [
        ["192.0.2.5", name],
        ["127.0.1.1"],
        ["127.0.1.1", f"{name}.here"],
        ["::1", "localhost"],
    ]


# Watching all


class WatchedRun(Run):
    """Two machines of a test, and EC2's answer of the second."""

    def machine(self, rank=0):
        return self.there[rank]

    def cloud(self):
        return self

    def instance(self, instance_id):
        assert instance_id == "i-2"
        return self.found


def watched(first: FakeMachine, second: FakeMachine, found=None) -> WatchedRun:
    members = [Member("i-1", "192.0.2.1"), Member("i-2", "192.0.2.2")]
    run = WatchedRun("no_aug-20261118-102000-ab12", "no_aug", region="x", members=members)
    run.deadline = time.time() + 60
    run.there, run.found = [first, second], found
    return run


def shown(link: Link) -> str:
    out = io.StringIO()
    console = Console(file=out, width=100)
    console.print(report(link.run, link.snapshot(TAIL), link.touch, time.time()))
    return out.getvalue()


def test_each_machine_has_a_row():
    link = Link(watched(FakeMachine(make_snapshot()), FakeMachine(make_snapshot())), print)
    text = shown(link)
    assert "machine 0" in text and "machine 1" in text
    assert text.count("CPU") == 2
    link.run.there[1].answers = [make_snapshot(**ENDED | {"exit_code": 134})]
    assert "killed by SIGABRT (exit code 134)" in shown(link)


def test_a_silent_machine_is_told():
    second = FakeMachine(Unreachable("silence"))
    link = Link(watched(FakeMachine(make_snapshot()), second, instance("running")), print)
    assert "no connection: silence; EC2 says running" in shown(link)


def test_a_machine_that_is_lost_ends_the_watch():
    gone = instance("terminated", "Server.SpotInstanceTermination")
    first = FakeMachine(make_snapshot())
    link = Link(watched(first, FakeMachine(Unreachable("silence")), gone), print)
    with pytest.raises(RemoteError) as caught:
        link.snapshot(TAIL)
    assert str(caught.value) == (
        "machine 1, i-2, is terminated at EC2 (Server.SpotInstanceTermination). "
        "`fab resume` restarts the job on the other machines"
    )


def test_a_machine_that_went_when_its_job_was_done_is_no_loss():
    done = make_snapshot(**ENDED | {"exit_code": 0})
    second = FakeMachine(done, Unreachable("silence"))
    link = Link(watched(FakeMachine(make_snapshot()), second, instance("terminated")), print)
    for expected in ("ended well", "no connection: silence", "no connection: silence"):
        assert expected in shown(link)
