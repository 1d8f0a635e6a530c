"""What an instance can ask about itself: EC2's metadata service, version 2."""

import ctypes
import json
import os
import secrets
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ADDRESS = "169.254.169.254"
_NOTICE = "/latest/meta-data/spot/instance-action"


class Metadata:
    """Serves one guest, on its own loopback, until closed.

    Args:
        process: any in the guest's network.
    """

    def __init__(self, process: int):
        self.pages: dict[str, str] = {}
        self._server = ThreadingHTTPServer((ADDRESS, 80), _Handler, bind_and_activate=False)
        self._server.daemon_threads = True
        self._server.socket.close()
        self._server.socket = _socket_within(process)
        self._server.pages, self._server.token = self.pages, secrets.token_hex()
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def announce_interruption(self, seconds: float) -> None:
        """The notice that a spot machine gets before it is taken away."""
        end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
        self.pages[_NOTICE] = json.dumps({"action": "terminate", "time": end})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_PUT(self):
        lifetime = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        known = self.path == "/latest/api/token"
        self._answer(200 if known and lifetime.isdigit() else 400, self.server.token)

    def do_GET(self):
        if self.headers.get("X-aws-ec2-metadata-token") != self.server.token:
            self._answer(401)
        elif self.path in self.server.pages:
            self._answer(200, self.server.pages[self.path])
        else:
            self._answer(404)

    def _answer(self, status: int, text: str = "") -> None:
        text = text if status == 200 else ""
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


def _socket_within(process: int) -> socket.socket:
    """A listening socket in the network of another process; a socket stays where it was made."""
    made = []

    def make():  # in a thread of its own, which alone changes its network and then ends
        here = os.open(f"/proc/{process}/ns/net", os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(here, 0):
                raise OSError(ctypes.get_errno(), f"setns to the network of process {process}")
        finally:
            os.close(here)
        made.append(socket.create_server((ADDRESS, 80)))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]
