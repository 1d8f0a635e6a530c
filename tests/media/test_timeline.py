"""Timelines: each window as its clip is predicted, people, gaps, many recordings, files."""

import csv
import io
import json
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from scipy.io import wavfile

import mmattn
from benchmarks.timeline import repeat_clip
from mmattn.config import ExtractConfig
from mmattn.errors import UserError
from mmattn.media.sound import RATE, audio_blocks, read_audio
from mmattn.media.survey import survey
from mmattn.run.run import Clip, Failure
from mmattn.run.timeline import (
    Sliding,
    find_recordings,
    predict_recording,
    to_csv,
    to_srt,
)
from tests.media.talking import LEVELS, babble, envelope, pictures, write_clip
from tests.report.timelines import row

FPS = 15  # of recordings whose frames are all kept
LABELS = ("calm", "happy")


def timeline_of(rows, people: int = 0) -> dict:
    return {
        "settings": {"hop": 0.5},
        "classes": LABELS,
        "people": [{}] * people,
        "windows": rows,
    }


def test_subtitles_last_as_long_as_the_class_and_leave_gaps_out():
    rows = [
        *(row(k / 2, [0.6 + k / 10, 0.4 - k / 10]) for k in range(3)),
        row(1.5, [0.2, 0.8]),
        row(2.0, None, gap="silence"),
        row(2.5, [0.2, 0.8]),
    ]
    assert to_srt(timeline_of(rows)) == (
        "1\n00:00:01,250 --> 00:00:02,750\ncalm 70%\n\n"
        "2\n00:00:02,750 --> 00:00:03,250\nhappy 80%\n\n"
        "3\n00:00:03,750 --> 00:00:04,250\nhappy 80%\n"
    )


def test_subtitles_of_several_people_have_a_line_each():
    rows = [
        row(3600.0, [0.6, 0.4], 1, True),
        row(3600.0, [0.3, 0.7], 2, False),
        row(3600.5, None, 1, False, "another person speaks"),
        row(3600.5, [0.3, 0.7], 2, True),
    ]
    assert to_srt(timeline_of(rows, people=2)) == (
        "1\n01:00:01,250 --> 01:00:01,750\nPerson 1, speaking: calm 60%\nPerson 2: happy 70%\n\n"
        "2\n01:00:01,750 --> 01:00:02,250\nPerson 2, speaking: happy 70%\n"
    )


def test_the_table_has_a_row_a_window_and_person():
    rows = [row(0.0, [0.6, 0.4], 1, True), row(0.0, None, None, None, "no face, no guess")]
    assert [*csv.reader(io.StringIO(to_csv(timeline_of(rows, people=1))))] == [
        ["start", "end", "person", "speaking", "predicted", "calm", "happy", "gap"],
        ["0.0", "3.0", "1", "yes", "calm", "0.6", "0.4", ""],
        ["0.0", "3.0", "", "", "", "", "", "no face, no guess"],
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": 0.2}, r"--window 0\.2: expected 0\.5 to 60 seconds"),
        ({"hop": 4.0}, "--hop 4: expected 0.05 seconds to --window"),
        ({"hop": float("nan")}, "--hop nan"),
        ({"silence": 3.0}, "--silence 3: expected -120 to below 0 dB"),
    ],
)
def test_what_cannot_be_is_said(options, said):
    with pytest.raises(UserError, match=said):
        Sliding(**options).check()


