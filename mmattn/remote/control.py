"""Small orders to a run's machine: stop, hold."""

from mmattn.console import say
from mmattn.errors import UserError
from mmattn.remote.runs import Run, locked

SAVE_S = 120


def stop(run: Run) -> None:
    """Let the job save and end (SIGTERM); the machine stays, for its grace.

    Raises:
        UserError: the job did not end in time.
    """
    with locked("stop", run.folder):
        say(f"asking {run.name} to save and end")
        job = run.machine().call("stop", "--wait", str(SAVE_S), timeout=SAVE_S + 30)
    if job["state"] == "absent":
        raise UserError(f"{run.name} has no job: `fab deploy` goes on")
    if job["state"] == "running":
        raise UserError(f"{run.name} still runs after {SAVE_S} s; `fab monitor --quick` shows it")
    if job["state"] == "lost":
        raise UserError(f"{run.name}: the job was killed before; `fab resume` continues it")
    say(f"the job has ended with exit code {job['exit_code']}; `fab resume` continues it")


def hold(run: Run) -> None:
    """Keep the machine past its grace, until its deadline.

    Raises:
        UserError: the run is on a machine that exists of itself.
    """
    if run.host is not None:
        raise UserError(f"{run.host} is not ended by anything: there is nothing to hold")
    if not run.started:
        raise UserError(f"{run.name} has no job yet: `fab deploy` goes on")
    run.machine().run(f"mkdir -p {run.base}/job && touch {run.base}/job/hold")
    say(f"{run.name}: the machine stays until its deadline; `fab teardown` ends it")
