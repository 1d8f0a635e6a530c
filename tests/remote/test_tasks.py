"""The real `fab`: what it lists, explains, refuses, and what it leaves when it is cut."""

import io
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fabric.main import make_program

from mmattn.console import screen
from mmattn.remote.runs import Member, Run
from tests.remote.machines.cloud_api import Fault

PROJECT = Path(__file__).parents[2]
FAB = (sys.executable, "-c", "from fabric.main import program; program.run()")
TASKS = ("deploy", "fetch", "ls", "monitor", "resume", "ssh", "stop", "teardown")
OF_A_RUN = [task for task in TASKS if task not in ("deploy", "ls")]
REFUSES = "127.88.0.98"  # nothing listens there: connections are refused at once


class Shell:
    """A shell in a folder with the project's tasks and experiments."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder = folder
        self.environment = {**os.environ, **environment, "COLUMNS": "100"}

    def start(self, *words: str) -> subprocess.Popen:
        pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
        return subprocess.Popen(
            [*FAB, *words],
            cwd=self.folder,
            env=self.environment,
            stderr=subprocess.STDOUT,
            text=True,
            **pipes,
        )

    def fab(self, *words: str, code: int = 0, answer: str = "") -> str:
        """Run in this process to the end, check the exit code, return what was shown."""
        shown, ended = io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            for name in ("stdout", "stderr"):
                patch.setattr(sys, name, shown)
            patch.setattr(sys, "stdin", io.StringIO(answer))
            patch.setattr(sys, "argv", ["fab", *words])
            patch.setattr(sys, "path", [*sys.path])
            patch.setattr(screen, "file", shown)
            try:
                make_program().run(["fab", *words])
            except SystemExit as end:
                ended = end.code
        for name in ("fabfile", "tasks"):  # the next test has its own
            sys.modules.pop(name, None)
        text = shown.getvalue()
        if isinstance(ended, str):  # as Python itself shows it
            text, ended = f"{text}{ended}\n", 1
        assert (ended or 0) == code, text
        assert "Traceback" not in text
        return text


@pytest.fixture
def shell(cloud_api, tmp_path, monkeypatch) -> Shell:
    """An empty account, whose machines refuse every connection, and a project without runs."""
    for name in ("tasks.py", "fabfile.py"):
        shutil.copy(PROJECT / name, tmp_path)
    shutil.copytree(PROJECT / "experiments", tmp_path / "experiments")
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    monkeypatch.chdir(tmp_path)
    cloud_api.new_address = lambda: REFUSES
    return Shell(tmp_path, {**cloud_api.environment, "MMATTN_IP_SERVICE": "data:,192.0.2.7"})


@pytest.fixture
def deploying(shell) -> Iterator[subprocess.Popen]:
    """`fab deploy` while it waits for the machine to let it in."""
    process = shell.start("deploy", "--yes")
    assert read_until(process, "waiting for ec2-user@")
    yield process
    process.kill()
    process.communicate()


def read_until(process: subprocess.Popen, sign: str) -> str:
    """What was shown up to and with this sign."""
    text = ""
    while not text.endswith(sign):
        letter = process.stdout.read(1)
        assert letter, text
        text += letter
    return text


# What is shown without doing anything


def test_the_tasks_are_listed_with_a_whole_sentence_each(shell):
    text = shell.start("--list").communicate(timeout=120)[0]
    listed = re.findall(r"^  (\w+) +(\S[^\n]*(?:\n {5,}[^\n]+)*)", text, re.M)
    assert tuple(name for name, _ in listed) == TASKS
    for name, about in listed:
        assert re.fullmatch(r"[A-Z].*[a-z]\.", about, re.S), name


@pytest.mark.parametrize("task", TASKS)
def test_the_help_of_a_task_explains_each_option(shell, cloud_api, task):
    text = shell.fab(task, "--help")
    assert max(map(len, text.splitlines())) <= 100
    options = re.findall(r"^  (--[\w=-]+)( {2,}\S.*)?$", text, re.M)
    assert options
    for option, about in options:
        assert about, option
    assert not cloud_api.calls


def test_dry_deploy_shows_the_plan_and_makes_nothing(shell, cloud_api):
    for words in (("deploy", "--dry-run"), ("deploy", "--spot", "--dry-run")):
        text = " ".join(shell.fab(*words).split())
        assert "c5.24xlarge, 96 vCPU (48 cores, one thread each), 192 GiB" in text
        assert re.search(r"\$\d\.\d\d an hour .*; at most \$\d+\.\d\d with its address", text)
    assert not cloud_api.resources()
    for call in cloud_api.calls:
        assert re.match("Describe|Get", call.action) or "DryRun" in call.parameters
    assert {path.name for path in (shell.folder / ".fab").iterdir()} == {"lock"}


# What is refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max-hours", "abc"), "--max-hours abc: expected a number above 0, at most 144"),
        (("--grace-minutes=soon",), "--grace-minutes soon: expected a number above 0"),
        (("--instances=1.5",), "--instances 1.5: expected a whole number above 0, at most 64"),
        (("--data=",), "--data : expected a folder"),
        (("--yes", "--data"), "--data: expected a folder"),
        (("--region", "no where"), "region_name 'no where' doesn't match"),
        (
            ("--instance-type", "huge"),
            "--instance-type huge: DescribeInstanceTypes: ",
        ),
    ],
)
def test_a_bad_value_is_one_message(shell, cloud_api, words, message):
    text = shell.fab("deploy", *words, code=2)
    assert text.startswith("error: ")
    assert message in text
    assert text.count("\n") == 1
    assert not cloud_api.resources()


@pytest.mark.parametrize("words", ["-R teardown", "-H me@192.0.2.1 deploy --yes"])
def test_fabrics_own_options_are_refused(shell, cloud_api, words):
    text = shell.fab(*words.split(), code=1)
    assert text == "-R, -H: use --dry-run, --host of `fab deploy` instead; nothing was done\n"
    assert not cloud_api.calls


@pytest.mark.parametrize("task", OF_A_RUN)
def test_an_unknown_run_is_named(shell, task):
    text = shell.fab(task, "--run", "no_aug-20260101-000000-aaaa", code=2)
    assert text.startswith("error: --run no_aug-20260101-000000-aaaa: ")
    assert text.count("\n") == 1


@pytest.mark.parametrize("task", ["fetch", "monitor", "ssh", "stop"])
def test_a_run_without_a_machine_says_how_it_gets_one(shell, task):
    Run("no_aug-20260101-000000-aaaa", "no_aug", region="us-east-1").save()
    assert "has no machine: use `fab deploy`" in shell.fab(task, code=2)


# What goes wrong at AWS


def test_a_refused_start_is_one_message_with_what_exists(shell, cloud_api):
    cloud_api.faults.append(Fault("RunInstances", "VcpuLimitExceeded", math.inf))
    text = shell.fab("deploy", "--yes", code=2)
    run = Run.find()
    error = text[text.index("error: ") :]
    assert error.startswith("error: AWS: RunInstances: VcpuLimitExceeded")
    assert "Now there is in us-east-1: perhaps key pair, security group and alarms" in error
    assert error.endswith(f"`fab teardown --run {run.name}` removes it all.\n")
    cloud_api.faults.clear()
    assert "nothing is left in us-east-1" in shell.fab("teardown")
    assert not cloud_api.resources()


@pytest.mark.parametrize("task", ["deploy", "ls", "teardown", "resume"])
def test_expired_credentials_are_one_message(shell, cloud_api, task):
    run = Run("no_aug-20260101-000000-aaaa", "no_aug", region="us-east-1")
    replace(run, members=[Member("i-1", "192.0.2.1")]).save()
    cloud_api.faults.append(Fault("*", "ExpiredToken", math.inf))
    text = shell.fab(task, code=2)
    assert "the AWS credentials have expired, or this computer's clock is wrong: log in" in text
    assert text.count("error: ") == 1


# What is cut


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_without_a_yes_nothing_is_made(shell, cloud_api, answer):
    text = shell.fab("deploy", answer=answer, code=2)
    assert "Deploy? [y/N]" in text
    assert "nothing was done" in text or "give --yes" in text
    assert not cloud_api.resources()
    assert {path.name for path in (shell.folder / ".fab").iterdir()} == {"lock"}


@pytest.mark.machine
def test_an_interrupted_question_makes_nothing(shell, cloud_api):
    process = shell.start("deploy")
    read_until(process, "Deploy? [y/N]")
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in text
    assert not cloud_api.resources()


def test_a_second_deploy_names_the_running_one(shell, deploying, cloud_api):
    text = shell.fab("deploy", "--yes", code=75)
    assert text.endswith(
        f"error: `fab deploy` (process {deploying.pid}) is running and holds "
        f".fab/{Run.find().name}/lock; wait for it or stop it\n"
    )
    assert f"process {deploying.pid}" in shell.fab("teardown", code=75)
    assert cloud_api.resources()["instances"] == 1


def test_an_interrupted_deploy_says_what_exists_and_how_to_remove_it(shell, deploying, cloud_api):
    deploying.send_signal(signal.SIGINT)
    text, _ = deploying.communicate(timeout=60)
    assert deploying.returncode == 130
    assert "Traceback" not in text
    run = Run.find()
    assert f"Now there is in us-east-1: {run.instance_id} (c5.24xlarge, $4.08" in text
    assert f"`fab teardown --run {run.name}` removes it all." in text
    refused = shell.fab("deploy", "--spot", "--yes", code=2)
    assert f"the deployment of {run.name} was interrupted: it had --spot" in refused
    assert run.name in shell.fab("ls")
    shell.fab("teardown", "--run", run.name)
    assert not cloud_api.resources()
    assert "removed" in shell.fab("ls")
