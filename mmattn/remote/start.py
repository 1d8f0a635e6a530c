"""The environment and the training, started so that they outlive every connection."""

import time

from mmattn.console import waiting
from mmattn.remote.detached import run_detached, wait_for
from mmattn.remote.members import check_names, place, stop_jobs
from mmattn.remote.runs import Run
from mmattn.remote.ssh import Machine, RemoteError

FIRST_LOOK_S = 3  # time to fail at once


def build_environment(run: Run, machines: list[Machine]) -> None:
    """The virtual environments, made detached: it continues if this computer goes away."""
    if run.built:
        return
    may_install = "no" if run.host else "yes"
    for machine in machines:
        if machine.call("snapshot", job="build")["job"]["state"] != "running":
            run_detached(run, machine, "build", ["bash", "../agent/environment.sh", may_install])
    for machine in machines:
        with waiting(f"building the environment{_on(machine, machines)}"):
            job = wait_for(machine, "build", "running")
        if job["exit_code"] != 0:
            log = machine.run(f"tail -n 15 {run.base}/build/job.log")
            raise RemoteError(
                f"building the environment failed{_on(machine, machines)}:\n{log.strip()}"
            )
    run.built = True
    run.save()


def start_training(run: Run, machines: list[Machine], again: bool = False) -> None:
    """The training, under a supervisor on each machine, with --resume where a run is already.

    Args:
        run: the run.
        machines: all of its machines; what is not running on one is started anew on all.
        again: start it also if it has ended after it was started well.

    Raises:
        RemoteError: it ended at once with an error.
    """
    jobs = [machine.call("snapshot")["job"] for machine in machines]
    if any(_is_due(run, job, again) for job in jobs):
        running = [
            one for one, job in zip(machines, jobs, strict=True) if job["state"] == "running"
        ]
        stop_jobs(running)
        begun = machines[0].run(f"test ! -e {run.base}/run/config.json || echo yes").strip()
        check_names(run, machines)
        for machine in machines:
            _start(run, machine, bool(begun))
    run.started = True
    run.save()
    time.sleep(FIRST_LOOK_S)
    for machine in machines:
        job = machine.call("snapshot")["job"]
        if job["state"] == "ended" and job["exit_code"]:
            run.started = again  # otherwise the next deployment starts it, on the same machine
            if run.attempt == 1 and not again:
                run.began_with = None  # there are no results that new code could be mixed with
            run.save()
            log = machine.run(f"tail -n 15 {run.base}/job/job.log")
            raise RemoteError(
                f"the job ended at once with exit code {job['exit_code']}"
                f"{_on(machine, machines)}:\n{log.strip()}"
            )


def _is_due(run: Run, job: dict, again: bool) -> bool:
    failed = job["state"] == "ended" and job["exit_code"] != 0 and not run.started
    return job["state"] in ("absent", "lost") or failed or (again and job["state"] == "ended")


def _start(run: Run, machine: Machine, begun: bool) -> None:
    machine.run(f"rm -f {run.base}/job/hold")
    words = ["../venv/bin/python", "-m", f"experiments.{run.experiment}", "--out", "../run"]
    if begun:
        words.append("--resume")
    else:
        roots = [f"../data/{number}" for number in range(len(run.data))]
        words += [*run.args, *(["--data.roots", *roots] if roots else [])]
    run_detached(run, machine, "job", [*words, *place(run, machine.rank)])


def _on(machine: Machine, machines: list[Machine]) -> str:
    return f" on machine {machine.rank}" if len(machines) > 1 else ""
