"""The machine's copy of the results is consistent, whatever training does meanwhile."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmattn.remote.agent import outbox
from mmattn.remote.agent.outbox import describe
from tests.remote.programs import program


@pytest.fixture
def base(tmp_path) -> Path:
    """A run's folder on the machine."""
    for name, text in {
        "run/config.json": "{}",
        "run/metrics.jsonl": "{}\n",
        "run/train.log": "begin\n",
        "run/checkpoints/best/8/about/metadata": "8",
        "run/checkpoints/latest/8/about/metadata": "8",
        "job/spec.json": "{}",
        "job/job.log": "begin\n",
        "code/mmattn.py": "",
    }.items():
        write(tmp_path / name, text)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def make_outbox(base: Path) -> dict:
    return outbox.make_outbox(base / "job", "outbox")


def paths(answer: dict) -> set[str]:
    return {file["path"] for file in answer["files"]}


def rotate(kind: Path, step: int, files: int = 20) -> None:
    """A new checkpoint as orbax makes it: renamed when it is whole, then the old one is deleted."""
    unfinished = kind / f"{step}.orbax-checkpoint-tmp"
    for number in range(files):
        write(unfinished / "d" / str(number), str(step))
    old = [path for path in kind.iterdir() if path.name.isdigit()]
    unfinished.rename(kind / str(step))
    for path in old:
        shutil.rmtree(path)


def test_all_results_and_nothing_else(base):
    for name in ("lock", "guard.json", "pushed", ".status.json.12.partial"):
        write(base / "job" / name, "")
    write(base / "run/.metrics.jsonl.12.partial", "")
    write(base / "run/checkpoints/best/9.orbax-checkpoint-tmp/about/metadata", "9")
    (base / "run/link").symlink_to(base / "code")
    os.mkfifo(base / "run/pipe")
    answer = make_outbox(base)
    assert answer["job"]["state"] == "absent" and not answer["complete"]
    assert abs(answer["time"] - time.time()) < 60
    assert paths(answer) == {
        *("config.json", "metrics.jsonl", "train.log"),
        *("checkpoints/best/8/about/metadata", "checkpoints/latest/8/about/metadata"),
        *("job/spec.json", "job/job.log"),
    }
    for file in answer["files"]:
        content = (base / "outbox" / file["path"]).read_bytes()
        assert file["size"] == len(content)
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
        assert file["growing"] == file["path"].endswith(".log")
        place = base if file["path"].startswith("job/") else base / "run"
        assert os.path.samefile(base / "outbox" / file["path"], place / file["path"])


def test_parts_and_summaries(base):
    write(base / "run/fold0/member1/checkpoints/final/12/data", "12")
    write(base / "run/fold0/member1/summary.json", "{}")
    answer = make_outbox(base)
    assert "fold0/member1/checkpoints/final/12/data" in paths(answer)
    assert not answer["complete"]
    write(base / "run/summary.json", "{}")
    assert make_outbox(base)["complete"]


def test_a_summary_is_linked_before_what_it_tells_of(base, monkeypatch):
    write(base / "run/fold0/summary.json", "{}")
    write(base / "run/summary.json", "{}")
    linked, link = [], os.link
    monkeypatch.setattr(os, "link", lambda *of: linked.append(of[0]) or link(*of))
    make_outbox(base)
    assert linked[:2] == [base / "run/summary.json", base / "run/fold0/summary.json"]
    assert [path.parts[-4] for path in linked[2:4]] == ["latest", "best"]


def test_a_half_deleted_checkpoint_beside_a_newer_one_is_left_out(base):
    write(base / "run/checkpoints/best/10/about/metadata", "10")
    assert "checkpoints/best/10/about/metadata" in paths(make_outbox(base))
    assert "checkpoints/best/8/about/metadata" not in paths(make_outbox(base))


@pytest.mark.parametrize("moment", [1, 2])
def test_replaced_in_the_middle(base, monkeypatch, moment):
    """Training replaces the checkpoint after it was chosen, and again after it was linked."""
    newest, calls = outbox.newest, 0

    def replaced(folder):
        nonlocal calls
        found, calls = newest(folder), calls + 1
        if calls == moment:
            rotate(folder, 9, files=2)
            rotate(folder, 10, files=2)
        return found if moment == 1 else newest(folder)

    shutil.rmtree(base / "run/checkpoints/latest")
    monkeypatch.setattr(outbox, "newest", replaced)
    answer = make_outbox(base)
    assert {path for path in paths(answer) if "checkpoints" in path} == {
        "checkpoints/best/10/d/0",
        "checkpoints/best/10/d/1",
    }
    assert [path.name for path in (base / "outbox/checkpoints/best").iterdir()] == ["10"]


