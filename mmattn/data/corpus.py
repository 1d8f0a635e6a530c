"""A corpus: all clips in the order of their names, from feature files or drawn."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mmattn.config import DataConfig, SyntheticConfig
from mmattn.console import say, say_table
from mmattn.data.cache import ClipFile, Rates, open_pack
from mmattn.data.clips import MIN_FRAMES, Cue, Ragged, Stream, pack_streams
from mmattn.data.extractor import difference
from mmattn.data.names import CORPUS_TITLES, SIX, ClipName, class_names, label_of, parse_name
from mmattn.data.synthetic import draw_clips
from mmattn.errors import UserError


@dataclass(frozen=True)
class Corpus:
    """N clips, sorted by name."""

    description: str  # one line
    names: tuple[str, ...]
    speakers: np.ndarray  # [N] str
    labels: np.ndarray  # [N] int32, -1 where not known
    class_names: tuple[str, ...]
    audio: Ragged
    video: Ragged
    cues: tuple[tuple[Cue, ...], ...] | None  # what is in each clip, if the clips are synthetic
    extractor: dict[str, dict] = field(default_factory=dict)  # by modality, if the files say
    groups: dict[str, np.ndarray] = field(default_factory=dict)  # columns [N] str, "" not known
    targets: np.ndarray | None = None  # [N, K] share of the raters for each class

    def __len__(self) -> int:
        return len(self.names)


def open_corpus(data: DataConfig) -> Corpus:
    """The clips under `data.roots`, or the built-in synthetic ones if there are no roots.

    Raises UserError if files are missing, too many of them are bad or extractors are mixed.
    """
    corpus = _corpus_of_files(data) if data.roots else _synthetic_corpus(data.synthetic)
    if data.overlap:
        corpus = crop_to_overlap(corpus)
    return tile_audio(corpus) if data.tile_audio else corpus


def tile_audio(corpus: Corpus) -> Corpus:
    """Every audio frame of a clip is the mean of all its audio frames."""
    clips = [corpus.audio.clip(clip) for clip in range(len(corpus))]
    streams = [
        Stream(
            np.broadcast_to(frames.mean(0), frames.shape) if len(frames) else frames,
            corpus.audio.clip_times(clip),
        )
        for clip, frames in enumerate(clips)
    ]
    return replace(
        corpus,
        description=f"{corpus.description}, audio without dynamics",
        audio=pack_streams(streams),
    )


def _corpus_of_files(data: DataConfig) -> Corpus:
    for option, rate in (("audio-rate", data.audio_rate), ("video-rate", data.video_rate)):
        if rate is not None and not 0 < rate < np.inf:
            raise UserError(f"--data.{option} must be above 0, not {rate}")
    files = find_files(data.roots)
    pack = open_pack(files, data.cache, Rates(data.audio_rate, data.video_rate))
    reasons = _with_doubles(files, pack.reasons)
    _report_bad(files, reasons, data.max_bad)
    good = [row for row, reason in enumerate(reasons) if reason is None]
    clips = [(row, parse_name(_stem(files[row].path))) for row in good]
    kept = [(row, name) for row, name in clips if label_of(name.emotion, data.labels) is not None]
    _report_left_out(clips, data.labels)
    if not kept:
        raise UserError(f"no clips are left of {len(files)} files for the labels {data.labels!r}")
    rows = np.array([row for row, _ in kept])
    names = [name for _, name in kept]
    return Corpus(
        description=_describe(names, data.roots),
        names=tuple(name.stem for name in names),
        speakers=np.array([name.speaker for name in names]),
        labels=np.array([label_of(name.emotion, data.labels) for name in names], np.int32),
        class_names=class_names(data.labels),
        audio=pack.audio.select(rows),
        video=pack.video.select(rows),
        cues=None,
        extractor=_common_extractor(
            [files[row] for row in rows], [pack.extractors[row] for row in rows]
        ),
    )


def crop_to_overlap(corpus: Corpus) -> Corpus:
    """Every clip without the frames before the later start or after the earlier end of its streams.

    A clip that lacks a modality stays whole.

    Raises UserError naming a clip that keeps fewer than 5 frames of a modality.
    """
    kept = {"audio": [], "video": []}
    for clip in range(len(corpus)):
        times = {"audio": corpus.audio.clip_times(clip), "video": corpus.video.clip_times(clip)}
        start = max(stream[0] for stream in times.values() if len(stream))
        end = min(stream[-1] for stream in times.values() if len(stream))
        for modality, stream in times.items():
            first = np.searchsorted(stream, start, "left")
            kept[modality].append((first, np.searchsorted(stream, end, "right")))
            if len(stream) and kept[modality][-1][1] - first < MIN_FRAMES:
                raise UserError(
                    f"{corpus.names[clip]}: the streams overlap from {start:.2f} to {end:.2f} s; "
                    f"expected {MIN_FRAMES} or more {modality} frames there (--data.overlap)"
                )
    return replace(
        corpus,
        description=f"{corpus.description}, cropped to the time of both streams",
        audio=corpus.audio.crop(np.array(kept["audio"])),
        video=corpus.video.crop(np.array(kept["video"])),
    )


def find_files(roots: Sequence[Path]) -> list[ClipFile]:
    """Every .npz file below the roots, sorted by file name, then by place."""
    found = []
    seen: set[tuple[int, int]] = set()  # folders: a root may be inside another, links in circles
    for root in sorted({root.expanduser().resolve() for root in roots}):
        if not root.is_dir():
            raise UserError(f"there is no folder {root} (--data.roots)")
        if _identity(str(root)) in seen:
            continue
        below = _walk(str(root), seen)
        if not below:
            raise UserError(f"there are no .npz files in {root} (--data.roots)")
        found += below
    return sorted(found, key=lambda file: (_stem(file.path), file.relative, file.path))


def _walk(root: str, seen: set[tuple[int, int]]) -> list[ClipFile]:
    """The .npz files below a root, but not those in folders that were `seen`."""
    found = []
    for folder, below, names in os.walk(root, onerror=_cannot_read, followlinks=True):
        if _identity(folder) in seen:
            below.clear()
            continue
        seen.add(_identity(folder))
        below.sort()  # of two ways to a folder the same is always taken
        for name in names:
            if name.endswith(".npz"):
                path = os.path.join(folder, name)
                found.append(_clip_file(path, os.path.relpath(path, root)))
    return found


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _clip_file(path: str, relative: str) -> ClipFile:
    try:
        status = os.stat(path)
    except OSError:  # a link to nowhere; it becomes a bad clip when it is read
        return ClipFile(path, relative, 0, 0)
    return ClipFile(path, relative, status.st_size, status.st_mtime_ns)


def _cannot_read(error: OSError) -> None:
    raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from error


def _stem(path: str) -> str:
    return os.path.basename(path).removesuffix(".npz")


def _with_doubles(files: Sequence[ClipFile], reasons: Sequence[str | None]) -> list[str | None]:
    """The reasons, with one for each good clip whose name an earlier good clip has."""
    first: dict[str, str] = {}
    result = list(reasons)
    for row, file in enumerate(files):
        if result[row] is None and first.setdefault(_stem(file.path), file.path) != file.path:
            result[row] = f"has the same name as {first[_stem(file.path)]}"
    return result


def _report_bad(files: Sequence[ClipFile], reasons: Sequence[str | None], max_bad: int) -> None:
    bad = [(file.path, why) for file, why in zip(files, reasons, strict=True) if why is not None]
    if bad:
        say_table(f"{len(bad)} bad clips of {len(files)}", ("file", "reason"), bad)
    if len(bad) > max_bad:
        raise UserError(
            f"{len(bad)} of {len(files)} clips are bad (see the table) and {max_bad} are allowed; "
            "--data.max-bad allows more"
        )


def _common_extractor(
    files: Sequence[ClipFile], extractors: Sequence[dict[str, dict]]
) -> dict[str, dict]:
    """The one extractor that made the features of all these files.

    Raises UserError if there are several: their features do not mean the same.
    """
    kinds: list[list[int]] = []  # rows of each
    for row, made_by in enumerate(extractors):
        for kind in kinds:
            if not difference(made_by, extractors[kind[0]]):
                kind.append(row)
                break
        else:
            kinds.append([row])
    commonest, *others = sorted(kinds, key=len, reverse=True)
    expected = extractors[commonest[0]]
    if not others:
        return expected
    said = [f"{len(commonest)} like {files[commonest[0]].path}"]
    for kind in others:
        what = difference(extractors[kind[0]], expected)
        said.append(f"{len(kind)} like {files[kind[0]].path} ({what})")
    raise UserError(
        f"the features of the clips come from {len(kinds)} extractors, expected one: "
        f"{'; '.join(said)}. Extract them alike or name folders of one kind (--data.roots)"
    )


def _report_left_out(clips: Sequence[tuple[int, ClipName]], scheme: str) -> None:
    counts = Counter(name.emotion for _, name in clips if label_of(name.emotion, scheme) is None)
    for emotion, count in sorted(counts.items()):
        say(f"{count} clips left out: {emotion} is not among the labels {scheme!r}")


def _describe(names: Sequence[ClipName], roots: Sequence[Path]) -> str:
    counts = Counter(name.corpus for name in names)
    clips = " and ".join(
        f"{counts[corpus]} {title}" for corpus, title in CORPUS_TITLES.items() if counts[corpus]
    )
    speakers = len({name.speaker for name in names})
    return f"{clips} clips of {speakers} speakers from {', '.join(map(str, roots))}"


def _synthetic_corpus(config: SyntheticConfig) -> Corpus:
    clips = list(draw_clips(config))
    return Corpus(
        description=f"built-in synthetic corpus (rule {config.rule}, seed {config.seed}): "
        f"{len(clips)} clips of {len({clip.speaker for clip in clips})} speakers",
        names=tuple(clip.name for clip in clips),
        speakers=np.array([clip.speaker for clip in clips]),
        labels=np.array([SIX.index(clip.emotion) for clip in clips], np.int32),
        class_names=SIX,
        audio=pack_streams([clip.audio for clip in clips]),
        video=pack_streams([clip.video for clip in clips]),
        cues=tuple(clip.cues for clip in clips),
    )
