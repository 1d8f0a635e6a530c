"""Which clips train, validate and test: by speaker, by folds, as the table says, or by clip.

What must not be parted, such as the clips of a speaker, is a unit; splits are made of units.
"""

import json
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mmattn.config import DataConfig
from mmattn.data.corpora import CORPORA
from mmattn.data.corpus import Corpus
from mmattn.errors import UserError

DRAWS = 2000  # random divisions of the units, of which the best balanced is taken
SIDES = ("train", "validation", "test")
LEAK, UNKNOWN = "LEAKS SPEAKERS", "SPEAKERS UNKNOWN"
CAVEATS = {False: None, True: LEAK, "unknown": UNKNOWN}  # by `Split.leaking`


@dataclass(frozen=True)
class Split:
    """Clips of each side as indices into the corpus, in increasing order."""

    train: np.ndarray  # [n] int64
    validation: np.ndarray
    test: np.ndarray
    description: str  # one line
    fold: int | None = None
    leaking: bool | Literal["unknown"] = False  # speakers are on several sides, by request


class Fold(NamedTuple):
    """A test set by name."""

    title: str
    tests: np.ndarray  # [N] bool, of all clips


def named_folds(corpus: Corpus, folds: str) -> list[Fold]:
    """The folds of `data.folds`: one a value of a column, or one a list of test speakers.

    Raises UserError if it is unclear.
    """
    if folds in corpus.columns:
        of = corpus.speakers if folds == "speaker" else corpus.columns[folds]
        return [Fold(value, of == value) for value in sorted({*of.tolist()} - {""}, key=_natural)]
    return [Fold(_some(test), np.isin(corpus.speakers, test)) for test in fold_speakers(folds)]


def _natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts 2 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def fold_speakers(folds: str) -> list[list[str]]:
    """Test speakers of each fold of a known corpus or a JSON file; UserError if unclear."""
    if folds in CORPORA:
        return CORPORA[folds].FOLDS
    wanted = (
        f"--data.folds is {', '.join(CORPORA)}, a column of the manifest or a JSON file "
        '{"test_speakers": [["ravdess-01", "ravdess-02"], ["crema-d-1001"]]}'
    )
    try:
        lists = json.loads(Path(folds).expanduser().read_text())["test_speakers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{wanted}; {folds!r} cannot be read so: {error!r}") from error
    if not isinstance(lists, list) or not all(isinstance(fold, list) and fold for fold in lists):
        raise UserError(f"{wanted}; {folds!r} holds no list of lists")
    speakers = [speaker for fold in lists for speaker in fold]
    odd = [speaker for speaker in speakers if not isinstance(speaker, str)]
    if odd:
        raise UserError(f"{wanted}; {folds!r} has the speaker {odd[0]!r}, which is no text")
    double = sorted({speaker for speaker in speakers if speakers.count(speaker) > 1})
    if double:
        raise UserError(f"{folds!r} names speakers twice: {', '.join(double)}")
    return lists


def folds_at_hand(corpus: Corpus, data: DataConfig) -> list[int]:
    """The folds that have test clips in the corpus; none without `data.folds`."""
    folds = named_folds(corpus, data.folds) if data.folds else []
    return [number for number, fold in enumerate(folds) if fold.tests.any()]


def chosen_folds(corpus: Corpus, data: DataConfig) -> list[int | None]:
    """What to train on one after the other: folds by number, or [None] without `data.folds`."""
    if data.folds is None:
        if data.fold != "all":
            raise UserError(f"--data.fold {data.fold} needs --data.folds")
        return [None]
    if data.fold != "all":
        return [data.fold]
    folds = folds_at_hand(corpus, data)
    if not folds:
        raise UserError(f"no fold of {data.folds!r} has a speaker among {_some(corpus.speakers)}")
    return list(folds)


