"""What EC2 offers for a run, at what price, and what it would refuse, before anything is made."""

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from mmattn.errors import UserError
from mmattn.remote.aws import CloudError, client, explained
from mmattn.remote.cloud import Cloud, filters

IMAGE = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-{}"
MACHINE = {  # attributes in AWS's Price List
    "operatingSystem": "Linux",
    "operation": "RunInstances",
    "tenancy": "Shared",
    "capacitystatus": "Used",
    "preInstalledSw": "NA",
}
DISK = {"productFamily": "Storage", "volumeApiName": "gp3"}
ADDRESS = 0.005  # dollars per hour of a public IPv4 address, in every region
STANDARD = {"a", "c", "d", "h", "i", "im", "is", "m", "r", "t", "z"}  # EC2's standard families
QUOTAS = ("L-1216C47A", "L-34B43A08")  # of their vCPUs: on demand, spot


class MachineType(NamedTuple):
    """Facts of an instance type."""

    name: str
    vcpus: int
    cores: int  # processors that the job will see
    one_thread: bool  # SMT is off: each core is one processor
    gib: float  # of memory
    architecture: str
    free: bool = False  # an account on the free plan may start it

    def __str__(self) -> str:
        threads = f" ({self.cores} cores, one thread each)" if self.one_thread else ""
        return f"{self.name}, {self.vcpus} vCPU{threads}, {self.gib:.0f} GiB"


def machine_type(cloud: Cloud, name: str, count: int = 1, spot: bool = False) -> MachineType:
    """Look up an instance type; UserError if it cannot train, not `count` together or as spot."""
    with explained(f"--instance-type {name}"):
        (found,) = cloud.ec2.describe_instance_types(InstanceTypes=[name])["InstanceTypes"]
    architectures = {"arm64", "x86_64"} & set(found["ProcessorInfo"]["SupportedArchitectures"])
    others = {"Gpu", "Fpga", "InferenceAccelerator", "MediaAccelerator", "Neuron"}
    if not architectures or {f"{one}Info" for one in others} & found.keys():
        raise UserError(f"--instance-type {name}: expected one that runs Linux, with CPUs only")
    if spot and "spot" not in found["SupportedUsageClasses"]:
        raise UserError(f"--spot: expected a type with spot machines, {name} has none")
    if count > 1 and "cluster" not in found["PlacementGroupInfo"]["SupportedStrategies"]:
        raise UserError(f"--instances {count}: expected a type that allows a placement group")
    cpu = found["VCpuInfo"]
    # Two threads of a core share its arithmetic units: a device on each gains nothing.
    one_thread = cpu.get("ValidThreadsPerCore") == [1, 2]
    return MachineType(
        name,
        cpu["DefaultVCpus"],
        cpu["DefaultCores"] if one_thread else cpu["DefaultVCpus"],
        one_thread,
        found["MemoryInfo"]["SizeInMiB"] / 1024,
        min(architectures),
        found.get("FreeTierEligible", False),
    )


def image(cloud: Cloud, machine: MachineType, image_id: str | None) -> dict[str, Any]:
    """This image, or the current Amazon Linux, as EC2 describes it."""
    if image_id is None:
        name = IMAGE.format(machine.architecture)
        with explained(f"the image {name}"):
            image_id = cloud.client("ssm").get_parameter(Name=name)["Parameter"]["Value"]
    with explained(f"--ami {image_id}"):
        found = cloud.ec2.describe_images(ImageIds=[image_id])["Images"]
    if not found:
        raise UserError(f"--ami {image_id}: expected an image that this account can see")
    return found[0]


def subnets(
    cloud: Cloud, instance_type: str, subnet_id: str | None, zone: str | None = None
) -> list[dict[str, Any]]:
    """This subnet, or the default VPC's (one per zone, or in `zone`), that offer a type.

    UserError if there is none.
    """
    default: dict[str, Any] = {"Filters": filters("default-for-az", "true")}
    with explained(f"--subnet {subnet_id or ''}"):
        found = cloud.ec2.describe_subnets(
            **({"SubnetIds": [subnet_id]} if subnet_id else default)
        )["Subnets"]
        offers = cloud.ec2.describe_instance_type_offerings(
            LocationType="availability-zone", Filters=filters("instance-type", instance_type)
        )["InstanceTypeOfferings"]
    found = {one["AvailabilityZone"]: one for one in found}
    zones = sorted(one["Location"] for one in offers if zone in (None, one["Location"]))
    there = [found[name] for name in zones if name in found]
    if not there:
        makes = "none: `aws ec2 create-default-vpc` makes them, or give --subnet"
        where = f"the zone of the kept disk, {zone}" if zone else ", ".join(zones) or "no zone"
        raise UserError(
            f"--instance-type {instance_type}: expected a subnet where it is offered ({where}), "
            f"found {', '.join(sorted(found)) or makes}"
        )
    return there


def price(region: str, **attributes: str) -> float | None:
    """The highest price of products with these attributes in AWS's Price List; None if unknown.

    MACHINE and an instanceType: dollars per hour. DISK: dollars per GiB and month.
    """
    asked = {"regionCode": region, **attributes}.items()
    terms = [{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in asked]
    ask = client("pricing", "us-east-1").get_products  # few regions answer
    found = _answer(ask, ServiceCode="AmazonEC2", Filters=terms)
    if isinstance(found, str):
        return None
    prices = [
        float(dimension["pricePerUnit"].get("USD", 0))
        for product in map(json.loads, found["PriceList"])
        for term in product["terms"].get("OnDemand", {}).values()
        for dimension in term["priceDimensions"].values()
    ]
    return max(prices, default=0) or None


def check_quota(cloud: Cloud, machine: MachineType, count: int, spot: bool) -> str:
    """The account's vCPU quota; UserError if the machines alone exceed it."""
    if re.split("[^a-z]", machine.name)[0] not in STANDARD:
        return "unknown for this type"
    ask = cloud.client("service-quotas").get_service_quota
    found = _answer(ask, ServiceCode="ec2", QuotaCode=QUOTAS[spot])
    if isinstance(found, str):
        return found
    most, needed = found["Quota"]["Value"], count * machine.vcpus
    if needed > most:
        raise UserError(
            f"the account's quota in {cloud.region} is {most:g} vCPUs ({QUOTAS[spot]}); {needed} "
            "are needed: request more under Service Quotas, EC2, or choose a smaller "
            "--instance-type"
        )
    return f"{needed} of {most:g} vCPUs, less those in use"


def check_account(machine: MachineType) -> str:
    """The account's plan; UserError if it may not start such a machine."""
    found = _answer(client("freetier", "us-east-1").get_account_plan_state)
    if isinstance(found, str):
        return found
    if found["accountPlanType"] == "FREE" and not machine.free:
        raise UserError(
            f"--instance-type {machine.name}: the account is on the free plan, which does not "
            "start it: upgrade it under Billing, or choose a type that is free-tier eligible"
        )
    return found["accountPlanType"].lower()


def _answer(call: Callable, **asked: Any) -> dict[str, Any] | str:
    """AWS's answer, or why it is unknown."""
    try:
        with explained("AWS"):
            return call(**asked)
    except CloudError as error:
        return f"unknown: {error.code or error}"
