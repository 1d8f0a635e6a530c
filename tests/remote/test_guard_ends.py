"""No machine outlives its purpose: whatever happens on it, the API says at last `terminated`.

The machines are launched as `fab deploy` launches them, with little time to live. In each test
some of them come to their ends side by side, because most of that is waiting.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from mmattn.errors import UserError
from mmattn.remote import teardown, user_data
from mmattn.remote.agent.guard import BEAT_S, OFF_S
from mmattn.remote.cloud import Cloud
from mmattn.remote.launch import check_end, make_instance, wait_for_login
from mmattn.remote.plan import make_plan
from mmattn.remote.runs import Run
from mmattn.remote.send import send_agent
from mmattn.remote.ssh import RemoteError
from tests.remote.machines.image import RELEASES
from tests.remote.waiting import wait_until

PROJECT = Path(__file__).parents[2]
FAB = (sys.executable, "-c", "from fabric.main import program; program.run()", "-r", str(PROJECT))
GRACE_S = 6
SAVE = """
import signal, sys, time
def save(*_):
    print("asked", flush=True); time.sleep(1); print("saved"); sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("ready")
"""
SLEEP = "time.sleep(600)"
IGNORE = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.fork()
print("ready", flush=True)
"""


class Launched:
    """A run with its machine and, once a job was started, its files, also after its end."""

    def __init__(self, run: Run, cloud):
        self.run, self.instance_id = run, run.instance_id
        self.guest = cloud.guest(run.instance_id)
        self._files: int | None = None

    def start(self, code: str) -> None:
        """Start a job of Python code as `fab deploy` does, wait for its word, and leave."""
        run, machine = self.run, self.run.machine()
        wait_for_login(run, machine)
        check_end(run, machine)
        machine.run(f"mkdir -p {run.base}/code {run.base}/job")
        send_agent(machine)
        machine.call("job", "start", "python3", "-uc", code)
        for state in ("sent", "built", "started"):
            run.to(state)
        # Whoever holds a folder open can read it when the machine is off.
        self._files = os.open(self.guest.root / f"{self.guest.home[1:]}/{run.base}/job", os.O_PATH)
        wait_until(lambda: "ready" in self.log)

    @property
    def log(self) -> str:
        return self._read("job.log")

    @property
    def status(self) -> dict:
        return json.loads(self._read("status.json"))

    @property
    def guard(self) -> dict:
        """What the guard said last."""
        return json.loads(self._read("guard.json"))

    @property
    def state(self) -> str:
        """By the API's account."""
        return self.run.cloud().state(self.instance_id)

    def wait_for_end(self, timeout: float = 180) -> None:
        """Until the API says that it is terminated, by its own will."""
        wait_until(lambda: self.state == "terminated", timeout, interval=0.5)
        found = self.run.cloud().instance(self.instance_id)
        assert found.reason == "Client.InstanceInitiatedShutdown"

    def assert_saved(self, reason: str) -> None:
        """The guard had this reason, and let the job save before the power went."""
        assert self.guard["reason"] == reason
        assert self.log.endswith("asked\nsaved\n")
        assert self.status["exit_code"] == 75
        assert self.status["ended"] > self.guard["beat"]

    def close(self) -> None:
        if self._files is not None:
            os.close(self._files)

    def _read(self, name: str) -> str:
        return Path(f"/proc/self/fd/{self._files}/{name}").read_text()


@pytest.fixture
def launch(cloud, tmp_path, monkeypatch):
    """`launch(job, life_s, grace_s, stop_s)`: a machine that runs, and a job where one is given."""
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    owner, made = Cloud("us-east-1").caller(), []

    def launch(
        job: str | None = None, life_s: float = 600, grace_s: float = 600, stop_s: float = 20
    ) -> Launched:
        monkeypatch.setattr(user_data, "STOP_S", stop_s)
        run = Run(
            name=f"no_aug-20261125-000000-{len(made):04x}",
            experiment="no_aug",
            hours=life_s / 3600,
            grace_minutes=grace_s / 60,
            region="us-east-1",
            instance_type="c5.24xlarge",
            owner=owner,
        )
        run.save()
        make_instance(run, make_plan(run, run.cloud()))
        made.append(Launched(run, cloud))
        if job is not None:
            made[-1].start(job)
        return made[-1]

    yield launch
    for one in made:
        one.close()


