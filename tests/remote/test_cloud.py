"""What goes wrong at EC2: one message each, with what exists now and how to continue."""

import logging
import math
import time
from dataclasses import replace

import pytest
from moto.ec2.models import EC2Backend

from mmattn.errors import UserError
from mmattn.remote import cloud, deploy, launch, teardown
from mmattn.remote.cloud import RUN, Cloud
from mmattn.remote.launch import make_instance
from mmattn.remote.plan import make_plan
from mmattn.remote.runs import Run
from mmattn.remote.ssh import CommandFailed
from mmattn.remote.user_data import LIMIT, user_data
from tests.remote.machines.cloud_api import Fault, lost_answers

ALL = {"instances": 1, "key pairs": 1, "security groups": 1, "volumes": 1, "alarms": 2}
FREE = {"key pairs": 1, "security groups": 1}
REFUSES = "127.88.0.99"  # nothing listens there: connections are refused at once


class Clock:
    """Time in which waiting takes no time."""

    def __init__(self):
        self.slept = 0.0

    def __getattr__(self, name):
        return getattr(time, name)

    def time(self) -> float:
        return time.time() + self.slept

    def monotonic(self) -> float:
        return time.monotonic() + self.slept

    def sleep(self, seconds: float) -> None:
        self.slept += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> Clock:
    clock = Clock()
    waiting = ("botocore.endpoint", "botocore.waiter", "tenacity.nap")
    for module in (*waiting, launch.__name__, teardown.__name__):
        monkeypatch.setattr(f"{module}.time", clock)
    return clock


def fail(run: Run, *signs: str) -> str:
    """Deploy; the error, one message that holds these signs."""
    with pytest.raises(UserError) as error:
        deploy.deploy(run, yes=True, dry_run=False)
    text = str(error.value)
    for sign in signs:
        assert sign in text
    return text


def make(run: Run) -> Run:
    """The run with its instance, as far as EC2 goes."""
    run.save()
    make_instance(run, make_plan(run, run.cloud()))
    return run


def actions(api) -> list[str]:
    return [call.action for call in api.calls if "DryRun" not in call.parameters]


# Starting an instance


def test_a_lost_answer_is_asked_for_again(run, cloud_api):
    cloud_api.faults.append(lost_answers("RunInstances", 2))
    make(run)
    assert actions(cloud_api).count("RunInstances") == 3
    assert cloud_api.resources() == ALL


def test_a_start_whose_answer_never_comes_is_adopted(run, cloud_api):
    cloud_api.faults.append(lost_answers("RunInstances"))
    text = fail(run, "perhaps 1 whose start was requested")
    assert "(c5.24xlarge, $4.08 an hour, ends by " in text
    assert "The same command continues" in text
    assert f"`fab teardown --run {run.name}` removes it all" in text
    cloud_api.faults.clear()
    make(Run.find())
    assert cloud_api.resources() == ALL
    assert Run.find().attempt == 1


def test_an_instance_that_ec2_does_not_list_yet_is_not_made_twice(run, cloud_api, monkeypatch):
    """Its tags are not found; the same token gives the same instance."""
    cloud_api.faults.append(lost_answers("RunInstances"))
    fail(run)
    cloud_api.faults.clear()
    monkeypatch.setattr(Cloud, "instances", lambda *_, **__: [])
    make(Run.find())
    assert cloud_api.resources() == ALL


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("InsufficientInstanceCapacity", "RunInstances: InsufficientInstanceCapacity"),
        ("VcpuLimitExceeded", "RunInstances: VcpuLimitExceeded: as the test wants it"),
        ("UnauthorizedOperation", "remote-policy-bucket.json (RunInstances: "),
    ],
)
def test_a_refused_start_leaves_nothing_that_costs(run, cloud_api, code, advice):
    cloud_api.faults.append(Fault("RunInstances", code, math.inf))
    text = fail(run, advice, f"Now there is in {run.region}: ")
    assert code in text
    assert "an hour" not in text
    assert cloud_api.resources() == FREE
    cloud_api.faults.clear()
    make(Run.find())
    assert cloud_api.resources() == ALL


