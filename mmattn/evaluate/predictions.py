"""What a model said of each clip, and the CSV file that keeps it."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmattn.errors import UserError
from mmattn.files import write_text

FIXED_COLUMNS = ("clip", "speaker", "label", "predicted")
SUM_TOLERANCE = 1e-3  # float32 softmax is far within it, logits or counts are far outside


@dataclass(frozen=True, eq=False)
class Predictions:
    """Class probabilities of N clips over K classes; raises ValueError where they make no sense.

    clips: N different names; speakers [N] str; labels [N] int, the true classes;
    probabilities [N, K] float64, rows summing to one; class_names: K different names.
    """

    clips: tuple[str, ...]
    speakers: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]

    def __post_init__(self):
        for name, dtype in (("speakers", str), ("labels", np.int64), ("probabilities", np.float64)):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype))
        _check_shapes(self)
        _check_values(self)

    @property
    def predicted(self) -> np.ndarray:
        """Most probable class of each clip [N] int; the first one of a tie."""
        return self.probabilities.argmax(axis=1)


def _check_shapes(predictions: Predictions) -> None:
    count, classes = len(predictions.clips), len(predictions.class_names)
    if not count:
        raise ValueError("predictions of no clips")
    expected = {"speakers": (count,), "labels": (count,), "probabilities": (count, classes)}
    for name, shape in expected.items():
        actual = getattr(predictions, name).shape
        if actual != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {actual}")


def _check_values(predictions: Predictions) -> None:
    for name in ("clips", "class_names"):
        if repeated := _repeated(getattr(predictions, name)):
            raise ValueError(f"{name} given twice: {_some(repeated)}")
    probabilities, labels = predictions.probabilities, predictions.labels
    classes = len(predictions.class_names)
    bad = ~(np.isfinite(probabilities) & (probabilities >= 0)).all(axis=1)
    _refuse(predictions, bad, "probabilities that are negative or not finite")
    bad = np.abs(probabilities.sum(axis=1) - 1) > SUM_TOLERANCE
    _refuse(predictions, bad, f"probabilities that do not sum to 1 within {SUM_TOLERANCE}")
    _refuse(predictions, (labels < 0) | (labels >= classes), f"labels outside 0…{classes - 1}")


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
    """Predictions of several test folds as one, in the order given.

    Raises UserError if a clip is in more than one of them or if their classes differ.
    """
    for part in parts[1:]:
        if part.class_names != parts[0].class_names:
            raise UserError(
                f"predictions over different classes cannot be joined: "
                f"{', '.join(parts[0].class_names)} and {', '.join(part.class_names)}"
            )
    clips = tuple(clip for part in parts for clip in part.clips)
    if repeated := _repeated(clips):
        raise UserError(f"clips in more than one of the joined predictions: {_some(repeated)}")
    return Predictions(
        clips,
        np.concatenate([part.speakers for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.probabilities for part in parts]),
        parts[0].class_names,
    )


def combine(parts: Sequence[Predictions]) -> Predictions:
    """What the parts of a run say together: for each clip the mean over those that predict it."""
    predicted: dict[str, list[tuple[str, int, np.ndarray]]] = {}
    for part in parts:
        rows = zip(part.clips, part.speakers, part.labels, part.probabilities, strict=True)
        for clip, *rest in rows:
            predicted.setdefault(clip, []).append(tuple(rest))
    return Predictions(
        tuple(predicted),
        np.array([rows[0][0] for rows in predicted.values()]),
        np.array([rows[0][1] for rows in predicted.values()]),
        np.stack([np.mean([row[2] for row in rows], axis=0) for rows in predicted.values()]),
        parts[0].class_names,
    )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write CSV `clip,speaker,label,predicted,<class names>`, exactly readable and atomically.

    Label and predicted are class names; a column a class holds its probability.
    """
    names = predictions.class_names
    rows = zip(
        predictions.clips,
        predictions.speakers,
        (names[label] for label in predictions.labels),
        (names[label] for label in predictions.predicted),
        predictions.probabilities.tolist(),
        strict=True,
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*FIXED_COLUMNS, *names])
    writer.writerows([*fixed, *map(repr, probabilities)] for *fixed, probabilities in rows)
    write_text(path, text.getvalue())


def read_predictions(path: Path) -> Predictions:
    """Read what `write_predictions` wrote; a missing or malformed file raises UserError."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            names = _class_names(path, next(reader, []))
            rows = [_parse(f"{path}:{reader.line_num}", row, names) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not rows:
        raise UserError(f"{path}: a header but no clips")
    clips, speakers, labels, predicted, probabilities = zip(*rows, strict=True)
    try:
        predictions = Predictions(clips, speakers, labels, probabilities, names)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    differs = np.flatnonzero(predictions.predicted != predicted)
    if len(differs):
        clips = _some([clips[row] for row in differs])
        raise UserError(f"{path}: predicted is not the most probable class: {clips}")
    return predictions


def _class_names(path: Path, header: list[str]) -> tuple[str, ...]:
    fixed = len(FIXED_COLUMNS)
    if tuple(header[:fixed]) != FIXED_COLUMNS or len(header) == fixed:
        raise UserError(
            f"{path}: expected the header {','.join(FIXED_COLUMNS)},<class names>, "
            f"got {','.join(header) or 'nothing'}"
        )
    return tuple(header[fixed:])


def _parse(place: str, row: list[str], names: tuple[str, ...]) -> tuple:
    """Clip, speaker, label, predicted, probabilities of one line."""
    width = len(FIXED_COLUMNS) + len(names)
    if len(row) != width:
        raise UserError(f"{place}: expected {width} fields, got {len(row)}")
    clip, speaker, *classes = row[: len(FIXED_COLUMNS)]
    for name in classes:
        if name not in names:
            raise UserError(f"{place}: class {name!r} is none of {', '.join(names)}")
    label, predicted = map(names.index, classes)
    try:
        probabilities = [float(text) for text in row[len(FIXED_COLUMNS) :]]
    except ValueError as error:
        raise UserError(f"{place}: a probability is no number: {error}") from error
    return clip, speaker, label, predicted, probabilities
