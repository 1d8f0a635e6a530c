"""A corpus: all clips in the order of their names, from feature files or drawn."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

from mmattn.config import DataConfig
from mmattn.console import say, say_table
from mmattn.data.corpora import CORPORA, read_table
from mmattn.data.corpora.synthetic import Cue, draw_clips
from mmattn.data.extractor import difference
from mmattn.data.feature_file import FEATURES, MIN_FRAMES, BadClip, check_overlap
from mmattn.data.labels import SIX, hard_labels, majority, parse_labels, soft_labels
from mmattn.data.manifest import Manifest
from mmattn.data.store import Pack, open_pack
from mmattn.data.stream import Ragged, pack_streams
from mmattn.errors import UserError

GROUPS = ("corpus", "sex")  # columns that scores are also given by, unless others are asked for


@dataclass(frozen=True)
class Corpus:
    """N clips, sorted by name."""

    description: str  # one line
    names: tuple[str, ...]
    speakers: np.ndarray  # [N] str, empty where not known
    labels: np.ndarray  # [N] int32, -1 where not known or tied
    class_names: tuple[str, ...]
    streams: dict[str, Ragged]  # by modality
    cues: tuple[tuple[Cue, ...], ...] | None = None  # in each clip, if the clips are synthetic
    extractor: dict[str, dict] = field(default_factory=dict)  # by modality, if the files say
    targets: np.ndarray | None = None  # [N, K] float32 soft labels, if they are asked for
    columns: dict[str, np.ndarray] = field(default_factory=dict)  # of the manifest, [N] str each
    groups: dict[str, np.ndarray] = field(default_factory=dict)  # the columns to give scores by
    contents: np.ndarray | None = None  # [N, M] int64, equal where files of a modality are equal

    def __len__(self) -> int:
        return len(self.names)

    @property
    def widths(self) -> dict[str, int]:
        """Features of a frame, by modality."""
        return {name: stream.width for name, stream in self.streams.items()}


def open_corpus(data: DataConfig, modalities: Sequence[str], known: Sequence[str] = ()) -> Corpus:
    """The clips under `data.roots`, or the built-in synthetic ones if there are no roots.

    Args:
        data: which clips, with which labels.
        modalities: what every clip must have.
        known: classes of a network that the clips are for; they need not all be there.

    Raises:
        UserError: files are missing, too many are unreadable, or extractors are mixed.
    """
    if data.roots:
        corpus = _corpus_of_files(data, modalities, known)
    else:
        corpus = _synthetic_corpus(data, modalities)
    if data.overlap:
        corpus = crop_to_overlap(corpus)
    for name in data.tile:
        corpus = tile(corpus, name)
    return corpus


def tile(corpus: Corpus, name: str) -> Corpus:
    """Every frame of that modality is the mean of all frames of its clip."""
    clips = [corpus.streams[name].clip(clip) for clip in range(len(corpus))]
    tiled = [
        one._replace(frames=np.broadcast_to(one.frames.mean(0), one.frames.shape))
        if len(one.frames)
        else one
        for one in clips
    ]
    packed = pack_streams(tiled, corpus.streams[name].zero_is_missing)
    return replace(
        corpus,
        description=f"{corpus.description}, {name} without dynamics",
        streams={**corpus.streams, name: packed},
    )


def crop_to_overlap(corpus: Corpus) -> Corpus:
    """Every clip without the frames before the latest start or after the earliest end of a stream.

    A modality that the clip lacks does not count.

    Raises UserError naming a clip that keeps fewer than 5 frames of a modality.
    """
    kept: dict[str, list] = {name: [] for name in corpus.streams}
    for clip in range(len(corpus)):
        times = {name: stream.clip_times(clip) for name, stream in corpus.streams.items()}
        start = max(stream[0] for stream in times.values() if len(stream))
        end = min(stream[-1] for stream in times.values() if len(stream))
        for name, stream in times.items():
            kept[name].append(_between(stream, start, end))
            if len(stream) and np.diff(kept[name][-1]) < MIN_FRAMES:
                raise UserError(
                    f"{corpus.names[clip]}: the streams overlap from {start:.2f} to {end:.2f} s; "
                    f"expected {MIN_FRAMES} or more {name} frames there (--data.overlap)"
                )
    return replace(
        corpus,
        description=f"{corpus.description}, cropped to the time of all streams",
        streams={name: one.crop(np.array(kept[name])) for name, one in corpus.streams.items()},
    )


def _between(times: np.ndarray, start: float, end: float) -> tuple[int, int]:
    """Which of times [T] is the first from `start` on, and the first after `end`."""
    return np.searchsorted(times, start, "left"), np.searchsorted(times, end, "right")


def _corpus_of_files(data: DataConfig, modalities: Sequence[str], known: Sequence[str]) -> Corpus:
    for name, rate in data.rates.items():
        if not 0 < rate < np.inf:
            raise UserError(f"--data.rates {name}={rate}: expected above 0")
    table, unnamed = read_table(data.roots, data.columns, data.target)
    _check_features(table)
    shared = table.files.get("", [""] * len(table))
    paths = {
        name: [a or b for a, b in zip(table.files.get(name, shared), shared, strict=True)]
        for name in modalities
    }
    row = {path: row for row, path in enumerate(sorted({*chain(*paths.values())} - {""}))}
    pack = open_pack([*row], data.cache, data.rates)
    rows = {name: np.array([row.get(path, -1) for path in of]) for name, of in paths.items()}
    streams = {
        name: replace(
            pack.streams[name].select(rows[name]), zero_is_missing=name in data.zero_is_missing
        )
        for name in modalities
        if name in pack.streams
    }
    streams, reasons = _segments(table, streams)
    faults = list(unnamed)
    good, places = [], {}
    for clip in sorted(range(len(table)), key=table.clips.__getitem__):
        files = (of[clip] for of in (*paths.values(), *table.files.values()))
        name, where = table.clips[clip], next(filter(None, files))
        reason = _fault(pack, {name: of[clip] for name, of in rows.items()}) or reasons.get(clip)
        if not reason and places.setdefault(name, where) is not where:
            reason = f"has the same name as {places[name]}"
        if reason:
            faults.append((where, reason))
        else:
            good.append(clip)
    _report_bad(faults, len(table) + len(unnamed), data.max_bad)
    labels, class_names, targets = _labels(table, good, data, known)
    kept = (labels >= 0) if targets is None else targets.any(axis=1)
    clips = np.array(good)[kept]
    if not len(clips):
        said = " ".join(data.labels) or "of the table"
        raise UserError(f"no clips are left of {len(table)} for the labels {said}")
    columns = {name: np.array(cells)[clips] for name, cells in table.columns.items()}
    columns["split"] = np.array(table.splits)[clips]
    speakers = np.array(table.speakers)[clips]
    return Corpus(
        description=_describe(columns["corpus"], speakers, data.roots),
        names=tuple(table.clips[clip] for clip in clips),
        speakers=speakers,
        labels=labels[kept],
        class_names=class_names,
        streams={name: streams[name].select(clips) for name in modalities},
        extractor=_common_extractor(
            [paths[modalities[0]][clip] for clip in clips],
            [_extractor(pack, {name: of[clip] for name, of in rows.items()}) for clip in clips],
        ),
        targets=None if targets is None else targets[kept],
        columns=columns,
        groups=_groups(columns, data),
        contents=np.stack([pack.rows[of[clips]] for of in rows.values()], axis=1),
    )


def _check_features(table: Manifest) -> None:
    """Raise UserError at the first file that holds no features."""
    for column, paths in table.files.items():
        for line, path in zip(table.lines, paths, strict=True):
            if path and not path.lower().endswith(".npz"):
                raise UserError(
                    f"{table.path}, line {line}, column {f'file.{column}' if column else 'file'}: "
                    f"expected a feature file (.npz), found {path}; "
                    f"`mmattn extract {table.path} --to FEATURES` makes them, with their table"
                )


def _segments(
    table: Manifest, streams: dict[str, Ragged]
) -> tuple[dict[str, Ragged], dict[int, str]]:
    """The streams cut to the table's start and end; of clips that have too little left, why."""
    reasons: dict[int, str] = {}
    cut = np.flatnonzero(~np.isnan(table.start) | ~np.isnan(table.end))
    start, end = np.nan_to_num(table.start, nan=-np.inf), np.nan_to_num(table.end, nan=np.inf)
    for name, stream in streams.items() if len(cut) else ():
        bounds = np.stack([np.zeros_like(stream.lengths), stream.lengths], axis=1)
        for clip in cut:
            bounds[clip] = _between(stream.clip_times(clip), start[clip], end[clip])
            if (frames := int(np.diff(bounds[clip])[0])) < MIN_FRAMES:
                reasons[clip] = (
                    f"from {start[clip]} to {end[clip]} s (line {table.lines[clip]}) it has "
                    f"{frames} frames of {name}, at least {MIN_FRAMES} are needed"
                )
        streams = {**streams, name: stream.crop(bounds)}
    return streams, reasons


