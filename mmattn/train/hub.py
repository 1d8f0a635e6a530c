"""The link between processes that train together: JSON values, heartbeats, JAX's own messages.

Process 0 serves one TCP port, and every process, including process 0, keeps a connection to it. JAX
aborts a process whose connection to JAX's coordinator closes. Therefore these connections go
through the same port and stay open at this end when process 0 is lost, so that this process can
report the loss and exit.
"""

import asyncio
import json
import math
import os
import queue
import socket
import time
from asyncio import StreamReader, StreamWriter
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import Any

from mmattn.console import complain, note
from mmattn.errors import LostProcess, UserError

LOST = 20.0  # seconds without a byte after which a process counts as lost
BEAT = 1.0
PARENT = "MMATTN_PARENT"  # environment variable of the launcher; a process ends with it
LOOPBACK = "127.0.0.1"
BYE, JAX = b"bye", b"JAX\n"
Place = tuple[str, int]


class Link:
    """The connection of process `number` of `count` to the others, through process 0's `place`.

    If another process, or the `mmattn launch` that started them, is lost, it ends this process.
    """

    def __init__(self, place: Place, number: int, count: int):
        self._place, self._number, self._count = place, number, count
        self._hub: _Hub | None = None
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._left = False
        self._loop = asyncio.new_event_loop()
        Thread(target=self._loop.run_forever, daemon=True).start()
        Thread(target=self._outlive, args=(os.environ.get(PARENT),), daemon=True).start()

    def connect(self, bind: Place, timeout: float) -> str:
        """Serve at `bind` if this is process 0, and connect; returns this machine's address.

        Raises:
            OSError: process 0 cannot listen at `bind`, or does not answer within `timeout` seconds.
        """
        if self._number == 0:
            self._hub = _Hub(self._count)
            self._do(asyncio.start_server(self._hub.attend, *bind)).result()
        reader, self._writer = self._do(_reach(self._place, timeout)).result()
        self._do(self._write(_line([self._number, self._count]))).result()
        self._do(_show_life(self._writer))
        self._do(_hear(reader, 0, self._take)).add_done_callback(
            lambda end: self._end(end.result())
        )
        return self._writer.get_extra_info("sockname")[0]

    def coordinator(self) -> str:
        """The address of JAX's coordinator on this machine; process 0 must serve it at once."""
        if self._hub:
            place = self._hub.coordinator = LOOPBACK, free_port()
        else:
            forward = partial(_tunnel, place=self._place, greeting=JAX)
            server = self._do(asyncio.start_server(forward, LOOPBACK)).result()
            place = server.sockets[0].getsockname()
        return "{}:{}".format(*place)

    def exchange(self, value: Any, timeout: float | None = None) -> list:
        """Every process's JSON value, in process order; all processes must call it.

        Raises:
            TimeoutError: some have not called it within `timeout` seconds.
            UserError: process 0 does not expect this process.
        """
        self._do(self._write(_line(value))).result()
        end = time.monotonic() + (math.inf if timeout is None else timeout)
        while True:
            try:
                answer = self._answers.get(timeout=BEAT)  # Ctrl-C may come before the wait
                break
            except queue.Empty:
                if time.monotonic() > end:
                    raise TimeoutError from None
        if isinstance(answer, str):
            raise UserError(answer)
        return answer

    def leave(self) -> None:
        """Tell the others that this process ends normally."""
        self._left = True
        self._do(self._write(BYE)).result()

    def _do(self, work: Coroutine) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _write(self, line: bytes) -> None:
        self._writer.write(line)
        with suppress(OSError):  # process 0 ended, which `_hear` reports
            await self._writer.drain()

    def _take(self, line: bytes) -> None:
        message = json.loads(line)
        if isinstance(message, dict):
            self._end(message["lost"])
        self._answers.put(message)

    def _outlive(self, parent: str | None) -> None:
        while parent in (None, str(os.getppid())):
            time.sleep(BEAT)
        self._end("mmattn launch ended")

    def _end(self, why: str) -> None:
        """End this process; no exception would reach a main thread that waits in C++."""
        if self._left:
            self._writer.close()
            return
        message = f"{LostProcess.label}: {why}; `--resume` continues where the run was saved"
        complain(message)
        note(message)
        os._exit(LostProcess.exit_code)


