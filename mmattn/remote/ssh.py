"""A machine over SSH: commands and transfers by OpenSSH and rsync, host keys always verified.

Each command is short and has a timeout: a peer that goes silent would never end a stream.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from mmattn.console import say
from mmattn.errors import UserError
from mmattn.files import write_text
from mmattn.remote.agent import MARKER

CONNECT_S = 10
SSH_FAILED = 255
DISK_RSYNC = 11  # error in file I/O; rsync does not always say which
CUT_RSYNC = {10, 12, 20, 30, 35, SSH_FAILED}  # protocol stream, socket, timeouts; ssh itself


class RemoteError(UserError):
    """An error in the cloud or on the machine."""


class Unreachable(RemoteError):
    """No connection, or a silent peer: a retry may help."""


class NotLoggedIn(RemoteError):
    """The machine does not accept the key (yet: it may still be booting)."""


class CommandFailed(RemoteError):
    """A command ran on the machine and failed."""

    def __init__(self, command: str, exit_code: int, output: str):
        super().__init__(f"`{command}` failed with exit code {exit_code}: {output or 'no output'}")
        self.exit_code, self.output = exit_code, output


# A message of OpenSSH, the kind of error, and what it means.
SSH_ERRORS: tuple[tuple[str, type[RemoteError], str], ...] = (
    (
        "HOST IDENTIFICATION HAS CHANGED",
        RemoteError,
        "has a different host key than before: it is another machine, or someone intercepts the "
        "connection; nothing was sent",
    ),
    (
        "Host key verification failed",
        RemoteError,
        "has an unknown host key: log in once with ssh, compare the key with the machine's own, "
        "and try again",
    ),
    ("Permission denied", NotLoggedIn, "refuses the key"),
    ("", Unreachable, "is unreachable"),
)

persistent = retry(
    retry=retry_if_exception_type(Unreachable),
    stop=stop_after_attempt(20),
    wait=wait_exponential(max=30),
    before_sleep=lambda state: say(f"{state.outcome and state.outcome.exception()}; continuing"),
    reraise=True,
)
"""Retries lost connections; a transfer continues from what already arrived."""


class Access(NamedTuple):
    """How to log in."""

    address: str  # of the machine, or its name in the user's own ~/.ssh/config
    user: str | None = None
    port: int | None = None
    # Known hosts and private key of the run; None for the user's own settings, keys and agent.
    own: tuple[Path, Path] | None = None

    @property
    def name(self) -> str:
        """The machine's name in messages."""
        user = f"{self.user}@" if self.user else ""
        return f"{user}{self.address}" + (f":{self.port}" if self.port not in (None, 22) else "")

    def settings(self) -> str:
        """The ssh_config; of several values of a setting the first counts."""
        lines = ["BatchMode yes", "StrictHostKeyChecking yes", "ForwardAgent no", "LogLevel ERROR"]
        lines += ["ServerAliveInterval 5", "ServerAliveCountMax 3", f"ConnectTimeout {CONNECT_S}"]
        if self.user:
            lines.append(f"User {self.user}")
        if self.port:
            lines.append(f"Port {self.port}")
        if self.own:
            known, key = self.own
            lines += ["IdentitiesOnly yes", f'IdentityFile "{key}"', "AddressFamily inet"]
        else:
            home = Path("~/.ssh").expanduser()
            known = home / "known_hosts"
            lines.append(f'Include "{home / "config"}"')
        return "\n".join([*lines, f'UserKnownHostsFile "{known}"', ""])