@pytest.mark.parametrize("release", RELEASES, indirect=True)
def test_a_machine_that_nothing_wants_ends(launch, cloud):
    """No job ever, and one that ended."""
    abandoned = launch(grace_s=GRACE_S)
    ended = launch("print('ready')", grace_s=GRACE_S)

    abandoned.wait_for_end()
    ended.wait_for_end()
    assert ended.guard["reason"] == "ended"
    assert ended.guard["beat"] >= ended.status["ended"] + GRACE_S - BEAT_S
    assert "instances" not in cloud.api.resources()


def test_each_of_guard_and_timer_ends_the_machine_at_its_deadline(launch, cloud):
    guarded = launch(SAVE + SLEEP, life_s=90)
    guarded.guest.run("systemctl disable --now mmattn-deadline.timer")
    timed = launch(life_s=75, stop_s=0)  # a timer set in the past would never elapse
    timed.guest.wait_until_ready()
    timed.guest.run("systemctl disable --now mmattn-guard")
    late = launch(life_s=1)

    late.wait_for_end()
    timed.wait_for_end()
    assert 0 <= time.time() - timed.run.deadline < 60
    guarded.wait_for_end()
    guarded.assert_saved("deadline")
    assert guarded.status["ended"] < guarded.run.deadline
    assert time.time() - guarded.run.deadline < 60
    assert "instances" not in cloud.api.resources()


def test_a_machine_that_might_not_end_is_ended(launch, cloud):
    units = ("mmattn-deadline.timer", "mmattn-guard.service")
    for unit, one in {unit: launch() for unit in units}.items():
        run, machine = one.run, one.run.machine()
        wait_for_login(run, machine)
        one.guest.run(f"systemctl disable --now {unit}")
        with pytest.raises(RemoteError, match=f"its {unit} is inactive"):
            check_end(run, machine)
        assert one.state == "terminated"
        assert run.instance_id is None
    assert "instances" not in cloud.api.resources()


def test_a_machine_that_is_taken_away_lets_its_job_save(launch, cloud):
    working = launch(SAVE + SLEEP, stop_s=8)
    deaf = launch(IGNORE + SLEEP, stop_s=3)
    begin = time.time()
    for one in (working, deaf):
        one.guest.metadata.announce_interruption(30)
    working.wait_for_end()
    working.assert_saved("spot")
    assert time.time() > begin + 30 - OFF_S - 1  # what it saved can be fetched until then
    deaf.wait_for_end()
    assert deaf.guard["reason"] == "spot"
    assert deaf.status["exit_code"] == 128 + signal.SIGKILL
    assert "instances" not in cloud.api.resources()


def test_a_machine_that_trains_is_not_torn_down_whatever_its_state_says(launch, cloud):
    """The deployment was cut just after it had started the job."""
    one = launch(SAVE + SLEEP)
    one.run.to("built")
    with pytest.raises(UserError, match="is still training"):
        teardown.teardown(None, None, force=False)
    assert one.state == "running"
    teardown.teardown(None, None, force=True)
    assert not cloud.api.resources()


def test_a_killed_guard_comes_back(launch, cloud):
    one = launch("print('ready')", grace_s=GRACE_S)

    def guard() -> int:
        show = "systemctl show --property=MainPID --value mmattn-guard"
        return int(one.guest.run(show))

    killed = guard()
    one.guest.run(f"kill -KILL {killed}")
    wait_until(lambda: guard() not in (0, killed))
    one.wait_for_end()
    assert one.guard["reason"] == "ended"
    assert "instances" not in cloud.api.resources()


def test_sshd_ends_connections_of_computers_that_have_vanished(launch):
    """They would keep the machine: sshd started after it was told so."""
    guest = launch().guest
    guest.wait_until_ready()
    settings = guest.run("sshd -T").splitlines()
    assert {"clientaliveinterval 30", "clientalivecountmax 10"} <= set(settings)
    told = guest.run("stat --format=%Y /etc/ssh/sshd_config.d/10-mmattn.conf")
    started = guest.run('date +%s -d "$(systemctl show -P ActiveEnterTimestamp ssh)"')
    assert int(told) <= int(started)