def test_a_full_zone_gives_way_to_the_next_each_with_its_own_token(run, cloud_api, clock, caplog):
    caplog.set_level(logging.INFO)
    full = Fault("RunInstances", "InsufficientInstanceCapacity", 14)  # of 7 tries each
    cloud_api.faults.append(full)
    make(run)
    starts = [call.parameters for call in cloud_api.calls if call.action == "RunInstances"]
    starts = [one for one in starts if "DryRun" not in one]
    assert len({one["ClientToken"] for one in starts}) == run.attempt
    assert cloud_api.resources() == ALL
    assert starts[-1]["NetworkInterface.1.AssociatePublicIpAddress"] == "true"
    assert "trying us-east-1b" in caplog.text and "trying us-east-1c" in caplog.text
    (one,) = cloud_api.launched()
    assert one.admitted == {"192.0.2.7/32"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "code"),
    [
        ("RunInstances", "InvalidGroup.NotFound"),
        ("RunInstances", "InvalidKeyPair.NotFound"),
        ("RunInstances", "InvalidPlacementGroup.Unknown"),
        ("AuthorizeSecurityGroupIngress", "InvalidGroup.NotFound"),
    ],
)
def test_what_was_just_made_may_not_be_known_yet(run, cloud_api, clock, action, code):
    cloud_api.faults.append(Fault(action, code, 5))
    make(run)
    assert clock.slept >= 15
    assert cloud_api.resources() == ALL


def test_a_machine_without_a_public_address_fails_at_once(run, cloud_api, clock):
    cloud_api.new_address = lambda: None
    fail(run, "has no public address: its subnet assigned none", "$4.08 an hour")
    assert clock.slept == 0


# Credentials, throttling, the network


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("ExpiredToken", "log in again (`aws sso login`)"),
        ("AuthFailure", "has not enabled this region"),
        ("UnauthorizedOperation", "lack a permission: see docs/remote-policy.json"),
    ],
)
def test_credentials_that_aws_refuses(run, cloud_api, code, advice):
    cloud_api.faults.append(Fault("*", code, math.inf))
    fail(run, advice)
    with pytest.raises(UserError, match="GetCallerIdentity: "):
        Cloud("us-east-1").caller()
    assert not cloud_api.resources()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "code"),
    [
        ("DescribeInstanceTypes", "RequestLimitExceeded"),
        ("GetParameter", "ThrottlingException"),
        ("RunInstances", "RequestLimitExceeded"),
        ("PutMetricAlarm", "Throttling"),
    ],
)
def test_throttling_passes_or_is_told(run, cloud_api, action, code):
    cloud_api.faults.append(Fault(action, code, math.inf))
    fail(run, code)
    cloud_api.faults[:] = [Fault(action, code, 3)]
    make(run)
    assert cloud_api.resources() == ALL


def test_throttling_during_a_start_leaves_it_open_whether_there_is_an_instance(run, cloud_api):
    cloud_api.faults.append(Fault("RunInstances", "RequestLimitExceeded", math.inf, done=True))
    fail(run, "perhaps 1 whose start was requested")
    cloud_api.faults.clear()
    make(Run.find())
    assert cloud_api.resources() == ALL


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            "AWS: found no credentials: `aws configure`",
        ),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "found in env, missing: AWS_SECRET_ACCESS_KEY"),
        ({"AWS_PROFILE": "nobody"}, "AWS: The config profile (nobody) could not be found"),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            'Could not connect to the endpoint URL: "http://127.0.0.1:9/"',
        ),
    ],
)
def test_a_wrong_environment(run, monkeypatch, changes, message):
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    fail(run, message)


def test_no_region(run, monkeypatch):
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(UserError, match="expected a region: `export AWS_REGION"):
        Cloud(None)


# What exists after a failure at each stage


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "exists"),
    [
        ("ImportKeyPair", "perhaps key pair, security group and alarms mmattn-"),
        ("CreateSecurityGroup", "perhaps key pair, security group and alarms mmattn-"),
        ("PutMetricAlarm", "i-"),
    ],
)
def test_what_exists_after_a_call_is_refused(run, cloud_api, action, exists):
    cloud_api.faults.append(Fault(action, "ExpiredToken"))
    text = fail(run, f"({action}: ExpiredToken: ", f")\nNow there is in us-east-1: {exists}")
    assert ("an hour" in text) == ("instances" in cloud_api.resources())
    assert text.endswith(
        f"). The same command continues from here; `fab teardown --run {run.name}` removes it all."
    )


