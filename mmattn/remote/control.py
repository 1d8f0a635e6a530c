"""Small orders to a run's machine: stop, hold."""

import time

from mmattn.console import say, waiting
from mmattn.errors import UserError
from mmattn.remote.runs import Run, changing
from mmattn.remote.screen import GUARD_REASONS, clock
from mmattn.remote.ssh import Machine, RemoteError

SAVE_S = 120
HEED_S = 30  # for the guard, which looks every few seconds


def stop(run: Run) -> None:
    """Let the job save and end (SIGTERM); the machine stays, for its grace.

    Raises:
        UserError: the job did not end in time.
    """
    with changing("stop", run):
        say(f"asking {run.name} to save and end")
        first, *others = run.machines()
        for machine in others:  # all at the same time: they train together
            _ask_to_end(machine)
        job = first.call("job", "stop", "--wait", str(SAVE_S), timeout=SAVE_S + 30)
        for machine in others:
            _ask_to_end(machine, "--wait", str(SAVE_S), "--kill")
    if job["state"] == "absent":
        raise UserError(f"{run.name} has no job: `fab deploy` continues")
    if job["state"] == "running":
        raise UserError(f"{run.name} still runs after {SAVE_S} s; `fab monitor --quick` shows it")
    if job["state"] == "lost":
        raise UserError(f"{run.name}: the job was killed before; `fab resume` continues it")
    code = job["exit_code"]
    say(f"the job has ended with exit code {code}{'; `fab resume` continues it' if code else ''}")
    if run.host is None and run.uri is None:
        say(
            f"The machine ends itself {run.grace_minutes:g} min after that, unless it is held; its "
            "disk is kept until `fab fetch` has brought all results"
        )


def _ask_to_end(machine: Machine, *options: str) -> None:
    """Let a job save and end; that its machine is out of reach keeps no other from it."""
    try:
        machine.call("job", "stop", *options, timeout=SAVE_S + 30)
    except RemoteError as error:
        say(f"machine {machine.rank}: {error}")


def hold(run: Run) -> None:
    """Keep the machines past their grace, until their deadline.

    Raises:
        UserError: the run is on a machine that exists of itself, or it is too late.
    """
    if run.host is not None:
        raise UserError(f"{run.host} is not ended by anything: there is nothing to hold")
    for machine in run.machines():
        _hold_one(run, machine)
    count = len(run.members)
    price = "" if run.price is None else f" at ${count * run.price:.2f} an hour"
    until = clock(run.deadline)
    stays = (
        "the machine stays until its" if count == 1 else f"all {count} machines stay until their"
    )
    say(f"{run.name}: {stays} deadline, {until}{price}; `fab teardown` ends it")


def _hold_one(run: Run, machine: Machine) -> None:
    machine.run(f"mkdir -p {run.base}/job && touch {run.base}/job/hold")
    end = time.monotonic() + HEED_S
    with waiting("waiting for the machine's guard to heed it"):
        while not (guard := machine.call("snapshot")["guard"] or {}).get("held"):
            if guard.get("reason"):
                why = GUARD_REASONS[guard["reason"]]
                raise UserError(f"too late, the machine is just being ended: {why}")
            if time.monotonic() > end:
                raise UserError("the guard does not answer; the machine may end all the same")
            time.sleep(1)
