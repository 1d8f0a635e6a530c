"""EC2 through boto3: what a run needs, found again by its tags, and errors in plain words."""

import functools
import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

import boto3
import botocore.config
import botocore.exceptions as failures
from botocore.parsers import ResponseParserError as ParserError

from mmattn.errors import UserError
from mmattn.remote.ssh import RemoteError

IMAGE = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-{}"
RUN, OWNER, DEADLINE, PRICE = "mmattn:run", "mmattn:owner", "mmattn:deadline", "mmattn:price"
GONE = ("shutting-down", "terminated")
PATIENCE_S = 600  # for a machine to start or to end
NOT_STARTED = {  # a start that is refused with one of these was not carried out by an earlier try
    "InsufficientInstanceCapacity",
    "InstanceLimitExceeded",
    "MaxSpotInstanceCountExceeded",
    "SpotMaxPriceTooLow",
    "UnauthorizedOperation",
    "Unsupported",
    "VcpuLimitExceeded",
}

_REASONS = {
    "InsufficientInstanceCapacity": "AWS has no such machine free now: try later, another "
    "--region, or another --instance-type",
    "VcpuLimitExceeded": "the account's limit of vCPUs is below what was asked for (a "
    "c5.24xlarge needs 96): ask for more under Service Quotas, EC2, 'Running On-Demand Standard "
    "instances', or choose a smaller --instance-type",
    "MaxSpotInstanceCountExceeded": "the account's limit of spot vCPUs is reached: ask for more "
    "under Service Quotas, EC2, 'All Standard Spot Instance Requests', or deploy without --spot",
    "InstanceLimitExceeded": "the account's limit of instances is reached",
    "SpotMaxPriceTooLow": "the spot price is above what was offered: try later or without --spot",
    "RequestLimitExceeded": "AWS throttles this account's requests: try again in some minutes",
    "Throttling": "AWS throttles this account's requests: try again in some minutes",
    "ThrottlingException": "AWS throttles this account's requests: try again in some minutes",
    "ExpiredToken": "the AWS credentials have expired: log in again (`aws sso login`)",
    "ExpiredTokenException": "the AWS credentials have expired: log in again (`aws sso login`)",
    "RequestExpired": "the AWS credentials have expired or this computer's clock is wrong",
    "AuthFailure": "AWS does not accept these credentials",
    "InvalidClientTokenId": "AWS does not know these credentials",
    "UnrecognizedClientException": "AWS does not know these credentials",
    "SignatureDoesNotMatch": "AWS does not accept these credentials: the secret key is wrong",
    "UnauthorizedOperation": "these credentials lack a permission: see docs/remote-policy.json",
    "AccessDenied": "these credentials lack a permission: see docs/remote-policy.json",
    "AccessDeniedException": "these credentials lack a permission: see docs/remote-policy.json",
    "InvalidInstanceType": "there is no such --instance-type in this region",
    "Unsupported": "this --instance-type is not offered in this region or zone",
    "VPCIdNotSpecified": "the region has no default VPC: `aws ec2 create-default-vpc` makes one",
    "IdempotentParameterMismatch": "an earlier start of this machine was asked for with other "
    "parameters: `fab teardown` first",
    "OptInRequired": "the account is not signed up for EC2 in this region",
}


class CloudError(RemoteError):
    """EC2 refused; `code` is its own word for why."""

    def __init__(self, message: str, code: str = ""):
        super().__init__(message)
        self.code = code


class MachineType(NamedTuple):
    """What an instance type has."""

    name: str
    vcpus: int
    memory: int
    """Bytes."""
    architecture: str


class Image(NamedTuple):
    """A machine image."""

    id: str
    root_device: str
    size: int
    """GiB."""


class Instance(NamedTuple):
    """EC2's record of an instance."""

    id: str
    run: str
    state: str
    reason: str
    type: str
    address: str | None
    launched: float
    deadline: float | None
    price: float | None
    spot: bool
    private: str | None
    """Its address among the run's machines."""
    index: int
    """Its place among those that were started with it."""


