"""The supervisor with real jobs: whatever is killed, what it leaves tells the truth."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmattn.remote.agent.job import is_held
from mmattn.remote.agent.snapshot import describe_job
from mmattn.remote.agent.stop import stop
from mmattn.remote.agent.supervisor import overwrite
from tests.remote.programs import program

SLEEP = "import time; print('ready'); time.sleep(60)"
SAVE = """
import signal, sys, time
def save(*_):
    print("saved"); sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("ready"); time.sleep(60)
"""
IGNORE = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready"); time.sleep(60)
"""


def test_job_runs_as_its_spec_says(job):
    code = (
        "import os, sys\n"
        "print(os.environ['COLOUR'], os.getcwd(), repr(sys.stdin.read()), os.getsid(0))\n"
        "sys.stdout.flush()\n"
        "print(open('/proc/self/oom_score_adj').read(), os.getpgrp(), file=sys.stderr)"
    )
    before = time.time()
    status = job.run([sys.executable, "-c", code], COLOUR="blue")
    pid = status["pid"]
    assert job.log.decode().split() == f"blue {Path.cwd().parent} '' {pid} 500 {pid}".split()
    assert (status["state"], status["start"], status["exit_code"]) == ("ended", 1, 0)
    assert before <= status["started"] <= status["ended"] <= time.time()
    assert not is_held(job.folder)
    assert (job.folder / "supervisor.log").read_bytes() == b""


def test_each_start_is_counted_and_appends_to_the_log(job):
    assert job.run(["sh", "-c", "printf 'half a li'; exit 3"])["exit_code"] == 3
    status = job.run(["sh", "-c", "echo ne"])
    assert (status["start"], status["exit_code"]) == (2, 0)
    assert job.log == b"half a line\n"


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["./no-such-program"], 127, "FileNotFoundError: .*no-such-program"),
        (["/etc/passwd"], 126, "PermissionError: .*/etc/passwd"),
        ([], 126, "IndexError"),
        (None, 126, "TypeError"),
    ],
)
def test_job_that_cannot_be_started(job, argv, code, message):
    status = job.run(argv)
    assert (status["start"], status["pid"], status["exit_code"]) == (1, None, code)
    for log in (job.log, (job.folder / "supervisor.log").read_bytes()):
        assert re.match(f"the job cannot be started: {message}", log.decode())


@pytest.mark.parametrize(("spec", "message"), [(None, "spec.json"), ("{", "JSONDecodeError")])
def test_spec_that_is_missing_or_broken(job, spec, message):
    if spec:
        (job.folder / "spec.json").write_text(spec)
    job.supervise()
    job.wait_until(lambda: job.status)
    assert job.wait()["exit_code"] in (126, 127)
    assert message in job.log.decode()


def test_second_supervisor_is_refused(job):
    job.python(SLEEP)
    command = program("supervisor", job.folder)
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 75
    assert "lives already" in second.stderr
    assert job.status["start"] == 1
    os.kill(job.status["supervisor"], signal.SIGKILL)  # the child alone holds the lock as well
    assert subprocess.run(command, capture_output=True).returncode == 75


