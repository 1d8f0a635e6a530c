import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from mmattn.media.decode import read_frames
from mmattn.media.sound import RATE, read_audio
from mmattn.media.survey import BadMedia, survey
from tests.media.talking import write_clip


def onset(samples: np.ndarray, rate: int) -> float:
    """Seconds of the first sample that is loud."""
    return np.flatnonzero(np.abs(samples) > 0.1)[0] / rate


@pytest.mark.parametrize("name", ["talking.mp4", "talking.flv", "talking.mkv", "talking.avi"])
def test_audio_and_frames_keep_their_times(talking, spoken, name):
    path, truth = talking(name)
    audio = read_audio(path)
    times = np.array([time for time, _ in read_frames(path, 100)])
    assert audio.rate == RATE and audio.samples.dtype == np.float32
    assert min(times[0], audio.start) == pytest.approx(0, abs=0.03)
    np.testing.assert_allclose(times, truth.times - truth.times[0] + times[0], atol=1e-3)
    # Speech begins as long after the first picture as it was put there.
    heard = audio.start + onset(audio.samples, audio.rate)
    assert heard - times[0] == pytest.approx(onset(*spoken), abs=0.03)
    assert not audio.silent


@pytest.mark.parametrize("name", ["late.mp4", "late.flv"])
@pytest.mark.parametrize("offset", [0.2, -0.2])
def test_a_stream_that_starts_late_is_late(talking, spoken, name, offset):
    path, _ = talking(name, start_offset=offset)
    audio, (first, _) = read_audio(path), next(read_frames(path, 30))
    assert min(audio.start, first) == pytest.approx(0, abs=0.03)
    assert first - audio.start == pytest.approx(offset, abs=0.035)


def test_frames_are_thinned_out_to_a_rate(talking):
    path, _ = talking("talking.mp4")
    every = [time for time, _ in read_frames(path, 30)]
    half = [time for time, _ in read_frames(path, 15)]
    np.testing.assert_allclose(half, every[::2])
    spaced = np.diff([time for time, _ in read_frames(path, 12)])
    assert spaced.min() >= 1 / 12 - 2e-3


def test_frames_are_rgb_in_their_place(tmp_path):
    picture = np.zeros((96, 128, 3), np.uint8)
    picture[:48, :64] = (255, 0, 0)
    picture[48:, 64:] = (0, 0, 255)
    path = tmp_path / "colours.mp4"
    write_clip(path, [picture] * 3, np.arange(3) / 10, 10, None)
    found = [one for _, one in read_frames(path, 30)]
    assert len(found) == 3 and found[0].shape == picture.shape
    assert np.abs(found[0].astype(int) - picture)[8:40, 8:56].max() < 40
    assert np.abs(found[0].astype(int) - picture)[56:88, 72:120].max() < 40


def test_what_a_clip_lacks(lacking_clips):
    assert list(read_frames(lacking_clips / "sound.mp4", 30)) == []
    assert list(read_frames(lacking_clips / "sound.wav", 30)) == []
    assert read_audio(lacking_clips / "mute.mp4") is None
    assert read_audio(lacking_clips / "silent.mp4").silent
    assert not read_audio(lacking_clips / "sound.wav").silent


def test_bad_files_say_what_is_wrong(faulty_clips, tmp_path):
    for name, words in (
        ("empty.mp4", "the file is empty"),
        ("text.mp4", "no audio or video can be read"),
        ("cut.mp4", "no audio or video can be read"),
        ("none.mp4", "No such file"),
    ):
        for read in (read_audio, lambda path: list(read_frames(path, 30))):
            with pytest.raises(BadMedia, match=words):
                read(faulty_clips / name)


def test_a_header_that_promises_more_than_there_is(faulty_clips):
    path = faulty_clips / "two-hours.flv"
    found = read_audio(path)
    assert found.end == pytest.approx(1, abs=0.1)
    plan = survey(path)
    assert plan.claimed == pytest.approx(7200, abs=1)
    with pytest.raises(BadMedia, match=r"cut short: its header says 7200.* ends at 1\.\d s"):
        plan.check_length()
    # Of an mp4 the list of its frames is believed, and that is right.
    assert survey(faulty_clips / "two-hours.mp4").claimed == pytest.approx(1, abs=0.1)
    for claimed, refused in ((None, False), (1.5, False), (1.7, True)):
        with pytest.raises(BadMedia) if refused else nullcontext():
            replace(plan, claimed=claimed).check_length()


