"""Several real processes train as one does, and end together."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from mmattn.evaluate.predictions import read_predictions

TIMED = ("clips_per_s", "seconds")
SHAPES = {1: "1 × 4", 2: "2 × 2", 4: "4 × 1"}  # processes × devices
# Where the gradient of a parameter is 0 but for rounding (a bias before batch norm, of a unit that is
# active in every clip of the first batch), Adam makes a step of any sign and full length of it.
TOLERANCE = 3e-4


def arrays(folder: Path, kind: str) -> dict[str, np.ndarray]:
    (step,) = (folder / "checkpoints" / kind).iterdir()
    checkpointer = ocp.PyTreeCheckpointer()
    names = checkpointer.metadata(step / "arrays").item_metadata.tree
    # The devices that wrote it are not here.
    numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    return checkpointer.restore(step / "arrays", restore_args=numpy)


def metrics(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]


def epochs_done(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def words(commands, folder: Path, resume: bool = False) -> list:
    own = ["--resume"] if resume else [*commands.tiny, "--train.epochs", 5, "--devices", 4]
    return ["experiments.no_aug", *own, "--out", folder]


def launched(commands, processes: int, folder: Path, resume: bool = False) -> subprocess.Popen:
    """A job of processes, also if it is only one."""
    return commands.start(
        "mmattn", "launch", "-n", processes, "--", *words(commands, folder, resume)
    )


def end(process: subprocess.Popen, code: int = 0) -> str:
    text, _ = process.communicate(timeout=240)
    assert process.returncode == code, text
    assert "Traceback" not in text and "[Gloo]" not in text
    return text


def members(job: subprocess.Popen) -> dict[int, int]:
    """By number, the process identifiers of a job's processes."""
    below = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    commands = {
        pid: Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in map(int, below)
    }
    return {
        int(command[command.index("--distributed.process-id") + 1]): pid
        for pid, command in commands.items()
    }


def wait_for_epochs(job: subprocess.Popen, folder: Path, count: int) -> None:
    while epochs_done(folder) < count:
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.01)


def assert_same_end(folder: Path, reference: Path) -> None:
    """To the bit."""
    assert metrics(folder) == metrics(reference)
    for name in ("predictions.csv", "predictions_validation.csv", "split.json"):
        assert (folder / name).read_bytes() == (reference / name).read_bytes()
    for kind in ("best", "final"):
        found, expected = arrays(folder, kind), arrays(reference, kind)
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=f"{kind} {name}")


def assert_same_training(folder: Path, reference: Path) -> None:
    """But for the order in which float32 numbers are added up, which Adam enlarges."""
    assert len(metrics(folder)) == len(metrics(reference))
    for found, expected in zip(metrics(folder), metrics(reference), strict=True):
        assert found == pytest.approx(expected, rel=TOLERANCE)
    for name in ("predictions.csv", "predictions_validation.csv"):
        found, expected = read_predictions(folder / name), read_predictions(reference / name)
        assert found.clips == expected.clips
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=TOLERANCE)
    assert (folder / "split.json").read_bytes() == (reference / "split.json").read_bytes()
    assert {path.name for path in folder.iterdir()} == {path.name for path in reference.iterdir()}


@pytest.fixture(scope="module")
def runs(commands, tmp_path_factory) -> dict[int, Path]:
    """By number of processes, the folder of a complete run on four devices."""
    base = tmp_path_factory.mktemp("runs")
    for processes in SHAPES:
        text = end(launched(commands, processes, base / str(processes)))
        assert text.count("epoch   1") == 1 and text.count("results in") == 1
    return {processes: base / str(processes) for processes in SHAPES}


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_train_as_one_does(runs, processes):
    assert_same_training(runs[processes], runs[1])
    starts = json.loads((runs[processes] / "environment.json").read_text())["starts"]
    assert [start["processes"] for start in starts] == [processes]
    config = json.loads((runs[processes] / "config.json").read_text())
    assert config == json.loads((runs[1] / "config.json").read_text())
    assert config["devices"] == 4
    (step,) = (runs[processes] / "checkpoints" / "final").iterdir()
    writers = {path.name for path in (step / "arrays").glob("ocdbt.process_*")}
    assert writers == {f"ocdbt.process_{number}" for number in range(processes)}


@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_process_ends_the_job_which_goes_on_to_the_same_bits(
    commands, runs, tmp_path, number
):
    job = launched(commands, 2, tmp_path / "run")
    wait_for_epochs(job, tmp_path / "run", 1)
    os.kill(members(job)[number], signal.SIGKILL)
    killed = time.monotonic()
    text = end(job, 128 + signal.SIGKILL)
    assert time.monotonic() - killed < 30
    assert f"process {number} of 2 ended with signal SIGKILL" in text
    text = end(launched(commands, 2, tmp_path / "run", resume=True))
    assert "resumed after epoch" in text
    assert_same_end(tmp_path / "run", runs[2])


