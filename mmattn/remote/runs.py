"""Remote runs as this computer knows them: `.fab/<run>/` with state, keys and known hosts.

The state is a cache, written before and after each step; the tags of the instances decide.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import dacite

from mmattn.console import complain
from mmattn.errors import UserError
from mmattn.files import read_json, write_json, write_text
from mmattn.remote.access import own_network
from mmattn.remote.cloud import OWNER, RUN, Cloud
from mmattn.remote.ssh import Access, Machine, make_key

FOLDER = Path(".fab")
NAME = re.compile(r"[A-Za-z0-9_]+-\d{8}-\d{6}-[0-9a-f]{4}")  # becomes part of paths and commands
LOGIN = "ec2-user"  # of Amazon Linux
NO_MACHINE = ("lost", "removed")


# The states of a run, also in docs/remote.md; the last column is what `Run.to` permits.
TABLE = """\
| state | meaning | what costs | next |
|---|---|---|---|
| planned | no machine was requested yet, or EC2 refused | nothing | asked, there, removed |
| asked | EC2 was asked for the machines; its answer may have been lost | perhaps the machines | \
there, planned, lost, removed |
| there | the machines are known | the machines | sent, lost, removed |
| sent | code and data are on every machine, verified | the machines | there, built, lost, removed |
| built | every machine has its environment | the machines | there, sent, started, lost, \
removed |
| started | the job was started; it runs or has ended | the machines | there, built, lost, removed |
| lost | the machines are gone; their first volume may be kept | the volume | asked, removed |
| removed | only what was fetched, or is in the bucket, is left | the bucket | asked, there |
"""
_ROWS = [row.strip("| ").split(" | ") for row in TABLE.splitlines()[2:]]
STATES = {row[0]: row[-1].split(", ") for row in _ROWS}  # by state, the possible next ones


class Busy(UserError):
    """Another command holds the lock (75 is EX_TEMPFAIL)."""

    exit_code = 75


@dataclass
class Member:
    """A machine of a run, as EC2 last described it."""

    id: str
    address: str | None = None  # where this computer reaches it
    private: str | None = None  # where the run's other machines reach it
    launched: float | None = None
    proof: str | None = None  # the host key made on it; the first one was in its user data
    sealed: bool = False  # the first key is no longer trusted


# The options of `fab deploy`, by the field of `Run` that each fills; those after `host` are EC2's.
OPTIONS = {
    "experiment": "name of a file in experiments/",
    "args": "the experiment's options, e.g. '--train.epochs 40'",
    "data": "folder of feature files to send, or s3://BUCKET/PREFIX for the machine to read; "
    "may be repeated (default: the built-in corpus)",
    "host": "existing machine to use: [user@]address[:port], or its name in ~/.ssh/config",
    "hours": "hours after which the machine ends itself in any case",
    "grace_minutes": "minutes after the end of its job when the machine ends itself",
    "results_uri": "s3://BUCKET/PREFIX to push results to (default: the machine's disk)",
    "instance_type": "EC2 instance type",
    "instances": "number of such machines that train together",
    "spot": "use a spot machine: a third of the price, but EC2 may take it away",
    "region": "EC2 region (default: that of your AWS configuration)",
    "subnet": "subnet of your own VPC (default: those of the default VPC)",
    "ami": "image to boot, an Amazon Linux 2023 (default: the newest)",
    "allow_from": "IPv4 network that may reach it (default: only this computer's address)",
}
OF_EC2 = list(OPTIONS)[list(OPTIONS).index("host") + 1 :]


def flag(name: str) -> str:
    """The option that fills a field of `Run`, without its dashes."""
    return {"hours": "max-hours", "results_uri": "results"}.get(name, name.replace("_", "-"))


@dataclass
class Run:
    """One training on machines or their replacements: its options and its state."""

    name: str
    experiment: str  # from here on OPTIONS
    args: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    hours: float = 6.0
    grace_minutes: float = 60.0
    host: str | None = None
    results_uri: str | None = None
    instance_type: str = "c5.24xlarge"
    instances: int = 1
    spot: bool = False
    region: str | None = None
    subnet: str | None = None
    ami: str | None = None
    allow_from: str | None = None
    is_study: bool = False  # many trainings, which the same command continues
    owner: str | None = None  # ARN of the caller who made it, and pays
    state: str = "planned"  # one of STATES
    attempt: int = 1  # counts the starts of machines
    price: float | None = None  # dollars per hour of one machine, on demand
    # When this attempt's machines end themselves (Unix time); set before they are requested.
    deadline: float | None = None
    request: dict | None = None  # this attempt's parameters of RunInstances, except user data
    # By rank: the first leads the others and has the results.
    members: list[Member] = field(default_factory=list)
    leader: str | None = None  # id of the machine with the results, once a job was started
    uploaded: str | None = None  # digest of the files sent to the machines
    began_with: str | None = None  # digest of the files that its first job was started with

    def __post_init__(self) -> None:
        self._cloud: Cloud | None = None  # its API, once used
        self.folder = FOLDER / self.name  # its state and keys on this computer
        self.key = self.folder / "key"  # to log in with
        self.host_key = self.folder / "host_key"  # the instance's first
        self.label = f"mmattn-{self.name}"  # of its key pair, security group and alarms
        self.base = f"mmattn/{self.name}"  # on the machine, in the login user's home
        time = self.name.removeprefix(f"{self.experiment}-")
        self.results = Path("runs") / self.experiment / time  # fetched results

    @classmethod
    def find(cls, name: str | None = None) -> "Run":
        """The run of this name, or the latest not torn down; UserError if there is none."""
        known = {run.name: run for run in runs()}
        if name in known:
            return known[name]
        if name:
            listed = ", ".join(known) or "none: `fab deploy` makes one"
            raise UserError(f"--run {name}: expected one of the runs in {FOLDER}: {listed}")
        if not known:
            raise UserError(f"there is no run in {FOLDER} yet: `fab deploy` makes one")
        found = list(known.values())
        return ([run for run in found if run.state != "removed"] or found)[-1]

    def to(self, state: str) -> None:
        """Change the state, or keep it, and save."""
        assert state == self.state or state in STATES[self.state], (self.state, state)
        self.state = state
        if state in NO_MACHINE or state == "planned":
            self.members, self.deadline = [], None
            self.uploaded = self.leader = None
        self.save()

    def is_past(self, state: str) -> bool:
        """Whether it has reached a state or a later one; a lost or removed run has not."""
        way = list(STATES)[: list(STATES).index("lost")]
        return self.state in way and way.index(self.state) >= way.index(state)

    @property
    def uri(self) -> str | None:
        """The URI of its results in the bucket; None without one."""
        return self.results_uri and f"{self.results_uri}/{self.name}"

    @property
    def data_uri(self) -> str | None:
        """The data in a bucket; None if there are none."""
        return next((one for one in self.data if is_uri(one)), None)

    @property
    def uses_bucket(self) -> bool:
        """Whether its machines need permissions for a bucket."""
        return bool(self.results_uri or self.data_uri)

    @property
    def instance_id(self) -> str | None:
        """The instance of its first machine, which has the results."""
        return self.members[0].id if self.members else None

    @property
    def tags(self) -> dict[str, str]:
        """The tags of all that is made for it."""
        return {RUN: self.name, OWNER: self.owner or "", "Name": self.label}

    @property
    def fetched(self) -> str | None:
        """Whether the results were fetched "complete" or "partial"; None if not at all."""
        # In a separate file, because `fab fetch` writes it while other commands hold the state.
        path = self.folder / "fetched"
        return path.read_text(encoding="utf-8").strip() if path.exists() else None

    @fetched.setter
    def fetched(self, what: str) -> None:
        write_text(self.folder / "fetched", what + "\n")

    def save(self) -> None:
        """Write state.json, atomically."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(self.folder / "state.json", asdict(self))

    def cloud(self) -> Cloud:
        """The API of its region; UserError if the credentials are of another account."""
        if self._cloud is None:
            cloud = Cloud(self.region)
            if self.owner is not None:
                cloud.check_account(self.owner)
            self._cloud = cloud  # only once checked: another account lists no machine of the run
        return self._cloud

    def machines(self) -> list[Machine]:
        """Its machines, by rank."""
        return [self.machine(rank) for rank in range(max(1, len(self.members)))]

    def machine(self, rank: int = 0) -> Machine:
        """Its machine of this rank; UserError if there is none, or the keys are gone."""
        if self.host is not None:
            return Machine(parse_host(self.host), self.folder, self.base)
        return Machine(self._access(rank), self.folder, self.base, lambda: self._way_in(rank), rank)

    def _access(self, rank: int) -> Access:
        """How to log in to its instance of this rank."""
        member = self.members[rank] if self.members else None
        if member is None or member.address is None:
            raise UserError(f"{self.name} has no machine: use `fab deploy` or `fab resume`")
        if not self.key.exists() or not self.host_key.exists():
            raise UserError(f"{self.folder}: the run's keys are gone; `fab teardown` still works")
        self.key.chmod(0o600)  # OpenSSH rejects a key that others can read
        known = self.folder / ("known_hosts" if rank == 0 else f"known_hosts-{rank}")
        first = None if member.sealed else " ".join(make_key(self.host_key).split()[:2])
        proofs = filter(None, (first, member.proof))
        write_text(known, "".join(f"{member.address} {proof}\n" for proof in proofs))
        return Access(member.address, LOGIN, own=(known, self.key))

    def _way_in(self, rank: int) -> Access | None:
        """Let in this computer's address and look up the machine's; None if neither changed."""
        cloud, member = self.cloud(), self.members[rank]
        found, group = cloud.instance(member.id), cloud.group(self.label)
        if group is None or found is None or found.state != "running":
            return None
        admitted = cloud.admit(group, self.allow_from or own_network())
        if not admitted and found.address == member.address:
            return None
        member.address = found.address
        return self._access(rank)


