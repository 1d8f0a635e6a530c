"""A clip's streams, and which of them are used: the Plan by which it is decoded."""

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from mmattn.media.lfs import POINTER, is_pointer

SHORT = 0.5  # seconds that may be missing of the header's duration …
SHORT_SHARE = 0.1  # … or this fraction of it, whichever is more
UNKNOWN = "unknown codec"
HIDDEN = 0.1  # seconds hidden by an edit list; less is the delay of an audio encoder
# Containers whose headers give the duration of their streams. For others, FFmpeg guesses it from
# the bit rate, or takes it from the last packet.
_SAY_LENGTH = {"mov", "flv", "avi", "matroska", "asf", "wav", "w64", "aiff", "au", "caf", "flac"}
_ENDLESS = 1 << 30  # frames in the header of an AVI written to a pipe
_EARLY = 1e-3  # seconds before the start of a clip that are not rounding
# PyAV 19 needs no option to accept metadata that is not UTF-8.
_LENIENT: dict = {} if int(av.__version__.split(".")[0]) > 18 else {"metadata_errors": "replace"}


class BadMedia(Exception):
    """A clip that cannot be used; the message gives the reason."""


class Track(NamedTuple):
    """A stream of a clip, by its header and its packets."""

    kind: str  # audio, video, subtitle, data, …, or picture: the cover of a song
    form: str  # codec and format, in words
    start: float  # seconds, start of the first packet and …
    end: float  # … end of the last one; both 0 without packets
    rising: bool  # whether packet times increase
    packets: int


@dataclass(frozen=True)
class Plan:
    """A clip's streams, which of them are used, and what was done when it was read."""

    path: Path
    form: str  # of the container
    tracks: tuple[Track, ...]
    claimed: float | None  # seconds, duration by the header, if it gives one
    start: float  # seconds, the container time at which the clip starts
    edits: bool  # whether an edit list hides parts of the clip, which are not used
    done: dict[str, list[str]] = field(default_factory=lambda: {"audio": [], "video": []})
    """By modality, what was done to its stream, in words."""
    notes: list[str] = field(default_factory=list)
    """Notes for the user: why features may be worse than those of other clips."""

    def of(self, kind: str) -> list[int]:
        """The numbers of the tracks of a kind."""
        return [number for number, track in enumerate(self.tracks) if track.kind == kind]

    @property
    def end(self) -> float:
        """Seconds at which the audio and the video have ended, by their packets."""
        return max((self.tracks[n].end for n in self.of("audio") + self.of("video")), default=0.0)

    def check_length(self) -> None:
        """Raise BadMedia if the clip ends well before the duration in its header."""
        if not (claimed := self.claimed):
            return
        end = self.end + max(self.start, 0.0)  # headers count from 0, even if the clip starts later
        if claimed - end > max(SHORT, SHORT_SHARE * claimed):
            raise BadMedia(f"cut short: its header says {claimed:.1f} s, it ends at {end:.1f} s")


def survey(path: Path) -> Plan:
    """Read the header and packets of a clip, without decoding. Raises BadMedia."""
    with opened(path, edits=False) as container:
        if not _edits_hide(path, container):
            return _plan(path, container, edits=False)
    with opened(path, edits=True) as container:
        return _plan(path, container, edits=True)


def _plan(path: Path, container: av.container.InputContainer, edits: bool) -> Plan:
    """The plan of a clip, opened with or without applying its edit list."""
    start = (container.start_time or 0) / av.time_base
    times: dict[int, tuple[float, float, float]] = {}  # of a track: first, last, latest end
    falling, packets = set(), Counter[int]()
    for packet in container.demux():
        if packet.pts is None or packet.is_discard:
            continue
        begin, number = float(packet.pts * packet.time_base) - start, packet.stream_index
        end = begin + float((packet.duration or 0) * packet.time_base)
        first, last, latest = times.get(number, (begin, -np.inf, end))
        if begin <= last:
            falling.add(number)
        times[number] = min(first, begin), begin, max(latest, end)
        packets[number] += 1
    tracks = []
    for number, stream in enumerate(container.streams):
        first, _, latest = times.get(number, (0.0, 0.0, 0.0))
        rising, count = number not in falling, packets[number]
        tracks.append(Track(_kind(stream), _describe(stream), first, latest, rising, count))
    name, claimed = container.format.long_name, _claimed(container)
    plan = Plan(path, name, tuple(tracks), claimed, start, edits)
    for kind in plan.done:
        if edits and plan.of(kind):
            plan.done[kind].append("without what the edit list hides")
    return plan