def test_lost_packets_are_a_silence(talking, spoken, tmp_path):
    path, lossy = talking("talking.mkv")[0], tmp_path / "lossy.mkv"
    with av.open(path) as whole, av.open(lossy, "w") as part:
        (source,) = whole.streams.audio
        target = part.add_stream_from_template(source)
        for packet in whole.demux(source):
            if packet.dts is not None and not 1 <= packet.pts * packet.time_base < 2:
                packet.stream = target
                part.mux(packet)
    before, after = read_audio(path), read_audio(lossy)
    assert after.end == pytest.approx(before.end, abs=0.01)
    assert np.abs(after.samples[int(1.1 * RATE) : int(1.9 * RATE)]).max() == 0
    own, other = (one.samples[int(2.5 * RATE) : int(3.5 * RATE)] for one in (before, after))
    both = np.correlate(np.pad(own, 800), other, "valid")
    assert abs(both.argmax() - 800) < 0.03 * RATE


def test_audio_whose_rate_changes(tmp_path):
    """Two recordings in one file, as some devices make them."""
    content = b""
    for rate in (44100, 22050):
        times = np.arange(rate) / rate
        audio = np.sin(2 * np.pi * 440 * times).astype(np.float32), rate, 0
        write_clip(tmp_path / "part.mkv", [], np.zeros(0), 30, audio)
        with av.open(tmp_path / "part.mkv") as source, av.open(tmp_path / "a.aac", "w") as file:
            stream = file.add_stream_from_template(source.streams.audio[0])
            for packet in source.demux(audio=0):
                if packet.dts is not None:
                    packet.stream = stream
                    file.mux(packet)
        content += (tmp_path / "a.aac").read_bytes()
    (tmp_path / "both.aac").write_bytes(content)
    found = read_audio(tmp_path / "both.aac")
    for part in (found.samples[4000:12000], found.samples[-12000:-4000]):
        assert np.abs(np.fft.rfft(part)).argmax() * RATE / len(part) == pytest.approx(440, abs=4)


def test_a_list_of_other_files_is_no_clip(talking, tmp_path):
    path, _ = talking("short.mp4", seconds=1.0)
    trap = tmp_path / "trap.mp4"
    trap.write_text(f"ffconcat version 1.0\nfile {path}\n")
    with pytest.raises(BadMedia, match="no audio or video can be read"):
        read_audio(trap)


def test_names_need_no_care(oddly_named_clips):
    for path in oddly_named_clips.iterdir():
        assert read_audio(path).end == pytest.approx(1, abs=0.1), path.name


def test_ravdess_audio_and_video_are_delayed_alike():
    """Their mp4 delays both by a picture; the wave file of a take starts with its first picture."""
    path = _real("ravdess_clips/Actor_01/01-01-01-01-01-01-01.mp4")
    (first, _), audio = next(read_frames(path, 30)), read_audio(path)
    take = read_audio(_real("ravdess_audio/Actor_01/03-01-01-01-01-01-01.flac"))
    both = np.correlate(audio.samples, take.samples[8000:-8000], "valid")
    delay = (both.argmax() - 8000) / RATE
    assert delay == pytest.approx(0.0333, abs=1e-3)
    assert first == pytest.approx(delay, abs=1e-3)


def test_nothing_is_wrong_with_a_real_clip():
    """Its last two frames come out of the decoder in the wrong order."""
    plan = survey(_real("ravdess_clips/Actor_01/01-01-01-01-01-01-01.mp4"))
    times = [time for time, _ in read_frames(plan, 1000)]
    assert (len(times), *times[:: len(times) - 1]) == pytest.approx((98, 0.0334, 3.3033), abs=1e-3)
    read_audio(plan)
    plan.check_length()
    assert plan.notes == []


def _real(name: str) -> Path:
    folder = os.environ.get("MMATTN_RAVDESS")
    if not folder or not (Path(folder) / name).exists():
        pytest.skip("MMATTN_RAVDESS does not name a folder with RAVDESS's clips")
    return Path(folder) / name
