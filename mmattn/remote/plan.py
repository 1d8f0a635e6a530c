"""What a deployment will make and cost: checked and shown before anything is made."""

import importlib
import math
import os
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmattn.cli import parse_experiment
from mmattn.console import say_table
from mmattn.errors import UserError
from mmattn.remote import prices
from mmattn.remote.cloud import Cloud, Image, MachineType
from mmattn.remote.runs import Run, parse_host

MOST_INSTANCES = 64
MOST_HOURS = 24 * 6  # an alarm can count no further than a week
_NAME = re.compile("[A-Za-z0-9_]+")  # it becomes part of the run's name
_OWN_OPTIONS = ("--out", "--resume", "--data.roots")


class Plan(NamedTuple):
    """What EC2 will be asked for."""

    machine_type: MachineType
    image: Image
    disk_gib: int
    price: float | None
    """Dollars an hour; None if unknown."""


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
) -> Run:
    """A run from the options of `fab deploy`, all checked on this computer.

    Raises:
        UserError: an option is wrong; nothing was made.
    """
    words, folders = _split(args), [_data_folder(one) for one in data]
    check_experiment(experiment, words, folders)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    run = Run(
        name=f"{experiment}-{stamp}-{os.urandom(2).hex()}",
        experiment=experiment,
        args=words,
        data=[str(one) for one in folders],
        hours=_number("--max-hours", hours, MOST_HOURS),
        grace_minutes=_number("--grace-minutes", grace_minutes, MOST_HOURS * 60),
    )
    count = _count("--instances", instances, MOST_INSTANCES)
    if host:
        if count > 1:
            raise UserError(f"--instances {count}: expected no --host, which is one machine")
        if spot:
            raise UserError("--spot: expected no --host, which is no machine of EC2")
        parse_host(host)
        run.host = host
        return run
    cloud = Cloud(region)
    run.region, run.owner = cloud.region, cloud.caller()
    run.instance_type, run.instances, run.spot = instance_type, count, spot
    return run


def check_experiment(name: str, words: Sequence[str], data: Sequence[Path]) -> None:
    """Read an experiment's options, on these data, as it will on the machine.

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
    config = getattr(importlib.import_module(f"experiments.{name}"), "CONFIG", None)
    if config is None:
        raise UserError(f"--experiment {name}: expected one training; this is a study of many")
    try:
        roots = ["--data.roots", *map(str, data)] if data else []
        parse_experiment(config, "", [*words, *roots]).check()
    except SystemExit as error:  # the parser has told what is wrong
        raise UserError(f"--args: not what experiments.{name} takes, see above") from error


def make_plan(run: Run, cloud: Cloud) -> Plan:
    """Ask EC2 what the run's machine is; UserError or CloudError if there is none."""
    machine_type = cloud.machine_type(run.instance_type)
    if run.spot:
        price = cloud.spot_price(run.instance_type)
    else:
        price = prices.on_demand(run.instance_type, machine_type.vcpus)
    image = cloud.image(machine_type.architecture)
    # The data, as much again for the packed cache, half of it spare; code, environment, results.
    gib = 20 + 2.5 * sum(folder_size(Path(one)) for one in run.data) / 2**30
    return Plan(machine_type, image, max(image.size, math.ceil(gib)), price)


def say_plan(run: Run, plan: Plan | None) -> None:
    """Show what will be made and what it costs; `plan` is None with a --host."""
    rows = [
        ("run", run.name),
        ("experiment", shlex.join([f"experiments.{run.experiment}", *run.args])),
        ("data", ", ".join(map(_described, run.data)) or "the built-in corpus"),
    ]
    if plan is None:
        rows.append(("machine", f"{run.host}, which exists and is not ended afterwards"))
    else:
        kind = "spot" if run.spot else "on demand"
        many = run.instances > 1
        each = f"{run.instances} x " if many else ""
        rows += [
            (
                "machine",
                f"{each}{plan.machine_type.name}, {plan.machine_type.vcpus} vCPU, "
                f"{plan.machine_type.memory / 2**30:.0f} GiB, {kind}, {run.region}",
            ),
            ("disk", f"{each}{plan.disk_gib} GiB, encrypted, deleted with the machine"),
            (
                "who can reach it",
                "this computer's address alone, port 22"
                + "; its machines each other, in one placement group" * many,
            ),
            (
                "it ends itself",
                f"{run.hours:g} h after its start, or {run.grace_minutes:g} min after its job, "
                "fetched or not",
            ),
            ("cost", cost_text(run, plan)),
        ]
    say_table("Plan", ("", ""), rows, left=True)


def _described(folder: str) -> str:
    return f"{folder} ({folder_size(Path(folder)) / 1e6:.0f} MB)"


def cost_text(run: Run, plan: Plan) -> str:
    """The highest cost of a plan and where the price is from."""
    disk = plan.disk_gib * prices.DISK
    if plan.price is None:
        return f"unknown: {run.instance_type} is not in the price table of {prices.DATE}"
    source = f"us-east-1, {prices.DATE}"
    if run.spot:
        usual = prices.on_demand(plan.machine_type.name, plan.machine_type.vcpus)
        source = "spot now" + (f"; on demand ${usual:.2f}" if usual else "")
    most = run.instances * run.hours * (plan.price + disk)
    bound = "about" if run.spot else "at most"
    each = f"{run.instances} x " if run.instances > 1 else ""
    return f"{each}${plan.price:.2f} an hour ({source}); {bound} ${most:.2f} with its disk"


def confirm(question: str, yes: bool) -> None:
    """Ask, unless `yes`.

    Raises:
        UserError: the answer is no, or there is no terminal to ask at.
    """
    if yes:
        return
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError as error:
        print()  # ends the line of the question
        raise UserError("there is no terminal to confirm at: give --yes") from error
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
