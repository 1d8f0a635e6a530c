"""What EC2 offers for a run, and what stands against it: asked before anything is made."""

import re
from datetime import UTC, datetime
from typing import Any, NamedTuple

from mmattn.errors import UserError
from mmattn.remote.aws import CloudError, client, explained
from mmattn.remote.cloud import Cloud, filters

IMAGE = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-{}"
GPU_IMAGE = (
    "/aws/service/deeplearning/ami/{}/base-oss-nvidia-driver-gpu-amazon-linux-2023/latest/ami-id"
)
GPU_FAMILIES = ("g5", "g6", "p4", "p5")  # which the driver of that image is for
QUOTAS = {  # of vCPUs, by the letters of EC2's families: on demand, spot
    "a c d h i im is m r t z": ("L-1216C47A", "L-34B43A08"),
    "g vt": ("L-DB2E81BA", "L-3819A6DF"),
    "p": ("L-417A185B", "L-7212CCBC"),
}


class MachineType(NamedTuple):
    """What an instance type has."""

    name: str
    vcpus: int
    cores: int
    """Processors that the job will find."""
    one_thread: bool
    """Whether threads are switched off, so that each core is one processor."""
    memory: int
    """Bytes."""
    architecture: str
    gpus: int = 0
    free: bool = False
    """Whether an account on the free plan may start it."""


def machine_type(cloud: Cloud, name: str, count: int, spot: bool) -> MachineType:
    """What an instance type has; UserError if so many of it cannot train."""
    with explained(f"--instance-type {name}"):
        (found,) = cloud.ec2.describe_instance_types(InstanceTypes=[name])["InstanceTypes"]
    architectures = {"arm64", "x86_64"} & set(found["ProcessorInfo"]["SupportedArchitectures"])
    gpus = sum(one["Count"] for one in found.get("GpuInfo", {}).get("Gpus", []))
    others = {"FpgaInfo", "InferenceAcceleratorInfo", "MediaAcceleratorInfo", "NeuronInfo"}
    wrong = None
    if not architectures:
        wrong = "one that runs Linux"
    elif others & found.keys() or (gpus and not name.startswith(GPU_FAMILIES)):
        wrong = f"CPUs alone, or the GPUs of {', '.join(GPU_FAMILIES)}"
    elif count > 1 and "cluster" not in found["PlacementGroupInfo"]["SupportedStrategies"]:
        wrong = f"one of which {count} can be near each other (in a cluster placement group)"
    elif spot and "spot" not in found["SupportedUsageClasses"]:
        wrong = "one that there is as --spot"
    if wrong:
        raise UserError(f"--instance-type {name}: expected {wrong}")
    cpu = found["VCpuInfo"]
    # Two threads of a core share what computes, so that a device on each brings nothing.
    one_thread = not gpus and cpu.get("ValidThreadsPerCore") == [1, 2]
    return MachineType(
        name,
        cpu["DefaultVCpus"],
        cpu["DefaultCores"] if one_thread else cpu["DefaultVCpus"],
        one_thread,
        found["MemoryInfo"]["SizeInMiB"] * 2**20,
        min(architectures),
        gpus,
        found.get("FreeTierEligible", False),
    )


def image(cloud: Cloud, machine: MachineType, image_id: str | None) -> dict[str, Any]:
    """This image, or the current Amazon Linux, for GPUs with their driver, in EC2's own form.

    Raises:
        UserError: the machine cannot boot it.
    """
    if image_id is None:
        name = (GPU_IMAGE if machine.gpus else IMAGE).format(machine.architecture)
        with explained(f"the image {name}"):
            image_id = cloud.client("ssm").get_parameter(Name=name)["Parameter"]["Value"]
    with explained(f"--ami {image_id}"):
        (found,) = cloud.ec2.describe_images(ImageIds=[image_id])["Images"]
    kind = found["Architecture"], found.get("Platform", "linux"), found["RootDeviceType"]
    if kind != (machine.architecture, "linux", "ebs"):
        raise UserError(
            f"--ami {image_id}: expected {machine.architecture}, linux, ebs, as {machine.name} "
            f"boots, found {', '.join(kind)}"
        )
    return found


