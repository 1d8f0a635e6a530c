"""Commands on a machine that outlive every connection."""

import time

from mmattn.files import write_json
from mmattn.remote.runs import Run
from mmattn.remote.ssh import Machine, RemoteError, Unreachable
from mmattn.remote.upload import persist

MISSED_POLLS = 20  # in a row


def run_detached(run: Run, machine: Machine, job: str, words: list[str]) -> None:
    """Start a command under the supervisor, so that it outlives every connection."""
    spec = {
        "run": run.name,
        "argv": words,
        "cwd": "code",
        "environment": {"PYTHONUNBUFFERED": "1", "COLUMNS": "100"},
    }
    path = run.folder / "spec.json"
    write_json(path, spec)
    before = machine.call("snapshot", job=job)["job"].get("start") or 0
    machine.run(f"mkdir -p {run.base}/{job}")
    persist(machine, lambda: machine.rsync(str(path), machine.remote(f"{job}/"), progress="spec"))
    supervisor = f"setsid -f python3 agent supervisor {job}"
    machine.run(f"cd {run.base} && {supervisor} </dev/null >>{job}/supervisor.log 2>&1")
    end = time.monotonic() + 30
    while (machine.call("snapshot", job=job)["job"].get("start") or 0) <= before:
        if time.monotonic() > end:
            tail = machine.run(f"tail -n 5 {run.base}/{job}/supervisor.log")
            raise RemoteError(f"the supervisor did not start: {tail.strip() or 'it wrote nothing'}")
        time.sleep(0.5)


def wait_for(machine: Machine, job: str, state: str) -> dict:
    """Poll while a job is in this state, through lost connections; returns what came after."""
    lost = 0
    while True:
        try:
            found = machine.call("snapshot", job=job)["job"]
            lost = 0
        except Unreachable:
            lost += 1
            if lost > MISSED_POLLS:
                raise
            found = {"state": state}
        if found["state"] != state:
            return found
        time.sleep(2)
