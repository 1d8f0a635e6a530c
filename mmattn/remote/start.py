"""The environment and the training, started so that they outlive every connection."""

import time

from mmattn.console import waiting
from mmattn.files import write_json
from mmattn.remote.runs import Run
from mmattn.remote.ssh import Machine, RemoteError, Unreachable
from mmattn.remote.upload import persist

MISSED_POLLS = 20  # in a row
FIRST_LOOK_S = 3  # time to fail at once


def build_environment(run: Run, machine: Machine) -> None:
    """The virtual environment, made detached: it goes on if this computer goes away."""
    if run.built:
        return
    may_install = "no" if run.host else "yes"
    script = "mmattn/remote/instance/environment.sh"
    if machine.call("snapshot", job="build")["job"]["state"] != "running":
        _run_detached(run, machine, "build", ["bash", script, may_install])
    with waiting("building the environment"):
        job = _wait_for(machine, "build", "running")
    if job["exit_code"] != 0:
        log = machine.run(f"tail -n 15 {run.base}/build/job.log")
        raise RemoteError(f"building the environment failed:\n{log.strip()}")
    run.built = True
    run.save()


def start_training(run: Run, machine: Machine, again: bool = False) -> None:
    """The training, under the supervisor, with --resume where a run is already.

    Args:
        run: the run.
        machine: its machine.
        again: start it also if it has ended after it was started well.

    Raises:
        RemoteError: it ended at once with an error.
    """
    job = machine.call("snapshot")["job"]
    failed = job["state"] == "ended" and job["exit_code"] != 0 and not run.started
    if job["state"] in ("absent", "lost") or failed or (again and job["state"] == "ended"):
        machine.run(f"rm -f {run.base}/job/hold")
        begun = machine.run(f"test ! -e {run.base}/run/config.json || echo yes").strip()
        words = ["../venv/bin/python", "-m", f"experiments.{run.experiment}", "--out", "../run"]
        if begun:
            words.append("--resume")
        else:
            roots = [f"../data/{number}" for number in range(len(run.data))]
            words += [*run.args, *(["--data.roots", *roots] if roots else [])]
        _run_detached(run, machine, "job", words)
    run.started = True
    run.save()
    time.sleep(FIRST_LOOK_S)
    job = machine.call("snapshot")["job"]
    if job["state"] == "ended" and job["exit_code"]:
        run.started = again  # otherwise the next deployment starts it, on the same machine
        if run.attempt == 1 and not again:
            run.began_with = None  # there are no results that new code could be mixed with
        run.save()
        log = machine.run(f"tail -n 15 {run.base}/job/job.log")
        raise RemoteError(
            f"the job ended at once with exit code {job['exit_code']}:\n{log.strip()}"
        )


def _run_detached(run: Run, machine: Machine, job: str, words: list[str]) -> None:
    """Start a command under the supervisor, so that it outlives every connection."""
    spec = {
        "run": run.name,
        "argv": words,
        "cwd": "../code",
        "environment": {"PYTHONUNBUFFERED": "1", "COLUMNS": "100"},
    }
    path = run.folder / "spec.json"
    write_json(path, spec)
    before = machine.call("snapshot", job=job)["job"].get("start") or 0
    machine.run(f"mkdir -p {run.base}/{job}")
    persist(machine, lambda: machine.rsync(str(path), machine.remote(f"{job}/"), progress="spec"))
    supervisor = f"python3 -m mmattn.remote.instance.supervisor ../{job}"
    log = f"../{job}/supervisor.log"
    machine.run(f"cd {run.base}/code && setsid -f {supervisor} </dev/null >>{log} 2>&1")
    end = time.monotonic() + 30
    while (machine.call("snapshot", job=job)["job"].get("start") or 0) <= before:
        if time.monotonic() > end:
            tail = machine.run(f"tail -n 5 {run.base}/{job}/supervisor.log")
            raise RemoteError(f"the supervisor did not start: {tail.strip() or 'it said nothing'}")
        time.sleep(0.5)


def _wait_for(machine: Machine, job: str, state: str) -> dict:
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
