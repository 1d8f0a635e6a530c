"""The instance and what belongs to it: made once whatever is cut, and removed whole."""

import itertools
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
from botocore.client import BaseClient

from mmattn.errors import UserError
from mmattn.remote import launch, teardown
from mmattn.remote.cloud import RUN, Cloud
from mmattn.remote.kept import kept_disks, take_up
from mmattn.remote.launch import adopt
from mmattn.remote.plan import Plan, make_plan
from mmattn.remote.runs import Run
from tests.remote.test_several import Recorder


class Crash(BaseException):
    """The computer went away."""


@pytest.fixture
def run(run) -> Run:
    """A run that is planned, in an account with nothing in it."""
    run.save()
    return run


@pytest.fixture
def plan(run) -> Plan:
    return make_plan(run, run.cloud())


def make(run: Run, plan: Plan) -> Run:
    launch.make_instance(run, plan)
    return Run.find(run.name)


def crashes(run: Run, plan: Plan, monkeypatch, after: bool) -> Iterator[Run]:
    """Runs whose making was cut at the first, second, … call that changes something; then a whole.

    Args:
        after: cut after the call instead of before it.
    """
    call = BaseClient._make_api_call
    for number in itertools.count(1):
        fresh = replace(run, name=f"{run.name[:-4]}{number:04x}")
        fresh.save()
        changes = itertools.count(1)

        def cut(self, action, *args, changes=changes, number=number):
            due = not action.startswith(("Describe", "Get")) and next(changes) == number
            if due and not after:
                raise Crash
            answer = call(self, action, *args)
            if due:
                raise Crash
            return answer

        crashed = False
        with monkeypatch.context() as patch:
            patch.setattr(BaseClient, "_make_api_call", cut)
            try:
                make(fresh, plan)
            except Crash:
                crashed = True
        yield Run.find(fresh.name)
        if not crashed:
            assert number > 6  # key pair, group, its rule, instance, two alarms
            return


def made_alarms(api) -> dict[str, dict[str, str]]:
    made = [call.parameters for call in api.calls if call.action == "PutMetricAlarm"]
    return {one["AlarmName"].rpartition("-")[2]: one for one in made}


