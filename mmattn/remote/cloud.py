"""EC2 through boto3: the resources of a run, found by their tags."""

import math
import re
from typing import Any

from mmattn.errors import UserError
from mmattn.remote.aws import CloudError, client, explains, persistent, suppressed

RUN, OWNER, DEADLINE, PRICE = "mmattn:run", "mmattn:owner", "mmattn:deadline", "mmattn:price"
GONE = ("shutting-down", "terminated")
PATIENCE_S = 600  # for a machine to start or end
WAIT = {"Delay": 5, "MaxAttempts": PATIENCE_S // 5}
# Errors about a resource that was just made and is not known everywhere yet.
NEW = ("InvalidGroup.NotFound", "InvalidKeyPair.NotFound", "InvalidPlacementGroup.Unknown")
KINDS = {  # resources found by their tags: listing call, key of its answer, key of the name
    "volume": ("describe_volumes", "Volumes", "VolumeId"),
    "security group": ("describe_security_groups", "SecurityGroups", "GroupId"),
    "placement group": ("describe_placement_groups", "PlacementGroups", "GroupName"),
    "key pair": ("describe_key_pairs", "KeyPairs", "KeyName"),
}


class Instance:
    """EC2's record of an instance; `private` is its address among the run's machines."""

    def __init__(self, found: dict[str, Any]):
        self.id, self.type = found["InstanceId"], found["InstanceType"]
        self.state = found["State"]["Name"]
        self.reason = found.get("StateReason", {}).get("Message", "")
        self.address, self.private = found.get("PublicIpAddress"), found.get("PrivateIpAddress")
        self.launched = found["LaunchTime"].timestamp()
        self.place = found.get("AmiLaunchIndex", 0)  # among those started together
        self.spot = found.get("InstanceLifecycle") == "spot"
        tags = _tags(found)
        self.run = tags.get(RUN, "")
        self.deadline = float(tags.get(DEADLINE) or 0) or None
        self.price = float(tags.get(PRICE) or 0) or None


@explains
class Cloud:
    """The API of one region; methods raise CloudError, in plain words, if EC2 refuses."""

    def __init__(self, region: str | None):
        self.ec2 = client("ec2", region)
        self.region = self.ec2.meta.region_name

    def client(self, service: str) -> Any:
        """Another service's client, of this region."""
        return client(service, self.region)

    def caller(self) -> str:
        """The caller's ARN, as in the owner tag of a run."""
        # A role's session name differs from call to call, except with single sign-on: the user.
        arn = self.client("sts").get_caller_identity()["Arn"]
        role = re.fullmatch(r"(.*:assumed-role/(?!AWSReservedSSO_)[^/]+)/.*", arn)
        return role[1] if role else arn

    def check_account(self, owner: str) -> None:
        """UserError if these credentials are of another account than the owner's ARN."""
        caller = self.caller()
        ours, its = (arn.split(":")[4] for arn in (caller, owner))
        if ours != its:
            raise UserError(
                f"AWS: expected credentials of account {its}, which has the run, found those of "
                f"{caller}: set AWS_PROFILE"
            )

    def ensure_key_pair(self, name: str, public_key: str, tags: dict[str, str]) -> None:
        """Import the public key, unless it exists."""
        made = {"KeyName": name, "TagSpecifications": tagged(tags, "key-pair")}
        with suppressed("InvalidKeyPair.Duplicate"):
            self.ec2.import_key_pair(**made, PublicKeyMaterial=public_key.encode())

    def group(self, name: str) -> str | None:
        """The id of the security group of this name."""
        found = self.ec2.describe_security_groups(Filters=filters("group-name", name))
        return next((one["GroupId"] for one in found["SecurityGroups"]), None)

    def ensure_group(self, name: str, vpc: str, tags: dict[str, str]) -> str:
        """The id of the security group of this name, created if missing, without rules."""
        found = self.group(name)
        if found is None:
            about = "ssh to mmattn training machines from one network"
            made = {"GroupName": name, "TagSpecifications": tagged(tags, "security-group")}
            made = self.ec2.create_security_group(**made, VpcId=vpc, Description=about)
            found = made["GroupId"]
            self.wait("security_group_exists", Filters=filters("group-name", name))
        return found

    def admit(self, group_id: str, network: str) -> bool:
        """Let this network, and no other, reach port 22; returns whether the rule is new."""
        (group,) = self.ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
        rules = group["IpPermissions"]
        known = {one["CidrIp"] for rule in rules for one in rule.get("IpRanges", [])}
        if network not in known:
            self._permit(group_id, _ssh_from(network))
        for other in sorted(known - {network}):
            with suppressed("InvalidPermission.NotFound"):
                self.ec2.revoke_security_group_ingress(
                    GroupId=group_id, IpPermissions=[_ssh_from(other)]
                )
        return network not in known

    def admit_members(self, group_id: str) -> None:
        """Let the machines of a group, and no others, reach each other by TCP."""
        pair = {"IpProtocol": "tcp", "FromPort": 0, "ToPort": 65535}
        self._permit(group_id, {**pair, "UserIdGroupPairs": [{"GroupId": group_id}]})

    def _permit(self, group_id: str, rule: dict[str, Any]) -> None:
        permit = self.ec2.authorize_security_group_ingress
        with suppressed("InvalidPermission.Duplicate"):
            persistent(*NEW)(permit, GroupId=group_id, IpPermissions=[rule])

    def ensure_placement(self, name: str, tags: dict[str, str]) -> None:
        """Create the placement group of this name, which keeps machines near each other."""
        made = {"GroupName": name, "TagSpecifications": tagged(tags, "placement-group")}
        with suppressed("InvalidPlacementGroup.Duplicate"):
            self.ec2.create_placement_group(**made, Strategy="cluster")

    def try_launch(self, request: dict[str, Any]) -> None:
        """CloudError if EC2 would refuse to start these instances; none is started."""
        with suppressed("DryRunOperation"):
            self.ec2.run_instances(**request, DryRun=True)

    def launch(self, request: dict[str, Any]) -> list[str]:
        """Start all instances or none; returns their ids, the same for the same token."""
        done = persistent(*NEW)(self.ec2.run_instances, **request)
        started = sorted(map(Instance, done["Instances"]), key=lambda one: one.place)
        return [one.id for one in started]

    def wait(self, until: str, **which: Any) -> None:
        """Wait with one of EC2's waiters, for at most ten minutes."""
        self.ec2.get_waiter(until).wait(**which, WaiterConfig=WAIT)

    def ensure_alarms(
        self, label: str, instance_id: str, hours: float, tags: dict[str, str]
    ) -> None:
        """Alarms that terminate the machine if its guard cannot, e.g. when its kernel hangs.

        One if it fails EC2's checks for 20 minutes, one 1 to 2 hours after its deadline.
        """
        partition = self.caller().split(":")[1]
        for name, metric, threshold, seconds, periods in (
            ("hangs", "StatusCheckFailed", 1.0, 300, 4),
            # The window slides: one hour more than were begun, plus a partial one.
            ("deadline", "CPUUtilization", 0.0, 3600, math.ceil(hours) + 2),
        ):
            self.client("cloudwatch").put_metric_alarm(
                AlarmName=f"{label}-{name}",
                Namespace="AWS/EC2",
                MetricName=metric,
                Statistic="Maximum",
                Dimensions=[{"Name": "InstanceId", "Value": instance_id}],
                ComparisonOperator="GreaterThanOrEqualToThreshold",
                Threshold=threshold,
                Period=seconds,
                EvaluationPeriods=periods,
                TreatMissingData="notBreaching",
                AlarmActions=[f"arn:{partition}:automate:{self.region}:ec2:terminate"],
                Tags=_as_list(tags),
            )

    def instances(self, **tags: str | None) -> list[Instance]:
        """Instances by `run` or `owner`, oldest first; also terminated ones that EC2 lists."""
        which = [one for key, value in tags.items() for one in filters(f"tag:mmattn:{key}", value)]
        found = map(Instance, self._described(Filters=which))
        return sorted(found, key=lambda instance: (instance.launched, instance.place))

    def _described(self, **which: Any) -> list[dict]:
        pages = self.ec2.get_paginator("describe_instances").paginate(**which)
        return list(pages.search("Reservations[].Instances[]"))

    def instance(self, instance_id: str) -> Instance | None:
        """An instance; None if EC2 does not know the id (yet, or any more)."""
        try:
            found = self._described(InstanceIds=[instance_id])
        except CloudError as error:
            if error.code == "InvalidInstanceID.NotFound":
                return None
            raise
        return Instance(found[0]) if found else None

    def state(self, instance_id: str) -> str | None:
        """EC2's name for the state of an instance; None for an unknown id."""
        found = self.instance(instance_id)
        return found.state if found else None

    def terminate(self, instance_ids: list[str]) -> None:
        """Terminate instances and wait for the end, at most ten minutes."""
        for instance_id in instance_ids:
            with suppressed("InvalidInstanceID.NotFound"):
                self.ec2.terminate_instances(InstanceIds=[instance_id])
        living = [one for one in instance_ids if self.state(one) not in (None, "terminated")]
        if living:
            self.wait("instance_terminated", InstanceIds=living)

    def listed(self, kind: str, tag: str, value: str) -> list[dict[str, Any]]:
        """The resources of one of KINDS with a tag, as EC2 describes them."""
        call, key, _ = KINDS[kind]
        found = getattr(self.ec2, call)(Filters=filters(f"tag:{tag}", value))[key]
        return [one for one in found if one.get("State") != "deleting"]

    def left_behind(self, owner: str) -> dict[str, list[str]]:
        """The names of an owner's resources other than instances, by run."""
        found: dict[str, list[str]] = {}
        for kind, (*_, name) in KINDS.items():
            for one in self.listed(kind, OWNER, owner):
                found.setdefault(_tags(one)[RUN], []).append(one[name])
        return found

    def keep_volume(self, instance_id: str, keep: bool) -> None:
        """Set whether an instance's disk outlives it."""
        (found,) = self._described(InstanceIds=[instance_id])
        if found["State"]["Name"] in GONE:
            return
        disk = {"DeviceName": found["RootDeviceName"], "Ebs": {"DeleteOnTermination": not keep}}
        self.ec2.modify_instance_attribute(InstanceId=instance_id, BlockDeviceMappings=[disk])

    def attach(self, volume_id: str, instance_id: str, device: str) -> None:
        """Attach a disk, once it is free, and wait until it is attached."""
        self.wait("volume_available", VolumeIds=[volume_id])
        self.ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device=device)
        self.wait("volume_in_use", VolumeIds=[volume_id])

    def detach(self, volume_id: str, instance_id: str) -> None:
        """Detach a disk and wait until it is free."""
        with suppressed("IncorrectState"):  # it is not attached
            self.ec2.detach_volume(VolumeId=volume_id, InstanceId=instance_id)
        self.wait("volume_available", VolumeIds=[volume_id])

    def delete(self, kind: str, name: str) -> None:
        """Delete what `remains` names, except instances; no error if it is gone."""
        if kind == "alarm":
            call, which = self.client("cloudwatch").delete_alarms, {"AlarmNames": [name]}
        else:
            call = getattr(self.ec2, f"delete_{kind.replace(' ', '_')}")
            which = {KINDS[kind][-1]: name}
        with suppressed("InvalidVolume.NotFound", *NEW):
            # What a terminated instance still holds is free after minutes.
            held = persistent("DependencyViolation", "IncorrectState", "VolumeInUse", attempts=100)
            held(call, **which)

    def remains(self, run: str, label: str) -> dict[str, list[str]]:
        """What the API lists of a run, by kind, in the order to delete it."""
        alarms = self.client("cloudwatch").describe_alarms(AlarmNamePrefix=f"{label}-")
        found = {
            "instance": [one.id for one in self.instances(run=run) if one.state != "terminated"],
            "alarm": [one["AlarmName"] for one in alarms["MetricAlarms"]],
        }
        for kind, (*_, name) in KINDS.items():
            found[kind] = [one[name] for one in self.listed(kind, RUN, run)]
        return {kind: names for kind, names in found.items() if names}


def filters(name: str, *values: str | None) -> list[dict]:
    """Filters of a describe call."""
    return [{"Name": name, "Values": list(values)}]


def _as_list(tags: dict[str, str]) -> list[dict]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def tagged(tags: dict[str, str], *kinds: str) -> list[dict]:
    """TagSpecifications of what a call makes."""
    return [{"ResourceType": kind, "Tags": _as_list(tags)} for kind in kinds]


def _ssh_from(network: str) -> dict[str, Any]:
    rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
    return {**rule, "IpRanges": [{"CidrIp": network}]}


def _tags(found: dict) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in found.get("Tags", [])}
