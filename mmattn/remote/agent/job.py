"""A job of a run on this machine: `job JOB start COMMAND...`, and `stop` or `end SECONDS`.

An attendant process waits for the job's end, under systemd if this user may start units. A job is
alive while its `lock`, which its processes inherit, is held; `status.json` has its start and end.
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
from typing import IO

LOCK, STATUS, LOG, PUSHED = "lock", "status.json", "job.log", "pushed"
SAVE_S = 120  # after which systemd kills a stopping job
POLL_S, KILL_S, PATIENCE_S = 0.1, 5.0, 10.0
# When memory runs out, the kernel kills the job before the processes that look after it.
RUN = 'echo 500 >/proc/self/oom_score_adj; exec "$@"'
SUMMARIES = ("summary.json", "results.md")  # there when a training, a study has its results
SHOWN = ("start", "exit_code", "started", "ended", "out_of_memory")
ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "COLUMNS": "100"}


def main() -> dict:
    """Do what the command line says; returns the job's state afterwards."""
    folder, order, *words = sys.argv[1:]
    folder = Path(folder).resolve()
    if order in ("stop", "end"):
        {"stop": stop, "end": end}[order]([folder], float(words[0]))
    else:
        {"start": start, "attend": attend}[order](folder, words)
    return describe(folder)


def start(folder: Path, command: list[str]) -> None:
    """Start a command in the run's folder `code`, unless the job is alive."""
    if is_held(folder / LOCK):
        return
    folder.mkdir(parents=True, exist_ok=True)
    begun, end = starts(folder), time.monotonic() + PATIENCE_S
    attendant = [sys.executable, str(Path(__file__).parent), "job", str(folder), "attend", *command]
    under_systemd = [
        *("sudo", "-n", "systemd-run", "--quiet", "--collect"),
        f"--description=mmattn: {folder.name} of {folder.parent.name}",
        *(f"--uid={os.getuid()}", f"--gid={os.getgid()}"),
        *("--property=KillMode=mixed", f"--property=TimeoutStopSec={SAVE_S}"),
    ]
    try:
        words = [word.replace("$", "$$") for word in attendant]  # systemd expands variables
        subprocess.run([*under_systemd, *words], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):  # no systemd, or not permitted
        no = subprocess.DEVNULL
        subprocess.Popen(attendant, start_new_session=True, stdin=no, stdout=no, stderr=no)
    while starts(folder) == begun:
        if time.monotonic() > end:
            sys.exit(f"the job did not start within {PATIENCE_S:.0f} s; is the disk full?")
        time.sleep(POLL_S)


def attend(folder: Path, command: list[str]) -> None:
    """Run the command, and record how it began and ended."""
    with open(folder / LOCK, "a") as lock, open(folder / LOG, "ab") as log:
        take(lock)
        (folder / PUSHED).unlink(missing_ok=True)
        kills = oom_kills()
        write_json(folder / STATUS, {"start": starts(folder) + 1, "started": time.time()})
        child = subprocess.Popen(
            ["sh", "-c", RUN, "sh", *command] if folder.name == "job" else command,
            cwd=folder.parent / "code",
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())  # when the machine powers off
        update(folder, pid=child.pid)
        code = child.wait()
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # its remaining children
        update(
            folder,
            ended=time.time(),
            exit_code=code if code >= 0 else 128 - code,
            out_of_memory=code == -signal.SIGKILL and oom_kills() > kills,
        )


def take(lock: IO) -> None:
    """Take a lock; retries, because `is_held` holds it for a moment too."""
    for _ in range(20):
        with suppress(BlockingIOError):
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(POLL_S)
    sys.exit("the job is already running")


def starts(folder: Path) -> int:
    """How often the job was started."""
    return (read_json(folder / STATUS) or {}).get("start", 0)


def stop(folders: list[Path], patience_s: float) -> None:
    """Ask jobs to save and end; unless the patience is 0, make sure that they do."""
    for folder in folders:
        send(folder, signal.SIGTERM)
    if patience_s:
        end(folders, patience_s)


def end(folders: list[Path], patience_s: float) -> None:
    """Wait until jobs that were asked to end have ended; then kill the rest."""
    for wait_s in (patience_s, KILL_S):
        until = time.monotonic() + wait_s
        while living := [one for one in folders if is_held(one / LOCK)]:
            if time.monotonic() > until:
                break
            time.sleep(POLL_S)
        for folder in living:
            send(folder, signal.SIGKILL)


def send(folder: Path, number: int) -> None:
    """Signal a living job's first process, or kill its whole group."""
    pid = (read_json(folder / STATUS) or {}).get("pid")
    kill = os.killpg if number == signal.SIGKILL else os.kill
    if is_held(folder / LOCK) and isinstance(pid, int) and pid > 1:
        with suppress(ProcessLookupError):
            kill(pid, number)


def describe(folder: Path) -> dict:
    """The job's state: absent, running, ended, or lost, if its end was not recorded."""
    state = "running" if is_held(folder / LOCK) else "lost"
    status = read_json(folder / STATUS)  # after the lock: has the end of a job that just ended
    if status is None:
        state = "absent"
    elif "exit_code" in status:
        state = "ended"
    return {**{name: (status or {}).get(name) for name in SHOWN}, "state": state}


def changed(path: Path) -> float:
    """When a file was last changed; 0 if there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def read_json(path: Path) -> dict | None:
    """The content of a JSON file; None if it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: dict) -> None:
    """Replace a file, padded so that `update` fits in place; on a full disk the old one stays."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value).ljust(1000) + "\n", encoding="utf-8")
    os.replace(partial, path)


def update(folder: Path, **news: object) -> None:
    """Add to the status in place, which works on a full disk too."""
    status = json.dumps({**(read_json(folder / STATUS) or {}), **news})
    with open(folder / STATUS, "r+b", buffering=0) as file:
        file.write(status.ljust(os.fstat(file.fileno()).st_size).encode())


def is_held(path: Path) -> bool:
    """Whether a process holds the lock on a file."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: askers do not see askers
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory."""
    lines = Path("/proc/vmstat").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
