"""The processes that predict: each holds the run; one that dies or takes too long is replaced."""

import asyncio
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mmattn.config import ExtractConfig
from mmattn.console import be_quiet, complain
from mmattn.errors import UserError

if TYPE_CHECKING:
    from mmattn.run.run import Run

AGAIN = 10.0  # seconds until it is tried once more to replace a process
DIED = "the process that read the clip died, and is replaced"
MEMORY = Path("/proc/self/statm")  # its sixth number: pages that this process may write


class Setup(NamedTuple):
    """What a process needs to begin."""

    run: Path
    checkpoint: str
    calibrated: bool
    media: ExtractConfig
    uploads: Path  # a folder that is removed if the server dies
    memory: float  # GB that it may take more than at its start, where the system can tell


class Answer(NamedTuple):
    """An HTTP status and a JSON document."""

    status: int
    body: bytes


def refusal(status: int, reason: str) -> Answer:
    """An answer that says why there is none."""
    return Answer(status, json.dumps({"detail": reason}).encode())


class _Job(NamedTuple):
    clip: Path
    name: str
    answer: asyncio.Future


class _Worker:
    """A process that predicts one clip at a time."""

    def __init__(self, setup: Setup):
        context = multiprocessing.get_context("spawn")  # a fork of threads and models is not safe
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, setup), daemon=True)
        self.process.start()
        theirs.close()

    async def reply(self) -> Answer:
        """What it answers next. EOFError or OSError: the process is dead."""
        loop, there = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self.connection.fileno(), there.set)
        try:
            await there.wait()
        finally:
            loop.remove_reader(self.connection.fileno())
        said = await asyncio.to_thread(self.connection.recv_bytes)  # it may stop in the middle
        return Answer(int(said[:3]), said[3:])

    def end(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.join()
        self.connection.close()


class Pool:
    """Processes that predict clips, and the places of requests that wait for them.

    about: what the processes say of the run; ready: whether all could start; up: how many are there
    now; busy: how many predict; taken: places, of which there are `places`.
    """

    def __init__(self, setup: Setup, workers: int, queue: int, seconds: float):
        """See `open_pool`."""
        self.setup, self.seconds = setup, seconds
        self.workers, self.places = workers, workers + queue
        self.up = self.busy = self.taken = 0
        self.ready = asyncio.Event()
        self.start_seconds, self.usual_seconds = 0.0, 1.0
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()

    @contextmanager
    def place(self) -> Iterator[bool]:
        """A place for a request; False if all are taken."""
        free = self.taken < self.places
        self.taken += free
        try:
            yield free
        finally:
            self.taken -= free

    @property
    def wait_seconds(self) -> int:
        """When a place may be free, as far as can be told."""
        return max(1, round(self.usual_seconds * self.taken / max(1, self.up)))

    async def predict(self, clip: Path, name: str) -> Answer:
        """The prediction of a file that the client calls by a name: as by `mmattn predict --json`,
        or why there is none. Cancelled: nobody waits for it any more."""
        job = _Job(clip, name, asyncio.get_running_loop().create_future())
        self._jobs.put_nowait(job)
        return await job.answer

    async def attend(self) -> None:
        """Keep a process at work, or another in its place. UserError: the first cannot start."""
        while True:
            begin, worker = time.monotonic(), _Worker(self.setup)
            try:
                status, said = await worker.reply()
                if status != 200:
                    raise UserError(json.loads(said)["detail"])
                self.start_seconds, self.about = time.monotonic() - begin, json.loads(said)
                self.up += 1
                if self.up == self.workers:
                    self.ready.set()
                try:
                    await self._use(worker)
                finally:
                    self.up -= 1
            except (UserError, EOFError, OSError) as error:
                reason = str(error) or "a process that was to predict died at its start"
                if not self.ready.is_set():
                    raise UserError(reason) from error
                complain(f"{reason}; another is tried in {AGAIN:g} s")
                await asyncio.sleep(AGAIN)
            finally:
                worker.end()

    async def _use(self, worker: _Worker) -> None:
        """Have it answer jobs until it must be replaced."""
        while True:
            reply = asyncio.ensure_future(worker.reply())
            given = asyncio.ensure_future(self._jobs.get())
            try:
                await asyncio.wait({reply, given}, return_when=asyncio.FIRST_COMPLETED)
                if reply.done():  # the process died though it had nothing to do
                    if given.done():
                        self._jobs.put_nowait(given.result())
                    return
                job = given.result()
                if not job.answer.cancelled() and not await self._answer(worker, reply, job):
                    return
            finally:
                given.cancel()
                reply.cancel()
                await asyncio.gather(given, reply, return_exceptions=True)

    async def _answer(self, worker: _Worker, reply: asyncio.Future, job: _Job) -> bool:
        """Whether the process can go on after a job."""
        begin = time.monotonic()
        self.busy += 1
        try:
            worker.connection.send_bytes(json.dumps([str(job.clip), job.name]).encode())
            await asyncio.wait(
                {reply, job.answer}, timeout=self.seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if job.answer.cancelled():  # let it end, unless another would be there earlier
                left = begin + self.seconds - time.monotonic()
                await asyncio.wait({reply}, timeout=min(left, self.start_seconds))
            done = reply.done()
            answer = reply.result() if done else refusal(504, f"it took over {self.seconds:g} s")
        except (EOFError, OSError):
            done, answer = False, refusal(500, DIED)
        finally:
            self.busy -= 1
        self.usual_seconds += (time.monotonic() - begin - self.usual_seconds) / 8
        if not job.answer.cancelled():
            job.answer.set_result(answer)
            if not done:
                complain(f"a prediction failed: {json.loads(answer.body)['detail']}")
        return done


@asynccontextmanager
async def open_pool(setup: Setup, workers: int, queue: int, seconds: float) -> AsyncIterator[Pool]:
    """A pool whose processes are ready; they end with the block.

    Args:
        setup: of each process.
        workers: how many there are.
        queue: requests that may wait for them.
        seconds: that a prediction may take.

    Raises:
        UserError: the run cannot be used.
    """
    pool = Pool(setup, workers, queue, seconds)
    tasks = [asyncio.ensure_future(pool.attend()) for _ in range(workers)]
    ready = asyncio.ensure_future(pool.ready.wait())
    try:
        await asyncio.wait({ready, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in filter(asyncio.Future.done, tasks):
            task.result()
        yield pool
    finally:
        for task in (ready, *tasks):
            task.cancel()
        await asyncio.gather(ready, *tasks, return_exceptions=True)


def _work(connection: Connection, setup: Setup) -> None:
    """Be a process of the pool: say what the run is, then answer one clip after another."""
    be_quiet()
    for number in (signal.SIGINT, signal.SIGTERM):  # which a whole group may get: the server ends …
        signal.signal(number, signal.SIG_IGN)
    # … its processes, and if it cannot, they end themselves.
    threading.Thread(target=_end_with_parent, args=(setup.uploads,), daemon=True).start()
    from mmattn.run.run import load_run  # takes seconds, and the server need not have it
    from mmattn.train.devices import start_devices

    try:
        start_devices(1, batch=1)
        run = load_run(setup.run, setup.checkpoint, setup.media, setup.calibrated)
        try:
            run.extraction()
            raw = None
        except UserError as error:
            raw = str(error)
    except UserError as error:
        connection.send_bytes(b"500" + refusal(500, str(error)).body)
        return
    _limit_memory(setup.memory)
    about = {
        "run": run.name,
        "classes": run.class_names,
        "no_raw_clips": raw,
        "trust": run.trust,
    }
    connection.send_bytes(b"200" + json.dumps(about).encode())
    with suppress(EOFError, BrokenPipeError):
        while True:
            clip, name = json.loads(connection.recv_bytes())
            status, body = _predict(run, Path(clip), name)
            connection.send_bytes(str(status).encode() + body)


def _predict(run: "Run", clip: Path, name: str) -> Answer:
    from mmattn.run.predict import to_json

    try:
        outcome = run.predict_all([clip])
        for failure in outcome.failures:
            return refusal(422, failure.reason.replace(str(clip), name))
        named = [replace(one, path=Path(name)) for one in outcome.predictions]
        answer = to_json(run, outcome._replace(predictions=named))
        return Answer(200, json.dumps(answer, allow_nan=False).encode())
    except UserError as error:  # of the run or of what raw clips need
        return refusal(500, str(error))
    except MemoryError:
        return refusal(422, "it needs more memory than a prediction may take")
    except Exception as error:  # one clip never stops the others, whatever FFmpeg makes of it
        sys.excepthook(*sys.exc_info())
        return refusal(500, f"the prediction failed: {error!r:.200}")


def _limit_memory(gigabytes: float) -> None:
    """Let this process take so much more than it has; elsewhere than on Linux there is no limit."""
    if MEMORY.exists():
        has = int(MEMORY.read_text().split()[5]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (has + int(gigabytes * 1e9), hard))


def _end_with_parent(uploads: Path) -> None:
    multiprocessing.parent_process().join()
    shutil.rmtree(uploads, ignore_errors=True)
    os._exit(1)
