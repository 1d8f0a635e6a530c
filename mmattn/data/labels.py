"""Classes from a corpus's emotions: order, merging, selection; labels from votes."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from mmattn.errors import UserError

SIX = ("anger", "disgust", "fear", "happy", "neutral", "sad")
RAVDESS8 = ("neutral", "calm", "happy", "sad", "anger", "fear", "disgust", "surprised")
FIXED_COLUMNS = ("clip", "speaker", "label", "predicted")  # of predictions.csv
TARGET = "target."  # prefix of columns there: fraction of raters for a class

Classes = Mapping[str, tuple[str, ...]]  # class: the emotions merged into it; in label order
SCHEMES: dict[str, Classes] = {
    "six": {name: (name,) for name in SIX} | {"neutral": ("neutral", "calm")},
    "ravdess8": {name: (name,) for name in RAVDESS8},
}


def parse_labels(given: Sequence[str], present: Collection[str], every: bool = True) -> Classes:
    """The classes of `--data.labels`: `six`, `ravdess8`, or `anger neutral=neutral,calm`.

    Args:
        given: a scheme, or classes in order; by default all emotions in alphabetical order.
        present: emotions of the corpus; those in no class are left out.
        every: whether every emotion in `given` must be present.

    Raises:
        UserError: fewer than two classes, a class twice, an emotion in two classes or in no row, or
            a class named like an emotion that is in none.

    >>> parse_labels(["neutral=neutral,calm", "sad"], {"calm", "neutral", "sad"})
    {'neutral': ('neutral', 'calm'), 'sad': ('sad',)}
    """
    option = f"--data.labels {' '.join(given)}" if given else "the labels"
    given = list(given) or sorted(present)
    if len(given) == 1 and given[0] in SCHEMES:
        return SCHEMES[given[0]]
    pairs = [text.partition("=") for text in given]
    names = [name for name, *_ in pairs]
    classes = {name: tuple(merged.split(",")) if sign else (name,) for name, sign, merged in pairs}
    sources = [source for merged in classes.values() for source in merged]
    faults = [f"{name!r} is a class twice" for name in names if names.count(name) > 1]
    faults += [f"{source!r} is in two classes" for source in sources if sources.count(source) > 1]
    faults += [f"no row has {source!r}" for source in sources if every and source not in present]
    for name in names:
        if name in ("", *FIXED_COLUMNS) or name.startswith(TARGET):  # as predictions.csv has
            faults.append(f"no class may be named {name!r}")
        elif every and name in present and name not in sources:
            faults.append(f"{name!r} is also an emotion, in no class: add it, or rename the class")
    if len(classes) < 2:
        faults.append("expected two classes or more")
    if faults:
        there = ", ".join(sorted(present))
        text = "; ".join(dict.fromkeys(faults))
        raise UserError(f"{option}: {text} (the emotions are: {there})")
    return classes


def soft_labels(classes: Classes, votes: Mapping[str, np.ndarray]) -> np.ndarray:
    """[N, K] float32: each class's share of the votes [N] by emotion; rows sum to 1, or are 0 if no
    class has a vote."""
    none = np.zeros(len(next(iter(votes.values()))))
    of_class = [
        sum((votes.get(name, none) for name in merged), none) for merged in classes.values()
    ]
    merged = np.stack(of_class, axis=1)
    total = merged.sum(axis=1, keepdims=True)
    return np.divide(merged, total, out=np.zeros_like(merged), where=total > 0).astype(np.float32)


def majority(soft: np.ndarray) -> np.ndarray:
    """[N] int32: the class with the largest soft label [N, K]; -1 if tied or all 0."""
    second, first = np.partition(soft, -2, axis=1)[:, -2:].T
    return np.where(first - second > 1e-6, soft.argmax(axis=1), -1).astype(np.int32)
