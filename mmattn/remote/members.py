"""A run's machines among themselves: what one has goes to the others; they find each other."""

import shlex
from contextlib import suppress

from mmattn.console import say, waiting
from mmattn.remote.agent.fanout import KEY_HOURS
from mmattn.remote.detached import run_detached, wait_for
from mmattn.remote.runs import Run
from mmattn.remote.ssh import Machine, RemoteError

PORT = 8476  # of the first process, at the private address: nothing there asks who calls
KEY = "mmattn-fanout"  # the comment by which the key for copying is found again
SAVE_S = 60
MEET_S, MEET_EACH_S = 120, 15  # the processes are started one after the other


def place(run: Run, rank: int) -> list[str]:
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
    """End jobs of an earlier set of machines, if these are others.

    The results were on its first machine. If that is gone, the new first takes up what was fetched.
    """
    ids = [one.id for one in run.members]
    if run.trains_on and run.trains_on != ids:
        stop_jobs(machines)
        if run.trains_on[0] != ids[0]:
            fetched = (run.results / "config.json").exists()
            found = "what was fetched" if fetched else "the start: nothing was fetched"
            say(f"the machine with the results is gone: {ids[0]} continues from {found}")
            machines[0].run(f"rm -rf {run.base}/run {run.base}/job", timeout=300)
        run.uploaded = run.spread = None
    run.trains_on = ids
    run.save()


def stop_jobs(machines: list[Machine]) -> None:
    """Let the jobs save and end, all at the same time; kill those that do not."""
    there = [one for one in machines if one.run(f"test ! -d {one.base}/agent || echo yes").strip()]
    for machine in there:
        machine.call("stop")
    for machine in there:
        machine.call("stop", "--wait", str(SAVE_S), "--kill", timeout=SAVE_S + 30)


def spread(run: Run, machines: list[Machine]) -> None:
    """Copy code and data from the first machine to the others, by their own network.

    The first makes a key, which the others let in from its address alone and for some hours; its
    private half never leaves it, and is deleted when the copy is done. Who they are, it knows from
    here.

    Raises:
        RemoteError: a machine has not got everything.
    """
    first, *others = machines
    if not others:
        return
    addresses = [run.members[machine.rank].private for machine in others]
    if first.call("snapshot", job="fanout")["job"]["state"] == "running":
        first.call("stop", "--wait", "20", "--kill", job="fanout", timeout=50)
    try:
        public = first.run(_key_command(run, addresses)).strip()
        for machine in others:
            machine.run(_admission(run, public))
        words = ["python3", "../agent", "fanout", "../fanout", *addresses]
        run_detached(run, first, "fanout", words)
        with waiting(f"copying from machine 0 to {len(others)} more"):
            job = wait_for(first, "fanout", "running")
    finally:
        for machine in machines:
            with suppress(RemoteError):  # then the key expires
                machine.run(f"rm -f {run.base}/fanout/key; {_no_admission()}")
    if job["exit_code"] != 0:
        log = first.run(f"tail -n 15 {run.base}/fanout/job.log")
        raise RemoteError(f"copying between the machines failed:\n{log.strip()}")
    for machine in others:
        wrong = machine.call("verify", timeout=3600)["wrong"]
        if wrong:
            raise RemoteError(
                f"machine {machine.rank}: {len(wrong)} files differ from those of machine 0, "
                f"e.g. {wrong[0]}"
            )


def _key_command(run: Run, addresses: list[str]) -> str:
    """Makes the key and the file of known hosts; prints the public half."""
    known = " ".join(shlex.quote(f"{address} {run.host_proof}") for address in addresses)
    return (
        f"umask 077 && mkdir -p {run.base}/fanout && cd {run.base}/fanout && rm -f key key.pub && "
        f"printf '%s\\n' {known} >known_hosts && "
        f"ssh-keygen -q -t ed25519 -N '' -C {KEY} -f key && cat key.pub"
    )


def _admission(run: Run, public: str) -> str:
    """Lets the key in, from the first machine alone, for some hours and no terminal."""
    limits = f'from=\\"{run.members[0].private}\\",restrict'
    return (
        f"umask 077 && mkdir -p {run.base}/job && {_no_admission()} && "
        f"end=$(date -d '+{KEY_HOURS} hours' +%Y%m%d%H%M) && "
        f'echo "expiry-time=\\"$end\\",{limits} {public}" >>~/.ssh/authorized_keys'
    )


def _no_admission() -> str:
    return f"sed -i '/ {KEY}$/d' ~/.ssh/authorized_keys"


def check_names(run: Run, machines: list[Machine]) -> None:
    """That the name of each machine means its private address, not the loopback.

    Raises:
        RemoteError: it does not and cannot be mended.
    """
    if len(machines) < 2:
        return
    for machine in machines:
        private = run.members[machine.rank].private
        found = machine.call("hosts", private)
        if found["address"] != private:
            raise RemoteError(
                f"machine {machine.rank}: expected its name {found['name']} to mean {private} "
                f"(`getent hosts $(hostname)`), found {found['address']}"
            )


def say_missing(run: Run) -> None:
    """Say if there are fewer machines than were asked for."""
    if run.host is None and len(run.members) < run.instances:
        say(f"on {len(run.members)} of {run.instances} machines: the others are gone")