def subnets(cloud: Cloud, instance_type: str, subnet_id: str | None) -> list[dict[str, Any]]:
    """This subnet, or the default VPC's, one a zone, where an instance type is offered.

    Raises:
        UserError: there is none.
    """
    asked: dict[str, Any] = {"Filters": filters("default-for-az", "true")}
    if subnet_id:
        asked = {"SubnetIds": [subnet_id]}
    with explained(f"--subnet {subnet_id or ''}"):
        found = cloud.ec2.describe_subnets(**asked)["Subnets"]
        offers = cloud.ec2.describe_instance_type_offerings(
            LocationType="availability-zone", Filters=filters("instance-type", instance_type)
        )["InstanceTypeOfferings"]
    if not found:
        raise UserError(
            f"{cloud.region} has no default VPC with subnets: `aws ec2 create-default-vpc` makes "
            "one, or give --subnet"
        )
    found = {one["AvailabilityZone"]: one for one in found}
    zones = sorted(one["Location"] for one in offers)
    there = [found[zone] for zone in zones if zone in found]
    if not there:
        raise UserError(
            f"--instance-type {instance_type}: not offered in {', '.join(sorted(found))}, but in "
            f"{', '.join(zones) or 'no zone'} of {cloud.region}"
        )
    return there


def spot_price(cloud: Cloud, instance_type: str) -> float | None:
    """Dollars an hour of a spot machine now, in the cheapest zone; None if EC2 names none."""
    with explained("ec2:DescribeSpotPriceHistory"):
        found = cloud.ec2.describe_spot_price_history(
            InstanceTypes=[instance_type],
            ProductDescriptions=["Linux/UNIX"],
            StartTime=datetime.now(UTC),
        )["SpotPriceHistory"]
    return min((float(row["SpotPrice"]) for row in found), default=None)


def check_quota(cloud: Cloud, machine: MachineType, count: int, spot: bool) -> str:
    """What the account's limit of vCPUs leaves; UserError if that is too little."""
    families, codes = next(
        (one for one in QUOTAS.items() if _family(machine.name) in one[0].split()), ("", None)
    )
    if codes is None:
        return "unknown for this type"
    try:
        with explained("servicequotas:GetServiceQuota"):
            quota = cloud.client("service-quotas").get_service_quota(
                ServiceCode="ec2", QuotaCode=codes[spot]
            )["Quota"]
    except CloudError as error:
        return f"unknown: {error.code or error}"
    most, used = quota["Value"], _in_use(cloud, families.split(), spot)
    needed = count * machine.vcpus
    if used + needed > most:
        raise UserError(
            f"the account's limit in {cloud.region} is {most:g} vCPUs ({quota['QuotaName']}, "
            f"{codes[spot]}), of which {used} are in use; {needed} are needed: ask for more under "
            "Service Quotas, EC2, or choose a smaller --instance-type"
        )
    return f"{used + needed} of {most:g} vCPUs with this run"


def check_account(machine: MachineType) -> str:
    """The account's plan; UserError if it may not start such a machine."""
    try:
        with explained("freetier:GetAccountPlanState"):
            found = client("freetier", "us-east-1").get_account_plan_state()["accountPlanType"]
    except CloudError as error:
        return f"unknown: {error.code or error}"
    if found == "FREE" and not machine.free:
        raise UserError(
            f"--instance-type {machine.name}: the account is on the free plan, which does not "
            "start it: upgrade it under Billing, or choose a type that is free-tier eligible"
        )
    return found.lower()


def _family(instance_type: str) -> str:
    return re.match("[a-z]*", instance_type)[0]


def _in_use(cloud: Cloud, families: list[str], spot: bool) -> int:
    """vCPUs of the account's machines of these families; threads that are off count too."""
    living = [
        one["InstanceType"]
        for one in cloud.described(Filters=filters("instance-state-name", "pending", "running"))
        if (one.get("InstanceLifecycle") == "spot") == spot
        and _family(one["InstanceType"]) in families
    ]
    if not living:
        return 0
    with explained("ec2:DescribeInstanceTypes"):
        types = cloud.ec2.describe_instance_types(InstanceTypes=sorted(set(living)))
    sizes = {one["InstanceType"]: one["VCpuInfo"]["DefaultVCpus"] for one in types["InstanceTypes"]}
    return sum(sizes[one] for one in living)