def test_recordings_of_one_name_are_told_apart_by_their_folder_or_refused(tmp_path):
    for name in ("a/one.wav", "b/one.wav", "a/deep/two.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found, missing = find_recordings([tmp_path / "a", tmp_path / "none.wav"], tmp_path / "to")
    assert [one.target.relative_to(tmp_path / "to").as_posix() for one in found] == [
        "deep/two.timeline.json",
        "one.timeline.json",
    ]
    assert missing == [Failure(Clip(tmp_path / "none.wav"), "there is no such file")]
    both = [tmp_path / "a" / "one.wav", tmp_path / "b" / "one.wav"]
    with pytest.raises(UserError, match="would both become"):
        find_recordings(both, tmp_path)
    with pytest.raises(UserError, match="RECORDING"):
        find_recordings([], tmp_path)


@pytest.mark.parametrize("name", ["talking.mp4", "talking.flv", "talking.avi", "late.mkv"])
def test_blocks_of_audio_are_the_audio(talking, name):
    clip, _ = talking(name, **({"start_offset": -0.2} if name == "late.mkv" else {}))
    whole, blocks = read_audio(clip), list(audio_blocks(clip))
    assert len(blocks) > 20 and blocks[0].start == whole.start
    np.testing.assert_array_equal(np.concatenate([one.samples for one in blocks]), whole.samples)
    starts = [round((one.start - whole.start) * RATE) for one in blocks]
    assert starts == np.cumsum([0, *(len(one.samples) for one in blocks[:-1])]).tolist()


@pytest.mark.slow
def test_blocks_of_audio_are_of_the_channel_that_is_heard(tmp_path):
    """Inverted channels cancel each other out: one of them is used."""
    samples = np.stack([babble()[0][:44100], -babble()[0][:44100]], axis=1)
    wavfile.write(tmp_path / "inverted.wav", 44100, samples)
    plan = survey(tmp_path / "inverted.wav")
    found = np.concatenate([one.samples for one in audio_blocks(plan)])
    np.testing.assert_array_equal(found, read_audio(tmp_path / "inverted.wav").samples)
    assert np.abs(found).max() > 0.1
    assert [note for note in plan.notes if "cancel" in note] == plan.notes


class Steady:
    """A run of audio alone that predicts the loudness of a window."""

    class_names, trust = LABELS, ()

    def predict_streams(self, clips):
        (clip,) = clips
        loud = 1 / (1 + np.exp(-clip["audio"].frames.mean() - 5))
        return [type("Prediction", (), {"probabilities": np.array([loud, 1 - loud])})]


@pytest.mark.slow
def test_a_recording_of_audio_alone(tmp_path):
    quiet = np.concatenate([babble()[0], np.zeros(5 * 44100, np.float32), babble()[0]])
    wavfile.write(tmp_path / "talk.wav", 44100, quiet)
    config, seconds = ExtractConfig(audio={"audio": "log-mel"}, video={}), []
    plan = survey(tmp_path / "talk.wav")
    found = predict_recording(Steady(), config, plan, Sliding(2, 1), seconds.append)
    assert sum(seconds) == pytest.approx(plan.end, abs=0.11) and min(seconds) >= 0
    assert found["people"] == [] and found["seconds"] == pytest.approx(12.86, abs=0.01)
    assert [one["start"] for one in found["windows"]] == [*range(11)]
    gaps = [one["gap"] for one in found["windows"]]
    assert gaps[:4] == [""] * 4 and gaps[8:] == [""] * 3 and gaps[4:7] == ["silence"] * 3
    for one in found["windows"]:
        assert (one["probabilities"] is None) == (one["gap"] == "silence")


def lossless(path, frames, samples) -> None:
    """Write frames [T, H, W, 3] of 15 a second and audio [n] int16 of 16 kHz as they are."""
    with av.open(path, "w") as file:
        video = file.add_stream("ffv1", rate=FPS)
        video.height, video.width, video.pix_fmt = *frames[0].shape[:2], "bgr0"
        audio = file.add_stream("pcm_s16le", rate=RATE, layout="mono")
        packets = []
        for number, frame in enumerate(frames):
            shown = av.VideoFrame.from_ndarray(frame, format="rgb24")
            shown.pts, shown.time_base = number, Fraction(1, FPS)
            packets += video.encode(shown)
        heard = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
        heard.sample_rate, heard.pts, heard.time_base = RATE, 0, Fraction(1, RATE)
        packets += [*video.encode(None), *audio.encode(heard), *audio.encode(None)]
        file.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))


