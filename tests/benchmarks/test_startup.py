"""The clock of a start: real processes."""

import pytest

from benchmarks.machine import REPOSITORY
from benchmarks.predict import command_seconds
from benchmarks.startup import first_step


@pytest.mark.slow
def test_a_start_ends_with_its_first_step(tmp_path):
    empty, filled = (first_step(REPOSITORY, tmp_path, number) for number in range(2))
    assert 0 < filled < 600 and 0 < empty < 600
    assert (tmp_path / "0" / "config.json").exists()
    assert not (tmp_path / "1" / "summary.json").exists()  # it went no further
    assert any((tmp_path / "cache").iterdir())


@pytest.mark.slow
def test_the_command_that_predicts_is_timed():
    found = command_seconds()
    assert len(found) > 1 and all(0 < one < 600 for one in found.values())
