"""The audio of a clip: one channel at 16 kHz, whole or block by block.

Times are seconds on the container's clock, see `mmattn.media.decode`.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from mmattn.media.decode import Broken, Clock, decoded_stream
from mmattn.media.survey import BadMedia, Plan, opened, survey

RATE = 16000  # Hz; speech above 8 kHz says little about emotion
SILENT = 1e-3  # of full scale: a track that never deviates more from its centre is silent
# Channels cancel each other out if their mean has less than this fraction of the power that it
# would have if they were uncorrelated …
CANCELLED = 0.25
CANCELLED_SHARE = 0.25  # … in more than this fraction of the audio, by power
GAP = 0.04  # seconds that samples may be early or late: more is not rounding
LONGEST_GAP = 60.0
_OVERLAP = 0.05  # seconds that a frame may overlap the one before


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
        """Whether it is silent, as the audio track of RAVDESS's 02-* clips."""
        return not len(self.samples) or float(np.ptp(self.samples)) < 2 * SILENT


def read_audio(clip: Path | Plan) -> Audio | None:
    """The audio of a clip as one channel at 16 kHz; None if the clip has no audio track.

    It is the mean of the channels of the first track that can be decoded and is not silent; or the
    loudest channel, if they cancel each other out. Samples are placed by their timestamps: lost
    packets become silence.

    Args:
        clip: its path, or its plan by `survey`, to which steps and notes are added.

    Raises:
        BadMedia: no audio can be decoded and there is no video; with video it becomes a note.
    """
    return _first_heard(clip if isinstance(clip, Plan) else survey(clip), _join)


def audio_blocks(clip: Path | Plan) -> Iterator[Audio]:
    """The audio of a clip as by `read_audio`, block by block: hours need no more memory.

    It is decoded twice, first to choose the track and its channels. A block may overlap the one
    before by up to 50 ms.

    Raises:
        BadMedia: as `read_audio`.
    """
    plan = clip if isinstance(clip, Plan) else survey(clip)
    if heard := _first_heard(plan, _listen):
        for at, samples in _Track(plan, *heard.track).parts():
            yield Audio(samples, RATE, heard.start + at / RATE)


class _Heard(NamedTuple):
    """What `audio_blocks` needs to know of a track in advance."""

    track: tuple[int, int | None]  # numbers of the track and of the channel
    start: float  # seconds
    silent: bool


def _join(track: "_Track") -> Audio:
    placed = list(track.parts())
    found = np.zeros(max((at + len(part) for at, part in placed), default=0), np.float32)
    for at, part in placed:
        found[at : at + len(part)] = part
    return Audio(found, RATE, track.start)


def _listen(track: "_Track") -> _Heard:
    low, high = np.inf, -np.inf
    for _, part in track.parts():
        low, high = min(low, part.min()), max(high, part.max())
    return _Heard((track.number, track.mono.channel), track.start, high - low < 2 * SILENT)


def _first_heard(plan: Plan, use: Callable[["_Track"], Any]) -> Any:
    """The result of `use` on the first track that is not `silent`, or else on the first.

    Adds its steps and notes to the plan. Raises BadMedia.
    """
    tracks, silent = plan.of("audio"), None
    unused: dict[int, str] = {}
    for number in tracks:
        try:
            track = _Track(plan, number)
            found = use(track)
            if track.mono.cancelled:
                track = _Track(plan, number, track.mono.loudest)
                found = use(track)
        except BadMedia as error:
            unused[number] = str(error)
            continue
        if not found.silent:
            break
        unused[number], silent = "it is silent", silent or (found, track)
    else:
        if not unused:
            return None
        if silent is None:
            if not plan.of("video"):
                raise BadMedia(unused[tracks[0]])
            plan.notes.append(unused[tracks[0]])
            return None
        (found, track), unused = silent, {}
    if unused:
        reasons = "; ".join(f"not of stream {one}: {why}" for one, why in unused.items())
        plan.notes.append(f"its audio is that of stream {track.number}, {reasons}")
    plan.done["audio"] += track.done
    plan.notes.extend(track.notes)
    return found