def test_the_instance_is_made_as_promised(run, plan, cloud_api):
    run = make(run, plan)
    ec2 = Cloud("us-east-1").ec2
    group_id = run.cloud().group(run.label)
    (group,) = ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
    (rule,) = group["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
    assert [one["CidrIp"] for one in rule["IpRanges"]] == ["192.0.2.7/32"]
    (found,) = ec2.describe_instances(InstanceIds=[run.instance_id])["Reservations"][0]["Instances"]
    assert found["MetadataOptions"]["HttpTokens"] == "required"
    assert found["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    tags = {tag["Key"]: tag["Value"] for tag in found["Tags"]}
    assert tags["mmattn:run"] == run.name
    assert float(tags["mmattn:deadline"]) == run.deadline
    shutdown = ec2.describe_instance_attribute(
        InstanceId=run.instance_id, Attribute="instanceInitiatedShutdownBehavior"
    )
    assert shutdown["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate"
    (volume,) = ec2.describe_volumes(Filters=[{"Name": "tag:mmattn:run", "Values": [run.name]}])[
        "Volumes"
    ]
    assert volume["Encrypted"]
    assert volume["Size"] == 20
    assert not found["BlockDeviceMappings"][0]["Ebs"]["DeleteOnTermination"]
    alarms = made_alarms(cloud_api)
    # Twice an hour more than six, since the window slides: it cannot be reached at six.
    assert (alarms["deadline"]["Period"], alarms["deadline"]["EvaluationPeriods"]) == ("3600", "8")
    assert run.key.stat().st_mode & 0o777 == run.host_key.stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_anywhere_is_recovered_from(run, plan, cloud_api, monkeypatch, after):
    for cut in crashes(run, plan, monkeypatch, after):
        made = make(cut, plan)
        remains = made.cloud().remains(made.name, made.label)
        assert {kind: len(names) for kind, names in remains.items()} == {
            **dict.fromkeys(("instance", "security group", "key pair", "volume"), 1),
            "alarm": 2,
        }
        teardown.teardown(made.name, None, force=True)
        assert not cloud_api.resources()


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_teardown_after_a_crash_anywhere_leaves_nothing(run, plan, cloud_api, monkeypatch, after):
    for cut in crashes(run, plan, monkeypatch, after):
        teardown.teardown(cut.name, None, force=False)
        assert not cloud_api.resources()


def test_the_state_is_gone(run, plan, cloud_api, tmp_path):
    made = make(run, plan)
    shutil.rmtree(made.folder)
    with pytest.raises(UserError, match=r"not in \.fab, .* --force removes"):
        teardown.teardown(made.name, "us-east-1", force=False)
    teardown.teardown(made.name, "us-east-1", force=True)
    assert not cloud_api.resources()
    with pytest.raises(UserError, match=r"no such run in us-east-1, nor in \.fab"):
        teardown.teardown(made.name, "us-east-1", force=True)


def test_teardown_twice_and_after_an_end_from_outside(run, plan, cloud_api):
    made = make(run, plan)
    Cloud("us-east-1").ec2.terminate_instances(InstanceIds=[made.instance_id])
    teardown.teardown(made.name, None, force=False)
    assert not cloud_api.resources()
    teardown.teardown(made.name, None, force=False)


def make_started(run: Run, plan: Plan) -> Run:
    """Made as far as a job that began."""
    made = make(run, plan)
    for state in ("sent", "built", "started"):
        made.to(state)
    made.began_with = "digest"
    made.save()
    return made


def test_a_disk_with_results_is_kept_until_they_are_fetched(run, plan, cloud_api, monkeypatch):
    made = make_started(run, plan)
    cloud_api.end(made.instance_id, "Client.InstanceInitiatedShutdown")
    with pytest.raises(
        UserError, match=r"vol-\w+ has results of .*: `fab resume` continues from it"
    ):
        teardown.teardown(made.name, None, force=False)
    assert cloud_api.resources()["volumes"] == 1
    shown = []
    monkeypatch.setattr(teardown, "say_table", lambda *table, **_: shown.extend(table[2]))
    teardown.list_runs("us-east-1")
    ((name, where, state, *_),) = shown
    assert (name, where) == (made.name, "us-east-1")
    assert re.fullmatch(rf"left: vol-\w+ sg-\w+ {made.label}", state)
    adopt(made)
    assert (made.state, made.members) == ("lost", [])
    (disk,) = Cloud("us-east-1").listed("volume", RUN, made.name)
    again = make_plan(made, made.cloud())
    assert {one["AvailabilityZone"] for one in again.subnets} == {disk["AvailabilityZone"]}
    new = make(made, again)
    machine = Recorder(0)
    take_up(new, machine)
    assert f"*{disk['VolumeId'].replace('-', '')}*" in machine.told[0]
    assert f"cp -a run ~/{new.base}/" in machine.told[0]
    (left,) = Cloud("us-east-1").listed("volume", RUN, made.name)
    assert left["Attachments"][0]["InstanceId"] == new.instance_id  # its own, of which it boots
    take_up(new, machine)
    assert len(machine.told) == 1


def test_a_disk_is_kept_before_its_machine_has_let_it_go(run, plan, cloud_api, monkeypatch):
    made = make_started(run, plan)
    assert kept_disks(made) == []
    listed = Cloud.instances

    def shutting_down(cloud, **asked):
        found = listed(cloud, **asked)
        for one in found:
            one.state = "shutting-down"
        return found

    monkeypatch.setattr(Cloud, "instances", shutting_down)
    monkeypatch.setattr(Cloud, "state", lambda *asked: "shutting-down")
    assert len(kept_disks(made)) == 1
    with pytest.raises(UserError, match="has results of") as error:
        teardown.teardown(made.name, None, force=False)
    assert "removes it all" not in str(error.value)


def test_own_address_changed(run, plan, cloud_api):
    made = make(run, plan)
    cloud = made.cloud()
    group_id = cloud.group(made.label)
    assert cloud.admit(group_id, "192.0.2.9/32")
    assert not cloud.admit(group_id, "192.0.2.9/32")
    (group,) = cloud.ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
    assert [one["CidrIp"] for one in group["IpPermissions"][0]["IpRanges"]] == ["192.0.2.9/32"]