def test_those_who_ask_for_the_lock_do_not_hinder_a_start(job):
    job.specify(["true"])
    with open(job.folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        job.supervise()
        time.sleep(0.5)
    job.wait_until(lambda: job.start)
    assert job.wait()["exit_code"] == 0


def test_killed_child_is_recorded(job):
    job.python(SLEEP)
    os.kill(job.status["pid"], signal.SIGKILL)
    status = job.wait()
    assert status["exit_code"] == 137
    assert not status["out_of_memory"]


@pytest.mark.parametrize("complete", [False, True])
def test_job_continues_without_its_supervisor(job, complete):
    job.python(SLEEP)
    assert describe_job(job.folder)["supervised"]
    os.kill(job.status["supervisor"], signal.SIGKILL)
    job.wait_until(lambda: not describe_job(job.folder)["supervised"])
    assert job.held
    assert describe_job(job.folder)["state"] == "running"
    if complete:
        (job.base / "run").mkdir()
        (job.base / "run/summary.json").touch()
    os.kill(job.status["pid"], signal.SIGKILL)
    job.wait_until(lambda: not job.held)
    found = describe_job(job.folder)
    if complete:
        assert (found["state"], found["exit_code"]) == ("ended", 0)
        assert found["ended"] >= found["started"]
    else:
        assert (found["state"], found["exit_code"], found["ended"]) == ("lost", None, None)
    assert job.run(["true"])["start"] == 2


def test_supervisor_and_child_killed_together(job):
    job.python(SLEEP)
    for name in ("supervisor", "pid"):
        os.kill(job.status[name], signal.SIGKILL)
    job.wait_until(lambda: not job.held)
    found = describe_job(job.folder)
    assert (found["state"], found["supervised"]) == ("lost", False)


def test_a_summary_of_before_does_not_make_a_lost_job_complete(job):
    (job.base / "run").mkdir()
    summary = job.base / "run/summary.json"
    summary.touch()
    os.utime(summary, (1, 1))
    job.python(SLEEP)
    for name in ("supervisor", "pid"):
        os.kill(job.status[name], signal.SIGKILL)
    job.wait_until(lambda: not job.held)
    assert describe_job(job.folder)["state"] == "lost"


def test_sigterm_is_forwarded(job):
    job.python(SAVE)
    os.kill(job.status["supervisor"], signal.SIGTERM)
    assert job.wait()["exit_code"] == 75
    assert job.log == b"ready\nsaved\n"


@pytest.mark.parametrize("supervised", [True, False])
def test_stop_lets_the_job_save(job, supervised):
    job.python(SAVE)
    if not supervised:
        os.kill(job.status["supervisor"], signal.SIGKILL)
        job.wait_until(lambda: not is_held(job.folder))
    command = program("stop", job.folder, "--wait", 20)
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(answer.removeprefix("mmattn:"))
    assert (found["state"], found["exit_code"]) == (("ended", 75) if supervised else ("lost", None))
    assert job.log == b"ready\nsaved\n"


def test_stop_of_a_job_that_will_not(job):
    job.python(IGNORE)
    begin = time.monotonic()
    assert stop(job.folder, 0.5)["state"] == "running"
    assert 0.5 <= time.monotonic() - begin < 5


def test_stop_without_a_job(job):
    assert stop(job.folder, 20)["state"] == "absent"
    job.run(["true"])
    assert stop(job.folder, 20)["state"] == "ended"


def test_full_disk_does_not_hide_how_the_job_ended(small_disk, fill, job_in):
    job = job_in(small_disk)
    job.python("print('ready'); input(); ")
    job.wait()
    fill(small_disk)
    job.supervise()  # with the same spec, on a disk that is full already
    job.wait_until(lambda: job.status["start"] == 2)
    status = job.wait()
    assert (status["state"], status["exit_code"]) == ("ended", 1)


def test_job_that_fills_the_disk(small_disk, job_in):
    job = job_in(small_disk)
    code = (
        "print('ready'); file = open('%s', 'wb', buffering=0)\n"
        "while True:\n    if file.write(bytes(999)) < 999: file.write(bytes(999))"
    )
    job.python(code % (small_disk / "filler"))
    assert job.wait()["exit_code"] == 1
    assert (small_disk / "filler").stat().st_size > 100_000


def test_status_is_written_when_there_is_room_again(small_disk, fill, job_in):
    job = job_in(small_disk)
    job.specify(["sh", "-c", "exit 4"])
    (job.folder / "supervisor.log").touch()
    filler = fill(small_disk)
    job.supervise()
    job.wait_until(lambda: job.held)
    time.sleep(1)
    found = describe_job(job.folder)
    assert (found["state"], found["start"], found["supervised"]) == ("running", 0, True)
    filler.unlink()
    status = job.wait()
    assert (status["start"], status["exit_code"]) == (1, 4)


def test_overwriting_leaves_valid_json(tmp_path):
    path = tmp_path / "status.json"
    path.write_text('{"a": "long long"}\n')
    overwrite(path, '{"a": 1}')
    assert json.loads(path.read_text()) == {"a": 1}
    overwrite(path, '{"a": "longer than before it was"}')
    assert json.loads(path.read_text()) == {"a": "longer than before it was"}


def test_out_of_memory_is_told_apart(job, memory_limit):
    code = "import time; print('ready'); bytearray(400 << 20); time.sleep(60)"
    job.specify([sys.executable, "-uc", code])
    job.supervise("sh", "-c", f'echo $$ > "{memory_limit}/cgroup.procs" && exec "$@"', "sh")
    job.wait_until(lambda: job.status)
    status = job.wait()
    assert (status["exit_code"], status["out_of_memory"]) == (137, True)


@pytest.fixture
def memory_limit():
    """A memory cgroup of 100 MB."""
    root = Path("/sys/fs/cgroup")
    old = (root / "memory").is_dir()
    folder = root / ("memory" if old else "") / f"mmattn-test-{os.getpid()}"
    names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    try:
        folder.mkdir()
        for name in names if old else ("memory.max", "memory.swap.max"):
            if (folder / name).exists() or name in ("memory.limit_in_bytes", "memory.max"):
                (folder / name).write_text("0" if "swap" in name else str(100 << 20))
    except OSError as error:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip(f"needs a memory cgroup, which only root may make: {error}")
    yield folder
    end = time.monotonic() + 10
    while True:
        try:
            return folder.rmdir()
        except OSError:  # the last process is not quite gone
            assert time.monotonic() < end
            time.sleep(0.05)
