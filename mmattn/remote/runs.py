"""Remote runs as this computer knows them: `.fab/<run>/` with state, keys and known hosts.

The state is a cache, written before and after each step; the tags of the instances are the truth.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import dacite

from mmattn.console import complain, say
from mmattn.errors import UserError
from mmattn.files import read_json, write_json, write_text
from mmattn.remote.access import own_network
from mmattn.remote.cloud import Cloud
from mmattn.remote.ssh import Access, Machine, make_key
from mmattn.remote.states import STATES, is_past

FOLDER = Path(".fab")
NAME = re.compile(r"[A-Za-z0-9_]+-\d{8}-\d{6}-[0-9a-f]{4}")  # it becomes part of paths and commands
LOGIN = "ec2-user"  # of Amazon Linux
PROGRESS = ("state", "attempt", "deadline", "members", "uploaded")
NO_MACHINE = ("lost", "removed")


class Busy(UserError):
    """Another command is at work (75 is EX_TEMPFAIL)."""

    exit_code = 75


@dataclass
class Member:
    """A machine of a run, by EC2's last account."""

    id: str
    address: str | None = None
    """Where this computer reaches it."""
    private: str | None = None
    """Where the run's other machines do."""
    launched: float | None = None
    proof: str | None = None
    """The key by which it proves itself, made on it; the first one was in its user data."""
    sealed: bool = False
    """The first key counts no more."""


@dataclass
class Run:
    """One training on machines, or others after them; what was asked for and how far it came."""

    _cloud = None  # its API, once it was asked for: no part of the state
    name: str
    experiment: str
    args: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    is_study: bool = False
    """The experiment is many trainings, which the same command continues."""
    hours: float = 6.0
    grace_minutes: float = 60.0
    host: str | None = None
    """[user@]address[:port] of a machine that exists, or its name in ~/.ssh/config; None for EC2,
    to which what follows belongs."""
    region: str | None = None
    instance_type: str | None = None
    instances: int = 1
    """How many machines were asked for; there may be fewer by now."""
    spot: bool = False
    packages: list[str] = field(default_factory=list)
    """What its environment needs besides the project."""
    price: float | None = None
    """Dollars an hour of one machine."""
    owner: str | None = None
    state: str = "planned"
    """One of STATES."""
    attempt: int = 1
    """Counts the starts of machines."""
    deadline: float | None = None
    """When this attempt's machines end themselves (Unix time); set before they are asked for."""
    request: dict | None = None
    """What this attempt asks EC2 for, but for user data: the parameters of RunInstances."""
    subnet: str | None = None
    ami: str | None = None
    allow_from: str | None = None
    """Network that may reach it; None for this computer's address alone, wherever it is."""
    results_uri: str | None = None
    """Bucket and prefix to which the machine takes its results; None if it keeps them."""
    group_id: str | None = None
    members: list[Member] = field(default_factory=list)
    """Its machines by rank: the results are on the first, which leads the others."""
    leader: str | None = None
    """Id of the machine that the results are on, once a job was started."""
    uploaded: str | None = None
    """Digest of what was sent to the machines."""
    began_with: str | None = None
    """Digest of what the first of its jobs was started with."""

    @classmethod
    def find(cls, name: str | None = None) -> "Run":
        """The run of this name, or the latest not torn down; UserError if there is none."""
        found = runs()
        if not found:
            asked = f"--run {name}: " if name else ""
            raise UserError(f"{asked}there is no run in {FOLDER} yet: `fab deploy` makes one")
        if name is None:
            return ([run for run in found if run.state != "removed"] or found)[-1]
        for run in found:
            if run.name == name:
                return run
        known = ", ".join(run.name for run in found)
        raise UserError(f"--run {name}: expected one of the runs in {FOLDER}: {known}")

    def to(self, state: str) -> None:
        """Go to another state, or stay, and write it down."""
        assert state == self.state or state in STATES[self.state].next, (self.state, state)
        self.state = state
        if state in NO_MACHINE or state == "planned":
            self.members, self.deadline = [], None
            self.uploaded = self.leader = None
        self.save()

    def is_past(self, state: str) -> bool:
        """Whether it is in a state or has come further."""
        return is_past(self.state, state)

    @property
    def uri(self) -> str | None:
        """Where its results are in the bucket; None without one."""
        return self.results_uri and f"{self.results_uri}/{self.name}"

    @property
    def data_uri(self) -> str | None:
        """The data that are in a bucket; None if there are none."""
        return next((one for one in self.data if is_uri(one)), None)

    @property
    def instance_id(self) -> str | None:
        """The instance of its first machine, on which the results are."""
        return self.members[0].id if self.members else None

    @property
    def address(self) -> str | None:
        """Where this computer reaches its first machine."""
        return self.members[0].address if self.members else None

    @property
    def folder(self) -> Path:
        """Where this computer keeps the run's state and keys."""
        return FOLDER / self.name

    @property
    def label(self) -> str:
        """Name of its key pair, security group and alarm."""
        return f"mmattn-{self.name}"

    @property
    def results(self) -> Path:
        """Where its fetched results go: runs/<experiment>/<time>."""
        return Path("runs") / self.experiment / self.name.removeprefix(f"{self.experiment}-")

    @property
    def base(self) -> str:
        """Its folder on the machine, in the login user's home."""
        return f"mmattn/{self.name}"

    @property
    def key(self) -> Path:
        """The private key that logs in."""
        return self.folder / "key"

    @property
    def host_key(self) -> Path:
        """The private key that the instance proves itself with."""
        return self.folder / "host_key"

    @property
    def fetched(self) -> str | None:
        """Whether the results were fetched "complete" or "partial"; None if not at all.

        It has a file of its own, because `fab fetch` writes it while other commands have the state.
        """
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
            self._cloud = cloud
        return self._cloud

    def machines(self) -> list[Machine]:
        """All its machines by rank, as `machine`."""
        return [self.machine(rank) for rank in range(max(1, len(self.members)))]

    def machine(self, rank: int = 0) -> Machine:
        """Its machine of this rank.

        Raises:
            UserError: it has none (yet, or any more), or the keys are gone.
        """
        if self.host is not None:
            return Machine(parse_host(self.host), self.folder, self.base)
        return Machine(self._access(rank), self.folder, self.base, lambda: self._way_in(rank), rank)

    def _access(self, rank: int) -> Access:
        """How to log in to an instance of it."""
        if not self.members or self.members[rank].address is None:
            if self.state == "removed":
                again = "`fab resume` makes a new machine"
                if self.fetched == "complete":
                    again = f"its results are in {self.results}"
                raise UserError(f"{self.name} was torn down: {again}")
            raise UserError(f"{self.name} has no machine: `fab deploy` continues, or `fab resume`")
        if not self.key.exists() or not self.host_key.exists():
            raise UserError(f"{self.folder}: the run's keys are gone; `fab teardown` still works")
        if self.key.stat().st_mode & 0o077:
            self.key.chmod(0o600)
            say(f"{self.key} could be read by others: now by you alone")
        known = self.folder / ("known_hosts" if rank == 0 else f"known_hosts-{rank}")
        member = self.members[rank]
        first = None if member.sealed else " ".join(make_key(self.host_key).split()[:2])
        proofs = filter(None, (first, member.proof))
        write_text(known, "".join(f"{member.address} {proof}\n" for proof in proofs))
        return Access(member.address, LOGIN, own=(known, self.key))

    def _way_in(self, rank: int) -> Access | None:
        """Let this computer in, if its address has changed, and find the machine, if its has.

        Returns:
            How to log in now; None if nothing has changed.
        """
        cloud, member = self.cloud(), self.members[rank]
        current = cloud.address(member.id)
        if current is None or self.group_id is None:
            return None
        admitted = cloud.admit(self.group_id, self.allow_from or own_network())
        if not admitted and current == member.address:
            return None
        member.address = current
        return self._access(rank)


