"""One feature file: the streams of frames in it, read and checked."""

import io
import shlex
import zipfile
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from itertools import combinations
from pathlib import Path

import numpy as np

from mmattn.config import VARIANT, ModelConfig
from mmattn.data.extractor import parse_extractor
from mmattn.data.stream import Stream, make_stream

MIN_FRAMES = 5
LATEST = 1e5  # seconds: later times are probably in another unit, and collide with those of padding
ATTEMPTS = 5
FEATURES = "_features"  # after the modality's name


class BadClip(Exception):
    """A feature file that cannot be used; the message says why, with numbers."""


def read_features(
    path: Path, rates: Mapping[str, float] | None = None, wanted: Collection[str] | None = None
) -> tuple[dict[str, Stream], dict[str, dict]]:
    """The streams of a feature file, and their extractor, both by modality.

    Streams without times have `rates` frames per second. `wanted` modalities (default: all) may be
    missing. Raises BadClip if the file or one of its streams is unreadable, or if two streams do
    not overlap in time.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadClip(f"unreadable: {error.strerror}") from error
    found, extractor = decode(content, rates or {})
    streams = {}
    for name, stream in found.items():
        if wanted is None or name in wanted:
            if isinstance(stream, str):
                raise BadClip(stream)
            streams[name] = stream
    check_overlap({name: (one.times[0], one.times[-1]) for name, one in streams.items()})
    return streams, extractor


def decode(
    content: bytes, rates: Mapping[str, float]
) -> tuple[dict[str, Stream | str], dict[str, dict]]:
    """Decode a file's content, see `read_features`; a bad stream is replaced by the reason.

    Raises BadClip if the whole file is unusable.
    """
    try:  # np.load takes what is no zip file for a pickle
        zipped = zipfile.is_zipfile(io.BytesIO(content))
        archive = np.load(io.BytesIO(content), allow_pickle=False) if zipped else None
    except Exception as error:  # NumPy and zipfile raise ten kinds on damaged files
        raise BadClip(f"damaged .npz archive of {len(content)} bytes: {error!r:.150}") from error
    if archive is None:
        raise BadClip(f"no .npz archive: its {len(content)} bytes are no complete zip file")
    keys = (key.removesuffix(FEATURES) for key in archive.files if key.endswith(FEATURES))
    streams: dict[str, Stream | str] = {}
    for name in sorted(filter(str.isidentifier, keys)):
        try:
            streams[name] = _read_stream(archive, name, rates.get(name))
        except BadClip as error:
            streams[name] = str(error)
    if not streams:
        has = ", ".join(archive.files) or "nothing"
        raise BadClip(f"no array NAME{FEATURES}; the file has {has}")
    return streams, _read_extractor(archive)


def training_command(root: Path, paths: Iterable[Path]) -> str:
    """The command that trains on these feature files; `root` is their folder or manifest.

    Unreadable files are ignored here; training names them.
    """
    found = set[str]()
    for path in paths:
        # zipfile raises several kinds on damaged files
        with suppress(Exception), zipfile.ZipFile(path) as archive:
            keys = (name.removesuffix(".npy") for name in archive.namelist())
            found |= {key.removesuffix(FEATURES) for key in keys if key.endswith(FEATURES)}
    own = sorted(name for name in found if VARIANT not in name)
    command = ["python", "-m", "experiments.no_aug", "--data.roots", str(root)]
    if own and not {*ModelConfig.modalities} <= found:
        command += ["--model.modalities", *own]
    return shlex.join(command)


def check_overlap(spans: Mapping[str, tuple[float, float]]) -> None:
    """Raise BadClip if two streams, given by first and last time, do not overlap."""
    for (name, (start, end)), (other, (begin, stop)) in combinations(spans.items(), 2):
        if min(end, stop) <= max(start, begin):
            raise BadClip(
                f"{name} ({start:.2f} to {end:.2f} s) and {other} ({begin:.2f} to {stop:.2f} s) "
                "do not overlap in time"
            )


def _read_stream(archive: np.lib.npyio.NpzFile, modality: str, rate: float | None) -> Stream:
    """The frames [T, F] and times [T] of a modality; times come from the file, or else the rate."""
    key, clock = modality + FEATURES, f"{modality}_timestamps"
    frames = _read_numbers(archive, key, np.float32)
    if frames.ndim != 2 or frames.shape[1] == 0:
        raise BadClip(f"{key} is not (frames, features) but {frames.shape}")
    if len(frames) < MIN_FRAMES:
        raise BadClip(f"{key} has {len(frames)} frames, at least {MIN_FRAMES} are needed")
    if clock in archive.files:
        times = _read_numbers(archive, clock, np.float64)
    elif rate is not None:
        times = np.arange(len(frames)) / rate
    else:
        raise BadClip(f"{clock} is missing and --data.rates {modality}=… is not given")
    if times.shape != frames.shape[:1]:
        raise BadClip(
            f"{clock} has shape {times.shape}, {len(frames)} frames need ({len(frames)},)"
        )
    back = np.flatnonzero(np.diff(times) <= 0)
    if len(back):
        before, after = times[back[0] :][:2]
        raise BadClip(
            f"{clock} does not increase: {before:.4g} s, then {after:.4g} s in frame {back[0] + 1}"
        )
    if times[-1] > LATEST:
        raise BadClip(f"{modality} ends at {times[-1]:g} s, expected at most {LATEST:g}")
    return make_stream(frames, times)


def _read_numbers(archive: np.lib.npyio.NpzFile, key: str, dtype: type) -> np.ndarray:
    for attempt in reversed(range(ATTEMPTS)):
        try:
            array = np.asarray(archive[key])  # the raw bytes, if the member has no header
            break
        except Exception as error:
            # NumPy parses the header, and Python 3.11's parser is not thread-safe.
            if not attempt or not isinstance(error, SystemError):
                raise BadClip(f"{key} is unreadable: {error!r:.150}") from error
    if array.dtype.kind not in "fiu":
        raise BadClip(f"{key} holds no numbers but {array.dtype} {array.shape}")
    with np.errstate(over="ignore"):  # a value too large for float32 becomes inf, which is reported
        array = np.asarray(array, dtype, order="C")
    bad = np.argwhere(~np.isfinite(np.atleast_1d(array)))
    if len(bad):
        raise BadClip(
            f"{key} has {len(bad)} values that are not finite, first in frame {bad[0, 0]}"
        )
    return array


def _read_extractor(archive: np.lib.npyio.NpzFile) -> dict[str, dict]:
    """The extractor records by modality; empty if the file has none."""
    if "extractor" not in archive.files:
        return {}
    try:
        text = np.asarray(archive["extractor"])
        if text.dtype.kind != "U" or text.ndim:
            raise ValueError(f"expected one text, found {text.dtype} {text.shape}")
        return parse_extractor(text.item())
    except Exception as error:  # among others SystemError, for a character beyond Unicode
        raise BadClip(f"extractor is unreadable: {error!r:.150}") from error
