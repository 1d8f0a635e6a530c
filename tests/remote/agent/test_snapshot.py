"""One answer with everything that the monitor shows."""

import base64
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from mmattn.remote.agent.snapshot import describe, describe_job, read_log
from tests.remote.programs import program
from tests.remote.test_screen import drawn, snapshot

BYTES = bytes(range(256)) * 5 + b"\xff\xfe\x80 half a li"


def ask(folder: Path, *options: object) -> dict:
    command = program("snapshot", folder, *options)
    text = subprocess.run(command, capture_output=True, text=True, check=True)
    assert text.stdout.count("\n") == 1
    assert text.stdout.startswith("mmattn:")
    return json.loads(text.stdout.removeprefix("mmattn:"))


def data(log: dict) -> bytes:
    return base64.b64decode(log["data"])


@pytest.fixture
def folder(tmp_path) -> Path:
    """A job's folder beside a run's."""
    for name in ("job", "run"):
        (tmp_path / name).mkdir()
    return tmp_path / "job"


def write_part(run: Path, part: str, changed: float, rows: int, epochs: int = 12) -> Path:
    """A part of a run with its config, metrics and checkpoints; returns its folder."""
    path = run / part
    for name in ("latest/40", "best/8", "best/32", "best/99.orbax-checkpoint-tmp"):
        (path / "checkpoints" / name).mkdir(parents=True)
    train = {"epochs": epochs, "monitor": f"of {part}"}
    (path / "config.json").write_text(json.dumps({"train": train}))
    metrics = path / "metrics.jsonl"
    metrics.write_text("".join(f'{{"epoch": {number + 1}}}\n' for number in range(rows)))
    os.utime(metrics, (changed, changed))
    return path


def test_nothing_there_yet(tmp_path):
    found = ask(tmp_path / "job")
    assert found["job"] == {
        **{"state": "absent", "start": None, "exit_code": None},
        **{"started": None, "ended": None, "out_of_memory": None},
    }
    assert (found["part"], found["epochs"], found["metrics"]) == ("", None, [])
    assert (found["guard"], found["complete"], found["checkpoints"]) == (None, False, [])
    assert found["log"] == {"offset": 0, "size": 0, "data": ""}


def test_running_and_ended_job(job):
    job.python("import time; print('ready'); time.sleep(60)")
    found = ask(job.folder, 0, 100)
    status = job.status
    assert found["job"] == {
        **{"state": "running", "start": 1, "exit_code": None},
        **{"started": status["started"], "ended": None, "out_of_memory": None},
    }
    assert abs(found["now"] - time.time()) < 10
    assert data(found["log"]) == b"ready\n"
    os.kill(status["pid"], 15)
    job.wait()
    ended = describe_job(job.folder)
    assert (ended["state"], ended["exit_code"]) == ("ended", 143)
    assert ended["ended"] >= ended["started"]


def test_the_part_that_changed_last(folder):
    run = folder.parent / "run"
    write_part(run, "fold0/member0", changed=1000, rows=12, epochs=12)
    write_part(run, "fold0/member1", changed=3000, rows=7, epochs=20)
    write_part(run, "fold1", changed=2000, rows=1)
    found = describe(folder)
    assert (found["part"], found["epochs"]) == ("fold0/member1", 20)
    assert found["monitor"] == "of fold0/member1"
    assert [row["epoch"] for row in found["metrics"]] == [1, 2, 3, 4, 5, 6, 7]


def test_a_run_without_parts(folder):
    part = write_part(folder.parent / "run", "", changed=1000, rows=3)
    found = describe(folder)
    assert (found["part"], found["epochs"], len(found["metrics"])) == ("", 12, 3)
    times = [(part / "checkpoints" / name).stat().st_mtime for name in ("best/32", "latest/40")]
    assert found["checkpoints"] == [
        {"kind": "best", "step": 32, "time": times[0]},
        {"kind": "latest", "step": 40, "time": times[1]},
    ]
    assert not found["complete"]
    (part / "summary.json").touch()
    assert describe(folder)["complete"]


def test_every_epoch_and_only_what_is_shown(folder):
    """The best epoch is named however long ago it was."""
    run = write_part(folder.parent / "run", "", changed=1000, rows=0)
    (run / "config.json").write_text('{"train": {"monitor": "accuracy"}}')
    names = "seconds", "clips_per_s", "validation_accuracy", "validation_loss"
    rows = [{"epoch": n, **dict.fromkeys(names, 1 / n)} for n in range(1, 501)]
    lines = [json.dumps({**row, "validation_ece": 0.5, "learning_rate": 1e-5}) for row in rows]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    found = describe(folder)
    assert found["metrics"] == rows
    assert "best 1.000 in epoch 1 " in drawn(snapshot(metrics=rows))


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"train": null}', '{"train": {}}'])
def test_config_that_does_not_tell_the_epochs(folder, config):
    part = write_part(folder.parent / "run", "", changed=1000, rows=3)
    (part / "config.json").write_text(config)
    assert describe(folder)["epochs"] is None


def test_guard_is_passed_on(folder):
    (folder / "guard.json").write_text('{"beat": 1.5, "reason": null}')
    assert describe(folder)["guard"] == {"beat": 1.5, "reason": None}


def test_machine(folder):
    found = describe(folder)["machine"]
    assert found["cores"] == os.cpu_count()
    assert found["load"] >= 0
    assert 0 < found["memory_used"] < found["memory_total"]
    assert 0 < found["disk_used"] < found["disk_total"]
    assert found["disk_total"] == os.statvfs(folder).f_blocks * os.statvfs(folder).f_frsize


def test_log_byte_for_byte(folder):
    (folder / "job.log").write_bytes(BYTES)
    parts, offset = [], 0
    while offset < len(BYTES):
        found = ask(folder, offset, 500)["log"]
        assert (found["offset"], found["size"]) == (offset, len(BYTES))
        parts.append(data(found))
        assert len(parts[-1]) <= 500
        offset += len(parts[-1])
    assert b"".join(parts) == BYTES


@pytest.mark.parametrize(
    ("offset", "limit", "begin", "expected"),
    [
        (-7, 9999, len(BYTES) - 7, BYTES[-7:]),
        (-5000, 9999, 0, BYTES),
        (-5000, 3, 0, BYTES[:3]),
        (0, 0, 0, b""),
        (len(BYTES), 9999, len(BYTES), b""),
        (len(BYTES) + 1, 9999, 0, BYTES),  # it was truncated
    ],
)
def test_piece_of_the_log(folder, offset, limit, begin, expected):
    (folder / "job.log").write_bytes(BYTES)
    found = read_log(folder / "job.log", offset, limit)
    assert (found["offset"], data(found)) == (begin, expected)
