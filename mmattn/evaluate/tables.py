"""Scores as tables, for the screen, the run's log and the report."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from mmattn.console import WIDTH, say, say_table
from mmattn.errors import UserError
from mmattn.evaluate.metrics import METRICS, paired, per_class, scores
from mmattn.evaluate.predictions import Predictions

Scores = Mapping[str, Mapping[str, float | None]]
MOST_GROUPS = 12  # of a column in a table
KNOWN = ", if two or more are known"  # speakers, for an interval


class Interval(NamedTuple):
    """A value and its 95 % interval; low and high are None if there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None


Cell = str | int | float | Interval | None


class Table(NamedTuple):
    """Rows of cells, the column names, and a note that explains the table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


def cell_text(cell: Cell) -> str:
    """`0.712 [0.650, 0.761]` for an interval, three decimals for a float, a dash for None."""
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


def markdown(table: Table) -> Iterator[str]:
    """The lines of a table in Markdown, without its title and note."""
    yield "| " + " | ".join(table.columns) + " |"
    yield "|---" * len(table.columns) + "|"
    for row in table.rows:
        yield "| " + " | ".join(cell_text(cell).replace("|", r"\|") for cell in row) + " |"


def titles(*found: Mapping[str, Any]) -> dict[str, str]:
    """The title of each metric that all of `found` have, in the order of `METRICS`."""
    return {
        name: metric.title
        for name, metric in METRICS.items()
        if all(name in scores for scores in found)
    }


def score_table(
    splits: Mapping[str, Scores], calibrated: Mapping[str, Scores] | None = None
) -> Table:
    """The scores of each split side by side, e.g. of {"validation": scores, "test": scores}.

    The scores of calibrated predictions, if given, follow those of the same metric.
    """
    shown = titles(*splits.values())
    rows: list[Sequence[Cell]] = []
    for name, title in shown.items():
        rows.append((title, *(Interval(**scores[name]) for scores in splits.values())))
        if calibrated and all(name in calibrated[split] for split in splits):
            found = (Interval(**calibrated[split][name]) for split in splits)
            rows.append((f"{title}, calibrated", *found))
    note = "; ".join(f"{title}: {METRICS[name].meaning}" for name, title in shown.items())
    lower = ", ".join(title for name, title in shown.items() if not METRICS[name].best)
    note += f". Lower is better: {lower}" if lower else ""
    note += f". In brackets: 95 % bootstrap interval over speakers{KNOWN}."
    return Table("All classes.", ("", *splits), rows, note)


def paired_table(found: Sequence[tuple[str, Predictions]], seed: int = 0) -> Table:
    """Scores of named models on the same test clips, and how far the first is ahead of each other.

    Raises UserError, which names the model, if the clips are not the same.
    """
    (_, first), *others = found
    shown = "uar", "accuracy"
    rows = []
    for name, predictions in found:
        own = scores(predictions, seed)
        rows.append([name, *(Interval(**own[metric]) for metric in shown), None, None])
    for row, (name, predictions) in zip(rows[1:], others, strict=True):
        try:
            compared = paired(first, predictions, seed)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        p = "< 0.0001" if compared.mcnemar < 1e-4 else f"{compared.mcnemar:.4f}"
        row[-2:] = Interval(**compared.differences["uar"]), p
    note = (
        "UAR ahead: the first model's UAR minus the row's, with a paired 95 % interval over "
        f"speakers{KNOWN}. "
        "McNemar: p-value of the exact test over clips."
    )
    columns = ("", *(METRICS[metric].title for metric in shown), "UAR ahead", "McNemar")
    return Table("Models on the same test clips.", columns, rows, note)


def group_tables(groups: Mapping[str, Mapping]) -> list[Table]:
    """The results of `group_scores`, a table for each column; at most the 12 largest groups."""
    found = {column: one for column, one in groups.items() if "left_out" not in one}
    return [_group_table(column, **one) for column, one in found.items()]


def _group_table(column: str, values: Mapping[str, Mapping], differences: Mapping) -> Table:
    most = sorted(values, key=lambda name: -values[name]["clips"])[:MOST_GROUPS]
    groups = {name: found for name, found in values.items() if name in most}
    rows: list[tuple[Cell, ...]] = [
        (what, *(found[what] for found in groups.values()), None) for what in ("speakers", "clips")
    ]
    for name, title in titles(*values.values()).items():
        found = (*groups.values(), differences)
        rows.append((title, *(_interval(one.get(name, {})) for one in found)))
    note = (
        "In brackets: 95 % interval over speakers, resampled within each group; a speaker in "
        "several is drawn for all of them at once. The difference is that of the highest and the "
        "lowest group, of those with two speakers or more if there are several; with many groups "
        "it is above 0 by chance."
    )
    if len(most) < len(values):
        note += f" Only the {len(most)} of {len(values)} groups with the most clips are shown."
    return Table(f"By {column}.", (column, *groups, "largest difference"), rows, note)


def _interval(score: Mapping[str, Any]) -> Interval:
    return Interval(*(score.get(key) for key in ("value", "low", "high")))


def class_table(predictions: Predictions) -> Table:
    """Precision, recall and F1 of each class; a dash if undefined."""
    rows = [tuple(row.values()) for row in per_class(predictions)]
    note = "Precision: fraction of the clips predicted as the class; recall: fraction of its clips."
    return Table("Each class.", ("class", "precision", "recall", "F1", "clips"), rows, note)


def say_scores(
    title: str, splits: Mapping[str, Scores], calibrated: Mapping[str, Scores] | None = None
) -> None:
    """Print the scores of each split under a title, and why some have no interval."""
    say_wide(title, score_table(splits, calibrated))
    for split, found in splits.items():
        if all(one["low"] is None for one in found.values()):
            say(f"{split}: no interval over speakers, which needs two or more, all known")


def ties_text(split: str, predictions: Predictions) -> str:
    """How many clips have no label, and which metrics include them; empty if all have one."""
    if not predictions.ties:
        return ""
    soft = " and ".join(metric.title for metric in METRICS.values() if metric.soft)
    return (
        f"{predictions.ties} of {len(predictions.clips)} {split} clips have no label (raters tie, "
        f"or the emotion is in no class) and count only in {soft}."
    )


def say_ties(predictions: Mapping[str, Predictions]) -> None:
    """Print, for each split, how many clips have no label, if any."""
    for text in filter(None, (ties_text(split, one) for split, one in predictions.items())):
        say(text)


def say_groups(title: str, groups: Mapping[str, Mapping]) -> None:
    """Print the results of `group_scores`, and the columns that it left out."""
    for table in group_tables(groups):
        say_wide(f"{title}, by {table.columns[0]}", table)
    for column, found in groups.items():
        if "left_out" in found:
            say(f"no scores by {column}: {found['left_out']}")


def say_per_class(predictions: Predictions, title: str = "Each class") -> None:
    """Print precision, recall and F1 of each class."""
    say_wide(title, class_table(predictions))


def say_wide(title: str, table: Table) -> None:
    """Print a table under another title, in parts of as many columns as fit beside the first."""
    texts = [table.columns, *([cell_text(cell) for cell in row] for row in table.rows)]
    first, *others = zip(*texts, strict=True)
    while others:
        widths = [max(map(len, column)) + 2 for column in (first, *others)]  # with a gap
        fitting = sum(width <= WIDTH + 2 for width in accumulate(widths)) - 1
        shown, others = others[: max(1, fitting)], others[max(1, fitting) :]
        columns, *rows = zip(first, *shown, strict=True)
        say_table(title, columns, rows)
