"""The guard: when it ends the machine, and that it does so whatever stands in its way.

Its acting part runs in a network of its own, where the metadata service's address is real and no
ssh connection of this computer is seen.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mmattn.remote.agent import guard
from mmattn.remote.agent.guard import Config, Seen, decide, report, taken_away
from tests.remote.programs import program
from tests.remote.waiting import wait_until

DAY, HOUR = 86400.0, 3600.0
NOON = 1_800_000_000.0
CONFIG = Config("/nowhere/job", deadline=NOON + DAY, grace_s=600, stop_s=100)
NOTICE = b'{"action": "terminate", "time": "2027-01-15T08:02:00Z"}'  # two minutes after noon


def seen(clock: float, running: bool = False, **about) -> Seen:
    usual = {**dict.fromkeys(("connected", "pushed"), False), "taken": None}
    usual["wall"] = NOON + clock
    return Seen(**{**usual, "clock": clock, "running": running, **about})


def decide_all(*looks: Seen) -> str | None:
    """The first reason, of looks from a start of the guard at 0 on."""
    wanted = 0.0
    for look in looks:
        reason, wanted = decide(CONFIG, look, wanted)
        if reason:
            assert look is looks[-1], "sooner than expected"
            return reason
    return None


@pytest.mark.parametrize(
    ("reason", "looks"),
    {
        "no job yet": (None, [seen(599)]),
        "never a job": ("ended", [seen(5), seen(600)]),
        "working": (None, [seen(600 * i, True) for i in range(1, 50)]),
        "just ended": (None, [seen(5000, True), seen(5005), seen(5599)]),
        "all in the bucket": ("ended", [seen(5, True), seen(9, pushed=True)]),
        "in the bucket, still pushing": (None, [seen(5, True), seen(9, True, pushed=True)]),
        "in the bucket, a user here": (None, [seen(5, True), seen(9, pushed=True, connected=True)]),
        "ended": ("ended", [seen(5000, True), seen(5005), seen(5600)]),
        "started again": (None, [seen(5, True), seen(10), seen(604, True), seen(1203)]),
        "connected": (None, [seen(300 * i, connected=True) for i in range(20)]),
        "was connected": ("ended", [seen(900, connected=True), seen(1499), seen(1500)]),
        "before the deadline": (None, [seen(5, True, wall=NOON + DAY - 101)]),
        "deadline": ("deadline", [seen(5, True, wall=NOON + DAY - 100)]),
        "deadline, though connected": ("deadline", [seen(5, wall=NOON + DAY, connected=True)]),
        "spot": ("spot", [seen(5, True, taken=NOON + 120)]),
        "spot, though connected": ("spot", [seen(5, True, taken=NOON + 120, connected=True)]),
        "spot at the deadline": ("spot", [seen(5, True, taken=NOON + DAY, wall=NOON + DAY)]),
        "clock jumps ahead": (None, [seen(5), seen(10, wall=NOON + HOUR), seen(599)]),
        "clock jumps back": ("ended", [seen(5), seen(600, wall=NOON - 20 * DAY)]),
    }.values(),
    ids=lambda value: None,
)
def test_policy(reason, looks):
    assert decide_all(*looks) == reason


def test_report_tells_when_it_will_end():
    def said(look: Seen, wanted: float) -> dict:
        reason, wanted = decide(CONFIG, look, wanted)
        return report(CONFIG, look, wanted, reason)

    working = said(seen(100, True), 95)
    assert working == {"beat": NOON + 100, "reason": None, "off_at": None}
    assert said(seen(100), 40)["off_at"] == NOON + 640
    assert said(seen(640), 40)["reason"] == "ended"


class Metadata(BaseHTTPRequestHandler):
    """EC2's metadata service, version 2: nothing is told without a token."""

    def do_PUT(self):
        asked = (
            self.path == "/latest/api/token"
            and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        )
        self.answer(200 if asked and self.server.tokens else 403, b"a token")

    def do_GET(self):
        assert self.path == "/latest/meta-data/spot/instance-action"
        if self.headers["X-aws-ec2-metadata-token"] != "a token":
            return self.answer(401, NOTICE)
        self.answer(*self.server.notice())

    def answer(self, code: int, body: bytes):
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(BrokenPipeError):  # who asked has gone
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def metadata() -> Iterator[ThreadingHTTPServer]:
    """A metadata service with a notice."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        server.tokens, server.notice = True, lambda: (200, NOTICE)
        server.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_notice_is_seen(metadata, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # nobody's business
    assert taken_away(metadata.address) == NOON + 120


@pytest.mark.parametrize(
    "answer",
    [(404, b"<html>"), (200, b"<html>"), (200, b""), (500, b""), (200, b"[1]")],
)
def test_no_notice(metadata, answer):
    metadata.notice = lambda: answer
    assert taken_away(metadata.address) is None


def test_silent_or_missing_metadata_service(metadata, monkeypatch):
    monkeypatch.setattr(guard, "METADATA_S", 0.2)
    wait = threading.Event()

    def silent():
        wait.wait(10)
        return 404, b""

    metadata.notice = silent
    begin = time.monotonic()
    assert taken_away(metadata.address) is None
    assert time.monotonic() - begin < 3
    wait.set()
    assert taken_away("http://127.0.0.1:1") is None


SHIM = """#!/bin/sh
echo "$(basename $0) $*" >> {record}
exit $(cat {folder}/$(basename $0).code 2>/dev/null || echo 0)
"""
SERVER = """
import sys
from http.server import ThreadingHTTPServer
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_guard import Metadata
server = ThreadingHTTPServer(("169.254.169.254", 80), Metadata)
server.tokens = True
notice = Path({notice!r})
server.notice = lambda: (200, notice.read_bytes()) if notice.exists() else (404, b"")
print("ready", flush=True)
server.serve_forever()
"""
SAVE = """
import signal, sys, time
def save(*_):
    print("saved"); sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("ready")
