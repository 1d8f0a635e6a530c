"""Audio and video frames of a clip with the times at which they are heard and seen.

`survey` opens a clip and decides what of it is used and how: the Plan, by which `read_audio` and
`read_frames` read. They add to it what they did and what the user should know.

Both streams keep their own times: seconds on the container's clock, which starts with the earlier
of the two. A stream that starts late (in FLV by 25 ms, say) is late here too.
"""

import io
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.format import Flags

from mmattn.media.lfs import POINTER, is_pointer

RATE = 16000  # Hz; speech above 8 kHz tells little of emotion
SILENT = 1e-3  # of full scale: a track that never gets louder has no audio
CANCELLED = 0.25  # of the power that channels have together which do not resemble each other
SHORT = 0.5  # seconds that may be missing of what the header promises …
SHORT_SHARE = 0.1  # … or this share of it, whichever is more
# Containers whose headers say how long their streams are. Of others FFmpeg guesses it from the bit
# rate, or takes it from the last packet.
_SAY_LENGTH = {"mov", "flv", "avi", "matroska", "asf", "wav", "w64", "aiff", "au", "caf", "flac"}
_ENDLESS = 1 << 30  # frames in the header of an AVI that is written to a pipe
GAP = 0.04  # seconds that samples may be ahead of their time, or late: more is no rounding
LONGEST_GAP = 60.0
HIDDEN = 0.1  # seconds that an edit list hides; less is the delay of an audio encoder
DARK = 64  # of 255, that 95 % of the pixels of each frame stay below: hardly a face
HDR = {16: "PQ", 18: "HLG"}  # transfer functions, by their number in ITU-T H.273
FLATTEST = 4  # aspect ratio of a pixel, or its inverse; beyond it a header is wrong
_OVERLAP = 0.05  # seconds that a frame may begin before the end of the one before
_EARLY = 1e-3  # seconds that a frame may come before it is due, for times that are rounded


# PyAV 19 needs no word to take metadata that is not UTF-8.
_LENIENT = {} if int(av.__version__.split(".")[0]) > 18 else {"metadata_errors": "replace"}


class BadMedia(Exception):
    """A clip that cannot be used; the message says why."""


class Audio(NamedTuple):
    """One channel of audio."""

    samples: np.ndarray  # [n] float32, full scale is 1
    rate: int  # Hz
    start: float  # seconds, the time of the first sample

    @property
    def end(self) -> float:
        """Seconds, the time after the last sample."""
        return self.start + len(self.samples) / self.rate

    @property
    def silent(self) -> bool:
        """Whether nothing is heard, as in the silent track of RAVDESS's 02-* clips."""
        return not len(self.samples) or float(np.abs(self.samples).max()) < SILENT


class Track(NamedTuple):
    """A stream of a clip, by its header and its packets."""

    kind: str  # audio, video, subtitle, data, …, or picture: the cover of a song
    form: str  # codec and format, in words
    start: float  # seconds, when the first packet starts and …
    end: float  # … the last one ends; both 0 without packets
    rising: bool  # whether each packet's time is later than that of the packet before


@dataclass(frozen=True)
class Plan:
    """What a clip holds, what of it is used, and what was done when it was read."""

    path: Path
    form: str  # of the container
    tracks: tuple[Track, ...]
    claimed: float | None  # seconds that audio and video last by the header, if it says so
    start: float  # seconds, the time of the container's packets at which the clip starts
    edits: bool  # whether an edit list hides parts of the clip: they are not used
    done: dict[str, list[str]] = field(default_factory=lambda: {"audio": [], "video": []})
    """By modality, what was done to its stream."""
    notes: list[str] = field(default_factory=list)
    """What the user should know: why features may be worse than of other clips."""

    def of(self, kind: str) -> list[int]:
        """The numbers of the tracks of a kind."""
        return [number for number, track in enumerate(self.tracks) if track.kind == kind]

    @property
    def end(self) -> float:
        """Seconds at which the audio and the video have ended, by their packets."""
        return max((self.tracks[n].end for n in self.of("audio") + self.of("video")), default=0.0)

    def check_length(self) -> None:
        """Raise BadMedia if the clip ends well before its header says that it does."""
        if (said := self.claimed) and said - self.end > max(SHORT, SHORT_SHARE * said):
            raise BadMedia(f"cut short: its header says {said:.1f} s, it ends at {self.end:.1f} s")


