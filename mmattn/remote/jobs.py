"""Jobs on a run's machines, which outlive every connection: the environment and the training."""

import time

from mmattn.console import say, waiting
from mmattn.errors import UserError
from mmattn.remote.runs import Run, changing, is_uri
from mmattn.remote.screen import log_lines
from mmattn.remote.ssh import Machine, RemoteError, persistent

FIRST_LOOK_S = 3  # time to fail at once
SAVE_S = 120
PORT = 8476  # of the first process, at the private address: nothing there asks who calls
MEET_S, MEET_EACH_S = 120, 15  # the processes are started one after the other
# What listens at its machine's name, as Gloo does, would be out of reach where cloud-init or an
# installer has given that name to the loopback.
NAME = r"""
name=$(uname -n)
means() {{ getent ahosts $name | awk 'NR == 1 {{ print $1 }}'; }}
test "$(means)" = {address} ||
    sudo -n sed -i -E ":a; s/\s$name(\s|$)/ /; ta; 1i {address} $name" /etc/hosts
means
"""


def build_environment(run: Run, machines: list[Machine]) -> None:
    """The virtual environments, made detached: it continues if this computer goes away."""
    if not run.is_past("built"):
        make = ["bash", "../agent/environment.sh", "no" if run.host else "yes"]
        make += ["boto3"] * run.uses_bucket
        _do(run, machines, "build", "building the environment", *make)
        run.to("built")


def take_from_bucket(run: Run, machines: list[Machine]) -> None:
    """Data, and to the first machine the results of an earlier one, from the bucket."""
    for number, one in enumerate(run.data):
        if is_uri(one):
            pull = _in_venv(run, "data", one, f"../data/{number}")
            _do(run, machines, "data", f"reading {one}", *pull)
    if run.uri:
        first = machines[:1]
        _do(run, first, "pull", f"reading {run.uri}", *_in_venv(run, "pull", run.uri))
        probe = _in_venv(run, "push", run.uri, "--once")
        _do(run, first, "probe", f"writing {run.uri}", *probe)


def _in_venv(run: Run, *words: str) -> list[str]:
    """The command of the agent's program for the bucket, which needs the run's environment."""
    region = f"AWS_DEFAULT_REGION={run.region}"
    return ["env", region, "../venv/bin/python", "../agent", "bucket", "../job", *words]


def _do(run: Run, machines: list[Machine], job: str, what: str, *command: str) -> None:
    """Run a command on each machine as a job; RemoteError if it fails on one."""
    for machine in machines:
        machine.call("job", "start", *command, job=job)
    for machine in machines:
        with waiting(f"{what} on {machine.access.name}"):
            done = wait_for(machine, job)
        if done["exit_code"] != 0:
            raise _failure(machine, job, f"{what} failed")


def _failure(machine: Machine, job: str, what: str) -> RemoteError:
    """An error with the end of a job's log."""
    log = machine.run(f"tail -n 15 {machine.base}/{job}/job.log").strip()
    lines = "\n".join(log_lines(log.encode(), 15))
    return RemoteError(f"{what} on {machine.access.name}:\n{lines}")


def start_training(run: Run, machines: list[Machine], again: bool = False) -> None:
    """The training on all machines, if it is due on one, with --resume where a run is already.

    With `again`, also where it had ended; RemoteError if it ends at once with an error.
    """
    jobs = [machine.call("snapshot")["job"] for machine in machines]
    due = ("absent", "lost", "ended") if again else ("absent", "lost")
    failed = not run.is_past("started") and any(job["exit_code"] for job in jobs)
    if failed or any(job["state"] in due for job in jobs):
        stop_jobs(machines)
        begun = bool(machines[0].run(f"test ! -e {run.base}/run/config.json || echo yes").strip())
        run.began_with = run.began_with if begun else run.uploaded
        run.save()
        if run.uri:  # an old one would take the new job's results for pushed
            stop_jobs(machines[:1], "push")
        check_names(run, machines)
        for machine in machines:
            machine.call("job", "start", *_command(run, begun, machine.rank))
    if run.uri:
        push = _in_venv(run, "push", run.uri)
        machines[0].call("job", "start", *push, job="push")
    run.leader = run.instance_id
    run.to("started")
    time.sleep(FIRST_LOOK_S)
    for machine in machines:
        code = machine.call("snapshot")["job"]["exit_code"]
        if code:
            if not again:
                run.to("built")  # the next deployment starts it, on the same machine
            raise _failure(machine, "job", f"the job ended at once with exit code {code}")


