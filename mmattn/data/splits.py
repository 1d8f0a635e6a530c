"""Training, validation and test clips: by speaker, by fold, by a column, or by clip.

Clips that must stay together, such as those of a speaker, form a unit; a split is a set of units.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmattn.config import DataConfig
from mmattn.console import counted
from mmattn.data.corpora import CORPORA
from mmattn.data.corpus import Corpus
from mmattn.errors import UserError

DRAWS = 2000  # random divisions of the units; the best balanced is used
SPLITS = ("train", "validation", "test")
_TOLD = ("description", "fold", "leaking")  # fields of a Split besides its clips
CAVEATS = {False: None, True: "LEAKS SPEAKERS", "unknown": "SPEAKERS UNKNOWN"}  # by Split.leaking


@dataclass(frozen=True)
class Split:
    """Clips of each split as indices into the corpus, in increasing order."""

    train: np.ndarray  # [n] int64
    validation: np.ndarray
    test: np.ndarray
    description: str  # one line
    fold: int | None = None
    leaking: bool | Literal["unknown"] = False  # speakers are in several splits, as the user asked

    @property
    def clips(self) -> dict[str, np.ndarray]:
        """The three splits by name."""
        return dict(zip(SPLITS, (self.train, self.validation, self.test), strict=True))


def fold_tests(corpus: Corpus, folds: str) -> list[np.ndarray]:
    """The test clips [N] bool of each of `data.folds`: one fold for each value of a column, in
    natural order, or for each list of speakers. Raises UserError if there are no such folds."""
    columns = _columns(corpus)
    if folds in columns:
        values = {*columns[folds].tolist()} - {""}
        parts = {value: re.split(r"(\d+)", value) for value in values}  # numbers follow text
        place = {v: [int(p) if p.isdecimal() else p for p in of] for v, of in parts.items()}
        return [columns[folds] == value for value in sorted(sorted(values), key=place.__getitem__)]
    try:
        known = CORPORA[folds].FOLDS if folds in CORPORA else None
        lists = known or json.loads(Path(folds).expanduser().read_text())["test_speakers"]
        if {*map(type, (lists, *lists))} != {list} or {*map(type, chain(*lists))} != {str}:
            raise ValueError("expected a list of lists of text")
        if double := [name for name, count in Counter(chain(*lists)).items() if count > 1]:
            raise ValueError(f"expected each speaker once, not {', '.join(double)}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--data.folds {folds}: expected {', '.join(CORPORA)}, a column "
            f"({_filled(columns)}) or a JSON file "
            '{"test_speakers": [["ravdess-01", "ravdess-02"], ["crema-d-1001"]]}; found '
            f"{'no such file' if isinstance(error, FileNotFoundError) else repr(error)}"
        ) from error
    return [np.isin(corpus.speakers, test) for test in lists]


def _columns(corpus: Corpus) -> dict[str, np.ndarray]:
    """The columns of the clips; a speaker's name has that of the corpus before it."""
    return {**corpus.columns, "speaker": corpus.speakers}


def _filled(columns: Mapping[str, np.ndarray]) -> str:
    """The names of the columns that are not empty."""
    return ", ".join(name for name, cells in columns.items() if (cells != "").any())


def chosen_folds(corpus: Corpus, data: DataConfig) -> Sequence[int | None]:
    """The folds to train, by number, or [None] without `data.folds`.
    Raises UserError if a fold has no test clips in the corpus."""
    if data.folds is None:
        if data.fold != "all":
            raise UserError(f"--data.fold {data.fold} needs --data.folds")
        return [None]
    there = [n for n, test in enumerate(fold_tests(corpus, data.folds)) if test.any()]
    if not there:
        raise UserError(
            f"no clip is in any fold of {data.folds!r}, which the experiment or --data.folds "
            f"names; columns that can be folds are {_filled(_columns(corpus))}"
        )
    chosen = there if data.fold == "all" else [data.fold]
    if {*chosen} - {*there}:
        have = ", ".join(map(str, there))
        raise UserError(f"--data.fold {data.fold}: folds of {data.folds!r} with test clips: {have}")
    return chosen