class _Track:
    """A track, decoded as one channel at RATE.

    start: time of the first sample (s); done, notes: the steps done, and notes; complete once all
    parts have come.
    """

    def __init__(self, plan: Plan, number: int, channel: int | None = None):
        self.plan, self.number, self.mono = plan, number, _Mono(channel)
        self.start = 0.0
        self.done: list[str] = []
        self.notes: list[str] = []

    def parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """Blocks of samples [n] float32, each with the index of its first. Raises BadMedia."""
        plan, mono, number = self.plan, self.mono, self.number
        filled = dropped = due = 0.0  # seconds
        with opened(plan.path, plan.edits) as container:
            stream, clock = decoded_stream(container, number), Clock(container, plan.start)
            broken = Broken()
            decoded = broken.decode(container, stream, clock)
            for frame in chain.from_iterable(frames for _, frames in decoded):
                ended = clock.due
                time = clock(frame, frame.samples / frame.sample_rate)
                if mono.form is None:
                    self.start = due = ended = time
                    mono.begin(frame, 0.0)
                assert ended is not None  # known since the first frame
                if not ended - _OVERLAP <= time <= due + LONGEST_GAP:
                    raise BadMedia(f"its audio jumps from {ended:.2f} to {time:.2f} s")
                if abs(time - due) > GAP:
                    filled, dropped = filled + max(time - due, 0), dropped + max(due - time, 0)
                    due = time
                    mono.begin(frame, due - self.start)
                elif mono.form != _form(frame):
                    mono.begin(frame, due - self.start)
                mono.add(frame)
                due += frame.samples / frame.sample_rate
                yield from mono.taken()
            if mono.form is None:
                raise BadMedia(broken.reason("audio") or "its audio track is empty")
            mono.end()
            yield from mono.taken()
            rate, layout = stream.codec_context.sample_rate, stream.codec_context.layout
        self.done = [f"{rate} to {RATE} Hz"] if rate != RATE else []
        self.notes = broken.said("audio")
        if len(plan.of("audio")) > 1:
            self.done.insert(0, f"stream {number}, of {len(plan.of('audio'))} with audio")
        if layout.nb_channels > 1:
            mix = "mean" if mono.channel is None else f"channel {mono.channel + 1}"
            self.done.append(f"{mix} of {layout.nb_channels} channels")
        self.done += clock.said()
        if rate < RATE:
            self.notes.append(
                f"its audio of {rate} Hz has nothing above {rate / 2000:g} kHz, other clips reach "
                f"{RATE / 2000:g} kHz: the features differ"
            )
        if filled:
            self.notes.append(f"its audio lacks {filled:.2f} s by its timestamps: silence there")
        if dropped:
            self.notes.append(f"its audio is {dropped:.2f} s longer than its timestamps: left out")
        if mono.channel is not None:
            self.notes.append(
                "its audio channels cancel each other out (one is inverted): one is used"
            )


class _Mono:
    """Joins frames of audio into one channel at RATE: the mean of their channels, or one."""

    def __init__(self, channel: int | None):
        self.form: tuple | None = None
        self.resampler: av.AudioResampler | None = None
        self.placed: list[tuple[int, np.ndarray]] = []
        self.at, self.channel = 0, channel
        # Power that the mean would have if the channels were uncorrelated: in total, and in parts
        # where they cancel each other out; and the power of each channel.
        self.unlike = self.lost = 0.0
        self.powers: Counter[int] = Counter()

    def begin(self, frame: av.AudioFrame, time: float) -> None:
        """Start a part in the format of `frame`, at a time in seconds."""
        self.end()
        self.at = max(0, round(time * RATE))
        self.form, self.resampler = _form(frame), av.AudioResampler("fltp", rate=RATE)

    def add(self, frame: av.AudioFrame | None) -> None:
        """Add a frame; None flushes the resampler."""
        assert self.resampler  # of `begin`
        for part in self.resampler.resample(frame):
            channels = part.to_ndarray()
            one = channels.mean(axis=0)
            if self.channel is not None:
                one = channels[self.channel % len(channels)]
            powers = channels.var(axis=1, dtype=np.float64) * len(one)
            self.powers.update(dict(enumerate(powers)))
            unlike = powers.sum() / len(powers) ** 2
            self.unlike += unlike
            if one.var(dtype=np.float64) * len(one) < CANCELLED * unlike:
                self.lost += unlike
            self.placed.append((self.at, one))
            self.at += len(one)

    def taken(self) -> list[tuple[int, np.ndarray]]:
        """What was added since the last call: blocks of samples, and the index of the first."""
        taken, self.placed = self.placed, []
        return taken

    def end(self) -> None:
        """End the part."""
        if self.resampler:
            self.add(None)
            self.resampler = None

    @property
    def cancelled(self) -> bool:
        """Whether the channels cancel each other out."""
        return self.lost > CANCELLED_SHARE * self.unlike

    @property
    def loudest(self) -> int:
        """The number of the channel with the most power."""
        return self.powers.most_common(1)[0][0]


def _form(frame: av.AudioFrame) -> tuple:
    return frame.format.name, frame.layout.name, frame.sample_rate
