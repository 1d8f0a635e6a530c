"""Scores by the groups that a corpus knows of its clips."""

from typing import Any

from mmattn.data.corpus import Corpus
from mmattn.evaluate.metrics import group_scores
from mmattn.evaluate.predictions import Predictions


def scores_by_group(corpus: Corpus, predictions: Predictions, seed: int) -> dict[str, Any]:
    """`group_scores` of predictions of some of the corpus's clips, by all its group columns."""
    row = {name: number for number, name in enumerate(corpus.names)}
    rows = [row[clip] for clip in predictions.clips]
    groups = {column: cells[rows] for column, cells in corpus.groups.items()}
    return group_scores(predictions, groups, seed)
