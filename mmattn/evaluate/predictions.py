"""A model's predictions for clips, and their CSV file."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mmattn.data.corpus import Corpus
from mmattn.data.labels import FIXED_COLUMNS, TARGET
from mmattn.errors import UserError
from mmattn.files import write_text

SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)  # of a float32 softmax, except zero
SUM_TOLERANCE = 1e-3  # a float32 softmax is far within it, logits or counts far outside


@dataclass(frozen=True, eq=False)
class Predictions:
    """Class probabilities of N clips over K classes; raises ValueError if they are invalid.

    clips: N different names; speakers [N] str, "" if unknown; labels [N] int, the true classes;
    probabilities [N, K] float64, rows summing to one; class_names: K different names; targets
    [N, K] float64, rows summing to one, or None: the raters' distribution over the classes. With
    targets, a label may be -1: the raters tie, and the clip counts only in metrics that compare
    predictions with targets. columns: of the corpus, [N] str each, to report scores by.
    """

    clips: tuple[str, ...]
    speakers: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    targets: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        types = {"speakers": str, "labels": np.int64, "probabilities": np.float64}
        if self.targets is not None:
            types["targets"] = np.float64
        for name, dtype in types.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype))
        _check_shapes(self)
        _check_values(self)

    @property
    def predicted(self) -> np.ndarray:
        """Most probable class of each clip [N] int; in a tie, the first."""
        return self.probabilities.argmax(axis=1)

    @property
    def ties(self) -> int:
        """How many clips have no label."""
        return int((self.labels < 0).sum())

    def select(self, rows: np.ndarray) -> "Predictions":
        """The predictions of the clips at rows: their numbers [n], or a mask [N] bool."""
        return Predictions(
            tuple(np.array(self.clips)[rows].tolist()),
            self.speakers[rows],
            self.labels[rows],
            self.probabilities[rows],
            self.class_names,
            None if self.targets is None else self.targets[rows],
            {name: cells[rows] for name, cells in self.columns.items()},
        )

    def like(self, other: "Predictions") -> "Predictions":
        """The same predictions in the clip order of another model's.

        Raises UserError unless both have the same clips, speakers, labels and classes.
        """
        if self.class_names != other.class_names:
            both = " and of ".join(map(", ".join, (self.class_names, other.class_names)))
            raise UserError(f"predictions of different classes cannot be compared: of {both}")
        row = {clip: number for number, clip in enumerate(self.clips)}
        if lacking := sorted(row.keys() ^ {*other.clips}):
            raise UserError(
                f"only predictions of the same clips can be compared: of {len(row)} and "
                f"{len(other.clips)} clips, {len(lacking)} are in only one: {_some(lacking)}"
            )
        same = self.select(np.array([row[clip] for clip in other.clips]))
        label = np.array([*self.class_names, "none"])  # the last is for ties, -1
        for what, a, b in (
            ("speakers (corpus-speaker, by the manifests)", same.speakers, other.speakers),
            ("labels", label[same.labels], label[other.labels]),
        ):
            for n in np.flatnonzero(a != b)[:1]:
                one = f"of {same.clips[n]} {a[n]} and {b[n]}"
                raise UserError(f"predictions with different {what} cannot be compared: {one}")
        return same

    def cells(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """These columns, which the corpus must have."""
        return {name: self.columns[name] for name in names}

    def to_pandas(self):
        """A data frame with the columns of predictions.csv and of the corpus."""
        import pandas

        header, rows = table_of(self)
        others = {name: of for name, of in self.columns.items() if name not in header}
        return pandas.DataFrame(rows, columns=header).assign(**others)

    def with_columns(self, corpus: Corpus) -> "Predictions":
        """The same predictions with the corpus's columns."""
        row = {name: number for number, name in enumerate(corpus.names)}
        rows = [row[clip] for clip in self.clips]
        return replace(self, columns={name: of[rows] for name, of in corpus.columns.items()})


def predictions_of(corpus: Corpus, clips: np.ndarray, probabilities: np.ndarray) -> Predictions:
    """Predictions [n, K] with the names, labels and columns of the clips [n] of a corpus."""
    return Predictions(
        tuple(corpus.names[clip] for clip in clips),
        corpus.speakers[clips],
        corpus.labels[clips],
        probabilities,
        corpus.class_names,
        None if corpus.targets is None else corpus.targets[clips],
        {name: cells[clips] for name, cells in corpus.columns.items()},
    )


