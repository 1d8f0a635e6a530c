"""A Linux machine that boots with systemd, cloud-init and sshd, and what can go wrong with it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from mmattn.remote.ssh import make_key
from tests.remote.machines.image import USER
from tests.remote.machines.metadata import ADDRESS as METADATA_ADDRESS
from tests.remote.machines.metadata import Metadata
from tests.remote.machines.network import Network, cgroups, ip, remove_cgroup

DISK = "4g"
_MEMORY_FILES = (  # of the first and the second version of control groups
    ("memory.usage_in_bytes", "memory.limit_in_bytes"),
    ("memory.current", "memory.max"),
)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FOLDERS = ("seed", "disk", "root")
# The mounts and the network are of this process alone: when it dies, in whatever way, they go too.
_BOOT = f"""
set -e
touch console
for group in $GROUPS; do mkdir -p "$group"; echo $$ > "$group/cgroup.procs"; done
mount -t tmpfs -o size={DISK},mode=755 disk disk
mkdir disk/upper disk/work
mkdir -p disk/upper/var/lib/cloud/seed
cp -r seed disk/upper/var/lib/cloud/seed/nocloud
mount -t overlay -o "lowerdir=$IMAGE,upperdir=disk/upper,workdir=disk/work" root root
mkdir -p /run/systemd/nspawn
mountpoint -q /run/systemd/nspawn || mount -t tmpfs nspawn /run/systemd/nspawn
ip link set lo up
ip address add {METADATA_ADDRESS}/32 dev lo
ip link add eth0 address "$LINK" type veth peer name "$DOOR" netns "$HOST"
ip address add "$ADDRESS/32" dev eth0
test -z "$PRIVATE" || ip address add "$PRIVATE/32" dev eth0
ip link set eth0 up
echo ready
exec >console 2>&1
$TIED unshare --pid --fork --kill-child --mount-proc \\
    systemd-nspawn --quiet --boot --directory=root --machine="$DOOR" --register=no --keep-unit \\
    --resolv-conf=off --network-namespace-path=/proc/self/ns/net "$@" || true
ip link del eth0
"""
_TIED = ("setpriv", "--pdeathsig=KILL")  # ends with the process, or thread, that started it


class Guest:
    """A machine that is on from its construction until it powers off or is deleted.

    Its disk, all of it, is a file system of 4 GB in memory. It reaches those addresses alone that
    `admit` names, and others meet silence.

    Args:
        network: where it is plugged in.
        address: from `network.new_address()`.
        image: its root file system, read only.
        user_data: for cloud-init.
        public_key: who may log in, as in authorized_keys.
        wheelhouse: folder seen at /wheelhouse.
        private: its address for other guests, from `network.new_private()`.
    """

    user = USER
    home = f"/home/{USER}"

    def __init__(
        self,
        network: Network,
        address: str,
        image: Path,
        user_data: bytes,
        public_key: str,
        wheelhouse: Path | None = None,
        private: str = "",
    ):
        self.address, self.private, self._network = address, private, network
        self._admitted: set[str] = set()
        self._deleted = False
        door = network.door(address)
        self._groups = [root / door for root in cgroups()]
        self._folder = network.folder / door
        for name in _FOLDERS:
            (self._folder / name).mkdir(parents=True)
        about = {"instance-id": door, "local-hostname": door, "public-keys": [public_key]}
        (self._folder / "seed/meta-data").write_text(json.dumps(about))
        (self._folder / "seed/user-data").write_bytes(user_data)
        binds = [f"--bind-ro={wheelhouse}:/wheelhouse"] if wheelhouse else []
        self._process = self._boot(image, door, binds)
        network.connect(address, private)
        self.metadata = Metadata(self._process.pid)
        self.metadata.pages["/latest/meta-data/public-ipv4"] = address

    def _boot(self, image: Path, door: str, binds: list[str]) -> subprocess.Popen:
        """Returns the process by whose end the machine is off."""
        process = subprocess.Popen(
            [*_TIED, "unshare", "--mount", "--net", "sh", "-c", _BOOT, "boot", *binds],
            env={
                "PATH": _PATH,
                "TIED": " ".join(_TIED),
                "GROUPS": " ".join(map(str, self._groups)),
                "IMAGE": str(image),
                "LINK": self._network.link_address(self.address),
                "DOOR": door,
                "HOST": str(os.getpid()),
                "ADDRESS": self.address,
                "PRIVATE": self.private,
            },
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process.stdout, process.stderr:
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"{door}: {process.stderr.read()}")
        while not _init(process.pid):
            assert process.poll() is None, self.console
            time.sleep(0.01)
        return process

    # What it is and does

    @property
    def is_on(self) -> bool:
        return self._process.poll() is None

    @property
    def console(self) -> str:
        """What it has printed since its start."""
        return (self._folder / "console").read_text(errors="replace")

    @property
    def root(self) -> Path:
        """Its files, seen from here; they are there while it is on."""
        return Path(f"/proc/{_init(self._process.pid)}/root")

    def wait_until_ready(self, timeout: float = 60) -> None:
        """Until cloud-init has finished and sshd answers (to those who are admitted)."""
        deadline = time.monotonic() + timeout
        while not (self.root / "var/lib/cloud/data/result.json").exists():
            assert self.is_on and time.monotonic() < deadline, self.console[-4000:]
            time.sleep(0.05)

    def wait_until_off(self, timeout: float = 60) -> None:
        self._process.wait(timeout)

    def run(self, command: str, check: bool = True, timeout: float = 60) -> str:
        """Run a shell command as root, past ssh and the limits of `leave_memory`; its output."""
        done = subprocess.run(
            ["nsenter", f"--target={_init(self._process.pid)}", "--all", "sh", "-c", command],
            env={"PATH": _PATH, "HOME": "/root", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def admit(self, networks: set[str]) -> None:
        """The security group: packets of these networks, and of no others, are answered."""
        networks = networks - {f"{self.private}/32"}
        changes = [
            f"route add {one} dev eth0" + (f" src {self.private}" * self._network.is_private(one))
            for one in networks - self._admitted
        ]
        changes += [f"route del {one} dev eth0" for one in self._admitted - networks]
        if changes:
            ip(*changes, within=self._process.pid)
        self._admitted = set(networks)

    # What goes wrong

    def power_off(self) -> None:
        """Off at once, nothing saved."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def shut_down(self, timeout: float) -> None:
        """Press its power button; after the timeout its power is cut."""
        self._signal(signal.SIGTERM)
        try:
            self.wait_until_off(timeout)
        except subprocess.TimeoutExpired:
            self.power_off()

    def kill_ssh_connections(self) -> None:
        """All connections break; new ones are accepted."""
        self.run("pkill -KILL -f '^sshd: [^/]'", check=False)

    def stop_sshd(self) -> None:
        """New connections are refused and those that are there break."""
        self.run("systemctl stop ssh")
        self.kill_ssh_connections()

    def start_sshd(self) -> None:
        self.run("systemctl start ssh")

    def freeze_sshd(self) -> None:
        """Connections stay and new ones are made, but nothing is said on either."""
        self.run("pkill -STOP -x sshd")

    def thaw_sshd(self) -> None:
        self.run("pkill -CONT -x sshd")

    def cut_link(self) -> None:
        """A black hole: what is sent either way vanishes."""
        self._network.disconnect(self.address)

    def mend_link(self) -> None:
        self._network.connect(self.address, self.private)

    def fill_disk(self) -> None:
        """No byte more fits on the disk."""
        self._resize_disk('$(df --output=used --block-size=1 "$1" | tail -1)')

    def free_disk(self) -> None:
        self._resize_disk(DISK)

    def leave_memory(self, room: int) -> None:
        """So many bytes more may be used; then the kernel kills the process that it likes least."""
        for group in self._groups:
            for used, limit in _MEMORY_FILES:
                if (group / limit).exists():
                    most = int((group / used).read_text()) + room
                    (group / limit).write_text(str(most))
                    return
        raise NotImplementedError("this system has no memory control groups")

    def delete(self) -> None:
        """Cut its power and remove its disk; what it has printed stays."""
        if self._deleted:
            return
        self._deleted = True
        self.power_off()
        self.metadata.close()
        self._network.forget(self.address)
        for group in self._groups:
            remove_cgroup(group)
        for name in _FOLDERS:
            shutil.rmtree(self._folder / name)

    def _signal(self, number: int) -> None:
        if process := _nspawn(self._process.pid):  # else it is off
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def _resize_disk(self, size: str) -> None:
        # Again if something was written between asking for the size and setting it.
        resize = f'for _ in 1 2 3 4 5; do mount -o "remount,size={size}" "$1" && exit; done; exit 1'
        enter = ("nsenter", f"--target={self._process.pid}", "--mount")
        command = [*enter, "sh", "-c", resize, "resize", self._folder / "disk"]
        subprocess.run(command, check=True, capture_output=True)