def make_split(
    corpus: Corpus,
    data: DataConfig,
    seed: int,
    fold: int | None = None,
    member: int = 0,
    members: int = 1,
) -> Split:
    """Divide the clips; the same for the same names, labels and seed.

    The networks of an ensemble share the test clips; of the other units each is for validation with
    exactly one of them.

    Raises UserError if there are too few speakers or a side would be of no use.
    """
    for option, share in (("validation", data.validation), ("test", data.test)):
        if not 0 < share < 1:
            raise UserError(f"--data.{option} must be between 0 and 1, not {share}")
    if data.split != "speakers" and (data.folds is not None or members > 1):
        option = "members" if members > 1 else "data.folds"
        raise UserError(f"--data.split {data.split} cannot have --{option}")
    if data.split == "leaky-clips":
        split = _split_clips(corpus, data, seed)
    else:
        units = _units(corpus, data, given=data.split == "column" or fold is not None)
        if data.split == "column":
            split = _split_by_column(corpus, units, data, seed)
        else:
            split = _split_units(corpus, units, data, seed, fold, member, members)
        split = _with_caveat(split, corpus, data)
        for of in () if corpus.contents is None else corpus.contents.T:
            _check_apart(split, of, np.array(corpus.names), "clips of the same file are")
    check_split(split, corpus)
    return split


def _units(corpus: Corpus, data: DataConfig, given: bool) -> np.ndarray:
    """The unit of each clip [N] str: joined are those that share a file or a value of a column of
    `data.disjoint`. A clip without such a value is by itself, if the split is `given`.

    Raises UserError if there is no such column, or clips lack a value and a split is to be drawn.
    """
    values = []
    for name in data.disjoint:
        if name != "speaker" and name not in corpus.columns:
            there = ", ".join(corpus.columns) or "none"
            raise UserError(f"--data.disjoint {name}: expected a column of the manifest: {there}")
        values.append(corpus.speakers if name == "speaker" else corpus.columns[name])
        if unknown := int((values[-1] == "").sum()) * (not given):
            raise UserError(
                f"{unknown} of {len(corpus)} clips have no {name}, so no split by it can be drawn; "
                "--data.disjoint names another column, --data.split column takes the manifest's "
                "split, and --data.split leaky-clips divides clips by chance"
            )
    alone = np.array([f"clip {name}" for name in corpus.names])
    values = [np.where(of == "", alone, of) for of in values]
    names = values[0] if values else alone
    values += [] if corpus.contents is None else [*corpus.contents.T]
    edges, nodes = [], len(corpus)
    for of in values:
        found, number = np.unique(of, return_inverse=True)
        edges.append(nodes + number)
        nodes += len(found)
    clips = np.tile(np.arange(len(corpus)), len(edges))
    ends = np.concatenate(edges) if edges else clips
    graph = coo_array((np.ones(len(ends), bool), (clips, ends)), (nodes, nodes))
    unit = connected_components(graph, directed=False)[1][: len(corpus)]
    order = np.lexsort((names, unit))
    _, first, number = np.unique(unit[order], return_index=True, return_inverse=True)
    units = np.empty_like(names)
    units[order] = names[order][first][number]  # a unit is named for the first of its values
    return units


def _with_caveat(split: Split, corpus: Corpus, data: DataConfig) -> Split:
    """The split, flagged if speakers are unknown or, where that was asked for, on two sides."""
    used = np.concatenate([getattr(split, side) for side in SIDES])
    if (corpus.speakers[used] == "").any():
        return replace(split, leaking="unknown", description=f"{split.description}, {UNKNOWN}")
    sides = [corpus.speakers[getattr(split, side)] for side in SIDES]
    shared = sum(len(np.unique(side)) for side in sides) > len(np.unique(corpus.speakers[used]))
    if shared and "speaker" not in data.disjoint:
        return replace(split, leaking=True, description=f"{split.description}, {LEAK}")
    return split


def _split_clips(corpus: Corpus, data: DataConfig, seed: int) -> Split:
    """The earlier system's way: every class is divided by chance, whoever speaks."""
    rng = np.random.default_rng([seed, 0])
    sides: dict[str, list[np.ndarray]] = {side: [] for side in SIDES}
    for label in (*range(len(corpus.class_names)), -1):
        clips = rng.permutation(np.flatnonzero(corpus.labels == label))
        test, both = np.round(len(clips) * np.cumsum([data.test, data.validation])).astype(int)
        for side, part in zip(SIDES, (clips[both:], clips[test:both], clips[:test]), strict=True):
            sides[side].append(part)
    arrays = {side: np.sort(np.concatenate(parts)) for side, parts in sides.items()}
    return Split(**arrays, description=f"random clips, {LEAK}, seed {seed}", leaking=True)


