"""Clips as other devices and editors write them: what is read must be what a player shows."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mmattn.errors import Incomplete
from mmattn.media.audio import LogMel
from mmattn.media.decode import read_frames
from mmattn.media.extract import extract_clip
from mmattn.media.probe import probe_clip
from mmattn.media.sound import RATE, read_audio
from mmattn.media.survey import BadMedia, survey

SPEECH = 0.3 * np.random.default_rng(0).standard_normal(2 * RATE).clip(-3, 3).astype(np.float32) / 3


def write_sound(path: Path, *tracks: np.ndarray, codec="pcm_s16le", layout="mono", rate=RATE):
    """Encode tracks of samples [channels, n]; each starts at 0."""
    with av.open(path, "w") as file:
        streams = [file.add_stream(codec, rate=rate, layout=layout) for _ in tracks]
        packets = []
        for stream, samples in zip(streams, tracks, strict=True):
            whole = av.AudioFrame.from_ndarray(np.float32(samples), "fltp", layout)
            whole.sample_rate, whole.pts = rate, 0
            packets += stream.encode(whole) + stream.encode(None)
        file.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))


def write_video(path: Path, pictures, codec="libx264", fps=30, aspect=None, **options):
    """Encode pictures [H, W, 3], one every 1 / fps seconds."""
    with av.open(path, "w") as file:
        stream = file.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def remux(source: Path, target: Path, change, **options) -> None:
    """Copy the packets for which `change(packet, seconds)` is true; it may alter them."""
    with av.open(source) as file, av.open(target, "w", options=options) as other:
        streams = {one.index: other.add_stream_from_template(one) for one in file.streams}
        for packet in file.demux():
            if packet.size and change(packet, float(packet.pts * packet.time_base)):
                packet.stream = streams[packet.stream_index]
                other.mux(packet)


def numbered(count: int) -> list[np.ndarray]:
    """Grey frames whose left half tells the tens of their number, the right half the units."""
    digits = np.stack(np.divmod(np.arange(count), 10), axis=1)
    rows = np.repeat((30 + 20 * digits).astype(np.uint8), 32, axis=1)
    return [np.broadcast_to(row[None, :, None], (64, 64, 3)).copy() for row in rows]


def number_of(picture: np.ndarray) -> int:
    tens, units = ((picture[8:56, x : x + 16].mean() - 30) / 20 for x in (8, 40))
    return 10 * round(tens) + round(units)


def log_mel_difference(one: Path, other: Path) -> float:
    """The mean over all values."""
    frames = [LogMel()(read_audio(path).samples, RATE).frames for path in (one, other)]
    return float((frames[0] - frames[1]).mean())


@pytest.mark.parametrize(
    ("name", "codec", "said"),
    [
        ("h264.avi", "libx264", True),
        ("mpeg4.avi", "mpeg4", True),
        ("h264.mp4", "libx264", False),
        ("h264.ts", "libx264", False),
        ("mpeg2.mpg", "mpeg2video", False),
        ("raw.h264", "libx264", False),
    ],
)
def test_frames_come_in_order_and_evenly_spaced(tmp_path, name, codec, said):
    options = (
        {"qp": "1", "bf": "3"} if codec == "libx264" else {"bf": "2", "qmin": "1", "qmax": "2"}
    )
    write_video(tmp_path / name, numbered(90), codec, **options)
    plan = survey(tmp_path / name)
    seen = [(time, number_of(one)) for time, one in read_frames(plan, 1000)]
    times, numbers = map(np.array, zip(*seen, strict=True))
    np.testing.assert_array_equal(numbers, np.arange(90))
    np.testing.assert_allclose(times - times[0], numbers / 30, atol=2e-3)
    assert not said or times[0] == 0  # as the audio
    assert any("no presentation times" in note for note in plan.notes) == said


@pytest.mark.parametrize("name", ["wide.mp4", "wide.mkv", "wide.avi"])
@pytest.mark.parametrize("aspect", [Fraction(64, 45), Fraction(3, 4)])
def test_pixels_become_square(tmp_path, name, aspect):
    """A white square is one again."""
    picture = np.zeros((144, 180, 3), np.uint8)
    wide = round(72 / aspect)
    picture[36:108, 60 : 60 + wide] = 255
    write_video(tmp_path / name, [picture] * 5, "mpeg4", aspect=aspect)
    plan = survey(tmp_path / name)
    (_, found), *_ = read_frames(plan, 30)
    height, width = ((found.mean(2) > 128).any(axis=axis).sum() for axis in (1, 0))
    assert width == pytest.approx(height, rel=0.03)
    assert min(found.shape[:2]) >= 144
    assert f"pixels of {aspect} made square: 180 x 144 stretched" in plan.done["video"]


def test_an_aspect_that_cannot_be_is_left(tmp_path):
    write_video(tmp_path / "a.mp4", numbered(5), aspect=Fraction(5, 1))
    plan = survey(tmp_path / "a.mp4")
    assert {frame.shape for _, frame in read_frames(plan, 30)} == {(64, 64, 3)}
    assert "pixels of 5, by the header, are taken for square" in plan.done["video"]


@pytest.mark.parametrize(("layout", "count"), [("stereo", 2), ("5.1", 6), ("quad", 4)])
def test_equal_channels_are_as_loud_as_one(tmp_path, layout, count):
    write_sound(tmp_path / "mono.wav", SPEECH[None])
    write_sound(tmp_path / "all.wav", np.tile(SPEECH, (count, 1)), layout=layout)
    assert log_mel_difference(tmp_path / "all.wav", tmp_path / "mono.wav") == pytest.approx(
        0, abs=0.01
    )


def test_the_mean_of_other_channels(tmp_path):
    """Of 5.1, in which the voice is in the middle alone."""
    channels = np.zeros((6, len(SPEECH)), np.float32)
    channels[2] = SPEECH
    write_sound(tmp_path / "middle.wav", channels, layout="5.1")
    plan = survey(tmp_path / "middle.wav")
    np.testing.assert_allclose(read_audio(plan).samples, SPEECH / 6, atol=1e-4)
    assert "mean of 6 channels" in plan.done["audio"] and plan.notes == []


@pytest.mark.parametrize(("gain", "used"), [(-1.0, 1), (-0.6, 2)])
def test_channels_that_cancel_each_other_out_are_said(tmp_path, gain, used):
    write_sound(tmp_path / "mono.wav", SPEECH[None])
    write_sound(tmp_path / "both.wav", np.stack([gain * SPEECH, SPEECH]), layout="stereo")
    plan = survey(tmp_path / "both.wav")
    found = read_audio(plan).samples
    np.testing.assert_allclose(found, SPEECH * (gain if used == 1 else 1), atol=1e-4)
    assert "cancel each other out" in plan.notes[0]
    assert f"channel {used} of 2 channels" in plan.done["audio"]


def test_channels_unlike_each_other_do_not_cancel(tmp_path):
    both = np.stack([SPEECH, SPEECH[::-1]])
    write_sound(tmp_path / "both.wav", both, layout="stereo")
    plan = survey(tmp_path / "both.wav")
    found = read_audio(plan).samples
    np.testing.assert_allclose(found, both.mean(0), atol=1e-4)
    assert plan.notes == []


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.aiff", "pcm_s16be"),
        ("a.au", "pcm_s16be"),
        ("a.caf", "pcm_s16be"),
        ("a.w64", "pcm_s16le"),
        ("a.mp3", "libmp3lame"),
        ("a.ogg", "flac"),
        ("a.wav", "adpcm_ms"),
        ("a.m4a", "aac"),
        ("a.asf", "mp2"),
        ("a.mka", "flac"),
        ("a.mp2", "mp2"),
    ],
)
def test_whatever_ffmpeg_decodes_is_read(tmp_path, name, codec):
    write_sound(tmp_path / name, SPEECH[None], codec=codec)
    plan = survey(tmp_path / name)
    audio = read_audio(plan)
    plan.check_length()
    assert audio.end == pytest.approx(2, abs=0.2) and not audio.silent
    assert list(read_frames(plan, 30)) == []


@pytest.mark.slow
def test_clips_of_several_recorders_in_one_folder(commands, all_models, tmp_path):
    codecs = {"a.mp4": "aac", "b.m4v": "aac", "c.mts": "mp2", "d.m4a": "aac", "e.mpg": "mp2"}
    codecs |= {"f.3gp": "aac", "g.mp3": "libmp3lame", "h.aiff": "pcm_s16be"}
    (tmp_path / "clips").mkdir()
    for name, codec in codecs.items():
        write_sound(tmp_path / "clips" / name, SPEECH[None], codec=codec)
    commands.run("mmattn", "extract", tmp_path / "clips", "--to", tmp_path / "features")
    found = {path.stem for path in (tmp_path / "features").glob("*.npz")}
    assert found == {name.partition(".")[0] for name in codecs}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"),
        ("a.mp4", "ffconcat version 1.0\nfile '{}'\n"),
        ("a.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 4 RTP/AVP 0\n"),
    ],
)
def test_nothing_but_the_clip_is_opened(tmp_path, name, content):
    write_sound(tmp_path / "other.mp3", SPEECH[None], codec="libmp3lame")
    (tmp_path / name).write_text(content.format("other.mp3"))
    with pytest.raises(BadMedia, match="no audio or video can be read"):
        read_audio(tmp_path / name)


def test_a_length_that_is_guessed_is_no_promise(tmp_path):
    """An MP3 of variable bit rate that begins quietly and does not tell its length."""
    quiet = np.concatenate([1e-3 * SPEECH, *[SPEECH] * 4])[None]
    with av.open(tmp_path / "a.mp3", "w", options={"write_xing": "0"}) as file:
        stream = file.add_stream("libmp3lame", rate=RATE, layout="mono", options={"q": "2"})
        whole = av.AudioFrame.from_ndarray(quiet, "fltp", "mono")
        whole.sample_rate = RATE
        stream.codec_context.qscale = True
        file.mux(stream.encode(whole) + stream.encode(None))
    plan = survey(tmp_path / "a.mp3")
    assert plan.claimed is None
    assert read_audio(tmp_path / "a.mp3").end == pytest.approx(10, abs=0.1)


@pytest.mark.parametrize("name", ["a.avi", "a.mkv"])
def test_half_a_file_is_cut_short(tmp_path, name):
    write_video(tmp_path / name, numbered(90), "mpeg4")
    content = (tmp_path / name).read_bytes()
    survey(tmp_path / name).check_length()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(BadMedia, match=r"cut short: its header says 3\.0 s, it ends at [01]\.\d s"):
        survey(tmp_path / name).check_length()


@pytest.mark.parametrize("name", ["late.mkv", "late.ts"])
def test_a_recording_that_starts_between_key_frames(tmp_path, name):
    """Its first packets give no frames, and its times do not start at 0."""
    write_video(tmp_path / "a.mp4", numbered(90), fps=30, g="30", bf="2")
    late = tmp_path / name
    remux(tmp_path / "a.mp4", late, lambda _, time: time > 0.7, avoid_negative_ts="disabled")
    plan = survey(late)
    plan.check_length()
    frames = list(read_frames(plan, 30))
    numbers = [number_of(picture) for _, picture in frames]
    assert numbers == [*range(numbers[0], 90)] and numbers[0] in (29, 30)
    times = np.array([time for time, _ in frames])
    assert np.ptp(times - np.array(numbers) / 30) < 2e-3
    assert times[0] == pytest.approx((numbers[0] - 22) / 30, abs=0.04)  # frame 22 is the first kept


@pytest.mark.parametrize("name", ["a.mp3", "a.ts", "a.flac"])
def test_what_cannot_be_decoded_is_left_out(tmp_path, name):
    codec = {"a.mp3": "libmp3lame", "a.ts": "mp2", "a.flac": "flac"}[name]
    write_sound(tmp_path / name, np.tile(SPEECH, 2)[None], codec=codec)
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2 :: 97] = bytes(len(content[len(content) // 2 :: 97]))
    (tmp_path / name).write_bytes(content)
    plan = survey(tmp_path / name)
    audio = read_audio(plan)
    assert audio.end > 1.5
    if name == "a.flac":
        np.testing.assert_allclose(audio.samples[:24000], SPEECH[:24000], atol=1e-4)
    assert any("of its audio cannot be decoded: left out" in note for note in plan.notes)


def test_of_two_videos_the_one_with_more_frames_is_used(tmp_path):
    """The first is the picture of a few seconds that some recorders put there."""
    with av.open(tmp_path / "a.mkv", "w") as file:
        streams = [file.add_stream("mpeg4", rate=30) for _ in range(2)]
        for stream in streams:
            stream.width = stream.height = 64
        for number, picture in enumerate(numbered(30)):
            for stream in streams if not number else streams[1:]:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 30)
                file.mux(stream.encode(frame))
        for stream in streams:
            file.mux(stream.encode(None))
    plan = survey(tmp_path / "a.mkv")
    assert len(list(read_frames(plan, 30))) == 30
    assert plan.notes[-1] == "its video is that of stream 1, which has the most frames"


@pytest.mark.slow
def test_subtitles_may_outlast_the_clip(tmp_path, talking):
    path = talking("talking.mkv")[0]
    (tmp_path / "a.srt").write_text("1\n00:00:03,000 --> 00:00:09,000\nby the door\n")
    with (
        av.open(path) as clip,
        av.open(tmp_path / "a.srt") as text,
        av.open(tmp_path / "a.mkv", "w") as both,
    ):
        streams = {
            one: both.add_stream_from_template(one) for file in (clip, text) for one in file.streams
        }
        for packet in (*clip.demux(), *text.demux()):
            if packet.size:
                packet.stream = streams[packet.stream]
                both.mux(packet)
    plan = survey(tmp_path / "a.mkv")
    assert [track.kind for track in plan.tracks] == ["video", "audio", "subtitle"]
    assert plan.claimed is None or plan.claimed == pytest.approx(3.93, abs=0.1)
    plan.check_length()


def test_what_an_edit_list_hides_is_not_used(tmp_path, talking):
    """The first 1.5 s of a clip, cut off by a stream copy."""
    path, cut = talking("talking.mp4")[0], tmp_path / "cut.mp4"

    def shift(packet, seconds):
        by = round(Fraction(3, 2) / packet.time_base)
        packet.pts, packet.dts = packet.pts - by, packet.dts - by
        return True

    remux(path, cut, shift)
    plan = survey(cut)
    assert plan.edits and not survey(path).edits
    before, after = read_audio(path), read_audio(plan)
    assert after.start == pytest.approx(0, abs=0.03)
    assert after.end == pytest.approx(before.end - 1.5, abs=0.03)
    plan.check_length()
    own = before.samples[round((1.5 + after.start - before.start) * RATE) :][: 2 * RATE]
    np.testing.assert_allclose(after.samples[800 : 2 * RATE], own[800:], atol=0.02)
    whole, kept = (np.array([t for t, _ in read_frames(one, 100)]) for one in (path, cut))
    np.testing.assert_allclose(kept, whole[whole >= 1.5 - 1e-3] - 1.5, atol=2e-3)


@pytest.mark.parametrize("share", [0.99, 1.01])
def test_samples_and_timestamps_that_drift_apart(tmp_path, share):
    """Clicks every second stay within 50 ms of their timestamps, early or late."""
    clicks = np.zeros(20 * RATE, np.float32)
    clicks[RATE // 2 :: RATE] = 0.9
    write_sound(tmp_path / "even.mkv", clicks[None], codec="flac")

    def stretch(packet, seconds):
        packet.pts = packet.dts = round(packet.pts * share)
        return True

    remux(tmp_path / "even.mkv", tmp_path / "drift.mkv", stretch)
    plan = survey(tmp_path / "drift.mkv")
    audio = read_audio(plan)
    assert audio.end == pytest.approx(20 * share, abs=0.05)
    loud = np.flatnonzero(np.abs(audio.samples) > 0.3) / RATE
    due = share * (0.5 + np.arange(20))
    late = [np.abs(loud - time).min() for time in due]
    assert np.sum(np.array(late) < 0.05) >= 18  # one may lie in what is left out
    assert ("longer than its timestamps" if share < 1 else "lacks") in plan.notes[0]


def test_an_offset_of_all_samples_is_no_sound(tmp_path):
    """Nor does it hide that channels cancel each other out."""
    flat = np.full((1, 2 * RATE), 0.01, np.float32)
    write_sound(tmp_path / "two.mkv", flat, SPEECH[None])
    plan = survey(tmp_path / "two.mkv")
    np.testing.assert_allclose(read_audio(plan).samples, SPEECH, atol=1e-4)
    both = np.stack([SPEECH, -SPEECH]) + 0.03
    write_sound(tmp_path / "inverted.wav", both, layout="stereo")
    plan = survey(tmp_path / "inverted.wav")
    samples = read_audio(plan).samples
    assert np.abs(samples - 0.03).max() == pytest.approx(np.abs(SPEECH).max(), abs=1e-3)
    assert "cancel each other out" in plan.notes[0]


def test_the_first_track_that_can_be_heard_is_used(tmp_path):
    silent, voice = np.zeros((1, 2 * RATE), np.float32), SPEECH[None]
    write_sound(tmp_path / "two.mkv", silent, voice)
    plan = survey(tmp_path / "two.mkv")
    np.testing.assert_allclose(read_audio(plan).samples, SPEECH, atol=1e-4)
    assert plan.notes == ["its audio is that of stream 1, not of stream 0: it is silent"]
    write_sound(tmp_path / "first.mkv", voice, -voice)
    plan = survey(tmp_path / "first.mkv")
    np.testing.assert_allclose(read_audio(plan).samples, SPEECH, atol=1e-4)
    assert plan.notes == []
    write_sound(tmp_path / "none.mkv", silent, silent)
    assert read_audio(tmp_path / "none.mkv").silent


def test_a_track_that_cannot_be_decoded_is_passed_over(tmp_path):
    write_sound(tmp_path / "two.mkv", SPEECH[None], SPEECH[None])
    content = (tmp_path / "two.mkv").read_bytes()
    (tmp_path / "odd.mkv").write_bytes(content.replace(b"A_PCM/INT/LIT", b"A_ODD/INT/LIT", 1))
    plan = survey(tmp_path / "odd.mkv")
    np.testing.assert_allclose(read_audio(plan).samples, SPEECH, atol=1e-4)
    assert plan.notes[0].startswith("its audio is that of stream 1, not of stream 0: ")


def test_what_makes_features_worse_is_noted(tmp_path):
    write_sound(tmp_path / "narrow.wav", SPEECH[None, : 8000 * 2], rate=8000)
    plan = survey(tmp_path / "narrow.wav")
    read_audio(plan)
    assert "its audio of 8000 Hz has nothing above 4 kHz" in plan.notes[0]
    for light, dark in ((1.0, False), (0.05, True)):
        ramp = np.linspace(0, 255 * light, 64).astype(np.uint8)
        picture = np.broadcast_to(ramp[None, :, None], (64, 64, 3)).copy()
        write_video(tmp_path / "light.mp4", [picture] * 5)
        plan = survey(tmp_path / "light.mp4")
        list(read_frames(plan, 30))
        assert [note[:17] for note in plan.notes] == ["its video is dark"] * dark


def test_hdr_is_noted(tmp_path):
    with av.open(tmp_path / "hdr.mp4", "w") as file:
        stream = file.add_stream("libx264", rate=30)
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p10le"
        stream.codec_context.color_trc = 16
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 200, np.uint8), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            frame = frame.reformat(format="yuv420p10le")
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    plan = survey(tmp_path / "hdr.mp4")
    list(read_frames(plan, 30))
    assert plan.notes == ["its video is HDR (PQ), not converted: colours look flat"]


def test_a_probe_is_one_screen(talking, tmp_path, caplog):
    path, _ = talking("talking.mp4")
    with caplog.at_level("INFO", "mmattn"):
        probe_clip(path, 15)
        with pytest.raises(Incomplete, match="No such file"):
            probe_clip(tmp_path / "none.mp4", 15)
    lines = "\n".join(caplog.messages).splitlines()
    text = "\n".join(lines)
    assert len(lines) < 24 and max(map(len, lines)) <= 100
    assert "h264, 320 x 320, 30 fps" in text and "44100 to 16000 Hz" in text
    assert "Possible problems" in text


def test_a_clip_whose_audio_cannot_be_decoded_has_its_video(tmp_path, talking, config):
    content = talking("talking.mkv")[0].read_bytes()
    (tmp_path / "odd.mkv").write_bytes(content.replace(b"A_AAC", b"A_ODD"))
    found = extract_clip(tmp_path / "odd.mkv", config)
    assert list(found.streams) == ["video"]
    assert found.notes == ("its audio is of an unknown codec", "it has no audio track")


def test_frames_that_go_back_in_time_are_left_out_and_counted(tmp_path):
    write_video(tmp_path / "a.ts", numbered(30))
    (tmp_path / "twice.ts").write_bytes(2 * (tmp_path / "a.ts").read_bytes())
    plan = survey(tmp_path / "twice.ts")
    frames = list(read_frames(plan, 30))
    assert [number_of(picture) for _, picture in frames] == [*range(30)]
    assert plan.notes == ["28 of its video frames go back in time: left out"]