def survey(path: Path) -> Plan:
    """Look through the header and the packets of a clip; nothing is decoded. Raises BadMedia."""
    with _opened(path, edits=False) as container:
        if not _edits_hide(path, container):
            return _plan(path, container, edits=False)
    with _opened(path, edits=True) as container:
        return _plan(path, container, edits=True)


def _plan(path: Path, container: av.container.InputContainer, edits: bool) -> Plan:
    """The plan of a clip that is opened with its edit list followed or not."""
    start = (container.start_time or 0) / av.time_base
    times: dict[int, tuple[float, float, float]] = {}  # of a track: first, last, latest end
    falling = set()
    for packet in container.demux():
        if packet.pts is None or packet.is_discard:
            continue
        begin, number = float(packet.pts * packet.time_base) - start, packet.stream_index
        end = begin + float((packet.duration or 0) * packet.time_base)
        first, last, latest = times.get(number, (begin, -np.inf, end))
        if begin <= last:
            falling.add(number)
        times[number] = min(first, begin), begin, max(latest, end)
    tracks = []
    for number, stream in enumerate(container.streams):
        first, _, latest = times.get(number, (0.0, 0.0, 0.0))
        tracks.append(Track(_kind(stream), _describe(stream), first, latest, number not in falling))
    name, claimed = container.format.long_name, _claimed(container)
    plan = Plan(path, name, tuple(tracks), claimed, start, edits)
    for kind in plan.done:
        if edits and plan.of(kind):
            plan.done[kind].append("without what the edit list hides")
    return plan


def read_audio(path: Path, plan: Plan | None = None) -> Audio | None:
    """The audio of a clip as one channel of 16 kHz; None if the clip has no audio track.

    It is that of the first track that can be decoded and is not silent, and the mean of its
    channels; or the loudest channel, if they cancel each other out. Samples lie where their
    timestamps say: where packets were lost it is silent.

    Args:
        path: of the clip.
        plan: of it, by `survey`; what is done is added to it.

    Raises:
        BadMedia: nothing can be decoded.
    """
    plan = plan or survey(path)
    tracks, unused, silent = plan.of("audio"), {}, None
    for number in tracks:
        try:
            audio, done, notes = _decode_audio(plan, number)
        except BadMedia as error:
            unused[number] = error
            continue
        if not audio.silent:
            break
        unused[number], silent = "it is silent", silent or (audio, done, notes)
    else:
        if not unused:
            return None
        if silent is None:
            raise unused[tracks[0]]
        (audio, done, notes), unused = silent, {}
    if unused:
        reasons = "; ".join(f"not of stream {one}: {why}" for one, why in unused.items())
        notes.insert(0, f"its audio is that of stream {number}, {reasons}")
    plan.done["audio"] += done
    plan.notes.extend(notes)
    return audio