@pytest.mark.slow
def test_a_window_is_predicted_as_the_clip_that_is_cut_there(clip_run, talking, tmp_path):
    _, _, folder = clip_run
    source, _ = talking("talking.mp4", seconds=6.0, fps=FPS)
    with av.open(source) as file:
        frames = [one.to_ndarray(format="rgb24") for one in file.decode(video=0)]
    samples = np.rint(read_audio(source).samples * 32767).astype(np.int16)
    lossless(tmp_path / "all.mkv", frames, samples)
    run, sliding = mmattn.load(folder), Sliding(window=2.4, hop=0.4)
    config = run.extraction()
    windows = predict_recording(run, config, survey(tmp_path / "all.mkv"), sliding)["windows"]
    assert len(windows) >= 9 and all(one["person"] == 1 for one in windows)
    for k in (0, 1, 4, 8):
        cut = tmp_path / f"{k}.mkv"
        first, end = round(0.4 * k * RATE), round((0.4 * k + 2.4) * RATE)
        lossless(cut, frames[6 * k : 6 * k + 36], samples[first:end])
        expected = run.predict(cut)
        assert expected.missing == ()
        np.testing.assert_allclose(windows[k]["probabilities"], expected.probabilities, atol=2e-6)


def write_meeting(path, parts) -> None:
    """Two people side by side, as of `write_pair`.

    parts: who speaks (large, small, none) or nobody, where no face is seen, and seconds.
    """
    samples, rate = babble()
    empty = pictures((320, 320), 0, 0.0, 1.0, (0.0, 0.0))[0]
    frames, heard = [], []
    for who, seconds in parts:
        sound = np.resize(samples, round(seconds * rate))
        times = np.arange(round(seconds * FPS)) / FPS
        shown = np.rint(envelope(sound, rate, times) * (LEVELS - 1)).astype(int)
        for level in shown:
            halves = [empty, empty]
            if who != "nobody":
                halves = [
                    pictures((320, 320), 1, 0.0, scale, (0.0, 0.0))[level * (name == who)]
                    for name, scale in (("large", 1.0), ("small", 0.6))
                ]
            frames.append(np.hstack(halves))
        heard.append(sound * (who != "none"))
    times = np.arange(len(frames)) / FPS
    write_clip(path, frames, times, FPS, (np.concatenate(heard), rate, 0))


@pytest.mark.slow
def test_people_silence_and_nobody_at_all(commands, clip_run, tmp_path):
    _, _, folder = clip_run
    clip = tmp_path / "meeting.mp4"
    write_meeting(clip, [("large", 4), ("none", 4), ("small", 4), ("nobody", 6)])
    command = ("mmattn", "timeline", folder, clip, "--window", 3, "--hop", 1)
    commands.run(*command, "--to", tmp_path / "to")
    timeline = json.loads((tmp_path / "to" / "meeting.timeline.json").read_text())
    assert len(timeline["people"]) == 2
    assert all(one["portrait"].startswith("data:image/jpeg;base64,") for one in timeline["people"])

    def at(start):
        own = [one for one in timeline["windows"] if one["start"] == start]
        return [(one["person"], one["speaking"], one["gap"]) for one in own]

    assert at(0) == at(1) == [(1, True, ""), (2, False, "another person speaks")]
    assert at(5) == [(1, False, "silence"), (2, False, "silence")]
    assert at(8) == at(9) == [(1, False, "another person speaks"), (2, True, "")]
    assert at(13) == at(14) == [(None, None, "no face")]
    for one in timeline["windows"]:
        assert (one["probabilities"] is None) == bool(one["gap"])
    assert "Person 2, speaking: " in (tmp_path / "to" / "meeting.srt").read_text()
    commands.run(*command, "--to", tmp_path / "partial", "--partial", "--csv")
    assert not (tmp_path / "partial" / "meeting.srt").exists()
    timeline = json.loads((tmp_path / "partial" / "meeting.timeline.json").read_text())
    assert all(one["probabilities"] for one in timeline["windows"])


