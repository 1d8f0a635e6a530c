"""What processes cost: measured by real ones, concluded from known numbers."""

import json

import pytest

from benchmarks import distributed
from benchmarks.distributed import Options, Result, bytes_sent, say_results
from mmattn.errors import UserError


def test_two_processes_are_measured(commands, tmp_path):
    out = tmp_path / "result.json"
    text = commands.run(
        *("benchmarks.distributed", "--processes", 1, 2, "--batch", 4, "--clips", 288),
        *("--sizes", 1000, 5001, "--rounds", 1, "--json", out),
        *("--model.audio-units", 8, "--model.video-units", 8),
        *("--model.head-units", 16, "--model.head-dropout", 0.3),
    )
    assert "1,000" in text and "2 × 1" in text
    one, two = json.loads(out.read_text())["results"]
    assert (one["processes"], two["processes"], two["devices"]) == (1, 2, 2)
    assert one["parameters"] == two["parameters"] > 1e3
    for found in (one, two):
        assert list(found["exchange"]) == ["1000", "5001"]
        assert min(*found["exchange"].values(), found["strong"], found["weak"]) > 0


def test_a_ring_sends_the_vector_nearly_twice():
    assert bytes_sent(1000, 1) == 0
    assert bytes_sent(1000, 2) == 4000
    assert bytes_sent(1000, 4) == 6000


def test_scaling_is_relative_to_the_first(monkeypatch):
    said = []
    monkeypatch.setattr(distributed, "say_table", lambda *table: said.append(table))
    say_results([Result(1, 2, 10, {8: 0.001}, 100, 50), Result(2, 4, 10, {8: 0.002}, 150, 100)])
    exchange, scaling = (rows for _, _, rows in said)
    assert exchange == [("8", "1.00 (32)", "2.00 (48)")]
    assert scaling == [("1 × 2", "100 (1.00)", "50 (1.00)"), ("2 × 2", "150 (1.50)", "100 (2.00)")]


@pytest.mark.parametrize("options", [{"processes": (5,)}, {"processes": (0,)}, {"devices": 7}])
def test_processes_must_divide_the_batch(options):
    with pytest.raises(UserError, match="--processes"):
        Options(**options)()