def make_split(
    corpus: Corpus,
    data: DataConfig,
    seed: int,
    fold: int | None = None,
    member: int = 0,
    ensemble_size: int = 1,
) -> Split:
    """Divide the clips; the split depends only on names, labels and seed. Members of an ensemble
    share the test clips; every other unit is used for validation by one member.

    Raises UserError if there are too few speakers, a split would be empty, or training would lack a
    class.
    """
    if data.split != "speakers" and (data.folds is not None or ensemble_size > 1):
        raise UserError(f"--data.split {data.split} cannot have --data.folds or --ensemble-size")
    if data.split == "leaky-clips":
        assigned, text = _draw_clips(corpus, data, seed), f"random clips, seed {seed}"
        apart: dict[str, np.ndarray] = {}
    else:
        assigned, text, apart = _split_units(corpus, data, seed, fold, member, ensemble_size)
    speakers = [{*corpus.speakers[assigned == name].tolist()} for name in SPLITS]
    shared = any((a & b) - {""} for a, b in combinations(speakers, 2))
    leaking: bool | Literal["unknown"]
    leaking = data.split == "leaky-clips" or (shared and "speaker" not in data.disjoint)
    if not leaking and any("" in of for of in speakers):
        leaking = "unknown"
    text += f", {CAVEATS[leaking]}" if leaking else ""
    clips = {name: np.flatnonzero(assigned == name) for name in SPLITS}
    split = Split(**clips, description=text, fold=fold, leaking=leaking)
    check_split(split, corpus, apart)
    return split


def _split_units(
    corpus: Corpus, data: DataConfig, seed: int, fold: int | None, member: int, ensemble_size: int
) -> tuple[np.ndarray, str, dict[str, np.ndarray]]:
    """The split of each clip [N] str, "" if it is left out; a description; the values, by kind,
    that no two splits may share. Splits that the table or fold does not give are drawn."""
    assigned, text = np.full(len(corpus), "train", "U10"), ""
    if fold is not None:
        assigned[fold_tests(corpus, data.folds or "")[fold]] = "test"
        text = f"fold {fold} of {data.folds}"
    elif data.split == "column":
        assigned[:] = corpus.columns.get("split", "")
        if (assigned == "").all():
            what = "expected a column split with values in the manifest"
            raise UserError(f"--data.split column: {what}; {corpus.description} have none")
        left_out = (assigned == "").sum()
        text = "the column split" + f" ({left_out} clips without one left out)" * bool(left_out)
    units, apart = _units(corpus, data, given=bool(text))
    kind = "speakers" if data.disjoint == ("speaker",) else "groups of clips"
    shares = {} if text else {"test": data.test}
    if ensemble_size == 1 and "validation" not in assigned and "train" in assigned:
        shares["validation"] = data.validation
    if shares:
        count = len(np.unique(units[assigned == "train"]))
        parts = [(name, max(1, round(share * count))) for name, share in shares.items()]
        parts.append(("train", max(1, count - sum(size for _, size in parts))))
        assigned = _draw(corpus, units, assigned, parts, seed)
        text = f"{text}, validation {kind} by seed {seed}" if text else f"{kind}, seed {seed}"
    if ensemble_size > 1:
        rest = np.unique(units[assigned == "train"])
        if len(rest) < ensemble_size:
            raise UserError(
                f"--ensemble-size {ensemble_size}: expected at most {len(rest)}, the {kind} "
                "outside the test split: each member has others for validation"
            )
        sizes = map(len, np.array_split(rest, ensemble_size))
        parts = [("train", max(1, size)) for size in sizes]
        parts[member] = ("validation", parts[member][1])
        assigned = _draw(corpus, units, assigned, parts, seed)
        text += f", member {member} of {ensemble_size}"
    return assigned, text, apart


