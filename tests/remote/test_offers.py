"""What `fab deploy` asks AWS before anything is made, and what it then refuses."""

import math

import pytest

from mmattn.errors import UserError
from mmattn.remote import offers
from mmattn.remote.deploy import deploy
from mmattn.remote.plan import make_plan
from tests.remote.machines.cloud_api import Fault

MAKING = {"ImportKeyPair", "CreateSecurityGroup", "CreatePlacementGroup"}


def refused(run, *signs: str) -> None:
    """The plan is refused in one line, and nothing was made."""
    with pytest.raises(UserError) as error:
        make_plan(run, run.cloud())
    text = str(error.value)
    assert "\n" not in text
    for sign in signs:
        assert sign in text


def checks(run) -> dict[str, str]:
    return dict(make_plan(run, run.cloud()).rows)


def test_all_is_asked_and_nothing_is_made(run, cloud_api):
    assert (
        checks(run).items()
        >= {
            "vCPUs of the account": "96 of 1024 vCPUs, less those in use",
            "its plan": "paid",
            "zones": "us-east-1a, us-east-1b, us-east-1c, us-east-1d, us-east-1f",
            "permission to start it": "yes",
        }.items()
    )
    assert not MAKING & {call.action for call in cloud_api.calls}
    assert not cloud_api.resources()


@pytest.mark.parametrize("instance_type", ["mac1.metal", "inf1.xlarge", "g5.xlarge", "vt1.3xlarge"])
def test_a_type_on_which_nothing_can_train(run, cloud_api, instance_type):
    run.instance_type = instance_type
    refused(run, f"{instance_type}: expected one that runs Linux, with CPUs only")


def test_a_type_that_is_not_offered_so(run, cloud_api):
    run.instance_type, run.instances = "t3.large", 2
    refused(run, "--instances 2: expected a type that allows a placement group")
    run.instance_type, run.instances, run.spot = "hpc6a.48xlarge", 1, True
    refused(run, "--spot: expected a type with spot machines, hpc6a.48xlarge has none")


@pytest.mark.parametrize(("spot", "code"), [(False, "L-1216C47A"), (True, "L-34B43A08")])
def test_the_quota_is_that_of_the_market(run, cloud_api, spot, code):
    cloud_api.quotas[code] = 1
    run.instance_type, run.spot = "c5.large", spot
    refused(run, f"quota in us-east-1 is 1 vCPUs ({code})", "request more under Service Quotas")
    other = offers.MachineType("x1.32xlarge", 128, 64, True, 1952, "x86_64")
    assert offers.check_quota(run.cloud(), other, 1, spot) == "unknown for this type"


def test_the_free_plan_starts_only_what_is_free(run, cloud_api):
    cloud_api.account_plan = "FREE"
    refused(run, "--instance-type c5.24xlarge: the account is on the free plan")
    run.instance_type = "t3.micro"
    assert checks(run)["its plan"] == "free"


@pytest.mark.parametrize(
    ("action", "check"),
    [
        ("GetServiceQuota", "vCPUs of the account"),
        ("GetAccountPlanState", "its plan"),
    ],
)
def test_what_may_not_be_asked_is_unknown(run, cloud_api, action, check):
    cloud_api.faults.append(Fault(action, "AccessDeniedException", math.inf))
    assert checks(run)[check] == "unknown: AccessDeniedException"


def on_demand(region: str, instance_type: str) -> float | None:
    return offers.price(region, instanceType=instance_type, **offers.MACHINE)


def test_prices_are_those_of_the_region_or_unknown(run, cloud_api):
    assert on_demand("us-east-1", "c5.24xlarge") == 4.08
    assert offers.price("us-east-1", **offers.DISK) == 0.08
    assert on_demand("sa-east-1", "c5.24xlarge") is None  # this server has but one region's
    assert on_demand("us-east-1", "p4d.24xlarge") is None
    cloud_api.faults.append(Fault("GetProducts", "AccessDeniedException", math.inf))
    assert on_demand("us-east-1", "c5.24xlarge") is None


def test_a_start_that_would_be_refused_is_refused_now(run, cloud_api):
    cloud_api.faults.append(Fault("RunInstances", "InvalidParameterCombination", naming="DryRun"))
    refused(run, "AWS: RunInstances: InvalidParameterCombination")


def test_without_default_subnets_one_is_asked_for(run, cloud_api):
    ec2 = cloud_api.client("ec2")
    for subnet in ec2.describe_subnets()["Subnets"]:
        ec2.delete_subnet(SubnetId=subnet["SubnetId"])
    refused(run, "(us-east-1a, ", "found none: `aws ec2 create-default-vpc` makes them, or give")


def test_a_subnet_of_ones_own(run, cloud_api):
    ec2 = cloud_api.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    asked = {"VpcId": vpc, "CidrBlock": "10.0.1.0/24", "AvailabilityZone": "us-east-1b"}
    run.subnet = ec2.create_subnet(**asked)["Subnet"]["SubnetId"]
    plan = make_plan(run, run.cloud())
    assert [one["VpcId"] for one in plan.subnets] == [vpc]
    run.subnet = "subnet-12345678"
    refused(run, "--subnet subnet-12345678: DescribeSubnets: InvalidSubnetID.NotFound")


def test_a_zone_without_such_machines_is_refused(run, cloud_api):
    ec2 = cloud_api.client("ec2")
    (there,) = ec2.describe_subnets(
        Filters=[{"Name": "availability-zone", "Values": ["us-east-1e"]}]
    )["Subnets"]
    run.subnet = there["SubnetId"]
    refused(run, "where it is offered (us-east-1a, ", "found us-east-1e")


def test_an_image_of_ones_own(run, cloud_api):
    run.ami = make_plan(run, run.cloud()).request["ImageId"]
    assert make_plan(run, run.cloud()).request["ImageId"] == run.ami
    run.ami = "ami-12345678"
    refused(run, "--ami ami-12345678: DescribeImages: InvalidAMIID.NotFound")


def test_an_unknown_price_is_not_confirmed_by_yes_alone(run, cloud_api, monkeypatch):
    monkeypatch.setattr(offers, "price", lambda *asked, **attributes: None)
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "n")
    with pytest.raises(UserError, match="not confirmed"):
        deploy(run, yes=True, dry_run=False)
    assert asked == ["The price is unknown. Deploy? [y/N] "]
    assert not cloud_api.resources()
