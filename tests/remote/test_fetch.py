"""What arrives is what the machine has, and what was here stays good, whatever goes wrong.

The machine is a folder. The real rsync gets there through a stand-in for `ssh`, which counts the
bytes and cuts the connection where a test wants it.
"""

import hashlib
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import botocore.exceptions as failures
import pytest
import tenacity
from boto3.exceptions import RetriesExceededError

from mmattn.console import LOG
from mmattn.errors import UserError
from mmattn.remote import fetch as module
from mmattn.remote.agent.bucket import Bucket
from mmattn.remote.cloud import CloudError
from mmattn.remote.fetch import fetch, fetched_all
from mmattn.remote.runs import Busy, Member, Run, locked
from mmattn.remote.send import AGENT
from mmattn.remote.ssh import Access, CommandFailed, Machine, RemoteError, Unreachable
from mmattn.train.checkpoints import Checkpoints
from tests.remote.programs import program
from tests.remote.waiting import wait_until

SSH = """#!{python}
import os, subprocess, sys
os.set_blocking(1, True)  # rsync's socket
words = sys.argv[1:]
command = " ".join(words[words.index("nowhere") + 1:])
plan, sent, left = "{folder}/cut", 0, None
if os.path.exists(plan):
    left = int(open(plan).read())
    os.unlink(plan)
with subprocess.Popen(command, shell=True, cwd="{folder}", stdout=subprocess.PIPE) as process:
    while chunk := os.read(process.stdout.fileno(), 1 << 15):
        if left is not None and sent + len(chunk) > left:
            process.kill()
            sys.exit(255)
        sent += len(chunk)
        while chunk:
            chunk = chunk[os.write(1, chunk):]
with open("{folder}/sent", "a") as file:
    file.write(f"{{sent}}\\n")
sys.exit(process.returncode)
"""


RUNNING = {"state": "running", "start": 1, "started": 0.0}
ENDED = {"state": "ended", "exit_code": 0, "ended": 0.0, "out_of_memory": False}


