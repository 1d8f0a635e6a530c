"""What a page of `mmattn live` is answered: the same as `mmattn predict` says, in time."""

import csv
import io
import json
import math

import numpy as np
import pytest
from PIL import Image

import mmattn
from mmattn.data.feature_file import read_features
from mmattn.media.decode import read_frames
from mmattn.media.sound import RATE, read_audio
from mmattn.run.run import Clip, Run
from mmattn.run.timeline import Sliding
from mmattn.server.session import AUDIO, FRAME, HEADER, BadMessage, Recording, Session, warm_up
from tests.media.talking import babble, write_pair
from tests.server.talking_run import face_models, talking_run  # noqa: F401

pytestmark = pytest.mark.slow
BLOCK = 640
START = 12345.6  # ms on the page's clock when it begins
BOTH = ("audio", "video")


@pytest.fixture(scope="module")
def run(talking_run) -> Run:  # noqa: F811
    return mmattn.load_run(talking_run.run)


def jpeg(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def message(kind: int, seconds: float, content: bytes) -> bytes:
    return HEADER.pack(kind, START + 1000 * seconds) + content


def messages(clip, kinds=BOTH) -> list[bytes]:
    """A clip as a page would send it."""
    sent = []
    if "audio" in kinds:
        samples = np.rint(32767 * read_audio(clip).samples).astype("<i2")
        for first in range(0, len(samples) - BLOCK + 1, BLOCK):
            block = samples[first : first + BLOCK].tobytes()
            sent.append((first / RATE, AUDIO, block))
    if "video" in kinds:
        sent += [(time, FRAME, jpeg(frame)) for time, frame in read_frames(clip, 15.0)]
    return [message(kind, time, content) for time, kind, content in sorted(sent)]


def session(run: Run, kinds=BOTH, window=3.0, hop=0.25) -> Session:
    return Session(run, Sliding(window, hop), kinds, Recording(run))


def play(to: Session, sent: list[bytes]) -> tuple[list[dict], list[dict]]:
    """The answers to frames and those for windows, asked for after each message."""
    frames, windows = [], []
    for one in sent:
        frames += to.take([one])
        windows += filter(None, [to.predict()])
    return frames, windows


@pytest.mark.parametrize("name", ["talking", "still"])
def test_a_window_gets_what_predict_says_of_the_same_seconds(run, talking_run, name):  # noqa: F811
    clip = getattr(talking_run, name)
    frames, windows = play(session(run), messages(clip))
    starts = [one["start"] for one in windows]
    assert starts == pytest.approx([START + 250 * number for number in range(4)])
    for one in windows:
        start = (one["start"] - START) / 1000
        [same], _ = run.predict_all([Clip(clip, start, start + 3.0)])
        assert one["predicted"] == same.predicted == name
        np.testing.assert_allclose(one["probabilities"], same.probabilities, atol=0.08)  # JPEG
        assert one["streams"].keys() == same.streams.keys() == {*BOTH}
        for modality, view in same.streams.items():
            shown = one["streams"][modality]
            assert len(shown["times"]) == pytest.approx(len(view.times), abs=2)
            assert shown["times"][0] >= START and shown["times"][-1] <= one["end"]
            assert np.mean(shown["ratio"]) == pytest.approx(1.0, abs=0.01)
        assert one["notes"] == [] and one["left_out"] == 0
    for one in frames:  # the eyes are where they are in the photograph, for all its scales
        assert one["size"] == (640, 480)
        points = np.reshape(one["mesh"], (468, 2))
        assert np.all(np.abs(points.mean(axis=0) - (320, 240)) < 60)
    json.dumps([frames, windows], allow_nan=False)


def test_what_one_modality_alone_gives(run, talking_run):  # noqa: F811
    for kind, other in (BOTH, BOTH[::-1]):
        _, windows = play(session(run, [kind]), messages(talking_run.talking, [kind]))
        assert windows and all(one["streams"].keys() == {kind} for one in windows)
        assert windows[0]["notes"] == [f"no {other}: predicted from {kind} only"]


def test_silence_without_a_face_is_a_gap(run):
    grey, quiet = jpeg(np.full((480, 640, 3), 128, np.uint8)), bytes(2 * BLOCK)
    sent = [(k * 0.04, AUDIO, quiet) for k in range(80)] + [
        (k / 15, FRAME, grey) for k in range(48)
    ]
    frames, windows = play(session(run), [message(b, a, c) for a, b, c in sorted(sent)])
    assert not any(one["mesh"] for one in frames)
    assert windows[0]["predicted"] is None and windows[0]["streams"] == {}
    assert windows[0]["notes"] == ["silence; no face"]


def test_windows_that_come_while_others_are_predicted_are_left_out(run, talking_run):  # noqa: F811
    one, sent = session(run, window=2.0), messages(talking_run.talking)
    one.take(sent)  # all at once: 3.9 s
    answer = one.predict()
    assert one.predict() is None
    assert answer["start"] == pytest.approx(START + 1750)
    assert answer["left_out"] == 7


def test_a_break_leaves_no_windows_out(run, talking_run):  # noqa: F811
    one, sent = session(run, window=2.0), messages(talking_run.talking)
    play(one, sent)
    later = [
        HEADER.pack(kind, at + 60_000) + content[HEADER.size :]
        for content in sent
        for kind, at in [HEADER.unpack_from(content)]
    ]
    _, windows = play(one, later)
    assert windows[-1]["predicted"] == "talking" and windows[-1]["left_out"] == 0
    assert windows[0]["start"] > START + 50_000


def test_a_camera_that_stops_is_not_waited_for(run, talking_run):  # noqa: F811
    sent = [
        one
        for one in messages(talking_run.talking)
        if one[0] == AUDIO or HEADER.unpack_from(one)[1] < START + 500
    ]
    _, windows = play(session(run, window=2.0, hop=0.5), sent)
    assert len(windows) >= 2
    assert windows[-1]["predicted"] is None and windows[-1]["notes"] == ["no face"]


def test_of_two_people_the_one_who_speaks_is_predicted_and_recorded(run, tmp_path):
    clip = tmp_path / "pair.mp4"
    write_pair(clip, babble(), "small")
    one = session(run, hop=3.0)
    _, [window] = play(one, messages(clip))
    assert window["notes"] == ["2 people are visible, the prediction is of the speaker"]
    features, table = one.recording.save(tmp_path)
    rows = {row["speaking"]: row for row in csv.DictReader(table.read_text().splitlines())}
    assert rows["no"]["gap"] == "another person speaks"
    assert rows["yes"]["gap"] == "" and rows["yes"]["predicted"] == window["predicted"]
    [same], _ = run.predict_all([Clip(features, 0.0, 3.0)])
    np.testing.assert_allclose(same.probabilities, window["probabilities"], atol=0.02)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        HEADER.pack(FRAME, 0.0),
        HEADER.pack(3, 0.0) + bytes(2),
        HEADER.pack(AUDIO, math.nan) + bytes(2),
        HEADER.pack(AUDIO, math.inf) + bytes(2),
        HEADER.pack(AUDIO, 0.0) + bytes(3),
        HEADER.pack(FRAME, 0.0) + b"no JPEG",
        HEADER.pack(FRAME, 0.0) + jpeg(np.zeros((10, 3000, 3), np.uint8)),
        HEADER.pack(FRAME, 0.0) + jpeg(np.zeros((480, 640, 3), np.uint8))[:2000],
    ],
)
def test_what_no_page_sends_is_refused(run, content):
    with pytest.raises(BadMessage):
        session(run).take([content])


