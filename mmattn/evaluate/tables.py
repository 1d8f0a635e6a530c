"""Scores as tables, for the screen, the run's log and the page."""

from collections.abc import Iterable, Mapping, Sequence
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
    """Rows of cells under the names of the columns; the note tells how to read it."""

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


def group_tables(groups: Mapping[str, Mapping]) -> list[Table]:
    """What `group_scores` found, a table a column; of more than 12 groups those with most clips."""
    found = {column: one for column, one in groups.items() if "left_out" not in one}
    return [_group_table(column, **one) for column, one in found.items()]


def _group_table(column: str, values: Mapping[str, Mapping], differences: Mapping) -> Table:
    shown = titles(*values.values())
    most = sorted(values, key=lambda name: -values[name]["clips"])[:MOST_GROUPS]
    rows = [
        (name, scores["speakers"], scores["clips"], *_intervals(scores, shown))
        for name, scores in values.items()
        if name in most
    ]
    rows.append(("largest difference", None, None, *_intervals(differences, shown)))
    note = (
        "In brackets: 95 % interval over speakers, drawn within each group; who is in several is "
        "drawn for all of them at once. The difference is that of the highest and the lowest group "
        "with two speakers or more; of many groups it is above 0 by chance."
    )
    if len(most) < len(values):
        note += f" Shown are the {len(most)} of {len(values)} groups with the most clips."
    return Table(f"By {column}.", (column, "speakers", "clips", *shown.values()), rows, note)


def _intervals(found: Mapping[str, Mapping], names: Iterable[str]) -> list[Interval]:
    ends = ("value", "low", "high")
    return [Interval(*(found.get(name, {}).get(key) for key in ends)) for name in names]


def class_table(predictions: Predictions) -> Table:
    """Precision, recall and F1 of each class; a dash where there is nothing to divide by."""
    rows = [tuple(row.values()) for row in per_class(predictions)]
    note = "Precision: of the clips that were predicted to be of it; recall: of those that are."
    return Table("Each class.", ("class", "precision", "recall", "F1", "clips"), rows, note)


def say_scores(title: str, splits: Mapping[str, Scores]) -> None:
    """Say the scores of each split under a title of its own."""
    _say(title, score_table(splits))


def ties_text(split: str, predictions: Predictions) -> str:
    """How many clips have no label and where they count; empty if all have one."""
    if not predictions.ties:
        return ""
    soft = " and ".join(metric.title for metric in METRICS.values() if metric.soft)
    return (
        f"Raters tie in {predictions.ties} of {len(predictions.clips)} {split} clips: these have "
        f"no label and count in {soft} alone."
    )


def say_ties(predictions: Mapping[str, Predictions]) -> None:
    """Say of each split how many clips have no label, if any."""
    for text in filter(None, (ties_text(split, one) for split, one in predictions.items())):
        say(text)


def say_groups(title: str, groups: Mapping[str, Mapping]) -> None:
    """Say what `group_scores` found, two metrics at once, and which columns it left out."""
    for table in group_tables(groups):
        for first in range(3, len(table.columns), 2):
            shown = [0, 1, 2, *range(first, len(table.columns))[:2]]
            columns, *rows = ([row[n] for n in shown] for row in (table.columns, *table.rows))
            _say(f"{title}, by {table.columns[0]}", Table("", columns, rows))
    for column, found in groups.items():
        if "left_out" in found:
            say(f"no scores by {column}: it has {found['left_out']}")


def say_per_class(predictions: Predictions, title: str = "Each class") -> None:
    """Say precision, recall and F1 of each class."""
    _say(title, class_table(predictions))


def _say(title: str, table: Table) -> None:
    say_table(title, table.columns, [[cell_text(cell) for cell in row] for row in table.rows])