def _split_units(
    corpus: Corpus,
    units: np.ndarray,
    data: DataConfig,
    seed: int,
    fold: int | None,
    member: int,
    members: int,
) -> Split:
    """The test units of the fold or drawn; of the others, those to validate this network."""
    every, speakers = np.unique(units), "speakers"
    if {*every} != {*corpus.speakers}:
        speakers = f"groups of clips that share a file or the {' or '.join(data.disjoint)}"
    if fold is not None:
        chosen = _fold_at_hand(corpus, data, fold)
        tests, place = chosen.tests, f"fold {fold} of {data.folds}"
        rest, where = np.setdiff1d(every, units[tests]), f"{speakers} outside fold {fold}"
        drawn = (
            _draw(corpus, units, rest, {"validate": data.validation}, seed, where)
            if members == 1
            else []
        )
        text = f"{place}, validation speakers by seed {seed}"
    else:
        shares = {"test": data.test, "validate": data.validation}
        if members > 1:
            del shares["validate"]
        test, *drawn = _draw(corpus, units, every, shares, seed, speakers)
        tests, place = np.isin(units, test), f"seed {seed}"
        rest, text = np.setdiff1d(every, test), f"{speakers}, {place}"
    if members > 1:
        if len(rest) < members:
            raise UserError(
                f"{len(rest)} speakers besides the test are too few for --members {members}: each "
                "needs its own to validate"
            )
        sizes = [len(part) for part in np.array_split(rest, members)]
        groups = _balanced(corpus, units, rest, tuple(sizes[:-1]), seed)
        groups.append(np.setdiff1d(rest, np.concatenate(groups)))
        drawn, text = [groups[member]], f"speakers, {place}, member {member} of {members}"
    validates = np.isin(units, drawn[0])
    train = ~validates & ~tests
    return Split(*map(np.flatnonzero, (train, validates, tests)), text, fold)


def _draw(
    corpus: Corpus,
    units: np.ndarray,
    some: np.ndarray,
    shares: dict[str, float],
    seed: int,
    units_are: str,
) -> list[np.ndarray]:
    """Of `some` units disjoint sets of these shares, of one unit or more each."""
    sizes = tuple(max(1, round(share * len(some))) for share in shares.values())
    if sum(sizes) >= len(some):
        wanted = ", ".join(f"{n} to {what}" for n, what in zip(sizes, shares, strict=True))
        raise UserError(f"{len(some)} {units_are} are too few for {wanted} and at least 1 to train")
    return _balanced(corpus, units, some, sizes, seed)


def _split_by_column(corpus: Corpus, units: np.ndarray, data: DataConfig, seed: int) -> Split:
    """As the column `split` says; where it names no validation, that is drawn from training."""
    said = corpus.columns.get("split", np.full(len(corpus), ""))
    text = "the column split"
    if left_out := int((said == "").sum()):
        text += f" ({left_out} clips without one left out)"
    if "train" in said and "validation" not in said:
        rest = np.unique(units[said == "train"])
        (chosen,) = _draw(
            corpus, units, rest, {"validate": data.validation}, seed, "speakers to train"
        )
        said = np.where(np.isin(units, chosen) & (said == "train"), "validation", said)
        text += f", validation speakers by seed {seed}"
    return Split(*(np.flatnonzero(said == side) for side in SIDES), text)


def _fold_at_hand(corpus: Corpus, data: DataConfig, fold: int) -> Fold:
    folds = named_folds(corpus, data.folds)
    if not 0 <= fold < len(folds):
        raise UserError(f"--data.fold {fold}: {data.folds!r} has folds 0 to {len(folds) - 1}")
    if not folds[fold].tests.any():
        raise UserError(
            f"fold {fold} of {data.folds!r} tests {folds[fold].title}, and the corpus has "
            f"{_some(corpus.speakers)}"
        )
    return folds[fold]


