"""Windows over a stream: what each has, whose the audio is, and that little is kept."""

import numpy as np
import pytest

from mmattn.config import ExtractConfig
from mmattn.media.audio import LogMel
from mmattn.media.faces import Face
from mmattn.media.sound import RATE
from mmattn.media.speaker import Seen
from mmattn.media.windows import (
    NO_AUDIO,
    NO_FACE,
    OTHER_SPEAKS,
    SILENCE,
    UNCLEAR,
    Windows,
)
from tests.media.movements import talk

AUDIO = ExtractConfig(audio={"audio": "log-mel"}, video={})
BOTH = ExtractConfig(audio={"audio": "log-mel"}, video={"video": "face-mesh"})
VIDEO = ExtractConfig(audio={}, video={"video": "face-mesh"})
RNG = np.random.default_rng(0)
NOISE = 0.1 * RNG.standard_normal(20 * RATE).astype(np.float32)


def face(left: float, row: float, opening: float = 0.0) -> Seen:
    box = np.array([left, 0, left + 50, 50])
    return Seen(Face(box, np.zeros((6, 2)), 0.9), {"video": np.array([row, 1.0])}, opening)


def feed(windows: Windows, samples: np.ndarray, start: float = 0.0, block: int = 1000) -> list:
    found = []
    for first in range(0, len(samples), block):
        windows.hear(start + first / RATE, samples[first : first + block])
        found += windows.finished()
    windows.end()
    return found + list(windows.finished())


def show(windows: Windows, frames) -> None:
    for number, faces in enumerate(frames):
        windows.see(number / 15, faces)


def streams_of(window) -> dict:
    (person,) = window.people
    return person.streams