class FolderMachine(Machine):
    """A machine whose commands run here; `after_rsync` is called once, after the next transfer."""

    def __init__(self, run: Run, home: Path):
        access = Access("nowhere", "me", own=(home / "known", home / "key"))
        super().__init__(access, run.folder, run.base)
        self.home, self.job = home, RUNNING
        self.after_rsync = self.before_rsync = lambda: None
        self.unreachable = 0

    @property
    def files(self) -> Path:
        return self.home / self.base

    def call(self, module, *options, job="job", timeout=30):
        if self.unreachable:
            self.unreachable -= 1
            raise Unreachable("me@nowhere: connection lost")
        command = program(module, self.files / job, *options)
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        if done.returncode:
            raise CommandFailed(module, done.returncode, done.stderr)
        return {**json.loads(done.stdout.rpartition("mmattn:")[2]), "job": self.job}

    def rsync(self, *arguments, progress):
        self.before_rsync()
        super().rsync(*arguments, progress=progress)
        after, self.after_rsync = self.after_rsync, lambda: None
        after()

    def cut_after(self, count: int) -> None:
        """Cut the next transfer after this many bytes."""
        (self.home / "cut").write_text(str(count))

    def sent(self) -> int:
        """Bytes sent by the last transfer that was not cut."""
        return int((self.home / "sent").read_text().split()[-1])

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file as training does."""
        path = self.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.partial")
        new.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(new, path)
        return path

    def checkpoint(self, kind: str, step: int) -> None:
        """A new checkpoint in the place of the old one."""
        folder = self.files / "run/checkpoints" / kind
        for number in range(3):
            self.write(f"run/checkpoints/{kind}/{step}/d/{number}", f"{kind} {step} {number}")
        for old in folder.iterdir():
            if old.name != str(step):
                shutil.rmtree(old)


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "POLL_S", 0.05)
    monkeypatch.setattr(tenacity.nap, "time", SimpleNamespace(sleep=lambda _: None))
    run = Run("no_aug-20261125-023000-0a1b", "no_aug", host="me@nowhere", data=["my clips"])
    run.save()
    return run


class Said(logging.Handler):
    """The messages since they were last read."""

    text = ""

    def emit(self, record):
        self.text += record.getMessage() + "\n"

    def read(self) -> str:
        text, self.text = self.text, ""
        return text


@pytest.fixture
def said() -> Said:
    handler = Said()
    LOG.setLevel(logging.INFO)
    LOG.addHandler(handler)
    return handler


@pytest.fixture
def machine(run, tmp_path, monkeypatch) -> FolderMachine:
    """A machine in mid-training: two epochs of four, no final checkpoint."""
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    (home / "bin/ssh").write_text(SSH.format(python=sys.executable, folder=home))
    (home / "bin/ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{home / 'bin'}:{os.environ['PATH']}")
    machine = FolderMachine(run, home)
    monkeypatch.setattr(Run, "machine", lambda _: machine)
    machine.write("run/config.json", json.dumps({"train": {"epochs": 4}}))
    machine.write("run/metrics.jsonl", "{}\n{}\n")
    machine.write("run/train.log", "begin\n")
    machine.write("job/job.log", b"\xff bytes\n")
    machine.write("job/spec.json", "{}")
    machine.checkpoint("best", 6)
    machine.checkpoint("latest", 12)
    return machine


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def expected(machine: FolderMachine) -> dict[str, bytes]:
    run, job = (files_in(machine.files / name) for name in ("run", "job"))
    return {**run, **{f"job/{name}": job[name] for name in job if name[0] != "."}}


def finish(machine: FolderMachine) -> None:
    machine.checkpoint("final", 24)
    machine.checkpoint("latest", 24)
    machine.write("run/metrics.jsonl", "{}\n" * 4)
    machine.write("run/curves.png", b"png")
    machine.write("run/summary.json", "{}")
    machine.job = ENDED


def test_in_mid_training_and_at_the_end(run, machine, said):
    fetch(run, watch=False)
    assert files_in(run.results) == expected(machine)
    text = said.read()
    assert "running for" in text and "1 best, 1 latest" in text
    assert f"mmattn evaluate {run.results} --data.roots 'my clips'" in text
    assert Run.find(run.name).fetched == "partial"
    finish(machine)
    fetch(run, watch=False)
    assert files_in(run.results) == expected(machine)
    text = said.read()
    assert "ended well" in text and "1 best, 1 final, 1 latest" in text
    assert Run.find(run.name).fetched == "complete"
    assert [path.name for path in run.results.parent.iterdir()] == [run.results.name]


def test_nothing_new_sends_nothing(run, machine):
    fetch(run, watch=False)
    machine.before_rsync = lambda: pytest.fail("nothing is missing")
    fetch(run, watch=False)


@pytest.mark.parametrize(
    ("job", "text"),
    [
        ({**ENDED, "exit_code": 3}, "diverged (exit code 3)"),
        ({"state": "lost"}, "lost: killed, exit code unknown"),
    ],
)
def test_how_the_job_ended(run, machine, said, job, text):
    machine.job = job
    fetch(run, watch=False)
    assert text in said.read()


def test_before_the_first_epoch(run, machine, said):
    shutil.rmtree(machine.files / "run")
    fetch(run, watch=False)
    text = said.read()
    assert "checkpoints: none; epochs: 0\n" in text
    assert "mmattn evaluate" not in text


def test_parts(run, machine, said):
    shutil.rmtree(machine.files / "run/checkpoints")
    (machine.files / "run/metrics.jsonl").unlink()
    for part in ("fold0", "fold1"):
        machine.write(f"run/{part}/config.json", json.dumps({"train": {"epochs": 4}}))
        machine.write(f"run/{part}/metrics.jsonl", "{}\n")
        machine.write(f"run/{part}/checkpoints/best/6/data", part)
    fetch(run, watch=False)
    assert files_in(run.results) == expected(machine)
    text = said.read()
    assert "checkpoints: 2 best; epochs: 2\n" in text
    assert "mmattn evaluate" not in text


def test_a_cut_transfer_is_resumed(run, machine, said):
    machine.write("run/large", os.urandom(4_000_000))
    machine.cut_after(3_000_000)
    fetch(run, watch=False)
    assert files_in(run.results) == expected(machine)
    assert "is unreachable: " in said.read()
    assert machine.sent() < 1_500_000


def test_a_transfer_that_was_given_up_is_resumed_by_the_next_fetch(run, machine, monkeypatch):
    fetch(run, watch=False)
    before = files_in(run.results)
    machine.write("run/large", os.urandom(4_000_000))
    finish(machine)
    machine.cut_after(3_000_000)
    monkeypatch.setattr(module, "persistent", lambda once: once)
    with pytest.raises(Unreachable, match="is unreachable"):
        fetch(run, watch=False)
    assert files_in(run.results) == before
    fetch(run, watch=False)
    assert files_in(run.results) == expected(machine)
    assert machine.sent() < 1_500_000


def test_killed_at_any_point_of_the_moving_in(run, machine, monkeypatch):
    """Whatever is in the results after a crash is whole, and the next fetch completes it."""
    fetch(run, watch=False)
    for number in range(100):
        shutil.rmtree(machine.files / "run/checkpoints")
        machine.checkpoint("best", 13 + number)
        machine.checkpoint("latest", 13 + number)
        machine.write("run/summary.json", str(number))
        machine.write("run/metrics.jsonl", "{}\n" * number)
        if not crash_at(number, run, monkeypatch):
            break
        for kind in ("best", "latest"):
            steps = list((run.results / "checkpoints" / kind).iterdir())
            newest = max(steps, key=lambda path: int(path.name))
            assert sorted(files_in(newest)) == ["d/0", "d/1", "d/2"]
            assert files_in(newest)["d/2"] == f"{kind} {newest.name} 2".encode()
        if (run.results / "summary.json").exists() and number > 0:
            summary = (run.results / "summary.json").read_text()
            assert summary != str(number) or newest.name == str(13 + number)
        fetch(run, watch=False)
        assert files_in(run.results) == expected(machine)
    assert number > 5


def crash_at(number: int, run: Run, monkeypatch) -> bool:
    """Fetch, and end like a killed process before the n-th change of a name; False if it ended."""
    count, replace, remove = 0, os.replace, shutil.rmtree

    def counted(call):
        def counting(*arguments, **options):
            nonlocal count
            count += 1
            if count > number:
                raise KeyboardInterrupt
            return call(*arguments, **options)

        return counting

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", counted(replace))
        patch.setattr(shutil, "rmtree", counted(remove))
        try:
            fetch(run, watch=False)
        except KeyboardInterrupt:
            return True
    return False


def test_a_file_replaced_while_copied_is_copied_again(run, machine):
    """As by a fetch from another computer, which makes the machine's copy anew."""

    def replace():
        machine.before_rsync = lambda: None
        machine.write("outbox/metrics.jsonl", "no\nno\n")
        machine.checkpoint("best", 18)

    machine.before_rsync = replace
    fetch(run, watch=False)
    assert files_in(run.results) == expected(machine)
    assert (run.results / "checkpoints/best/18").is_dir()