@pytest.mark.slow
def test_many_recordings_bad_ones_and_once_more(
    commands, clip_run, talking, lacking_clips, faulty_clips, tmp_path
):
    _, _, folder = clip_run
    clips, to = tmp_path / "clips", tmp_path / "to"
    (clips / "deep").mkdir(parents=True)
    (clips / "deep" / "good.mp4").write_bytes(talking("talking.mp4")[0].read_bytes())
    (clips / "text.mp4").write_bytes((faulty_clips / "text.mp4").read_bytes())
    (clips / "mute.mp4").write_bytes((lacking_clips / "mute.mp4").read_bytes())
    command = ("mmattn", "timeline", folder, clips, tmp_path / "none.mp4", "--to", to, "--srt")
    words = commands.run(*command, code=1)
    assert "3 of 4 recordings have no timeline" in words
    for said in ("no audio or video can be read", "there is no such file", "it has no audio"):
        assert words.count(said) == 1
    made = {path.relative_to(to).as_posix(): path.stat() for path in to.rglob("*.*")}
    assert {*made} == {"deep/good.timeline.json", "deep/good.srt"}
    (clips / "text.mp4").unlink()
    (clips / "mute.mp4").unlink()
    again = commands.run("mmattn", "timeline", folder, clips, "--to", to)
    assert "1 of 1 timelines" in again
    for name, before in made.items():
        assert (to / name).stat().st_mtime_ns == before.st_mtime_ns
    assert {path.name for path in to.rglob("good.*")} == {
        *("good.timeline.json", "good.srt", "good.csv", "good.html")
    }
    other = commands.run("mmattn", "timeline", folder, clips, "--to", to, "--hop", 1, code=2)
    assert "good.timeline.json was made with other settings (hop)" in other.replace("\n", " ")
    commands.run("mmattn", "timeline", folder, clips, "--to", to, "--partial", code=2)


def test_little_is_imported_and_large_blocks_are_given_back():
    script = (
        "import sys; from mmattn.run.timeline import start; from benchmarks.memory import "
        "megabytes; start(); assert 'scipy' not in sys.modules; "
        "kept = [bytes(3 << 20) + b'1' for _ in range(30)]; last = bytearray(1 << 10); "
        "before = megabytes(); del kept; print(before - megabytes())"
    )
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert int(output.stdout) > 80


@pytest.mark.slow
def test_memory_does_not_grow_with_the_recording(tmp_path):
    """Peak of a process that reads 3 and 12 minutes: decoding, features, windows."""
    peaks = []
    wavfile.write(tmp_path / "part.wav", 44100, babble()[0])
    for minutes in (3, 12):
        path = tmp_path / f"{minutes}.wav"
        repeat_clip(tmp_path / "part.wav", path, 60 * minutes)
        script = (
            "import resource, sys; from pathlib import Path; from mmattn.config import *; "
            "from mmattn.media.survey import survey; from mmattn.media.windows import *; "
            "config = ExtractConfig(audio={'audio': 'log-mel'}, video={}); "
            "windows = Windows(config, 3.0, 0.5, {'audio'}); "
            "plan = survey(Path(sys.argv[1])); count = sum(1 for _ in read_windows("
            "plan, windows, lambda *seen: None, lambda seconds: None)); "
            "print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        output = subprocess.run(
            [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
        )
        count, peak = map(int, output.stdout.split())
        assert count == pytest.approx(120 * minutes, abs=15)
        peaks.append(peak / 1024)
    assert peaks[1] - peaks[0] < 10  # all samples of 9 minutes would take 35 MB
