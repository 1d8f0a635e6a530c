"""A machine by SSH: commands and transfers through OpenSSH and rsync, host keys always verified.

Nothing here holds a stream open: each command is short and under a deadline, because a peer that
goes silent would never end a stream.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mmattn.console import progress as progress_bar
from mmattn.errors import UserError
from mmattn.files import write_text
from mmattn.remote.agent import MARKER

CONNECT_S = 10
NO_AGENT = 66  # exit code (EX_NOINPUT)
SSH_FAILED = 255
MB = 1_000_000
# rsync: protocol stream, socket and file input/output, timeouts; 255 is ssh itself.
DISK_RSYNC = 11  # error in file input or output; rsync does not always tell which
TRANSIENT_RSYNC = {10, 12, 20, 30, 35, SSH_FAILED}


class RemoteError(UserError):
    """Something went wrong at the cloud or on the machine."""


class Unreachable(RemoteError):
    """No connection, or a silent peer: trying again may help."""


class NotLoggedIn(RemoteError):
    """The machine does not accept the key (yet: while it boots, it may not have it)."""


class CommandFailed(RemoteError):
    """A command ran on the machine and failed."""

    def __init__(self, command: str, exit_code: int, output: str):
        super().__init__(f"`{command}` failed with exit code {exit_code}: {output or 'no output'}")
        self.exit_code, self.output = exit_code, output


class Access(NamedTuple):
    """How to log in."""

    address: str
    """Of the machine, or its name in the user's own ~/.ssh/config."""
    user: str | None = None
    port: int | None = None
    own: tuple[Path, Path] | None = None
    """Known hosts and private key of the run; None for the user's own settings, keys and agent."""

    @property
    def name(self) -> str:
        """For messages."""
        user = f"{self.user}@" if self.user else ""
        return f"{user}{self.address}" + (f":{self.port}" if self.port not in (None, 22) else "")

    def settings(self) -> str:
        """As OpenSSH reads them: the first value of a setting counts.

        Raises:
            UserError: a path has a quote or a line break, which the file cannot hold.
        """
        lines = ["BatchMode yes", "StrictHostKeyChecking yes", "ForwardAgent no", "LogLevel ERROR"]
        lines += ["ServerAliveInterval 5", "ServerAliveCountMax 3", f"ConnectTimeout {CONNECT_S}"]
        lines += [f"User {self.user}"] * bool(self.user) + [f"Port {self.port}"] * bool(self.port)
        if self.own:
            known, key = self.own
            lines += ["IdentitiesOnly yes", "AddressFamily inet"]
            paths = {"UserKnownHostsFile": known.resolve(), "IdentityFile": key.resolve()}
        else:
            folder = Path("~/.ssh").expanduser()
            paths = {"Include": folder / "config", "UserKnownHostsFile": folder / "known_hosts"}
        for name, path in paths.items():
            if re.search(r'["\n]', str(path)):
                raise UserError(f"{path}: expected a path without quotes and line breaks")
            lines.append(f'{name} "{path}"')
        return "\n".join(lines) + "\n"