def test_corrupted_on_the_way(run, machine):
    fetch(run, watch=False)
    machine.write("run/predictions.csv", "a" * 100_000)
    machine.after_rsync = lambda: flip(staged(run) / "predictions.csv")
    fetch(run, watch=False)
    assert files_in(run.results) == expected(machine)


def staged(run: Run) -> Path:
    return run.results.with_name(f".{run.results.name}.fetching")


def flip(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(50_000)
        file.write(b"b")


def test_corrupted_each_time_is_one_error_and_replaces_nothing(run, machine, monkeypatch):
    fetch(run, watch=False)
    before, fetched = files_in(run.results), run.fetched
    machine.write("run/predictions.csv", "a" * 100_000)
    finish(machine)
    rsync = machine.rsync

    def bad(*arguments, **options):
        rsync(*arguments, **options)
        flip(staged(run) / "predictions.csv")

    monkeypatch.setattr(machine, "rsync", bad)
    with pytest.raises(RemoteError, match=r"predictions\.csv did not arrive intact") as error:
        fetch(run, watch=False)
    assert "\n" not in str(error.value)
    assert files_in(run.results) == before and Run.find(run.name).fetched == fetched


def test_a_log_grows_while_it_is_fetched(run, machine):
    def grow():
        with open(machine.files / "run/train.log", "a") as log:
            log.write("more\n")

    machine.before_rsync = grow
    fetch(run, watch=False)
    assert (run.results / "train.log").read_text() == "begin\nmore\n"


def test_a_long_log_is_sent_once(run, machine):
    machine.write("job/job.log", os.urandom(3_000_000))
    fetch(run, watch=False)
    with open(machine.files / "job/job.log", "ab") as log:
        log.write(b"more\n")
    fetch(run, watch=False)
    assert machine.sent() < 100_000
    assert files_in(run.results) == expected(machine)


def test_local_files_that_the_machine_has_not_stay(run, machine):
    fetch(run, watch=False)
    (run.results / "baseline.json").write_text("mine")
    finish(machine)
    fetch(run, watch=False)
    assert (run.results / "baseline.json").read_text() == "mine"
    assert not (run.results / "checkpoints/latest/12").exists()


def test_a_damaged_local_file_is_mended(run, machine):
    fetch(run, watch=False)
    (run.results / "checkpoints/best/6/d/1").write_text("best 6 X")
    fetch(run, watch=False)
    assert files_in(run.results) == expected(machine)


def test_a_run_that_went_on_here_is_not_put_back(run, machine):
    fetch(run, watch=False)
    shutil.copytree(run.results / "checkpoints/latest/12", run.results / "checkpoints/latest/18")
    before = files_in(run.results)
    with pytest.raises(UserError, match="latest/18 is newer than the machine's 12"):
        fetch(run, watch=False)
    assert files_in(run.results) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_local_disk_full(run, machine):
    run.results.parent.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(run.results.parent)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        fetch(run, watch=False)
        before = files_in(run.results)
        machine.write("run/large", os.urandom(2_000_000))
        finish(machine)
        with pytest.raises(UserError, match="no space left on the disk"):
            fetch(run, watch=False)
        assert files_in(run.results) == before
        (machine.files / "run/large").unlink()
        fetch(run, watch=False)
        assert files_in(run.results) == expected(machine)
    finally:
        subprocess.run(["umount", str(run.results.parent)], check=True)


@pytest.mark.parametrize("error", [CloudError("no network"), UserError("no credentials")])
def test_what_ec2_does_not_tell_ends_nothing(run, machine, said, monkeypatch, error):
    run.members, machine.unreachable = [Member("i-1", launched=0.0)], 3
    monkeypatch.setattr(Run, "cloud", Mock(side_effect=error))
    fetch(run, watch=False)
    assert files_in(run.results) == expected(machine)
    assert said.read().count(f"connection lost; EC2 cannot be asked: {error}; continuing") == 3


class GoneCloud:
    def instance(self, _):
        return None


@pytest.mark.parametrize("watch", [False, True])
def test_the_machine_is_gone(run, machine, monkeypatch, watch):
    run.members, machine.unreachable = [Member("i-1", launched=0.0)], 1
    monkeypatch.setattr(Run, "cloud", lambda _: GoneCloud())
    with pytest.raises(RemoteError, match=r"i-1, is terminated .* continues from its disk"):
        fetch(run, watch)


@pytest.mark.parametrize("path", ["../../.ssh/rc", "/etc/passwd", "job/../../x", ""])
def test_the_machine_cannot_write_elsewhere(run, machine, monkeypatch, path):
    bad = {"path": path, "size": 0, "sha256": "", "growing": False}
    about = {"complete": False, "files": [bad], "job": {}, "time": 0.0}
    monkeypatch.setattr(machine, "call", lambda *_, **__: about)
    with pytest.raises(RemoteError, match=f"{run.name}: expected paths of results"):
        fetch(run, watch=False)


def test_one_fetch_at_a_time(run, machine):
    with (
        locked("fetch", run.folder / "fetch"),
        pytest.raises(Busy, match=r"`fab fetch` .*is running"),
    ):
        fetch(run, watch=False)


def test_fetched_all(run, machine):
    assert not fetched_all(run)
    fetch(run, watch=False)
    assert fetched_all(run)
    with open(machine.files / "job/job.log", "a") as log:
        log.write("more")
    assert not fetched_all(run)
    fetch(run, watch=False)
    assert fetched_all(run)
    (run.results / "metrics.jsonl").unlink()
    assert not fetched_all(run)


def test_other_commands_may_change_the_state_meanwhile(run, machine):
    other = Run.find(run.name)
    other.to("there")
    fetch(run, watch=False)
    assert Run.find(run.name).state == "there"


def test_watch_follows_to_the_end_through_drops(run, machine, said, monkeypatch):
    """Training and connection drops at once; each epoch is fetched, and at last everything."""
    polled = threading.Event()

    def sleep(seconds: float) -> None:
        polled.set()
        time.sleep(seconds)

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep))

    def train():
        for step in range(13, 23):
            polled.wait(10)
            polled.clear()
            machine.checkpoint("latest", step)
            with open(machine.files / "job/job.log", "a") as log:
                log.write(f"epoch {step}\n")
            machine.write("run/metrics.jsonl", "{}\n" * step)
            if step % 4 == 0:
                machine.unreachable = 2
                machine.cut_after(100)
        finish(machine)

    training = threading.Thread(target=train)
    training.start()
    fetch(run, watch=True)
    training.join()
    assert files_in(run.results) == expected(machine)
    text = said.read()
    assert text.count("fetched: checkpoints") > 2 and "connection lost" in text
    assert "1 final" in text and Run.find(run.name).fetched == "complete"