def _draw_clips(corpus: Corpus, data: DataConfig, seed: int) -> np.ndarray:
    """The earlier system's split [N]: random within each class, ignoring speakers."""
    rng = np.random.default_rng([seed, 0])
    assigned = np.full(len(corpus), "train", "U10")
    for label in (*range(len(corpus.class_names)), -1):
        clips = rng.permutation(np.flatnonzero(corpus.labels == label))
        test, both = np.round(len(clips) * np.cumsum([data.test, data.validation])).astype(int)
        assigned[clips[:test]], assigned[clips[test:both]] = "test", "validation"
    return assigned


def _units(corpus: Corpus, data: DataConfig, given: bool) -> tuple[np.ndarray, dict]:
    """The unit [N] int of each clip, and by kind the values [N] str that no two splits may share.

    Clips are in one unit if they share a value, directly or through other clips; units are ordered
    by their least value of the first kind. An unknown value counts as unique to the clip.
    Raises UserError if a column is missing, or values are unknown and no split is given."""
    apart, names = {}, np.array(corpus.names)
    columns = _columns(corpus)
    for name in data.disjoint:
        if name not in columns:
            raise UserError(f"--data.disjoint {name}: expected a column: {', '.join(columns)}")
        unknown = columns[name] == ""
        if unknown.any() and not given:
            raise UserError(
                f"{unknown.sum()} of {len(corpus)} clips have no {name} (the first is "
                f"{corpus.place(np.flatnonzero(unknown)[0])}), so they cannot be split by it; the "
                f"table has {_filled(corpus.columns)}: correct it, use a column as {name} "
                f"(--data.columns {name}=COLUMN), name another with --data.disjoint, or give the "
                "splits with --data.split column"
            )
        apart[name] = np.where(unknown, np.strings.add("clip ", names), columns[name])
    apart["clip"] = names
    for name, of in corpus.contents.items():
        _, first, same = np.unique(of, return_index=True, return_inverse=True)
        apart[f"{name} file"] = names[first[same]]
    groups = [np.unique(of, return_inverse=True)[1] for of in apart.values()]
    units, before = groups[0], np.empty(0)
    while not np.array_equal(units, before):
        before = units
        for group in groups:
            least = np.full(len(group), len(group))
            np.minimum.at(least, group, units)
            units = least[group]
    return units, apart


def _draw(
    corpus: Corpus,
    units: np.ndarray,
    assigned: np.ndarray,
    parts: Sequence[tuple[str, int]],
    seed: int,
) -> np.ndarray:
    """`assigned` [N] with the training units divided into parts of these names and sizes.

    Of DRAWS random divisions it is the first whose class proportions are nearest to those of all.
    """
    some = np.unique(units[assigned == "train"])
    names, sizes = zip(*parts, strict=True)
    if sum(sizes) > len(some):
        raise UserError(
            f"{counted(len(some), 'speaker')}, expected {sum(sizes)} or more (those with an "
            "identical file, or the same value in a column of --data.disjoint, count as one): "
            f"{', '.join(f'{size} for {name}' for name, size in parts)}. --data.disjoint COLUMN "
            "splits by another column, and may then test on known speakers"
        )
    counts = np.zeros((len(corpus), len(corpus.class_names)))
    np.add.at(counts, units, _class_shares(corpus))
    counts = counts[some]
    whole = counts.sum(axis=0) / counts.sum()

    def cost(order: np.ndarray) -> float:
        masses = np.add.reduceat(counts[order], np.cumsum([0, *sizes[:-1]]), axis=0)
        shares = masses / masses.sum(axis=1, keepdims=True)
        return np.abs(shares - whole).sum().round(9)  # so that rounding does not decide a tie

    rng = np.random.default_rng([seed, 1])
    best = min((rng.permutation(len(some)) for _ in range(DRAWS)), key=cost)
    drawn = np.zeros_like(assigned)
    drawn[some[best]] = np.repeat(names, sizes)
    return np.where(assigned == "train", drawn[units], assigned)