class Cloud:
    """The API of one region.

    Raises (here and in every method):
        CloudError: EC2 refuses, in plain words.
        UserError: no credentials or no region.
    """

    def __init__(self, region: str | None):
        config = botocore.config.Config(
            region_name=region or os.environ.get("AWS_REGION"),  # which boto3 does not read
            retries={"mode": "standard", "max_attempts": 6},
            connect_timeout=10,
            read_timeout=30,
        )
        with explained("AWS"):
            session = boto3.Session()
            # Each takes a moment to make: most commands need but one or two.
            self._client = functools.cache(lambda name: session.client(name, config=config))
            self.ec2 = self._client("ec2")
        self.region = self.ec2.meta.region_name

    def caller(self) -> str:
        """Who calls: the ARN that the tags of a run name as its owner.

        Of an assumed role the session's name is left out, for it may change from call to call;
        but with single sign-on it is the user.
        """
        with explained("sts:GetCallerIdentity"):
            arn = self._client("sts").get_caller_identity()["Arn"]
        role = re.fullmatch(r"(.*:assumed-role/(?!AWSReservedSSO_)[^/]+)/.*", arn)
        return role[1] if role else arn

    def check_account(self, owner: str) -> None:
        """UserError if these credentials are of another account than the owner's ARN."""
        caller = self.caller()
        if _account(caller) != _account(owner):
            raise UserError(
                f"AWS: expected credentials of account {_account(owner)}, where the run is, found "
                f"those of {caller}: AWS_PROFILE chooses"
            )

    def machine_type(self, name: str) -> MachineType:
        """What an instance type has."""
        with explained(f"--instance-type {name}"):
            (found,) = self.ec2.describe_instance_types(InstanceTypes=[name])["InstanceTypes"]
        return MachineType(
            name,
            found["VCpuInfo"]["DefaultVCpus"],
            found["MemoryInfo"]["SizeInMiB"] * 2**20,
            "arm64" if "arm64" in found["ProcessorInfo"]["SupportedArchitectures"] else "x86_64",
        )

    def image(self, architecture: str) -> Image:
        """The current Amazon Linux."""
        with explained("ssm:GetParameter"):
            name = IMAGE.format(architecture)
            image_id = self._client("ssm").get_parameter(Name=name)["Parameter"]["Value"]
        with explained(f"image {image_id}"):
            (found,) = self.ec2.describe_images(ImageIds=[image_id])["Images"]
        root = found["RootDeviceName"]
        sizes = [
            disk["Ebs"]["VolumeSize"]
            for disk in found["BlockDeviceMappings"]
            if disk["DeviceName"] == root and "VolumeSize" in disk.get("Ebs", {})
        ]
        return Image(image_id, root, max(sizes, default=8))

    def spot_price(self, instance_type: str) -> float | None:
        """Dollars an hour of a spot machine now, in the cheapest zone; None if EC2 names none."""
        with explained("ec2:DescribeSpotPriceHistory"):
            found = self.ec2.describe_spot_price_history(
                InstanceTypes=[instance_type],
                ProductDescriptions=["Linux/UNIX"],
                StartTime=datetime.now(UTC),
            )["SpotPriceHistory"]
        return min((float(row["SpotPrice"]) for row in found), default=None)

    def ensure_key_pair(self, name: str, public_key: str, tags: dict[str, str]) -> None:
        """Import the public key, unless it is there."""
        with explained(f"key pair {name}"):
            found = self.ec2.describe_key_pairs(Filters=_filters("key-name", name))["KeyPairs"]
            if not found:
                self.ec2.import_key_pair(
                    KeyName=name,
                    PublicKeyMaterial=public_key.encode(),
                    TagSpecifications=_tagged(tags, "key-pair"),
                )
                self.ec2.get_waiter("key_pair_exists").wait(KeyNames=[name])

    def ensure_group(self, name: str, tags: dict[str, str]) -> str:
        """The security group of this name, made if it is not there; lets no address in yet."""
        with explained(f"security group {name}"):
            found = self.ec2.describe_security_groups(Filters=_filters("group-name", name))
            if found["SecurityGroups"]:
                return found["SecurityGroups"][0]["GroupId"]
            group_id = self.ec2.create_security_group(
                GroupName=name,
                Description="ssh to mmattn training machines from one address",
                TagSpecifications=_tagged(tags, "security-group"),
            )["GroupId"]
            self.ec2.get_waiter("security_group_exists").wait(GroupIds=[group_id])
            return group_id

    def admit(self, group_id: str, network: str) -> bool:
        """Let this network, and no other, reach port 22; returns whether it was not let in."""
        with explained(f"security group {group_id}"):
            (group,) = self.ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
            known = {one for rule in group["IpPermissions"] for one in _networks(rule)}
            if network not in known:
                with suppressed("InvalidPermission.Duplicate"):
                    self.ec2.authorize_security_group_ingress(
                        GroupId=group_id, IpPermissions=[_ssh_from(network)]
                    )
            for other in sorted(known - {network}):
                with suppressed("InvalidPermission.NotFound"):
                    self.ec2.revoke_security_group_ingress(
                        GroupId=group_id, IpPermissions=[_ssh_from(other)]
                    )
        return network not in known

    def admit_members(self, group_id: str) -> None:
        """Let the machines of a group reach each other, by TCP, and no others."""
        pair = {"IpProtocol": "tcp", "FromPort": 0, "ToPort": 65535}
        with explained(f"security group {group_id}"), suppressed("InvalidPermission.Duplicate"):
            self.ec2.authorize_security_group_ingress(
                GroupId=group_id,
                IpPermissions=[{**pair, "UserIdGroupPairs": [{"GroupId": group_id}]}],
            )

    def ensure_placement(self, name: str, tags: dict[str, str]) -> None:
        """The placement group of this name, whose machines are near each other, made once."""
        with explained(f"placement group {name}"):
            filters = _filters("group-name", name)
            if not self.ec2.describe_placement_groups(Filters=filters)["PlacementGroups"]:
                self.ec2.create_placement_group(
                    GroupName=name,
                    Strategy="cluster",
                    TagSpecifications=_tagged(tags, "placement-group"),
                )

    def launch(
        self,
        *,
        count: int,
        label: str,
        token: str,
        machine_type: str,
        image_id: str,
        root_device: str,
        disk_gib: int,
        group_id: str,
        user_data: str,
        spot: bool,
        tags: dict[str, str],
    ) -> list[str]:
        """Start instances, all or none, and return their ids; the same token gives the same ones.

        Args:
            count: how many; more than one are in the placement group `label`.
            label: name of their key pair.
            token: of the run's attempt.
            machine_type: e.g. c5.24xlarge.
            image_id: what they boot.
            root_device: of the image.
            disk_gib: of the encrypted volume of each, deleted with it.
            group_id: their only security group.
            user_data: for cloud-init, at most 16 KB.
            spot: interruptible, at the market's price.
            tags: of instances and volumes.
        """
        disk = {"VolumeSize": disk_gib, "VolumeType": "gp3"}
        disk |= {"Encrypted": True, "DeleteOnTermination": True}
        request = {
            "ImageId": image_id,
            "InstanceType": machine_type,
            "KeyName": label,
            "SecurityGroupIds": [group_id],
            "BlockDeviceMappings": [{"DeviceName": root_device, "Ebs": disk}],
            "InstanceInitiatedShutdownBehavior": "terminate",
            "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
            "UserData": user_data,
            "TagSpecifications": _tagged(tags, "instance", "volume"),
        }
        if spot:
            options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
            request["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options}
        if count > 1:
            request["Placement"] = {"GroupName": label}
        number = "a" if count == 1 else str(count)
        with explained(f"starting {number} {machine_type}"):
            done = self.ec2.run_instances(
                **request, MinCount=count, MaxCount=count, ClientToken=token
            )
        return [one["InstanceId"] for one in sorted(done["Instances"], key=_launch_index)]

    def ensure_alarms(
        self, label: str, instance_id: str, hours: float, tags: dict[str, str]
    ) -> None:
        """Alarms outside of the machine that end it where its own guard cannot.

        One when it fails EC2's checks for 20 minutes, as when its kernel hangs; one when it has
        reported for an hour longer than it was to live, as when cloud-init made no guard.
        """
        common = {"Namespace": "AWS/EC2", "Statistic": "Maximum", "Tags": _as_list(tags)}
        common["Dimensions"] = [{"Name": "InstanceId", "Value": instance_id}]
        common["ComparisonOperator"] = "GreaterThanOrEqualToThreshold"
        common["TreatMissingData"] = "notBreaching"
        partition = self.caller().split(":")[1]
        common["AlarmActions"] = [f"arn:{partition}:automate:{self.region}:ec2:terminate"]
        put = self._client("cloudwatch").put_metric_alarm
        with explained(f"alarm {label}"):
            put(
                **common,
                AlarmName=f"{label}-hangs",
                MetricName="StatusCheckFailed",
                Period=300,
                EvaluationPeriods=4,
                Threshold=1.0,
            )
            put(
                **common,
                AlarmName=f"{label}-deadline",
                MetricName="CPUUtilization",
                Period=3600,
                EvaluationPeriods=math.ceil(hours) + 1,
                Threshold=0.0,
            )

    def instances(self, **tags: str) -> list[Instance]:
        """Instances by their `run` or `owner`, the oldest first; terminated ones while listed."""
        filters = [
            one for key, value in tags.items() for one in _filters(f"tag:mmattn:{key}", value)
        ]
        with explained("ec2:DescribeInstances"):
            pages = self.ec2.get_paginator("describe_instances").paginate(Filters=filters)
            found = [
                _instance(one)
                for page in pages
                for reservation in page["Reservations"]
                for one in reservation["Instances"]
            ]
        return sorted(found, key=lambda instance: (instance.launched, instance.index))

    def instance(self, instance_id: str) -> Instance | None:
        """An instance; None if EC2 does not know the id (any more, or yet)."""
        with explained(f"instance {instance_id}"):
            try:
                answer = self.ec2.describe_instances(InstanceIds=[instance_id])
            except failures.ClientError as error:
                if _code(error) == "InvalidInstanceID.NotFound":
                    return None
                raise
        found = [one for group in answer["Reservations"] for one in group["Instances"]]
        return _instance(found[0]) if found else None

    def state(self, instance_id: str) -> str | None:
        """EC2's word for the state of an instance; None for an unknown id."""
        found = self.instance(instance_id)
        return found and found.state

    def address(self, instance_id: str) -> str | None:
        """The public address of a running instance."""
        found = self.instance(instance_id)
        return found.address if found and found.state == "running" else None

    def terminate(self, instance_ids: list[str]) -> None:
        """Terminate instances and wait until they are.

        Raises:
            CloudError: they still run after ten minutes.
        """
        waiting = list(instance_ids)
        for instance_id in waiting:
            with (
                explained(f"ending {instance_id}"),
                suppressed("InvalidInstanceID.NotFound"),
            ):
                self.ec2.terminate_instances(InstanceIds=[instance_id])
        deadline = time.monotonic() + PATIENCE_S
        while waiting := [one for one in waiting if self.state(one) not in (None, "terminated")]:
            if time.monotonic() > deadline:
                raise CloudError(f"{', '.join(waiting)} did not end within {PATIENCE_S} s")
            time.sleep(2)

    def delete_group(self, group_id: str) -> None:
        """Delete a security group, trying again while an ended instance still holds it."""
        deadline = time.monotonic() + PATIENCE_S / 2
        while True:
            try:
                with explained(f"security group {group_id}"), suppressed("InvalidGroup.NotFound"):
                    self.ec2.delete_security_group(GroupId=group_id)
                return
            except CloudError as error:
                if error.code != "DependencyViolation" or time.monotonic() > deadline:
                    raise
                time.sleep(3)

    def delete_placement(self, name: str) -> None:
        """Delete a placement group; one that is gone is no error."""
        with explained(f"placement group {name}"), suppressed("InvalidPlacementGroup.Unknown"):
            self.ec2.delete_placement_group(GroupName=name)

    def delete_key_pair(self, name: str) -> None:
        """Delete a key pair; one that is gone is no error."""
        with explained(f"key pair {name}"):
            self.ec2.delete_key_pair(KeyName=name)

    def delete_alarm(self, name: str) -> None:
        """Delete an alarm; one that is gone is no error."""
        with explained(f"alarm {name}"):
            self._client("cloudwatch").delete_alarms(AlarmNames=[name])

    def remains(self, run: str, label: str) -> dict[str, list[str]]:
        """What exists of a run by the API's own account, by kind; kinds with nothing are absent.

        Groups are named by id, for deleting; all but the alarm are found by tag.
        """
        filters = _filters(f"tag:{RUN}", run)
        with explained("listing what is left"):
            groups = self.ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
            keys = self.ec2.describe_key_pairs(Filters=filters)["KeyPairs"]
            placements = self.ec2.describe_placement_groups(Filters=filters)["PlacementGroups"]
            volumes = self.ec2.describe_volumes(Filters=filters)["Volumes"]
            alarms = self._client("cloudwatch").describe_alarms(AlarmNamePrefix=f"{label}-")
        found = {
            "instance": [one.id for one in self.instances(run=run) if one.state != "terminated"],
            "security group": [group["GroupId"] for group in groups],
            "placement group": [group["GroupName"] for group in placements],
            "key pair": [key["KeyName"] for key in keys],
            "volume": [volume["VolumeId"] for volume in volumes],
            "alarm": [alarm["AlarmName"] for alarm in alarms["MetricAlarms"]],
        }
        return {kind: names for kind, names in found.items() if names}


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn boto3's errors into one plain message each."""
    try:
        yield
    except failures.ClientError as error:
        code = _code(error)
        # Families of codes, as InvalidAMIID.NotFound, are explained by AWS's own message.
        message = error.response["Error"].get("Message", "")
        reason = _REASONS.get(code)
        refused = f"{error.operation_name}: {code}"
        text = f"{reason} ({refused}: {message[:300]})" if reason else f"AWS: {refused}: {message}"
        raise CloudError(f"{what}: {text}", code) from error
    except (failures.NoCredentialsError, failures.PartialCredentialsError) as error:
        raise UserError(
            "AWS: expected credentials in ~/.aws, the environment or AWS_PROFILE, found none: "
            "`aws configure` or `aws sso login` makes them"
        ) from error
    except failures.NoRegionError as error:
        raise UserError("AWS: expected a --region, an AWS_REGION or one in ~/.aws") from error
    except (failures.EndpointConnectionError, failures.ConnectTimeoutError) as error:
        where = error.kwargs["endpoint_url"]
        raise CloudError(
            f"{what}: no connection to {where}: is this computer online, and is that a region?"
        ) from error
    except (failures.BotoCoreError, ParserError, ValueError) as error:  # ValueError: a bad address
        raise CloudError(f"{what}: {str(error)[:300]}") from error


@contextmanager
def suppressed(*codes: str) -> Iterator[None]:
    """Pass over these of EC2's refusals: what was wanted is so already."""
    try:
        yield
    except failures.ClientError as error:
        if _code(error) not in codes:
            raise


def _account(arn: str) -> str:
    return arn.split(":")[4]


def _code(error: failures.ClientError) -> str:
    return error.response["Error"]["Code"]


def _filters(name: str, value: str) -> list[dict]:
    return [{"Name": name, "Values": [value]}]


def _as_list(tags: dict[str, str]) -> list[dict]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def _tagged(tags: dict[str, str], *kinds: str) -> list[dict]:
    return [{"ResourceType": kind, "Tags": _as_list(tags)} for kind in kinds]


def _ssh_from(network: str) -> dict[str, Any]:
    rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
    if ":" in network:
        return {**rule, "Ipv6Ranges": [{"CidrIpv6": network}]}
    return {**rule, "IpRanges": [{"CidrIp": network}]}


def _networks(rule: dict) -> list[str]:
    four = [one["CidrIp"] for one in rule.get("IpRanges", [])]
    return four + [one["CidrIpv6"] for one in rule.get("Ipv6Ranges", [])]


def _launch_index(found: dict) -> int:
    return found.get("AmiLaunchIndex", 0)


def _instance(found: dict) -> Instance:
    tags = {tag["Key"]: tag["Value"] for tag in found.get("Tags", [])}

    def number(key: str) -> float | None:
        with suppress(KeyError, ValueError):
            return float(tags[key])
        return None

    return Instance(
        found["InstanceId"],
        tags.get(RUN, ""),
        found["State"]["Name"],
        found.get("StateReason", {}).get("Message", ""),
        found["InstanceType"],
        found.get("PublicIpAddress"),
        found["LaunchTime"].timestamp(),
        number(DEADLINE),
        number(PRICE),
        found.get("InstanceLifecycle") == "spot",
        found.get("PrivateIpAddress"),
        _launch_index(found),
    )