def test_fetched_while_a_real_run_trains(run, machine, commands, tiny_run, tmp_path):
    """Each fetch in mid-training gives a run that loads; one gone on with ends as if not moved."""
    shutil.rmtree(machine.files / "run")
    process = commands.start(
        "experiments.no_aug", *commands.tiny, "--devices", 2, "--out", machine.files / "run"
    )
    fetched, moved = 0, tmp_path / "moved"
    while process.poll() is None:
        fetch(run, watch=False)
        about = {kind: Checkpoints(run.results).about(kind) for kind in ("best", "latest")}
        if all(about.values()):
            fetched += 1
            if not moved.exists() and len(about["latest"]["history"]) >= 3:
                shutil.copytree(run.results, moved)
    text, _ = process.communicate()
    assert process.returncode == 0, text
    assert fetched > 1
    machine.job = ENDED
    fetch(run, watch=False)
    assert files_in(run.results) == expected(machine)
    assert not (moved / "summary.json").exists()
    text = commands.run("experiments.no_aug", "--resume", "--out", moved)
    assert "resumed after epoch" in text
    for name in ("predictions.csv", "predictions_validation.csv", "split.json"):
        assert (moved / name).read_bytes() == (tiny_run / name).read_bytes()


# A job that replaces its checkpoints until there is a file named end.
JOB = """
import os, pathlib, shutil, time
run, step = pathlib.Path("../run"), 0
run.mkdir(exist_ok=True)
(run / "config.json").write_text('{"train": {"epochs": 1000}}')
(run / "large").write_bytes(os.urandom(24_000_000))
def save(kind):
    new = run / "checkpoints" / kind / f"{step}.orbax-checkpoint-tmp"
    new.mkdir(parents=True)
    for number in range(20):
        (new / str(number)).write_text(str(step))
    old = [path for path in new.parent.iterdir() if path.name.isdigit()]
    new.rename(new.with_name(str(step)))
    for path in old:
        shutil.rmtree(path)
while not pathlib.Path("../end").exists():
    step += 1
    for kind in ("best", "latest"):
        save(kind)
    (run / ".new").write_text("{}\\n" * step)
    os.replace(run / ".new", run / "metrics.jsonl")
    print("epoch", step, flush=True)
    time.sleep(0.5)
save("final")
(run / "summary.json").write_text("{}")
"""


