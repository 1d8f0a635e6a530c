"""Contenders measured side by side: each in its own process, one at a time, A B C A B C."""

import json
import os
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import contenders, machine
from benchmarks.contenders import JEMALLOC
from benchmarks.machine import REPOSITORY
from benchmarks.worker import Job
from mmattn.console import progress, say
from mmattn.errors import UserError

OURS = "ours"
# Threads of the previous contender may still spin, waiting for work (OpenMP: 0.2 s).
SETTLE = 0.3
# Another process may start if there is room for this many of the largest so far.
ROOM = 1.5


@dataclass
class Record:
    """Measurements of a contender, and of the anchor in the same rounds."""

    start_s: float
    """From the start of the process until the first step and the placement of all data."""
    peak_mb: float
    rounds: list[list[float]] = field(default_factory=list)
    """Seconds of each timed piece of each round."""
    anchor: list[list[float]] = field(default_factory=list)
    """`rounds` of this project, with the same allocator, in the same rounds."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "start_s": self.start_s,
            "peak_mb": self.peak_mb,
            "rounds_s": self.rounds,
            "ours_ratio": self.ratio(),
        }

    def median_s(self) -> float:
        """Seconds of the median round."""
        return median(map(sum, self.rounds))

    def rates(self, clips: int) -> tuple[str, ...]:
        """Clips/s of the median, the slowest and the fastest round, each with `clips` clips."""
        seconds = [sum(found) for found in self.rounds]
        return tuple(f"{clips / of(seconds):.1f}" for of in (median, max, min))

    def comparison(self) -> str:
        """`ratio` for a table."""
        ratio = self.ratio()
        return "" if ratio is None else f"{ratio:.2f}"

    def ratio(self) -> float | None:
        """How many times as fast this project is: the median of the rounds' ratios."""
        if not self.anchor:
            return None
        pairs = zip(self.rounds, self.anchor, strict=True)
        return median(sum(theirs) / sum(ours) for theirs, ours in pairs)


class Worker:
    """A contender's process."""

    def __init__(self, job: Job, environment: dict[str, str] | None = None):
        """Start it and wait for its first step.

        Args:
            job: its job.
            environment: variables besides those that the contender needs.
        """
        self.name = job.contender
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        # XLA's cache starts empty, unless the caller sets one; the C++ kernel is built, as after a
        # first run.
        self.compilations = tempfile.TemporaryDirectory()
        fresh = {"JAX_COMPILATION_CACHE_DIR": self.compilations.name}
        answers, pipe = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", str(pipe), str(time.time()), job.to_json()],
            cwd=REPOSITORY,
            env=os.environ | contenders.environment(job.contender) | fresh | (environment or {}),
            stdin=subprocess.PIPE,
            stdout=self.errors,
            stderr=self.errors,
            pass_fds=[pipe],
            text=True,
        )
        os.close(pipe)
        self.answers = os.fdopen(answers)
        try:
            self.start_s = self._answer()["start_s"]
        except BaseException:
            self.close()
            raise

    def round(self) -> dict[str, Any]:
        """Let it work once and return its answer."""
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the missing answer is reported below
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.answers.readline()
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.errors.seek(0)
        tail = "\n".join(self.errors.read().splitlines()[-15:])
        raise UserError(f"the process of {self.name} ended with code {code}:\n{tail}")

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.answers.close()
        self.errors.close()
        self.compilations.cleanup()


@contextmanager
def started(job: Job, environment: dict[str, str] | None = None) -> Iterator[Worker]:
    """A worker that ends with the block."""
    worker = Worker(job, environment)
    try:
        yield worker
    finally:
        worker.close()