def _decode_audio(
    plan: Plan, number: int, channel: int | None = None
) -> tuple[Audio, list[str], list[str]]:
    """The audio of a track, or of one of its channels; what was done, and what is to note."""
    mono, start = _Mono(channel), None
    filled = dropped = 0.0  # seconds
    with _opened(plan.path, plan.edits) as container:
        stream, clock = _decoded(container, number), _Clock(container, plan.start)
        for frame in container.decode(stream):
            ended = clock.due
            time = clock(frame, frame.samples / frame.sample_rate)
            if start is None:
                start = due = ended = time
                mono.begin(frame, 0.0)
            if not ended - _OVERLAP <= time <= due + LONGEST_GAP:
                raise BadMedia(f"its audio jumps from {ended:.2f} to {time:.2f} s")
            if abs(time - due) > GAP:
                filled, dropped = filled + max(time - due, 0), dropped + max(due - time, 0)
                due = time
                mono.begin(frame, due - start)
            elif mono.form != _form(frame):
                mono.begin(frame, due - start)
            mono.add(frame)
            due += frame.samples / frame.sample_rate
        if start is None:
            raise BadMedia("its audio track is empty")
        rate, layout = stream.codec_context.sample_rate, stream.codec_context.layout
    audio = Audio(mono.samples(), RATE, start)
    if mono.cancelled:
        audio, done, notes = _decode_audio(plan, number, mono.loudest)
        notes.append("its audio channels cancel each other out (one is inverted): one is used")
        return audio, done, notes
    done, notes = [f"{rate} to {RATE} Hz"] if rate != RATE else [], []
    if layout.nb_channels > 1:
        mix = "mean" if channel is None else f"channel {channel + 1}"
        done.append(f"{mix} of {layout.nb_channels} channels")
    if rate < RATE:
        notes.append(
            f"its audio of {rate} Hz has nothing above {rate / 2000:g} kHz, others have up to "
            f"{RATE / 2000:g} kHz: their features differ"
        )
    if filled:
        notes.append(f"its audio lacks {filled:.2f} s by its timestamps: silence there")
    if dropped:
        notes.append(f"its audio is {dropped:.2f} s longer than its timestamps: left out")
    return audio, done + clock.said(), notes


class _Mono:
    """Puts frames of audio together as one channel of RATE: the mean of theirs, or one."""

    def __init__(self, channel: int | None):
        self.form = self.resampler = None
        self.placed: list[tuple[int, np.ndarray]] = []  # samples, and the place of the first
        self.at, self.channel = 0, channel
        # Power of the mean, and what it would be if no two channels were alike; of each channel.
        self.power, self.unlike, self.powers = 0.0, 0.0, Counter()

    def begin(self, frame: av.AudioFrame, time: float) -> None:
        """What follows, in the form of `frame`, starts at a time, in seconds."""
        self._end()
        self.at = max(0, round(time * RATE))
        self.form, self.resampler = _form(frame), av.AudioResampler("fltp", rate=RATE)

    def add(self, frame: av.AudioFrame | None) -> None:
        """Add a frame; None for what the resampler still holds."""
        for part in self.resampler.resample(frame):
            channels = part.to_ndarray()
            one = channels.mean(axis=0)
            if self.channel is not None:
                one = channels[self.channel % len(channels)]
            powers = np.square(channels, dtype=np.float64).sum(axis=1)
            self.powers.update(dict(enumerate(powers)))
            self.power += np.square(one, dtype=np.float64).sum()
            self.unlike += powers.sum() / len(powers) ** 2
            self.placed.append((self.at, one))
            self.at += len(one)

    def samples(self) -> np.ndarray:
        """All of it, [n] float32; silence where nothing was added. Nothing can be added then."""
        self._end()
        ends = (at + len(part) for at, part in self.placed)
        found = np.zeros(max(ends, default=0), np.float32)
        for at, part in self.placed:
            found[at : at + len(part)] = part
        return found

    @property
    def cancelled(self) -> bool:
        """Whether the channels cancel each other out."""
        return self.power < CANCELLED * self.unlike

    @property
    def loudest(self) -> int:
        """The number of the channel with the most power."""
        return self.powers.most_common(1)[0][0]

    def _end(self) -> None:
        if self.resampler:
            self.add(None)
            self.resampler = None


