"""Which of several faces in a clip to track: the one whose mouth moves with the audio."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mmattn.data.stream import Stream, make_stream
from mmattn.media.align import Movement, agreement
from mmattn.media.faces import Face, FaceTracker
from mmattn.media.people import People

MOST = 4  # faces of a frame to consider, the largest; more are a crowd
# Thresholds of a clear speaker; set and measured by tests/media/test_speaker.py.
LEAST_CORRELATION = 0.4
LEAST_LEAD = 0.2  # of the speaker's r over that of the others
BRIEF = 15  # frames beside other faces; fewer are a false detection, or someone passing by


class Seen(NamedTuple):
    """A face in a frame, and what is measured of it."""

    face: Face
    features: dict[str, np.ndarray | None]
    """By requested modality [F]; None if it turned out to be no face."""
    opening: float
    """Opening of the mouth over the head's size; 0 if not measured, e.g. for a single face."""


Track = dict[int, Seen]  # by the number of the frame, increasing


def follow_largest(frames: Sequence[Sequence[Seen]]) -> list[Seen | None]:
    """In each frame, the face that a FaceTracker tracks."""
    track = FaceTracker()
    followed = [track([one.face for one in seen]) for seen in frames]
    return [
        next((one for one in seen if one.face is face), None)
        for seen, face in zip(frames, followed, strict=True)
    ]


def follow_speaker(
    times: np.ndarray, frames: Sequence[Sequence[Seen]], loudness: Callable[[], Stream | None]
) -> tuple[list[Seen | None], str | None]:
    """In each frame, the face of the speaker; if that is unclear, as `follow_largest`.

    Of the faces seen beside others in 15 frames or more, it is the one whose mouth opening
    correlates best with loudness. Other faces seen at the same time are ignored; before and after,
    e.g. beyond a cut, the largest face is tracked.

    Args:
        times: [T] of the frames (s).
        frames: the faces of each.
        loudness: returns [Ta, 1] amplitude of the audio, None without; called if needed.

    Returns:
        The tracked faces; and if there are several, a note on which and why.
    """
    several = any(len(seen) > 1 for seen in frames)
    tracks = find_tracks(frames) if several else []
    beside = [track for track in tracks if is_beside(track)]
    if len(beside) < 2:
        return follow_largest(frames), None
    if (heard := loudness()) is None:
        return _noted(follow_largest(frames), "the largest, as there is no audio")
    found, best, next_best = find_speaker(beside, times, heard)
    if found is None:
        why = f"the largest, as it is unclear who speaks (r {best:.2f} and {next_best:.2f})"
        return _noted(follow_largest(frames), why)
    speaker = beside[found]
    listeners = {id(one) for track in tracks if _meet(track, speaker) for one in track.values()}
    left = [[one for one in seen if id(one) not in listeners] for seen in frames]
    first, end = min(speaker), max(speaker) + 1
    spoken = [speaker.get(number) for number in range(first, end)]
    why = f"the one whose mouth moves with the audio (r {best:.2f}, others {next_best:.2f})"
    return _noted([*follow_largest(left[:first]), *spoken, *follow_largest(left[end:])], why)


def find_tracks(frames: Sequence[Sequence[Seen]]) -> list[Track]:
    """The faces of frames, by person."""
    people, tracks = People(), dict[int, Track]()
    for number, seen in enumerate(frames):
        for who, one in zip(people([one.face.box for one in seen]), seen, strict=True):
            tracks.setdefault(who, {})[number] = one
    return list(tracks.values())


def is_beside(track: Track) -> bool:
    """Whether a face is seen beside others long enough to decide whether it speaks."""
    return sum(one.opening > 0 for one in track.values()) >= BRIEF


def find_speaker(
    tracks: Sequence[Track], times: np.ndarray, loudness: Stream
) -> tuple[int | None, float, float]:
    """Which face speaks: the one whose mouth opening correlates best with loudness.

    Args:
        tracks: of faces seen beside others, one or more.
        times: [T] of the frames (s).
        loudness: [Ta, 1] amplitude of the audio.

    Returns:
        Its index, None if unclear; its r; the highest r of the others present at that time.
    """
    found = [agreement(_movement(track, times, loudness)) for track in tracks]
    best = max(found)
    speaker = found.index(best)
    others = [r for r, track in zip(found, tracks, strict=True) if _meet(track, tracks[speaker])]
    next_best = max(others, default=0.0)
    told = best >= LEAST_CORRELATION and best - next_best >= LEAST_LEAD
    return speaker if told else None, best, next_best


def _movement(track: Track, times: np.ndarray, loudness: Stream) -> Movement:
    openings = np.array([[one.opening] for one in track.values()])
    return Movement(make_stream(openings, times[list(track)]), loudness)


def _meet(track: Track, other: Track) -> bool:
    """Whether two tracks, of two faces, share a frame."""
    return track is not other and min(track) <= max(other) and min(other) <= max(track)


def _noted(followed: list[Seen | None], why: str) -> tuple[list[Seen | None], str]:
    boxes = np.array([one.face.box for one in followed if one])
    left, top, right, bottom = np.median(boxes, axis=0)
    x, y = (left + right) / 2, (top + bottom) / 2
    place = f"{right - left:.0f} pixels wide around ({x:.0f}, {y:.0f})"
    return followed, f"several faces are seen; {why}, is used: {place}"
