"""The load test of `mmattn serve`: what it counts, and what it takes for a wrong answer."""

import pytest

from benchmarks.serve import agrees
from mmattn.run.run import load_run
from tests.server.served import clip_of


@pytest.mark.slow
def test_clients_at_once(commands, tmp_path):
    (tmp_path / "clip.npz").write_bytes(clip_of(load_run("starter"), 0))
    (tmp_path / "corrupt.npz").write_bytes(b"no archive")
    options = ("--requests", 10, "--clients", 2, "--workers", 1)
    text = commands.run("benchmarks.serve", tmp_path, *options)
    assert "10 requests of 2 clients, 2 clips" in text
    assert "0 lost, 0 wrong, 0 times 503 and retried" in text


def test_what_agrees():
    right = {"predictions": [{"probabilities": {"sad": 0.25, "calm": 0.75}}]}
    assert agrees(right, {"sad": 0.25, "calm": 0.75 + 1e-7})
    assert not agrees(right, {"sad": 0.3, "calm": 0.7})
    assert not agrees(right, {"sad": 0.25, "happy": 0.75})
    assert agrees({"detail": "cut short"}, "cut short") and not agrees(right, "cut short")
    assert not agrees({"detail": "cut short"}, {"sad": 1.0})
