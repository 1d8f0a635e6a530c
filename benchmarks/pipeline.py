"""From feature files to the training step: the rate of clips, and how long the step waits.

python -m benchmarks.pipeline [--clips 8882] [--corpus FOLDER] [--json FILE]

Reading: all feature files are read, checked and packed into a new cache, first with a cold page
cache, then with a warm one; then the corpus is opened from the cache, and the normalisation is
fitted, which reads the cache once.
Feeding: the batches of an epoch are made and placed without training; clips are in memory, then on
disk, with and without reading ahead.
Training: epochs of the real loop, in turn with the normal feed, with each dispatch made only on
request, and with all dispatches made beforehand. The wait is the time that the loop spends asking
for the next dispatch. The devices work on the previous one meanwhile, so they idle for less.
"""

import mmap
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar

import numpy as np

from benchmarks.full_size import write_full_size
from benchmarks.machine import (
    bytes_from_disk,
    check_json,
    command,
    describe,
    forget,
    say_machine,
    write_json,
)
from experiments.no_aug import CONFIG
from mmattn.config import ExperimentConfig
from mmattn.console import progress, say, say_table
from mmattn.data.batches import UNCHANGED, Augmentation, Dispatch, collate
from mmattn.data.corpora import find_files
from mmattn.data.corpus import Corpus, open_corpus
from mmattn.data.normalise import fit_normaliser
from mmattn.data.splits import Split, make_split
from mmattn.data.stream import Ragged
from mmattn.errors import UserError
from mmattn.train.checkpoints import Checkpoints
from mmattn.train.devices import start_devices
from mmattn.train.feed import Feed
from mmattn.train.loop import Trainer, epoch_plan, make_trainer, train

GOAL = 0.02  # fraction of the training time that the loop may wait
PLACED = "normalise, pad and place on the devices"
T = TypeVar("T")
Deliver = Callable[[list[Dispatch], int, Augmentation], Iterable]


@dataclass(frozen=True)
class Pipeline:
    """Measure reading, feeding and the waiting of the training loop."""

    clips: int = 8882
    """Number of feature files to write."""
    corpus: Path | None = None
    """Folder of existing feature files to read instead."""
    devices: int | Literal["auto"] = CONFIG.devices
    dispatches: int = 12
    """Approximate dispatches per measured epoch."""
    rounds: int = 3
    """Epochs with each feed, with and without training, of which the median is reported."""
    json: Path | None = None
    """File to also write the results to."""

    def __call__(self, config: ExperimentConfig = CONFIG) -> None:
        """Measure and report; the config is smaller in tests."""
        check_json(self.json)
        for option, value in (("dispatches", self.dispatches), ("rounds", self.rounds)):
            if value < 1:
                raise UserError(f"--{option} {value}: expected 1 or more")
        about = describe()
        say_machine(about)
        with TemporaryDirectory(prefix="mmattn-pipeline-") as temporary:
            folder = self.corpus or Path(temporary, "corpus")
            if self.corpus is None:
                write_full_size(folder, self.clips, config.seed)
            data = replace(config.data, roots=(folder,), cache=Path(temporary, "cache"))
            results = self._measure(replace(config, data=data), Path(temporary, "runs"))
        write_json(self.json, about, results)

    def _measure(self, config: ExperimentConfig, folder: Path) -> dict[str, Any]:
        """All tables; `folder` is for the runs' checkpoints."""
        reading = measure_reading(config)
        say_reading(reading)
        device_count = start_devices(self.devices, config.train.batch)
        corpus = open_corpus(config.data, config.streams)
        split = make_split(corpus, config.data, config.seed)
        trainer = make_trainer(
            replace(config, train=replace(config.train, epochs=1)), corpus, split, device_count
        )
        feeding = measure_feeding(trainer, split, self.rounds)
        say_feeding(feeding)
        training = measure_training(trainer, self._part(split, config), folder, self.rounds)
        share = say_training(training, feeding)
        return {
            "reading": reading,
            "feeding": feeding,
            "training": training,
            "wait_share": share,
            "devices": device_count,
        }

    def _part(self, split: Split, config: ExperimentConfig) -> Split:
        """As many training clips as give the dispatches of a measured epoch."""
        wanted = self.dispatches * config.train.steps_per_dispatch * config.train.batch
        train = np.random.default_rng(config.seed).permutation(split.train)[:wanted]
        return replace(split, train=np.sort(train), validation=split.validation[: len(train)])