@pytest.fixture(scope="module")
def stopped(commands, tmp_path_factory) -> Path:
    """The folder of a run of two processes, of which one got SIGTERM."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    job = launched(commands, 2, folder)
    wait_for_epochs(job, folder, 1)
    os.kill(members(job)[1], signal.SIGTERM)
    text = end(job, 75)
    assert text.count("SIGTERM in epoch") == 1 and "--resume" in text
    return folder


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_stopped_run_goes_on_with_any_number_of_processes(
    commands, runs, stopped, tmp_path, processes
):
    shutil.copytree(stopped, tmp_path / "run")
    done = epochs_done(tmp_path / "run")
    text = end(launched(commands, processes, tmp_path / "run", resume=True))
    assert f"resumed after epoch {done}" in text
    if processes == 2:
        assert_same_end(tmp_path / "run", runs[2])
    else:
        assert_same_training(tmp_path / "run", runs[2])


def test_processes_need_no_common_disk(commands, runs, tmp_path):
    """The second has another disk in place of the run's folder, as on another machine."""
    folder = tmp_path / "run"
    folder.mkdir()
    own_disk = f'mount -t tmpfs mmattn-test {folder} && exec "$@"'
    if subprocess.run(["unshare", "--mount", "sh", "-c", own_disk, "", "true"]).returncode:
        pytest.skip("a disk of its own needs root")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = (
        *("--distributed.coordinator", f"127.0.0.1:{port}"),
        *("--distributed.num-processes", 2, "--distributed.process-id"),
    )
    first = commands.start(*words(commands, folder), *shared, 0)
    command = ["unshare", "--mount", "sh", "-c", own_disk, "", sys.executable, "-m"]
    second = subprocess.Popen(
        [*command, *map(str, (*words(commands, folder), *shared, 1))],
        env=commands.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert "results in" in end(first)
    assert not end(second)
    assert_same_end(folder, runs[2])
    (step,) = (folder / "checkpoints" / "final").iterdir()
    assert [path.name for path in (step / "arrays").glob("ocdbt.process_*")] == ["ocdbt.process_0"]


def test_the_signals_of_a_terminal_end_all(commands, tmp_path):
    job = launched(commands, 2, tmp_path / "run")
    wait_for_epochs(job, tmp_path / "run", 1)
    children = members(job).values()
    job.send_signal(signal.SIGINT)
    assert "interrupted" in end(job, 130)
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_an_error_of_process_0_is_said_once(commands, runs):
    text = end(launched(commands, 2, runs[2]), 2)
    assert text.count("holds a run") == 1


def test_an_error_of_another_process_is_shown_with_its_number(commands, tmp_path):
    script = tmp_path / "breaks.py"
    script.write_text(
        "import sys, time\n"
        "if sys.argv[-1] == '0': time.sleep(60)\n"
        "print('the disk is upside down'); sys.exit(9)\n"
    )
    commands.environment["PYTHONPATH"] = f"{tmp_path}:{Path.cwd()}"
    try:
        text = commands.run("mmattn", "launch", "-n", 2, "--", "breaks", code=9)
    finally:
        del commands.environment["PYTHONPATH"]
    assert "process 1 of 2 ended with exit code 9; its last lines:" in text
    assert "the disk is upside down" in text


def test_processes_that_do_not_come_are_waited_for_no_longer_than_asked(commands, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = (
        *("--distributed.coordinator", f"127.0.0.1:{port}"),
        *("--distributed.num-processes", 2, "--distributed.timeout", 3),
        "--distributed.process-id",
    )
    for number, why in ((0, "not all processes came"), (1, "process 0 does not answer there (")):
        text = commands.run(*words(commands, tmp_path / "run"), *shared, number, code=2)
        assert f"--distributed.coordinator 127.0.0.1:{port}: {why}" in text and "within 3 s" in text


def test_options_that_do_not_fit_together(commands):
    text = commands.run("experiments.no_aug", "--distributed.num-processes", 2, code=2)
    assert "there is no --distributed.coordinator" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-n", 0, "--", "experiments.no_aug"], "-n 0: expected 1 process or more"),
        (["-n", 2], "expected a module after --"),
    ],
)
def test_a_launch_of_nothing(commands, words, said):
    assert said in commands.run("mmattn", "launch", *words, code=2)


def test_devices_that_cannot_be_divided(commands, tmp_path):
    text = commands.run(
        *("mmattn", "launch", "-n", 2, "--", "experiments.no_aug"),
        *("--devices", 3, "--out", tmp_path / "run"),
        code=2,
    )
    assert "--devices 3: expected a multiple of the 2 processes" in text
