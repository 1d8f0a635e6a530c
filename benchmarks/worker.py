"""The process of one contender: builds it, takes its first step, then works when asked.

Started by `benchmarks.side_by_side` as `python -m benchmarks.worker PIPE BORN JOB`. Each line on
the standard input asks for one round; answers are lines of JSON on a separate pipe, because
frameworks print to standard output.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import dacite

from benchmarks import contenders
from benchmarks.contenders.base import ADAM_B1, Contender, draw_parameters
from benchmarks.memory import megabytes
from benchmarks.work import Scale, Work, make_work, write_clip
from experiments.no_aug import CONFIG
from mmattn.config import ExperimentConfig, config_from_json


@dataclass(frozen=True)
class Job:
    """The job of a worker."""

    contender: str
    task: Literal["train", "predict", "file", "check"]
    batch: int
    per_bucket: int
    """Clips of each bucket."""
    config: ExperimentConfig = CONFIG
    scale: Scale = field(default_factory=Scale)

    def to_json(self) -> str:
        """As one line; `job_from_json` reads it back."""
        return json.dumps({**asdict(self), "config": self.config.to_json()})

    def work(self) -> Work:
        """The batches."""
        return make_work(self.batch, self.per_bucket, self.config, self.scale)


def job_from_json(text: str) -> Job:
    """The job of `Job.to_json`."""
    value = json.loads(text)
    config = config_from_json(value.pop("config"))
    return dacite.from_dict(Job, {**value, "config": config}, dacite.Config(strict=True))


def training(contender: Contender, work: Work) -> Callable[[], dict[str, Any]]:
    """A round trains on all batches, placed beforehand, after the first step."""
    contender.train(contender.place(work.singles()[0]))
    placed = contender.place(work)

    def train() -> dict[str, Any]:
        begin = time.perf_counter()
        contender.train(placed)
        return {"seconds": [time.perf_counter() - begin]}

    return train


def predicting(contender: Contender, work: Work) -> Callable[[], dict[str, Any]]:
    """A round predicts each batch, from arrays in memory to probabilities in memory."""
    batches = work.batches()
    contender.predict(batches[:1])

    def predict() -> dict[str, Any]:
        seconds = []
        for batch in batches:
            begin = time.perf_counter()
            contender.predict([batch])
            seconds.append(time.perf_counter() - begin)
        return {"seconds": seconds}

    return predict


def predicting_files(contender: Contender, work: Work) -> Callable[[], dict[str, Any]]:
    """A round predicts each clip from its feature file, as a user does, after one warm-up."""
    folder = tempfile.TemporaryDirectory()
    paths = []
    for batch in work.singles():
        (clip,) = batch.dispatches[0].batches[0]
        paths.append(Path(folder.name) / f"{clip}.npz")
        write_clip(paths[-1], work.corpus, clip)

    def predict() -> dict[str, Any]:
        folder.name  # noqa: B018, it lives as long as the rounds
        seconds = []
        for path in paths:
            begin = time.perf_counter()
            contender.predict_file(path)
            seconds.append(time.perf_counter() - begin)
        return {"seconds": seconds}

    predict()
    return predict


def checking(contender: Contender, work: Work) -> Callable[[], dict[str, Any]]:
    """A round returns what the network computes from parameters shared by all contenders.

    For a contender that only predicts, the probabilities.
    """
    contender.load(draw_parameters(work))

    def check() -> dict[str, Any]:
        single = work.singles()[0]
        probabilities = contender.predict(single.batches()).tolist()
        if not contender.trains:
            return {"probabilities": probabilities}
        loss = contender.train(contender.place(single))
        gradients = {
            name: (moment / (1 - ADAM_B1)).tolist()
            for name, moment in contender.first_moments().items()
        }
        return {"loss": loss, "gradients": gradients, "probabilities": probabilities}

    return check


TASKS = {
    "train": training,
    "predict": predicting,
    "file": predicting_files,
    "check": checking,
}


def main(pipe: int, born: float, job: Job) -> None:
    """Answer {"start_s", "peak_mb"} after the first step, then each round's answer and peak.

    Args:
        pipe: the file descriptor for the answers.
        born: start time of the process, by `time.time`.
        job: its job.
    """
    with os.fdopen(pipe, "w") as out:

        def answer(**values: Any) -> None:
            out.write(json.dumps({**values, "peak_mb": megabytes("VmHWM")}) + "\n")
            out.flush()

        work = job.work()
        work_round = TASKS[job.task](contenders.load(job.contender)(work), work)
        answer(start_s=time.time() - born)
        for _ in sys.stdin:
            answer(**work_round())


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), job_from_json(sys.argv[3]))