def _fault(pack: Pack, rows: Mapping[str, int]) -> str | None:
    """Why a clip that has these rows of a pack, by modality, cannot be used."""
    spans = {}
    for name, row in rows.items():
        reasons = pack.reasons[row] if row >= 0 else {"": f"no file of {name} is named"}
        if reason := reasons.get("") or reasons.get(name):
            return reason
        if name not in pack.streams or not pack.streams[name].lengths[row]:
            has = [one + FEATURES for one, stream in pack.streams.items() if stream.lengths[row]]
            return f"{name}{FEATURES} is missing; the file has {', '.join(has)}"
        spans[name] = pack.spans[name][row]
    try:
        check_overlap(spans)
    except BadClip as error:
        return str(error)


def _labels(
    table: Manifest, clips: Sequence[int], data: DataConfig, known: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray | None]:
    """Of these clips [n] the labels [n], the classes, and soft labels [n, K] if asked for."""
    emotions = [table.emotions[clip] for clip in clips]
    votes = {name: of[clips] for name, of in table.votes.items()}
    if data.soft and not votes:
        raise UserError(f"--data.soft: expected columns emotion.CLASS, {table.path} has none")
    asked = data.labels or known or (() if table.path else ("six",))
    classes = parse_labels(asked, {*filter(None, emotions), *votes}, every=not known)
    soft = soft_labels(classes, votes) if votes else None
    labels = hard_labels(classes, emotions)
    if soft is not None:
        silent = np.array([not emotion for emotion in emotions], bool)
        labels = np.where(silent, majority(soft), labels)
    left_out = Counter(name for name, label in zip(emotions, labels, strict=True) if label < 0)
    for emotion, count in sorted(left_out.items()):
        how = "have votes alone" if data.soft else "left out"
        why = f"{emotion} is not among the labels {', '.join(classes)}"
        say(f"{count} clips {how}: {why if emotion else 'no class has most of their votes'}")
    return labels, tuple(classes), soft if data.soft else None


