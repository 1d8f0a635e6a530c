"""Jobs on a run's machines, which outlive connections: building the environment, training."""

import time

from mmattn.console import say, waiting
from mmattn.errors import UserError
from mmattn.remote.runs import Run, changing, is_uri
from mmattn.remote.screen import log_lines
from mmattn.remote.ssh import Machine, RemoteError, persistent

FIRST_LOOK_S = 3  # after which an immediate failure is visible
SAVE_S = 120
PORT = 8476  # of the first process, at its private address: without authentication
MEET_S, MEET_EACH_S = 120, 15  # the processes are started one after the other
# Gloo listens at its machine's name, which is out of reach if cloud-init or an installer has
# mapped that name to the loopback.
NAME = r"""
name=$(uname -n)
means() {{ getent ahosts $name | awk 'NR == 1 {{ print $1 }}'; }}
test "$(means)" = {address} ||
    sudo -n sed -i -E ":a; s/\s$name(\s|$)/ /; ta; 1i {address} $name" /etc/hosts
means
"""


def build_environment(run: Run, machines: list[Machine]) -> None:
    """Build the virtual environments, detached: it continues if this computer disconnects."""
    if not run.is_past("built"):
        make = ["bash", "../agent/environment.sh", "no" if run.host else "yes"]
        make += ["boto3"] * run.uses_bucket
        _do(machines, "build", "building the environment", *make)
        run.to("built")


def take_from_bucket(run: Run, machines: list[Machine]) -> None:
    """Copy data, and to the first machine the results of an earlier one, from the bucket."""
    for number, one in enumerate(run.data):
        if is_uri(one):
            pull = _in_venv(run, "data", one, f"../data/{number}")
            _do(machines, "data", f"reading {one}", *pull)
    if run.uri:
        first = machines[:1]
        _do(first, "pull", f"reading {run.uri}", *_in_venv(run, "pull", run.uri))
        probe = _in_venv(run, "push", run.uri, "--once")
        _do(first, "probe", f"writing {run.uri}", *probe)


def _in_venv(run: Run, *words: str) -> list[str]:
    """The command of the agent's bucket program, which needs the run's environment."""
    region = f"AWS_DEFAULT_REGION={run.region}"
    return ["env", region, "../venv/bin/python", "../agent", "bucket", "../job", *words]


def _do(machines: list[Machine], job: str, what: str, *command: str) -> None:
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
    """Start the training on all machines if it is missing on one; with --resume if a run exists.

    With `again`, also if it had ended. RemoteError if it fails at once.
    """
    jobs = [machine.call("snapshot")["job"] for machine in machines]
    due = ("absent", "lost", "ended") if again else ("absent", "lost")
    failed = not run.is_past("started") and any(job["exit_code"] for job in jobs)
    if failed or any(job["state"] in due for job in jobs):
        stop_jobs(machines)
        begun = bool(machines[0].run(f"test ! -e {run.base}/run/config.json || echo yes").strip())
        run.began_with = run.began_with if begun else run.uploaded
        run.save()
        if run.uri:  # an old push would mark the new job's results as pushed
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
                run.to("built")  # the next deployment starts it on the same machine
            raise _failure(machine, "job", f"the job ended at once with exit code {code}")


def _command(run: Run, begun: bool, rank: int) -> list[str]:
    """The training command of the machine of this rank, for its folder `code`."""
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
    """End jobs of an earlier set of machines; its leader's results were fetched, kept or pushed."""
    if run.leader is None or run.is_past("sent"):
        return
    stop_jobs(machines)
    if run.leader != run.instance_id:
        say(f"the machine with the results is gone: {run.instance_id} replaces it")
        machines[0].run(f"rm -rf {run.base}/run {run.base}/job", timeout=300)
        run.leader = None
        run.to("there")


def stop_jobs(machines: list[Machine], job: str = "job") -> None:
    """Let all jobs save and end together, or kill them; the first, which leads, is asked last.

    A machine out of reach does not keep the others from it.
    """
    for order, patience in (("stop", 0), ("end", SAVE_S)):  # a job that is saving is not re-asked
        for machine in reversed(machines):
            try:
                machine.call("job", order, str(patience), job=job, timeout=patience + 30)
            except RemoteError as error:
                say(f"machine {machine.rank}: {error}")


def check_names(run: Run, machines: list[Machine]) -> None:
    """Make the name of each of several machines resolve to its private address, not loopback."""
    for machine in machines if len(machines) > 1 else ():
        private = run.members[machine.rank].private
        found = machine.run(NAME.format(address=private)).strip()
        if found != private:
            raise RemoteError(
                f"machine {machine.rank}: expected its name to resolve to {private} "
                f"(`getent ahosts $(uname -n)`), found {found}"
            )


def stop(run: Run) -> None:
    """`fab stop`: let the job save and end; UserError if no job was started, or it is lost."""
    with changing("stop", run):
        machines = run.machines()
        with waiting(f"letting {run.name} save and end, for at most {SAVE_S} s"):
            stop_jobs(machines)
        job = machines[0].call("snapshot")["job"]
    if job["state"] != "ended":
        raise UserError(f"{run.name}: the job is {job['state']}: `fab resume` or `fab deploy`")
    code = job["exit_code"]
    say(f"the job has ended with exit code {code}{'; `fab resume` continues it' if code else ''}")
    if run.host is None and run.uri is None:
        say(f"The machine ends itself {run.grace_minutes:g} min later; its disk is kept")


def wait_for(machine: Machine, job: str) -> dict:
    """Poll until a job has ended, through lost connections; returns its state."""
    look = persistent(lambda: machine.call("snapshot", job=job)["job"])
    while (found := look())["state"] == "running":
        time.sleep(2)
    return found
