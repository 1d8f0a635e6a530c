"""A run that tells a talking face from one that is still, and clips, cameras, pages for it."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.media.conftest import face_models  # noqa: F401
from tests.media.talking import babble, write_talking

TRAINING = (
    *("--model.units", "audio=8", "video=8", "--model.head-units", "16"),
    *("--model.head-dropout", "0.1", "--data.buckets", "1"),
    *("--train.epochs", "40", "--train.patience", "40", "--train.learning-rate", "0.005"),
    *("--train.batch", "4", "--devices", "1"),
)


class Talking(NamedTuple):
    """The folder of the run, and a clip of 3.9 s of each class."""

    run: Path
    talking: Path
    still: Path


@pytest.fixture(scope="session")
def talking_run(commands, made_once, face_models) -> Talking:  # noqa: F811
    """A small run on log-mel and face-mesh features; not to be altered."""

    def make(to: Path) -> None:
        clips = to / "clips"
        for speaker in range(3):
            for take in range(3):
                for kind in ("talking", "still"):
                    path = clips / kind / f"s{speaker}_{take}.mp4"
                    write(path, take, seconds=2.0, size=(320, 240), scale=0.9 + 0.1 * speaker)
        for kind in ("talking", "still"):
            write(to / "new" / kind / "new.mp4", 3, size=(640, 480))
        commands.run("mmattn", "manifest", clips, "--pattern", "{emotion}/{speaker}_{take}")
        kinds = ("--audio", "log-mel", "--video", "face-mesh")
        commands.run("mmattn", "extract", clips, "--to", to / "features", *kinds)
        data = ("--data.roots", to / "features", "--data.cache", to / "cache")
        commands.run("experiments.no_aug", *data, *TRAINING, "--out", to / "run")

    made = made_once("talking-run", make)
    return Talking(made / "run", made / "new/talking/new.mp4", made / "new/still/new.mp4")


def write(path: Path, take: int, **options) -> None:
    """A clip of a face that talks; in a folder "still", of one that hums with a still mouth."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples, rate = babble()
    samples, delay = np.roll(samples, 5000 * take), 0.0
    if path.parent.name == "still":
        samples = 0.02 * np.random.default_rng(take).normal(size=len(samples)).astype(np.float32)
        delay = 100.0  # so that the mouth has not begun to move
    write_talking(path, (samples, rate), video_delay=delay, **options)


@contextmanager
def live(commands, run: Path, *options: object) -> Iterator[tuple[str, subprocess.Popen]]:
    """`mmattn live` in a process of its own: the page's address, and the process."""
    words = ("live", run, "--no-browser", "--port", 0, *options)
    process = commands.start("mmattn", *words)
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"http://\S+", line):
                break
        assert said and found, "".join(said)
        yield found[0], process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
