"""What a deployment would make and cost, checked and shown before anything is made."""

import importlib
import math
import os
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from mmattn.cli import parse_experiment
from mmattn.config import ExperimentConfig
from mmattn.console import say_table
from mmattn.errors import UserError
from mmattn.remote import bucket, offers
from mmattn.remote.access import network
from mmattn.remote.bucket import parse_uri
from mmattn.remote.cloud import Cloud, tagged
from mmattn.remote.kept import kept_disks
from mmattn.remote.offers import MachineType
from mmattn.remote.runs import DEFAULTS, OF_EC2, Run, flag, is_uri, parse_host

# An alarm cannot look back more than a week.
MOST = {"hours": 24 * 6, "grace_minutes": 60 * 24 * 6, "instances": 64}
_NAME = re.compile("[A-Za-z0-9_]+")  # it becomes part of the run's name
_OWN_OPTIONS = ("--out", "--resume", "--data.roots")


class Plan(NamedTuple):
    """What EC2 will be asked for, and the results of the checks."""

    request: dict[str, Any]  # parameters of RunInstances, except place, key and permissions
    subnets: list[dict[str, Any]]  # one per zone, in the order to try
    price: float | None  # dollars per hour of one machine, on demand; None if unknown
    rows: list[tuple[str, str]]  # to show: what will be made, the checks, the cost


