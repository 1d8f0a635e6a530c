"""`fab deploy --host`: training on a machine that exists, which is left as it was found."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mmattn.remote.runs import Run
from tests.remote.test_whole import FAB, copy_project
from tests.remote.test_whole import Session as Shell
from tests.remote.waiting import wait_until

EPOCHS = 400  # on a slow machine, too, it is stopped long before it ends
TIMED = ("clips_per_s", "seconds")
STOPPED = 75


class Session(Shell):
    """A user's shell in a copy of the project, with a key agent and a home of its own."""

    def __init__(self, folder: Path, guest, agent: Path):
        # OpenSSH asks the agent alone: the home of its user is not the one of this environment.
        home = {"HOME": str(folder / "home"), "SSH_AUTH_SOCK": str(agent)}
        super().__init__(folder / "project", home)
        copy_project(self.folder)
        self.guest, self.address = guest, f"{guest.user}@{guest.address}"
        self.known_hosts = folder / "home/.ssh/known_hosts"
        self.known_hosts.parent.mkdir(parents=True)

    def trust(self) -> None:
        self.known_hosts.write_text(self.guest.known_hosts_line)


@pytest.fixture(scope="module")
def guest(boot_guest, wheelhouse):
    with boot_guest(wheelhouse) as guest:
        yield guest


@pytest.fixture
def session(guest, tmp_path, monkeypatch) -> Iterator[Session]:
    agent = tmp_path / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", agent], stdout=subprocess.DEVNULL) as process:
        wait_until(agent.exists)
        with_agent = {**os.environ, "SSH_AUTH_SOCK": str(agent)}
        subprocess.run(["ssh-add", "-q", guest.key_file], env=with_agent, check=True)
        session = Session(tmp_path, guest, agent)
        monkeypatch.chdir(session.folder)
        yield session
        process.terminate()


@pytest.fixture
def corpus(tmp_path) -> list[Path]:
    """Two folders with 144 feature files of 12 speakers; one of the files is a link."""
    rng = np.random.default_rng(0)
    folders = [tmp_path / "some clips", tmp_path / "more"]
    for actor in range(1, 13):
        folder = folders[actor % 2] / f"Actor_{actor:02d}"
        folder.mkdir(parents=True)
        for emotion in (1, 3, 4, 5, 6, 7):
            for take in (1, 2):
                frames = {"audio": (rng.integers(20, 60), 8), "video": (rng.integers(15, 45), 6)}
                arrays = {
                    f"{modality}_features": (rng.standard_normal(shape) + 0.3 * emotion).astype(
                        "f4"
                    )
                    for modality, shape in frames.items()
                }
                arrays["audio_timestamps"] = np.arange(frames["audio"][0]) / 20
                arrays["video_timestamps"] = np.arange(frames["video"][0]) / 15
                np.savez(folder / f"03-01-0{emotion}-01-01-0{take}-{actor:02d}.npz", **arrays)
    linked = next(folders[0].rglob("*.npz"))
    linked.symlink_to(linked.rename(tmp_path / "elsewhere"))
    return folders


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows(folder: Path) -> list[dict]:
    """The metrics of a run, without what differs from one computer to another."""
    path = folder / "metrics.jsonl"
    lines = map(json.loads, path.read_text().splitlines() if path.exists() else ())
    return [{key: row[key] for key in row if key not in TIMED} for row in lines]


def flat(text: str) -> str:
    """Without line breaks: where they are depends on the names in it."""
    return re.sub(r"\s+", " ", text)


def on_machine(session: Session) -> Path:
    """The folder of the latest run on the machine, seen from here."""
    return session.guest.root / session.guest.home[1:] / Run.find().base


def assert_nothing_is_left(session: Session) -> None:
    assert session.guest.is_on
    assert not any((session.guest.root / session.guest.home[1:] / "mmattn").glob("*"))
    assert "/mmattn/" not in session.guest.run("ps -eo args")


def as_there(environment: dict[str, str]) -> dict[str, str]:
    """An environment in which numbers come out as on the machine, to the last bit.

    It has no C++ compiler, and nobody there has told OpenBLAS which processor to compute for, or
    XLA to compile quickly.
    """
    others = ("OPENBLAS_", "XLA_FLAGS")
    own = {name: environment[name] for name in environment if not name.startswith(others)}
    return {**own, "MMATTN_KERNEL": "jax"}


