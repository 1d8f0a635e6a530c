"""Finds out that another process is lost, and says so before JAX would abort this one.

Where a link is cut or a machine lost its power, connections stay silent and collectives wait.
"""

import atexit
import ctypes
import itertools
import os
import signal
import socket
import threading
import time
from typing import Any

from mmattn.console import complain, note
from mmattn.errors import LostProcess

LOST = 20.0  # seconds without a sign of life after which a process counts as lost
BEAT = 1.0
GRACE = 2.0  # seconds in which the main thread may end the process and say more
KEY = "mmattn/alive"
GONE = "process 0 ended"


class Watch:
    """Two threads: one trades signs of life through the coordinator, one ends the process.

    A call of the first may hang for good where the coordinator is out of reach.
    """

    def __init__(self, client: Any, coordinator: str, number: int, count: int):
        self._client, self._number = client, number
        host, port = coordinator.rsplit(":", 1)
        self._coordinator = host.strip("[]"), int(port)
        self._traded = now = time.monotonic()
        self._seen = {other: now for other in range(count) if other != number}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._trade, self._look)
        ]

    def start(self) -> None:
        """Begin; the end of the interpreter ends it, before JAX waits for the other processes."""
        _delay_aborts()
        for thread in self._threads:
            thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Trade no more: the others may end now."""
        self._stop.set()
        for thread in self._threads:
            thread.join(GRACE)

    def _trade(self) -> None:
        """Show this process's sign of life and note those of others that changed."""
        before: dict[str, str] = {}
        for beat in itertools.count():
            try:
                self._client.key_value_set(f"{KEY}/{self._number}", str(beat), True)
                found = dict(self._client.key_value_dir_get(KEY))
            except Exception:  # JAX has several, and each means the same
                if not self._stop.wait(GRACE):
                    _end(GONE)
                return
            self._traded = time.monotonic()
            for key in found.keys() - {f"{KEY}/{self._number}"}:
                if found[key] != before.get(key):
                    self._seen[int(key.rpartition("/")[2])] = self._traded
            before = found
            if self._stop.wait(BEAT):
                return

    def _look(self) -> None:
        """End this process when process 0 is gone or nothing was heard of another for too long."""
        while not self._stop.wait(BEAT):
            now = time.monotonic()
            if now - self._traded > GRACE and self._nobody_answers():
                _end(GONE)
            if lost := [other for other, seen in self._seen.items() if now - seen > LOST]:
                who = ", ".join(map(str, lost))
                _end(f"nothing was heard of process {who} for {LOST:g} s: it ended or is cut off")

    def _nobody_answers(self) -> bool:
        """Whether process 0's machine says that it is not there; silence says nothing."""
        try:
            socket.create_connection(self._coordinator, timeout=BEAT).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return False


def _end(why: str) -> None:
    """End this process, whose main thread may wait in C++: an exception would reach nobody."""
    message = f"{LostProcess.label}: {why}; `--resume` goes on where the run was saved"
    complain(message)
    note(message)
    os._exit(LostProcess.exit_code)


def _delay_aborts() -> None:
    """Let an abort wait for six seconds, SIGABRT's number: JAX aborts when it loses process 0.

    In that time this process ends by itself, with its reason.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = ctypes.c_int, ctypes.c_void_p
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
