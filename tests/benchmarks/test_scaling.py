"""Scaling: what is measured comes from real processes, what is concluded from known numbers."""

import json

import numpy as np
import pytest

from benchmarks.scaling import (
    Job,
    Scaling,
    best_devices,
    default_devices,
    growth_exponent,
    measure,
    measure_scaling,
    say_scaling,
)
from benchmarks.work import Scale
from mmattn.config import DataConfig, ExperimentConfig, ModelConfig
from mmattn.errors import UserError

TINY = ExperimentConfig(
    name="no_aug",
    data=DataConfig(buckets=2),
    model=ModelConfig(
        modalities=("video",), units={"video": (4,)}, head_units=(8,), head_dropout=(0.2,)
    ),
)
SMALL = Scale(clips=100, widths={"audio": 4, "video": 3}, rates={"audio": 6.0, "video": 4.0})


@pytest.fixture(autouse=True)
def shared_compilations(commands, monkeypatch):
    """Processes share what they compile, and warnings are errors in them too."""
    for name, value in commands.environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5])
def test_the_growth_of_a_power_is_its_exponent(exponent):
    counts = np.array([8, 16, 32, 96])
    assert growth_exponent(counts, 3.0 * counts**exponent) == pytest.approx(exponent, abs=1e-9)


@pytest.mark.parametrize(
    ("batch", "cores", "counts"),
    [
        (24, 1, [1]),
        (24, 2, [1, 2]),
        (24, 6, [1, 2, 4, 6]),
        (10, 8, [1, 2, 4, 5, 8]),
        (24, 96, [1, 2, 4, 8, 12, 16, 24, 32, 64, 96]),
    ],
)
def test_default_devices(batch, cores, counts):
    assert default_devices(batch, cores) == counts


def row(devices, rate, kind="strong", steps=8, one_core=False):
    return {
        "scaling": kind,
        "batch": 24,
        "steps_per_dispatch": steps,
        "devices": devices,
        "cores": 1 if one_core else 2,
        "one_core": one_core,
        "clips_per_s": rate,
        "least": rate,
        "most": rate,
    }


ROWS = [
    row(1, 999.0, one_core=True),
    row(1, 100.0),
    row(2, 160.0),
    row(4, 200.0),
    row(8, 900.0, steps=1),
    row(8, 900.0, kind="weak"),
]


def test_the_best_number_of_devices_is_that_of_strong_scaling_with_most_steps_a_dispatch():
    assert best_devices(ROWS, 4) == {"devices": 4, "auto": 4, "auto_slower": 0.0}
    assert best_devices(ROWS, 2) == {"devices": 4, "auto": 2, "auto_slower": pytest.approx(0.2)}
    assert best_devices(ROWS, 3)["auto_slower"] is None


