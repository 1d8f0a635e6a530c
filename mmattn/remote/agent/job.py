"""A job of a run on this machine: `job JOB start COMMAND...`, `job JOB stop [--wait S] [--kill]`.

systemd looks after it where this user may ask it to; elsewhere a process of ours waits for it. A
job lives while its `lock` is held, which its processes inherit; `status.json` tells how it began
and ended.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

LOCK, STATUS, LOG, PUSHED = "lock", "status.json", "job.log", "pushed"
SAVE_S = 120  # after which systemd kills what was told to end
POLL_S, KILL_S, SETTLE_S, PATIENCE_S = 0.1, 5.0, 2.0, 5.0
OOM_SCORE = "500"  # when memory runs out, the job goes before anything that looks after it
BUSY, NOT_FOUND, NOT_STARTED = 75, 127, 126  # EX_TEMPFAIL, and as a shell has them
SUMMARIES = ("summary.json", "results.md")  # what a training, or a study, writes last
SHOWN = ("start", "exit_code", "started", "ended", "out_of_memory")
ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "COLUMNS": "100"}


def main() -> dict | None:
    """Do as the command line says; returns how the job is then."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path)
    orders = parser.add_subparsers(dest="order", required=True)
    for name in ("start", "exec"):
        orders.add_parser(name).add_argument("command", nargs=argparse.REMAINDER)
    orders.add_parser("ended")
    stopping = orders.add_parser("stop")
    stopping.add_argument("--wait", type=float, default=0.0, help="seconds at most")
    stopping.add_argument("--kill", action="store_true", help="then kill whatever of it is left")
    options = parser.parse_args()
    folder = options.job.resolve()
    if options.order == "exec":
        become(folder, options.command)
    elif options.order == "ended":  # systemd tells how
        number = os.environ["EXIT_STATUS"]
        exited = os.environ["EXIT_CODE"] == "exited"
        record_end(folder, int(number) if exited else 128 + signal.Signals[f"SIG{number}"])
        return None
    elif options.order == "start":
        start(folder, options.command)
    else:
        stop([folder], options.wait, options.kill)
    return describe(folder)


def start(folder: Path, command: list[str]) -> None:
    """Start a command in the run's folder `code`; one that lives is left alone."""
    if is_held(folder / LOCK):
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PUSHED).unlink(missing_ok=True)
    (folder / LOG).touch()  # else it would be root's, of which this user could make no link
    begun = {
        "start": (read_json(folder / STATUS) or {}).get("start", 0) + 1,
        "started": time.time(),
        "oom_kills": oom_kills(),
    }
    write_json(folder / STATUS, begun)
    own = [sys.executable, str(Path(__file__).parent), "job", str(folder)]
    if not may_use_systemd():
        return attend(folder, [*own, "exec", *command])
    unit = f"mmattn-{folder.parent.name}-{folder.name}"
    log = f"append:{folder / LOG}"
    properties = {
        "KillMode": "mixed",
        "TimeoutStopSec": SAVE_S,
        "OOMScoreAdjust": OOM_SCORE,
        "StandardOutput": log,
        "StandardError": log,
        "ExecStopPost": " ".join(f'"{word}"' for word in [*own, "ended"]),
    }
    subprocess.run(["sudo", "-n", "systemctl", "reset-failed", unit], stderr=subprocess.DEVNULL)
    subprocess.run(
        [
            *("sudo", "-n", "systemd-run", "--quiet", f"--unit={unit}"),
            *(f"--uid={os.getuid()}", f"--gid={os.getgid()}"),
            f"--working-directory={folder.parent / 'code'}",
            *(f"--setenv={name}={value}" for name, value in ENVIRONMENT.items()),
            *(f"--property={name}={value}" for name, value in properties.items()),
            *(*own, "exec", *command),
        ],
        check=True,
    )


def may_use_systemd() -> bool:
    """Whether systemd runs this machine, and this user may order it what to do."""
    if not Path("/run/systemd/system").is_dir():
        return False
    try:
        asked = subprocess.run(["sudo", "-n", "systemctl", "--version"], capture_output=True)
    except OSError:
        return False
    return asked.returncode == 0


