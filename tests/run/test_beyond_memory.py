"""A corpus larger than the memory that a process may use, from feature files to the page."""

import os
import subprocess
import sys
from itertools import islice, product
from pathlib import Path

import numpy as np
import pytest

CAP = 740 * 2**20  # bytes, of the process's own memory and of the files that it has in memory
CLIPS = 1800
FRAMES, WIDTH = 60, 2048  # of the video of a clip
SENTENCES = ("IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI")
EMOTIONS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
# By version of control groups: their folder, the file for the cap, the file that counts its use.
GROUPS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.peak"),
)


@pytest.fixture
def capped():
    """A control group for processes that have no more memory together than CAP."""
    for base, cap, used in GROUPS:
        group = base / f"mmattn-test-{os.getpid()}"
        try:
            group.mkdir(exist_ok=True)
            (group / cap).write_text(str(CAP))
        except OSError:
            continue
        yield group, used
        group.rmdir()
        return
    pytest.skip("a cap on memory needs root and control groups")


def write_clips(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    video = rng.standard_normal((FRAMES, WIDTH)).astype(np.float32)
    audio = rng.standard_normal((FRAMES, 4)).astype(np.float32)
    times = np.arange(FRAMES) / 20
    names = product(range(1001, 1092), SENTENCES, EMOTIONS)
    for number, (speaker, sentence, emotion) in enumerate(islice(names, CLIPS)):
        np.savez(
            folder / f"{speaker}_{sentence}_{emotion}_XX.npz",
            audio_features=audio + number,  # equal files would be kept once
            audio_timestamps=times,
            video_features=video,
            video_timestamps=times,
        )


@pytest.mark.machine
def test_a_run_needs_less_memory_than_its_corpus(commands, tmp_path, capped):
    group, used = capped
    write_clips(tmp_path / "clips")
    words = [
        *(sys.executable, "-m", "experiments.no_aug", "--out", tmp_path / "run"),
        *("--data.roots", tmp_path / "clips", "--data.cache", tmp_path / "cache"),
        *("--devices", 1, "--train.epochs", 1, "--train.batch", 8, "--train.steps-per-dispatch", 1),
        *("--model.units", "audio=4", "video=4"),
        *("--model.head-units", 8, "--model.head-dropout", 0.1),
    ]
    join = f'echo $$ > {group}/cgroup.procs && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", join, "", *map(str, words)],
        env=commands.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run/report.html").exists()
    (pack,) = (path for path in (tmp_path / "cache").iterdir() if len(path.name) == 64)
    assert sum(path.stat().st_size for path in pack.iterdir()) > 1.1 * CAP
    assert int((group / used).read_text()) > 0.98 * CAP  # the kernel had to drop what was read