def test_ratio_and_efficiency(monkeypatch):
    said = []
    monkeypatch.setattr("benchmarks.scaling.say_table", lambda *table: said.append(table))
    say_scaling([row(1, 60.0, one_core=True), row(1, 100.0), row(2, 120.0)], 24)
    _, columns, cells = said[0]
    found = [dict(zip(columns, one, strict=True)) for one in cells]
    assert [one["ratio"] for one in found] == ["0.60", "1.00", "1.20"]
    assert [one["efficiency"] for one in found] == ["1.00", "0.83", "1.00"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"devices": (2, 0)}, "--devices 0: expected 1 or more"),
        ({"batch": 1}, "--batch 1"),
        ({"steps_per_dispatch": ()}, "--steps-per-dispatch 0"),
        ({"simulated": (8, 8)}, "--simulated 8: expected two numbers"),
        ({"rounds": 0}, "--rounds 0"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(UserError, match=words):
        Scaling(**options)(TINY, SMALL)


@pytest.mark.slow
def test_a_process_that_fails_is_an_error(capfd):
    with pytest.raises(UserError, match="3 devices: exit code 1"):
        measure([Job("train", 3, (2,), (1,), TINY, SMALL)], 1, "Failing")
    assert "--devices 3: expected 1 to 2" in capfd.readouterr().err


def test_every_number_of_devices_is_measured_with_every_kind_of_scaling(monkeypatch):
    def rates(jobs, rounds, title):
        """Tell batch and steps by the rate; the second round is slower."""
        return [
            [
                {"clips_per_s": [[b + s / 10 - slow for s in job.steps] for b in job.batches]}
                for slow in range(rounds)
            ]
            for job in jobs
        ]

    monkeypatch.setattr("benchmarks.scaling.measure", rates)
    options = Scaling(devices=(4, 2), batch=3, steps_per_dispatch=(2, 1), rounds=3)
    rows = measure_scaling(options, TINY, SMALL)
    counts = [(1, True), (1, False), (2, False), (4, False)]
    assert [
        (one["scaling"], one["batch"], one["steps_per_dispatch"], one["devices"], one["one_core"])
        for one in rows
    ] == [
        *(("strong", 3, steps, *count) for steps in (1, 2) for count in counts[:-1]),
        *(("weak", 12 * count[0], steps, *count) for steps in (1, 2) for count in counts),
    ]
    for one in rows:
        most = one["batch"] + one["steps_per_dispatch"] / 10
        assert (one["most"], one["clips_per_s"], one["least"]) == (most, most - 1, most - 2)


@pytest.mark.slow
def test_the_command_measures_what_it_says(tmp_path):
    path = tmp_path / "found.json"
    options = {"devices": (1,), "batch": 12, "steps_per_dispatch": (2,), "simulated": ()}
    Scaling(**options, rounds=1, json=path)(TINY, SMALL)
    found = json.loads(path.read_text())
    assert found.keys() == {"machine", "scaling", "best"}
    measured = [(one["scaling"], one["one_core"]) for one in found["scaling"]]
    assert measured == [(kind, pinned) for kind in ("strong", "weak") for pinned in (True, False)]
    assert all(one["clips_per_s"] > 0 for one in found["scaling"])
    assert found["best"]["devices"] == 1 and 12 % found["best"]["auto"] == 0


@pytest.mark.slow
def test_a_process_on_several_devices():
    job = Job("overhead", 3, (3,), (2,), TINY, SMALL)
    ((found,),) = measure([job], 1, "Measuring")
    assert min(*found["step"], found["compute"], found["exchange"], found["dispatch"]) > 0
    # A third of the parameters and of Adam's two moments of each, float32.
    assert found["state_mb"] == pytest.approx(4e-6 * found["parameters"], rel=0.2)
    assert found["memory_mb"] > 3 * found["state_mb"]


def test_overhead_is_what_a_step_takes_beside_forward_and_backward(tmp_path, monkeypatch):
    def growing(jobs, rounds, title):
        """Steps of n + n² ms, of which n ms are forward and backward; the odd round is slow."""
        (job,) = jobs
        n = job.devices
        usual = {
            "compute": n,
            "exchange": 3 * n,
            "dispatch": n**0.5,
            "step": [n + n**2, n + n**1.5],
        }
        about = {"parameters": 7, "memory_mb": 100.0 * n, "state_mb": 12.0}
        return [
            [
                about | {name: (np.multiply(slow, x) / 1000).tolist() for name, x in usual.items()}
                for slow in (1, 9, 1)
            ]
        ]

    monkeypatch.setattr("benchmarks.scaling.measure", growing)
    path = tmp_path / "found.json"
    Scaling(devices=(), simulated=(16, 8, 32), steps_per_dispatch=(1, 8), json=path)(TINY, SMALL)
    found = json.loads(path.read_text())
    assert found.keys() == {"machine", "overhead", "growth"}
    assert [one["devices"] for one in found["overhead"]] == [8, 16, 32]
    for one in found["overhead"]:
        assert one["overhead_ms"]["1"] == pytest.approx(one["devices"] ** 2)
        assert one["compute_ms"] == pytest.approx(one["devices"])
    assert list(found["growth"].values()) == pytest.approx([2.0, 1.5, 1.0, 1.0, 0.5, 1.0])