def test_a_window_has_the_features_of_its_samples():
    found = feed(Windows(AUDIO, 3.0, 0.5, {"audio"}), NOISE[: 10 * RATE])
    assert [(one.number, one.start, one.end) for one in found] == [
        (k, k / 2, k / 2 + 3) for k in range(15)
    ]
    for k in (0, 1, 14):
        own = LogMel()(NOISE[k * RATE // 2 :][: 3 * RATE], RATE)
        np.testing.assert_array_equal(streams_of(found[k])["audio"].frames, own.frames)
        np.testing.assert_allclose(streams_of(found[k])["audio"].times, own.times)


def test_the_size_of_blocks_changes_nothing():
    two = [feed(Windows(AUDIO, 2.0, 0.7, {"audio"}), NOISE, block=size) for size in (160, 50000)]
    assert len(two[0]) == len(two[1]) == 26
    for one, other in zip(*two, strict=True):
        np.testing.assert_array_equal(
            streams_of(one)["audio"].frames, streams_of(other)["audio"].frames
        )


@pytest.mark.parametrize("seconds", [0.4, 2.95, 3.0])
def test_a_short_recording_is_one_window(seconds):
    (only,) = feed(Windows(AUDIO, 3.0, 0.5, {"audio"}), NOISE[: round(seconds * RATE)])
    assert only.start == 0 and only.end == pytest.approx(3.0 if seconds > 2.9 else seconds)
    assert len(streams_of(only)["audio"].times) == 1 + round((seconds - 0.025) / 0.02 - 0.5)


def test_silence_and_what_is_left_out_are_gaps():
    quiet = NOISE[: 9 * RATE].copy()
    quiet[3 * RATE : 6 * RATE] *= 1e-2
    quiet[3 * RATE] = 0.5  # a click
    windows = Windows(AUDIO, 3.0, 3.0, {"audio"})
    windows.hear(0.0, quiet)
    windows.hear(12.0, quiet[: 3 * RATE])
    windows.end()
    found = list(windows.finished())
    assert [one.people[0].gaps.get("audio") for one in found] == [
        None,
        SILENCE,
        None,
        SILENCE,
        None,
    ]
    assert all(one.people[0].number is None for one in found)


def test_audio_that_starts_late_keeps_its_time():
    found = feed(Windows(AUDIO, 3.0, 1.0, {"audio"}), NOISE[: 6 * RATE], start=0.5)
    first, second = (streams_of(one)["audio"].times for one in found[:2])
    assert first[0] == pytest.approx(0.5125) and second[0] == pytest.approx(0.0125)


def test_jitter_of_live_blocks_is_no_gap():
    windows = Windows(AUDIO, 3.0, 3.0, {"audio"})
    for first in range(0, 3 * RATE, 640):
        windows.hear(first / RATE + RNG.uniform(-0.01, 0.01), NOISE[first : first + 640])
    windows.end()
    (only,) = windows.finished()
    own = LogMel()(NOISE[: 3 * RATE], RATE)
    np.testing.assert_array_equal(streams_of(only)["audio"].frames, own.frames)


def test_a_window_waits_for_all_kinds_and_ends_with_them():
    windows = Windows(BOTH, 3.0, 1.0)
    windows.hear(0.0, NOISE[: 7 * RATE])
    show(windows, [[face(0, row)] for row in range(60)])  # until 3.93 s
    assert windows.ready == 1
    windows.end("video")
    assert windows.ready == 5
    windows.skip(1)
    found = list(windows.finished())
    assert [one.number for one in found] == [1, 2, 3, 4] and windows.ready == 0
    assert [[*one.people[0].gaps] for one in found] == [[], [], [], ["video"]]


def test_a_person_has_a_row_a_frame_and_zeros_where_unseen():
    windows = Windows(BOTH, 1.0, 1.0)
    show(windows, [[face(0, row)] if row % 15 < 9 else [] for row in range(45)])
    found = feed(windows, NOISE[: 3 * RATE])
    for window in found:
        (person,) = window.people
        stream = person.streams["video"]
        assert person.number == 0 and person.speaking is None
        np.testing.assert_allclose(stream.times, np.arange(15) / 15, atol=1e-9)
        np.testing.assert_array_equal(stream.valid, np.arange(15) < 9)
        seen = 15 * window.number + np.arange(9)
        np.testing.assert_array_equal(stream.frames[:9, 0], seen)


def test_without_a_face_the_audio_alone_is_there():
    windows = Windows(BOTH, 1.0, 1.0)
    show(windows, [[face(0, row)] if row % 15 < 7 else [] for row in range(30)])
    for window in feed(windows, NOISE[: 2 * RATE]):
        (person,) = window.people
        assert person.number is None and person.gaps == {"video": NO_FACE}
        assert [*person.streams] == ["audio"]


def test_who_returns_to_a_place_is_the_same_person():
    windows = Windows(VIDEO, 1.0, 1.0, {"video"})
    away, longer = [[]] * 15 * 4, [[]] * 15 * 6
    here = [[face(0, 1)]] * 15
    show(windows, [*here, *away, *here, *longer, *here])
    windows.end()
    assert [[one.number for one in window.people] for window in windows.finished()] == [
        *[[0], *[[None]] * 4],
        *[[0], *[[None]] * 6],
        [1],
    ]


TALK = talk(6)
STILL = 9 + 0.1 * RNG.standard_normal(len(TALK.opening.times))


@pytest.fixture
def loudness(monkeypatch):
    """The loudness of the talk, whatever is heard."""
    monkeypatch.setattr("mmattn.media.windows.loudness_of", lambda audio: TALK.loudness)


@pytest.mark.parametrize("config", [BOTH, VIDEO], ids=["both", "video"])
@pytest.mark.parametrize("speaker", [0, 1, None])
def test_of_several_people_the_audio_is_that_of_who_speaks(loudness, config, speaker):
    mouths = [TALK.opening.frames[:, 0] if one == speaker else STILL for one in range(2)]
    seconds = TALK.opening.times[-1]
    windows = Windows(config, seconds, seconds)
    for time, *openings in zip(TALK.opening.times, *mouths, strict=True):
        windows.see(time, [face(200 * who, who, of) for who, of in enumerate(openings)])
    (window,) = feed(windows, NOISE[: round(seconds * RATE)])
    assert [one.number for one in window.people] == [0, 1]
    for one in window.people:
        np.testing.assert_array_equal(one.streams["video"].frames[:, 0], one.number)
        assert one.box[0] == 200 * one.number
        assert one.speaking == (None if speaker is None else one.number == speaker)
        if config is VIDEO:
            assert one.gaps == {} and [*one.streams] == ["video"]
            continue
        own = one.number == speaker
        assert ("audio" in one.streams) == own
        why = UNCLEAR if speaker is None else OTHER_SPEAKS
        assert one.gaps == ({} if own else {"audio": why})


def test_no_more_is_kept_than_the_oldest_window_needs():
    windows = Windows(BOTH, 3.0, 0.5)
    for second in range(60):
        windows.hear(second, NOISE[:RATE])
        for frame in range(15):
            windows.see(second + frame / 15, [face(0, 1)])
        list(windows.finished())
        assert len(windows._frames) <= 4 * 15 and len(windows._blocks) <= 5


def test_no_audio_at_all_is_a_gap():
    windows = Windows(BOTH, 1.0, 1.0, {"video"})
    show(windows, [[face(0, 1)]] * 16)
    windows.end()
    ((person,),) = (window.people for window in windows.finished())
    assert person.gaps == {"audio": NO_AUDIO} and person.speaking is None