class _Hub:
    """The server in process 0 for `count` processes."""

    def __init__(self, count: int):
        self.coordinator: Place | None = None
        self._given: list[deque[bytes]] = [deque() for _ in range(count)]
        self._writers: dict[int, StreamWriter] = {}

    async def attend(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Serve a connection until it ends."""
        greeting, number, count, expected = b"", -1, 0, len(self._given)
        with suppress(OSError, ValueError, TypeError):  # from an unknown client
            greeting = await reader.readline()
            number, count = json.loads(greeting)
        if greeting == JAX:
            while self.coordinator is None:
                await asyncio.sleep(BEAT / 10)
            await _tunnel(reader, writer, self.coordinator)
            return
        if count != expected or number not in range(count) or number in self._writers:
            refusal = f"process {number}: process 0 expects {expected} processes, each once"
            writer.write(_line(refusal))
            await reader.read()
            writer.close()
            return
        self._writers[number] = writer
        life = asyncio.create_task(_show_life(writer))
        why = await _hear(reader, number, lambda line: self._take(number, line))
        life.cancel()
        writer.close()
        if self._writers.pop(number, None):
            self._tell(_line({"lost": why}))

    def _take(self, number: int, line: bytes) -> None:
        if line == BYE:
            self._writers.pop(number, None)
        else:
            self._given[number].append(line)
        if all(self._given):
            self._tell(b"[%s]\n" % b", ".join(values.popleft() for values in self._given))

    def _tell(self, line: bytes) -> None:
        for writer in self._writers.values():
            writer.write(line)


async def _hear(reader: StreamReader, number: int, take: Callable[[bytes], None]) -> str:
    """Take the lines of a process until its connection ends; returns the reason."""
    parts: list[bytes] = []
    try:
        while data := await asyncio.wait_for(reader.read(2**20), LOST):
            for index, part in enumerate(data.split(b"\n")):
                if index and (line := b"".join(parts)):  # an empty line is a heartbeat
                    take(line)
                parts = [part] if index else [*parts, part]
    except TimeoutError:
        return f"process {number} sent nothing for {LOST:g} s: it ended or is unreachable"
    except OSError:
        pass
    return f"process {number} ended"


async def _show_life(writer: StreamWriter) -> None:
    while not writer.is_closing():
        writer.write(b"\n")
        await asyncio.sleep(BEAT)


async def _reach(place: Place, timeout: float) -> tuple[StreamReader, StreamWriter]:
    """Connect to a place where perhaps nothing listens yet; OSError after `timeout` seconds."""
    clock = asyncio.get_running_loop().time
    end = clock() + timeout
    while True:
        try:
            return await asyncio.wait_for(asyncio.open_connection(*place), end - clock())
        except OSError:
            if clock() + BEAT > end:
                raise
        await asyncio.sleep(BEAT / 10)


async def _tunnel(
    reader: StreamReader, writer: StreamWriter, place: Place, greeting: bytes = b""
) -> None:
    """Connect a client to the server at a place; do not forward the server's close."""
    with suppress(OSError):
        from_server, to_server = await _reach(place, LOST)
        to_server.write(greeting)
        back = asyncio.create_task(_copy(from_server, writer))
        back.add_done_callback(lambda _: to_server.close())
        await _copy(reader, to_server)
        to_server.close()
    if reader.at_eof():
        writer.close()


async def _copy(source: StreamReader, target: StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(2**16):
            target.write(data)
            await target.drain()


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def free_port() -> int:
    """A free port on the loopback interface."""
    with socket.create_server((LOOPBACK, 0)) as server:
        return server.getsockname()[1]
