"""Runs a job to its end and writes down how it ended: `supervisor JOB`.

JOB is a folder with spec.json: `{"argv", "cwd", "environment"}`. The job lives in a session of its
own, its output goes to job.log. It continues if the supervisor is killed; what is lost then is only
its exit code. Exits with that code, or with 75 where the job lives already.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from .job import LOCK, STATUS, process, read_json, write_json

BUSY, NOT_FOUND, NOT_STARTED = 75, 127, 126  # EX_TEMPFAIL, and as a shell has them
PATIENCE_S = 2.0  # with those who only ask for a moment whether a lock is held
RETRY_S = 1.0  # where the disk is full
OOM_SCORE = 500  # when memory runs out, the job goes before anything that looks after it


def main() -> None:
    """Run the job of the folder that the command line names."""
    folder = Path(sys.argv[1]).resolve()
    lock = take(folder)
    if lock is None:
        print(f"{folder}: the job lives already, or another supervisor does", file=sys.stderr)
        sys.exit(BUSY)
    sys.exit(Supervisor(folder, lock).run())


def take(folder: Path) -> int | None:
    """Lock the folder and its lock file; returns the file's descriptor, None if either is held."""
    end = time.monotonic() + PATIENCE_S
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    mine = os.open(folder, os.O_RDONLY)  # not inherited by the job
    while True:
        try:
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.utime(lock)
            return lock
        except BlockingIOError:
            if time.monotonic() > end:
                return None
            time.sleep(0.05)


class Supervisor:
    """One start of a job.

    The status is written before the job starts and again as soon as it has, so that at no time a
    living job has the status of the start before.
    """

    def __init__(self, folder: Path, lock: int):
        self.folder, self.lock = folder, lock
        self.child: subprocess.Popen | None = None
        self.asked = False
        self.status = {
            "state": "running",
            "start": (read_json(folder / STATUS) or {}).get("start", 0) + 1,
            "pid": None,
            "born": None,
            "supervisor": os.getpid(),
            "started": time.time(),
            "ended": None,
            "exit_code": None,
            "out_of_memory": False,
        }

    def run(self) -> int:
        """Start the job, wait for it and write how it ended; returns its exit code."""
        signal.signal(signal.SIGTERM, self.forward)
        self.save()
        killed_before = oom_kills()
        try:
            self.start()
        except (OSError, ValueError, TypeError, LookupError) as error:
            self.say(f"the job cannot be started: {type(error).__name__}: {error}")
            code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_STARTED
        else:
            code = self.wait()
        out_of_memory = code == 128 + signal.SIGKILL and oom_kills() > killed_before
        self.status.update(
            state="ended", ended=time.time(), exit_code=code, out_of_memory=out_of_memory
        )
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing is left to forward it to
        while not self.save():
            time.sleep(RETRY_S)
        return code

    def start(self) -> None:
        """Start the job by its spec."""
        spec = json.loads((self.folder / "spec.json").read_text(encoding="utf-8"))
        with open(self.folder / "job.log", "ab") as log:
            self.child = subprocess.Popen(
                spec["argv"],
                cwd=spec["cwd"],
                env={**os.environ, **spec["environment"]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(self.lock,),
                start_new_session=True,
            )
        if self.asked:
            self.forward()
        with suppress(OSError):  # it may have ended
            Path(f"/proc/{self.child.pid}/oom_score_adj").write_text(str(OOM_SCORE))

    def wait(self) -> int:
        """Wait for the job; returns its exit code, 128 + n for signal n."""
        born = process(self.child.pid)  # until it is waited for, its number is its own
        self.status.update(pid=self.child.pid, born=born.born if born else None)
        while True:
            saved = self.save()
            with suppress(subprocess.TimeoutExpired):
                code = self.child.wait(None if saved else RETRY_S)
                return code if code >= 0 else 128 - code

    def forward(self, *_) -> None:
        """Let the job save and end."""
        self.asked = True
        if self.child is not None:
            with suppress(ProcessLookupError):
                self.child.send_signal(signal.SIGTERM)

    def save(self) -> bool:
        """Write the status; whether there was room for it."""
        path = self.folder / STATUS
        with suppress(OSError):
            write_json(path, self.status, lasting=True)
            return True
        with suppress(OSError):
            overwrite(path, json.dumps(self.status))
            return True
        return False

    def say(self, message: str) -> None:
        """One line for who looks for the reason, in the job's log and in the supervisor's."""
        with suppress(OSError):
            print(message, file=sys.stderr, flush=True)
        with suppress(OSError), open(self.folder / "job.log", "a", encoding="utf-8") as log:
            log.write(message + "\n")


def overwrite(path: Path, text: str) -> None:
    """Write into a file where it stands: its block is there even when the disk is full."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        size = os.fstat(descriptor).st_size
        os.pwrite(descriptor, text.ljust(size).encode(), 0)
    finally:
        os.close(descriptor)


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory."""
    lines = Path("/proc/vmstat").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