class _Clip(io.FileIO):
    """A file that FFmpeg reads without its name, so that it opens no other files or formats."""

    name = "clip"

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """The new position; -1, which means an error to FFmpeg, if impossible."""
        try:
            return super().seek(offset, whence)
        except (OSError, ValueError):
            return -1


@contextmanager
def opened(path: Path, edits: bool) -> Iterator[av.container.InputContainer]:
    """A clip opened by FFmpeg; with `edits`, without the parts that its edit list hides.

    FFmpeg may open no other files, even if a playlist names them: a clip is only its own file.
    """
    options = {"protocol_whitelist": "none", "advanced_editlist": str(int(edits))}
    try:
        if not path.stat().st_size:
            raise BadMedia("the file is empty")
        if is_pointer(path):
            raise BadMedia(POINTER)
        with _Clip(path) as file, av.open(file, options=options, **_LENIENT) as container:
            yield container
    except av.FFmpegError as error:
        raise BadMedia(f"no audio or video can be read: {error.strerror}") from error
    except IndexError as error:  # PyAV's own, of a stream that the header does not list
        raise BadMedia("no audio or video can be read: its packets belong to no stream") from error
    except (ValueError, MemoryError) as error:  # PyAV's own, of frames that do not fit
        raise BadMedia(f"no audio or video can be read: {error}") from error
    except OSError as error:
        raise BadMedia(f"unreadable: {error.strerror or error}") from error


def _kind(stream: av.stream.Stream) -> str:
    cover = stream.disposition & av.stream.Disposition.attached_pic
    return "picture" if cover else stream.type


def _describe(stream: av.stream.Stream) -> str:
    codec = stream.codec_context
    if codec is None:
        return UNKNOWN
    if isinstance(codec, av.VideoCodecContext):
        rate = f", {float(stream.guessed_rate):.4g} fps" if stream.guessed_rate else ""
        return f"{codec.name}, {codec.width} x {codec.height}{rate}"
    if isinstance(codec, av.AudioCodecContext):
        channels = "mono" if codec.layout.nb_channels == 1 else codec.layout.name
        return f"{codec.name}, {codec.sample_rate} Hz, {channels}"
    return codec.name


def _claimed(container: av.container.InputContainer) -> float | None:
    """Duration (s) of audio and video by the header; None if it gives none.

    The container's duration may differ, if other streams such as subtitles last longer.
    """
    if not _SAY_LENGTH & set(container.format.name.split(",")):
        return None
    streams = [one for one in container.streams if _kind(one) in ("audio", "video")]
    if (
        container.format.name == "avi"
    ):  # FFmpeg adjusts durations to the file size, but not the frame count
        videos = [one for one in streams if one.type == "video" and one.frames < _ENDLESS]
        return max((_seconds(one, one.frames) for one in videos), default=None)
    durations = [one for stream in streams if (one := _stream_seconds(stream)) is not None]
    whole = container.duration and container.duration / av.time_base
    if durations and len(durations) == len(streams):
        return min(max(durations), whole or np.inf)
    return whole if all(one.type in ("audio", "video") for one in container.streams) else None


def _seconds(stream: av.stream.Stream, ticks: int) -> float:
    assert stream.time_base is not None  # an open container's streams have one
    return float(ticks * stream.time_base)


def _stream_seconds(stream: av.stream.Stream) -> float | None:
    if stream.duration is not None:
        return _seconds(stream, stream.duration)
    try:  # Matroska: hours, minutes and seconds
        hours, minutes, seconds = map(float, stream.metadata["DURATION"].split(":"))
        return 3600 * hours + 60 * minutes + seconds
    except (KeyError, ValueError):
        return None


def _edits_hide(path: Path, container: av.container.InputContainer) -> bool:
    """Whether an MP4's edit list hides parts of the clip: more than the delay of its encoders.

    If it hides nothing, it only shifts all times. If it were applied then, FFmpeg would drop
    RAVDESS's last frame and show the others a frame (33 ms) too early, because the list does not
    compensate the delay of the encoder; the audio, which has the same delay, would stay.
    """
    if "mov" not in container.format.name:
        return False
    if any(_seconds(one, one.start_time or 0) < -_EARLY for one in container.streams.video):
        return True
    with opened(path, edits=True) as shown:
        hidden = np.subtract(_durations(container), _durations(shown))
    return max(hidden, default=0.0) > HIDDEN


def _durations(container: av.container.InputContainer) -> list[float]:
    return [
        _seconds(one, one.duration or 0)
        for one in container.streams
        if _kind(one) in ("audio", "video")
    ]
