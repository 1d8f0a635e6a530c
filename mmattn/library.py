"""What notebooks call besides `fit` and `load_run`: clips, splits, scores."""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmattn.config import DataConfig
from mmattn.data.corpus import Corpus, open_corpus
from mmattn.data.splits import Split, chosen_folds, make_split
from mmattn.errors import UserError, expect
from mmattn.evaluate import metrics
from mmattn.evaluate.predictions import Predictions

MODALITIES = ("audio", "video")


class LeakWarning(UserWarning):
    """Test speakers are also in training, or may be: speakers are unknown."""


def load_corpus(
    *paths: Path | str,
    labels: Sequence[str] = (),
    target: str = "emotion",
    modalities: Sequence[str] = MODALITIES,
    variants: Sequence[str] = (),
    **data: Any,
) -> Corpus:
    """The clips of manifests and folders; without paths, the built-in synthetic corpus.

    Args:
        paths: manifests, or folders that have one or are named as RAVDESS or CREMA-D.
        labels: classes in order, e.g. "neutral=neutral,calm"; by default all of a manifest, and six
            for files named as RAVDESS or CREMA-D.
        target: the manifest column that holds the label.
        modalities: those that every clip must have.
        variants: augmented copies for training to mix in, see `AugmentConfig.variants`.
        data: other fields of `DataConfig`.

    Raises:
        UserError: an option is invalid, or clips cannot be read; the message names the first.
    """
    for path in paths:
        expect("paths", path, (str, os.PathLike), "paths, each an argument of its own")
    roots = tuple(Path(path).expanduser().resolve() for path in paths)
    data = {name: _several(of) if name in ("tile", "groups") else of for name, of in data.items()}
    config = DataConfig(roots, _several(labels), target, streams=_several(modalities), **data)
    config.check()
    return open_corpus(config, config.streams, variants=_several(variants))


def split(
    corpus: Corpus,
    validation: float = 0.15,
    test: float = 0.15,
    disjoint: Sequence[str] = ("speaker",),
    seed: int = 0,
) -> Split:
    """Divide the clips by speaker into training, validation and test clips.

    Args:
        corpus: all clips.
        validation: fraction of the speakers.
        test: fraction of the speakers.
        disjoint: columns whose values may not occur in two splits.
        seed: of the random draw; the split depends only on names, labels and seed.

    Raises:
        UserError: too few speakers.
    """
    expect("corpus", corpus, Corpus, "what load_corpus returns")
    data = replace(corpus.data, validation=validation, test=test, disjoint=_several(disjoint))
    data.check()
    return _warned(make_split(corpus, data, seed))


def folds(
    corpus: Corpus, by: str = "speaker", validation: float = 0.15, seed: int = 0
) -> Iterator[Split]:
    """A split for each fold; the fold's clips are the test set. Each clip is in one fold.

    Args:
        corpus: all clips.
        by: a column of the manifest, one fold for each value ("speaker": leave one speaker out);
            "ravdess" or "crema-d", as published; or a JSON file of test speakers.
        validation: fraction of the other speakers.
        seed: of the draw of validation speakers.

    Raises:
        UserError: there are no such folds, or too few speakers.
    """
    expect("corpus", corpus, Corpus, "what load_corpus returns")
    data = replace(corpus.data, folds=by, validation=validation)
    data.check()
    for fold in chosen_folds(corpus, data):
        yield _warned(make_split(corpus, data, seed, fold))


def _several(names: str | Iterable[str]) -> tuple[str, ...]:
    """Several names, or one, as a tuple."""
    return (names,) if isinstance(names, str) else tuple(names)


def _warned(one: Split) -> Split:
    if one.leaking:
        warnings.warn(one.description, LeakWarning, stacklevel=3)
    return one


@dataclass(frozen=True)
class Scores:
    """Scores of all clips, or of each group, with 95 % intervals over speakers.

    rows: by group (all clips: "all") and metric, {"value", "low", "high"}; differences: between the
    highest and the lowest group, by metric, if there are groups.
    """

    rows: dict[str, dict[str, Any]]
    differences: dict[str, dict[str, Any]]

    def __getitem__(self, metric: str) -> float | None:
        """The value of a metric over all clips; UserError if there is none, or only groups."""
        found = self.rows.get("all", {})
        if metric not in found:
            expected = ", ".join(found) or "scores without `by`; group scores are in .rows"
            raise UserError(f"scores[{metric!r}]: expected {expected}")
        return found[metric]["value"]

    def to_pandas(self):
        """A data frame with one row per group and metric: value, low, high."""
        import pandas

        rows = [
            {"group": group, "metric": metrics.METRICS[name].title, **one}
            for group, found in [*self.rows.items(), ("largest difference", self.differences)]
            for name, one in found.items()
            if name in metrics.METRICS
        ]
        columns = ["group", "metric", "value", "low", "high"]
        return pandas.DataFrame(rows, columns=columns).set_index(["group", "metric"])


def scores(
    predictions: Predictions,
    by: str | Sequence[str] | Mapping[str, Sequence[float]] = (),
    seed: int = 0,
) -> Scores:
    """Each of `METRICS` over all clips or, with `by`, over each group of clips.

    Args:
        predictions: of clips whose classes are known.
        by: a column of the manifest, several (each combination is a group), or bin edges for a
            numeric column, e.g. {"age": (30, 50)}.
        seed: of the bootstrap over speakers.

    Raises:
        UserError: there is no such column, or it makes no groups.
    """
    expect("predictions", predictions, Predictions, "what Run.predict_corpus returns")
    if not by:
        return Scores({"all": metrics.scores(predictions, seed)}, {})
    names = _several(by)
    if unknown := {*names} - {*predictions.columns}:
        known = ", ".join(predictions.columns) or "none"
        raise UserError(f"by {', '.join(sorted(unknown))}: expected columns of the corpus: {known}")
    cells = [predictions.columns[name] for name in names]
    if isinstance(by, Mapping):
        cells = [_binned(of, by[name]) for name, of in zip(names, cells, strict=True)]
    rows = zip(*(of.tolist() for of in cells), strict=True)
    groups = np.array(["" if "" in row else ", ".join(row) for row in rows])
    (found,) = metrics.group_scores(predictions, {"group": groups}, seed).values()
    if "left_out" in found:
        raise UserError(f"by {', '.join(names)}: {found['left_out']}")
    return Scores(found["values"], found["differences"])


def _binned(cells: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """The bin [N] str of each cell, by the edges; "" where the cell is no number."""
    if not len(edges) or (np.diff(edges) <= 0).any():
        raise UserError(f"by: expected increasing edges, one or more, found {list(edges)}")
    ends = [f"{edge:g}" for edge in edges]
    names = [f"below {ends[0]}", *map("{} to {}".format, ends, ends[1:]), f"from {ends[-1]}"]

    def name(cell: str) -> str:
        try:
            return names[np.digitize(float(cell), edges)]
        except ValueError:
            return ""

    return np.array([name(cell) for cell in cells])