# Reading


def measure_reading(config: ExperimentConfig) -> dict[str, Any]:
    """{"files", "megabytes", "rows"}: a row for each way to the corpus, with its seconds."""
    data = config.data
    open_all = partial(open_corpus, data, config.streams)
    files = [Path(file) for file in find_files(data.roots)]
    forget(files)
    rows = [_reading("read, check and pack: files on disk", open_all)]
    shutil.rmtree(data.cache)
    rows.append(_reading("read, check and pack: files in memory", open_all))
    rows.append(_reading("open from the cache", open_all))
    corpus = open_all()
    forget_corpus(corpus, data.cache)
    train = make_split(corpus, data, config.seed).train
    fitting = "fit the normalisation to the training clips: cache on disk"
    rows.append(_reading(fitting, lambda: fit_normaliser(corpus, train)))
    return {
        "files": len(files),
        "megabytes": sum(file.stat().st_size for file in files) / 1e6,
        "rows": rows,
    }


def _reading(what: str, work: Callable[[], Any]) -> dict[str, Any]:
    before, begin = bytes_from_disk(), time.perf_counter()
    work()
    seconds = time.perf_counter() - begin
    return {
        "what": what,
        "seconds": seconds,
        "megabytes_from_disk": (bytes_from_disk() - before) / 1e6,
    }


def say_reading(found: dict[str, Any]) -> None:
    """Print the table."""
    say_table(
        f"Reading {found['files']} feature files, {found['megabytes']:.0f} MB",
        ("", "s", "clips/s", "MB from disk"),
        [
            (
                row["what"],
                f"{row['seconds']:.2f}",
                f"{found['files'] / row['seconds']:.0f}",
                f"{row['megabytes_from_disk']:.0f}",
            )
            for row in found["rows"]
        ],
    )


# Feeding


def measure_feeding(trainer: Trainer, split: Split, rounds: int) -> dict[str, Any]:
    """{"clips", "batches", "rows"}: a row for each part of the work, medians over rounds."""
    feed, steps = trainer.feed, trainer.config.train.steps_per_dispatch
    unprepared = feed._replace(corpus=read_when_needed(feed.corpus))
    plan = epoch_plan(trainer, split.train, 0)

    def collated() -> Iterator:
        for dispatch in plan:
            yield collate(feed.corpus, dispatch, feed.normaliser, feed.devices, feed.batch, steps)

    ways = {  # and whether the clips are on disk
        "normalise and pad": (collated, False),
        PLACED: (lambda: feed(plan, steps), False),
        "the same: cache on disk, nothing read ahead": (lambda: unprepared(plan, steps), True),
        "the same: cache on disk": (lambda: feed(plan, steps), True),
    }
    found: dict[str, list[tuple[float, int]]] = {what: [] for what in ways}
    with progress("Feeding", rounds * len(ways) * len(split.train)) as advance:
        for _ in range(rounds):
            for what, (deliver, cold) in ways.items():
                if cold:
                    forget_corpus(feed.corpus, trainer.config.data.cache)
                read, begin = bytes_from_disk(), time.perf_counter()
                for dispatch, _ in zip(plan, deliver(), strict=True):
                    advance(sum(map(len, dispatch.batches)))
                found[what].append((time.perf_counter() - begin, bytes_from_disk() - read))
    rows = [
        {
            "what": what,
            "seconds": median(seconds for seconds, _ in of_rounds),
            "megabytes_from_disk": median(read for _, read in of_rounds) / 1e6,
        }
        for what, of_rounds in found.items()
    ]
    batches = sum(len(dispatch.batches) for dispatch in plan)
    return {"clips": len(split.train), "batches": batches, "rows": rows}


def read_when_needed(corpus: Corpus) -> Corpus:
    """The corpus, without reading ahead."""

    class NothingAhead(Ragged):
        def read_ahead(self, index):
            pass

    streams = {
        name: NothingAhead(*(getattr(stream, one.name) for one in fields(stream)))
        for name, stream in corpus.streams.items()
    }
    return replace(corpus, streams=streams)


def forget_corpus(corpus: Corpus, cache: Path) -> None:
    """Drop a corpus and its memory-mapped cache from memory."""
    for stream in corpus.streams.values():
        for array in (stream.frames, stream.times):
            array.base.base.madvise(mmap.MADV_DONTNEED)
    forget(path for path in cache.rglob("*") if path.is_file())