def _check_shapes(predictions: Predictions) -> None:
    count, classes = len(predictions.clips), len(predictions.class_names)
    if not count:
        raise ValueError("predictions of no clips")
    expected = {"speakers": (count,), "labels": (count,), "probabilities": (count, classes)}
    if predictions.targets is not None:
        expected["targets"] = (count, classes)
    for name, shape in expected.items():
        actual = getattr(predictions, name).shape
        if actual != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {actual}")


def _check_values(predictions: Predictions) -> None:
    for name in ("clips", "class_names"):
        if repeated := _repeated(getattr(predictions, name)):
            raise ValueError(f"{name} given twice: {_some(repeated)}")
    # A cell or column of the file would be ambiguous.
    if bad := [name for name in predictions.class_names if not name or name.startswith(TARGET)]:
        raise ValueError(f"class names that are empty or begin with {TARGET}: {bad}")
    for name in ("probabilities", "targets"):
        if (shares := getattr(predictions, name)) is not None:
            bad = ~(np.isfinite(shares) & (shares >= 0)).all(axis=1)
            _refuse(predictions, bad, f"{name} that are negative or not finite")
            bad = np.abs(shares.sum(axis=1) - 1) > SUM_TOLERANCE
            _refuse(predictions, bad, f"{name} that do not sum to 1 within {SUM_TOLERANCE}")
    labels, classes = predictions.labels, len(predictions.class_names)
    lowest = 0 if predictions.targets is None else -1
    bad = (labels < lowest) | (labels >= classes)
    _refuse(predictions, bad, f"labels outside {lowest}…{classes - 1}")


def _refuse(predictions: Predictions, bad: np.ndarray, fault: str) -> None:
    if bad.any():
        raise ValueError(
            f"{fault}: {_some([predictions.clips[row] for row in np.flatnonzero(bad)])}"
        )


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


