"""A job's folder: locks, atomic files and processes that are surely the job's."""

import fcntl
import os
import signal
import subprocess
import sys

import pytest

from mmattn.remote.agent.job import (
    group_of,
    is_held,
    members,
    process,
    read_json,
    signal_job,
    write_json,
)
from mmattn.remote.upload import AGENT

SOURCES = sorted(AGENT.glob("*.py"))


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


def test_lock_of_a_folder(tmp_path):
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert is_held(tmp_path)
    os.close(descriptor)
    assert not is_held(tmp_path)


@pytest.mark.parametrize("content", [None, "", '{"state": "runn', "[1]", "\xff"])
def test_missing_or_broken_file_reads_as_none(tmp_path, content):
    path = tmp_path / "status.json"
    if content is not None:
        path.write_text(content, encoding="latin-1")
    assert read_json(path) is None


def test_full_disk_keeps_the_old_file(small_disk, fill):
    path = small_disk / "status.json"
    write_json(path, {"start": 1})
    filler = fill(small_disk)
    with pytest.raises(OSError):
        write_json(path, {"start": 2}, lasting=True)
    assert read_json(path) == {"start": 1}
    assert sorted(small_disk.iterdir()) == [filler, path]
    filler.unlink()
    write_json(path, {"start": 2}, lasting=True)
    assert read_json(path) == {"start": 2}


def test_process_with_an_odd_name(tmp_path):
    program = tmp_path / "a) R (b 1"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"], start_new_session=True) as sleeper:
        found = process(sleeper.pid)
        sleeper.kill()
    assert found.group == sleeper.pid
    assert 0 <= found.cpu_s < 1
    assert found.born >= process(os.getpid()).born
    assert process(sleeper.pid) is None


PIPED = {"stdout": subprocess.PIPE, "start_new_session": True}


def test_members_are_the_groups_alone():
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo; wait"], **PIPED) as shell:
        shell.stdout.read(1)
        count = len(list(members(shell.pid)))
        os.killpg(shell.pid, signal.SIGKILL)
    assert count == 2


def test_processor_time_of_a_group_grows_with_its_work():
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], **PIPED) as worker:
        worker.stdout.read(1)
        used = sum(one.cpu_s for one in members(worker.pid))
        worker.kill()
    assert 0.2 < used < 3


def test_a_number_that_another_process_has_got_is_never_signalled(tmp_path):
    with (
        subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger,
        open(tmp_path / "lock", "w") as lock,
    ):
        born = process(stranger.pid).born
        write_json(tmp_path / "status.json", {"pid": stranger.pid, "born": born})
        assert group_of(tmp_path) is None  # the lock is free: the job is dead
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert group_of(tmp_path) == stranger.pid
        write_json(tmp_path / "status.json", {"pid": stranger.pid, "born": born - 1})
        assert group_of(tmp_path) is None
        assert not signal_job(tmp_path, signal.SIGKILL, group=True)
        assert stranger.poll() is None
        stranger.kill()


def test_a_group_outlives_its_first_process(job):
    code = (
        "import os, signal, time\n"
        "if os.fork() == 0: signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)\n"
        "print('ready'); time.sleep(60)"
    )
    job.python(code)
    os.kill(job.status["pid"], signal.SIGKILL)
    job.wait_until(lambda: job.status["state"] == "ended")
    assert job.held  # by the second process, which has inherited the lock
    assert not signal_job(job.folder, signal.SIGTERM)
    assert signal_job(job.folder, signal.SIGKILL, group=True)
    job.wait_until(lambda: not job.held)
