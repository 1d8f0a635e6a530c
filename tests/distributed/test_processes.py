"""Several real processes train as one does, and end together."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mmattn.evaluate.predictions import read_predictions
from tests.run.ended import assert_same_end, epochs_done, half_written, metrics, wait_until

pytestmark = pytest.mark.slow

EPOCHS = 6
# Where the gradient of a parameter is 0 but for rounding (a bias before batch norm, of a unit that
# is active in every clip of the first batch), Adam makes a step of any sign and full length of it.
TOLERANCE = 3e-4


def words(commands, folder: Path, resume: bool = False) -> list:
    small = (*commands.tiny, "--data.buckets", 1, "--train.epochs", EPOCHS, "--devices", 4)
    own = ["--resume"] if resume else small
    return ["experiments.no_aug", *own, "--out", folder]


def launched(commands, processes: int, folder: Path, resume: bool = False) -> subprocess.Popen:
    """A job of processes, also if it is only one."""
    return commands.start(
        "mmattn", "launch", "-n", processes, "--", *words(commands, folder, resume)
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def answers(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


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
    option = "--distributed.process-id"  # a process that is just being made has none
    return {
        int(command[command.index(option) + 1]): pid
        for pid, command in commands.items()
        if option in command
    }


def wait_for_epochs(job: subprocess.Popen, folder: Path, count: int) -> None:
    wait_until(lambda: epochs_done(folder) >= count, job)


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
def runs(commands, made_once) -> Callable[[int], Path]:
    """`runs(processes)`: the folder of a complete run on four devices."""

    def train(processes: int, folder: Path) -> None:
        text = end(launched(commands, processes, folder))
        assert text.count("epoch   1") == 1 and text.count("results in") == 1

    return lambda processes: made_once(f"run of {processes}", partial(train, processes))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_train_as_one_does(runs, processes):
    assert_same_training(runs(processes), runs(1))
    starts = json.loads((runs(processes) / "environment.json").read_text())["starts"]
    assert [start["processes"] for start in starts] == [processes]
    config = json.loads((runs(processes) / "config.json").read_text())
    assert config == json.loads((runs(1) / "config.json").read_text())
    assert config["devices"] == 4
    (step,) = (runs(processes) / "checkpoints" / "final").iterdir()
    writers = {path.name for path in (step / "arrays").glob("ocdbt.process_*")}
    assert writers == {f"ocdbt.process_{number}" for number in range(processes)}


def kill(job: subprocess.Popen, number: int) -> None:
    """Kill a process of a job, which is to end with its reason."""
    os.kill(members(job)[number], signal.SIGKILL)
    killed = time.monotonic()
    text = end(job, 128 + signal.SIGKILL)
    assert time.monotonic() - killed < 30
    assert f"process {number} of 2 ended with signal SIGKILL" in text


def test_a_job_with_killed_processes_resumes_to_the_same_bits(commands, runs, tmp_path):
    """One while all write a checkpoint, then process 0 inside an epoch."""
    folder = tmp_path / "run"
    job = launched(commands, 2, folder)
    wait_for_epochs(job, folder, 1)
    wait_until(lambda: half_written(folder), job)
    kill(job, 1)
    while not half_written(folder):  # its part was done, and process 0 ended the whole
        job = launched(commands, 2, folder, resume=True)
        wait_until(lambda: half_written(folder), job)
        kill(job, 1)
    done = epochs_done(folder)
    job = launched(commands, 2, folder, resume=True)
    wait_until(lambda: epochs_done(folder) > done, job)
    kill(job, 0)
    text = end(launched(commands, 2, folder, resume=True))
    assert "resumed after epoch" in text
    assert_same_end(folder, runs(2))


@pytest.fixture(scope="module")
def stopped(commands, made_once) -> Path:
    """The folder of a run of two processes, of which one got SIGTERM."""

    def train(folder: Path) -> None:
        job = launched(commands, 2, folder)
        wait_for_epochs(job, folder, 1)
        os.kill(members(job)[1], signal.SIGTERM)
        text = end(job, 75)
        assert text.count("stopped in epoch") == 1 and "--resume" in text

    return made_once("stopped run", train)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stopped_run_resumes_with_any_number_of_processes(
    commands, runs, stopped, tmp_path, processes
):
    shutil.copytree(stopped, tmp_path / "run")
    done = epochs_done(tmp_path / "run")
    text = end(launched(commands, processes, tmp_path / "run", resume=True))
    assert f"resumed after epoch {done}" in text
    if processes == 2:
        assert_same_end(tmp_path / "run", runs(2))
    else:
        assert_same_training(tmp_path / "run", runs(2))


@dataclass
class Hosts:
    """Two machines: network namespaces with an address each and a cable between them."""

    names: tuple[str, str]
    started: list[subprocess.Popen]
    meanings: str = "10.98.0.1 host0\n10.98.0.2 host1\n"
    """/etc/hosts of both."""

    def cable(self, state: str) -> None:
        run("ip", "-n", self.names[0], "link", "set", "cable", state)

    def start(
        self, commands, folder: Path, port: int, resume: bool = False
    ) -> list[subprocess.Popen]:
        """A process on each; the second has a disk of its own in place of the run's folder."""
        shared = ("--distributed.num-processes", 2, "--distributed.process-id")
        (names := folder.parent / "hosts").write_text(self.meanings)
        named = f"mount --bind {names} /etc/hosts; hostname"
        own_disk = f"{named} host1; mount -t tmpfs mmattn-test {folder}"
        processes = []
        for number, set_up in enumerate([f"{named} host0", own_disk]):
            own_names = ("unshare", "--mount", "--uts", "sh", "-ec", f'{set_up}; exec "$@"', "")
            processes.append(
                subprocess.Popen(
                    [
                        *("ip", "netns", "exec", self.names[number], *own_names),
                        *(sys.executable, "-m"),
                        *map(str, (*words(commands, folder, resume), *shared, number)),
                        *("--distributed.coordinator", f"10.98.0.1:{port}"),
                    ],
                    env=commands.environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        self.started += processes
        return processes


def run(*command: object) -> None:
    subprocess.run([*map(str, command)], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    names = tuple(f"mmattn-{os.getpid()}-{number}" for number in range(2))
    with ExitStack() as stack:
        for name in names:
            try:
                run("ip", "netns", "add", name)
            except (OSError, subprocess.CalledProcessError):
                pytest.skip("machines of their own need root and ip")
            stack.callback(run, "ip", "netns", "delete", name)
        ends = ("type", "veth", "peer", "name", "cable", "netns", names[1])
        run("ip", "-n", names[0], "link", "add", "cable", *ends)
        for number, name in enumerate(names):
            run("ip", "-n", name, "address", "add", f"10.98.0.{number + 1}/24", "dev", "cable")
            run("ip", "-n", name, "link", "set", "cable", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
        hosts = Hosts(names, [])
        yield hosts
        for process in hosts.started:
            process.kill()
            process.communicate()


@pytest.mark.machine
def test_two_machines_with_a_cut_cable_and_a_slow_process(commands, runs, hosts, tmp_path):
    """They have no common disk; the end has the same bits."""
    folder = tmp_path / "run"
    folder.mkdir()
    first, second = hosts.start(commands, folder, 8476)
    wait_for_epochs(first, folder, 1)
    hosts.cable("down")
    cut = time.monotonic()
    for process, other in ((first, 1), (second, 0)):
        text = end(process, 76)
        assert text.count(f"lost: process {other} sent nothing for 20 s") == 1
    assert time.monotonic() - cut < 30
    hosts.cable("up")
    done = epochs_done(folder)
    assert done < EPOCHS
    first, second = hosts.start(commands, folder, 8477, resume=True)
    wait_for_epochs(first, folder, done + 1)
    second.send_signal(signal.SIGSTOP)
    time.sleep(3)
    assert epochs_done(folder) <= done + 2 and first.poll() is None
    second.send_signal(signal.SIGCONT)
    text = end(first)
    assert f"resumed after epoch {done}" in text and "results in" in text
    assert not end(second)
    assert_same_end(folder, runs(2))
    (step,) = (folder / "checkpoints" / "final").iterdir()
    assert [path.name for path in (step / "arrays").glob("ocdbt.process_*")] == ["ocdbt.process_0"]


@pytest.mark.machine
@pytest.mark.parametrize("meaning", ["127.0.1.1", "10.98.0.9"])
def test_a_name_that_means_no_address_that_others_reach(commands, hosts, tmp_path, meaning):
    """As Debian's installer leaves it, or another machine's."""
    hosts.meanings = f"{meaning} host0\n10.98.0.2 host1\n"
    (tmp_path / "run").mkdir()
    said = meaning if meaning.startswith("127.") else "none of its addresses"
    for process in hosts.start(commands, tmp_path / "run", 8478):
        text = end(process, 2)
        assert f"process 0: its host name resolves to {said}; expected an address" in text


def test_the_signals_of_a_terminal_end_all(commands, tmp_path):
    job = launched(commands, 2, tmp_path / "run")
    wait_for_epochs(job, tmp_path / "run", 1)
    children = members(job).values()
    job.send_signal(signal.SIGINT)
    assert "interrupted; `--resume --out" in end(job, 130)
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_killed_launcher_leaves_no_process_behind(commands, tmp_path):
    job = launched(commands, 2, tmp_path / "run")
    wait_for_epochs(job, tmp_path / "run", 1)
    children = members(job).values()
    job.kill()
    job.communicate()
    while any(Path(f"/proc/{child}").exists() for child in children):
        time.sleep(0.01)


def test_a_process_that_lost_process_0_says_so_before_jax_aborts(commands, tmp_path):
    """Also one that is not in a collective and has no launcher."""
    script = tmp_path / "waits.py"
    script.write_text(
        "import sys, time\n"
        "from mmattn.config import DistributedConfig\n"
        "from mmattn.train import processes\n"
        "processes.start_processes(DistributedConfig(sys.argv[1], 2, int(sys.argv[2])))\n"
        "print('met', file=sys.stderr, flush=True)\n"
        "time.sleep(60)\n"
    )
    address = f"127.0.0.1:{free_port()}"
    both = [
        subprocess.Popen(
            [sys.executable, script, address, str(number)],
            env={**commands.environment, "PYTHONPATH": str(Path.cwd())},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    assert [process.stderr.readline() for process in both] == ["met\n"] * 2
    both[0].kill()
    both[0].communicate()
    _, text = both[1].communicate(timeout=30)
    assert both[1].returncode == 76, text
    assert "lost: process 0 ended" in text


def test_an_error_of_process_0_is_said_once(commands, runs):
    text = end(launched(commands, 2, runs(2)), 2)
    assert text.count("holds a run") == 1


def test_processes_that_do_not_come_are_waited_for_no_longer_than_asked(commands, tmp_path):
    port = free_port()
    shared = (
        *("--distributed.coordinator", f"127.0.0.1:{port}"),
        *("--distributed.num-processes", 2, "--distributed.timeout", 3),
        "--distributed.process-id",
    )
    for number, why in ((0, "not all 2 processes connected"), (1, "process 0 does not answer")):
        text = commands.run(*words(commands, tmp_path / "run"), *shared, number, code=2)
        assert f"--distributed.coordinator 127.0.0.1:{port}: {why}" in text and "within 3 s" in text


@pytest.mark.parametrize("host", ["192.0.2.7", "nobody.invalid"])
def test_process_0_must_have_the_address(commands, tmp_path, host):
    """Where it cannot listen, JAX would crash."""
    shared = ("--distributed.num-processes", 2, "--distributed.process-id", 0)
    text = commands.run(
        *words(commands, tmp_path / "run"),
        *(*shared, "--distributed.coordinator", f"{host}:8476"),
        code=2,
    )
    assert f"--distributed.coordinator {host}:8476: process 0 cannot listen at {host}:8476" in text


def test_ctrl_c_is_heard_while_others_are_waited_for(commands, tmp_path):
    shared = ("--distributed.num-processes", 2, "--distributed.process-id", 0)
    port = free_port()
    place = ("--distributed.coordinator", f"127.0.0.1:{port}")
    job = commands.start(*words(commands, tmp_path / "run"), *shared, *place)
    wait_until(lambda: answers(port), job)
    job.send_signal(signal.SIGINT)
    job.communicate(timeout=10)
    assert job.returncode in (-signal.SIGINT, 130)


SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "{number}",
    "SLURM_LOCALID": "{number}",
}
OPEN_MPI = {
    "JAX_COORDINATOR_ADDRESS": "127.0.0.1:{port}",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "{number}",
}


@pytest.mark.parametrize("variables", [SLURM, OPEN_MPI], ids=["Slurm", "Open MPI"])
def test_processes_meet_by_the_variables_of_what_started_them(
    commands, tmp_path, variables, monkeypatch
):
    """As an error shows that only the two together can make."""
    port = free_port()
    monkeypatch.setitem(commands.environment, "JAX_COORDINATOR_PORT", str(port))
    jobs = []
    for number in range(2):
        for name, value in variables.items():
            monkeypatch.setitem(commands.environment, name, value.format(number=number, port=port))
        options = ("--devices", 3, "--out", tmp_path / "run")
        jobs.append(commands.start("experiments.no_aug", *options))
    first, _ = (end(job, 2) for job in jobs)
    assert "--devices 3: expected a multiple of the 2 processes" in first