class HandMade(Guest):
    """A machine outside of EC2, with keys made here; it admits the caller and is ready.

    Args:
        folder: for the keys.
    """

    def __init__(
        self,
        network: Network,
        address: str,
        image: Path,
        folder: Path,
        wheelhouse: Path | None,
    ):
        self.key_file, host = folder / "client", folder / "host"
        public_key, public = make_key(self.key_file), make_key(host)
        self.known_hosts_line = f"{address} {public}\n"
        keys = {"ed25519_private": host.read_text(), "ed25519_public": public}
        user_data = "#cloud-config\n" + json.dumps({"ssh_keys": keys})
        super().__init__(network, address, image, user_data.encode(), public_key, wheelhouse)
        try:
            self.admit({f"{network.caller}/32"})
            self.wait_until_ready()
        except BaseException:
            self.delete()
            raise

    def login(self, **options: object) -> list[str]:
        """How OpenSSH logs in; the command follows."""
        known_hosts = self.key_file.with_name("known_hosts")
        known_hosts.write_text(self.known_hosts_line)
        options |= {
            "IdentityFile": self.key_file,
            "UserKnownHostsFile": known_hosts,
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": 5,
        }
        words = (f"-o{key}={value}" for key, value in options.items())
        return ["ssh", "-F", "none", *words, f"{self.user}@{self.address}"]

    def ssh(self, *command: str, check: bool = True) -> str:
        """Run a command by OpenSSH; returns its output."""
        done = subprocess.run(
            [*self.login(), *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout


def reach(address: str, timeout: float = 1) -> str:
    """Knock on port 22: what the ssh server says first, or "refused" or "silent"."""
    try:
        with socket.create_connection((address, 22), timeout) as connection:
            return connection.recv(100).decode().strip()
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "silent"


def _nspawn(process: int) -> int | None:
    """The process that all of a machine's die with, from the one that `_boot` returns."""
    namespace = _only_child(process)
    return namespace and _only_child(namespace)


def _init(process: int) -> int | None:
    """A machine's first process, once it is its own program."""
    nspawn = _nspawn(process)
    first = nspawn and _only_child(nspawn)
    with suppress(OSError):
        if first and Path(f"/proc/{first}/comm").read_text() == "systemd\n":
            return first
    return None


def _only_child(process: int) -> int | None:
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if len(children) == 1 else None