class SlowMachine(Machine):
    """A real one by a line of 2 MB/s."""

    def rsync(self, *arguments, **options):
        super().rsync("--bwlimit=2m", *arguments, **options)


def test_a_real_machine_whose_connection_drops(run, guest, said, tmp_path, monkeypatch):
    base = guest.root / guest.home.lstrip("/") / run.base
    guest.ssh(f"mkdir -p {run.base}/code {run.base}/job")
    shutil.copytree(AGENT, base / "agent")
    guest.run(f"chown -R {guest.user}: {guest.home}/{run.base}")  # only an owner makes hard links
    words = ["python3", f"{run.base}/agent", "job", f"{run.base}/job", "start"]
    guest.ssh(shlex.join([*words, "python3", "-c", JOB]))
    known = tmp_path / "known_hosts"
    known.write_text(guest.known_hosts_line)
    access = Access(guest.address, guest.user, own=(known, guest.key_file))
    monkeypatch.setattr(Run, "machine", lambda _: SlowMachine(access, run.folder, run.base))

    drops = []
    pause = SimpleNamespace(sleep=lambda _: drops.append(time.sleep(0.5)))
    monkeypatch.setattr(tenacity.nap, "time", pause)

    def half_way(size: int) -> bool:
        parts = staged(run).rglob("*large*") if staged(run).exists() else ()
        with suppress(FileNotFoundError):  # renamed meanwhile
            return any(path.stat().st_size > size for path in parts)
        return False

    def interfere() -> None:
        try:
            for size, cut, mend in (
                (3_000_000, guest.kill_ssh_connections, lambda: None),
                (6_000_000, guest.cut_link, guest.mend_link),
            ):
                wait_until(lambda size=size: half_way(size))
                before = len(drops)
                cut()
                wait_until(lambda before=before: len(drops) > before)
                mend()
            wait_until(lambda: "fetched: checkpoints" in said.text)
            assert (base / "outbox/job/status.json").exists()  # links were made
        finally:
            (base / "end").touch()

    def sent() -> int:
        return int(guest.run("cat /sys/class/net/eth0/statistics/tx_bytes"))

    before = sent()
    with ThreadPoolExecutor() as pool:
        trouble = pool.submit(interfere)
        fetch(run, watch=True)
        trouble.result()
    assert "continuing" in said.text
    assert sent() - before < 28_000_000
    found = files_in(run.results)
    assert found.pop("job/job.log").decode().splitlines()[-1].startswith("epoch")
    assert found["summary.json"] == b"{}"
    for kind in ("best", "latest", "final"):
        (step,) = (run.results / "checkpoints" / kind).iterdir()
        assert set(files_in(step).values()) == {step.name.encode()}
    assert (
        hashlib.sha256(found["large"]).digest()
        == hashlib.sha256((base / "run/large").read_bytes()).digest()
    )
    assert fetched_all(run)


