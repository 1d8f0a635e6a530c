import numpy as np
import pytest

from mmattn.console import log_to, start_logging
from mmattn.evaluate.metrics import METRICS, Metric, group_scores, scores
from mmattn.evaluate.predictions import Predictions
from mmattn.evaluate.tables import (
    Interval,
    cell_text,
    group_tables,
    interval_text,
    say_groups,
    say_per_class,
    say_scores,
    say_ties,
    score_table,
)


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


def test_a_new_metric_is_in_the_tables(monkeypatch):
    error = Metric(
        "error rate", "share of wrong clips", lambda sums: 1 - METRICS["uar"].value(sums)
    )
    monkeypatch.setitem(METRICS, "error", error)
    found = scores(predictions())
    table = score_table({"test": found})
    assert table.rows[-1] == ("error rate", Interval(**found["error"]))
    assert "error rate: share of wrong clips" in table.note
    (groups,) = group_tables(group_scores(many(), {"sex": np.array(["f", "m"] * 30)}))
    assert groups.columns[-1] == "error rate"


def many(speakers=6, targets=None, labels=None) -> Predictions:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 60) if labels is None else labels
    names = [f"s{clip % speakers}" for clip in range(60)]
    clips = tuple(f"c{clip}" for clip in range(60))
    probabilities = random.dirichlet([0.5] * 3, 60)
    return Predictions(clips, names, labels, probabilities, ("anger", "fear", "happy"), targets)


def test_groups_have_a_row_each_and_one_for_the_largest_difference(said):
    predictions = many(targets=np.eye(3)[np.arange(60) % 3])
    columns = {
        "sex": np.array(["female", "male"] * 30),
        "a_group_with_a_long_name": np.array(["not hispanic or latino", "", "hispanic"] * 20),
        "age": np.arange(60).astype(str),
    }
    groups = group_scores(predictions, columns, seed=1)
    say_groups("Test", groups)
    text = said()
    assert max(len(line) for line in text.splitlines()) <= 100 + len("2026-01-01 00:00:00 ")
    assert "no scores by age: it has 60 values in 60 clips" in text
    first = text[: text.index("a_group")]
    female = groups["sex"]["values"]["female"]
    female = groups["sex"]["values"]["female"]
    parts = first.split("Test, by sex")[1:]
    assert len(parts) == len(METRICS) / 2
    for part, names in zip(parts, zip(*[iter(METRICS)] * 2, strict=True), strict=True):
        cells = ["3", "30", *(interval_text(female[name]) for name in names)]
        assert line_of(part, "female").split() == " ".join(["female", *cells]).split()
    (sex, _) = group_tables(groups)
    assert sex.rows[0] == ("female", 3, 30, *(Interval(**female[name]) for name in METRICS))
    largest = sex.rows[-1]
    gap = groups["sex"]["differences"]["js_divergence"]
    assert largest[:3] == ("largest difference", None, None)
    assert largest[-1] == Interval(gap["value"], gap["low"], gap["high"])


def test_of_many_groups_the_largest_are_shown():
    # 1 has 1 clip, 2 has 2, …
    sizes = np.arange(1, 15)
    cells = np.repeat(sizes.astype(str), sizes)
    count = len(cells)
    clips = tuple(map(str, range(count)))
    some = Predictions(
        clips, cells, np.zeros(count, int), np.tile([1.0, 0], (count, 1)), ("a", "b")
    )
    (table,) = group_tables(group_scores(some, {"age": cells}, resamples=10))
    assert sorted(row[2] for row in table.rows[:-1]) == list(range(3, 15))
    assert "the 12 of 14 groups with the most clips" in table.note


def test_ties_are_counted(said):
    targets = np.tile([0.5, 0.5, 0], (60, 1))
    tied = many(targets=targets, labels=np.where(np.arange(60) < 7, -1, 0))
    say_ties({"validation": many(targets=targets), "test": tied})
    assert said().endswith(
        "Raters tie in 7 of 60 test clips: these have no label and count in cross-entropy and JS "
        "divergence alone.\n"
    )
    assert "validation" not in said()
