"""`mmattn serve` under load: lost or wrong answers, speed, and growth of memory.

python -m benchmarks.serve CLIP... --requests 200 --clients 8
"""

import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple
from urllib.parse import quote

import numpy as np
import tyro

from benchmarks.machine import command, describe, say_machine
from benchmarks.memory import megabytes
from mmattn.console import progress, say, say_table
from mmattn.errors import UserError

PARTS = 5  # rows of the table


@dataclass(frozen=True)
class Options:
    """Send requests of several parallel clients to `mmattn serve`."""

    clips: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="CLIP...", help_behavior_hint="(required)"),
    ]
    """Clips or feature files, or folders of them; they are sent in turn."""
    run: Path = Path("starter")
    requests: int = 200
    clients: int = 8
    workers: int = 2

    def __call__(self) -> None:
        from mmattn.run.predict import find_given

        if min(self.requests // PARTS, self.clients, self.workers) < 1:
            raise UserError(f"expected {PARTS} --requests or more, and --clients and --workers")
        say_machine(describe())
        paths = [clip.path for clip in find_given(self.clips)]
        expected = expected_answers(self.run, paths)
        with serving(self.run, self.workers) as (process, address):
            for _ in range(2 * self.workers):  # loads the models
                ask(address, paths[0])
            rows, answers = [], []
            with progress("ask", self.requests, "requests") as advance:
                for part in np.array_split(np.arange(self.requests), PARTS):
                    begin, lock = time.perf_counter(), threading.Lock()

                    def one(number: int, lock: threading.Lock = lock) -> Answer:
                        found = ask(address, paths[number % len(paths)])
                        with lock:
                            advance(1)
                        return found

                    with ThreadPoolExecutor(self.clients) as clients:
                        answers += clients.map(one, part)
                    rate = len(part) / (time.perf_counter() - begin)
                    latest = [1e3 * answer.seconds for answer in answers[-len(part) :]]
                    middle, late = np.quantile(latest, [0.5, 0.95])
                    of = (process.pid, *sorted(workers_of(process)))
                    memory = [megabytes(process=one) for one in of]
                    rows.append(
                        (len(answers), f"{rate:.1f}", f"{middle:.0f}", f"{late:.0f}", *memory)
                    )
        columns = ("requests so far", "per second", "median ms", "95 % ms", "server MB")
        numbers = [f"process {number + 1} MB" for number in range(self.workers)]
        title = f"{self.requests} requests of {self.clients} clients, {len(paths)} clips"
        say_table(title, (*columns, *numbers), rows)
        wrong = sum(
            not agrees(answer.body, expected[number % len(paths)])
            for number, answer in enumerate(answers)
        )
        refused = sum(answer.refused for answer in answers)
        lost = self.requests - len(answers)
        say(f"{lost} lost, {wrong} wrong, {refused} times 503 and retried")
        if lost or wrong:
            raise UserError("answers were lost or wrong")


class Answer(NamedTuple):
    """The result of a request: the JSON, the total seconds, how often it got 503."""

    body: dict
    seconds: float
    refused: int


def ask(address: str, path: Path) -> Answer:
    """Send a clip; retry if the server is full."""
    begin, refused = time.perf_counter(), 0
    while True:
        connection = http.client.HTTPConnection(address, timeout=600)
        try:
            connection.request("POST", f"/predict?name={quote(path.name)}", path.read_bytes())
            response = connection.getresponse()
            body = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 503:
            return Answer(body, time.perf_counter() - begin, refused)
        refused += 1
        time.sleep(int(response.headers["Retry-After"]))


def expected_answers(run: Path, paths: Sequence[Path]) -> list[dict[str, float] | str]:
    """By clip, the probabilities from the library, or the reason for a failure."""
    from mmattn.run.run import load_run

    predictions, failures = load_run(run).predict_all(paths)
    found: dict[Path, dict[str, float] | str] = {
        one.path: dict(zip(one.class_names, one.probabilities.tolist(), strict=True))
        for one in predictions
    }
    found |= {failure.path: failure.reason for failure in failures}
    return [found[path] for path in paths]


def agrees(body: dict, expected: dict[str, float] | str) -> bool:
    """Whether an answer equals the library's, up to rounding."""
    if isinstance(expected, str):
        return body.get("detail") == expected
    found = body["predictions"][0]["probabilities"] if "predictions" in body else {}
    return found.keys() == expected.keys() and np.allclose(
        [found[name] for name in expected], [*expected.values()], atol=1e-5
    )


@contextmanager
def serving(run: Path, workers: int) -> Iterator[tuple[subprocess.Popen, str]]:
    """The command and its address; it may leave no files when it ends."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--port", "0", "--workers", str(workers)]
        process = subprocess.Popen(
            ["env", f"TMPDIR={folder}", sys.executable, "-m", "mmattn", "serve", run, *options],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            lines = iter(process.stdout.readline, "")
            line = next((line for line in lines if "POST clips" in line), None)
            if line is None:
                raise UserError(f"mmattn serve {run}: it ended with {process.wait()}")
            yield process, line.partition(": POST")[0].removeprefix("http://")
        finally:
            process.terminate()
            process.communicate()
        if left := [*Path(folder).iterdir()]:
            raise UserError(f"the server left {left}")


def workers_of(process: subprocess.Popen) -> list[int]:
    """The worker processes of a server."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


if __name__ == "__main__":
    command(Options, "serve", Options.__doc__)