@dataclass(frozen=True)
class Comparison(ABC):
    """A command that compares contenders, with the options that all such commands have."""

    rounds: int = 5
    """Rounds of each contender, after a warm-up."""
    contenders: tuple[str, ...] = contenders.DEFAULT
    """Contenders; +jemalloc after a name loads that allocator."""
    json: Path | None = None
    """File to write the results to."""

    @abstractmethod
    def compare(self, names: Sequence[str]) -> dict[str, Any]:
        """Measure these contenders, print tables, return what goes to the JSON file."""

    def __call__(self) -> None:
        """Check, measure, print, write."""
        known = [name + suffix for name in contenders.CONTENDERS for suffix in ("", JEMALLOC)]
        for name in self.contenders:
            if name not in known:
                raise UserError(f"--contenders {name}: expected some of {', '.join(known)}")
        check_positive("rounds", self.rounds)
        machine.check_json(self.json)
        about = machine.describe()
        machine.say_machine(about)
        missing = {name: why for name in self.contenders if (why := contenders.missing(name))}
        for why in missing.values():
            say(f"left out: {why}")
        values = self.compare([name for name in self.contenders if name not in missing])
        machine.write_json(self.json, about, {"missing": missing, **values})

    def measure(self, title: str, jobs: Sequence[Job]) -> dict[str, Record]:
        """`measure` with a progress bar."""
        with progress(title, len(jobs) * (self.rounds + 1), "rounds") as advance:
            return measure(jobs, self.rounds, advance)


def check_positive(option: str, *values: int) -> None:
    """Raise UserError unless there are values and all of them are 1 or more."""
    if min(values, default=0) < 1:
        raise UserError(f"--{option}: expected numbers of 1 or more, not {values}")


def measure(jobs: Sequence[Job], rounds: int, advance: Callable[[int], None]) -> dict[str, Record]:
    """Measure jobs of the same work, each against this project with the same allocator.

    After a warm-up round of each, all take turns. If memory does not hold all processes, they run
    in groups; this project's processes stay, so that each group has its own comparison.

    Args:
        jobs: one for each contender.
        rounds: of each, after the warm-up.
        advance: called with the number of rounds done, the warm-up being one.

    Returns:
        A record for each contender, in the order of the jobs.
    """
    records: dict[str, Record] = {}
    anchors = [job for job in jobs if job.contender.removesuffix(JEMALLOC) == OURS]
    waiting = [job for job in jobs if job not in anchors]
    with ExitStack() as stack:
        ours = [_warm(stack, job, records, advance) for job in anchors]
        while True:
            with ExitStack() as for_group:
                group = []
                while waiting and (not group or _has_room(records)):
                    group.append(_warm(for_group, waiting.pop(0), records, advance))
                _work_in_turn([*ours, *group], rounds, records, advance)
            if not waiting:
                return {job.contender: records[job.contender] for job in jobs}


def _warm(
    stack: ExitStack, job: Job, records: dict[str, Record], advance: Callable[[int], None]
) -> Worker:
    worker = stack.enter_context(started(job))
    records[worker.name] = Record(worker.start_s, worker.round()["peak_mb"])
    advance(1)
    return worker


def _has_room(records: dict[str, Record]) -> bool:
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    largest = max((record.peak_mb for record in records.values()), default=0)
    return available * 1024 / 1e6 > ROOM * largest


def _work_in_turn(
    workers: list[Worker], rounds: int, records: dict[str, Record], advance: Callable[[int], None]
) -> None:
    for _ in range(rounds):
        seconds = {}
        for worker in workers:
            time.sleep(SETTLE)
            answer = worker.round()
            seconds[worker.name] = answer["seconds"]
            record = records[worker.name]
            record.rounds.append(answer["seconds"])
            record.peak_mb = max(record.peak_mb, answer["peak_mb"])
            if len(record.rounds) <= rounds:  # those in all groups count once
                advance(1)
        for name in seconds:
            anchor = OURS + JEMALLOC if name.endswith(JEMALLOC) else OURS
            if anchor in seconds and name != anchor:
                records[name].anchor.append(seconds[anchor])
