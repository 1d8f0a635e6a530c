"""Damaged clips of many containers: each gives features or a reason, in bounded time and memory."""

import resource
import signal
import sys
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from mmattn.config import ExtractConfig
from mmattn.media.decode import read_frames
from mmattn.media.extract import extract_clip
from mmattn.media.parallel import Job, run_jobs
from mmattn.media.sound import read_audio
from mmattn.media.survey import BadMedia

CONTAINERS = {  # suffix: video codec, audio codec, rate of the audio (Hz)
    ".mp4": ("libx264", "aac", 44100),
    ".mov": ("mpeg4", "pcm_s16le", 16000),
    ".mkv": ("libx264", "flac", 16000),
    ".webm": ("libvpx", "libopus", 48000),
    ".avi": ("mpeg4", "libmp3lame", 44100),
    ".flv": ("flv", "libmp3lame", 44100),
    ".ts": ("mpeg2video", "mp2", 44100),
    ".mpg": ("mpeg2video", "mp2", 44100),
    ".asf": ("wmv2", "libmp3lame", 44100),
    ".wmv": ("wmv2", "wmav2", 44100),
    ".wav": (None, "pcm_s16le", 16000),
    ".ogg": (None, "libopus", 48000),
    ".mp3": (None, "libmp3lame", 44100),
    ".flac": (None, "flac", 16000),
}
EACH = 30  # damaged clips of a container
CPU = 20.0  # seconds that one may take; an undamaged one takes 0.1
MEMORY = 1 << 30  # bytes of address space that reading may add
CONFIG = ExtractConfig(audio={"audio": "log-mel"}, video={})  # what needs no models


def write_clip(path: Path, title: str = "") -> None:
    """A second of noise in a box that moves, and of a tone."""
    video_codec, audio_codec, rate = CONTAINERS[path.suffix]
    random = np.random.default_rng(0)
    packets = []
    with av.open(path, "w") as file:
        file.metadata["title"] = title
        if video_codec:
            video = file.add_stream(video_codec, rate=25)
            video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        audio = file.add_stream(audio_codec, rate=rate, layout="mono")
        audio.bit_rate = 64_000
        for number in range(25 if video_codec else 0):
            pixels = np.zeros((64, 96, 3), np.uint8)
            pixels[16:48, number : number + 32] = random.integers(256, size=(32, 32, 3))
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            packets += video.encode(frame)
        if video_codec:
            packets += video.encode(None)
        tone = (8000 * np.sin(np.arange(rate) * 2 * np.pi * 300 / rate)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(tone[None], "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        packets += audio.encode(frame) + audio.encode(None)
        file.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))


def damage(content: bytes, random: np.random.Generator) -> bytes:
    """The content with 1 to 32 bytes altered: anywhere, or near an end, where headers are."""
    damaged = np.frombuffer(content, np.uint8).copy()
    first, last = [(0, len(damaged)), (0, 512), (len(damaged) - 2048, len(damaged))][
        random.integers(3)
    ]
    places = random.integers(max(first, 0), last, size=2 ** random.integers(6))
    damaged[places] = random.integers(256, size=len(places))
    return damaged.tobytes()


def read(job: Job, config: ExtractConfig) -> tuple[str, str]:
    """What comes of a clip, in a process that ends when it takes too long."""
    signal.setitimer(signal.ITIMER_PROF, CPU)
    if sys.platform == "linux":
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    try:
        frames = [(time, frame.shape) for time, frame in read_frames(job.clip, 15)]
        found = extract_clip(job.clip, config)
    except BadMedia as error:
        return "reason", str(error)
    except Exception as error:
        return "fault", repr(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    audio = found.streams["audio"]
    if not (np.isfinite(audio.frames).all() and np.isfinite(audio.times).all()):
        return "fault", "features that are not finite"
    if any(before >= after for before, after in pairwise([*audio.times])):
        return "fault", "audio goes back in time"
    if any(before[0] >= after[0] for before, after in pairwise(frames)):
        return "fault", "video goes back in time"
    return "features", f"{len(audio.times)} of audio, {len(frames)} frames"


@pytest.mark.slow
def test_damaged_clips_give_features_or_a_reason(tmp_path):
    random = np.random.default_rng(18)
    jobs = []
    for suffix in CONTAINERS:
        whole = tmp_path / f"whole{suffix}"
        write_clip(whole)
        jobs.append(Job(whole, whole))
        for number in range(EACH):
            clip = tmp_path / f"{number:02}{suffix}"
            clip.write_bytes(damage(whole.read_bytes(), random))
            jobs.append(Job(clip, clip))
    results = {job.clip.name: result for job, result in run_jobs(read, jobs, CONFIG, 2)}
    assert results.keys() == {job.clip.name for job in jobs}
    killed = [name for name, result in results.items() if result is None]
    faults = {name: result for name, result in results.items() if result and result[0] == "fault"}
    assert not killed, f"died, or took more than {CPU:g} s: {killed}"
    assert not faults, faults
    assert {results[f"whole{suffix}"][0] for suffix in CONTAINERS} == {"features"}
    kinds = Counter(kind for kind, _ in results.values())
    assert kinds["features"] > 2 * kinds["reason"]  # most of a damaged clip can be read
    reasons = {text for kind, text in results.values() if kind == "reason"}
    assert all(len(text) > 10 and text.isprintable() for text in reasons)


def test_metadata_of_another_encoding_is_no_fault(tmp_path):
    path = tmp_path / "latin-1.wav"
    write_clip(path, title="Herzlich")
    content = path.read_bytes()
    assert content.count(b"Herzlich") == 1
    path.write_bytes(content.replace(b"Herzlich", "Überfäll".encode("latin-1")))
    assert len(read_audio(path).samples) == 16000