def test_what_a_page_has_not_announced_is_refused(run):
    with pytest.raises(BadMessage, match="kind 1"):
        session(run, ["audio"]).take([message(FRAME, 0.0, b"x")])


def test_a_recording_is_a_feature_file_and_a_table(run, talking_run, tmp_path):  # noqa: F811
    one = session(run)
    _, windows = play(one, messages(talking_run.talking))
    features, table = one.recording.save(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([features, table])
    streams, made_by = read_features(features)
    assert made_by == run.extractor
    assert streams["audio"].times[-1] == pytest.approx(3.9, abs=0.1)
    found, same = run.predict(features), run.predict(talking_run.talking)
    assert found.predicted == same.predicted == "talking"
    np.testing.assert_allclose(found.probabilities, same.probabilities, atol=0.08)
    rows = [*csv.DictReader(table.read_text().splitlines())]
    assert [(float(row["start"]), float(row["end"]), row["predicted"]) for row in rows] == [
        (k / 4, k / 4 + 3, "talking") for k in range(len(windows))
    ]
    shares = [one["probabilities"][0] for one in windows]
    assert [float(row[run.class_names[0]]) for row in rows] == pytest.approx(shares, abs=1e-6)


def test_of_too_little_nothing_is_written(run, tmp_path):
    one = session(run)
    one.take([message(AUDIO, 0.0, bytes(2 * BLOCK))])
    assert one.recording.save(tmp_path) == [*tmp_path.iterdir()] == []


def test_the_first_window_is_not_compiled_when_it_comes(run, talking_run, monkeypatch):  # noqa: F811
    import jax

    warm_up(run, 1.0)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "compile" in name else None
    )
    play(session(run, window=1.0), messages(talking_run.talking)[:60])
    jax.monitoring.clear_event_listeners()
    assert not compiled