def _balanced(
    corpus: Corpus, units: np.ndarray, some: np.ndarray, sizes: tuple[int, ...], seed: int
) -> list[np.ndarray]:
    """Of `some` units disjoint sets of the given sizes, and the rest, all with alike class shares.

    Of DRAWS random divisions the one is taken whose class proportions are nearest to those of all,
    the first if several are. `units` [N] are those of the clips.
    """
    rng = np.random.default_rng([seed, 1])
    kept = np.isin(units, some)
    counts = np.zeros((len(some), len(corpus.class_names)))
    np.add.at(counts, np.searchsorted(some, units[kept]), _class_shares(corpus)[kept])
    whole = counts.sum(axis=0) / counts.sum()
    bounds = [0, *np.cumsum(sizes), len(some)]
    best, least = None, np.inf
    for _ in range(DRAWS):
        order = rng.permutation(len(some))
        sides = np.add.reduceat(counts[order], bounds[:-1], axis=0)
        shares = sides / sides.sum(axis=1, keepdims=True)
        cost = np.abs(shares - whole).sum().round(9)  # rounded: a tie must not hang on the last bit
        if cost < least:
            best, least = order, cost
    return [np.sort(some[best[a:b]]) for a, b in pairwise(bounds[:-1])]


def _class_shares(corpus: Corpus) -> np.ndarray:
    """[N, K] soft labels, or the labels one-hot."""
    if corpus.targets is not None:
        return corpus.targets
    return np.eye(len(corpus.class_names))[corpus.labels]


def check_split(split: Split, corpus: Corpus) -> None:
    """UserError if a side is empty, shares clips or speakers with another, or lacks a class."""
    for side in SIDES:
        if not len(getattr(split, side)):
            raise UserError(f"the split has no {side} clips ({split.description})")
    names = np.array(corpus.names)
    _check_apart(split, names, names, "clips")
    if split.leaking is not True:
        _check_apart(split, corpus.speakers, corpus.speakers, "speakers")
    counts = _class_shares(corpus)[split.train].sum(axis=0)
    missing = [corpus.class_names[label] for label in np.flatnonzero(counts == 0)]
    if missing:
        raise UserError(
            f"no training clip of the class {', '.join(missing)} among {len(split.train)} "
            f"({split.description})"
        )


def _check_apart(split: Split, of: np.ndarray, names: np.ndarray, what: str) -> None:
    """UserError if a value of `of` [N] is on two sides, with the names [N] of its clips."""
    for first, second in (SIDES[:2], SIDES[1:], SIDES[::2]):
        both = np.intersect1d(of[getattr(split, first)], of[getattr(split, second)])
        both = both[both != ""] if both.dtype.kind == "U" else both
        if len(both):
            shared = names[np.isin(of, both)]
            raise UserError(f"{what} in both {first} and {second}: {_some(shared)}")


def split_to_json(split: Split, corpus: Corpus) -> dict:
    """Names of the clips and the speakers of every side, to be written to the run."""
    document = {"description": split.description, "fold": split.fold, "leaking": split.leaking}
    for side in SIDES:
        clips = getattr(split, side)
        document[side] = {
            "speakers": np.unique(corpus.speakers[clips]).tolist(),
            "clips": [corpus.names[clip] for clip in clips],
        }
    return document


def split_from_json(document: dict, corpus: Corpus) -> Split:
    """The split that was written, for a corpus that has its clips; UserError if it has not."""
    index = {name: number for number, name in enumerate(corpus.names)}
    sides = {}
    for side in SIDES:
        clips = document[side]["clips"]
        missing = [name for name in clips if name not in index]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(clips)} {side} clips of the split are not in the corpus: "
                f"{_some(missing)}"
            )
        sides[side] = np.array([index[name] for name in clips], np.int64)
    split = Split(
        **sides,
        description=document["description"],
        fold=document["fold"],
        leaking=document["leaking"],
    )
    check_split(split, corpus)
    return split


def _some(names) -> str:
    """The first few of many names."""
    names = np.unique(names).tolist()
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
