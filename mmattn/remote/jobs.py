"""Jobs on a run's machines, which outlive every connection: the environment and the training."""

import time

from mmattn.console import say, waiting
from mmattn.remote.runs import Run, is_uri
from mmattn.remote.ssh import Machine, RemoteError, Unreachable

MISSED_POLLS = 20  # in a row
FIRST_LOOK_S = 3  # time to fail at once
SAVE_S = 60
PORT = 8476  # of the first process, at the private address: nothing there asks who calls
MEET_S, MEET_EACH_S = 120, 15  # the processes are started one after the other


def build_environment(run: Run, machines: list[Machine]) -> None:
    """The virtual environments, made detached: it continues if this computer goes away."""
    if run.is_past("built"):
        return
    may_install = "no" if run.host else "yes"
    for machine in machines:
        command = ["bash", "../agent/environment.sh", may_install, *run.packages]
        machine.call("job", "start", *command, job="build")
    _finish(run, machines, "build", "building the environment")
    run.to("built")


def take_from_bucket(run: Run, machines: list[Machine]) -> None:
    """Data, and to the first machine the results of an earlier one, from the bucket."""
    for number, one in enumerate(run.data):
        if is_uri(one):
            folder = f"../data/{number}"
            for machine in machines:
                _start_for_bucket(run, machine, "data", "bucket", "../job", "data", one, folder)
            _finish(run, machines, "data", f"reading {one}")
    if run.uri:
        _start_for_bucket(run, machines[0], "pull", "bucket", "../job", "pull", run.uri)
        _finish(run, machines[:1], "pull", f"reading {run.uri}")
        push = ("bucket", "../job", "push", run.uri, "--once")
        _start_for_bucket(run, machines[0], "probe", *push)
        _finish(run, machines[:1], "probe", f"writing {run.uri}")


def _start_for_bucket(run: Run, machine: Machine, job: str, *words: str) -> None:
    """Start a program of the agent that needs the run's environment."""
    own = ("env", f"AWS_DEFAULT_REGION={run.region}", "../venv/bin/python", "../agent")
    machine.call("job", "start", *own, *words, job=job)


def _finish(run: Run, machines: list[Machine], job: str, what: str) -> None:
    """Wait for a job on each machine; RemoteError if it has failed on one."""
    for machine in machines:
        with waiting(f"{what}{_on(machine, machines)}"):
            done = wait_for(machine, job)
        if done["exit_code"] != 0:
            log = machine.run(f"tail -n 15 {run.base}/{job}/job.log")
            raise RemoteError(f"{what} failed{_on(machine, machines)}:\n{log.strip()}")


def start_training(run: Run, machines: list[Machine], again: bool = False) -> None:
    """The training on each machine, with --resume where a run is already.

    Args:
        run: the run.
        machines: all of its machines; what is not running on one is started anew on all.
        again: start it also if it has ended after it was started well.

    Raises:
        RemoteError: it ended at once with an error.
    """
    jobs = [machine.call("snapshot")["job"] for machine in machines]
    if any(_is_due(run, job, again) for job in jobs):
        stop_jobs(machines)
        begun = bool(machines[0].run(f"test ! -e {run.base}/run/config.json || echo yes").strip())
        run.began_with = run.began_with if begun else run.uploaded
        run.save()
        if run.uri:  # an old one would take the new job's results for pushed
            stop_jobs(machines[:1], "push")
        check_names(run, machines)
        for machine in machines:
            machine.run(f"rm -f {run.base}/job/hold")
            machine.call("job", "start", *_command(run, begun), *_place(run, machine.rank))
    if run.uri:
        _start_for_bucket(run, machines[0], "push", "bucket", "../job", "push", run.uri)
    run.leader = run.instance_id
    run.to("started")
    time.sleep(FIRST_LOOK_S)
    for machine in machines:
        job = machine.call("snapshot")["job"]
        if job["exit_code"]:
            if not again:
                run.to("built")  # the next deployment starts it, on the same machine
            log = machine.run(f"tail -n 15 {run.base}/job/job.log")
            raise RemoteError(
                f"the job ended at once with exit code {job['exit_code']}"
                f"{_on(machine, machines)}:\n{log.strip()}"
            )


def _is_due(run: Run, job: dict, again: bool) -> bool:
    failed = job["exit_code"] and not run.is_past("started")
    return job["state"] in ("absent", "lost") or failed or (again and job["state"] == "ended")


def _command(run: Run, begun: bool) -> list[str]:
    """What trains, in the folder of the code."""
    words = ["../venv/bin/python", "-m", f"experiments.{run.experiment}", "--out", "../run"]
    if begun and not run.is_study:
        return [*words, "--resume"]
    roots = [f"../data/{number}" for number in range(len(run.data))]
    return [*words, *run.args, *(["--data.roots", *roots] if roots else [])]


def _place(run: Run, rank: int) -> list[str]:
    """The options of the process of this rank; none where there is but one machine."""
    if len(run.members) < 2:
        return []
    return [
        *("--distributed.coordinator", f"{run.members[0].private}:{PORT}"),
        *("--distributed.num-processes", str(len(run.members))),
        *("--distributed.process-id", str(rank)),
        *("--distributed.timeout", str(MEET_S + MEET_EACH_S * len(run.members))),
    ]


def settle(run: Run, machines: list[Machine]) -> None:
    """End jobs of an earlier set of machines; if that was led by another, forget its results.

    They are what was fetched, kept or pushed.
    """
    if run.leader is None or run.is_past("sent"):
        return
    stop_jobs(machines)
    if run.leader != run.instance_id:
        say(f"the machine with the results is gone: {run.instance_id} takes its place")
        machines[0].run(f"rm -rf {run.base}/run {run.base}/job", timeout=300)
        run.leader = None
        run.to("there")


def stop_jobs(machines: list[Machine], job: str = "job") -> None:
    """Let the jobs save and end, all at the same time; kill those that do not."""
    there = [one for one in machines if one.run(f"test ! -d {one.base}/agent || echo yes").strip()]
    for machine in there:
        machine.call("job", "stop", job=job)
    for machine in there:
        words = ("job", "stop", "--wait", str(SAVE_S), "--kill")
        machine.call(*words, job=job, timeout=SAVE_S + 30)


def check_names(run: Run, machines: list[Machine]) -> None:
    """That the name of each of several machines means its private address, not the loopback.

    Raises:
        RemoteError: it does not and cannot be mended.
    """
    for machine in machines if len(machines) > 1 else ():
        private = run.members[machine.rank].private
        found = machine.call("hosts", private)
        if found["address"] != private:
            raise RemoteError(
                f"machine {machine.rank}: expected its name {found['name']} to mean {private} "
                f"(`getent hosts $(hostname)`), found {found['address']}"
            )


def wait_for(machine: Machine, job: str) -> dict:
    """Poll while a job runs, through lost connections; returns how it is then."""
    lost = 0
    while True:
        try:
            found = machine.call("snapshot", job=job)["job"]
            if found["state"] != "running":
                return found
            lost = 0
        except Unreachable:
            lost += 1
            if lost > MISSED_POLLS:
                raise
        time.sleep(2)


def _on(machine: Machine, machines: list[Machine]) -> str:
    return f" on machine {machine.rank}" if len(machines) > 1 else ""
