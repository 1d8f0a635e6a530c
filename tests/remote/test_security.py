"""Who can reach a machine, who can read a key, and what of it is ever shown."""

import base64
import gzip
import json
import logging
import re
import subprocess
from pathlib import Path

import pytest

from mmattn.remote import launch
from mmattn.remote.launch import make_instance
from mmattn.remote.plan import Plan, make_plan
from mmattn.remote.runs import Run

PROJECT = Path(__file__).parents[2]
SHIPPED = [
    *(PROJECT / "mmattn/remote").rglob("*.py"),
    *(PROJECT / "mmattn/remote").rglob("*.sh"),
    *(PROJECT / "docs").glob("remote*"),
    PROJECT / "tasks.py",
    PROJECT / "fabfile.py",
]
FORBIDDEN = [
    r"AutoAddPolicy|WarningPolicy",
    r"0\.0\.0\.0/0|::/0",
    r"StrictHostKeyChecking[ =](?!yes)|UserKnownHostsFile[ =]/dev/null",
    r"shell=True|os\.system|os\.popen",
    r"pickle\.|import pickle|\beval\(|\bexec\(|yaml\.load",
    r"verify=False|_create_unverified_context",
    r"ForwardAgent[ =]yes|forward_agent=True",
    r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY",
]


@pytest.fixture
def plan(run) -> Plan:
    return make_plan(run, run.cloud())


@pytest.fixture
def made(run, plan) -> Run:
    run.save()
    make_instance(run, plan)
    return run


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_no_file_has_what_opens_a_hole(pattern):
    assert len(SHIPPED) > 15
    found = [path.name for path in SHIPPED if re.search(pattern, path.read_text(encoding="utf-8"))]
    assert not found


def test_git_takes_no_key_and_no_results():
    for name in (".fab/no_aug-20260101-000000-aaaa/key", "runs/no_aug/x"):
        ignored = subprocess.run(["git", "check-ignore", "--quiet", name], cwd=PROJECT)
        assert ignored.returncode == 0, name


def secret_lines(made: Run) -> list[str]:
    """The lines of the run's private keys, without their head and foot."""
    texts = [path.read_text() for path in (made.key, made.host_key)]
    return [line for text in texts for line in text.splitlines() if "PRIVATE" not in line]


def test_keys_are_for_their_owner_alone(made):
    assert made.folder.stat().st_mode & 0o777 == 0o700
    for path in made.folder.iterdir():
        if "PRIVATE KEY" in path.read_text():
            assert path.stat().st_mode & 0o777 == 0o600, path
    assert {made.key, made.host_key} <= set(made.folder.iterdir())


def test_the_instance_gets_its_host_key_in_one_place_and_no_other_secret(made, cloud_api):
    (launched,) = cloud_api.launched()
    text = launched.user_data.decode()
    assert cloud_api.environment["AWS_SECRET_ACCESS_KEY"] not in text
    told = json.loads(text.partition("\n")[2])
    assert told.pop("ssh_keys")["ed25519_private"] == made.host_key.read_text()
    for file in told.pop("write_files"):
        told[file["path"]] = gzip.decompress(base64.b64decode(file["content"])).decode()
    rest = json.dumps(told)
    assert "PRIVATE KEY" not in rest
    assert not [line for line in secret_lines(made) if line in rest]
    assert made.key.read_text() not in text


def test_nothing_secret_is_told_to_any_other_call(made, cloud_api):
    for call in cloud_api.calls:
        told = {name: value for name, value in call.parameters.items() if name != "UserData"}
        assert "PRIVATE KEY" not in str(told)
        assert not [line for line in secret_lines(made) if line in str(told)]


def test_what_is_said_and_logged_shows_no_secret(run, plan, cloud_api, capfd, caplog):
    caplog.set_level(logging.INFO)
    run.save()
    make_instance(run, plan)
    shown = caplog.text + "".join(capfd.readouterr()) + (run.folder / "state.json").read_text()
    assert "starting a c5.24xlarge" in shown
    assert "PRIVATE KEY" not in shown
    assert cloud_api.environment["AWS_SECRET_ACCESS_KEY"] not in shown
    assert not [line for line in secret_lines(run) if line in shown]


def test_every_rule_is_of_one_address(run, plan, cloud_api, monkeypatch):
    run.save()
    for network in ("192.0.2.7/32", "192.0.2.8/32"):
        monkeypatch.setattr(launch, "own_network", lambda network=network: network)
        make_instance(run, plan)
    rules = [
        value
        for call in cloud_api.calls
        if call.action == "AuthorizeSecurityGroupIngress"
        for name, value in call.parameters.items()
        if "Cidr" in name
    ]
    assert rules == ["192.0.2.7/32", "192.0.2.8/32"]
    ports = {
        value
        for call in cloud_api.calls
        for name, value in call.parameters.items()
        if name.endswith((".FromPort", ".ToPort"))
    }
    assert ports == {"22"}
