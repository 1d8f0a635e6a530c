"""A job that no systemd looks after: whatever is killed, what it leaves tells the truth.

Under systemd, jobs are tested on machines that boot with it: tests/remote/test_job_ends.py.
"""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mmattn.remote.agent.job import describe, is_held, read_json, stop, update, write_json
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
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.fork(); print("ready"); time.sleep(60)
"""


def test_lock_is_seen_and_asking_takes_nothing(tmp_path):
    path = tmp_path / "lock"
    assert not is_held(path)
    with open(path, "w") as file:
        assert not is_held(path)
        fcntl.flock(file, fcntl.LOCK_SH)  # as another asker has it
        assert not is_held(path)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert is_held(path)
    assert not is_held(path)


@pytest.mark.parametrize("content", [None, "", '{"state": "runn', "[1]", "\xff"])
def test_missing_or_broken_file_reads_as_none(tmp_path, content):
    path = tmp_path / "status.json"
    if content is not None:
        path.write_text(content, encoding="latin-1")
    assert read_json(path) is None


def test_full_disk_keeps_the_old_file(small_disk, fill):
    path = small_disk / "status.json"
    write_json(path, {"start": 1})
    fill(small_disk)
    with pytest.raises(OSError):
        write_json(path, {"start": 2})
    assert read_json(path) == {"start": 1}
    update(small_disk, exit_code=3)  # in the room that it has
    assert read_json(path) == {"start": 1, "exit_code": 3}


def test_job_runs_where_and_as_it_is_to(job, monkeypatch):
    monkeypatch.setenv("COLOUR", "blue")
    code = (
        "import os, sys\n"
        "print(os.environ['COLOUR'], os.getcwd(), repr(sys.stdin.read()), os.getsid(0))\n"
        "sys.stdout.flush()\n"
        "print(open('/proc/self/oom_score_adj').read(), os.getpgrp(), file=sys.stderr)"
    )
    before = time.time()
    status = job.run(sys.executable, "-c", code)
    pid = status["pid"]
    assert job.log.decode().split() == f"blue {job.base / 'code'} '' {pid} 500 {pid}".split()
    assert (status["start"], status["exit_code"]) == (1, 0)
    assert before <= status["started"] <= status["ended"] <= time.time()
    assert describe(job.folder)["state"] == "ended"


def test_each_start_is_counted_and_appends_to_the_log(job):
    assert job.run("sh", "-c", "printf 'half a li'; exit 3")["exit_code"] == 3
    status = job.run("sh", "-c", "echo ne")
    assert (status["start"], status["exit_code"]) == (2, 0)
    assert job.log == b"half a line\n"


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [("./no-such-program", 127, b"not found"), ("/etc/passwd", 126, b"Permission denied")],
)
def test_job_that_cannot_be_started(job, command, code, message):
    assert job.run(command)["exit_code"] == code
    assert message in job.log


def test_a_job_that_lives_is_not_started_again(job):
    job.python(SLEEP)
    assert job.order("start", "true")["start"] == 1
    beside = program("job", job.folder, "attend", "true")  # as if both had been asked at once
    second = subprocess.run(beside, capture_output=True, text=True)
    assert second.stderr == "the job is already running\n" and job.status["start"] == 1


def test_those_who_ask_for_the_lock_do_not_hinder_a_start(job):
    with open(job.folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        threading.Timer(0.5, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
        job.order("start", "true")
    assert job.wait()["exit_code"] == 0


def test_killed_job_is_recorded(job):
    job.python(SLEEP)
    job.kill()
    status = job.wait()
    assert (status["exit_code"], status["out_of_memory"]) == (137, False)


def test_a_job_whose_end_was_not_recorded(job):
    job.python(SLEEP)
    assert describe(job.folder)["state"] == "running"
    job.kill(attendant=True)
    job.wait_until(lambda: not job.held)
    found = describe(job.folder)
    assert (found["state"], found["exit_code"]) == ("lost", None)
    assert job.run("true")["start"] == 2


def test_stop_lets_the_job_save(job):
    job.python(SAVE)
    found = job.order("stop", 20)
    assert (found["state"], found["exit_code"]) == ("ended", 75)
    assert job.log == b"ready\nsaved\n"


def test_a_job_that_saves_is_not_asked_again(job):
    once = "signal.signal(signal.SIGTERM, signal.SIG_DFL); time.sleep(0.5); raise SystemExit(75)"
    job.python(f"""import signal, time
def save(*_): {once}
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)""")
    assert job.order("stop", 0)["state"] == "running"
    assert job.order("end", 20)["exit_code"] == 75


def test_stop_of_a_job_that_will_not(job):
    job.python(IGNORE)
    assert job.order("stop", 0)["state"] == "running"  # it was only asked
    begin = time.monotonic()
    stop([job.folder], 0.5)  # both of its processes
    assert 0.5 <= time.monotonic() - begin < 5
    assert not job.held
    assert describe(job.folder)["exit_code"] == 137


def test_stop_without_a_job(job):
    assert job.order("stop", 20)["state"] == "absent"
    job.run("true")
    assert job.order("stop", 20)["state"] == "ended"


def test_what_a_job_leaves_behind_is_killed(job):
    job.python(IGNORE)
    job.kill()
    assert job.wait()["exit_code"] == 137
    assert not job.held  # which its second process had too


def test_a_machine_that_goes_off_lets_the_job_save(job):
    job.python(SAVE)
    os.kill(job.attendant, signal.SIGTERM)
    assert job.wait()["exit_code"] == 75


@pytest.mark.parametrize("status", [{"pid": "one"}, {"pid": [1]}, {"pid": 1}, {}])
def test_a_number_that_is_none_is_not_signalled(tmp_path, status):
    write_json(tmp_path / "status.json", status)
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stop([tmp_path], 0)


def test_full_disk_does_not_hide_how_the_job_ended(small_disk, fill, job_in):
    job = job_in(small_disk)
    job.order("start", "sh", "-c", "sleep 1; exit 4")
    fill(small_disk)
    assert job.wait()["exit_code"] == 4


def test_out_of_memory_is_told_apart(job, memory_limit):
    code = "import time; print('ready'); bytearray(400 << 20); time.sleep(60)"
    within = f'echo $$ > "{memory_limit}/cgroup.procs" && exec "$@"'
    status = job.run("sh", "-c", within, "sh", sys.executable, "-uc", code)
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
