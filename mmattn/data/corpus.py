"""A corpus: all clips, sorted by name, from feature files or synthetic."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

from mmattn.config import VARIANT, DataConfig
from mmattn.console import SHOWN, counted, say, say_table
from mmattn.data.corpora import CORPORA, read_table
from mmattn.data.corpora.synthetic import Cue, draw_clips
from mmattn.data.extractor import difference
from mmattn.data.feature_file import FEATURES, MIN_FRAMES, BadClip, check_overlap
from mmattn.data.labels import SIX, majority, parse_labels, soft_labels
from mmattn.data.manifest import Manifest
from mmattn.data.store import Pack, open_pack
from mmattn.data.stream import Ragged, Stream, pack_streams
from mmattn.errors import UserError

GROUPS = ("corpus", "sex")  # columns to report scores by, by default


@dataclass(frozen=True, repr=False)
class Corpus:
    """N clips, sorted by name."""

    description: str  # one line
    names: tuple[str, ...]
    speakers: np.ndarray  # [N] str, empty if unknown
    labels: np.ndarray  # [N] int32, -1 if unknown or tied
    class_names: tuple[str, ...]
    streams: dict[str, Ragged]  # by modality
    cues: tuple[tuple[Cue, ...], ...] | None = None  # by clip, if synthetic
    extractor: dict[str, dict] = field(default_factory=dict)  # by modality, if the files name it
    targets: np.ndarray | None = None  # [N, K] float32 soft labels, with data.soft
    columns: dict[str, np.ndarray] = field(default_factory=dict)  # of the manifest, [N] str each
    groups: dict[str, np.ndarray] = field(default_factory=dict)  # the columns to report scores by
    contents: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # by modality [N]: equal for files of equal content
    lines: Sequence[int] = ()  # [N] line in the manifest; 0 if there is none
    data: DataConfig = field(default_factory=DataConfig)  # how it was opened

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"<Corpus: {self.description}>"

    @property
    def variants(self) -> list[str]:
        """Names of the augmented copies that the clips have."""
        return sorted({name for stream in self.streams.values() for name in stream.variants})

    @property
    def widths(self) -> dict[str, int]:
        """Feature dimension by modality."""
        return {name: stream.width for name, stream in self.streams.items()}

    def to_pandas(self):
        """A data frame with one row per clip: name, speaker, label and the manifest's columns."""
        import pandas

        labels = np.array([*self.class_names, ""])[self.labels]
        fixed = {"clip": self.names, "speaker": self.speakers, "label": labels}
        return pandas.DataFrame(fixed | self.columns | fixed)

    def place(self, clip: int) -> str:
        """The clip's name and, if it has one, its line in the manifest."""
        line = self.lines[clip] if len(self.lines) else 0
        return f"{self.names[clip]}, line {line}" if line else self.names[clip]


def open_corpus(
    data: DataConfig,
    modalities: Sequence[str],
    known: Sequence[str] = (),
    variants: Collection[str] = (),
) -> Corpus:
    """The clips under `data.roots`, or the built-in synthetic ones if there are no roots.

    Every clip has the modalities and the variants, see `AugmentConfig.variants`. `known` are the
    classes of a network; some may have no clips. Raises UserError if an option is invalid, files
    are missing, too many are unreadable, or extractors are mixed.
    """
    data.check()
    if not data.roots:
        for asked in variants:
            variants_named(asked, [])  # the built-in corpus has none
    corpus = (
        _corpus_of_files(data, modalities, known, variants)
        if data.roots
        else _synthetic_corpus(data, modalities)
    )
    return replace(crop_and_tile(corpus, data), data=data)


def variants_named(asked: str, names: Sequence[str]) -> list[str]:
    """The variants that `asked` names: tempo names tempo_0_9 and tempo_1_1.

    Raises UserError if there are none.
    """
    found = [name for name in names if f"{name}_".startswith(f"{asked}_")]
    if not found:
        raise UserError(
            f"--augment.variants {asked}: expected augmented copies of that name in the files "
            f"(mmattn extract --augment-audio), found {', '.join(names) or 'none'}"
        )
    return found


