import numpy as np
import pytest

from mmattn.console import log_to, start_logging
from mmattn.evaluate.metrics import scores
from mmattn.evaluate.predictions import Predictions
from mmattn.evaluate.tables import Interval, cell_text, interval_text, say_per_class, say_scores


@pytest.fixture
def said(tmp_path):
    """Read what has been said so far."""
    start_logging()
    with log_to(tmp_path / "log"):
        yield (tmp_path / "log").read_text


def predictions() -> Predictions:
    # a: both right; b: none right, and happy never predicted
    return Predictions(
        ("a1", "a2", "b1", "b2"),
        ["a", "a", "b", "b"],
        [0, 1, 0, 2],
        np.eye(3)[[0, 1, 1, 1]],
        ("anger", "fear", "happy"),
    )


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.strip(" │┃").startswith(start))


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("no_aug", "no_aug"),
        (432, "432"),
        (0.71249, "0.712"),
        (None, "–"),
        (Interval(0.7119, 0.65, 0.7611), "0.712 [0.650, 0.761]"),
        (Interval(0.7119), "0.712"),
        (Interval(None), "–"),
    ],
)
def test_a_cell_says_its_number(cell, text):
    assert cell_text(cell) == text


def test_interval_text():
    score = {"value": 0.7123, "low": 0.65, "high": 0.7606}
    assert interval_text(score) == "0.712 [0.650, 0.761]"


def test_scores_stand_in_a_column_a_split(said):
    test = scores(predictions())
    alone = {name: {"value": 0.25, "low": None, "high": None} for name in test}
    say_scores("no_aug, fold 0", {"validation": alone, "test": test})
    text = said()
    assert "no_aug, fold 0" in text
    heading = next(line for line in text.splitlines() if "validation" in line)
    assert heading.index("validation") < heading.index("test")
    accuracy = line_of(text, "accuracy")
    assert accuracy.index("0.250") < accuracy.index("0.500 [0.000, 1.000]")
    for name in ("UAR", "macro-F1", "ECE"):
        assert line_of(text, name)


def test_each_class_has_a_line_and_a_dash_where_nothing_can_be_said(said):
    say_per_class(predictions())
    anger, happy = line_of(said(), "anger"), line_of(said(), "happy")
    assert anger.replace("│", " ").split() == ["anger", "1.000", "0.500", "0.667", "2"]
    assert happy.replace("│", " ").split() == ["happy", "–", "0.000", "0.000", "1"]