def test_what_exists_after_the_machine_fails(run, cloud_api, monkeypatch):
    def broken(*_):
        raise CommandFailed("it", 1, "no space left")

    for name in ("wait_for_login", "check_end", "renew_host_key"):
        monkeypatch.setattr(deploy, name, lambda *_: None)
    monkeypatch.setattr(deploy, "send", broken)
    text = fail(run, "`it` failed with exit code 1: no space left\nNow there is in us-east-1: i-")
    found = Run.find()
    assert f"{found.instance_id} (c5.24xlarge, $4.08 an hour, ends by " in text
    assert f"perhaps key pair, security group and alarms {run.label} (cents a month)" in text


def test_after_a_failure_other_options_are_taken_unless_there_is_a_machine(run, cloud_api):
    cloud_api.faults.append(Fault("ImportKeyPair", "ExpiredToken"))
    fail(run)
    other = replace(run, name="no_aug-20260102-000000-bbbb", instance_type="c5.large")
    cloud_api.faults.append(Fault("PutMetricAlarm", "ExpiredToken"))
    fail(other, f"{other.label} (cents a month)", "(c5.large, $0.09 an hour")
    fail(
        replace(run, name="no_aug-20260102-000000-cccc", spot=True),
        f"the deployment of {other.name} was interrupted: it had "
        "--instance-type c5.large, --spot False; repeat it with these options",
    )
    assert cloud_api.resources()["instances"] == 1


# An instance that is slow, or that others end


def test_an_id_that_ec2_does_not_know_yet_is_waited_for(run, cloud_api):
    unknown = Fault("DescribeInstances", "InvalidInstanceID.NotFound", 3, naming="InstanceId")
    cloud_api.faults.append(unknown)
    make(run)
    assert unknown.times == 0
    assert run.members[0].address


def test_an_id_that_ec2_never_knows(run, cloud_api, monkeypatch):
    monkeypatch.setitem(cloud.WAIT, "MaxAttempts", 3)
    cloud_api.faults.append(
        Fault("DescribeInstances", "InvalidInstanceID.NotFound", math.inf, naming="InstanceId")
    )
    fail(run, "Waiter InstanceRunning failed: Max attempts exceeded", "$4.08 an hour")


def test_an_id_that_ec2_knows_no_more_is_replaced(run, cloud_api, clock):
    """A day after its end EC2 has forgotten an instance."""
    first = make(run).instance_id
    cloud_api.end(first, "Client.InstanceInitiatedShutdown")
    clock.sleep(24 * 3600)
    cloud_api.faults.append(
        Fault("DescribeInstances", "InvalidInstanceID.NotFound", naming="InstanceId")
    )
    make(run)
    assert (run.instance_id != first, run.attempt) == (True, 2)
    assert cloud_api.resources() == {**ALL, "volumes": 2}  # what may be on the first is kept


def test_an_instance_that_ends_before_it_runs(run, cloud_api, monkeypatch):
    monkeypatch.setattr(
        Cloud,
        "ensure_alarms",
        lambda _, __, instance_id, *___: cloud_api.end(instance_id, "Server.InternalError"),
    )
    text = fail(run, "has ended: Server.InternalError", "Now there is in us-east-1: ")
    assert "an hour" not in text


@pytest.mark.slow
@pytest.mark.parametrize("spot", [False, True])
def test_an_instance_that_is_ended_from_outside_while_it_boots(run, cloud_api, clock, spot):
    cloud_api.new_address = lambda: REFUSES
    run.spot = spot

    def end_at_once(seconds):
        cloud_api.end(Run.find().instance_id, "Server.SpotInstanceTermination")

    clock.sleep = end_at_once
    text = fail(
        run, "has ended: Server.SpotInstanceTermination\nNow there is in us-east-1: perhaps"
    )
    assert "an hour" not in text
    del clock.sleep
    again = make(Run.find())
    assert again.attempt == 2
    assert cloud_api.resources() == {**ALL, "volumes": 2}


# Disks