def crop_and_tile(corpus: Corpus, data: DataConfig) -> Corpus:
    """Apply `data.overlap`, over the modalities that a clip has, and `data.tile` to all clips.
    Raises UserError, naming the clip, if fewer than 5 frames of a modality remain."""
    streams, text = dict(corpus.streams), corpus.description
    if data.overlap:
        text += ", cropped to the time of all streams"
        start, end = np.full((2, len(corpus)), [[-np.inf], [np.inf]])
        begins = {name: np.zeros(len(corpus)) for name in streams}
        for name, stream in streams.items():
            for clip in np.flatnonzero(stream.lengths).tolist():
                times = stream.clip_times(clip)
                start[clip], end[clip] = max(start[clip], times[0]), min(end[clip], times[-1])
                begins[name][clip] = times[0]
        for name, stream in corpus.streams.items():
            streams[name] = replace(_crop(stream, start, end), begins=begins[name])
            every = (streams[name], *streams[name].variants.values())
            fewest = np.min([one.lengths for one in every], axis=0)
            for clip in np.flatnonzero((fewest < MIN_FRAMES) & (stream.lengths > 0)):
                found = f"the streams overlap from {start[clip]:.2f} to {end[clip]:.2f} s"
                expected = f"expected {MIN_FRAMES} or more {name} frames there (--data.overlap)"
                raise UserError(f"{corpus.names[clip]}: {found}; {expected}")
    for name in data.tile:
        text += f", {name} without dynamics"
        streams[name] = _tile(streams[name])
    return replace(corpus, description=text, streams=streams)


def _tile(stream: Ragged) -> Ragged:
    """Replace every frame of a clip by the clip's mean, also in variants."""
    tiled = []
    for frames, *rest in map(stream.clip, range(len(stream))):
        mean = frames.sum(axis=0) / max(len(frames), 1)
        tiled.append(Stream(np.broadcast_to(mean, frames.shape), *rest))
    variants = {name: _tile(variant) for name, variant in stream.variants.items()}
    packed = pack_streams(tiled, stream.zero_is_missing)
    return replace(packed, variants=variants, begins=stream.begins)


def _crop(stream: Ragged, start: np.ndarray, end: np.ndarray) -> Ragged:
    """The frames of each clip from its start to its end [N], in seconds, possibly infinite."""
    bounds = np.stack([np.zeros_like(stream.lengths), stream.lengths], axis=1)
    for clip in np.flatnonzero(np.isfinite(start) | np.isfinite(end)).tolist():
        times = stream.clip_times(clip)
        bounds[clip, 0] = np.searchsorted(times, start[clip], "left")
        bounds[clip, 1] = np.searchsorted(times, end[clip], "right")
    variants = {name: _crop(variant, start, end) for name, variant in stream.variants.items()}
    return replace(stream.crop(bounds), variants=variants)


def _corpus_of_files(
    data: DataConfig, modalities: Sequence[str], known: Sequence[str], variants: Collection[str]
) -> Corpus:
    table, unnamed = read_table(data.roots, data.columns, data.target)
    paths = _feature_files(table, modalities)
    row = {path: row for row, path in enumerate(sorted({*chain(*paths.values())} - {""}))}
    rows = {name: np.array([row.get(path, -1) for path in of], int) for name, of in paths.items()}
    pack = open_pack([*row], data.cache, data.rates)
    copies = _copies(pack, modalities, variants)
    rows_of_all = rows | {key: rows[name] for name, of in copies.items() for key in of.values()}
    start, end = np.nan_to_num(table.start, nan=-np.inf), np.nan_to_num(table.end, nan=np.inf)
    streams = {
        name: _crop(pack.streams[name].select(of), start, end)
        for name, of in rows_of_all.items()
        if name in pack.streams
    }
    first = dict[str, str]()  # the file by name
    good, bad = [], [*unnamed]  # clips; files, each with a reason
    for clip in sorted(range(len(table)), key=table.clips.__getitem__):
        name = table.clips[clip]
        file = next(of[clip] for of in chain(paths.values(), table.files.values()) if of[clip])
        try:
            _check_clip(table, clip, pack, rows_of_all, streams)
            if name in first:
                raise BadClip(
                    f"has the same name as {first[name]}: give each clip once, and other clips "
                    "another name in a column clip"
                )
            first[name] = file
            good.append(clip)
        except BadClip as error:
            bad.append((file, str(error)))
    title = f"{counted(len(bad), 'bad clip')} of {len(table) + len(unnamed)}"
    if bad:
        too_many = len(bad) > data.max_bad or not good
        most = SHOWN if too_many else None  # those that are left out are all named
        say_table(title, ("file", "reason"), sorted(bad), left=True, most=most)
        if too_many:
            file, reason = min(bad)
            allowed = f"{data.max_bad} are allowed; --data.max-bad allows more"
            raise UserError(f"{title} ({file}: {reason}), {allowed if good else 'none is left'}")
    clips, labels, class_names, targets = _labelled(table, good, data, known)
    columns = table.columns | {"split": table.splits}
    columns = {name: np.array(cells)[clips] for name, cells in columns.items()}
    if unknown := {*data.groups} - {*columns}:
        raise UserError(f"--data.groups {min(unknown)}: expected one of {', '.join(columns)}")
    speakers = np.array(table.speakers)[clips]
    _say_namesakes(columns)

    def stream_of(key: str, name: str) -> Ragged:
        return replace(streams[key].select(clips), zero_is_missing=data.zero_is_gap(name))

    return Corpus(
        description=_describe(columns["corpus"], speakers, data.roots),
        names=tuple(table.clips[clip] for clip in clips),
        speakers=speakers,
        labels=labels,
        class_names=class_names,
        streams={
            name: replace(
                stream_of(name, name),
                variants={one: stream_of(key, name) for one, key in copies[name].items()},
            )
            for name in rows
        },
        extractor=_common_extractor(pack, rows, clips, paths[modalities[0]]),
        targets=targets,
        columns=columns,
        groups={name: columns[name] for name in data.groups or _default_groups(columns)},
        contents={name: pack.rows[of[clips]] for name, of in rows.items()},
        lines=np.array(table.lines)[clips],
    )


