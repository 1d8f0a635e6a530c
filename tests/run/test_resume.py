"""A run that was killed, stopped or out of disk ends like one that was not."""

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from mmattn.train.checkpoints import Checkpoints
from tests.run.ended import assert_same_end, epochs_done, half_written, wait_until


def go_on(commands, folder: Path):
    """Start the run of a folder, or resume it if it has begun."""
    begun = ["--resume"] if (folder / "config.json").exists() else [*commands.tiny, "--devices", 2]
    return commands.start("experiments.no_aug", *begun, "--out", folder)


@pytest.mark.slow
def test_killed_at_random_moments(commands, tiny_run, tmp_path):
    folder, wait = tmp_path / "killed", random.Random(0)
    for number in range(4):
        done = epochs_done(folder)
        process = go_on(commands, folder)
        wait_until(lambda done=done: epochs_done(folder) > done, process)
        time.sleep(wait.uniform(0, 0.25))
        process.kill()
        text, _ = process.communicate()
        assert number == 0 or "resumed after epoch" in text
    process = go_on(commands, folder)
    text, _ = process.communicate()
    assert process.returncode == 0, text
    assert "resumed after epoch" in text
    assert_same_end(folder, tiny_run)


@pytest.mark.slow
def test_killed_inside_a_save(commands, tiny_run, tmp_path):
    folder = tmp_path / "killed"
    process = go_on(commands, folder)
    wait_until(lambda: epochs_done(folder) >= 1, process, interval=0)
    wait_until(lambda: half_written(folder), process, interval=0)
    process.kill()
    process.communicate()
    assert half_written(folder), "killed too late to leave a half-written checkpoint"
    text = commands.run("experiments.no_aug", "--resume", "--out", folder)
    assert "resumed after epoch" in text
    assert_same_end(folder, tiny_run)


@pytest.mark.slow
def test_sigterm_saves(commands, tiny_run, tmp_path):
    folder = tmp_path / "stopped"
    process = go_on(commands, folder)
    wait_until(lambda: epochs_done(folder) >= 1, process)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate()
    assert process.returncode == 75
    assert "SIGTERM" in text and "--resume" in text and "Traceback" not in text
    about = Checkpoints(folder).about("latest")
    text = commands.run("experiments.no_aug", "--resume", "--out", folder)
    assert f"resumed after epoch {len(about['history'])}" in text
    assert_same_end(folder, tiny_run)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "mmattn-test", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.machine
def test_full_disk_keeps_the_last_checkpoint(commands, tiny_run, small_disk):
    folder = small_disk / "run"
    process = go_on(commands, folder)
    wait_until(lambda: epochs_done(folder) >= 1, process)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    text, _ = process.communicate()
    assert process.returncode == 2, text
    assert "no space left on the disk while writing" in text and "Traceback" not in text
    about = Checkpoints(folder).about("latest")
    assert len(about["history"]) >= 1
    filler.unlink()
    commands.run("experiments.no_aug", "--resume", "--out", folder)
    assert_same_end(folder, tiny_run)


def test_a_complete_run_stays_as_it_is(commands, tiny_run):
    before = (tiny_run / "summary.json").read_bytes()
    assert "complete" in commands.run("experiments.no_aug", "--resume", "--out", tiny_run)
    text = commands.run("experiments.no_aug", "--out", tiny_run, code=2)
    assert "holds a run" in text and "--resume" in text
    assert (tiny_run / "summary.json").read_bytes() == before


def test_a_resumed_run_keeps_its_options(commands, tiny_run):
    text = commands.run(
        "experiments.no_aug", "--resume", "--out", tiny_run, "--train.batch", 48, code=2
    )
    assert "--train.batch 48" in text and "has 8" in text


def test_an_experiment_whose_own_options_need_data_is_resumed_without_naming_them(
    commands, tiny_run
):
    text = commands.run("experiments.ravdess_tuned", "--resume", "--out", tiny_run, code=2)
    assert "is a run of no_aug: resume it with python -m experiments.no_aug" in text


@pytest.mark.slow
def test_two_processes_cannot_share_a_folder(commands, tmp_path):
    process = go_on(commands, tmp_path / "run")
    wait_until((tmp_path / "run" / "train.log").exists, process)
    text = commands.run("experiments.no_aug", "--out", tmp_path / "run", code=2)
    assert "another process is using this run" in text
    process.kill()
    process.communicate()


def test_other_training_clips_stop_a_resume(commands, tiny_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    (folder / "summary.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["data"]["synthetic"]["seed"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    text = commands.run("experiments.no_aug", "--resume", "--out", folder, code=2)
    assert "the training clips differ from those it began with" in text
    assert "differ from those it began with" in (folder / "train.log").read_text()