def test_a_disk_outlives_its_machine_until_that_is_changed(run, cloud_api):
    cloud = make(run).cloud()
    (volume,) = cloud.listed("volume", RUN, run.name)
    assert (volume["State"], volume["Size"]) == ("in-use", 20)
    assert [one["InstanceId"] for one in volume["Attachments"]] == [run.instance_id]
    cloud.terminate([run.instance_id])
    assert cloud.listed("volume", RUN, run.name)[0]["State"] == "available"
    for _ in range(2):  # one that is gone is no error
        cloud.delete("volume", volume["VolumeId"])
    assert not cloud.listed("volume", RUN, run.name)


def test_a_disk_is_attached_elsewhere_and_goes_with_its_machine_when_told(run, cloud_api):
    cloud = make(run).cloud()
    (volume,) = cloud.listed("volume", RUN, run.name)
    cloud.terminate([run.instance_id])
    first = run.instance_id
    make(run)
    assert run.instance_id != first
    cloud.attach(volume["VolumeId"], run.instance_id, "/dev/sdf")
    found = [one["Attachments"][0]["InstanceId"] for one in cloud.listed("volume", RUN, run.name)]
    assert found == [run.instance_id] * 2
    cloud.keep_volume(run.instance_id, keep=False)
    call = cloud_api.calls[-1]
    assert call.action == "ModifyInstanceAttribute"
    assert call.parameters["BlockDeviceMapping.1.Ebs.DeleteOnTermination"] == "true"


# Removal


def test_a_group_in_use_is_deleted_as_soon_as_it_is_free(run, cloud_api, clock):
    make(run)
    used = Fault("DeleteSecurityGroup", "DependencyViolation", 4)
    cloud_api.faults.append(used)
    teardown.teardown(run.name, None, force=True)
    assert (used.times, clock.slept >= 12) == (0, True)
    assert not cloud_api.resources()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "code", "left"),
    [
        ("DeleteSecurityGroup", "DependencyViolation", FREE),
        ("TerminateInstances", "ExpiredToken", ALL),
        ("DeleteKeyPair", "RequestLimitExceeded", {"key pairs": 1}),
    ],
)
def test_a_failed_removal_tells_what_may_be_left_and_continues(run, cloud_api, action, code, left):
    make(run)
    cloud_api.faults.append(Fault(action, code, math.inf))
    with pytest.raises(UserError) as error:
        teardown.teardown(run.name, None, force=True)
    text = str(error.value)
    assert f"{action}: {code}" in text
    assert f"Now there is in us-east-1: {run.instance_id} (c5.24xlarge, $4.08 an hour" in text
    assert f"`fab teardown --run {run.name}` removes it all" in text
    assert cloud_api.resources() == left
    cloud_api.faults.clear()
    teardown.teardown(run.name, None, force=True)
    assert not cloud_api.resources()


def test_an_instance_that_does_not_end(run, cloud_api, monkeypatch):
    make(run)
    monkeypatch.setitem(cloud.WAIT, "MaxAttempts", 3)
    monkeypatch.setattr(EC2Backend, "terminate_instances", lambda *_: [])
    with pytest.raises(UserError, match="Waiter InstanceTerminated failed: Max attempts exceeded"):
        teardown.teardown(run.name, None, force=True)


def test_what_is_left_after_removal_is_an_error(run, cloud_api, monkeypatch):
    make(run)
    delete = Cloud.delete
    monkeypatch.setattr(
        Cloud, "delete", lambda self, kind, *of: kind[0] == "k" or delete(self, kind, *of)
    )
    with pytest.raises(UserError, match=f"still in us-east-1: key pair mmattn-{run.name}"):
        teardown.teardown(run.name, None, force=True)


# What the instance is told


def test_the_user_data_of_the_longest_name_is_within_ec2s_limit(tmp_path, monkeypatch):
    """A run's name is a folder's, at most 255 bytes; random ones do not compress."""
    monkeypatch.chdir(tmp_path)
    name = "".join(chr(ord("a") + (7919 * i * i) % 26) for i in range(255))
    run = Run(name, "no_aug", deadline=2e9)
    run.save()
    assert len(user_data(run).encode()) < LIMIT - 1024
