"""`fab monitor` and a real machine whose job writes on while the line is cut in four ways."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmattn.files import write_json
from mmattn.remote.send import AGENT
from tests.remote.waiting import wait_until

NAME = "no_aug-20261118-102000-ab12"
BASE = f"mmattn/{NAME}"
# Text that is not all UTF-8, lines that are cut, bursts; ended by a file.
JOB = """
import os, pathlib, random, sys, time
rng, end = random.Random(0), pathlib.Path("../end")
number = 0
while not end.exists():
    for _ in range(rng.randrange(20)):
        number += 1
        os.write(1, b"line %d %s" % (number, rng.randbytes(rng.randrange(40))))
        os.write(1, rng.choice([b"", bytes([10])]))
    time.sleep(0.02)
os.write(1, b"last words without an end")
sys.exit(7)
"""
COMMAND = ["python3", "-c", JOB]
MONITOR = """
import sys
from mmattn.console import start_logging
from mmattn.remote import monitor
from mmattn.remote.runs import Run
start_logging()
monitor.CALL_S, monitor.LONGEST_S = 4.0, 2.0
sys.exit(monitor.monitor(Run.find(), False, "--follow" in sys.argv))
"""


@pytest.fixture
def job(guest) -> Path:
    """The folder, seen from here, of a job that was started."""
    base = guest.root / guest.home.lstrip("/") / BASE
    guest.ssh(f"mkdir -p {BASE}/code {BASE}/job {BASE}/run")
    shutil.copytree(AGENT, base / "agent")
    guest.ssh(shlex.join(["python3", f"{BASE}/agent", "job", f"{BASE}/job", "start", *COMMAND]))
    wait_until(lambda: (base / "job/job.log").exists())
    return base / "job"


@pytest.fixture
def start(guest, tmp_path):
    """Start `fab monitor` in a folder and a home of its own; its output goes to out and err."""
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/known_hosts").write_text(guest.known_hosts_line)
    (tmp_path / ".ssh/config").write_text(f'IdentityFile "{guest.key_file}"\n')
    run = {"name": NAME, "experiment": "no_aug", "host": f"{guest.user}@{guest.address}"}
    (tmp_path / ".fab" / NAME).mkdir(parents=True)
    write_json(tmp_path / ".fab" / NAME / "state.json", run)
    started = []

    def start(*options):
        paths = os.pathsep.join(filter(None, sys.path))
        environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": paths}
        environment.pop("SSH_AUTH_SOCK", None)
        with open(tmp_path / "out", "wb") as out, open(tmp_path / "err", "wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-c", MONITOR, *options],
                cwd=tmp_path,
                env=environment,
                stdout=out,
                stderr=err,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
    print((tmp_path / "err").read_text())  # for who reads why a test failed


def test_no_byte_is_lost_or_doubled(guest, job, start, tmp_path):
    process = start("--follow")
    out, err = tmp_path / "out", tmp_path / "err"

    def told(what: str) -> int:
        return err.read_text().count(what)

    def wait_for_more() -> None:
        size = out.stat().st_size
        wait_until(lambda: out.stat().st_size > size)

    for _ in range(3):  # in the middle of a call or between two: not always worth a word
        wait_for_more()
        guest.kill_ssh_connections()
    faults = (
        (guest.stop_sshd, guest.start_sshd),
        (guest.freeze_sshd, guest.thaw_sshd),
        (guest.cut_link, guest.mend_link),
    )
    for cut, mend in faults:
        wait_for_more()
        before = told("connection lost")
        cut()
        wait_until(lambda before=before: told("connection lost") > before)
        mend()
        wait_until(lambda before=before: told("connected again") > before)
    (job.parent / "end").touch()
    assert process.wait(60) == 7
    assert out.read_bytes() == (job / "job.log").read_bytes()
    assert out.read_bytes().endswith(b"last words without an end")
    *notes, last = err.read_text().splitlines()
    kinds = ("connection lost, trying again", "connected again")
    assert [note for note in notes if not note.startswith(kinds)] == []
    assert last.startswith("the job: ended, see its log (exit code 7)")


def test_leaving_while_the_machine_is_silent(guest, job, start, tmp_path):
    process = start("--follow")
    wait_until(lambda: (tmp_path / "out").stat().st_size > 0)
    guest.freeze_sshd()
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    told = (tmp_path / "err").read_text()
    assert told == f"{NAME} continues: `fab monitor --run {NAME}` shows it again\n"
    size = (job / "job.log").stat().st_size
    wait_until(lambda: (job / "job.log").stat().st_size > size)