def test_before_anything_is_there(tmp_path):
    (tmp_path / "job").mkdir()
    assert make_outbox(tmp_path)["files"] == []


def test_the_copy_outlives_what_training_replaces(base):
    answer = make_outbox(base)
    rotate(base / "run/checkpoints/best", 9)
    write(base / "run/new", "other")
    os.replace(base / "run/new", base / "run/metrics.jsonl")
    for file in answer["files"]:
        assert describe(base / "outbox", base / "outbox" / file["path"]) == file
    assert not (base / "outbox/checkpoints/best/9").exists()
    make_outbox(base)
    assert not (base / "outbox/checkpoints/best/8").exists()


def test_a_log_is_read_as_far_as_it_goes(base):
    stop = threading.Event()

    def grow():
        with open(base / "job/job.log", "a") as log:
            while not stop.is_set():
                log.write("line\n" * 1000)
                log.flush()
                time.sleep(0.001)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        answers = [make_outbox(base) for _ in range(20)]
    finally:
        stop.set()
        writer.join()
    content = (base / "job/job.log").read_bytes()
    sizes = []
    for answer in answers:
        (log,) = (file for file in answer["files"] if file["path"] == "job/job.log")
        assert log["sha256"] == hashlib.sha256(content[: log["size"]]).hexdigest()
        sizes.append(log["size"])
    assert sizes == sorted(sizes) and sizes[-1] > sizes[0]


def test_never_a_torn_checkpoint(base):
    """A writer in a process of its own replaces checkpoints as fast as it can."""
    (base / "run/checkpoints/final").mkdir()
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_outbox as t; t.rotate_all()"
    arguments = [sys.executable, "-c", code, str(Path(__file__).parent), str(base)]
    writer = subprocess.Popen(arguments, cwd=Path(__file__).parents[3])
    try:
        seen, end = set(), time.monotonic() + 2
        while time.monotonic() < end or len(seen) < 5:
            steps = check_whole(make_outbox(base), base / "outbox")
            seen.add(tuple(steps.values()))
            assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()


def rotate_all() -> None:
    """What the writer's process does."""
    base, step = Path(sys.argv[2]), 8
    while True:
        step += 1
        for kind in ("best", "latest", "final"):
            rotate(base / "run/checkpoints" / kind, step)


def check_whole(answer: dict, root: Path) -> dict[str, str]:
    """Each checkpoint in the answer has all its files, of one step; returns the steps by kind."""
    found: dict[str, dict[str, dict]] = {}
    for file in answer["files"]:
        parts = file["path"].split("/")
        if "checkpoints" in parts and parts[2] != "8":
            found.setdefault(parts[1], {}).setdefault(parts[2], {})[parts[-1]] = file
    for steps in found.values():
        ((step, files),) = steps.items()
        assert files.keys() == {str(number) for number in range(20)}
        assert {file["sha256"] for file in files.values()} == {
            hashlib.sha256(step.encode()).hexdigest()
        }
        for file in files.values():
            assert (root / file["path"]).read_text() == step
    return {kind: next(iter(steps)) for kind, steps in found.items()}


def run_module(base: Path) -> subprocess.CompletedProcess:
    return subprocess.run(program("outbox", base / "job"), capture_output=True, text=True)


def test_one_at_a_time(base):
    with open(base / "job/.outbox.lock", "a") as holder, ThreadPoolExecutor() as pool:
        fcntl.flock(holder, fcntl.LOCK_EX)
        made = pool.submit(run_module, base)
        time.sleep(0.5)
        assert not made.done() and not (base / "outbox").exists()
        fcntl.flock(holder, fcntl.LOCK_UN)
        done = made.result()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.removeprefix("mmattn:"))["files"] == make_outbox(base)["files"]


def test_without_room_for_links(base, monkeypatch):
    def no_room(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", no_room)
    monkeypatch.setattr(sys, "argv", ["outbox", str(base / "job")])
    with pytest.raises(
        SystemExit, match=r"cannot link the results, is the disk full\?.*No space left"
    ):
        outbox.main()
