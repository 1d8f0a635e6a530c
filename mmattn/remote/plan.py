"""What a deployment will make and cost: checked and shown before anything is made."""

import importlib
import math
import os
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from mmattn.cli import parse_experiment
from mmattn.config import ExperimentConfig
from mmattn.console import say_table
from mmattn.errors import UserError
from mmattn.remote import bucket, offers, prices
from mmattn.remote.access import network
from mmattn.remote.bucket import parse_uri
from mmattn.remote.cloud import OWNER, RUN, Cloud, tagged
from mmattn.remote.kept import kept_disks
from mmattn.remote.offers import MachineType
from mmattn.remote.runs import Run, is_uri, parse_host
from mmattn.train.devices import most_dividing

MOST_INSTANCES = 64
MOST_HOURS = 24 * 6  # an alarm can count no further than a week
_NAME = re.compile("[A-Za-z0-9_]+")  # it becomes part of the run's name
_OWN_OPTIONS = ("--out", "--resume", "--data.roots")


class Plan(NamedTuple):
    """What EC2 will be asked for."""

    machine_type: MachineType
    image: dict[str, Any]
    disk_gib: int
    price: float | None
    """Dollars an hour of one machine now; None if unknown."""
    most: float | None
    """Dollars an hour that it may cost: of a spot machine, those on demand."""
    disk_price: float | None
    """Dollars an hour of a GiB."""
    subnets: list[dict[str, Any]]
    """Where it can be, one a zone."""
    checks: Sequence[tuple[str, str]] = ()
    """What was asked, and the answer."""
    zone: str | None = None
    """Where it must be: its earlier disk is there."""


def new_run(
    experiment: str,
    args: str,
    data: Sequence[str],
    *,
    hours: str,
    grace_minutes: str,
    host: str | None,
    region: str | None,
    instance_type: str,
    instances: str,
    spot: bool,
    subnet: str | None = None,
    ami: str | None = None,
    allow_from: str | None = None,
    results: str | None = None,
) -> Run:
    """A run from the options of `fab deploy`, all checked on this computer.

    Raises:
        UserError: an option is wrong; nothing was made.
    """
    words = _split(args)
    found = [parse_uri("--data", one) if is_uri(one) else str(_data_folder(one)) for one in data]
    if sum(map(is_uri, found)) > 1:
        raise UserError("--data: expected one s3://BUCKET/PREFIX at most, besides folders")
    is_study = check_experiment(experiment, words, found)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    run = Run(
        name=f"{experiment}-{stamp}-{os.urandom(2).hex()}",
        experiment=experiment,
        args=words,
        data=found,
        is_study=is_study,
        hours=_number("--max-hours", hours, MOST_HOURS),
        grace_minutes=_number("--grace-minutes", grace_minutes, MOST_HOURS * 60),
    )
    count = _count("--instances", instances, MOST_INSTANCES)
    if host:
        if count > 1:
            raise UserError(f"--instances {count}: expected no --host, which is one machine")
        of_ec2 = {"spot": spot, "subnet": subnet, "ami": ami, "allow-from": allow_from}
        of_ec2 |= {"results": results, f"data {run.data_uri}": run.data_uri}
        for option in (name for name, value in of_ec2.items() if value):
            raise UserError(f"--{option}: expected no --host, which is no machine of EC2")
        parse_host(host)
        run.host = host
        return run
    run.results_uri = results and parse_uri("--results", results)
    run.subnet, run.ami, run.allow_from = subnet, ami, allow_from and network(allow_from)
    cloud = Cloud(region)
    run.region, run.owner = cloud.region, cloud.caller()
    run.instance_type, run.instances, run.spot = instance_type, count, spot
    return run


def check_experiment(name: str, words: Sequence[str], data: Sequence[str]) -> bool:
    """Read an experiment's options, on these data, as it will on the machine.

    Returns whether it is a study of many trainings.

    Raises:
        UserError: there is no such experiment, or its options are wrong.
    """
    known = sorted(
        path.stem for path in Path("experiments").glob("[!_]*.py") if _NAME.fullmatch(path.stem)
    )
    if name not in known:
        raise UserError(f"--experiment {name}: expected one of {', '.join(known) or 'none here'}")
    for word in words:
        if word.split("=")[0] in _OWN_OPTIONS or word.startswith("--distributed."):
            raise UserError(f"--args {word}: the deployment sets it; data come by --data")
    options = _options(name, [*words, *(["--data.roots", *data] if data else [])])
    if isinstance(options, ExperimentConfig):
        options.check()
    return not isinstance(options, ExperimentConfig)


def _options(name: str, words: Sequence[str]) -> Any:
    """The config of an experiment, or the options of a study."""
    module = importlib.import_module(f"experiments.{name}")
    try:
        if hasattr(module, "CONFIG"):
            return parse_experiment(module.CONFIG, "", words)
        return tyro.cli(module.Options, args=words)
    except SystemExit as error:  # the parser has told what is wrong
        raise UserError(f"--args: not what experiments.{name} takes, see above") from error


