"""Boots a machine for each instance that the API launches, and ends either with the other.

A disk that outlives its machine, with the homes of its users, can be attached to another.
"""

import json
import os
import shutil
import stat
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.remote.machines.cloud_api import GONE, CloudApi, Launched
from tests.remote.machines.guest import Guest
from tests.remote.machines.network import Network

INTERVAL_S = 0.2
SHUTDOWN_S = 5  # for a machine whose instance is terminated


class Hypervisor:
    """Watches the API, in a thread, until closed.

    Attributes:
        guests: machines by instance id, also those that have ended.
        environment: by which programs find the API and their own address.
    """

    def __init__(self, api: CloudApi, network: Network, image: Path, wheelhouse: Path | None):
        self.api, self.network = api, network
        self._image, self._wheelhouse = image, wheelhouse
        api.new_address, api.new_private = network.new_address, network.new_private
        self._service = api.serve(network.caller)
        self.guests: dict[str, Guest] = {}
        self._interruptions: list[threading.Timer] = []
        self._boot_disks: dict[str, int] = {}  # the homes on them, which are held open
        self._loops: dict[str, str] = {}
        self._ends = threading.Event()
        self._addresses = _AddressService(network)
        self.environment = {**api.environment, "MMATTN_IP_SERVICE": self._addresses.url}
        self._thread = threading.Thread(target=self._watch, name="hypervisor")
        self._thread.start()

    def guest(self, instance_id: str, timeout: float = 30) -> Guest:
        """The machine of an instance, once it is switched on."""
        deadline = time.monotonic() + timeout
        while instance_id not in self.guests:
            assert self._thread.is_alive() and time.monotonic() < deadline, instance_id
            time.sleep(0.02)
        return self.guests[instance_id]

    def interrupt_spot(self, instance_id: str, notice_s: float = 120) -> None:
        """Take a machine away, with notice."""
        self.guest(instance_id).metadata.announce_interruption(notice_s)
        reason = "Server.SpotInstanceTermination"
        timer = threading.Timer(notice_s, self.api.end, (instance_id, reason))
        timer.start()
        self._interruptions.append(timer)

    def close(self) -> None:
        """End all machines at once."""
        self._ends.set()
        self._thread.join()
        for homes in self._boot_disks.values():
            os.close(homes)
        for loop in self._loops.values():
            subprocess.run(["losetup", "--detach", loop], check=True)
        for timer in self._interruptions:
            timer.cancel()
        self._addresses.close()

    def _watch(self) -> None:
        try:
            while not self._ends.is_set():
                for instance in self.api.launched():
                    self._attend(instance)
                for disk, (instance_id, device) in self.api.attached().items():
                    self._attend_disk(disk, self.guests.get(instance_id), device)
                self.api.changed.wait(INTERVAL_S)
                self.api.changed.clear()
        finally:
            for guest in self.guests.values():
                guest.delete()

    def _attend(self, instance: Launched) -> None:
        guest = self.guests.get(instance.id)
        if instance.state in GONE:
            if guest:
                guest.shut_down(SHUTDOWN_S)
                guest.delete()
        elif guest is None:
            guest = Guest(
                self.network,
                instance.address,
                self._image,
                instance.user_data,
                instance.public_key,
                self._wheelhouse,
                instance.private,
            )
            guest.metadata.pages["/latest/meta-data/instance-id"] = instance.id
            guest.admit(instance.admitted)
            if instance.profile:
                self._permit(guest)
            self.guests[instance.id] = guest
        elif guest.is_on:
            guest.admit(instance.admitted)
        elif instance.state == "running":
            self.api.end(
                instance.id, "Client.InstanceInitiatedShutdown", stop=not instance.ends_when_off
            )

    def _permit(self, guest: Guest) -> None:
        """Credentials of an instance profile, and the address of the API instead of AWS's."""
        keys = {"AccessKeyId": "ASIAMACHINE", "SecretAccessKey": "x", "Token": "x"}
        about = {"Code": "Success", "Expiration": "2099-01-01T00:00:00Z", **keys}
        folder = "/latest/meta-data/iam/security-credentials/"
        guest.metadata.pages |= {folder: "role", f"{folder}role": json.dumps(about)}
        config = guest.root / "etc/skel/.aws/config"
        config.parent.mkdir()
        config.write_text(f"[default]\nendpoint_url = {self._service}\n")

    def _attend_disk(self, disk: str, guest: Guest | None, device: str) -> None:
        if guest is None or not guest.is_on:
            return
        if device == "/dev/sdf":
            if disk not in self._loops:
                self._loops[disk] = self._plug_in(disk, guest)
        elif disk not in self._boot_disks:
            self._boot_disks[disk] = os.open(guest.root / "home", os.O_PATH)

    def _plug_in(self, disk: str, guest: Guest) -> str:
        """Make a block device of what is left of a disk, where EC2's have theirs."""
        folder = self.network.folder / disk
        shutil.copytree(
            f"/proc/self/fd/{self._boot_disks[disk]}", folder / "home", symlinks=True,
            ignore=shutil.ignore_patterns("venv"),
        )  # fmt: skip
        for path in (folder / "home").rglob("*"):
            os.chown(path, 1000, 1000, follow_symlinks=False)
        image = folder.with_suffix(".image")
        with open(image, "wb") as file:
            file.truncate(200_000_000)
        made = ["mke2fs", "-q", "-t", "ext4", "-d", str(folder), str(image)]
        subprocess.run(made, check=True, capture_output=True)
        attach = ["losetup", "--find", "--show", "--read-only", str(image)]
        loop = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
        name = f"nvme-Amazon_Elastic_Block_Store_{disk.replace('-', '')}-part1"
        node = guest.root / "dev/disk/by-id" / name
        node.parent.mkdir(parents=True, exist_ok=True)
        os.mknod(node, stat.S_IFBLK | 0o600, os.stat(loop).st_rdev)
        return loop


class _AddressService:
    """Tells the caller its address, as https://checkip.amazonaws.com does."""

    def __init__(self, network: Network):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                text = f"{network.caller}\n".encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