def read_frames(
    path: Path, rate: float, plan: Plan | None = None
) -> Iterator[tuple[float, np.ndarray]]:
    """Times (s) and video frames [H, W, 3] uint8 RGB of a clip, at most `rate` (fps).

    Nothing for a clip without video. Turned upright, as a telephone's clips ask for, and with
    square pixels: where they are not, the shorter side is stretched.

    Args:
        path: of the clip.
        rate: fps.
        plan: of the clip, by `survey`; what was done is added to it at the end.

    Raises:
        BadMedia: the video cannot be decoded.
    """
    plan = plan or survey(path)
    if not plan.of("video"):
        return
    number = next((n for n in plan.of("video") if plan.tracks[n].end), plan.of("video")[0])
    with _opened(path, plan.edits) as container:
        stream = _decoded(container, number)
        stream.codec_context.thread_count = 1  # clips are read in parallel, each on a core
        # Frames come out of a decoder in the order in which they are shown. Where packets have no
        # other times than those of decoding, the frames have these in turn. AVI has no others, and
        # frame n is shown at the time of packet n; elsewhere they rise though the codec reorders.
        avi, reorders = container.format.name == "avi", stream.codec_context.has_b_frames
        in_turn = reorders and (avi or plan.tracks[number].rising)
        reordered = False
        aspect, clock = _aspect(stream, plan), _Clock(container, plan.start)
        due, count, brightest, decoded = -np.inf, 0, 0.0, deque()
        for packet in container.demux(stream):
            if packet.size:
                decoded.append(packet.dts if avi else packet.pts)
            for frame in packet.decode():
                if in_turn:
                    turn = decoded.popleft() if decoded else None
                    reordered, frame.pts = reordered or frame.pts != turn, turn
                time = clock(frame, float(1 / (stream.guessed_rate or 25)))
                if time < due - _EARLY:
                    continue
                due, count = time + 1 / rate, count + 1
                pixels = np.rot90(_square(frame, aspect), round(frame.rotation / 90))
                brightest = max(brightest, np.percentile(pixels[::16, ::16], 95))
                shape, rotation = (frame.width, frame.height), round(frame.rotation)
                yield time, pixels
        if not count:
            return
        done = plan.done["video"]
        if len(plan.of("video")) > 1:
            done.append(f"stream {number}, of {len(plan.of('video'))} with video")
        if aspect != 1:
            done.append(f"pixels of {aspect} made square: {shape[0]} x {shape[1]} stretched")
        if rotation:
            done.append(f"turned by {rotation} degrees")
        if reordered:
            plan.notes.append("it has no presentation times: its frames are dated in their order")
        done += [f"{count} frames, at most {rate:g} fps", *clock.said()]
        if brightest < DARK:
            plan.notes.append(
                f"its video is dark: 95 % of all pixels are below {brightest:.0f} of 255"
            )
        if transfer := HDR.get(stream.codec_context.color_trc):
            plan.notes.append(f"its video is HDR ({transfer}), taken as it is: colours look flat")


class _Clock:
    """Times of frames, in seconds of the clip; one without is dated from the frame before.

    Formats like MP3 and WAV have no times: FFmpeg counts frames, wrongly where the rate changes.
    Of those, frames after the first are dated so too.
    """

    def __init__(self, container: av.container.InputContainer, start: float):
        flags, own_times = container.format.flags, Flags.ts_discont.value
        self.counted = bool(flags & Flags.generic_index.value) and not flags & own_times
        self.start, self.due, self.undated = start, None, 0

    def __call__(self, frame: av.frame.Frame, lasts: float) -> float:
        self.undated += frame.pts is None
        if frame.pts is None or (self.counted and self.due is not None):
            time = self.due or 0.0
        else:
            time = float(frame.pts * frame.time_base) - self.start
        self.due = time + lasts
        return time

    def said(self) -> list[str]:
        """What was done."""
        return [f"{self.undated} frames dated from the frame before"] if self.undated else []


def _aspect(stream: av.VideoStream, plan: Plan) -> Fraction:
    """Width over height of a pixel; 1 where the header says nonsense."""
    said = stream.sample_aspect_ratio  # a Fraction, from PyAV 19 on another kind of number
    aspect = Fraction(said.numerator, said.denominator) if said else Fraction(1)
    if 1 / FLATTEST <= aspect <= FLATTEST:
        return aspect
    plan.done["video"].append(f"pixels of {aspect}, by the header, are taken for square")
    return Fraction(1)


def _square(frame: av.VideoFrame, aspect: Fraction) -> np.ndarray:
    """The frame's pixels, [H, W, 3] uint8 RGB; the shorter side of a pixel is stretched."""
    if aspect == 1:
        return frame.to_ndarray(format="rgb24")
    width = round(frame.width * max(aspect, 1))
    height = round(frame.height / min(aspect, 1))
    # FFmpeg's default, bilinear, moves landmarks twice as far from those of a square copy.
    return frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="LANCZOS")