def make_plan(run: Run, cloud: Cloud) -> Plan:
    """Ask EC2 for all that the run needs, and, if it has no machine yet, whether it may start.

    Raises:
        UserError, CloudError: something stands against it.
    """
    kind = offers.machine_type(cloud, run.instance_type, run.instances, run.spot)
    image = offers.image(cloud, kind, run.ami)
    # The data, as much again for the packed cache, half of it spare; code, environment, results.
    sizes, checks = [folder_size(Path(one)) for one in run.data if not is_uri(one)], []
    if run.data_uri:
        count, size = bucket.check("--data", run.data_uri, cloud.region, write=False)
        sizes.append(size)
        checks.append((run.data_uri, f"{count} files, {size / 1e6:.0f} MB"))
    if run.results_uri:
        bucket.check("--results", run.uri, cloud.region, write=True)
        checks.append((run.uri, "can be written"))
    gib = 20 + 2.5 * sum(sizes) / 2**30
    disks = [one["Ebs"]["VolumeSize"] for one in image["BlockDeviceMappings"] if "Ebs" in one]
    most = prices.on_demand(cloud.region, kind.name)
    plan = Plan(
        kind,
        image,
        max([*disks, math.ceil(gib)]),
        offers.spot_price(cloud, kind.name) if run.spot else most,
        most,
        prices.disk(cloud.region),
        offers.subnets(cloud, kind.name, run.subnet),
    )
    if kept := kept_disks(run):
        zone = kept[0]["AvailabilityZone"]
        there = [one for one in plan.subnets if one["AvailabilityZone"] == zone]
        if not there:
            raise UserError(
                f"{kept[0]['VolumeId']}, the disk with the results, is in {zone}: expected "
                f"{kind.name} to be offered in a subnet there"
            )
        plan = plan._replace(subnets=there, zone=zone)
    if run.deadline is not None:  # what was asked for counts among what is in use
        return plan
    checks += [
        ("vCPUs of the account", offers.check_quota(cloud, kind, run.instances, run.spot)),
        ("plan of the account", offers.check_account(kind)),
        ("zones", ", ".join(one["AvailabilityZone"] for one in plan.subnets)),
    ]
    bare = replace(run, group_id=None)  # the key pair and the group are perhaps not there
    cloud.try_launch(instance_request(bare, plan, choices(run, plan)[0]))
    return plan._replace(checks=[*checks, ("permission to start it", "yes")])


def choices(run: Run, plan: Plan) -> list[dict[str, Any] | None]:
    """Where to try, in order; None leaves it to EC2, which knows where there are machines."""
    free = not (run.subnet or plan.zone) and all(one["MapPublicIpOnLaunch"] for one in plan.subnets)
    return [None, *plan.subnets] if free else list(plan.subnets)


