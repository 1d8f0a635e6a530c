from dataclasses import replace

import numpy as np
import pytest

from mmattn.console import log_to, start_logging
from mmattn.errors import UserError
from mmattn.evaluate.metrics import METRICS, Metric, group_scores, scores
from mmattn.evaluate.predictions import Predictions
from mmattn.evaluate.tables import (
    Interval,
    Table,
    cell_text,
    group_tables,
    paired_table,
    say_groups,
    say_per_class,
    say_scores,
    say_ties,
    say_wide,
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


def test_one_speaker_has_no_interval_and_why(said):
    one, two = predictions().select(slice(2)), predictions()
    say_scores("Scores", {"validation": scores(two), "test": scores(one)})
    assert "test: no interval over speakers, which needs two or more, all known" in said()
    assert "validation: no interval" not in said()


def test_each_class_has_a_line_and_a_dash_where_nothing_can_be_said(said):
    say_per_class(predictions())
    anger, happy = line_of(said(), "anger"), line_of(said(), "happy")
    assert anger.replace("│", " ").split() == ["anger", "1.000", "0.500", "0.667", "2"]
    assert happy.replace("│", " ").split() == ["happy", "–", "0.000", "0.000", "1"]


def test_a_new_metric_is_in_the_tables(monkeypatch):
    error = Metric(
        "error rate", "share of wrong clips", 0.0, lambda sums: 1 - METRICS["uar"].value(sums)
    )
    monkeypatch.setitem(METRICS, "error", error)
    found = scores(predictions())
    table = score_table({"test": found})
    assert table.rows[-1] == ("error rate", Interval(**found["error"]))
    assert "error rate: share of wrong clips" in table.note
    assert "Lower is better: ECE, log loss, Brier score, error rate." in table.note
    (groups,) = group_tables(group_scores(many(), {"sex": np.array(["f", "m"] * 30)}))
    assert groups.rows[-1][0] == "error rate"


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
    assert "no scores by age: 60 values in 60 clips" in text
    first = text[: text.index("a_group")]
    assert line_of(first, "sex").split() == ["sex", "female", "male", "largest", "difference"]
    assert line_of(first, "speakers").split() == ["speakers", "3", "3", "–"]
    values, gaps = groups["sex"]["values"], groups["sex"]["differences"]
    (sex, _) = group_tables(groups)
    assert sex.rows[1] == ("clips", 30, 30, None)
    for row, (name, metric) in zip(sex.rows[2:], METRICS.items(), strict=True):
        gap = Interval(*(gaps[name][key] for key in ("value", "low", "high")))
        scores = [Interval(**values[group][name]) for group in ("female", "male")]
        assert row == (metric.title, *scores, gap)
        assert line_of(first, metric.title).split() == " ".join(map(cell_text, row)).split()


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
    assert sorted(table.rows[1][1:-1]) == list(range(3, 15))
    assert "the 12 of 14 groups with the most clips" in table.note


def test_a_table_that_is_too_wide_comes_in_parts(said):
    columns = ["", *(f"fold{number}" for number in range(6))]
    rows = [
        (name, *(Interval(value, 0, 1) for value in np.arange(6) / 8)) for name in ("UAR", "F1")
    ]
    say_wide("By fold", Table("", columns, rows))
    parts = said().split("By fold")[1:]
    assert [line_of(part, "fold").split() for part in parts] == [columns[1:5], columns[5:]]
    whole = " ".join(line_of(part, "UAR").split("UAR")[1] for part in parts)
    assert whole.split() == " ".join(cell_text(cell) for cell in rows[0][1:]).split()
    assert max(map(len, said().splitlines())) <= 100 + len("2026-01-01 00:00:00 ")


def test_a_column_wider_than_the_screen_stands_alone(said):
    say_wide("Groups", Table("", ("", "x" * 200, "y"), [("UAR", 1, 2)]))
    assert said().count("Groups") == 2 and said().count("x") == 200


def test_calibrated_scores_stand_under_the_others():
    found = {split: scores(predictions()) for split in ("validation", "test")}
    better = {split: {"ece": {"value": 0.125, "low": None, "high": None}} for split in found}
    titles = [row[0] for row in score_table(found).rows]
    rows = score_table(found, better).rows
    assert [row[0] for row in rows] == [*titles[:5], "ECE, calibrated", *titles[5:]]
    assert rows[5][1:] == (Interval(0.125), Interval(0.125))


def test_ties_are_counted(said):
    targets = np.tile([0.5, 0.5, 0], (60, 1))
    tied = many(targets=targets, labels=np.where(np.arange(60) < 7, -1, 0))
    say_ties({"validation": many(targets=targets), "test": tied})
    assert said().endswith(
        "7 of 60 test clips have no label (raters tie, or the emotion is in no class) and count "
        "only in cross-entropy and JS divergence.\n"
    )
    assert "validation" not in said()


def test_models_side_by_side_by_hand():
    ours = predictions()
    right = replace(ours, probabilities=np.eye(3)[ours.labels])
    first, second = paired_table([("right", right), ("ours", ours)]).rows
    assert first == ["right", Interval(1.0, 1.0, 1.0), Interval(1.0, 1.0, 1.0), None, None]
    # Of a alone both have UAR 1, of b alone the first has 1 and the other 0.
    assert second[3:] == [Interval(0.5, 0.0, 1.0), "0.5000"]
    with pytest.raises(UserError, match=r"^theirs: only predictions of the same clips"):
        paired_table([("ours", ours), ("theirs", ours.select(np.arange(3)))])


def test_models_of_one_name_have_rows_of_their_own_and_no_p_is_zero():
    right = replace(many(labels=np.zeros(60, int)), probabilities=np.eye(3)[np.zeros(60, int)])
    wrong = replace(right, probabilities=np.eye(3)[np.ones(60, int)])
    table = paired_table([("one", right), ("one", right), ("one", wrong)])
    assert [row[0] for row in table.rows] == 3 * ["one"]
    assert [row[-1] for row in table.rows] == [None, "1.0000", "< 0.0001"]
