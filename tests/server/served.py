"""`mmattn serve` in a process of its own, as tests use it."""

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from mmattn.run.run import Run

SMALL = 2_000_000  # bytes that a request of the shared server may have


class Server:
    """The command in a process of its own, whose temporary files are in a folder of its own."""

    def __init__(self, commands, folder: Path, *options: object):
        self.folder = folder
        words = ["-m", "mmattn", "serve", "starter", "--port", 0, *options]
        self.process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            env={**commands.environment, "TMPDIR": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = []
        for line in self.process.stdout:
            self.said.append(line)
            if "POST clips to" in line:
                self.address = urlsplit(line.split(": POST")[0]).netloc
                return
        raise AssertionError("".join(self.said))

    def ask(self, method: str, path: str, body=None, **headers: str) -> tuple[int, dict, dict]:
        """Status, JSON and headers of an answer."""
        connection = http.client.HTTPConnection(self.address, timeout=300)
        try:
            connection.request(method, path, body, headers, encode_chunked=False)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read()), dict(answer.headers)
        finally:
            connection.close()

    def predict(self, content: bytes, name: str = "clip.npz", **headers: str) -> tuple:
        return self.ask("POST", f"/predict?name={name}", content, **headers)

    def begin(self, content: bytes, length: int | None = None) -> socket.socket:
        """A connection on which so much of a clip was sent, and nothing is read yet."""
        host, _, port = self.address.partition(":")
        connection = socket.create_connection((host, int(port)), timeout=300)
        head = f"POST /predict HTTP/1.1\r\nHost: {self.address}\r\n"
        head += f"Content-Length: {length or len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)
        return connection

    def health(self) -> dict:
        return self.ask("GET", "/health")[1]

    def workers(self) -> list[int]:
        """The processes that predict."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [
            int(child)
            for child in children.split()
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]

    def signal_workers(self, number: int) -> None:
        for worker in self.workers():
            os.kill(worker, number)

    def left(self) -> list[Path]:
        """Uploads that are on the disk."""
        return [
            Path(folder, name)
            for folder, _, names in os.walk(self.folder)  # which passes what is gone meanwhile
            for name in names
            if name != "lock"
        ]

    def end(self, number: int = signal.SIGTERM) -> list[str]:
        """What it says last."""
        self.process.send_signal(number)
        said = self.process.stdout.read().splitlines()
        self.process.wait(300)
        return said

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def clip_of(run: Run, number: int) -> bytes:
    """A feature file, of four lengths, each number with content of its own."""
    frames = np.random.default_rng(number).normal(
        size=(60 + 20 * (number % 4), run.widths["audio"])
    )
    arrays = {
        "audio_features": frames.astype(np.float32),
        "audio_timestamps": 0.02 * np.arange(len(frames)),
        "extractor": json.dumps(run.extractor),
    }
    np.savez(content := io.BytesIO(), **arrays)
    return content.getvalue()


def wait_until(true: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
