"""Boots a machine for each instance that the API launches, and ends either with the other."""

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
        self.guests: dict[str, Guest] = {}
        self._interruptions: list[threading.Timer] = []
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
        for timer in self._interruptions:
            timer.cancel()
        self._addresses.close()

    def _watch(self) -> None:
        try:
            while not self._ends.is_set():
                for instance in self.api.launched():
                    self._attend(instance)
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
            self.guests[instance.id] = guest
        elif guest.is_on:
            guest.admit(instance.admitted)
        elif instance.state == "running":
            self.api.end(
                instance.id, "Client.InstanceInitiatedShutdown", stop=not instance.ends_when_off
            )


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
