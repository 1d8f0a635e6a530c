"""Which clips train, validate and test: by speaker, by named folds, or by clip (it leaks)."""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from mmattn.config import DataConfig
from mmattn.data.corpora import CORPORA
from mmattn.data.corpus import Corpus
from mmattn.errors import UserError

DRAWS = 2000  # random divisions of the speakers, of which the best balanced is taken
SIDES = ("train", "validation", "test")
LEAK = "LEAKS SPEAKERS"


@dataclass(frozen=True)
class Split:
    """Clips of each side as indices into the corpus, in increasing order."""

    train: np.ndarray  # [n] int64
    validation: np.ndarray
    test: np.ndarray
    description: str  # one line
    fold: int | None = None
    leaking: bool = False  # speakers are on several sides, by request


def fold_speakers(folds: str) -> list[list[str]]:
    """Test speakers of each fold of `ravdess`, `crema-d` or a JSON file; UserError if unclear."""
    if folds in CORPORA:
        return CORPORA[folds].FOLDS
    wanted = (
        f"--data.folds is {', '.join(CORPORA)} or a JSON file "
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
    """The folds that have test speakers in the corpus; none without `data.folds`."""
    if data.folds is None:
        return []
    present = set(corpus.speakers)
    return [n for n, fold in enumerate(fold_speakers(data.folds)) if present & set(fold)]


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

    The members of a committee share the test speakers; of the others each is for validation with
    exactly one member.

    Raises UserError if there are too few speakers or a side would be of no use.
    """
    for option, share in (("validation", data.validation), ("test", data.test)):
        if not 0 < share < 1:
            raise UserError(f"--data.{option} must be between 0 and 1, not {share}")
    if data.split == "leaky-clips":
        if data.folds is not None:
            raise UserError("--data.split leaky-clips divides clips and cannot have --data.folds")
        if members > 1:
            raise UserError("--data.split leaky-clips cannot have --members")
        split = _split_clips(corpus, data, seed)
    elif members > 1:
        split = _split_committee(corpus, data, seed, fold, member, members)
    elif fold is None:
        split = _split_speakers(corpus, data, seed)
    else:
        split = _split_fold(corpus, data, seed, fold)
    check_split(split, corpus)
    return split


def _split_clips(corpus: Corpus, data: DataConfig, seed: int) -> Split:
    """The earlier system's way: every class is divided by chance, whoever speaks."""
    rng = np.random.default_rng([seed, 0])
    sides: dict[str, list[np.ndarray]] = {side: [] for side in SIDES}
    for label in range(len(corpus.class_names)):
        clips = rng.permutation(np.flatnonzero(corpus.labels == label))
        test, both = np.round(len(clips) * np.cumsum([data.test, data.validation])).astype(int)
        for side, part in zip(SIDES, (clips[both:], clips[test:both], clips[:test]), strict=True):
            sides[side].append(part)
    arrays = {side: np.sort(np.concatenate(parts)) for side, parts in sides.items()}
    return Split(**arrays, description=f"random clips, {LEAK}, seed {seed}", leaking=True)


def _split_speakers(corpus: Corpus, data: DataConfig, seed: int) -> Split:
    speakers = np.unique(corpus.speakers)
    test = max(1, round(data.test * len(speakers)))
    validation = max(1, round(data.validation * len(speakers)))
    if test + validation >= len(speakers):
        raise UserError(
            f"{len(speakers)} speakers are too few for {test} to test, {validation} to validate "
            "and at least 1 to train"
        )
    sides = _balanced(corpus, speakers, (test, validation), seed)
    return _by_speakers(corpus, sides[1], sides[0], f"speakers, seed {seed}", None)


def _split_fold(corpus: Corpus, data: DataConfig, seed: int, fold: int) -> Split:
    test, rest = _fold_speakers_at_hand(corpus, data, fold)
    validation = max(1, round(data.validation * len(rest)))
    if validation >= len(rest):
        raise UserError(
            f"{len(rest)} speakers outside fold {fold} are too few for {validation} to validate "
            "and at least 1 to train"
        )
    (chosen,) = _balanced(corpus, rest, (validation,), seed)
    text = f"fold {fold} of {data.folds}, validation speakers by seed {seed}"
    return _by_speakers(corpus, chosen, test, text, fold)


def _fold_speakers_at_hand(
    corpus: Corpus, data: DataConfig, fold: int
) -> tuple[np.ndarray, np.ndarray]:
    """The fold's test speakers and the others, of those in the corpus."""
    folds = fold_speakers(data.folds)
    if not 0 <= fold < len(folds):
        raise UserError(f"--data.fold {fold}: {data.folds!r} has folds 0 to {len(folds) - 1}")
    speakers = np.unique(corpus.speakers)
    test = np.intersect1d(speakers, folds[fold])
    if not len(test):
        raise UserError(
            f"fold {fold} of {data.folds!r} tests {_some(folds[fold])}, and the corpus has "
            f"{_some(speakers)}"
        )
    return test, np.setdiff1d(speakers, test)


def _split_committee(
    corpus: Corpus, data: DataConfig, seed: int, fold: int | None, member: int, members: int
) -> Split:
    """The test speakers of the fold or of the seed; the others are divided among the members."""
    if fold is None:
        speakers = np.unique(corpus.speakers)
        (test,) = _balanced(corpus, speakers, (max(1, round(data.test * len(speakers))),), seed)
        rest = np.setdiff1d(speakers, test)
    else:
        test, rest = _fold_speakers_at_hand(corpus, data, fold)
    if len(rest) < members:
        raise UserError(
            f"{len(rest)} speakers besides the test are too few for --members {members}: each "
            "needs its own to validate"
        )
    sizes = [len(part) for part in np.array_split(rest, members)]
    groups = _balanced(corpus, rest, tuple(sizes[:-1]), seed)
    groups.append(np.setdiff1d(rest, np.concatenate(groups)))
    place = f"seed {seed}" if fold is None else f"fold {fold} of {data.folds}"
    text = f"speakers, {place}, member {member} of {members}"
    return _by_speakers(corpus, groups[member], test, text, fold)


def _balanced(
    corpus: Corpus, speakers: np.ndarray, sizes: tuple[int, ...], seed: int
) -> list[np.ndarray]:
    """Disjoint sets of speakers of the given sizes, and the rest, all with alike class shares.

    Of DRAWS random divisions the one is taken whose class proportions are nearest to those of all
    `speakers`, the first if several are.
    """
    rng = np.random.default_rng([seed, 1])
    counts = np.array(
        [
            np.bincount(
                corpus.labels[corpus.speakers == speaker], minlength=len(corpus.class_names)
            )
            for speaker in speakers
        ]
    )
    whole = counts.sum(axis=0) / counts.sum()
    bounds = [0, *np.cumsum(sizes), len(speakers)]
    best, least = None, np.inf
    for _ in range(DRAWS):
        order = rng.permutation(len(speakers))
        sides = np.add.reduceat(counts[order], bounds[:-1], axis=0)
        shares = sides / sides.sum(axis=1, keepdims=True)
        cost = np.abs(shares - whole).sum().round(9)  # rounded: a tie must not hang on the last bit
        if cost < least:
            best, least = order, cost
    return [np.sort(speakers[best[a:b]]) for a, b in pairwise(bounds[:-1])]


def _by_speakers(
    corpus: Corpus, validation: np.ndarray, test: np.ndarray, description: str, fold: int | None
) -> Split:
    validates, tests = np.isin(corpus.speakers, validation), np.isin(corpus.speakers, test)
    return Split(
        np.flatnonzero(~validates & ~tests),
        np.flatnonzero(validates),
        np.flatnonzero(tests),
        description,
        fold,
    )


def check_split(split: Split, corpus: Corpus) -> None:
    """UserError if a side is empty, shares clips or speakers with another, or lacks a class."""
    sides = {side: getattr(split, side) for side in SIDES}
    for side, clips in sides.items():
        if not len(clips):
            raise UserError(f"the split has no {side} clips ({split.description})")
    for what, of in (("clips", np.array(corpus.names)), ("speakers", corpus.speakers)):
        if what == "speakers" and split.leaking:
            continue
        for first, second in (SIDES[:2], SIDES[1:], SIDES[::2]):
            both = np.intersect1d(of[sides[first]], of[sides[second]])
            if len(both):
                raise UserError(f"{what} in both {first} and {second}: {_some(both)}")
    counts = np.bincount(corpus.labels[split.train], minlength=len(corpus.class_names))
    missing = [corpus.class_names[label] for label in np.flatnonzero(counts == 0)]
    if missing:
        raise UserError(
            f"no training clip of the class {', '.join(missing)} among {len(split.train)} "
            f"({split.description})"
        )


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
