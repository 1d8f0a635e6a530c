"""One feature file: the streams of frames in it, read and checked."""

import io
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import numpy as np

from mmattn.data.extractor import parse_extractor
from mmattn.data.stream import Stream, make_stream

MIN_FRAMES = 5
LATEST = 1e5  # seconds: later times are hardly seconds of a clip, and run into those of padding
ATTEMPTS = 5
FEATURES = "_features"  # after the modality's name
# What NumPy and zipfile raise on files that are cut short, altered or not archives at all.
_UNREADABLE = (
    EOFError,
    KeyError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


class BadClip(Exception):
    """A feature file that cannot be used; the message says why, with numbers."""


def read_features(
    path: Path, rates: Mapping[str, float] | None = None, wanted: Collection[str] | None = None
) -> tuple[dict[str, Stream], dict[str, dict]]:
    """The streams of a feature file, and their extractor, both by modality.

    Args:
        path: of the file.
        rates: frames a second for streams without times, by modality.
        wanted: modalities, of which not all need be there; by default all that are.

    Raises:
        BadClip: the file or a stream in it is unreadable, or two streams do not overlap in time.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadClip(f"unreadable: {error.strerror}") from error
    found, extractor = decode(content, rates or {})
    streams = {name: one for name, one in found.items() if wanted is None or name in wanted}
    for stream in streams.values():
        if isinstance(stream, str):
            raise BadClip(stream)
    check_overlap({name: (one.times[0], one.times[-1]) for name, one in streams.items()})
    return streams, extractor


def decode(
    content: bytes, rates: Mapping[str, float]
) -> tuple[dict[str, Stream | str], dict[str, dict]]:
    """What is in a file that has been read already, see `read_features`; in the place of a stream
    that is of no use, the reason.

    Raises BadClip where all of it is of no use.
    """
    with _open(content) as archive:
        keys = (key.removesuffix(FEATURES) for key in archive.files if key.endswith(FEATURES))
        names = sorted(filter(str.isidentifier, keys))
        if not names:
            raise BadClip(
                f"no array NAME{FEATURES}; the file has {', '.join(archive.files) or 'nothing'}"
            )
        streams: dict[str, Stream | str] = {}
        for name in names:
            try:
                streams[name] = _read_stream(archive, name, rates.get(name))
            except BadClip as error:
                streams[name] = str(error)
        return streams, _read_extractor(archive)


def check_overlap(spans: Mapping[str, tuple[float, float]]) -> None:
    """Raise BadClip if two streams, of which these are the first and last time, do not overlap."""
    for (name, (start, end)), (other, (begin, stop)) in combinations(spans.items(), 2):
        if min(end, stop) <= max(start, begin):
            raise BadClip(
                f"{name} ({start:.2f} to {end:.2f} s) and {other} ({begin:.2f} to {stop:.2f} s) "
                "do not overlap in time"
            )


@contextmanager
def _open(content: bytes) -> Iterator[np.lib.npyio.NpzFile]:
    try:
        archive = np.load(io.BytesIO(content), allow_pickle=False)
    except _UNREADABLE as error:
        raise BadClip(f"no .npz archive of {len(content)} bytes: {_brief(error)}") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise BadClip("no .npz archive but a single array")
    with archive:
        yield archive


def _brief(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__


def _read_array(archive: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    for attempt in reversed(range(ATTEMPTS)):
        try:
            array = archive[key]
            break
        except _UNREADABLE as error:
            raise BadClip(f"{key} is unreadable: {_brief(error)}") from error
        except SystemError as error:
            # Python 3.11 confuses two threads that parse at the same time, as NumPy does a header.
            if not attempt:
                raise BadClip(f"{key} is unreadable: {_brief(error)}") from error
    # A member that is not in .npy form comes back as its raw bytes.
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise BadClip(f"{key} holds no numbers but {_kind(array)}")
    return array


def _kind(array: np.ndarray | bytes) -> str:
    return f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "raw bytes"


def _read_stream(archive: np.lib.npyio.NpzFile, modality: str, rate: float | None) -> Stream:
    key = modality + FEATURES
    array = _read_array(archive, key)
    if array.ndim != 2 or array.shape[1] == 0:
        raise BadClip(f"{key} is not (frames, features) but {array.shape}")
    if len(array) < MIN_FRAMES:
        raise BadClip(f"{key} has {len(array)} frames, at least {MIN_FRAMES} are needed")
    with np.errstate(over="ignore"):  # too large for float32 becomes inf and is reported
        frames = np.ascontiguousarray(array, np.float32)
    bad_rows = np.flatnonzero(~np.isfinite(frames).all(axis=1))
    if len(bad_rows):
        count = np.count_nonzero(~np.isfinite(frames))
        raise BadClip(f"{key} has {count} values that are not finite, first in frame {bad_rows[0]}")
    times = _read_times(archive, modality, len(frames), rate)
    if times[-1] > LATEST:
        raise BadClip(f"{modality} ends at {times[-1]:g} s, expected at most {LATEST:g}")
    return make_stream(frames, times)


def _read_times(
    archive: np.lib.npyio.NpzFile, modality: str, length: int, rate: float | None
) -> np.ndarray:
    """Seconds [length] of the frames, from the file or else from the rate."""
    key = f"{modality}_timestamps"
    if key not in archive.files:
        if rate is None:
            raise BadClip(f"{key} is missing and --data.rates {modality}=… is not given")
        return np.arange(length) / rate
    array = _read_array(archive, key)
    if array.shape != (length,):
        raise BadClip(f"{key} has shape {array.shape}, {length} frames need ({length},)")
    times = array.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(times))
    if len(bad):
        raise BadClip(f"{key} has {len(bad)} values that are not finite, first in frame {bad[0]}")
    back = np.flatnonzero(np.diff(times) <= 0)
    if len(back):
        at = back[0]
        raise BadClip(
            f"{key} does not increase: {times[at]:.4g} s, then {times[at + 1]:.4g} s "
            f"in frame {at + 1}"
        )
    return times


def _read_extractor(archive: np.lib.npyio.NpzFile) -> dict[str, dict]:
    """The records of what made the features, by modality; empty where the file does not say."""
    if "extractor" not in archive.files:
        return {}
    try:
        text = archive["extractor"]
        if not isinstance(text, np.ndarray) or text.dtype.kind != "U" or text.ndim:
            raise ValueError(f"expected one text, found {_kind(text)}")
        return parse_extractor(text.item())
    except (*_UNREADABLE, SystemError) as error:  # the last: a character beyond Unicode
        raise BadClip(f"extractor is unreadable: {_brief(error)}") from error