def _command(run: Run, begun: bool, rank: int) -> list[str]:
    """What trains on the machine of this rank, in the folder of the code."""
    words = ["../venv/bin/python", "-m", f"experiments.{run.experiment}", "--out", "../run"]
    if begun and not run.is_study:
        words += ["--resume"]
    else:
        roots = [f"../data/{number}" for number in range(len(run.data))]
        words += [*run.args, *(["--data.roots", *roots] if roots else [])]
    if (count := len(run.members)) > 1:
        words += ["--distributed.coordinator", f"{run.members[0].private}:{PORT}"]
        words += ["--distributed.num-processes", str(count), "--distributed.process-id", str(rank)]
        words += ["--distributed.timeout", str(MEET_S + MEET_EACH_S * count)]
    return words


def settle(run: Run, machines: list[Machine]) -> None:
    """End jobs of an earlier set of machines; what another one led was fetched, kept or pushed."""
    if run.leader is None or run.is_past("sent"):
        return
    stop_jobs(machines)
    if run.leader != run.instance_id:
        say(f"the machine with the results is gone: {run.instance_id} takes its place")
        machines[0].run(f"rm -rf {run.base}/run {run.base}/job", timeout=300)
        run.leader = None
        run.to("there")


def stop_jobs(machines: list[Machine], job: str = "job") -> None:
    """Let the jobs save and end, all at the same time, the first, which leads, last; or kill them.

    That a machine is out of reach keeps no other from it.
    """
    for order, patience in (("stop", 0), ("end", SAVE_S)):  # a job that saves is not asked again
        for machine in reversed(machines):
            try:
                machine.call("job", order, str(patience), job=job, timeout=patience + 30)
            except RemoteError as error:
                say(f"machine {machine.rank}: {error}")


def check_names(run: Run, machines: list[Machine]) -> None:
    """Let the name of each of several machines mean its private address, not the loopback."""
    for machine in machines if len(machines) > 1 else ():
        private = run.members[machine.rank].private
        found = machine.run(NAME.format(address=private)).strip()
        if found != private:
            raise RemoteError(
                f"machine {machine.rank}: expected its name to mean {private} "
                f"(`getent ahosts $(uname -n)`), found {found}"
            )


def stop(run: Run) -> None:
    """`fab stop`: let the job save and end; UserError if there was none, or it is lost."""
    with changing("stop", run):
        machines = run.machines()
        with waiting(f"asking {run.name} to save and end, for {SAVE_S} s at most"):
            stop_jobs(machines)
        job = machines[0].call("snapshot")["job"]
    if job["state"] != "ended":
        raise UserError(f"{run.name}: the job is {job['state']}: `fab resume` or `fab deploy`")
    code = job["exit_code"]
    say(f"the job has ended with exit code {code}{'; `fab resume` continues it' if code else ''}")
    if run.host is None and run.uri is None:
        say(f"The machine ends itself {run.grace_minutes:g} min after that; its disk is kept")


def wait_for(machine: Machine, job: str) -> dict:
    """Poll while a job runs, through lost connections; returns how it is then."""
    look = persistent(lambda: machine.call("snapshot", job=job)["job"])
    while (found := look())["state"] == "running":
        time.sleep(2)
    return found