class Machine:
    """The training machine, as one run sees it.

    Args:
        access: how to log in.
        folder: local folder of the run, for the generated ssh_config.
        base: folder of the run on the machine, relative to the login user's home.
        on_silence: called when it is unreachable; returns how to log in if that has changed.
        rank: of the machine among the run's.
    """

    def __init__(
        self,
        access: Access,
        folder: Path,
        base: str,
        on_silence: Callable[[], Access | None] = lambda: None,
        rank: int = 0,
    ):
        self.base, self.rank = base, rank
        self.ssh_config = folder / ("ssh_config" if rank == 0 else f"ssh_config-{rank}")
        self._on_silence = on_silence
        self._use(access)

    def _use(self, access: Access) -> None:
        self.access = access
        write_text(self.ssh_config, access.settings())

    def remote(self, path: str = "") -> str:
        """A path in the run's folder, as rsync names it."""
        address = self.access.address
        return f"{f'[{address}]' if ':' in address else address}:{self.base}/{path}"

    def run(self, command: str, timeout: float = 30) -> str:
        """Run a shell command in the login user's home and return its output.

        Unreachable without a connection, or after `timeout` seconds; CommandFailed if its exit
        code is not 0; RemoteError for a wrong host key or a refused login.
        """
        try:
            return self._run(command, timeout)
        except Unreachable:
            access = None
            with suppress(UserError):  # e.g. offline: report the machine as unreachable
                access = self._on_silence()
            if access is None:
                raise
            self._use(access)
            return self._run(command, timeout)

    def _run(self, command: str, timeout: float) -> str:
        ssh = ["ssh", "-F", str(self.ssh_config), "-T", "-n", self.access.address, command]
        try:
            done = _ran(ssh, subprocess.PIPE, timeout)
        except subprocess.TimeoutExpired as error:
            raise Unreachable(f"{self.access.name} is silent for {timeout:g} s") from error
        if done.returncode == SSH_FAILED or done.returncode < 0:
            _, kind, meaning = next(one for one in SSH_ERRORS if one[0] in done.stderr)
            # The last part of the message: without names, addresses and numbers.
            why = done.stderr.strip().rpartition("\n")[2].rpartition(": ")[2].strip()
            raise kind(f"{self.access.name} {meaning}: {why or 'no reason given'}")
        if done.returncode:
            raise CommandFailed(command, done.returncode, tail(done.stderr or done.stdout))
        return done.stdout

    def call(self, program: str, *options: str, job: str = "job", timeout: float = 30) -> dict:
        """Run a program of mmattn.remote.agent and return the JSON it printed; as `run`."""
        words = shlex.join(["python3", "agent", program, job, *options])
        nothing = "echo 'it has no files of this run yet: `fab deploy` continues' >&2; exit 1"
        text = self.run(f"cd {self.base}/agent/.. 2>&- || {{ {nothing}; }}; {words}", timeout)
        try:
            return json.loads(text.rpartition(MARKER)[2])
        except ValueError as error:
            raise RemoteError(
                f"{self.access.name}: expected JSON from {program}, got {tail(text)!r}"
            ) from error

    def rsync(self, *arguments: str, progress: str = "") -> None:
        """Transfer files with rsync; shows `progress`, and on a terminal how far it is.

        Arguments are options, sources and destination. Unreachable if the connection was lost: a
        repeated call resumes. CommandFailed if rsync failed, e.g. without space on the machine.
        """
        command = ["rsync", "--archive", "--no-owner", "--no-group", "--partial-dir=.rsync-partial"]
        command += ["--timeout=30", "-e", f'ssh -F "{self.ssh_config}"']
        if progress:
            say(f"transferring {progress}")
            shown = ["--info=progress2", "--no-inc-recursive"]
            command += shown if sys.stdout.isatty() else []
        done = _ran([*command, *arguments])
        complaint = tail(done.stderr)
        if done.returncode in CUT_RSYNC:
            why = done.stderr.partition("\nrsync")[0].strip().rpartition("\n")[2]
            raise Unreachable(f"{self.access.name} is unreachable: {why}")
        if done.returncode == DISK_RSYNC or "No space left" in complaint:
            complaint = f"the receiving disk is full or failing: {complaint}"
        if done.returncode:
            raise CommandFailed("rsync", done.returncode, complaint)

    def shell(self) -> None:
        """Replace this process by an interactive shell on the machine."""
        self.run("true")  # lets this computer in if its address has changed
        os.execvp("ssh", ["ssh", "-F", str(self.ssh_config), "-t", self.access.address])


def _ran(command: list[str], out: int | None = None, timeout: float | None = None) -> Any:
    """Run a command, with messages in English."""
    english: Any = {"env": {**os.environ, "LC_ALL": "C"}, "encoding": "utf-8", "errors": "replace"}
    return subprocess.run(command, stdout=out, stderr=subprocess.PIPE, timeout=timeout, **english)


def check_tools() -> None:
    """UserError if the programs for transfers are missing or too old."""
    for tool in (["ssh", "-V"], ["rsync", "--info=progress2", "--version"]):
        try:
            subprocess.run(tool, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(
                f"expected OpenSSH and rsync 3.1 here (on a Mac `brew install rsync`): {error}"
            ) from error


def make_key(path: Path) -> str:
    """Make an ed25519 key pair without a passphrase, once; returns the public key."""
    if not path.exists():
        made = path.with_name(f".{path.name}.new")
        made.unlink(missing_ok=True)
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "mmattn", "-f", str(made)]
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        os.replace(f"{made}.pub", f"{path}.pub")
        os.replace(made, path)  # last: it marks the pair as complete
    return Path(f"{path}.pub").read_text(encoding="utf-8").strip()


def tail(text: str, length: int = 400) -> str:
    """The end of a program's output."""
    return text.strip()[-length:]
