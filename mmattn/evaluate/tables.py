"""Scores as tables, for the screen, the run's log and the page."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmattn.console import say, say_table
from mmattn.evaluate.metrics import METRICS, per_class
from mmattn.evaluate.predictions import Predictions

Scores = Mapping[str, Mapping[str, float | None]]
MOST_GROUPS = 12  # of a column in a table


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


def titles(*found: Mapping[str, Any]) -> dict[str, str]:
    """The title of each metric that is among all of the scores found, in the order of `METRICS`."""
    return {
        name: metric.title
        for name, metric in METRICS.items()
        if all(name in scores for scores in found)
    }


def score_table(splits: Mapping[str, Scores]) -> Table:
    """The scores of each split, e.g. {"validation": scores, "test": scores}, side by side."""
    shown = titles(*splits.values())
    rows = [
        (title, *(Interval(**scores[name]) for scores in splits.values()))
        for name, title in shown.items()
    ]
    note = "; ".join(f"{title}: {METRICS[name].meaning}" for name, title in shown.items())
    note += ". In brackets: 95 % interval of a bootstrap over speakers."
    return Table("All classes.", ("", *splits), rows, note)


def group_tables(groups: Mapping[str, Mapping], at_once: int = len(METRICS)) -> list[Table]:
    """What `group_scores` found, a table a column for each `at_once` metrics.

    Of more than 12 groups those with the most clips are shown.
    """
    tables = []
    for column, found in groups.items():
        if "left_out" in found:
            continue
        values = found["values"]
        largest = sorted(values, key=lambda name: -values[name]["clips"])[:MOST_GROUPS]
        shown = titles(*values.values())
        note = "95 % intervals are over speakers, drawn within each group. "
        if len(largest) < len(values):
            note += f"The {MOST_GROUPS} of {len(values)} groups with the most clips. "
        note += (
            "The largest difference is that of the highest and the lowest group with two "
            "speakers or more; by chance it is above 0 where there are many groups."
        )
        for first in range(0, len(shown), at_once):
            names = list(shown)[first : first + at_once]
            rows = [
                (value, scores["speakers"], scores["clips"], *(_interval(scores, names)))
                for value, scores in values.items()
                if value in largest
            ]
            rows.append(("largest difference", None, None, *_interval(found["differences"], names)))
            columns = (column, "speakers", "clips", *(shown[name] for name in names))
            tables.append(Table(f"By {column}.", columns, rows, note))
    return tables


def _interval(found: Mapping[str, Mapping], names: Sequence[str]) -> list[Interval]:
    return [
        Interval(*(found.get(name, {}).get(key) for key in ("value", "low", "high")))
        for name in names
    ]


def class_table(predictions: Predictions) -> Table:
    """Precision, recall and F1 of each class; a dash where there is nothing to divide by."""
    rows = [tuple(row.values()) for row in per_class(predictions)]
    note = "Precision: of the clips that were said to be of it; recall: of those that are."
    return Table("Each class.", ("class", "precision", "recall", "F1", "clips"), rows, note)


def say_scores(title: str, splits: Mapping[str, Scores]) -> None:
    """Say the scores of each split under a title of its own."""
    _say(title, score_table(splits))


def ties_text(side: str, predictions: Predictions) -> str:
    """How many clips have no label and where they count; empty if all have one."""
    if not predictions.ties:
        return ""
    soft = " and ".join(metric.title for metric in METRICS.values() if metric.soft)
    return (
        f"Raters tie in {predictions.ties} of {len(predictions.clips)} {side} clips: these have no "
        f"label and count in {soft} alone."
    )


def say_ties(predictions: Mapping[str, Predictions]) -> None:
    """Say of each split how many clips have no label, if any."""
    for text in filter(None, (ties_text(side, one) for side, one in predictions.items())):
        say(text)


def say_groups(title: str, groups: Mapping[str, Mapping]) -> None:
    """Say what `group_scores` found, three metrics at once, and which columns it left out."""
    for table in group_tables(groups, at_once=3):
        _say(f"{title}, by {table.columns[0]}", table)
    for column, found in groups.items():
        if "left_out" in found:
            say(f"no scores by {column}: it has {found['left_out']}")


def say_per_class(predictions: Predictions, title: str = "Each class") -> None:
    """Say precision, recall and F1 of each class."""
    _say(title, class_table(predictions))


def _say(title: str, table: Table) -> None:
    say_table(title, table.columns, [[cell_text(cell) for cell in row] for row in table.rows])
