"""Small orders to a run's machines: stop, hold."""

from mmattn.console import say, waiting
from mmattn.errors import UserError
from mmattn.remote.jobs import SAVE_S, stop_jobs
from mmattn.remote.runs import Run, changing
from mmattn.remote.screen import GUARD_REASONS, clock


def stop(run: Run) -> None:
    """Let the job save and end (SIGTERM), or kill it; the machine stays, for its grace.

    Raises:
        UserError: there was no job, or it has ended without a word.
    """
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
        say(
            f"The machine ends itself {run.grace_minutes:g} min after that, unless it is held; its "
            "disk is kept for `fab resume`, until the run is complete and fetched"
        )


def hold(run: Run) -> None:
    """Keep the machines until their deadlines, though their job has ended.

    Raises:
        UserError: the run is on a machine that exists of itself, or it is too late.
    """
    if run.host is not None:
        raise UserError(f"{run.host} never ends by itself: there is nothing to hold")
    machines = run.machines()
    for machine in machines:
        machine.run(f"mkdir -p {run.base}/job && touch {run.base}/job/hold")
        guard = machine.call("snapshot")["guard"]
        if guard and guard["reason"]:
            why = GUARD_REASONS[guard["reason"]]
            raise UserError(f"too late, the machine is just being ended: {why}")
    price = "" if run.price is None else f" at ${len(machines) * run.price:.2f} an hour"
    say(
        f"{run.name}: {len(machines)} machine(s) stay until the deadline, {clock(run.deadline)}"
        f"{price}; `fab teardown` ends it"
    )
