"""The stand-ins for AWS do what is said of them: else tests that use them would prove nothing."""

import gzip
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError

from mmattn.remote.ssh import make_key
from tests.remote.machines.cloud_api import CloudApi, Fault, lost_answers
from tests.remote.machines.guest import reach
from tests.remote.machines.network import Network
from tests.remote.waiting import wait_until

IMAGE = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
METADATA = """
import sys, urllib.request as web
def ask(method, page, **headers):
    request = web.Request("http://169.254.169.254/latest" + page, method=method, headers=headers)
    with web.urlopen(request, timeout=5) as answer:
        return answer.read().decode()
life = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
key = {"X-aws-ec2-metadata-token": ask("PUT", "/api/token", **life)} if "key" in sys.argv else {}
try:
    print(ask("GET", sys.argv[1], **key))
except web.HTTPError as error:
    print(error.code)
"""


@pytest.fixture(scope="module")
def machine(boot_guest):
    with boot_guest() as guest:
        yield guest


def ssh_in(guest) -> subprocess.Popen:
    """A session that continues; its client notices within two seconds that nothing comes."""
    login = guest.login(ServerAliveInterval=1, ServerAliveCountMax=1)
    session = subprocess.Popen(
        [*login, "echo in; sleep 100"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with session.stdout:
        assert session.stdout.readline() == b"in\n"
    return session


def metadata(guest, page: str, *key: str) -> str:
    return guest.ssh("python3", "-c", f"'{METADATA}'", page, *key).strip()


# Machines


def test_a_machine_lets_its_key_in_and_root_by_sudo(machine):
    assert machine.ssh("whoami; sudo whoami; pwd") == f"{machine.user}\nroot\n{machine.home}\n"
    assert "status: done" in machine.run("cloud-init status --long")


def test_killed_connections_break_and_new_ones_are_made(machine):
    session = ssh_in(machine)
    machine.kill_ssh_connections()
    assert session.wait(5) == 255
    assert machine.ssh("echo again") == "again\n"


def test_a_cut_link_is_a_black_hole_for_old_and_new_connections(machine):
    session = ssh_in(machine)
    machine.cut_link()
    assert reach(machine.address, 2) == "silent"
    assert session.wait(5) == 255
    machine.mend_link()
    assert machine.ssh("echo again") == "again\n"


def test_an_address_that_is_not_admitted_meets_silence(machine, network):
    session = ssh_in(machine)
    network.move_caller()
    assert reach(machine.address, 2) == "silent"
    assert session.wait(5) == 255
    machine.admit({f"{network.caller}/32"})
    assert machine.ssh("echo $SSH_CLIENT").split()[0] == network.caller


def test_metadata_needs_a_token_and_tells_of_an_interruption(guest):
    page = "/meta-data/spot/instance-action"
    assert metadata(guest, page) == "401"
    assert metadata(guest, page, "key") == "404"
    guest.metadata.announce_interruption(120)
    notice = json.loads(metadata(guest, page, "key"))
    end = time.strptime(notice.pop("time"), "%Y-%m-%dT%H:%M:%SZ")
    assert notice == {"action": "terminate"}
    assert 0 < time.mktime(end) - time.mktime(time.gmtime()) <= 120


def test_a_machine_goes_off_by_itself_or_at_once(guest, boot_guest):
    guest.ssh("sudo systemctl poweroff", check=False)
    guest.wait_until_off(10)
    with boot_guest() as other:
        assert other.is_on and not guest.is_on
        other.power_off()
        assert not other.is_on and reach(other.address) == "silent"


def test_a_killed_test_run_takes_its_machines_with_it(machine_image):
    program = (
        "import sys, time; from pathlib import Path;"
        "from tests.remote.machines.guest import Guest;"
        "from tests.remote.machines.network import Network; network = Network();"
        "guest = Guest(network, network.new_address(), Path(sys.argv[1]), b'', '');"
        "print(network.name, flush=True); time.sleep(100)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program, machine_image()], stdout=subprocess.PIPE, text=True
    )
    with run.stdout:
        name = run.stdout.readline().strip()
    doors = Path("/sys/class/net")
    assert list(doors.glob(f"{name}-*"))
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    # Its cable goes when the last process in its network has gone.
    wait_until(lambda: not list(doors.glob(f"{name}-*")))
    networks = []
    while name not in [network.name for network in networks]:
        networks.append(Network())
    assert list(networks[-1].folder.iterdir()) == []
    for network in networks:
        network.close()


# The API


def client(api: CloudApi, service: str = "ec2") -> Any:
    """As a program has it, but a call is not repeated."""
    return boto3.client(
        service,
        region_name=api.environment["AWS_REGION"],
        endpoint_url=api.environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=api.environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=api.environment["AWS_SECRET_ACCESS_KEY"],
        config=Config(retries={"total_max_attempts": 1}),
    )


def launch(api: CloudApi, **options) -> str:
    image = client(api, "ssm").get_parameter(Name=IMAGE)["Parameter"]["Value"]
    one = {"ImageId": image, "InstanceType": "c5.24xlarge", "MinCount": 1, "MaxCount": 1}
    return client(api).run_instances(**one | options)["Instances"][0]["InstanceId"]


def described(api: CloudApi, instance_id: str) -> dict:
    answer = api.client("ec2").describe_instances(InstanceIds=[instance_id])
    return answer["Reservations"][0]["Instances"][0]


def refusal(call: Callable, *arguments, **options) -> str:
    with pytest.raises(ClientError) as caught:
        call(*arguments, **options)
    return caught.value.response["Error"]["Code"]


def test_a_token_launches_once_even_if_the_answer_is_lost(cloud_api):
    cloud_api.faults.append(lost_answers("RunInstances", 1))
    with pytest.raises(ConnectionClosedError):
        launch(cloud_api, ClientToken="a")
    first, again = (launch(cloud_api, ClientToken="a") for _ in range(2))
    assert first == again != launch(cloud_api, ClientToken="b")
    assert cloud_api.resources() == {"instances": 2, "volumes": 2}
    changed = refusal(launch, cloud_api, ClientToken="a", EbsOptimized=True)
    assert changed == "IdempotentParameterMismatch"


def test_faults_hit_as_often_as_they_say(cloud_api):
    cloud_api.faults += [
        Fault("RunInstances", "VcpuLimitExceeded"),
        Fault("RunInstances", "InsufficientInstanceCapacity", done=True),
        Fault("DescribeInstances", "InvalidInstanceID.NotFound", 2, naming="InstanceId"),
    ]
    assert refusal(launch, cloud_api) == "VcpuLimitExceeded"
    assert cloud_api.resources() == {}
    assert refusal(launch, cloud_api) == "InsufficientInstanceCapacity"
    assert cloud_api.resources()["instances"] == 1
    known = launch(cloud_api)
    describe = client(cloud_api).describe_instances
    for _ in range(2):
        assert len(describe()["Reservations"]) == 2
        assert refusal(describe, InstanceIds=[known]) == "InvalidInstanceID.NotFound"
    assert describe(InstanceIds=[known])["Reservations"]


@pytest.mark.parametrize("code", ["ExpiredToken", "RequestLimitExceeded"])
def test_every_service_words_a_refusal_in_its_own_way(cloud_api, code):
    cloud_api.faults.append(Fault("*", code, math.inf))
    for service, action in (
        ("ec2", "describe_instances"),
        ("ssm", "describe_parameters"),
        ("sts", "get_caller_identity"),
        ("cloudwatch", "describe_alarms"),
    ):
        assert refusal(getattr(client(cloud_api, service), action)) == code


def test_permissions_include_that_of_tagging(cloud_api):
    tags = [{"ResourceType": "security-group", "Tags": [{"Key": "a", "Value": "b"}]}]
    group = {"GroupName": "g", "Description": "d"}
    create = client(cloud_api).create_security_group
    cloud_api.permitted = {"ec2:CreateSecurityGroup"}
    assert refusal(create, **group, TagSpecifications=tags) == "UnauthorizedOperation"
    assert refusal(client(cloud_api, "cloudwatch").describe_alarms) == "AccessDenied"
    assert cloud_api.resources() == {}
    cloud_api.permitted.add("ec2:CreateTags")
    create(**group, TagSpecifications=tags)
    assert cloud_api.calls[-1].parameters["TagSpecification.1.Tag.1.Key"] == "a"
    assert cloud_api.resources() == {"security groups": 1}


def test_what_moto_lets_pass(cloud_api):
    ec2 = client(cloud_api)
    group = ec2.create_security_group(GroupName="g", Description="d")["GroupId"]
    assert refusal(launch, cloud_api, UserData="x" * 16385) == "InvalidParameterValue"
    instance = launch(cloud_api, UserData="x" * 16384, SecurityGroupIds=[group])
    assert refusal(ec2.delete_security_group, GroupId=group) == "DependencyViolation"
    ec2.terminate_instances(InstanceIds=[instance])
    ec2.delete_security_group(GroupId=group)
    assert cloud_api.resources() == {}


def test_a_placement_group_is_there_before_and_after_its_instances(cloud_api):
    ec2 = client(cloud_api)
    placed = {"Placement": {"GroupName": "p"}}
    assert refusal(launch, cloud_api, **placed) == "InvalidPlacementGroup.Unknown"
    tags = [{"ResourceType": "placement-group", "Tags": [{"Key": "a", "Value": "b"}]}]
    ec2.create_placement_group(GroupName="p", Strategy="cluster", TagSpecifications=tags)
    for name, value, count in (("group-name", "p", 1), ("tag:a", "b", 1), ("tag:a", "c", 0)):
        filters = [{"Name": name, "Values": [value]}]
        assert len(ec2.describe_placement_groups(Filters=filters)["PlacementGroups"]) == count
    instance = launch(cloud_api, **placed)
    assert refusal(ec2.delete_placement_group, GroupName="p") == "InvalidPlacementGroup.InUse"
    ec2.terminate_instances(InstanceIds=[instance])
    ec2.delete_placement_group(GroupName="p")
    assert refusal(ec2.delete_placement_group, GroupName="p") == "InvalidPlacementGroup.Unknown"
    assert cloud_api.resources() == {}


# Machines of the API


@pytest.fixture
def start(cloud, tmp_path):
    """`start(**options)`: an instance with a group, a key pair and a host key, and its machine."""

    def start(**options):
        host = tmp_path / "host"
        keys = {"ed25519_public": make_key(host), "ed25519_private": host.read_text()}
        ec2 = client(cloud.api)
        public = make_key(tmp_path / "client")
        ec2.import_key_pair(KeyName="k", PublicKeyMaterial=public.encode())
        group = ec2.create_security_group(GroupName="g", Description="d")["GroupId"]
        user_data = gzip.compress(f"#cloud-config\n{json.dumps({'ssh_keys': keys})}".encode())
        fixed = {"KeyName": "k", "SecurityGroupIds": [group], "UserData": user_data}
        instance_id = launch(cloud.api, **fixed, **options)
        guest = cloud.guest(instance_id)
        guest.wait_until_ready()
        return instance_id, guest, group

    return start


ENDS = {"InstanceInitiatedShutdownBehavior": "terminate"}


def test_an_instance_is_found_at_its_address_by_those_its_group_names(cloud, start, tmp_path):
    instance_id, guest, group = start(**ENDS)
    assert described(cloud.api, instance_id)["PublicIpAddress"] == guest.address
    assert reach(guest.address) == "silent"
    rule = {"GroupId": group, "IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
    rule["CidrIp"] = f"{cloud.network.caller}/32"
    client(cloud.api).authorize_security_group_ingress(**rule)
    wait_until(lambda: reach(guest.address) != "silent")
    public = (tmp_path / "host.pub").read_text()
    (tmp_path / "known_hosts").write_text(f"{guest.address} {public}")
    options = [f"-oUserKnownHostsFile={tmp_path / 'known_hosts'}", "-oBatchMode=yes"]
    login = ["ssh", "-F", "none", "-i", tmp_path / "client", *options]
    assert not subprocess.run([*login, f"{guest.user}@{guest.address}", "true"]).returncode
    client(cloud.api).revoke_security_group_ingress(**rule)
    wait_until(lambda: reach(guest.address) == "silent")


def test_instances_reach_each_other_by_a_rule_of_their_group_alone(cloud, start):
    _, guest, group = start(**ENDS, MinCount=2, MaxCount=2)
    wait_until(lambda: len(cloud.guests) == 2)
    (other,) = (one for one in cloud.guests.values() if one is not guest)
    other.wait_until_ready()
    knock = f"timeout 1 bash -c 'exec 3<>/dev/tcp/{other.private}/22'; echo $?"
    assert guest.run(knock, check=False) != "0\n"
    rule = {"IpProtocol": "tcp", "FromPort": 0, "ToPort": 65535}
    rule["UserIdGroupPairs"] = [{"GroupId": group}]
    client(cloud.api).authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
    wait_until(lambda: guest.run(knock, check=False) == "0\n")
    assert reach(guest.address) == "silent"


@pytest.mark.parametrize("behaviour, state", [("terminate", "terminated"), ("stop", "stopped")])
def test_a_machine_that_powers_off_ends_its_instance(cloud, start, behaviour, state):
    instance_id, guest, _ = start(InstanceInitiatedShutdownBehavior=behaviour)
    guest.run("systemctl poweroff")
    wait_until(lambda: described(cloud.api, instance_id)["State"]["Name"] == state)
    reason = described(cloud.api, instance_id)["StateReason"]["Code"]
    assert reason == "Client.InstanceInitiatedShutdown"
    assert not guest.is_on and guest.console


def test_an_instance_that_is_terminated_takes_its_machine_down(cloud, start):
    instance_id, guest, _ = start(**ENDS)
    client(cloud.api).terminate_instances(InstanceIds=[instance_id])
    guest.wait_until_off(10)
    assert "Reached target Final Step" in guest.console
    assert cloud.api.resources() == {"key pairs": 1, "security groups": 1}


def test_a_spot_machine_is_taken_away_after_its_notice(cloud, start):
    instance_id, guest, _ = start(**ENDS)
    cloud.interrupt_spot(instance_id, notice_s=1)
    assert "/latest/meta-data/spot/instance-action" in guest.metadata.pages
    guest.wait_until_off(10)
    reason = described(cloud.api, instance_id)["StateReason"]["Code"]
    assert reason == "Server.SpotInstanceTermination"