# From a bucket


@pytest.fixture
def push(run, store):
    """Puts results of the run in a bucket, as its machine does."""
    run.host, run.results_uri = None, f"s3://{store.name}/trainings"

    def push(job: dict, **contents: bytes) -> None:
        files = []
        for path, content in contents.items():
            digest = hashlib.sha256(content).hexdigest()
            file = {"path": path, "size": len(content), "sha256": digest, "growing": False}
            files.append(file)
            store.write(f"trainings/{run.name}/{path}@{digest}", content)
        made = {"job": job, "time": 0.0, "complete": "summary.json" in contents, "files": files}
        store.write(f"trainings/{run.name}/manifest.json", json.dumps(made).encode())

    return push


def test_a_bucket(run, push, cloud_api):
    with pytest.raises(RemoteError, match="no results yet"):
        fetch(run, watch=False)
    contents = {"config.json": b"{}", "checkpoints/best/6/d/a": b"6", "job/job.log": b"\xff"}
    push(RUNNING, **contents)
    fetch(run, watch=False)
    assert files_in(run.results) == contents and run.fetched == "partial"
    cloud_api.calls.clear()
    contents["summary.json"] = b"{}"
    push(ENDED, **contents)
    fetch(run, watch=False)
    assert files_in(run.results) == contents and run.fetched == "complete"
    read = [call.parameters["Key"] for call in cloud_api.calls if call.action == "GetObject"]
    assert [key.rpartition("/")[2][:12] for key in read] == ["manifest.jso", "summary.json"]