"""
SLEEP = "time.sleep(60)"
IGNORE = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.fork()
print("ready"); time.sleep(60)
"""


class Machine:
    """A network of its own, with commands that only note that they were called."""

    def __init__(self, base: Path, tools: Path):
        self.base, self.tools, self.record = base, tools, tools / "record"
        self.processes: list[subprocess.Popen] = []
        for name in ("systemctl",):
            path = tools / name
            path.write_text(SHIM.format(record=self.record, folder=tools))
            path.chmod(0o755)
        self.holder = subprocess.Popen(["unshare", "--net", "sleep", "600"])
        self.processes.append(self.holder)
        own = os.readlink("/proc/self/ns/net")
        self.wait_until(lambda: os.readlink(f"/proc/{self.holder.pid}/ns/net") != own)

    def wait_until(self, true: Callable[[], object]) -> None:
        wait_until(true, why=(self.tools / "errors").read_text)

    def wait_until_off(self) -> None:
        self.wait_until(lambda: self.calls[-1:] == ["systemctl poweroff"])

    def never_off(self, seconds: float) -> None:
        """Nothing was called, while that many seconds have passed."""
        time.sleep(seconds)
        assert not self.calls
        assert self.said["beat"] > time.time() - 1

    def inside(self, *command: str, **about) -> subprocess.Popen:
        enter = ["nsenter", "--net", "--target", str(self.holder.pid)]
        process = subprocess.Popen([*enter, *command], stdout=subprocess.PIPE, **about)
        self.processes.append(process)
        return process

    def guard(self, deadline: float | None = None, grace_s: float = 600, stop_s: float = 4):
        config = {
            "job": str(self.base / "job"),
            "deadline": deadline or time.time() + 600,
            "grace_s": grace_s,
            "stop_s": stop_s,
        }
        path = self.tools / "guard.json"
        path.write_text(json.dumps(config))
        environment = {**os.environ, "PATH": f"{self.tools}:{os.environ['PATH']}"}
        with open(self.tools / "errors", "wb") as errors:
            # A beat is shorter than on a real machine.
            command = program("guard", path, BEAT_S=0.1)
            return self.inside(*command, env=environment, stderr=errors)

    @property
    def calls(self) -> list[str]:
        return self.record.read_text().splitlines() if self.record.exists() else []

    @property
    def said(self) -> dict:
        path = self.base / "job/guard.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def close(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


@pytest.fixture
def machine_in(tmp_path) -> Iterator[Callable[[Path], Machine]]:
    machines = []

    def make(base: Path) -> Machine:
        if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
            pytest.skip("needs a network of its own, which only root may make")
        tools = tmp_path / "tools"
        tools.mkdir()
        machines.append(Machine(base, tools))
        return machines[-1]

    yield make
    for machine in machines:
        machine.close()


@pytest.fixture
def machine(machine_in, tmp_path) -> Machine:
    """A machine for the job in this test's folder."""
    base = tmp_path / "base"
    base.mkdir()
    return machine_in(base)


OFF = ["systemctl poweroff"]


def test_ended_job_and_grace(machine, job_in):
    job = job_in(machine.base)
    machine.guard(grace_s=1)
    job.run("sh", "-c", "exit 3")
    ended = job.status["ended"]
    machine.wait_until_off()
    assert machine.calls == OFF
    assert machine.said["reason"] == "ended"
    assert 0.8 < machine.said["beat"] - ended < 5
    assert job.status["exit_code"] == 3


def test_a_job_that_runs_is_left_alone(machine, job_in):
    """Also the one that prepares the training."""
    job_in(machine.base)
    build = job_in(machine.base, "build")
    build.python(SAVE + SLEEP)
    machine.guard(grace_s=0.7)
    machine.wait_until(lambda: machine.said)
    machine.never_off(1.5)
    assert machine.said["off_at"] is None
    build.kill()
    machine.wait_until_off()