def test_an_unknown_host_key_is_refused_before_anything_is_sent(session):
    asked = ("deploy", "--host", session.address, "--yes")
    text = session.fab(*asked, code=2)
    assert "log in once with ssh, compare the key with the machine's own" in flat(text)
    session.known_hosts.write_text(
        "elsewhere.example " + session.guest.known_hosts_line.split(" ", 1)[1]
    )
    text = session.fab(*asked, code=2)
    assert "log in once with ssh, compare the key with the machine's own" in flat(text)
    assert not list((session.folder / ".fab").glob("*/state.json"))
    assert not (session.guest.root / session.guest.home[1:] / "mmattn").exists()
    assert "Accepted" not in session.guest.run("journalctl --unit=ssh")


def test_a_shell_on_the_machine(session):
    session.trust()
    Run("no_aug-20261125-000000-ab12", "no_aug", host=session.address).save()
    done = subprocess.run(
        [*FAB, "ssh"],
        cwd=session.folder,
        env=session.environment,
        input="echo $((6 * 7)) on $(hostname); exit 3\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 3, done.stderr
    assert f"42 on {session.guest.run('hostname').strip()}\n" in done.stdout


def test_a_deployment_that_is_given_up_leaves_nothing(session, corpus):
    """Its data were there, whole, and its environment was just being built."""
    session.trust()
    data = [word for folder in corpus for word in ("--data", str(folder))]
    asked = ("deploy", "--host", session.address, *data, "--yes")
    session.fab_killed_at("building the environment", *asked)
    base = on_machine(session)
    for number, folder in enumerate(corpus):
        assert files(base / f"data/{number}") == files(folder)
    wait_until(lambda: (base / "venv/bin/python").exists())
    assert "nothing is left" in session.fab("teardown")
    assert_nothing_is_left(session)


def test_from_deploy_to_teardown_with_a_stop_between(session, corpus, commands, tmp_path, request):
    """It ends like a run here that nobody stopped."""
    session.trust()
    tiny = list(commands.tiny[commands.tiny.index("--data.buckets") :])
    tiny[tiny.index("--train.epochs") + 1] = tiny[tiny.index("--train.patience") + 1] = str(EPOCHS)
    tiny += ["--devices", "2"]
    reference, cache = tmp_path / "reference", ("--data.cache", str(tmp_path / "cache"))
    roots = ["--data.roots", *map(str, corpus)]
    here = subprocess.Popen(
        [sys.executable, "-m", "experiments.no_aug", *tiny, *roots, *cache, "--out", reference],
        env=as_there(commands.environment),
        stdout=subprocess.DEVNULL,
    )
    request.addfinalizer(here.wait)

    data = [word for folder in corpus for word in ("--data", str(folder))]
    asked = ("deploy", "--host", session.address, *data, "--args", " ".join(tiny), "--yes")
    assert "is training" in session.fab(*asked)
    run, base = Run.find(), on_machine(session)
    wait_until(lambda: len(rows(base / "run")) > 1)
    assert "exit code 75" in session.fab("stop")
    session.fab("monitor", code=STOPPED)
    assert 1 < len(rows(base / "run")) < EPOCHS
    assert "not fetched" in session.fab("teardown", code=2)
    session.fab("resume")
    text = session.fab("monitor")
    assert "exit code 0" in text
    session.fab("fetch")

    assert here.wait() == 0
    assert rows(run.results) == rows(reference)
    for name in ("predictions.csv", "predictions_validation.csv", "split.json"):
        assert (run.results / name).read_bytes() == (reference / name).read_bytes()
    for kind in ("best", "final"):
        told = [
            commands.run("mmattn", "evaluate", folder, "--checkpoint", kind, *roots, *cache)
            for folder in (run.results, reference)
        ]
        fetched, expected = (re.findall("(?m)^ .*", text) for text in told)  # the tables
        assert fetched == expected != []

    assert f"nothing is left on {session.address}" in flat(session.fab("teardown"))
    assert_nothing_is_left(session)
    assert session.guest.ssh("echo there") == "there\n"