def say_feeding(found: dict[str, Any]) -> None:
    """Print the table."""
    say_table(
        f"Feeding an epoch of {found['clips']} clips, nothing training",
        ("", "s", "batches/s", "clips/s", "MB from disk"),
        [
            (
                row["what"],
                f"{row['seconds']:.2f}",
                *(f"{found[unit] / row['seconds']:.0f}" for unit in ("batches", "clips")),
                f"{row['megabytes_from_disk']:.0f}",
            )
            for row in found["rows"]
        ],
    )


# Training


def measure_training(
    trainer: Trainer, split: Split, folder: Path, rounds: int
) -> list[dict[str, Any]]:
    """A row for each feed: clips/s and the fraction of the time that the loop waits.

    Args:
        trainer: of one epoch.
        split: its training clips make a measured epoch.
        folder: for the checkpoints of each epoch.
        rounds: epochs with each feed, after one that compiles.
    """
    feed, steps = trainer.feed, trainer.config.train.steps_per_dispatch
    made = list(feed(epoch_plan(trainer, split.train, 0), steps))
    delivers: dict[str, Deliver] = {
        "as it is": feed,
        "nothing ahead": lambda plan, *more: (one for d in plan for one in feed([d], *more)),
        "made beforehand": lambda *_: made,
    }
    found: dict[str, list] = {name: [] for name in delivers}
    train_watched(trainer, split, folder / "compiling", feed)
    for number in range(rounds):
        for name, deliver in delivers.items():
            found[name].append(train_watched(trainer, split, folder / f"{name}-{number}", deliver))
    return [
        {
            "feed": name,
            "clips_per_s": median(rate for rate, _ in epochs),
            "wait_share": median(share for _, share in epochs),
        }
        for name, epochs in found.items()
    ]


def train_watched(
    trainer: Trainer, split: Split, folder: Path, deliver: Deliver
) -> tuple[float, float]:
    """Clips/s of an epoch, and the fraction of its time that the loop waited for `deliver`."""
    waits: list[float] = []
    own, trainer.feed = trainer.feed, watched(trainer.feed, deliver, waits)
    folder.mkdir(parents=True)
    try:
        checkpoints = Checkpoints(folder)
        (row,) = train(trainer, split, checkpoints, resume=False, asked=threading.Event())
    finally:
        trainer.feed = own
    return row["clips_per_s"], sum(waits) * row["clips_per_s"] / len(split.train)


def watched(feed: Feed, deliver: Deliver, waits: list[float]) -> Feed:
    """A feed whose first use, the training, is served by `deliver`; records the waits."""

    class Watched(Feed):
        def __call__(self, dispatches, steps, augmentation=UNCHANGED):
            work = dispatches, steps, augmentation
            return feed(*work) if waits else timed(deliver(*work), waits)

    return Watched(*feed)


def timed(items: Iterable[T], waits: list[float]) -> Iterator[T]:
    """The same items; appends the seconds waited for each to `waits`."""
    items = iter(items)
    while True:
        begin = time.perf_counter()
        try:
            item = next(items)
        except StopIteration:
            return
        finally:
            waits.append(time.perf_counter() - begin)
        yield item


def say_training(rows: list[dict[str, Any]], feeding: dict[str, Any]) -> float:
    """Print the table and what it means; returns the fraction that the normal loop waits."""
    say_table(
        "Training, by how dispatches are made",
        ("", "clips/s", "waiting"),
        [(row["feed"], f"{row['clips_per_s']:.1f}", f"{row['wait_share']:.2%}") for row in rows],
    )
    usual, _, instant = rows
    (placed,) = (row for row in feeding["rows"] if row["what"] == PLACED)
    rate, alone = usual["clips_per_s"], feeding["clips"] / placed["seconds"]
    met = "met" if usual["wait_share"] < GOAL else "missed"
    say(
        f"The loop waits for {usual['wait_share']:.2%} of the time; goal: below {GOAL:.0%}, {met}. "
        f"The feed alone is {alone / rate:.1f} times as fast as the training.\n"
        f"What it takes from the cores: {1 - rate / instant['clips_per_s']:.1%} fewer clips/s than "
        "with dispatches made beforehand."
    )
    return usual["wait_share"]


if __name__ == "__main__":
    command(Pipeline, "pipeline", __doc__)