def attend(folder: Path, command: list[str]) -> None:
    """Without systemd: start the command, in a process that waits for its end."""
    if os.fork():
        return
    os.setsid()
    with open(os.devnull, "r+b") as nothing, open(folder / LOG, "ab") as log:
        for stream in (0, 1, 2):
            os.dup2(nothing.fileno(), stream)
        code = subprocess.call(
            command,
            cwd=folder.parent / "code",
            env={**os.environ, **ENVIRONMENT},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    record_end(folder, code if code >= 0 else 128 - code)
    os._exit(0)


def become(folder: Path, command: list[str]) -> None:
    """Take the job's lock, note this process's number, and become the command."""
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    end = time.monotonic() + PATIENCE_S  # those who ask whether it is held hold it for a moment
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > end:
                sys.exit(BUSY)
            time.sleep(POLL_S)
    os.set_inheritable(lock, True)
    update(folder, pid=os.getpid())
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    try:
        os.execvp(command[0], command)
    except (OSError, IndexError) as error:
        print(f"the job cannot be started: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_STARTED)


def record_end(folder: Path, code: int) -> None:
    """Write down how the job ended."""
    before = (read_json(folder / STATUS) or {}).get("oom_kills", 0)
    out_of_memory = code == 128 + signal.SIGKILL and oom_kills() > before
    update(folder, ended=time.time(), exit_code=code, out_of_memory=out_of_memory)


def update(folder: Path, **news: object) -> None:
    """Add to the status where it stands: its block is there even when the disk is full."""
    status = json.dumps({**(read_json(folder / STATUS) or {}), **news})
    descriptor = os.open(folder / STATUS, os.O_WRONLY)
    try:
        os.pwrite(descriptor, status.ljust(os.fstat(descriptor).st_size).encode(), 0)
    finally:
        os.close(descriptor)


def stop(folders: list[Path], patience_s: float, kill: bool = False) -> None:
    """Let jobs save and end, and wait for it; with `kill`, kill what is left of them."""
    rounds = [(signal.SIGTERM, patience_s)] + [(signal.SIGKILL, KILL_S)] * kill
    for number, patience in rounds:
        end = time.monotonic() + patience
        told = [send(one, number) for one in folders]
        while any(is_held(one / LOCK) for one in folders) and time.monotonic() < end:
            time.sleep(POLL_S)
            told = [done or send(one, number) for one, done in zip(folders, told)]


def send(folder: Path, number: int) -> bool:
    """Signal a living job's first process, or kill all; whether it was sent."""
    pid = pid_of(folder)
    if pid is None or not is_held(folder / LOCK):
        return False
    with suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(pid, number)
        elif os.getpgid(pid) == pid:  # else it is another process by now
            os.kill(pid, number)
        return True
    return False


def pid_of(folder: Path) -> int | None:
    """The number of a job's first process, which is also that of the group of all its processes."""
    pid = (read_json(folder / STATUS) or {}).get("pid")
    return pid if isinstance(pid, int) and pid > 1 else None


def describe(folder: Path) -> dict:
    """State of the job: absent, running, ended, or lost, if no one saw how it ended.

    One that is lost has ended with 0 if its results are complete.
    """
    end = time.monotonic() + SETTLE_S
    while True:
        held, status = is_held(folder / LOCK), read_json(folder / STATUS)
        if held or status is None or "exit_code" in status or time.monotonic() > end:
            break
        time.sleep(POLL_S)  # it starts just now, or its end is just being written
    job = {name: (status or {}).get(name) for name in SHOWN}
    if held:
        return {**job, "state": "running"}
    if status is None:
        return {**job, "state": "absent"}
    if "exit_code" in status:
        return {**job, "state": "ended"}
    finished = max(changed(folder.parent / "run" / name) for name in SUMMARIES)
    if finished >= status["started"]:
        return {**job, "state": "ended", "exit_code": 0, "ended": finished}
    return {**job, "state": "lost"}


def changed(path: Path) -> float:
    """When a file was changed; 0 if there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def read_json(path: Path) -> dict | None:
    """What a file holds; None if it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: dict) -> None:
    """Replace a file, with room for more where it stands; on a full disk the old one stays."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(value).ljust(1000) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


def is_held(path: Path) -> bool:
    """Whether a process holds the lock on a file."""
    try:
        # The guard asks as root in a user's folder: a pipe there must not stop it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: askers do not see askers
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def cpu_used(folders: list[Path]) -> float:
    """Processor time of jobs' processes and of those that they waited for, in seconds."""
    groups = set(map(pid_of, folders))
    ticks = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            text = Path(f"/proc/{name}/stat").read_bytes()
            fields = text.rpartition(b")")[2].split()  # the name before may hold anything
            if int(fields[2]) in groups:
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory."""
    lines = Path("/proc/vmstat").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