def join(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of several test folds as one, in the given order.

    Raises UserError if a clip is in more than one of them, if their classes differ, or if only some
    have targets.
    """
    for part in parts[1:]:
        if part.class_names != parts[0].class_names:
            raise UserError(
                f"predictions over different classes cannot be joined: "
                f"{', '.join(parts[0].class_names)} and {', '.join(part.class_names)}"
            )
    if len({part.targets is None for part in parts}) > 1:
        raise UserError("predictions with and without the raters' targets cannot be joined")
    if repeated := _repeated([clip for part in parts for clip in part.clips]):
        raise UserError(f"clips in more than one of the joined predictions: {_some(repeated)}")
    return combine(parts)


def pool(probabilities: Sequence[np.ndarray]) -> np.ndarray:
    """The logarithmic opinion pool [..., K] of models that give [..., K] each.

    Their geometric mean, normalised (Genest & Zidek, Statistical Science 1, 1986). For calibrated
    networks it is better calibrated than the arithmetic mean, which is underconfident.
    """
    if len(probabilities) == 1:
        return np.asarray(probabilities[0])
    votes = np.log(np.maximum(np.stack(probabilities, axis=-2), SMALLEST_PROBABILITY))
    return np.exp(pool_votes(votes))


def pool_votes(votes: np.ndarray, log_weights: np.ndarray | float = 0.0) -> np.ndarray:
    """Log-probabilities [..., K] of the pool of votes, log-probabilities [..., M, K] of M models.

    Σ_m w_m log p_m, normalised, where w = softmax(log_weights) [M] over the present votes; a
    missing vote has all log-probabilities 0. `Late` joins modalities in this way.
    """
    weights = np.exp(log_weights) * votes.any(axis=-1)
    weights /= np.maximum(weights.sum(axis=-1, keepdims=True), SMALLEST_PROBABILITY)
    joint = np.einsum("...m,...mk->...k", weights, votes)
    joint -= joint.max(axis=-1, keepdims=True)
    return joint - np.log(np.exp(joint).sum(axis=-1, keepdims=True))


def combine(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of a run's parts together: for each clip, the `pool` of its predictions."""
    places: dict[str, list[tuple[Predictions, int]]] = {}
    for part in parts:
        for row, clip in enumerate(part.clips):
            places.setdefault(clip, []).append((part, row))
    first = [found[0] for found in places.values()]
    pooled = [pool([part.probabilities[row] for part, row in found]) for found in places.values()]
    targets = [part.targets[row] for part, row in first if part.targets is not None]
    return Predictions(
        tuple(places),
        np.array([part.speakers[row] for part, row in first]),
        np.array([part.labels[row] for part, row in first]),
        np.stack(pooled),
        parts[0].class_names,
        np.stack(targets) if targets else None,
        {
            name: np.array([part.columns[name][row] for part, row in first])
            for name in parts[0].columns
        },
    )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write CSV atomically, without loss of precision; the columns are those of `table_of`."""
    header, rows = table_of(predictions)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    fixed = len(FIXED_COLUMNS)
    writer.writerows([*row[:fixed], *map(repr, row[fixed:])] for row in rows)
    write_text(path, text.getvalue())


def table_of(predictions: Predictions) -> tuple[list[str], list[list]]:
    """The columns `clip,speaker,label,predicted,<class names>`, and a row per clip.

    Label and predicted are class names; a label of -1 is empty. Each class has a column of
    probabilities and, with targets, a later column `target.<class name>`.
    """
    names = predictions.class_names
    shares, header = predictions.probabilities, [*FIXED_COLUMNS, *names]
    if predictions.targets is not None:
        shares = np.concatenate([shares, predictions.targets], axis=1)
        header += [TARGET + name for name in names]
    rows = zip(
        predictions.clips,
        predictions.speakers.tolist(),
        ("" if label < 0 else names[label] for label in predictions.labels),
        (names[label] for label in predictions.predicted),
        shares.tolist(),
        strict=True,
    )
    return header, [[*fixed, *numbers] for *fixed, numbers in rows]


def read_predictions(path: Path) -> Predictions:
    """Read what `write_predictions` wrote; a missing or malformed file raises UserError."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = _columns(path, next(reader, []))
            classes = len(columns) // 2
            soft = columns[classes:] == tuple(TARGET + name for name in columns[:classes])
            names = columns[:classes] if soft else columns
            rows = [_parse(f"{path}:{reader.line_num}", row, names, len(columns)) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not rows:
        raise UserError(f"{path}: expected clips, found only a header")
    clips, speakers, labels, predicted, numbers = zip(*rows, strict=True)
    speakers, labels, shares = np.array(speakers), np.array(labels), np.array(numbers)
    targets = shares[:, len(names) :] if soft else None
    try:
        predictions = Predictions(clips, speakers, labels, shares[:, : len(names)], names, targets)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    differs = np.flatnonzero(predictions.predicted != predicted)
    if len(differs):
        clips = _some([clips[row] for row in differs])
        raise UserError(f"{path}: predicted is not the most probable class: {clips}")
    return predictions


def _columns(path: Path, header: list[str]) -> tuple[str, ...]:
    """The columns of numbers: those of the classes and, if any, of targets."""
    fixed = len(FIXED_COLUMNS)
    if tuple(header[:fixed]) != FIXED_COLUMNS or len(header) == fixed:
        raise UserError(
            f"{path}: expected the header {','.join(FIXED_COLUMNS)},<class names>, "
            f"got {','.join(header) or 'nothing'}"
        )
    return tuple(header[fixed:])


def _parse(place: str, row: list[str], names: tuple[str, ...], numbers: int) -> tuple:
    """Clip, speaker, label, predicted and the numbers of one line."""
    width = len(FIXED_COLUMNS) + numbers
    if len(row) != width:
        raise UserError(f"{place}: expected {width} fields, got {len(row)}")
    clip, speaker, label, predicted = row[: len(FIXED_COLUMNS)]
    for name in (label, predicted) if label or numbers == len(names) else (predicted,):
        if name not in names:
            raise UserError(f"{place}: class {name!r} is none of {', '.join(names)}")
    known = names.index(label) if label else -1
    try:
        shares = [float(text) for text in row[len(FIXED_COLUMNS) :]]
    except ValueError as error:
        raise UserError(f"{place}: a probability is not a number: {error}") from error
    return clip, speaker, known, names.index(predicted), shares