def _say_namesakes(columns: Mapping[str, np.ndarray]) -> None:
    """Say which names of speakers are in several corpora: these count as different people."""
    pairs = {*zip(columns["corpus"], columns.get("speaker", ()), strict=False)}
    corpora = Counter(speaker for _, speaker in pairs if speaker)
    if shared := sorted(speaker for speaker, count in corpora.items() if count > 1):
        names = ", ".join(shared[:3]) + ", …" * (len(shared) > 3)
        say(
            f"Speakers of several corpora have the same name ({names}) and count as different "
            "people; if they are the same, and to keep them in one split, give their rows the same "
            "value in the column corpus"
        )


def _default_groups(columns: dict[str, np.ndarray]) -> list[str]:
    return [name for name in GROUPS if name in columns and len({*columns[name].tolist()}) > 1]


def _copies(
    pack: Pack, modalities: Sequence[str], variants: Collection[str]
) -> dict[str, dict[str, str]]:
    """By modality, the requested variants, each with the name of its stream in a file."""
    found: dict[str, dict[str, str]] = {name: {} for name in modalities}
    for key in sorted(pack.streams):
        name, _, variant = key.partition(VARIANT)
        if name in found and variant:
            found[name][variant] = key
    names = sorted({*chain(*found.values())})
    wanted = {*chain(*(variants_named(asked, names) for asked in variants))}
    return {
        name: {one: key for one, key in of.items() if one in wanted} for name, of in found.items()
    }


def _feature_files(table: Manifest, modalities: Sequence[str]) -> dict[str, list[str]]:
    """The file of each clip by modality, "" where none is named. UserError for a raw clip."""
    shared = table.files.get("", [""] * len(table))
    found = {}
    for name in modalities:
        own = table.files.get(name, shared)
        found[name] = [a or b for a, b in zip(own, shared, strict=True)]
        for line, path in zip(table.lines, found[name], strict=True):
            if path and not path.lower().endswith(".npz"):
                column = "file" if own is shared else f"file.{name}"
                raise UserError(
                    f"{table.path}, line {line}, column {column}: expected a feature file (.npz), "
                    f"found {path}; `mmattn extract {table.path} --to FEATURES` makes them"
                )
    return found


def _check_clip(
    table: Manifest, clip: int, pack: Pack, rows: dict[str, np.ndarray], streams: dict[str, Ragged]
) -> None:
    """Raise BadClip if a clip cannot be used; `rows` [N] of the pack and streams by modality."""
    for name, row in ((name, of[clip]) for name, of in rows.items()):
        line = f"line {table.lines[clip]}"
        if row < 0:
            raise BadClip(f"{line}, column file.{name}: expected a file, found nothing")
        if reason := pack.reasons[row].get("") or pack.reasons[row].get(name):
            raise BadClip(reason)
        if name not in streams or not pack.streams[name].lengths[row]:
            has = [
                one
                for one, stream in pack.streams.items()
                if stream.lengths[row] and VARIANT not in one
            ]
            found = ", ".join(one + FEATURES for one in has)
            raise BadClip(
                f"{name}{FEATURES} is missing; the file has {found}, which is enough for "
                f"--model.modalities {' '.join(has)}"
            )
        if (count := streams[name].lengths[clip]) < MIN_FRAMES:
            found = f"{count} frames of {name} from {table.start[clip]} to {table.end[clip]} s"
            raise BadClip(f"{line}: {found}, expected {MIN_FRAMES} or more")
    check_overlap({name: pack.spans[name][of[clip]] for name, of in rows.items()})


