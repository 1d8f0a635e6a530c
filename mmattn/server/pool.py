"""The worker processes: each holds the run; one that dies or takes too long is replaced."""

import asyncio
import json
import math
import multiprocessing
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mmattn.config import ExtractConfig
from mmattn.console import be_quiet, complain
from mmattn.errors import UserError
from mmattn.machine import without_interrupt

if TYPE_CHECKING:
    from mmattn.run.run import Run

Answer = tuple[int, dict[str, Any]]  # an HTTP status and a JSON document
Job = tuple[Path, str, Future[Answer]]  # a clip, its name for the client, where the answer goes

LOOK = 1.0  # seconds between checks that an idle process is alive
MEMORY = Path("/proc/self/statm")  # its sixth number: pages of data of this process


class Limits(NamedTuple):
    """Limits of a server: processes, waiting requests, MB of a request, seconds of an upload and
    of a prediction, and GB that a process may allocate after its start (Linux).
    """

    workers: int
    queue: int
    size: float
    seconds: float
    memory: float

    def check(self) -> None:
        """Raise UserError at the first invalid one."""
        options = {"workers": 1, "queue": 0, "max-size": 0.001, "timeout": 0.1, "memory": 0.1}
        for (option, least), value in zip(options.items(), self, strict=True):
            if not least <= value < math.inf:
                raise UserError(f"--{option} {value:g}: expected {least:g} or more")


class Setup(NamedTuple):
    """What a process needs to start."""

    run: Path
    checkpoint: Literal["best", "final"]
    calibrated: bool
    media: ExtractConfig
    uploads: Path  # a folder that is removed if the server dies
    limits: Limits


class Worker(threading.Thread):
    """A process that predicts one clip at a time, and the thread that feeds it."""

    ready = closed = False

    def __init__(self, setup: Setup, jobs: SimpleQueue[Job]):
        super().__init__()
        self.setup, self.jobs = setup, jobs
        self.begin()

    def begin(self) -> None:
        """Start the process."""
        context = multiprocessing.get_context("spawn")  # forking threads and models is unsafe
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, self.setup), daemon=True)
        with without_interrupt():
            self.process.start()
        theirs.close()

    def get_ready(self) -> dict[str, Any]:
        """Wait until the process has loaded the run; returns `about`. UserError if it cannot."""
        try:
            status, said = self._hear()
        except (EOFError, OSError) as error:
            raise UserError("a worker process died at its start") from error
        if status != 200:
            raise UserError(said["detail"])
        self.ready = True
        return said

    def run(self) -> None:
        """Feed the process; replace it if it dies."""
        while not self.closed:
            job = None
            with suppress(Empty):
                job = self.jobs.get(timeout=LOOK)
            if self.closed:
                return
            if self.process.is_alive():
                if job and job[-1].set_running_or_notify_cancel():
                    job[-1].set_result(self._ask(*job[:-1]))
                continue
            if job:
                self.jobs.put(job)
            self.end()
            self.begin()
            try:
                self.get_ready()
            except UserError as error:
                self.end()
                complain(f"{error}; trying again")

    def end(self) -> None:
        """Kill the process."""
        self.ready = False
        self.process.kill()
        self.process.join()

    def _ask(self, clip: Path, name: str) -> Answer:
        """The prediction of a clip; kills the process if that takes too long."""
        try:
            self.connection.send_bytes(json.dumps([str(clip), name]).encode())
            return self._hear(self.setup.limits.seconds)
        except TimeoutError:
            answer = 504, {"detail": f"it took over {self.setup.limits.seconds:g} s"}
        except (EOFError, OSError):
            answer = 500, {"detail": "the process that read the clip died; another replaces it"}
        if not self.closed:
            complain(f"a prediction failed: {answer[1]['detail']}")
        self.end()
        return answer

    def _hear(self, seconds: float | None = None) -> Answer:
        if not self.connection.poll(seconds):
            raise TimeoutError
        status, answer = json.loads(self.connection.recv_bytes())
        return status, answer