def _groups(columns: Mapping[str, np.ndarray], data: DataConfig) -> dict[str, np.ndarray]:
    """The columns to give scores by: those asked for, or such as are there."""
    for name in data.groups:
        if name not in columns:
            raise UserError(f"--data.groups {name}: expected one of {', '.join(columns)}")
    return {name: columns[name] for name in data.groups or GROUPS if name in columns}


def _report_bad(faults: Sequence[tuple[str, str]], clips: int, max_bad: int) -> None:
    if faults:
        say_table(f"{len(faults)} bad clips of {clips}", ("file", "reason"), sorted(faults))
    if len(faults) > max_bad:
        raise UserError(
            f"{len(faults)} of {clips} clips are bad (see the table) and {max_bad} are allowed; "
            "--data.max-bad allows more"
        )


def _extractor(pack: Pack, rows: Mapping[str, int]) -> dict[str, dict]:
    """What made the features of a clip that has these rows of a pack, by modality."""
    both = ((name, pack.extractors[row].get(name)) for name, row in rows.items())
    return {name: record for name, record in both if record}


def _common_extractor(
    paths: Sequence[str], extractors: Sequence[dict[str, dict]]
) -> dict[str, dict]:
    """The one extractor that made the features of all these clips.

    Raises UserError if there are several: their features do not mean the same.
    """
    kinds: dict[str, list[int]] = {}  # rows of each
    for row, made_by in enumerate(extractors):
        kinds.setdefault(json.dumps(made_by, sort_keys=True), []).append(row)
    commonest, *others = sorted(kinds.values(), key=len, reverse=True)
    expected = extractors[commonest[0]]
    if not others:
        return expected
    said = [f"{len(commonest)} like {paths[commonest[0]]}"]
    for kind in others:
        what = difference(extractors[kind[0]], expected)
        said.append(f"{len(kind)} like {paths[kind[0]]} ({what})")
    raise UserError(
        f"the features of the clips come from {len(kinds)} extractors, expected one: "
        f"{'; '.join(said)}. Extract them alike or name folders of one kind (--data.roots)"
    )


def _describe(corpora: np.ndarray, speakers: np.ndarray, roots: Collection) -> str:
    counts = Counter(corpora.tolist())
    order = sorted(counts, key=lambda name: [*CORPORA, name].index(name))
    titles = {name: CORPORA[name].TITLE if name in CORPORA else name for name in order}
    clips = " and ".join(f"{counts[name]} {titles[name]}" for name in order)
    known = len({*speakers} - {""})
    unknown = int((speakers == "").sum())
    said = f"{known} speakers" + f" and {unknown} clips, SPEAKERS UNKNOWN," * bool(unknown)
    return f"{clips} clips of {said} from {', '.join(map(str, roots))}"


def _synthetic_corpus(data: DataConfig, modalities: Sequence[str]) -> Corpus:
    config = data.synthetic
    clips = list(draw_clips(config))
    for name in modalities:
        if name not in clips[0].streams:
            raise UserError(
                f"{name}: expected modalities of the built-in corpus, audio and video; "
                "--data.roots names another"
            )
    return Corpus(
        description=f"built-in synthetic corpus (rule {config.rule}, seed {config.seed}): "
        f"{len(clips)} clips of {len({clip.speaker for clip in clips})} speakers",
        names=tuple(clip.name for clip in clips),
        speakers=np.array([clip.speaker for clip in clips]),
        labels=np.array([clip.label for clip in clips], np.int32),
        class_names=SIX,
        streams={
            name: pack_streams([clip.streams[name] for clip in clips], name in data.zero_is_missing)
            for name in modalities
        },
        cues=tuple(clip.cues for clip in clips),
    )