def _class_shares(corpus: Corpus) -> np.ndarray:
    """[N, K] soft labels, or the labels one-hot."""
    if corpus.targets is not None:
        return corpus.targets
    return np.eye(len(corpus.class_names))[corpus.labels]


def check_split(split: Split, corpus: Corpus, apart: Mapping[str, np.ndarray] = {}) -> None:
    """Raise UserError if a split is empty, training lacks a class, or two splits share a clip, a
    value of `apart` ([N] str by kind) or, unless `split.leaking`, a speaker."""
    for name, clips in split.clips.items():
        if not len(clips):
            more = "" if split.fold is None else "; expected three or more values of its folds"
            raise UserError(f"the split has no {name} clips ({split.description}){more}")
    apart = {"clip": np.array(corpus.names), **apart}
    if split.leaking is not True:
        apart["speaker"] = corpus.speakers
    for kind, of in apart.items():
        for pair in combinations(split.clips.items(), 2):
            shared = np.intersect1d(*(of[clips] for _, clips in pair))
            for value in shared[shared != ""]:
                first = {name: corpus.place(clips[of[clips] == value][0]) for name, clips in pair}
                places = " and in ".join(f"{name} ({place})" for name, place in first.items())
                raise UserError(f"{kind} {value} is in {places}, expected in one split")
    counts = _class_shares(corpus)[split.train].sum(axis=0)
    if missing := [corpus.class_names[label] for label in np.flatnonzero(counts == 0)]:
        what = f"no training clip of the class {', '.join(missing)} among {len(split.train)}"
        raise UserError(f"{what} ({split.description})")


def _class_names(corpus: Corpus) -> np.ndarray:
    """The class [N] str of each clip, "" where its votes are tied."""
    return np.array([*corpus.class_names, ""])[corpus.labels]


def split_to_json(split: Split, corpus: Corpus) -> dict:
    """Names and classes of the clips, and the speakers and corpora, of every split, to store with
    the run.

    Raises UserError if the split belongs to a larger corpus.
    """
    document = {name: getattr(split, name) for name in _TOLD}
    label_of, corpora = _class_names(corpus), corpus.columns.get("corpus")
    for name, clips in split.clips.items():
        if not np.isin(clips, np.arange(len(corpus))).all():
            raise UserError(f"the {name} clips of the split: expected numbers below {len(corpus)}")
        document[name] = {
            "corpora": [] if corpora is None else np.unique(corpora[clips]).tolist(),
            "speakers": np.unique(corpus.speakers[clips]).tolist(),
            "clips": [corpus.names[clip] for clip in clips],
            "labels": label_of[clips].tolist(),
        }
    return document


def split_from_json(document: dict, corpus: Corpus) -> Split:
    """The stored split, as indices into this corpus. Raises UserError if clips are missing or have
    other labels (runs of version 1 did not store labels)."""
    index = {name: number for number, name in enumerate(corpus.names)}
    found: dict[str, Any] = {name: document[name] for name in _TOLD}
    label_of = _class_names(corpus)
    for name in SPLITS:
        clips = document[name]["clips"]
        if missing := [clip for clip in clips if clip not in index]:
            what = f"{len(missing)} of {len(clips)} {name} clips of the split are not in the corpus"
            raise UserError(f"{what}: {', '.join(missing[:5])}")
        found[name] = np.array([index[clip] for clip in clips], np.int64)
        for clip, was in zip(found[name], document[name].get("labels", ()), strict=False):
            if label_of[clip] != was:
                what = f"expected its label when the run began, {was}"
                raise UserError(f"{corpus.place(clip)}: {what}, found {label_of[clip]}")
    split = Split(**found)
    check_split(split, corpus)
    return split