def _decoded(container: av.container.InputContainer, number: int) -> av.stream.Stream:
    """The stream of a number; BadMedia if FFmpeg has no decoder for it."""
    stream = container.streams[number]
    if stream.codec_context is None:
        raise BadMedia(f"its {stream.type} is of an unknown codec")
    return stream


def _form(frame: av.AudioFrame) -> tuple:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _kind(stream: av.stream.Stream) -> str:
    cover = stream.disposition & av.stream.Disposition.attached_pic
    return "picture" if cover else stream.type


def _describe(stream: av.stream.Stream) -> str:
    codec = stream.codec_context
    if codec is None:
        return "unknown codec"
    if stream.type == "video":
        rate = f", {float(stream.guessed_rate):.4g} fps" if stream.guessed_rate else ""
        return f"{codec.name}, {codec.width} x {codec.height}{rate}"
    if stream.type == "audio":
        channels = "mono" if codec.layout.nb_channels == 1 else codec.layout.name
        return f"{codec.name}, {codec.sample_rate} Hz, {channels}"
    return codec.name


def _claimed(container: av.container.InputContainer) -> float | None:
    """Seconds that audio and video last by the header; None where it does not say so.

    The container's own length is another where other streams last longer, such as subtitles.
    """
    if not _SAY_LENGTH & set(container.format.name.split(",")):
        return None
    streams = [one for one in container.streams if _kind(one) in ("audio", "video")]
    if container.format.name == "avi":  # FFmpeg corrects lengths by the file's; the count stays
        videos = [one for one in streams if one.type == "video" and one.frames < _ENDLESS]
        return max((float(one.frames / one.guessed_rate) for one in videos), default=None)
    said = [_stream_seconds(stream) for stream in streams]
    whole = container.duration and container.duration / av.time_base
    if said and None not in said:
        return min(max(said), whole or np.inf)
    return whole if all(one.type in ("audio", "video") for one in container.streams) else None


def _stream_seconds(stream: av.stream.Stream) -> float | None:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    try:  # of Matroska: hours, minutes and seconds
        hours, minutes, seconds = map(float, stream.metadata["DURATION"].split(":"))
        return 3600 * hours + 60 * minutes + seconds
    except (KeyError, ValueError):
        return None


def _edits_hide(path: Path, container: av.container.InputContainer) -> bool:
    """Whether an MP4's edit list hides parts of the clip: more than the delay of its encoders.

    Where it hides nothing, what it says is a shift of all times, no more. Otherwise FFmpeg drops
    RAVDESS's last frame and shows the others a frame (33 ms) too early, for their list does not
    make up for the delay of the encoder; the audio, which is delayed as much, stays where it is.
    """
    if "mov" not in container.format.name:
        return False
    if any((one.start_time or 0) * one.time_base < -_EARLY for one in container.streams.video):
        return True
    with _opened(path, edits=True) as shown:
        hidden = np.subtract(_durations(container), _durations(shown))
    return max(hidden, default=0.0) > HIDDEN


def _durations(container: av.container.InputContainer) -> list[float]:
    return [
        float((one.duration or 0) * one.time_base)
        for one in container.streams
        if _kind(one) in ("audio", "video")
    ]


class _Clip(io.FileIO):
    """A file that FFmpeg reads without its name, by which it would find others and formats."""

    name = "clip"

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Where it is then; -1, which FFmpeg takes for an error, where it cannot be."""
        try:
            return super().seek(offset, whence)
        except (OSError, ValueError):
            return -1


@contextmanager
def _opened(path: Path, edits: bool) -> Iterator[av.container.InputContainer]:
    """A clip as FFmpeg reads it, if `edits` without what its edit list hides.

    FFmpeg may open nothing else, whatever a list of other files asks for: a clip is what is in its
    own file.
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
        raise BadMedia("no audio or video can be read: its packets are of no stream") from error
    except (ValueError, MemoryError) as error:  # PyAV's own, of frames that do not fit
        raise BadMedia(f"no audio or video can be read: {error}") from error
    except OSError as error:
        raise BadMedia(f"unreadable: {error.strerror or error}") from error