def test_what_is_in_the_bucket_ends_the_machine_without_grace(machine, job_in):
    """What brings it there is waited for, and it is not told to end before the job has saved."""
    job, push = job_in(machine.base), job_in(machine.base, "push")
    wait = f"while test ! -e {job.folder}/done; do sleep 0.1; done"
    push.order("start", "sh", "-c", f"{wait}; sleep 1; touch {job.folder}/pushed")
    job.run("touch", str(job.folder / "done"))
    machine.guard(grace_s=600)
    machine.wait_until_off()
    assert machine.said["reason"] == "ended"
    assert push.status["exit_code"] == 0


def test_deadline(machine, job_in):
    job = job_in(machine.base)
    job.python(SAVE + SLEEP)
    machine.guard(deadline=time.time() + 6.5, grace_s=0.2, stop_s=5)
    machine.never_off(0.8)
    machine.wait_until_off()
    assert machine.said["reason"] == "deadline"
    assert job.status["exit_code"] == 75


def test_job_that_ignores_sigterm_is_killed_with_all_its_processes(machine, job_in):
    job = job_in(machine.base)
    job.python(IGNORE)
    begin = time.monotonic()
    machine.guard(deadline=time.time(), stop_s=1)
    machine.wait_until_off()
    assert time.monotonic() - begin > 1
    assert machine.calls == OFF
    assert not job.held
    assert job.status["exit_code"] == 137


def test_spot_notice(machine, job_in):
    notice = machine.tools / "notice"
    for words in ("link set lo up", "address add 169.254.169.254/32 dev lo"):
        assert machine.inside("ip", *words.split()).wait() == 0
    code = SERVER.format(tests=str(Path(__file__).parent), notice=str(notice))
    server = machine.inside(sys.executable, "-c", code)
    assert server.stdout.readline() == b"ready\n"
    job = job_in(machine.base)
    job.python(SAVE + SLEEP)
    machine.guard()
    machine.wait_until(lambda: machine.said)
    machine.never_off(0.5)
    taken = time.time() + 12
    end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(taken))
    notice.with_suffix(".new").write_text(json.dumps({"action": "terminate", "time": end}))
    notice.with_suffix(".new").rename(notice)
    machine.wait_until_off()
    assert taken - guard.OFF_S - 1 < time.time()  # what was saved can be fetched until then
    assert machine.said["reason"] == "spot"
    assert job.status["exit_code"] == 75


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_ssh_connection_keeps_the_machine(machine, job_in, address):
    job_in(machine.base)
    assert machine.inside("ip", "link", "set", "lo", "up").wait() == 0
    code = (
        "import socket, sys\n"
        "server = socket.create_server((sys.argv[1], 22), family=socket.AF_INET6 if ':' in"
        " sys.argv[1] else socket.AF_INET)\n"
        "client = socket.create_connection((sys.argv[1], 22)); peer = server.accept()\n"
        "print('connected', flush=True); sys.stdin.read()"
    )
    client = machine.inside(sys.executable, "-c", code, address, stdin=subprocess.PIPE)
    assert client.stdout.readline() == b"connected\n"
    machine.guard(grace_s=0.7)
    machine.wait_until(lambda: machine.said)
    machine.never_off(1.5)
    client.stdin.close()
    machine.wait_until_off()
    assert machine.said["reason"] == "ended"


def test_machine_that_never_got_a_job(machine):
    machine.base.rmdir()  # as it is before anything is uploaded
    machine.guard(grace_s=0.7)
    machine.wait_until_off()
    assert machine.calls == OFF


def test_power_off_that_fails_is_tried_another_way(machine):
    (machine.tools / "systemctl.code").write_text("1")
    machine.guard(deadline=time.time(), stop_s=0)
    machine.wait_until(lambda: machine.calls[:2] == [*OFF, "systemctl poweroff -ff"])


def test_full_disk_hinders_nothing(small_disk, fill, machine_in, job_in):
    machine = machine_in(small_disk)
    job = job_in(small_disk)
    job.python(SAVE + SLEEP)
    fill(small_disk)
    machine.guard(deadline=time.time(), stop_s=1)
    machine.wait_until_off()
    assert machine.calls == OFF
    assert job.status["exit_code"] == 75
    assert machine.said == {}


def test_broken_status_hinders_nothing(machine, job_in):
    job = job_in(machine.base)
    job.python(SAVE + SLEEP)
    pid = job.status["pid"]
    (job.folder / "status.json").write_text('{"pid": "one"}')
    (job.folder / "guard.json").mkdir()
    try:
        machine.guard(deadline=time.time(), stop_s=1)
        machine.wait_until_off()
        assert machine.calls == OFF
    finally:
        os.kill(pid, signal.SIGKILL)


def test_guard_that_is_killed_in_the_act_does_it_again(machine, job_in):
    job = job_in(machine.base)
    job.python(IGNORE)
    first = machine.guard(deadline=time.time(), stop_s=60)
    machine.wait_until(lambda: machine.said.get("reason"))
    first.kill()
    machine.guard(deadline=time.time(), stop_s=0.5)
    machine.wait_until_off()
    assert job.status["exit_code"] == 137
