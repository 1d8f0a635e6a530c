"""How jobs end on a real machine, and what `fab monitor` then says of them here."""

import base64
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mmattn.files import write_json
from mmattn.remote import jobs
from mmattn.remote.agent.job import read_json
from mmattn.remote.runs import Run
from mmattn.remote.send import send_agent
from mmattn.remote.ssh import Access, Machine, RemoteError
from tests.remote.waiting import wait_until

PROJECT = Path(__file__).parents[2]
FAB = (sys.executable, "-c", "from fabric.main import program; program.run()", "-r", str(PROJECT))
NAME = "no_aug-20261125-000000-ab12"
LOST = 70
KILLED = 128 + signal.SIGKILL
READY = "import os, signal, sys, time; print('ready', flush=True)\n"
SLEEP = READY + "time.sleep(600)"
# Logs on, whether there is room or not, until it is told to end.
LOGGER = (
    READY
    + """
signal.signal(signal.SIGUSR1, lambda *_: os._exit(5))
number = 0
while True:
    number += 1
    try:
        os.write(1, b"line %d \\xff\\n" % number)
    except OSError:
        pass
    time.sleep(0.05 if number > 1000 else 0)
"""
)


class Job:
    """The job of a run on a machine, and a home from which `fab` logs in there."""

    def __init__(self, guest, home: Path):
        self.guest, self.home = guest, home
        host = f"{guest.user}@{guest.address}"
        self.run = Run(NAME, "no_aug", host=host, state="started")
        (home / ".fab" / NAME).mkdir(parents=True)
        write_json(home / ".fab" / NAME / "state.json", asdict(self.run))
        (home / ".ssh").mkdir()
        known = home / ".ssh/known_hosts"
        known.write_text(guest.known_hosts_line)
        (home / ".ssh/config").write_text(f'IdentityFile "{guest.key_file}"\n')
        access = Access(guest.address, guest.user, own=(known, guest.key_file))
        self.machine = Machine(access, home / ".fab" / NAME, self.run.base)
        self.folder = guest.root / f"{guest.home[1:]}/{self.run.base}/job"

    def start(self, code: str) -> None:
        """Start Python code as `fab deploy` starts a training, and wait until it is ready."""
        self.deploy("")
        self.machine.call("job", "start", "python3", "-uc", code)
        wait_until(lambda: self.log.startswith(b"ready") and self.status["pid"])

    def deploy(self, code: str) -> None:
        """Send code, of which this Python code is the experiment; the system's Python runs it."""
        base = self.run.base
        self.machine.run(f"mkdir -p {base}/code/experiments {base}/run {base}/venv/bin")
        self.machine.run(f"ln -sf /usr/bin/python3 {base}/venv/bin/python")
        send_agent(self.machine)
        path = f"{base}/code/experiments/no_aug.py"
        self.machine.run(f"echo {shlex.quote(code)} >{path}")

    @property
    def log(self) -> bytes:
        path = self.folder / "job.log"
        return path.read_bytes() if path.exists() else b""

    @property
    def status(self) -> dict:
        return read_json(self.folder / "status.json")

    def signal(self, number: int) -> None:
        """Send a signal to the job's first process."""
        self.guest.run(f"kill -{number:d} {self.status['pid']}")

    def snapshot(self, *options: str) -> dict:
        return self.machine.call("snapshot", *options)

    def wait_for_end(self) -> dict:
        """The job, as the snapshot has it, once it runs no more."""
        wait_until(lambda: self.snapshot()["job"]["state"] != "running")
        return self.snapshot()["job"]

    def monitor(self, *options: str, **streams) -> subprocess.Popen:
        """Start `fab monitor`."""
        environment = {**os.environ, "HOME": str(self.home), "COLUMNS": "100"}
        environment.pop("SSH_AUTH_SOCK", None)
        return subprocess.Popen(
            [*FAB, "monitor", *options], cwd=self.home, env=environment, **streams
        )

    def report(self, code: int) -> str:
        """What `fab monitor --quick` says; its exit code must be as said."""
        process = self.monitor("--quick", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        text = process.communicate(timeout=60)[0].decode()
        assert process.returncode == code, text
        assert "Traceback" not in text
        return text


@pytest.fixture(scope="module")
def machine(boot_guest):
    with boot_guest() as guest:
        yield guest


@pytest.fixture
def job(machine, tmp_path, monkeypatch) -> Iterator[Job]:
    """A job on a machine with nothing of an earlier one."""
    monkeypatch.chdir(tmp_path)
    job = Job(machine, tmp_path)
    yield job
    if job.status:
        job.machine.call("job", "stop", "0.1")
    machine.run(f"rm -rf {machine.home}/mmattn")


@pytest.mark.parametrize(
    ("ending", "code", "words"),
    [
        ("sys.exit(3)", 3, "(exit code 3)"),
        ("sys.exit(75)", 75, "(exit code 75)"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139, "killed by SIGSEGV (exit code 139)"),
        ("sys.exit('$HOME ${HOME} $$ %h')", 1, "$HOME ${HOME} $$ %h"),  # none is expanded
    ],
)
def test_the_exit_code_is_told(job, ending, code, words):
    job.start(READY + ending)
    ended = job.wait_for_end()
    assert (ended["state"], ended["exit_code"], ended["out_of_memory"]) == ("ended", code, False)
    assert words in job.report(code)


def test_a_training_that_fails_at_once_is_started_again(job):
    """On the same machine, with the code that was mended meanwhile."""
    run = replace(job.run, state="built")
    job.deploy("import sys; sys.exit('a wrong option')")
    with pytest.raises(RemoteError, match=r"exit code 1 on .*:\na wrong option"):
        jobs.start_training(run, [job.machine])
    assert Run.find().state == "built"
    job.deploy(SLEEP)
    jobs.start_training(run, [job.machine])
    assert Run.find().state == "started"
    assert job.snapshot()["job"]["state"] == "running"
    jobs.start_training(run, [job.machine])  # what runs is left alone
    assert job.snapshot()["job"]["start"] == 2


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_an_interrupted_start_is_completed(job, monkeypatch, number):
    """This computer goes away after each step."""
    run, steps = replace(job.run, state="built"), itertools.count(1)
    job.deploy(SLEEP)

    def cut(step):
        def work(*arguments, **options):
            done = step(*arguments, **options)
            asks = "agent snapshot" in str(arguments)
            if not asks and next(steps) == number:
                raise KeyboardInterrupt
            return done

        return work

    with monkeypatch.context() as patch:
        patch.setattr(Machine, "run", cut(Machine.run))
        patch.setattr(Machine, "rsync", cut(Machine.rsync))
        with pytest.raises(KeyboardInterrupt):
            jobs.start_training(run, [job.machine])
    jobs.start_training(run, [job.machine])
    about = job.snapshot()["job"]
    assert (about["state"], about["start"]) == ("running", 1)
    assert run.state == "started"


def test_a_killed_job(job):
    job.start(SLEEP)
    job.signal(signal.SIGKILL)
    ended = job.wait_for_end()
    assert (ended["exit_code"], ended["out_of_memory"]) == (KILLED, False)
    assert "killed by SIGKILL" in job.report(KILLED)


def test_a_job_whose_end_was_not_recorded(job):
    """As after a restart of the machine."""
    job.start(READY + "print('last words', flush=True); time.sleep(600)")
    attendant = job.guest.run(f"ps -o ppid= -p {job.status['pid']}").strip()
    job.guest.run(f"kill -KILL {attendant}")
    assert job.wait_for_end()["state"] == "lost"  # systemd kills what is left
    text = job.report(LOST)
    assert "`fab resume` continues" in text and "last words" in text


def test_stop_can_kill_what_will_not_end(job):
    job.start(
        READY + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "os.fork(); os.write(1, b'two\\n'); time.sleep(600)"
    )
    wait_until(lambda: job.log.count(b"two") == 2)
    pid = job.status["pid"]
    assert job.machine.call("job", "stop", "0")["state"] == "running"
    ended = job.machine.call("job", "stop", "1")
    assert (ended["state"], ended["exit_code"]) == ("ended", KILLED)
    assert job.guest.run(f"ps -o pid= -g {pid}", check=False) == ""


def test_out_of_memory(guest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = Job(guest, tmp_path)
    job.start(READY + "time.sleep(2); bytearray(600 << 20); time.sleep(600)")
    guest.leave_memory(200 << 20)
    ended = job.wait_for_end()
    assert (ended["exit_code"], ended["out_of_memory"]) == (KILLED, True)
    assert "killed: the machine ran out of memory" in job.report(KILLED)


def test_a_full_disk_hides_nothing(job):
    job.start(LOGGER)
    job.guest.fill_disk()
    try:
        snapshot = job.snapshot()
        assert snapshot["job"]["state"] == "running"
        assert snapshot["machine"]["disk_used"] == snapshot["machine"]["disk_total"]
        assert "running" in job.report(0)
        job.signal(signal.SIGUSR1)
        assert job.wait_for_end()["exit_code"] == 5
        assert "(exit code 5)" in job.report(5)
    finally:
        job.guest.free_disk()
    assert job.snapshot()["job"]["exit_code"] == 5
    assert job.log.startswith(b"ready\nline 1 ")


def test_what_is_no_text_and_a_last_line_that_is_cut(job):
    job.start(
        READY + "os.write(1, b'half a \\xe2\\x82 sign\\n\\x1b[2J\\xff\\n')\n"
        "os.write(1, b'the end of no li'); sys.exit(3)"
    )
    job.wait_for_end()
    log = job.snapshot("0", "999")["log"]
    assert base64.b64decode(log["data"]) == job.log
    text = job.report(3)
    assert "half a � sign" in text and "the end of no li" in text
    assert "\x1b" not in text
    with open(job.home / "out", "wb") as out:
        assert job.monitor("--follow", stdout=out, stderr=subprocess.DEVNULL).wait(60) == 3
    assert (job.home / "out").read_bytes() == job.log


def test_a_log_that_is_truncated_is_followed_to_its_end(job):
    job.start(LOGGER)
    log, followed, told = job.folder / "job.log", job.home / "out", job.home / "told"
    with open(followed, "wb") as out, open(told, "wb") as errors:
        follower = job.monitor("--follow", stdout=out, stderr=errors)
        wait_until(lambda: b"line 1000 " in followed.read_bytes())
        os.truncate(log, 0)
        wait_until(lambda: b"the log was truncated" in told.read_bytes())
        job.signal(signal.SIGUSR1)
        assert follower.wait(60) == 5
    assert followed.read_bytes().endswith(b"\n" + log.read_bytes())
    numbers = [int(number) for number in re.findall(rb"line (\d+) \xff\n", followed.read_bytes())]
    assert numbers[:1000] == list(range(1, 1001))
    assert numbers == sorted(set(numbers))