def new_run(experiment: str, **asked: Any) -> Run:
    """A run from the options of `fab deploy`, all checked on this computer.

    `experiment` is one of experiments/; `asked` has the other OPTIONS as Fabric gives them: text,
    "" if not given, but a list for data and a bool for spot.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    run = Run(f"{experiment}-{stamp}-{os.urandom(2).hex()}", experiment)
    for name, value in asked.items():
        if value:
            setattr(run, name, _number(name, value) if name in MOST else value)
    run.args = _split(asked.get("args", ""))
    run.data = [parse_uri("--data", one) if is_uri(one) else _data_folder(one) for one in run.data]
    if sum(map(is_uri, run.data)) > 1:
        raise UserError("--data: expected at most one s3://BUCKET/PREFIX, besides folders")
    run.is_study = check_experiment(experiment, run.args, run.data)
    if run.host:
        parse_host(run.host)
        wrong = [flag(name) for name in OF_EC2 if getattr(run, name) != getattr(DEFAULTS, name)]
        for option in [*wrong, *[f"data {run.data_uri}"] * bool(run.data_uri)]:
            raise UserError(f"--{option} is for EC2: expected no --host")
        return run
    run.results_uri = run.results_uri and parse_uri("--results", run.results_uri)
    run.allow_from = run.allow_from and network(run.allow_from)
    cloud = Cloud(run.region)
    run.region, run.owner = cloud.region, cloud.caller()
    return run


def check_experiment(name: str, words: Sequence[str], data: Sequence[str]) -> bool:
    """Parse an experiment's options, with these data, as the machine will.

    Returns whether it is a study of many trainings; UserError if its name or options are wrong.
    """
    known = [path.stem for path in Path("experiments").glob("[!_]*.py")]
    known = sorted(filter(_NAME.fullmatch, known))
    if name not in known:
        raise UserError(f"--experiment {name}: expected one of {', '.join(known) or 'none here'}")
    for word in words:
        if word.split("=")[0] in _OWN_OPTIONS or word.startswith("--distributed."):
            raise UserError(f"--args {word}: fab deploy sets it itself; use --data for data")
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
    except SystemExit as error:  # the parser has printed what is wrong
        raise UserError(f"--args: not options of experiments.{name}, see above") from error


def make_plan(run: Run, cloud: Cloud) -> Plan:
    """Look up what the run needs on EC2 and, if it has no machine yet, whether it may start one.

    UserError if a check fails.
    """
    kind = offers.machine_type(cloud, run.instance_type, run.instances, run.spot)
    image = offers.image(cloud, kind, run.ami)
    zone = next((disk["AvailabilityZone"] for disk in kept_disks(run)), None)
    subnets = offers.subnets(cloud, kind.name, run.subnet, zone)
    files = (path for one in run.data if not is_uri(one) for path in Path(one).rglob("*"))
    size, checks = sum(path.stat().st_size for path in files if path.is_file()), {}
    if run.data_uri:
        count, there = bucket.check("--data", run.data_uri, cloud.region, write=False)
        size += there
        checks[run.data_uri] = f"{count} files, {there / 1e6:.0f} MB"
    if run.uri:
        bucket.check("--results", run.uri, cloud.region, write=True)
        checks[run.uri] = "writable"
    disks = [one["Ebs"]["VolumeSize"] for one in image["BlockDeviceMappings"] if "Ebs" in one]
    # The data, the same again for the packed cache, half as much spare; code, environment, results.
    gib = max([*disks, 20 + math.ceil(2.5 * size / 2**30)])
    price = offers.price(cloud.region, instanceType=kind.name, **offers.MACHINE)
    disk = offers.price(cloud.region, **offers.DISK)
    request = instance_request(run, kind, image, gib, price)
    if run.deadline is None:  # otherwise the requested machines already count as in use
        quota = offers.check_quota(cloud, kind, run.instances, run.spot)
        checks |= {"vCPUs of the account": quota, "its plan": offers.check_account(kind)}
        cloud.try_launch({**request, "SubnetId": subnets[0]["SubnetId"]})
        checks["permission to start it"] = "yes"
    kept = "deleted with it" if run.uri else "kept until the run is complete and fetched"
    rows = [
        ("machine", f"{_each(run)}{kind}, {'spot' if run.spot else 'on demand'}, {cloud.region}"),
        ("the job uses", devices_text(run, kind)),
        ("image", image["ImageId"]),
        ("disk", f"{_each(run)}{gib} GiB, encrypted, {kept}"),
        ("who can reach it", f"{run.allow_from or 'this computer only'}, port 22"),
        ("it ends itself", f"{run.hours:g} h after its start, or {end_text(run)}"),
        ("zones", ", ".join(one["AvailabilityZone"] for one in subnets)),
        *checks.items(),
        ("cost", cost_text(run, price, disk and gib * disk / 730)),
    ]
    return Plan(request, subnets, price, rows)


def instance_request(
    run: Run, kind: MachineType, image: dict[str, Any], disk_gib: int, price: float | None
) -> dict[str, Any]:
    """Parameters of RunInstances, except place, key and permissions.

    A spot machine may cost `price` dollars per hour; None leaves the bound to EC2.
    """
    disk = {"VolumeSize": disk_gib, "VolumeType": "gp3", "Encrypted": True}
    # Without a bucket, it has the only copy of results that were not fetched.
    disk["DeleteOnTermination"] = run.results_uri is not None
    request = {
        "MinCount": run.instances,
        "MaxCount": run.instances,
        "ImageId": image["ImageId"],
        "InstanceType": kind.name,
        "BlockDeviceMappings": [{"DeviceName": image["RootDeviceName"], "Ebs": disk}],
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
        "TagSpecifications": tagged(run.tags, "instance", "volume"),
    }
    if kind.one_thread:
        request["CpuOptions"] = {"CoreCount": kind.cores, "ThreadsPerCore": 1}
    if run.spot:
        options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
        options |= {"MaxPrice": f"{price:.4f}"} if price else {}
        request["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options}
    return request


def say_plan(run: Run, plan: Plan | None, files: int) -> None:
    """Show what will be sent and made, and what it costs; `plan` is None with a --host."""
    data = "" if all(map(is_uri, run.data)) else "--data, and "
    host = [("machine", f"{run.host}, your own: not tried yet; it keeps running afterwards")]
    rows = [
        ("run", run.name),
        ("experiment", shlex.join([f"experiments.{run.experiment}", *run.args])),
        ("data", ", ".join(run.data) or "the built-in corpus"),
        ("sent from here", f"{files} files: {data}all of this folder that git does not ignore"),
        *(plan.rows if plan else host),
    ]
    say_table("Plan", ("", ""), rows, left=True)


def end_text(run: Run) -> str:
    """When its machines end themselves before their deadline."""
    if run.uri:
        return f"when its job has ended and all results are in {run.uri}"
    return f"{run.grace_minutes:g} min after its job"


def _each(run: Run) -> str:
    return f"{run.instances} x " if run.instances > 1 else ""


def devices_text(run: Run, machine: MachineType) -> str:
    """How many cores the job uses, and the batch that uses all if half or more are idle."""
    if run.is_study:
        return f"{machine.cores} trainings at once, one per core (--workers)"
    config = _options(run.experiment, run.args)
    batch, there, used = config.train.batch, machine.cores * run.instances, config.devices
    if used == "auto":
        from mmattn.train.devices import most_dividing  # imports JAX, which takes a while

        used = most_dividing(machine.cores, batch / run.instances) * run.instances
    text = f"{used} devices on {there} cores, with a batch of {batch} clips"
    if 2 * used > there:
        return text
    return f"{text}: {there - used} idle; --train.batch {there} uses all, but trains differently"


def cost_text(run: Run, price: float | None, disk: float | None) -> str:
    """The highest cost of a run, from dollars per hour of one on-demand machine and its disk."""
    if price is None:
        return f"unknown: AWS lists no price of {run.instance_type} in {run.region}"
    text = f"{_each(run)}${price:.2f} an hour (on demand in {run.region}"
    text += ", the most that the spot machine may cost)" if run.spot else ")"
    if disk is None:
        return f"{text}; the disk's price is unknown"
    bound = run.instances * run.hours * (price + offers.ADDRESS + disk)
    kept = "" if run.uri else f"; the kept disk ${24 * disk:.2f} a day"
    return f"{text}{kept}; at most ${bound:.2f} with its address and disk, without traffic"


def confirm(question: str, how: str = "give --yes") -> None:
    """Ask; UserError if the answer is no, or, with the advice `how`, if there is no terminal."""
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError as error:
        print()  # ends the line of the question
        raise UserError(f"there is no terminal to confirm at: {how}") from error
    if answer.strip().lower() not in ("y", "yes"):
        raise UserError("not confirmed: nothing was done")


def _split(args: str) -> list[str]:
    try:
        return shlex.split(args)
    except ValueError as error:
        raise UserError(f"--args {args}: {error}") from error


def _number(name: str, text: str) -> float:
    whole = name == "instances"
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= MOST[name]:
        kind = "a whole number" if whole else "a number"
        raise UserError(f"--{flag(name)} {text}: expected {kind} above 0, at most {MOST[name]}")
    return value


def _data_folder(text: str) -> str:
    folder = Path(text).expanduser().resolve()
    if not text or not folder.is_dir():
        raise UserError(f"--data {text}: expected a folder")
    if not any(path.suffix == ".npz" for path in folder.rglob("*")):
        raise UserError(f"--data {text}: expected feature files (.npz), found none")
    return str(folder)
