"""Scores as tables on the screen and in the run's log."""

from collections.abc import Mapping

from mmattn.console import say_table
from mmattn.evaluate.metrics import per_class
from mmattn.evaluate.predictions import Predictions

Scores = Mapping[str, Mapping[str, float | None]]
MEASURES = {"uar": "UAR", "accuracy": "accuracy", "macro_f1": "macro-F1", "ece": "ECE"}


def say_scores(title: str, splits: Mapping[str, Scores]) -> None:
    """Say the scores of each split, e.g. {"validation": scores, "test": scores}, side by side."""
    rows = [
        (name, *(interval_text(scores[measure]) for scores in splits.values()))
        for measure, name in MEASURES.items()
    ]
    say_table(title, ("", *splits), rows)


def interval_text(score: Mapping[str, float | None]) -> str:
    """`0.712 [0.650, 0.761]`, or the value alone where there is no interval."""
    value = f"{score['value']:.3f}"
    if score["low"] is None:
        return value
    return f"{value} [{score['low']:.3f}, {score['high']:.3f}]"


def say_per_class(predictions: Predictions, title: str = "Each class") -> None:
    """Say precision, recall and F1 of each class; a dash where there is nothing to divide by."""
    rows = [
        (
            row["class"],
            *(
                "–" if row[key] is None else f"{row[key]:.3f}"
                for key in ("precision", "recall", "f1")
            ),
            row["clips"],
        )
        for row in per_class(predictions)
    ]
    say_table(title, ("class", "precision", "recall", "F1", "clips"), rows)