class Machine:
    """The training machine, as one run sees it.

    Args:
        access: how to log in.
        folder: local folder of the run, for the generated ssh_config.
        base: folder of the run on the machine, relative to the login user's home.
        on_silence: called when no connection can be made; returns how to log in now if something
            had changed (the caller's own address, which was let in; the machine's), else None.
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
        """Run a shell command in the login user's home and return what it printed.

        Raises:
            Unreachable: no connection, or no end within `timeout` seconds.
            CommandFailed: its exit code is not 0.
            RemoteError: wrong host key, no permission to log in.
        """
        try:
            return self._run(command, timeout)
        except _NoConnection:
            access = None
            with suppress(UserError):  # offline, say; that it is unreachable remains the news
                access = self._on_silence()
            if access is None:
                raise
            self._use(access)
            return self._run(command, timeout)

    def _run(self, command: str, timeout: float) -> str:
        ssh = ["ssh", "-F", str(self.ssh_config), "-T", self.access.address, command]
        try:
            done = subprocess.run(
                ssh,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout,
                env={**os.environ, "LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired as error:
            raise Unreachable(f"{self.access.name} is silent for {timeout:g} s") from error
        said, complaint = (part.decode(errors="replace") for part in (done.stdout, done.stderr))
        if done.returncode == SSH_FAILED or done.returncode < 0:
            raise _ssh_error(self.access, complaint)
        if done.returncode:
            raise CommandFailed(command, done.returncode, tail(complaint or said))
        return said

    def call(self, program: str, *options: str, job: str = "job", timeout: float = 30) -> dict:
        """Run a program of mmattn.remote.agent on the machine and return the JSON it printed.

        Raises:
            RemoteError: as `run`, or the answer is no JSON.
        """
        words = shlex.join(["python3", "agent", program, job, *options])
        there = f"cd {shlex.quote(self.base)} 2>&- && test -d agent || exit {NO_AGENT}"
        try:
            text = self.run(f"{there}; {words}", timeout)
        except CommandFailed as error:
            if error.exit_code != NO_AGENT:
                raise
            raise RemoteError(
                f"{self.access.name} has nothing of this run yet: `fab deploy` continues"
            ) from error
        _, marker, answer = text.rpartition(MARKER)
        try:
            return json.loads(answer)
        except ValueError as error:
            what = answer if marker else text
            raise RemoteError(
                f"{self.access.name}: expected JSON from {program}, got {tail(what)!r}"
            ) from error

    def rsync(self, *arguments: str, progress: str, total: int = 0) -> None:
        """Transfer files with rsync, resumable, with a progress bar.

        Args:
            arguments: options, sources, destination; `remote()` makes the machine's paths.
            progress: title of the bar.
            total: bytes, if known.

        Raises:
            Unreachable: the transfer was cut; what came is kept and resumed from.
            CommandFailed: rsync refused, e.g. no space left on the machine.
        """
        shell = f'ssh -F "{self.ssh_config.resolve()}"'
        command = ["rsync", "--archive", "--no-owner", "--no-group", "--partial-dir=.rsync-partial"]
        command += ["--timeout=30", "--info=progress2", "--no-inc-recursive", "-e", shell]
        with (
            tempfile.TemporaryFile("w+") as complaints,  # a pipe would fill up while stdout is read
            subprocess.Popen(
                [*command, *arguments],
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
                env={**os.environ, "LC_ALL": "C"},
            ) as process,
        ):
            try:
                with progress_bar(progress, -(-total // MB), "MB") as advance:
                    _show_rsync(process, advance)
            except BaseException:
                process.terminate()
                raise
            if process.wait():
                complaints.seek(0)
                raise _rsync_error(self.access, process.returncode, complaints.read())

    def shell(self) -> None:
        """Replace this process by an interactive shell on the machine."""
        self.run("true")  # lets this computer in, should its address have changed
        os.execvp("ssh", ["ssh", "-F", str(self.ssh_config), "-t", self.access.address])


class _NoConnection(Unreachable):
    """Nothing was asked: no connection was made."""


def check_tools() -> None:
    """UserError if the programs for transfers are missing or too old."""
    for tool in ("ssh", "rsync"):
        if shutil.which(tool) is None:
            raise UserError(f"{tool} is not installed here: apt-get install openssh-client rsync")
    about = subprocess.run(["rsync", "--version"], capture_output=True, text=True).stdout
    found = re.match(r"rsync +version v?(\d+)\.(\d+)", about)
    if not found or (int(found[1]), int(found[2])) < (3, 1):
        first = about.partition("\n")[0]
        raise UserError(
            f"rsync: expected version 3.1 or newer, found {first!r}; on a Mac `brew install rsync`"
        )


def make_key(path: Path) -> str:
    """An ed25519 key pair without a passphrase, made once; returns the public half."""
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / "key"
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "mmattn", "-f", str(made)]
            subprocess.run(words, check=True, stdin=subprocess.DEVNULL, capture_output=True)
            os.replace(made.with_name("key.pub"), path.with_name(f"{path.name}.pub"))
            os.replace(made, path)  # last: with it, the pair is complete
    return path.with_name(f"{path.name}.pub").read_text(encoding="utf-8").strip()


def tail(text: str, length: int = 400) -> str:
    """The end of what a program printed."""
    return text.strip()[-length:]


def _ssh_error(access: Access, complaint: str) -> RemoteError:
    """What OpenSSH's own failure means."""
    name, known = access.name, access.own[0] if access.own else "your known hosts"
    if "HOST IDENTIFICATION HAS CHANGED" in complaint:
        return RemoteError(
            f"{name} shows another host key than the one in {known}: it is not the machine it was, "
            "or someone sits between; nothing was sent"
        )
    if "Host key verification failed" in complaint:
        return RemoteError(
            f"the host key of {name} is not in {known}: log in once with ssh, compare the key with "
            "the machine's own, and try again"
        )
    if "Permission denied" in complaint:
        key = access.own[1] if access.own else "your own keys and agent"
        return NotLoggedIn(f"{name} refuses to let {key} log in: {tail(complaint, 100)}")
    if "ssh: " in complaint or "Connection timed out during banner exchange" in complaint:
        return _NoConnection(f"{name}: no connection: {_reason(complaint)}")
    return Unreachable(f"{name}: connection lost: {_reason(complaint)}")


def _reason(complaint: str) -> str:
    """The last words of the last line: without names, addresses and numbers."""
    lines = complaint.strip().splitlines() or ["no reason was told"]
    return lines[-1].rpartition(": ")[2].strip()


def _show_rsync(process: subprocess.Popen, advance: Callable[[int], None]) -> None:
    """Advance a bar of megabytes by rsync's own progress lines, which end in carriage returns."""
    shown = 0
    for line in process.stdout:  # universal newlines: a carriage return ends a line too
        sent = re.match(r"\s*([\d,]+)\s+\d+%", line)
        if sent:
            done = int(sent[1].replace(",", "")) // MB
            advance(max(0, done - shown))
            shown = max(shown, done)


def _rsync_error(access: Access, code: int, errors: str) -> RemoteError:
    if "is your shell clean" in errors:
        return RemoteError(
            f"{access.name}: the login shell prints text where rsync speaks: make its .bashrc "
            "silent when the shell is not interactive"
        )
    if "No space left on device" in errors or code == DISK_RSYNC:
        return CommandFailed(
            "rsync", code, "no space left on the disk of the receiving side, or it fails"
        )
    if code in TRANSIENT_RSYNC:
        return _ssh_error(access, errors.partition("\nrsync")[0])
    return CommandFailed("rsync", code, tail(errors))