DEFAULTS = Run("", "no_aug")  # what `fab deploy` asks for without options


def is_uri(data: str) -> bool:
    """Whether data are in a bucket rather than in a local folder."""
    return data.startswith("s3://")


def runs() -> list[Run]:
    """The runs that this computer knows, oldest first."""
    found = []
    for path in FOLDER.glob("*/state.json"):
        try:
            found.append(read_run(path))
        except UserError as error:  # its machines can still be found by their tags
            complain(f"skipped: {error}")
    return sorted(found, key=lambda run: run.name[-20:])


def read_run(path: Path) -> Run:
    """A run's state; UserError if the file is broken."""
    found = read_json(path)
    try:
        return dacite.from_dict(Run, dict(found), dacite.Config(strict=True, cast=[float]))
    except (dacite.DaciteError, TypeError, ValueError) as error:
        raise UserError(f"{path}: expected the state of a run: {error}") from error


def parse_host(host: str) -> Access:
    """How to log in to `[user@]address[:port]` or a name in ~/.ssh/config; UserError if invalid."""
    word = r"(?:([A-Za-z_][\w.-]*)@)?(\[[0-9a-fA-F:]+\]|[A-Za-z0-9][\w.-]*)(?::(\d+))?"
    found = re.fullmatch(word, host)
    if not found:
        raise UserError(f"--host {host}: expected [user@]address[:port] or a name in ~/.ssh/config")
    return Access(found[2].strip("[]"), found[1], int(found[3]) if found[3] else None)


@contextmanager
def locked(what: str, folder: Path = FOLDER) -> Iterator[None]:
    """Lock a run, or the list of runs; Busy names the command that holds the lock."""
    FOLDER.mkdir(exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True, mode=0o700)
    with open(folder / "lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise Busy(
                f"{file.read()} is running and holds {folder / 'lock'}; wait for it or stop it"
            ) from error
        file.truncate(0)
        file.write(f"`fab {what}` (process {os.getpid()})")
        file.flush()
        yield


@contextmanager
def changing(what: str, run: Run) -> Iterator[None]:
    """`locked` for a run, whose state is read again: another command may have changed it."""
    with locked(what, run.folder):
        vars(run).update(vars(read_run(run.folder / "state.json")))
        yield
