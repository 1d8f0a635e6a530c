"""One session from `fab deploy` to `fab teardown`, with everything real but Amazon.

An API that speaks EC2's protocol, machines that boot with cloud-init and systemd, OpenSSH, rsync,
pip, and the real experiment on the built-in corpus. MMATTN_TRANSCRIPT names a file for what was
typed and shown.
"""

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mmattn.remote.runs import Run
from tests.remote.waiting import wait_until

PROJECT = Path(__file__).parents[2]
EPOCHS = 400
RECORDED = """\
Recorded by `MMATTN_TRANSCRIPT=docs/remote-session.txt pytest tests/remote/test_whole.py`, which
appends: a server that speaks the APIs of EC2, S3 and IAM, and machines of two cores on the same
computer that boot with cloud-init and systemd. First without a bucket, then with one. The data are
synthetic; the settings are chosen to make the training last, not to learn.
"""
FAB = (sys.executable, "-c", "from fabric.main import program; program.run()")


class Session:
    """A user's shell in a copy of the project: runs `fab`, keeps what was shown."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.shown, self.begin = folder, [], time.monotonic()
        self.environment = {**os.environ, **environment, "COLUMNS": "100"}
        self.commands: set[str] = set()
        self.args = "nothing"
        threading.Thread(target=self._watch_commands, daemon=True).start()

    def start(self, *words: str, **options) -> subprocess.Popen:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options}
        return subprocess.Popen(
            [*FAB, *words],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            **options,
        )

    def fab(self, *words: str, code: int = 0) -> str:
        """Run a task to its end; its exit code must be as said."""
        process = self.start(*words)
        text = process.communicate(timeout=600)[0].decode()
        self.note(words, text + f"(exit code {code})\n" * bool(code))
        assert process.returncode == code, text
        assert "Traceback" not in text
        return text

    def fab_killed_at(self, sign: str, *words: str) -> None:
        """Run a task and kill it as soon as it says something."""
        process = self.start(*words)
        text = ""
        for line in map(bytes.decode, process.stdout):
            text += line
            if sign in line:
                process.kill()
                break
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL, text
        self.note(words, f"{text}(killed here)\n")

    def evaluate(self, folder: Path, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mmattn", "evaluate", str(folder), *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        self.note(("mmattn", "evaluate", str(folder), *words), done.stdout)
        return done.stdout

    def note(self, words, text: str) -> None:
        command = shlex.join(words if words[0] == "mmattn" else ("fab", *words))
        command = command.replace(shlex.quote(self.args), '"$ARGS"')
        lines = [f"$ {command}  # {time.monotonic() - self.begin:.0f} s", *text.splitlines()]
        self.shown.append("\n".join(line.rstrip() for line in lines).rstrip() + "\n")

    def _watch_commands(self) -> None:
        """Collect the command lines of all processes: a secret must be in none."""
        while True:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.commands.add(path.read_text(errors="replace"))
                except OSError:
                    continue
            time.sleep(0.05)


def copy_project(project: Path) -> None:
    """The project as git has it, in a new folder."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (PROJECT / name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, project / name)
    subprocess.run(["git", "init", "--quiet", project], check=True)


@pytest.fixture
def session(tmp_path, cloud):
    """A shell in a copy of the project, and an account with nothing in it."""
    project = tmp_path / "project"
    copy_project(project)
    (project / "runs").mkdir()
    (project / "runs" / "ignored").write_text("git ignores this folder")
    session = Session(project, cloud.environment)
    yield session
    if path := os.environ.get("MMATTN_TRANSCRIPT"):
        with open(path, "a") as file:
            file.write("\n".join([RECORDED] * (not file.tell()) + session.shown) + "\n")


