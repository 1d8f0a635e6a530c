"""A machine by SSH: commands through Fabric, transfers through rsync, host keys always verified.

Nothing here holds a stream open: each command is short and under a deadline, because a peer that
goes silent would never end a stream.
"""

import json
import logging
import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import fabric
import invoke
import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from mmattn.console import progress as progress_bar
from mmattn.errors import UserError
from mmattn.files import write_text
from mmattn.remote.agent import MARKER

# Paramiko logs with a traceback what it raises as well; without a handler that would be shown.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

CONNECT_S = 10
NO_AGENT = 66  # exit code (EX_NOINPUT)
MB = 1_000_000
# rsync: protocol stream, socket and file input/output, timeouts; 255 is ssh itself.
DISK_RSYNC = 11  # error in file input or output; rsync does not always tell which
TRANSIENT_RSYNC = {10, 12, 20, 30, 35, 255}


class RemoteError(UserError):
    """Something went wrong at the cloud or on the machine."""


class Unreachable(RemoteError):
    """No connection, or a silent peer: trying again may help."""


class CommandFailed(RemoteError):
    """A command ran on the machine and failed."""

    def __init__(self, command: str, exit_code: int, output: str):
        super().__init__(f"`{command}` failed with exit code {exit_code}: {output or 'no output'}")
        self.exit_code, self.output = exit_code, output


class Access(NamedTuple):
    """How to log in: address, and what proves both sides."""

    user: str
    address: str
    port: int
    known_hosts: Path
    key: Path | None
    """The private key; None for the user's own keys and agent."""

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.user}@{self.address}" + (f":{self.port}" if self.port != 22 else "")


