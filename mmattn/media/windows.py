"""Sliding windows over audio and faces, recorded or live, in constant memory."""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mmattn.config import ExtractConfig
from mmattn.data.feature_file import MIN_FRAMES
from mmattn.data.stream import Stream
from mmattn.media.decode import read_frames
from mmattn.media.extract import audio_models, face_streams, look, loudness_of
from mmattn.media.people import People
from mmattn.media.sound import GAP, RATE, Audio, audio_blocks
from mmattn.media.speaker import Seen, Track, find_speaker, is_beside
from mmattn.media.survey import BadMedia, Plan

SLACK = 0.1  # seconds that may be missing at the end of the last window
EARLY = 1e-3  # seconds that a frame may be before its window: times are rounded
LOUD_SHARE = 0.05  # minimum fraction of the audio that is louder than silence
LOUD_STEP = round(0.02 * RATE)  # samples per measurement of the level
SEEN_SHARE = 0.5  # minimum fraction of a window's frames in which a person is visible
RETURN = 5.0  # seconds within which a face in the same place is of the same person
SILENCE, NO_AUDIO, NO_FACE = "silence", "no audio", "no face"
OTHER_SPEAKS, UNCLEAR = "another person speaks", "it cannot be told who speaks"


class Person(NamedTuple):
    """The data of one person in a window, or of the audio only."""

    number: int | None
    """The same in all windows, from 0; None if no face is visible, or none is looked for."""
    streams: dict[str, Stream]
    """By modality, the available features of the run; times are relative to the window's start."""
    gaps: dict[str, str]
    """By kind (audio, video), why it is missing: one of the reasons above, or a message."""
    speaking: bool | None = None
    """None without a face; False in silence; else None if unclear, or if there is only one face."""
    box: np.ndarray | None = None
    """[4] left, top, right, bottom of the face (pixels), the median of the frames."""


class Window(NamedTuple):
    """A part of a recording, in seconds; a shorter window is a whole recording."""

    number: int
    start: float
    end: float
    people: list[Person]
    """One or more, by number."""