def _labelled(
    table: Manifest, clips: Sequence[int], data: DataConfig, known: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], np.ndarray | None]:
    """The clips that have a class [n], their labels [n], the classes, and, with data.soft, soft
    labels [n, K]."""
    emotions = np.array([table.emotions[clip] for clip in clips], str)
    votes = {name: of[clips] for name, of in table.votes.items()}
    if data.soft and not votes:
        where = table.path or "a folder without a manifest"
        raise UserError(f"--data.soft: expected columns emotion.CLASS, {where} has none")
    asked = data.labels or known or (() if table.path else ("six",))
    there = {*emotions.tolist(), *votes} - {""}
    classes = parse_labels(asked, there, every=not known)
    if not (data.labels or known):  # so that a corpus of four emotions has four classes
        lacking = [name for name, of in classes.items() if there.isdisjoint(of)]
        if len(lacking) == len(classes) - 1:
            (only,) = classes.keys() - lacking
            raise UserError(f"all clips are of one class, {only}; expected two classes or more")
        if 0 < len(lacking) < len(classes):
            classes = {name: of for name, of in classes.items() if name not in lacking}
            say(f"no clips of {', '.join(lacking)}: the classes are {', '.join(classes)}")
    one_vote = {
        name: np.where(emotions == "", votes.get(name, 0.0), emotions == name)
        for name in chain(*classes.values())
    }
    labels = majority(soft_labels(classes, one_vote))
    for emotion, count in sorted(Counter(emotions[labels < 0].tolist()).items()):
        how = "have only votes" if data.soft else "left out"
        why = f"{emotion} is not among the labels {', '.join(classes)}"
        say(f"{count} clips {how}: {why if emotion else 'no class has a majority of votes'}")
    targets = soft_labels(classes, votes) if data.soft else None
    kept = labels >= 0 if targets is None else targets.any(axis=1)
    if not kept.any():
        names = " ".join(data.labels) or "of the table"
        raise UserError(f"no clips are left of {len(table)} for the labels {names}")
    targets = targets if targets is None else targets[kept]
    return np.array(clips)[kept], labels[kept], tuple(classes), targets


def _common_extractor(
    pack: Pack, rows: dict[str, np.ndarray], clips: np.ndarray, paths: Sequence[str]
) -> dict[str, dict]:
    """The extractor of the clips, by modality; `rows` [N] of the pack, and the paths of all clips.
    Raises UserError if the extractors differ: their features are not comparable."""
    found = []
    for clip in clips:
        both = ((name, pack.extractors[of[clip]].get(name)) for name, of in rows.items())
        found.append({name: record for name, record in both if record})
    other = next((n for n, records in enumerate(found) if records != found[0]), None)
    if other is not None:
        old, new = sorted((0, other), key=lambda n: [of["version"] for of in found[n].values()])
        raise UserError(
            f"{paths[clips[old]]}: its features are from another extractor than those of "
            f"{paths[clips[new]]}: {difference(found[old], found[new])}. Extract the "
            f"clips of these files ({found.count(found[old])}) again: mmattn extract CLIPS --to "
            "FOLDER; or use other --data.roots"
        )
    return found[0]


def _describe(corpora: np.ndarray, speakers: np.ndarray, roots: Collection) -> str:
    titles = [CORPORA[name].TITLE if name in CORPORA else repr(name) for name in corpora.tolist()]
    counts = Counter(titles)
    clips = " and ".join(f"{count} {title}" for title, count in counts.items()) + " clips"
    if len(counts) == 1 and not {*corpora.tolist()} & {*CORPORA}:
        clips = counted(len(titles), "clip")
    unknown = int(np.count_nonzero(speakers == ""))
    who = f" of {counted(len({*speakers} - {''}), 'speaker')}" if unknown < len(speakers) else ""
    if unknown:
        some = f"{counted(unknown, 'clip')} of " if unknown < len(speakers) else ""
        who += f", {some}SPEAKERS UNKNOWN,"
    return f"{clips}{who} from {', '.join(map(str, roots))}"


def _synthetic_corpus(data: DataConfig, modalities: Sequence[str]) -> Corpus:
    config = data.synthetic
    clips = list(draw_clips(config))
    if unknown := {*modalities} - {*clips[0].streams}:
        what = "expected modalities of the built-in corpus, audio and video"
        raise UserError(f"{', '.join(sorted(unknown))}: {what}; --data.roots names another corpus")
    return Corpus(
        description=f"built-in synthetic corpus (rule {config.rule}, seed {config.seed}): "
        f"{len(clips)} clips of {len({clip.speaker for clip in clips})} speakers",
        names=tuple(clip.name for clip in clips),
        speakers=np.array([clip.speaker for clip in clips]),
        labels=np.array([clip.label for clip in clips], np.int32),
        class_names=SIX,
        streams={
            name: pack_streams([clip.streams[name] for clip in clips], data.zero_is_gap(name))
            for name in modalities
        },
        cues=tuple(clip.cues for clip in clips),
    )