def is_uri(data: str) -> bool:
    """Whether data are in a bucket, and not in a folder here."""
    return data.startswith("s3://")


def runs() -> list[Run]:
    """The runs that this computer knows, the oldest first."""
    found = []
    for path in FOLDER.glob("*/state.json"):
        try:
            found.append(read_run(path))
        except UserError as error:  # what it was is still to be ended, by its tags
            complain(f"passed over: {error}")
    return sorted(found, key=lambda run: run.name[-20:])


def read_run(path: Path) -> Run:
    """A run's state; UserError if the file is broken."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected the state of a run, found {type(found).__name__}")
    try:
        run = dacite.from_dict(Run, found, dacite.Config(strict=True, cast=[float]))
    except (dacite.DaciteError, ValueError) as error:
        raise UserError(f"{path}: expected the state of a run: {error}") from error
    for what, value, good in (
        ("name", run.name, NAME.fullmatch(run.name)),
        ("state", run.state, run.state in STATES),
    ):
        if not good:
            raise UserError(f"{path}: expected a run's {what}, found {value!r}")
    return run


def parse_host(host: str) -> Access:
    """How to log in at `[user@]address[:port]`, or a name in ~/.ssh/config; UserError otherwise."""
    word = r"(?:([A-Za-z_][\w.-]*)@)?(\[[0-9a-fA-F:]+\]|[A-Za-z0-9][\w.-]*)(?::(\d+))?"
    found = re.fullmatch(word, host)
    if not found:
        raise UserError(
            f"--host {host}: expected a name in ~/.ssh/config, or [user@]address[:port]"
        )
    return Access(found[2].strip("[]"), found[1], int(found[3]) if found[3] else None)


def is_busy(folder: Path) -> bool:
    """Whether a command holds the lock on a folder."""
    path = folder / "lock"
    if not path.exists():
        return False
    with open(path, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def locked(what: str, folder: Path = FOLDER) -> Iterator[None]:
    """Hold the right to change what a folder stands for: a run, or which runs there are.

    Raises:
        Busy: another command has it; the message names it.
    """
    FOLDER.mkdir(exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True, mode=0o700)
    with open(folder / "lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            try:
                holder = json.loads(file.read())
            except ValueError:  # it is just writing it
                holder = {}
            raise Busy(
                f"`fab {holder.get('what', '?')}` (process {holder.get('pid', '?')}) is at work "
                f"here: it holds {folder / 'lock'}; wait for it or stop it"
            ) from error
        file.truncate(0)
        json.dump({"what": what, "pid": os.getpid()}, file)
        file.flush()
        yield


@contextmanager
def changing(what: str, run: Run) -> Iterator[None]:
    """Hold the right to change a run, which is still as it was read.

    Raises:
        Busy: another command has the right, or has just used it.
    """
    with locked(what, run.folder):
        now = read_run(run.folder / "state.json")
        if any(getattr(now, name) != getattr(run, name) for name in PROGRESS):
            raise Busy(f"another command has just changed {run.name}: try again")
        yield
