"""The line between processes that train together: JSON values, signs of life, JAX's own messages.

Process 0 serves one TCP port, and each process, itself too, holds a connection to it. JAX aborts a
process whose connection to JAX's coordinator closes; therefore these connections go through the
same port and stay open at this end when process 0 is lost: this process says so and ends by itself.
"""

import asyncio
import json
import os
import queue
import socket
from asyncio import StreamReader, StreamWriter
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import Any

from mmattn.console import complain, note
from mmattn.errors import LostProcess, UserError

LOST = 20.0  # seconds without a sign of life after which a process counts as lost
BEAT = 1.0
PARENT = "MMATTN_PARENT"  # the environment's name of the process that this one ends with
LOOPBACK = "127.0.0.1"
ALIVE, BYE, JAX = b"\n", b"bye\n", b"JAX\n"
LONGEST = 2**31  # bytes of a line: the split of a large corpus is one
Place = tuple[str, int]


class Link:
    """This process's connection to the others; when one of them is lost, it ends this process.

    Args:
        place: host and port of process 0.
        number: of this process.
        count: of processes.

    Attributes:
        coordinator: where JAX's coordinator is reached here; process 0 has to serve it there.
        own: this machine's address on the way to process 0, once connected.
    """

    def __init__(self, place: Place, number: int, count: int):
        self._place, self._number, self._count = place, number, count
        self.coordinator = LOOPBACK, free_port()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._left = False
        self._loop = asyncio.new_event_loop()
        Thread(target=self._loop.run_forever, daemon=True).start()

    def serve(self, bind: Place) -> None:
        """Serve the others at `bind` if this is process 0, and JAX; OSError if it cannot be."""
        attend, at = partial(_tunnel, place=self._place, greeting=JAX), self.coordinator
        if self._number == 0:
            attend, at = _Hub(self._count, self.coordinator).attend, bind
        self._do(asyncio.start_server(attend, *at, limit=LONGEST)).result()

    def connect(self, timeout: float) -> None:
        """Reach process 0; raises OSError if it does not answer for so many seconds."""
        reader, self._writer = self._do(self._connect(timeout)).result()
        self.own = self._writer.get_extra_info("sockname")[0]
        self._do(self._write(_line([self._number, self._count]))).result()
        self._do(_show_life(self._writer))
        for end in _hear(reader, 0, self._take), _outlive(int(os.environ.get(PARENT, 0))):
            self._do(end).add_done_callback(lambda done: self._end(done.result()))

    def exchange(self, value: Any, timeout: float | None = None) -> list:
        """Every process's JSON value, in their order; all have to call it.

        Raises:
            TimeoutError: some have not, for so many seconds.
            UserError: process 0 does not expect this process.
        """
        self._do(self._write(_line(value))).result()
        try:
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(answer, str):
            raise UserError(answer)
        return answer

    def leave(self) -> None:
        """Tell the others that this process ends as it should."""
        self._left = True
        self._do(self._write(BYE)).result()

    def _do(self, work: Coroutine) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _connect(self, timeout: float) -> tuple[StreamReader, StreamWriter]:
        end = self._loop.time() + timeout
        while True:
            try:
                connecting = asyncio.open_connection(*self._place, limit=LONGEST)
                return await asyncio.wait_for(connecting, end - self._loop.time())
            except OSError:
                if self._loop.time() + BEAT > end:
                    raise
            await asyncio.sleep(BEAT / 10)

    async def _write(self, line: bytes) -> None:
        self._writer.write(line)
        with suppress(OSError):  # the end of process 0, of which `_hear` tells
            await self._writer.drain()

    def _take(self, line: bytes) -> None:
        message = json.loads(line)
        if isinstance(message, dict):
            self._end(message["lost"])
        self._answers.put(message)

    def _end(self, why: str) -> None:
        """End this process, whose main thread may wait in C++: an exception would not reach it."""
        if self._left:
            self._writer.close()
        else:
            message = f"{LostProcess.label}: {why}; `--resume` continues where the run was saved"
            complain(message)
            note(message)
            os._exit(LostProcess.exit_code)


class _Hub:
    """What process 0 serves to so many processes; JAX's coordinator is at a place of its own."""

    def __init__(self, count: int, coordinator: Place):
        self._coordinator = coordinator
        self._given: list[deque[bytes]] = [deque() for _ in range(count)]
        self._writers: dict[int, StreamWriter] = {}

    async def attend(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Serve a connection until it ends."""
        greeting, count = await reader.readline(), len(self._given)
        if greeting == JAX:
            await _tunnel(reader, writer, self._coordinator)
            return
        try:
            number, expected = json.loads(greeting)
        except (ValueError, TypeError):  # a stranger
            writer.close()
            return
        if expected != count or number not in range(count) or number in self._writers:
            writer.write(_line(f"process {number}: process 0 expects {count} processes, each once"))
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
            self._given[number].append(line.rstrip())
        if all(self._given):
            self._tell(b"[%s]\n" % b", ".join(values.popleft() for values in self._given))

    def _tell(self, line: bytes) -> None:
        for writer in self._writers.values():
            writer.write(line)


async def _hear(reader: StreamReader, number: int, take: Callable[[bytes], None]) -> str:
    """Take the lines of a process until there are no more; returns what happened to it."""
    try:
        while (line := await asyncio.wait_for(reader.readline(), LOST)).endswith(b"\n"):
            if line != ALIVE:
                take(line)
    except TimeoutError:
        return f"nothing was heard of process {number} for {LOST:g} s: it ended or is cut off"
    except OSError:
        pass
    return f"process {number} ended"


async def _show_life(writer: StreamWriter) -> None:
    while not writer.is_closing():
        writer.write(ALIVE)
        await asyncio.sleep(BEAT)


async def _outlive(parent: int) -> str:
    while parent in (0, os.getppid()):
        await asyncio.sleep(BEAT)
    return "mmattn launch ended"


async def _tunnel(
    reader: StreamReader, writer: StreamWriter, place: Place, greeting: bytes = b""
) -> None:
    """Connect a client to the server at a place; the server's end is not passed on."""
    with suppress(OSError):
        from_server, to_server = await asyncio.open_connection(*place)
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
    """A port of the loopback at which nothing listens now."""
    with socket.create_server((LOOPBACK, 0)) as server:
        return server.getsockname()[1]
