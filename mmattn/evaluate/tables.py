"""Scores as tables, for the screen, the run's log and the page."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mmattn.console import say_table
from mmattn.evaluate.metrics import per_class
from mmattn.evaluate.predictions import Predictions

Scores = Mapping[str, Mapping[str, float | None]]
MEASURES = {"uar": "UAR", "accuracy": "accuracy", "macro_f1": "macro-F1", "ece": "ECE"}


class Interval(NamedTuple):
    """A value and its 95 % interval; low and high are None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None


Cell = str | int | float | Interval | None


class Table(NamedTuple):
    """Rows of cells under the names of the columns; the note says how to read it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


def cell_text(cell: Cell) -> str:
    """`0.712 [0.650, 0.761]` of an interval, three decimals of a float, a dash of None."""
    match cell:
        case None | Interval(value=None):
            return "–"
        case str() | int():
            return str(cell)
        case Interval(value=value, low=None) | Interval(value=value, high=None):
            return f"{value:.3f}"
        case Interval(value=value, low=low, high=high):
            return f"{value:.3f} [{low:.3f}, {high:.3f}]"
        case _:
            return f"{cell:.3f}"


def interval_text(score: Mapping[str, float | None]) -> str:
    """A score with its interval, as in all tables."""
    return cell_text(Interval(**score))


def score_table(splits: Mapping[str, Scores]) -> Table:
    """The scores of each split, e.g. {"validation": scores, "test": scores}, side by side."""
    rows = [
        (name, *(Interval(**scores[measure]) for scores in splits.values()))
        for measure, name in MEASURES.items()
    ]
    note = (
        "UAR is the mean of the classes' recalls, macro-F1 of their F1; ECE, the expected "
        "calibration error, is better when lower. In brackets: 95 % interval of a bootstrap over "
        "speakers."
    )
    return Table("All classes.", ("", *splits), rows, note)


def class_table(predictions: Predictions) -> Table:
    """Precision, recall and F1 of each class; a dash where there is nothing to divide by."""
    rows = [tuple(row.values()) for row in per_class(predictions)]
    note = "Precision: of the clips that were said to be of it; recall: of those that are."
    return Table("Each class.", ("class", "precision", "recall", "F1", "clips"), rows, note)


def say_scores(title: str, splits: Mapping[str, Scores]) -> None:
    """Say the scores of each split under a title of its own."""
    _say(title, score_table(splits))


def say_per_class(predictions: Predictions, title: str = "Each class") -> None:
    """Say precision, recall and F1 of each class."""
    _say(title, class_table(predictions))


def _say(title: str, table: Table) -> None:
    say_table(title, table.columns, [[cell_text(cell) for cell in row] for row in table.rows])
