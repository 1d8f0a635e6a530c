"""Scores as tables, for the screen, the run's log and the page."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from mmattn.console import WIDTH, say, say_table
from mmattn.errors import UserError
from mmattn.evaluate.metrics import METRICS, paired, per_class, scores
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


def markdown(table: Table) -> Iterator[str]:
    """The lines of a table in Markdown, without its title and note."""
    yield "| " + " | ".join(table.columns) + " |"
    yield "|---" * len(table.columns) + "|"
    for row in table.rows:
        yield "| " + " | ".join(cell_text(cell).replace("|", r"\|") for cell in row) + " |"


def titles(*found: Mapping[str, Any]) -> dict[str, str]:
    """The title of each metric that is among all of the scores found, in the order of `METRICS`."""
    return {
        name: metric.title
        for name, metric in METRICS.items()
        if all(name in scores for scores in found)
    }


def score_table(
    splits: Mapping[str, Scores], calibrated: Mapping[str, Scores] | None = None
) -> Table:
    """The scores of each split side by side, e.g. of {"validation": scores, "test": scores}.

    Those of calibrated predictions, of the same splits, stand under the others of their metric.
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
    note += f". Better when lower: {lower}" if lower else ""
    note += ". In brackets: 95 % interval of a bootstrap over speakers."
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
        "UAR ahead: the first's less the row's, with a 95 % interval over speakers, paired. "
        "McNemar: p of the exact test over clips."
    )
    columns = ("", *(METRICS[metric].title for metric in shown), "UAR ahead", "McNemar")
    return Table("Models on the same test clips.", columns, rows, note)


def group_tables(groups: Mapping[str, Mapping]) -> list[Table]:
    """What `group_scores` found, a table a column; of more than 12 groups those with most clips."""
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
        "In brackets: 95 % interval over speakers, drawn within each group; who is in several is "
        "drawn for all of them at once. The difference is that of the highest and the lowest group "
        "with two speakers or more; of many groups it is above 0 by chance."
    )
    if len(most) < len(values):
        note += f" Shown are the {len(most)} of {len(values)} groups with the most clips."
    return Table(f"By {column}.", (column, *groups, "largest difference"), rows, note)


def _interval(score: Mapping[str, Any]) -> Interval:
    return Interval(*(score.get(key) for key in ("value", "low", "high")))


def class_table(predictions: Predictions) -> Table:
    """Precision, recall and F1 of each class; a dash where there is nothing to divide by."""
    rows = [tuple(row.values()) for row in per_class(predictions)]
    note = "Precision: of the clips that were predicted to be of it; recall: of those that are."
    return Table("Each class.", ("class", "precision", "recall", "F1", "clips"), rows, note)


def say_scores(
    title: str, splits: Mapping[str, Scores], calibrated: Mapping[str, Scores] | None = None
) -> None:
    """Say the scores of each split under a title of its own."""
    say_wide(title, score_table(splits, calibrated))


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
    """Say what `group_scores` found, and which columns it left out."""
    for table in group_tables(groups):
        say_wide(f"{title}, by {table.columns[0]}", table)
    for column, found in groups.items():
        if "left_out" in found:
            say(f"no scores by {column}: it has {found['left_out']}")


def say_per_class(predictions: Predictions, title: str = "Each class") -> None:
    """Say precision, recall and F1 of each class."""
    say_wide(title, class_table(predictions))


def say_wide(title: str, table: Table) -> None:
    """Say a table under another title, in parts of as many columns as fit beside the first."""
    texts = [table.columns, *([cell_text(cell) for cell in row] for row in table.rows)]
    first, *others = zip(*texts, strict=True)
    while others:
        widths = [max(map(len, column)) + 2 for column in (first, *others)]  # with a gap
        fitting = sum(width <= WIDTH + 2 for width in accumulate(widths)) - 1
        shown, others = others[: max(1, fitting)], others[max(1, fitting) :]
        columns, *rows = zip(first, *shown, strict=True)
        say_table(title, columns, rows)