class Pool:
    """Processes that predict clips. about: the run's name, an example of an answer, and why raw
    clips cannot be predicted, if so."""

    def __init__(self, setup: Setup):
        """See `open_pool`."""
        self.about: dict[str, Any] = {}
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self.workers = [Worker(setup, self._jobs) for _ in range(setup.limits.workers)]

    @property
    def up(self) -> int:
        """How many processes can predict."""
        return sum(worker.ready for worker in self.workers)

    async def predict(self, clip: Path, name: str) -> Answer:
        """The prediction of a clip, which the client calls `name`, as by `mmattn predict --json`,
        or why there is none. If cancelled, it is skipped unless it has begun."""
        answer: Future[Answer] = Future()
        self._jobs.put((clip, name, answer))
        return await asyncio.wrap_future(answer)


@contextmanager
def open_pool(setup: Setup) -> Iterator[Pool]:
    """A pool whose processes are ready; they end with the block.

    Raises:
        UserError: the run cannot be used.
    """
    pool = Pool(setup)
    try:
        for worker in pool.workers:
            pool.about = worker.get_ready()
            worker.start()
        yield pool
    finally:
        for worker in pool.workers:
            worker.closed = True
            worker.process.kill()
        for worker in pool.workers:
            if worker.ident:
                worker.join()
            worker.end()


def _work(connection: Connection, setup: Setup) -> None:
    """The worker process: send `about`, then answer one clip after another."""
    be_quiet()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to the whole group: the server ends it
    try:
        run, about = _load(setup)
    except UserError as error:
        connection.send_bytes(json.dumps([500, {"detail": str(error)}]).encode())
        return
    answer: Answer = 200, about
    if MEMORY.exists():  # the limit is for Linux only
        has = int(MEMORY.read_text().split()[5]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = has + int(1e9 * setup.limits.memory)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    with suppress(EOFError, ConnectionError):
        while True:
            connection.send_bytes(json.dumps(answer).encode())
            clip, name = json.loads(connection.recv_bytes())
            answer = _predict(run, Path(clip), name)
    shutil.rmtree(setup.uploads, ignore_errors=True)  # the server was killed


def _load(setup: Setup) -> tuple["Run", dict[str, Any]]:
    """The run, and its `about`; predicts once, so that the first client does not wait for JAX to
    compile."""
    import numpy as np

    from mmattn.data.stream import make_stream  # slow imports, which the server does not need
    from mmattn.run.predict import to_json
    from mmattn.run.run import Failure, Outcome, load_run
    from mmattn.train.devices import start_devices

    start_devices(1, batch=1)
    run = load_run(setup.run, setup.checkpoint, setup.media, setup.calibrated)
    noise, times = np.random.default_rng(0), 0.03 * np.arange(100)
    streams = {
        name: make_stream(noise.normal(size=(len(times), width)).astype(np.float32), times)
        for name, width in run.widths.items()
    }
    [found] = run.predict_streams([streams], ["clip.npz"])
    kinds = ([], [found]) if isinstance(found, Failure) else ([found], [])
    about = {"run": run.name, "example": to_json(run, Outcome(*kinds)), "no_raw_clips": None}
    try:
        run.extraction()
    except UserError as error:
        about["no_raw_clips"] = str(error)
    return run, about


def _predict(run: "Run", clip: Path, name: str) -> Answer:
    from mmattn.run.predict import Clip, to_json

    try:
        outcome = run.predict_all([clip])
        for failure in outcome.failures:
            return 422, {"detail": failure.reason.replace(str(clip), name)}
        named = [replace(one, clip=Clip(Path(name))) for one in outcome.predictions]
        return 200, to_json(run, outcome._replace(predictions=named))
    except UserError as error:  # of the run, or something missing for raw clips
        return 500, {"detail": str(error)}
    except Exception as error:  # no error of one clip stops the others
        sys.excepthook(*sys.exc_info())
        return 500, {"detail": f"the prediction failed: {error!r:.200}"}