class Windows:
    """Sliding windows; window k begins at k hops. Audio and video frames are fed as they come, and
    kept only as long as an unfinished window needs them.

    A window has for each person the features that `mmattn predict` computes for a clip cut there:
    audio features from the window's samples only, video features per frame. Among several people
    the audio belongs to the speaker, if that is clear.

        windows = Windows(run.extraction(), 3.0, 0.5, {"audio", "video"})
        windows.hear(0.0, samples)
        windows.see(0.0, look(frame, config))
        for window in windows.finished(): ...
        windows.end()

    Args:
        config: of the run's features, as `Run.extraction` gives it.
        window: seconds.
        hop: seconds from the start of a window to that of the next.
        kinds: audio, video or both: a window waits for these.
        silence: dB of full scale (the root mean square of 20 ms) below which audio is silent.
    """

    def __init__(
        self,
        config: ExtractConfig,
        window: float,
        hop: float,
        kinds: Collection[str] = ("audio", "video"),
        silence: float = -55.0,
    ):
        self.config, self.window, self.hop, self.silence = config, window, hop, silence
        self._number = 0  # of the next window
        self._reached = dict.fromkeys(kinds, 0.0)  # seconds
        self._ended: set[str] = set()
        self._blocks: deque[tuple[int, np.ndarray]] = deque()  # with the number of the first sample
        self._first: int | None = None  # number of the very first sample
        self._next = 0  # number after the last sample
        self._people = People(round(RETURN * config.video_rate))
        self._frames: deque[tuple[float, dict[int, Seen]]] = deque()

    def hear(self, time: float, samples: np.ndarray) -> None:
        """Add audio [n] float32 of 16 kHz that begins at a time (s); a gap before it is silent."""
        first = round(time * RATE)
        if self._first is None:
            self._first = self._next = first
        if abs(first - self._next) <= GAP * RATE:
            first = self._next
        samples = samples[max(0, self._next - first) :]
        self._blocks.append((max(first, self._next), samples))
        self._next = max(first, self._next) + len(samples)
        self._reached["audio"] = self._next / RATE

    def see(self, time: float, faces: Sequence[Seen]) -> list[int]:
        """Add the faces of a video frame, see `look`, at a time (s) after that of the last frame.

        Returns the person number of each face.
        """
        numbers = self._people([one.face.box for one in faces])
        self._frames.append((time, dict(zip(numbers, faces, strict=True))))
        self._reached["video"] = time + EARLY
        return numbers

    @property
    def behind(self) -> str | None:
        """The kind, audio or video, that has come less far; None at the end."""
        coming = self._reached.keys() - self._ended
        return min(sorted(coming), key=self._reached.__getitem__, default=None)

    @property
    def reached(self) -> float:
        """Seconds up to which all kinds have come."""
        return min(self._until(), max(self._reached.values()))

    def end(self, *kinds: str) -> None:
        """No more data of these kinds will come; by default of all kinds."""
        self._ended |= {*kinds} or {*self._reached}

    @property
    def ready(self) -> int:
        """How many windows are finished and not yet returned."""
        number = self._number
        while self._is_finished(number):
            number += 1
        return number - self._number

    def skip(self, count: int) -> None:
        """Skip the next `count` windows."""
        self._number += count
        self._forget()

    def finished(self) -> Iterator[Window]:
        """The finished windows, oldest first, each once."""
        while self._is_finished(self._number):
            start = self._number * self.hop
            end = start + self.window
            if self._number == 0 and self._until() < end:
                end = max(self._reached.values())
            yield Window(self._number, start, end, self._cut(start, end))
            self.skip(1)

    def _until(self) -> float:
        """Seconds up to which all kinds that have not ended have come."""
        coming = [time for kind, time in self._reached.items() if kind not in self._ended]
        return min(coming) if coming else max(self._reached.values()) + SLACK

    def _is_finished(self, number: int) -> bool:
        last = self._ended >= self._reached.keys() and max(self._reached.values()) > 0
        return number * self.hop + self.window <= self._until() or (last and number == 0)

    def _forget(self) -> None:
        """Drop data from before the next window."""
        start = self._number * self.hop
        while self._blocks and self._blocks[0][0] + len(self._blocks[0][1]) <= start * RATE:
            self._blocks.popleft()
        while self._frames and self._frames[0][0] < start - EARLY:
            self._frames.popleft()

    def _cut(self, start: float, end: float) -> list[Person]:
        """The data of each person in a window."""
        audio = self._audio(start, end)
        silent = audio is not None and self._is_silent(audio)
        heard, gaps = self._take(audio, silent) if self.config.audio else ({}, {})
        frames = [one for one in self._frames if start - EARLY <= one[0] < end - EARLY]
        times = np.array([time - start for time, _ in frames])
        tracks = _find_tracks([faces for _, faces in frames])
        if not tracks:
            unseen = {"video": NO_FACE} if self.config.video else {}
            return [Person(None, heard, gaps | unseen)]
        speaker = None if audio is None or silent else _speaker(tracks, times, audio)
        found = []
        for who, track in tracks.items():
            streams, lacking = self._rows(track, times)
            if not self.config.audio or who == speaker or len(tracks) == 1 or gaps:
                streams, lacking = streams | heard, lacking | gaps
            else:
                lacking["audio"] = UNCLEAR if speaker is None else OTHER_SPEAKS
            speaking = who == speaker if silent or speaker is not None else None
            box = np.median([one.face.box for one in track.values()], axis=0)
            found.append(Person(who, streams, lacking, speaking, box))
        return found

    def _audio(self, start: float, end: float) -> Audio | None:
        """The samples from start to end, with times relative to `start`."""
        if self._first is None:
            return None
        first = max(round(start * RATE), self._first)
        samples = np.zeros(max(0, min(round(end * RATE), self._next) - first), np.float32)
        for at, block in self._blocks:
            low, high = max(at, first), min(at + len(block), first + len(samples))
            if low < high:
                samples[low - first : high - first] = block[low - at : high - at]
        return Audio(samples, RATE, first / RATE - start) if len(samples) else None

    def _is_silent(self, audio: Audio) -> bool:
        """Whether it is never louder than silence, except for a click."""
        parts = np.array_split(audio.samples, max(1, len(audio.samples) // LOUD_STEP))
        powers = np.array([np.mean(np.square(part, dtype=np.float64)) for part in parts])
        loud = powers > 10 ** (self.silence / 10)
        return audio.silent or bool(loud.mean() < LOUD_SHARE)

    def _take(self, audio: Audio | None, silent: bool) -> tuple[dict[str, Stream], dict[str, str]]:
        """The run's audio features by modality, or why there are none."""
        if audio is None or silent:
            return {}, {"audio": SILENCE if silent else NO_AUDIO}
        try:
            found = {
                name: take(audio.samples, RATE) for name, take in audio_models(self.config).items()
            }
        except BadMedia as error:
            return {}, {"audio": str(error)}
        if (fewest := min(len(one.times) for one in found.values())) < MIN_FRAMES:
            return {}, {"audio": f"{fewest} frames of audio"}
        dated = {name: one._replace(times=one.times + audio.start) for name, one in found.items()}
        return dated, {}

    def _rows(self, track: Track, times: np.ndarray) -> tuple[dict[str, Stream], dict[str, str]]:
        """The run's video features of a person by modality, or why there are none."""
        followed = [track.get(place) for place in range(len(times))]
        streams, _ = face_streams(times, followed, self.config)
        there = streams.keys() == self.config.video.keys()
        return (streams, {}) if there else ({}, {"video": NO_FACE})


def read_windows(
    plan: Plan,
    windows: Windows,
    watch: Callable[[np.ndarray, Sequence[Seen], Sequence[int]], None],
    advance: Callable[[float], None],
) -> Iterator[Window]:
    """The windows of a recording, decoded only as far as they need.

    Args:
        plan: of the recording, by `survey`.
        windows: to feed, with kinds that the recording has.
        watch: called with each video frame [H, W, 3] uint8, its faces and their numbers.
        advance: called with the seconds read since the last call.

    Raises:
        BadMedia: the recording cannot be decoded.
    """
    blocks, pictures = audio_blocks(plan), read_frames(plan, windows.config.video_rate)
    done = 0.0
    while kind := windows.behind:
        if kind == "audio" and (block := next(blocks, None)):
            windows.hear(block.start, block.samples)
        elif kind == "audio" or not (picture := next(pictures, None)):
            windows.end(kind)
        else:
            time, frame = picture
            faces = look(frame, windows.config)
            watch(frame, faces, windows.see(time, faces))
        yield from windows.finished()
        advance(windows.reached - done)
        done = windows.reached


def _find_tracks(frames: Sequence[dict[int, Seen]]) -> dict[int, Track]:
    """By person, the faces of those visible in enough of the frames."""
    tracks: dict[int, Track] = {}
    for place, faces in enumerate(frames):
        for who, seen in faces.items():
            tracks.setdefault(who, {})[place] = seen
    least = max(MIN_FRAMES, SEEN_SHARE * len(frames))
    return {who: track for who, track in sorted(tracks.items()) if len(track) >= least}


def _speaker(tracks: dict[int, Track], times: np.ndarray, audio: Audio) -> int | None:
    """Which of several people speaks; None if unclear."""
    beside = {who: one for who, one in tracks.items() if is_beside(one)}
    if len(beside) < 2 or (heard := loudness_of(audio)) is None:
        return None
    place, *_ = find_speaker(list(beside.values()), times, heard)
    return None if place is None else list(beside)[place]