def test_from_deploy_to_teardown(session, cloud, wheelhouse, commands, monkeypatch):
    monkeypatch.chdir(session.folder)
    options = list(commands.tiny)
    options[options.index("--train.epochs") + 1] = str(EPOCHS)
    options[options.index("--train.patience") + 1] = str(EPOCHS)
    options += ["--train.learning-rate", "1e-5", "--devices", "2"]
    session.args = shlex.join(options)
    session.shown.append(f"$ ARGS={shlex.quote(session.args)}\n")
    asked = ("deploy", "--args", session.args, "--spot", "--max-hours", "2", "--yes")

    text = " ".join(session.fab(*asked, "--dry-run").split())
    assert "the most that the spot machine may cost" in text
    assert not cloud.api.resources()
    for sign in ("waiting until", "waiting for", "building the environment"):
        session.fab_killed_at(sign, *asked)
    assert "is training" in session.fab(*asked)
    assert cloud.api.resources() == {
        "instances": 1, "key pairs": 1, "security groups": 1, "volumes": 1, "alarms": 2
    }  # fmt: skip
    run = Run.find()
    guest = cloud.guest(run.instance_id)
    home = guest.root / guest.home.lstrip("/") / run.base
    assert not (home / "code/runs").exists()

    assert_host_key_renewed(run, guest)
    follow_through_drops(session, guest, home)

    # The training waits, so that it has not ended when it is interrupted, however slow this is.
    group = json.loads((home / "job/status.json").read_text())["pid"]
    guest.run(f"kill -STOP -{group}")
    text = session.fab("monitor", "--quick")
    assert f"of {EPOCHS}" in text
    assert "running for" in session.fab("fetch")
    rows = read_rows(run.results)
    best = max(rows, key=lambda row: row["validation_accuracy"])
    text = session.evaluate(run.results, "--checkpoint", "best")
    assert f"{best['validation_accuracy']:.3f}" in text

    assert "is still training" in session.fab("teardown", code=2)
    watcher = session.start("fetch", "--watch")
    cloud.interrupt_spot(run.instance_id, notice_s=75)
    wait_until(lambda: json.loads((home / "job/guard.json").read_text())["reason"] == "spot")
    guest.run(f"kill -CONT -{group}")
    text = watcher.communicate(timeout=120)[0].decode()  # ends with the job, which has saved
    session.note(("fetch", "--watch"), text)
    assert "(exit code 75)" in text
    guest.wait_until_off(90)
    wait_until(lambda: cloud.api.resources().get("instances") is None)
    session.fab("monitor", code=2)

    text = session.fab("resume", "--yes")
    assert "from what is on its kept disk" in text and "continues from its kept disk" in text
    assert "mix both" not in text
    again = Run.find()
    assert (again.name, again.attempt) == (run.name, 2)
    assert again.instance_id != run.instance_id
    guest = cloud.guest(again.instance_id)
    path = session.folder.parent / "followed"
    with open(path, "wb") as file:
        follower = session.start("monitor", "--follow", stdout=file, stderr=subprocess.DEVNULL)
        assert follower.wait(600) == 0
    followed = path.read_bytes()
    session.note(("monitor", "--follow"), shortened(followed))
    text = session.fab("monitor")
    assert "finished" in text or "exit code 0" in text, text
    assert "not fetched" in session.fab("teardown", code=2)
    session.fab("fetch")
    assert followed == (run.results / "job/job.log").read_bytes()
    assert len(read_rows(run.results)) == EPOCHS
    summary = json.loads((run.results / "summary.json").read_text())
    for kind in ("best", "final"):
        text = session.evaluate(run.results, "--checkpoint", kind)
        if kind == "best":
            assert f"{summary['test']['uar']['value']:.3f}" in text

    session.fab("ls")
    text = session.fab("teardown")
    assert "nothing is left" in text
    assert not cloud.api.resources()
    guest.wait_until_off()
    assert "removed" in session.fab("ls")
    assert_no_secret(session, cloud, run)


def test_with_a_bucket_the_machine_ends_when_its_job_has(
    session, cloud, wheelhouse, commands, monkeypatch
):
    """Data from there, results to there; this computer is away, and keeps nothing running."""
    monkeypatch.chdir(session.folder)
    s3 = cloud.api.client("s3")
    s3.create_bucket(Bucket="trainings")
    corpus = session.folder.parent / "corpus"
    write_corpus(corpus)
    for path in corpus.rglob("*.npz"):
        s3.upload_file(str(path), "trainings", f"clips/{path.name}")
    options = list(commands.tiny[commands.tiny.index("--data.buckets") :])
    options[options.index("--train.epochs") + 1] = "4"
    session.args = shlex.join(options)
    asked = ("deploy", "--data", "s3://trainings/clips", "--results", "s3://trainings/runs")
    asked += ("--args", session.args, "--grace-minutes", "600", "--yes")
    text = session.fab(*asked, "--dry-run")
    assert "72 files" in text and "writable" in text
    assert not cloud.api.resources()
    assert "is training" in session.fab(*asked)
    run = Run.find()
    guest = cloud.guest(run.instance_id)
    guest.wait_until_off(300)
    wait_until(lambda: not {"instances", "volumes"} & set(cloud.api.resources()))
    assert "`fab fetch` downloads what is there" in session.fab("monitor", code=2)
    session.fab("fetch")
    assert len(read_rows(run.results)) == 4
    session.evaluate(run.results, "--checkpoint", "best", "--data.roots", str(corpus))
    assert "nothing is left" in session.fab("teardown")
    assert not cloud.api.resources()
    kept = s3.list_objects_v2(Bucket="trainings", Prefix=f"runs/{run.name}/")
    assert kept["KeyCount"] > 4