def instance_request(
    run: Run,
    plan: Plan,
    subnet: dict[str, Any] | None,
    tags: dict[str, str] | None = None,
    profile: str | None = None,
) -> dict[str, Any]:
    """Parameters of RunInstances; with a key pair and groups once the run has a security group.

    Args:
        run: who asks.
        plan: for what.
        subnet: where; None leaves it to EC2.
        tags: of instances and volumes, besides the run's and the owner's.
        profile: name of the instance profile.
    """
    disk = {"VolumeSize": plan.disk_gib, "VolumeType": "gp3", "Encrypted": True}
    # Without a bucket, what was not fetched is on it alone.
    disk["DeleteOnTermination"] = run.results_uri is not None
    request = {
        "MinCount": run.instances,
        "MaxCount": run.instances,
        "ImageId": plan.image["ImageId"],
        "InstanceType": plan.machine_type.name,
        "BlockDeviceMappings": [{"DeviceName": plan.image["RootDeviceName"], "Ebs": disk}],
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
        "TagSpecifications": tagged(
            {RUN: run.name, OWNER: run.owner, "Name": run.label, **(tags or {})},
            *("instance", "volume"),
        ),
    }
    if plan.machine_type.one_thread:
        request["CpuOptions"] = {"CoreCount": plan.machine_type.cores, "ThreadsPerCore": 1}
    if run.spot:
        options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
        options |= {"MaxPrice": f"{plan.most:.4f}"} if plan.most else {}
        request["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options}
    if profile:
        request["IamInstanceProfile"] = {"Name": profile}
    door = {}
    if run.group_id:
        request["KeyName"], door["Groups"] = run.label, [run.group_id]
        if run.instances > 1:
            request["Placement"] = {"GroupName": run.label}
    if subnet:
        door |= {"DeviceIndex": 0, "SubnetId": subnet["SubnetId"], "DeleteOnTermination": True}
        request["NetworkInterfaces"] = [{**door, "AssociatePublicIpAddress": True}]
    elif run.group_id:
        request["SecurityGroupIds"] = door["Groups"]
    return request


def say_plan(run: Run, plan: Plan | None, files: int) -> None:
    """Show what will be sent and made, and what it costs; `plan` is None with a --host."""
    rows = [
        ("run", run.name),
        ("experiment", shlex.join([f"experiments.{run.experiment}", *run.args])),
        ("data", ", ".join(map(_described, run.data)) or "the built-in corpus"),
        ("sent from here", f"{files} files"),
    ]
    if plan is None:
        rows.append(("machine", f"{run.host}, which exists and is not ended afterwards"))
    else:
        machine = plan.machine_type
        each = f"{run.instances} x " if run.instances > 1 else ""
        threads = f" ({machine.cores} cores, one thread each)" if machine.one_thread else ""
        gpus = f", {machine.gpus} GPUs" if machine.gpus else ""
        kind = "spot" if run.spot else "on demand"
        kept = (
            "deleted with the machine" if run.results_uri else "kept until the results are fetched"
        )
        rows += [
            (
                "machine",
                f"{each}{machine.name}, {machine.vcpus} vCPU{threads}{gpus}, "
                f"{machine.memory / 2**30:.0f} GiB, {kind}, {run.region}",
            ),
            ("the job uses", devices_text(run, machine)),
            ("image", plan.image["ImageId"]),
            ("disk", f"{each}{plan.disk_gib} GiB, encrypted, {kept}"),
            (
                "who can reach it",
                (run.allow_from or "this computer's address alone")
                + ", port 22"
                + "; its machines each other, in one placement group" * (run.instances > 1),
            ),
            (
                "it ends itself",
                f"{run.hours:g} h after its start, or "
                + (
                    f"when its job has ended and all is in {run.results_uri}"
                    if run.results_uri
                    else f"{run.grace_minutes:g} min after its job, fetched or not"
                ),
            ),
            *plan.checks,
            ("cost", cost_text(run, plan)),
        ]
    say_table("Plan", ("", ""), rows, left=True)


def _described(folder: str) -> str:
    if is_uri(folder):
        return folder
    return f"{folder} ({folder_size(Path(folder)) / 1e6:.0f} MB)"


def devices_text(run: Run, machine: MachineType) -> str:
    """How much of its machines the job uses, and what would fill them if it leaves half idle."""
    if run.is_study:
        return f"{machine.cores} trainings at once, each on a core (--workers)"
    config = _options(run.experiment, run.args)
    batch, what = config.train.batch, "GPUs" if machine.gpus else "cores"
    each = machine.gpus or machine.cores
    there = each * run.instances
    used = config.devices
    if used == "auto":
        used = most_dividing(each, batch / run.instances) * run.instances
    text = f"{used} devices on {there} {what}, with a batch of {batch} clips"
    if 2 * used > there:
        return text
    return f"{text}: {there - used} idle; --train.batch {there} uses all, but trains otherwise"


def cost_text(run: Run, plan: Plan) -> str:
    """The highest cost of a plan and where the price is from."""
    if plan.price is None:
        return f"unknown: the Price List names none for {run.instance_type} in {run.region}"
    source = f"on demand in {run.region}"
    if run.spot:
        source = "spot now" + (f"; on demand ${plan.most:.2f}" if plan.most else "")
    each = f"{run.instances} x " if run.instances > 1 else ""
    text = f"{each}${plan.price:.2f} an hour ({source})"
    if plan.most is None:
        return f"{text}; no bound is known"
    disk = plan.disk_gib * (plan.disk_price or 0)
    most = run.instances * run.hours * (plan.most + prices.ADDRESS + disk)
    with_it = "address and disk" if plan.disk_price else "address, without its disk (unknown)"
    kept = "" if run.results_uri or not disk else f"; the kept disk ${24 * disk:.2f} a day"
    return f"{text}{kept}; at most ${most:.2f} with its {with_it}, without traffic"


def confirm(question: str, yes: bool, known_price: bool = True) -> None:
    """Ask, unless `yes` and the price is known.

    Raises:
        UserError: the answer is no, or there is no terminal to ask at.
    """
    if yes and known_price:
        return
    try:
        answer = input(f"{question} {'' if known_price else 'The price is unknown. '}[y/N] ")
    except EOFError as error:
        print()  # ends the line of the question
        how = "give --yes" if known_price else "--yes is not enough where the price is unknown"
        raise UserError(f"there is no terminal to confirm at: {how}") from error
    if answer.strip().lower() not in ("y", "yes"):
        raise UserError("not confirmed: nothing was done")


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _split(args: str) -> list[str]:
    try:
        return shlex.split(args)
    except ValueError as error:
        raise UserError(f"--args {args}: {error}") from error


def _number(option: str, text: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= most:
        raise UserError(f"{option} {text}: expected a number above 0, at most {most:g}")
    return value


def _count(option: str, text: str, most: int) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise UserError(f"{option} {text}: expected a whole number from 1 to {most}")
    return int(text)


def _data_folder(text: str) -> Path:
    folder = Path(text).expanduser().resolve()
    if not text or not folder.is_dir():
        raise UserError(f"--data {text}: expected a folder")
    if not any(path.suffix == ".npz" for path in folder.rglob("*")):
        raise UserError(f"--data {text}: expected feature files (.npz), found none")
    if re.search(r"[\x00-\x1f]", str(folder)):
        raise UserError(f"--data {text}: expected a name without control characters")
    return folder
