"""The clips that tests are made of show and sound what they say, at the time they say."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.media.talking import envelope


def frames(path) -> np.ndarray:
    """Brightness of the pictures: [T, H, W]."""
    with av.open(path) as file:
        return np.stack([frame.to_ndarray(format="gray") for frame in file.decode(video=0)])


def sound(path) -> tuple[np.ndarray, int, float]:
    """Samples [n], their rate, and the second of the first one by the container."""
    with av.open(path) as file:
        decoded = list(file.decode(audio=0))
    samples = np.concatenate([frame.to_ndarray()[0] for frame in decoded])
    return samples.astype(np.float32), decoded[0].rate, decoded[0].time


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return np.corrcoef(a, b)[0, 1]


def test_the_envelope_of_a_tone_that_swells_twice_a_second():
    rate = 8000
    time = np.arange(2 * rate) / rate
    tone = np.sin(2 * np.pi * 440 * time) * (0.5 - 0.5 * np.cos(2 * np.pi * 2 * time))
    times = np.array([-0.5, 0.25, 0.5, 0.75, 1.0, 1.25, 2.5])
    np.testing.assert_allclose(envelope(tone, rate, times), [0, 1, 0, 1, 0, 1, 0], atol=0.06)
    fine = np.arange(0, 0.5, 0.001)
    assert fine[envelope(tone, rate, fine).argmax()] == pytest.approx(0.25, abs=0.002)


@pytest.mark.parametrize("start_offset", [0.0, 0.025, 0.2, -0.2])
@pytest.mark.parametrize("suffix", [".mp4", ".flv", ".mkv"])
def test_sound_and_picture_agree_whatever_stream_starts_first(talking, suffix, start_offset):
    path, truth = talking(f"talking{suffix}", start_offset=start_offset)
    samples, rate, start = sound(path)
    heard = truth.times > start + 0.1
    times, opening = truth.times[heard] - start, truth.opening[heard]
    shifts = np.arange(-20, 21) / 1000
    agreement = [correlation(envelope(samples, rate, times + s), opening) for s in shifts]
    assert max(agreement) > 0.99
    assert abs(shifts[np.argmax(agreement)]) < 0.003
    # An encoder's own delay moves both by the same; what is left is at most such a delay.
    assert truth.times[0] - start == pytest.approx(start_offset, abs=0.026)


def test_avi(talking):
    path, truth = talking("talking.avi")
    samples, rate, start = sound(path)
    assert start == truth.times[0] == 0
    assert correlation(envelope(samples, rate, truth.times), truth.opening) > 0.99


@pytest.mark.parametrize("suffix", [".mp4", ".flv"])
def test_the_mouth_is_as_open_as_stated(talking, suffix):
    path, truth = talking(f"talking{suffix}")
    shown = frames(path)[:, 185:235, 130:190]
    change = np.abs(shown - shown[truth.opening.argmin()].astype(float)).mean(axis=(1, 2))
    assert len(shown) == len(truth.times) == 117
    assert correlation(change, truth.opening) > 0.95


def test_a_delay_is_drawn(talking):
    _, prompt = talking("talking.mp4")
    _, late = talking("talking.mp4", video_delay=0.2)
    np.testing.assert_array_equal(late.times, prompt.times)
    np.testing.assert_array_equal(late.opening[6:], prompt.opening[:-6])
    assert late.delay == 0.2


def test_size_rate_and_length(talking):
    fps = Fraction(30000, 1001)
    path, truth = talking("wide.mp4", size=(1280, 720), fps=fps, seconds=1.0)
    assert frames(path).shape == (29, 720, 1280)
    np.testing.assert_allclose(truth.times, np.arange(29) * 1001 / 30000, atol=1e-4)


def test_headers_that_claim_two_hours(faulty_clips):
    with av.open(faulty_clips / "two-hours.flv") as file:
        assert file.duration == 7200 * av.time_base
    film_header = (faulty_clips / "two-hours.mp4").read_bytes().partition(b"mvhd")[2]
    ticks, duration = struct.unpack_from(">II", film_header, 12)
    assert duration == min(7200 * ticks, 2**32 - 2)  # as much as the field can hold
    for path in faulty_clips.glob("two-hours.*"):
        assert len(frames(path)) == 30


def test_what_clips_lack(lacking_clips):
    streams = {}
    for path in lacking_clips.iterdir():
        with av.open(path) as file:
            streams[path.name] = [stream.type for stream in file.streams]
    both = ["video", "audio"]
    assert streams == {
        "sound.mp4": ["audio"],
        "sound.wav": ["audio"],
        "mute.mp4": ["video"],
        "silent.mp4": both,
        "faceless.mp4": both,
    }
    assert not sound(lacking_clips / "silent.mp4")[0].any()
