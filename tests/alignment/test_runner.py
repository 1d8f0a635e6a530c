"""A real study in small: processes, resuming, refusals, the page."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from experiments.alignment.plan import REFERENCE, Block, Study
from experiments.alignment.runner import MEASURES, load_measures
from experiments.alignment.study import run_study
from mmattn.config import (
    AugmentConfig,
    OtherDataConfig,
)
from mmattn.errors import UserError
from tests.alignment.small import CONFIG

ARMS = {REFERENCE: AugmentConfig(), "audio_tempo": AugmentConfig(own_tempo={"audio": (0.9, 1.1)})}
STUDY = Study((Block("small", "Synthetic, in small.", CONFIG, ("cross",), ARMS),), seeds=1)


def run(study: Study, folder, **options) -> None:
    run_study(study, folder, None, options.get("workers", 2), OtherDataConfig())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "small"
    run(STUDY, folder)
    return folder


@pytest.mark.slow
def test_every_training_is_measured_and_compared(folder):
    for cell in STUDY.cells():
        assert 0 <= load_measures(folder / cell.folder)["validation_uar"] <= 1
        assert not (folder / cell.folder / "checkpoints").exists()
    assert "small,cross,uar,audio_tempo" in (folder / "results.csv").read_text()
    assert "audio_tempo lowers accuracy" in (folder / "results.md").read_text()
    assert "audio_tempo" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_only_what_is_not_done_is_done_again(folder):
    first, second = (folder / cell.folder / MEASURES for cell in STUDY.cells())
    before = load_measures(second.parent)
    kept = first.stat().st_mtime_ns
    second.unlink()
    (second.parent / "checkpoints").mkdir()  # as a killed training leaves it
    run(STUDY, folder, workers=len(os.sched_getaffinity(0)) + 1)
    assert first.stat().st_mtime_ns == kept
    again = load_measures(second.parent)
    assert all(
        np.array_equal(again[name], before[name], equal_nan=before[name].dtype.kind == "f")
        for name in before
        if name != "seconds"
    )


@pytest.mark.slow
def test_another_study_is_refused(folder):
    other = Study(STUDY.blocks, seeds=2)
    with pytest.raises(UserError, match="holds another study"):
        run(other, folder)


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"new or empty folder, it has thesis\.txt"):
        run(STUDY, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


HANGING = """
import os, sys, time
from pathlib import Path
from experiments.alignment.runner import run_tasks
from experiments.no_aug import CONFIG

def hang(folder, config, fold):
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    out = Path(sys.argv[1])
    run_tasks(out, {}, [(hang, out / "cell", CONFIG, None)], "done", 1)
"""


@pytest.mark.slow
def test_trainings_end_with_a_study_that_is_killed(tmp_path):
    """Else they would write on into what the next study makes in the same folder."""
    (tmp_path / "hanging.py").write_text(HANGING)
    pid = tmp_path / "out/cell/pid"
    with subprocess.Popen([sys.executable, tmp_path / "hanging.py", tmp_path / "out"]) as study:
        while not (pid.exists() and pid.read_text()):
            assert study.poll() is None
            time.sleep(0.1)
        study.kill()
    deadline = time.monotonic() + 30
    while is_alive(int(pid.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_no_workers(tmp_path):
    with pytest.raises(UserError, match=r"--workers 0: expected 1 or more"):
        run(STUDY, tmp_path / "new", workers=0)


def test_the_real_studies_are_sound():
    from experiments import compare

    for blocks in (compare.BLOCKS, compare.QUICK, (compare.RAVDESS,)):
        study = Study(blocks, seeds=2)
        json.dumps(study.to_json())
        assert all(REFERENCE in block.arms for block in blocks)
        for cell in study.cells():
            config = study.config(cell)
            assert config.train == study.block(cell.block).config.train
            assert config.train.patience == 0  # equal optimiser steps for all arms
            if not config.data.folds:
                config.check()
    for augment in compare.ARMS.values():
        replace(compare.SYNTHETIC, augment=augment).check()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quick", "--data.roots", "x"], "--quick: expected no --data.roots"),
        (["--data.roots", "/nowhere"], "nowhere: expected a folder of feature files or a manifest"),
        (["--arms", "audio_aug", "x"], "--arms x: expected some of no_aug, audio_noise, "),
        (["--arms", "waveform"], "--augment.variants noise: expected augmented"),
        (["--seeds", "0"], "--seeds 0: expected 1 or more"),
    ],
)
def test_bad_options(commands, words, message):
    assert message in commands.run("experiments.compare", *words, code=2)