def write_corpus(folder: Path) -> None:
    """72 feature files of 12 speakers."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for actor, emotion in itertools.product(range(1, 13), (1, 3, 4, 5, 6, 7)):
        arrays = {}
        for modality, frames, rate, width in (("audio", 30, 20, 8), ("video", 22, 15, 6)):
            features = rng.standard_normal((frames, width)) + 0.3 * emotion
            arrays[f"{modality}_features"] = features.astype("f4")
            arrays[f"{modality}_timestamps"] = np.arange(frames) / rate
        np.savez(folder / f"03-01-0{emotion}-01-01-01-{actor:02d}.npz", **arrays)


def assert_host_key_renewed(run: Run, guest) -> None:
    """The one that was in the user data proves nothing any more."""
    (known,) = (run.folder / "known_hosts").read_text().splitlines()
    now = (guest.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[1]
    first = (run.folder / "host_key.pub").read_text().split()[1]
    assert known.split()[2] == now != first


def follow_through_drops(session: Session, guest, home: Path) -> None:
    """`fab monitor --follow` through four kinds of drop: it writes the log, byte for byte."""
    path, told = session.folder.parent / "followed", session.folder.parent / "told"
    log = home / "job/job.log"

    def drops() -> int:
        return told.read_text().count("connection lost")

    with open(path, "wb") as file, open(told, "wb") as errors:
        follower = session.start("monitor", "--follow", stdout=file, stderr=errors)
        for begin, end, noticed in (
            (guest.kill_ssh_connections, lambda: None, False),  # at once there is another
            (guest.stop_sshd, guest.start_sshd, True),
            (guest.freeze_sshd, guest.thaw_sshd, True),
            (guest.cut_link, guest.mend_link, True),
        ):
            wait_to_grow(path, 0)
            least = drops() + noticed
            begin()
            wait_until(lambda least=least: drops() >= least)
            wait_to_grow(log, log.stat().st_size + 200)
            end()
            wait_to_grow(path, log.stat().st_size)
        follower.send_signal(signal.SIGINT)
        assert follower.wait(30) == 130
    followed = path.read_bytes()
    assert followed == log.read_bytes()[: len(followed)]
    faults = "connections killed, sshd stopped, sshd frozen, link cut; then Ctrl-C"
    text = f"{shortened(followed)}({faults}; to the standard error:)\n{told.read_text()}"
    session.note(("monitor", "--follow"), text)


def shortened(log: bytes, begin: int = 16, end: int = 4) -> str:
    """A log, of which the middle is left out."""
    lines = log.decode().splitlines(keepends=True)
    left_out = f"({len(lines) - begin - end} lines are left out here)\n"
    return "".join([*lines[:begin], left_out, *lines[-end:]])


def assert_no_secret(session: Session, cloud, run: Run) -> None:
    """Nothing secret was shown or on a command line; nobody else was let in."""
    public = " ".join(session.shown) + " ".join(session.commands)
    assert "a-secret-that-no-log-may-show" not in public
    assert "PRIVATE KEY" not in public
    rules = [
        value
        for call in cloud.api.calls
        if call.action == "AuthorizeSecurityGroupIngress"
        for name, value in call.parameters.items()
        if "Cidr" in name
    ]
    assert rules
    assert all(re.fullmatch(r"[\d.]+/32", rule) for rule in rules)
    for path in (session.folder / ".fab").rglob("*"):
        assert not path.stat().st_mode & 0o077 or "PRIVATE KEY" not in path.read_text(), path
    assert (session.folder / ".fab").stat().st_mode & 0o777 == 0o700


def read_rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def wait_to_grow(path: Path, size: int) -> None:
    wait_until(lambda: path.exists() and path.stat().st_size > size)
