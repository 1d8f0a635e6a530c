"""The network between the caller and the guests, and whose packets get through."""

import fcntl
import ipaddress
import itertools
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

STATE = Path("/var/tmp/mmattn-test")
_SLOTS = 100
_CGROUPS = ("systemd", "unified", "memory", ".")


class Network:
    """198.18.<slot>.0/24 (from the block for benchmarks), of this process alone.

    The caller has one of two addresses in it, .1 or .2; guests have .10 and on. A packet to an
    address without a guest vanishes, as on the Internet: nothing answers that it is unreachable.
    Guests reach each other at private addresses of 198.19.<slot>.0/24, through this computer, where
    both admit each other.
    """

    def __init__(self):
        self._slot, self._lock = _claimed_slot()
        self.name = f"mm{self._slot}"
        self.folder = STATE / self.name
        self.callers = (f"198.18.{self._slot}.1", f"198.18.{self._slot}.2")
        self.caller = self.callers[0]
        self._block = f"198.18.{self._slot}.0/24"
        self._numbers = itertools.cycle(range(10, 250))
        self._private_numbers = itertools.cycle(range(10, 250))
        self._doors: dict[str, str] = {}
        self._clean()
        self.folder.mkdir(mode=0o700)
        # Whatever is sent into `nowhere` has its own link address and so is for nobody there.
        nowhere = f"{self.name}nowhere"
        ip(
            f"link add {self.name} type veth peer name {nowhere}",
            f"link set {nowhere} up",
            f"link set {self.name} arp off up",
            f"addr add {self.caller}/32 dev {self.name}",
            f"route add {self._block} dev {self.name} src {self.caller}",
        )

    def new_address(self) -> str:
        """An address for a guest; not one of the last 200."""
        return f"198.18.{self._slot}.{next(self._numbers)}"

    def new_private(self) -> str:
        """A private address for a guest."""
        return f"198.19.{self._slot}.{next(self._private_numbers)}"

    def is_private(self, network: str) -> bool:
        """Whether an address, or a network of one, is of those among guests."""
        return network.startswith(f"198.19.{self._slot}.")

    def door(self, address: str) -> str:
        """The host's end of the cable of the guest at this address."""
        return f"{self.name}-{address.rpartition('.')[2]}"

    @staticmethod
    def link_address(address: str) -> str:
        """The Ethernet address of a guest."""
        return "02:00:" + ":".join(f"{byte:02x}" for byte in ipaddress.ip_address(address).packed)

    def connect(self, address: str, private: str = "") -> None:
        """Plug a guest in: packets to its addresses go to it, and its packets come in."""
        door = self._doors[address] = self.door(address)
        ip(
            f"link set {door} up",
            # Asked by ARP, a guest that ignores the caller would be told from one that is silent.
            f"neigh replace {address} lladdr {self.link_address(address)} dev {door} nud permanent",
            f"route replace {address} dev {door} src {self.caller}",
        )
        if private:
            ip(
                f"neigh replace {private} lladdr {self.link_address(address)} dev {door} "
                "nud permanent",
                f"route replace {private} dev {door}",
            )
            for name in ("forwarding", "proxy_arp"):  # it asks by ARP for the other guests
                Path(f"/proc/sys/net/ipv4/conf/{door}/{name}").write_text("1")

    def disconnect(self, address: str) -> None:
        """Pull the plug: packets vanish both ways; connections do not notice."""
        if door := self._doors.pop(address, None):
            ip(f"link set {door} down")

    def forget(self, address: str) -> None:
        """The guest is gone: remove its cable, if the kernel has not yet."""
        self._doors.pop(address, None)
        _remove_link(self.door(address))

    def move_caller(self) -> None:
        """The caller roams: it has the other of its two addresses and no longer this one."""
        old = self.caller
        (self.caller,) = set(self.callers) - {old}
        ip(
            f"addr add {self.caller}/32 dev {self.name}",
            f"route replace {self._block} dev {self.name} src {self.caller}",
            *(
                f"route replace {address} dev {door} src {self.caller}"
                for address, door in self._doors.items()
                if Path(f"/sys/class/net/{door}").exists()  # else it is off
            ),
            f"addr del {old}/32 dev {self.name}",
        )

    def close(self) -> None:
        """Leave nothing behind."""
        self._clean()
        self._lock.close()

    def _clean(self) -> None:
        """Remove what this process, or a killed one that had the slot before, has left."""
        for link in Path("/sys/class/net").iterdir():
            if link.name == self.name or link.name.startswith(f"{self.name}-"):
                _remove_link(link.name)
        for parent in cgroups():
            for group in parent.glob(f"{self.name}-*"):
                with suppress(OSError):  # a machine that was killed a moment ago
                    remove_cgroup(group)
        shutil.rmtree(self.folder, ignore_errors=True)


def cgroups() -> list[Path]:
    """Roots of the hierarchies of control groups; a guest gets a group of its own in each."""
    roots = [Path("/sys/fs/cgroup") / name for name in _CGROUPS]
    return [root for root in roots if (root / "cgroup.procs").exists()]


def remove_cgroup(group: Path) -> None:
    """Remove a control group in which no process lives."""
    folders = [path for path in group.rglob("*") if path.is_dir()]
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        folder.rmdir()
    group.rmdir()


def ip(*lines: str, within: int | None = None) -> None:
    """Run lines of the `ip` command, in the network of the process `within` if given."""
    enter = ["nsenter", f"--target={within}", "--net"] if within else []
    done = subprocess.run(
        [*enter, "ip", "-batch", "-"], input="\n".join(lines), capture_output=True, text=True
    )
    assert done.returncode == 0, f"ip: {done.stderr}\n{lines}"


def _remove_link(name: str) -> None:
    subprocess.run(["ip", "link", "del", name], capture_output=True)  # it may be gone


def _claimed_slot():
    """A number that no other living process has, and the lock that says so."""
    STATE.mkdir(parents=True, exist_ok=True)
    for slot in range(_SLOTS):
        lock = open(STATE / f"{slot}.lock", "w")  # noqa: SIM115  held until the network is closed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return slot, lock
        except BlockingIOError:
            lock.close()
    raise RuntimeError(f"all {_SLOTS} networks of {STATE} are in use")