def test_watching_a_bucket_ends_with_a_machine_that_pushes_no_more(run, push, said, monkeypatch):
    """At the last it did not hear of the job's end."""
    push(RUNNING, **{"config.json": b"{}"})

    def gone(*_):
        push(RUNNING, **{"config.json": b"{}", "metrics.jsonl": b"{}\n"})
        raise RemoteError("i-1 is terminated")

    answers = iter([lambda *_: "; it is running", gone])
    monkeypatch.setattr(module, "ask_cloud", lambda *_: next(answers)())
    fetch(run, watch=True)
    assert (run.results / "metrics.jsonl").read_bytes() == b"{}\n"
    assert "i-1 is terminated" in said.text


def test_a_bucket_out_of_reach_for_a_while(run, push, said, monkeypatch):
    push(ENDED, **{"config.json": b"{}"})
    ask, cuts = Bucket.manifest, [1, 1]

    def cut(bucket):
        if cuts and cuts.pop():
            raise failures.EndpointConnectionError(endpoint_url="s3")
        return ask(bucket)

    monkeypatch.setattr(Bucket, "manifest", cut)
    fetch(run, watch=False)
    assert said.text.count("continuing") == 2 and (run.results / "config.json").exists()


def gone(*asked):
    raise RemoteError("it is terminated")


def test_a_download_that_is_cut_each_time(run, push, said, monkeypatch):
    push(ENDED, **{"config.json": b"{}"})
    cuts, save = [1, 1], Bucket.save

    def cut(*arguments):
        if cuts and cuts.pop():
            raise RetriesExceededError("cut")
        save(*arguments)

    monkeypatch.setattr(Bucket, "save", cut)
    monkeypatch.setattr(module, "ask_cloud", gone)  # the machine has ended, as it does by itself
    fetch(run, watch=False)
    assert said.text.count("continuing") == 2 and (run.results / "config.json").exists()


def test_what_is_damaged_in_a_bucket_is_one_message(run, push, store):
    push(ENDED, **{"config.json": b"{}"})
    digest = hashlib.sha256(b"{}").hexdigest()
    store.write(f"trainings/{run.name}/config.json@{digest}", b"[]")
    with pytest.raises(RemoteError, match=r"config\.json@.* was damaged on the way"):
        fetch(run, watch=False)
    assert not run.results.exists()
    push(ENDED, **{"../x": b"{}"})
    with pytest.raises(RemoteError, match=r"manifest\.json: expected paths of results"):
        fetch(run, watch=False)
