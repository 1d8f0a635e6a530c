"""The orchestration: turns, groups, ratios, the results' form, and what a dead process says."""

import json
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from benchmarks import contenders, gemm, predict, side_by_side, train_step
from benchmarks.predict import Predict
from benchmarks.side_by_side import measure, started
from benchmarks.train_step import TrainStep
from benchmarks.work import Scale
from benchmarks.worker import Job, job_from_json
from experiments.no_aug import CONFIG
from mmattn import console
from mmattn.config import ModelConfig
from mmattn.errors import UserError

JOB = Job(
    contender="ours",
    task="train",
    batch=4,
    per_bucket=8,
    config=replace(
        CONFIG,
        model=ModelConfig(
            units={"audio": (3,), "video": (3,)}, head_units=(4,), head_dropout=(0.5,)
        ),
        data=replace(CONFIG.data, buckets=1),
    ),
    scale=Scale(clips=40, widths={"audio": 5, "video": 4}, rates={"audio": 5.0, "video": 3.0}),
)
SECONDS = {"ours": 1.0, "ours+jemalloc": 0.5, "torch-padded": 1.5, "torch-padded+jemalloc": 1.0}


@pytest.fixture
def turns(monkeypatch) -> list[str]:
    """Contenders of known speed; the list tells whose turn it was."""
    turns = []

    @contextmanager
    def fake(job, environment=None):
        def work():
            turns.append(job.contender)
            return {"seconds": [SECONDS[job.contender]], "peak_mb": 100.0}

        yield SimpleNamespace(name=job.contender, start_s=2.0, round=work)

    for module in (side_by_side, train_step):
        monkeypatch.setattr(module, "started", fake)
    monkeypatch.setattr(side_by_side, "SETTLE", 0)
    monkeypatch.setattr(predict, "command_seconds", lambda: {"empty": 2.5, "filled": 1.5})
    monkeypatch.setattr(contenders, "missing", lambda name: None)
    return turns


def jobs(names) -> list[Job]:
    return [replace(JOB, contender=name) for name in names]


def test_after_a_warm_up_all_work_in_turn(turns):
    names = ["ours", "torch-padded", "ours+jemalloc"]
    records = measure(jobs(names), 2, lambda count: None)
    assert list(records) == names
    assert sorted(turns[:3]) == sorted(names)
    assert turns[3:6] == turns[6:] == turns[:3]
    assert records["torch-padded"].rounds == [[1.5], [1.5]]


def test_like_allocators_are_compared(turns):
    records = measure(jobs(SECONDS), 3, lambda count: None)
    assert records["torch-padded"].ratio() == 1.5
    assert records["torch-padded+jemalloc"].ratio() == 2.0
    assert records["ours"].ratio() is None


def test_groups_that_memory_divides_have_ours_beside_them(turns, monkeypatch):
    monkeypatch.setattr(side_by_side, "_has_room", lambda records: False)
    done = []
    records = measure(jobs(["ours", "torch-padded", "torch-padded+jemalloc"]), 2, done.append)
    assert turns.count("ours") == 1 + 2 * 2
    assert turns.count("torch-padded") == 1 + 2
    assert records["torch-padded"].ratio() == 1.5
    assert sum(done) == 3 * (1 + 2)


def test_the_results_of_train_step(turns, monkeypatch, tmp_path):
    screen = Console(width=100, file=StringIO(), soft_wrap=True)
    monkeypatch.setattr(console, "screen", screen)
    console.start_logging()
    monkeypatch.setattr(gemm, "best_rates", lambda: {"numpy": 100.0, "jax": 200.0})
    path = tmp_path / "results.json"
    TrainStep(rounds=2, contenders=tuple(SECONDS), json=path, batches=(24,), clips=24)()
    found = json.loads(path.read_text())
    assert found.keys() == {"machine", "missing", "gemm_gflops", "results"}
    assert {"date", "cpu", "cores", "versions", "commit", "command"} <= found["machine"].keys()
    (result,) = found["results"]
    assert result.keys() == {"batch", "clips", "gflop", "cached_start_s", "contenders"}
    assert result["clips"] == 96
    assert result["contenders"]["torch-padded"] == {
        "start_s": 2.0,
        "peak_mb": 100.0,
        "rounds_s": [[1.5], [1.5]],
        "ours_ratio": 1.5,
    }
    lines = screen.file.getvalue().splitlines()
    table = lines[next(n for n, line in enumerate(lines) if line.startswith("Training")) :]
    assert max(map(len, table[:-1])) <= 100  # the last line is the file's path
    (row,) = (line.split() for line in table if line.split()[:1] == ["torch-padded"])
    percent = 100 * result["gflop"] / 1.5 / 200
    assert row == ["torch-padded", "64.0", "64.0", "64.0", "1.50", f"{percent:.0f}", "2.0", "100"]


def test_the_results_of_predict(turns, tmp_path):
    path = tmp_path / "results.json"
    Predict(rounds=2, contenders=("ours", "torch-padded"), json=path)()
    found = json.loads(path.read_text())
    assert found.keys() == {"machine", "missing", "one", "file", "command", "many"}
    assert found["one"]["torch-padded"]["p95_s"] == 1.5
    assert found["command"] == 2 * [{"empty": 2.5, "filled": 1.5}]
    assert found["many"]["contenders"]["torch-padded"]["ours_ratio"] == 1.5


def test_who_is_missing_is_named_and_the_rest_runs(turns, monkeypatch, tmp_path):
    monkeypatch.setattr(
        contenders, "missing", lambda name: "pip install torch" if "torch" in name else None
    )
    path = tmp_path / "results.json"
    Predict(rounds=1, contenders=("ours", "torch-padded"), json=path)()
    found = json.loads(path.read_text())
    assert found["missing"] == {"torch-padded": "pip install torch"}
    assert list(found["one"]) == ["ours"]


@pytest.mark.parametrize(
    "options", [{"contenders": ("theirs",)}, {"rounds": 0}, {"batches": ()}, {"clips": 0}]
)
def test_a_wrong_option_is_said_before_anything_is_measured(options, monkeypatch):
    monkeypatch.setattr(side_by_side, "started", None)
    monkeypatch.setattr(gemm, "best_rates", None)
    with pytest.raises(UserError, match=f"--{next(iter(options))}"):
        TrainStep(**options)()


def test_a_job_survives_the_command_line():
    assert job_from_json(JOB.to_json()) == JOB


@pytest.mark.slow
def test_a_worker_works_until_it_dies_which_one_message_says():
    with started(JOB) as worker:
        answer = worker.round()
        assert 0 < answer["seconds"][0] < worker.start_s
        assert answer["peak_mb"] > 50
        worker.process.kill()
        with pytest.raises(UserError, match="ours ended with code -9"):
            worker.round()


@pytest.mark.slow
def test_a_worker_that_cannot_start_says_why():
    broken = replace(JOB, scale=replace(JOB.scale, clips=3))
    with pytest.raises(UserError, match=r"(?s)ours ended with code 1.*fewer than 2 of them"):
        started(broken).__enter__()