class _Connection(fabric.Connection):
    """Fabric's own connection trusts unknown hosts; this one knows its host beforehand."""

    def __init__(self, access: Access):
        own = access.key is None
        super().__init__(
            access.address,
            user=access.user,
            port=access.port,
            connect_timeout=CONNECT_S,
            config=fabric.Config(overrides={"load_ssh_configs": False}),
            connect_kwargs={
                "key_filename": [] if own else [str(access.key)],
                "look_for_keys": own,
                "allow_agent": own,  # another run's agent may hang or offer too many keys
                "banner_timeout": CONNECT_S,
                "auth_timeout": CONNECT_S,
                "channel_timeout": CONNECT_S,
            },
        )
        self.client.set_missing_host_key_policy(paramiko.RejectPolicy())
        self.client.load_host_keys(str(access.known_hosts))


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
        self.folder, self.base, self.rank = folder, base, rank
        self._on_silence = on_silence
        self._connection: _Connection | None = None
        self._use(access)

    def _use(self, access: Access) -> None:
        self.access = access
        write_text(self.ssh_config, ssh_config(access))

    @property
    def ssh_config(self) -> Path:
        """OpenSSH's settings for this machine, under the host name `instance`."""
        return self.folder / ("ssh_config" if self.rank == 0 else f"ssh_config-{self.rank}")

    def remote(self, path: str = "") -> str:
        """A path in the run's folder, as rsync names it."""
        return f"instance:{self.base}/{path}"

    def run(self, command: str, timeout: float = 30) -> str:
        """Run a shell command in the login user's home and return what it printed.

        Raises:
            Unreachable: no connection, or no end within `timeout` seconds.
            CommandFailed: its exit code is not 0.
            RemoteError: wrong host key, no permission to log in.
        """
        begin = time.monotonic()
        try:
            done = self._connected().run(
                command, hide=True, warn=True, timeout=timeout, in_stream=False, encoding="utf-8"
            )
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise self._lost(begin, timeout, _why(error)) from error
        except (invoke.exceptions.CommandTimedOut, invoke.exceptions.ThreadException) as error:
            raise self._lost(begin, timeout) from error
        if done.exited == -1:  # paramiko's word for a channel that closed without a status
            raise self._lost(begin, timeout)
        if done.exited:
            raise CommandFailed(command, done.exited, _tail(done.stderr or done.stdout))
        return done.stdout

    def _lost(self, begin: float, timeout: float, why: str = "") -> Unreachable:
        """Close the connection; what to raise. After the timeout it may have ended in any way."""
        self.close()
        if time.monotonic() >= begin + timeout:
            return Unreachable(f"{self.access.name} is silent for {timeout:g} s")
        return Unreachable(f"{self.access.name}: connection lost{why}")

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
                f"{self.access.name}: expected JSON from {program}, got {_tail(what)!r}"
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
                raise _rsync_error(self.access.name, process.returncode, complaints.read())

    def shell(self) -> None:
        """Replace this process by an interactive shell on the machine."""
        self._connected()  # lets this computer in, should its address have changed
        self.close()
        os.execvp("ssh", ["ssh", "-F", str(self.ssh_config), "-t", "instance"])

    def close(self) -> None:
        """End the connection; the next command opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> _Connection:
        if self._connection is not None and not self._connection.is_connected:
            self.close()  # Fabric would open it again by itself, past the handling of failures here
        if self._connection is None:
            try:
                self._connection = self._connect()
            except Unreachable:
                access = None
                with suppress(UserError):  # offline, say; that it is unreachable remains the news
                    access = self._on_silence()
                if access is None:
                    raise
                self._use(access)
                self._connection = self._connect()
        return self._connection

    def _connect(self) -> _Connection:
        access = self.access
        try:
            connection = _Connection(access)
        except paramiko.hostkeys.InvalidHostKey as error:
            raise RemoteError(f"{access.known_hosts}: a line is broken: {error}") from error
        try:
            connection.open()
        except (OSError, EOFError, paramiko.SSHException) as error:
            connection.close()
            raise _connect_error(access, error) from error
        return connection


def ssh_config(access: Access) -> str:
    """OpenSSH's settings: only this host's key, only this key, a dead peer found in 15 s.

    Raises:
        UserError: a path has a quote or a line break, which the file cannot hold.
    """
    for path in filter(None, (access.known_hosts, access.key)):
        if re.search(r'["\n]', str(path)):
            raise UserError(f"{path}: expected a path without quotes and line breaks")
    lines = [
        "Host instance",
        f"HostName {access.address}",
        f"Port {access.port}",
        f"User {access.user}",
        f'UserKnownHostsFile "{access.known_hosts.resolve()}"',
        "StrictHostKeyChecking yes",
        "BatchMode yes",
        f"ConnectTimeout {CONNECT_S}",
        "ServerAliveInterval 5",
        "ServerAliveCountMax 3",
        "ForwardAgent no",
        "LogLevel ERROR",
    ]
    if access.key is not None:
        lines += [f'IdentityFile "{access.key.resolve()}"', "IdentitiesOnly yes"]
    return "\n    ".join(lines) + "\n"


def check_tools() -> None:
    """UserError if the programs for transfers are missing or too old."""
    for tool in ("ssh", "rsync"):
        if shutil.which(tool) is None:
            raise UserError(f"{tool} is not installed here: apt-get install openssh-client rsync")
    about = subprocess.run(["rsync", "--version"], capture_output=True, text=True).stdout
    found = re.match(r"rsync +version v?(\d+)\.(\d+)", about)
    if not found or (int(found[1]), int(found[2])) < (3, 1):
        raise UserError(f"rsync: expected version 3.1 or newer, found {about.splitlines()[:1]}")


def make_key(path: Path) -> str:
    """An ed25519 key pair without a passphrase, made once; returns the public half."""
    public = path.with_name(f"{path.name}.pub")
    if not path.exists():
        key = Ed25519PrivateKey.generate()
        line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        write_text(public, f"{line.decode()} mmattn\n")
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as made:  # for us alone
            made.write(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        os.replace(made.name, path)  # last: with it, the pair is complete
    return public.read_text().strip()


def _connect_error(access: Access, error: Exception) -> RemoteError:
    name = access.name
    if isinstance(error, paramiko.BadHostKeyException):
        return RemoteError(
            f"{name} shows another host key ({error.key.get_base64()[-12:]}) than the one in "
            f"{access.known_hosts}: it is not the machine it was, or someone sits between; "
            "nothing was sent"
        )
    if isinstance(error, paramiko.AuthenticationException):
        key = access.key or "your own keys and agent"
        return NotLoggedIn(f"{name} refuses to let {key} log in: {error}")
    if "not found in known_hosts" in str(error):
        return RemoteError(
            f"the host key of {name} is not in {access.known_hosts}: log in once with ssh, compare "
            "the key with the machine's own, and try again"
        )
    if isinstance(error, (TimeoutError, socket.timeout)):
        return Unreachable(f"{name} does not answer within {CONNECT_S} s")
    return Unreachable(f"{name}: no connection{_why(error)}")


def _why(error: Exception) -> str:
    """`: Connection refused`, or nothing; without numbers and addresses."""
    if isinstance(error, paramiko.ssh_exception.NoValidConnectionsError):
        error = next(iter(error.errors.values()))
    text = getattr(error, "strerror", None) or str(error)
    return f": {text}" if text else ""


class NotLoggedIn(RemoteError):
    """The machine does not accept the key (yet: while it boots, it may not have it)."""


def _show_rsync(process: subprocess.Popen, advance: Callable[[int], None]) -> None:
    """Advance a bar of megabytes by rsync's own progress lines, which end in carriage returns."""
    shown = 0
    for line in process.stdout:  # universal newlines: a carriage return ends a line too
        sent = re.match(r"\s*([\d,]+)\s+\d+%", line)
        if sent:
            done = int(sent[1].replace(",", "")) // MB
            advance(max(0, done - shown))
            shown = max(shown, done)


def _rsync_error(name: str, code: int, errors: str) -> RemoteError:
    if "Host key verification failed" in errors or "HOST IDENTIFICATION HAS CHANGED" in errors:
        return RemoteError(f"{name}: the host key is not the known one; nothing was sent")
    if "is your shell clean" in errors:
        return RemoteError(
            f"{name}: the login shell prints text where rsync speaks: make its .bashrc silent when "
            "the shell is not interactive"
        )
    if "No space left on device" in errors or code == DISK_RSYNC:
        return CommandFailed(
            "rsync", code, "no space left on the disk of the receiving side, or it fails"
        )
    if code in TRANSIENT_RSYNC:
        return Unreachable(f"{name}: the transfer was cut: {_tail(errors)}")
    return CommandFailed("rsync", code, _tail(errors))


def _tail(text: str, length: int = 400) -> str:
    return text.strip()[-length:]
