"""Clips of a face that talks: a photograph whose mouth follows the loudness of babble.

The photograph is scikit-image's astronaut (NASA, in the public domain); PyAV encodes. What is where
at which time is known, so decoding and extraction can be held against it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import skimage
from scipy.ndimage import gaussian_filter1d, map_coordinates
from skimage.transform import resize

RATE, SECONDS = 44100, 3.93  # of the babble
FORMANTS = np.array([(700, 1200, 2500), (300, 2200, 2900), (400, 800, 2300)])  # Hz: a, i, o
LEVELS = 16  # openings of the mouth that are drawn
# In pixels of the photograph, [x, y]: middles of the face and of a part without one.
FACE, SUIT = np.array([224.0, 124.0]), np.array([190.0, 370.0])
HEIGHT = 200  # pixels of the photograph that fill a frame's height
MOUTH = np.array([223.5, 140.2])  # between the corners
TILT = np.radians(3.3)  # of the line from corner to corner
HALF_WIDTH = 24.0  # of what moves
LIP = 9.0  # from MOUTH down to the upper edge of the lower lip, in the middle
NECK = 80.0  # from MOUTH down to where nothing moves any more
GAPES = np.linspace(-8.0, 12.0, LEVELS)  # how far down the lower lip is
INSIDE = np.array([110.0, 60.0, 60.0])  # colour of the open mouth
CODECS = {
    ".mp4": ("libx264", "aac"),
    ".mkv": ("libx264", "aac"),
    ".flv": ("flv", "libmp3lame"),
    ".avi": ("mpeg4", "pcm_s16le"),
}


@dataclass(frozen=True)
class Truth:
    """What a clip shows when."""

    times: np.ndarray  # [T] seconds of the video frames, by the container's timestamps
    opening: np.ndarray  # [T] of the mouth, 0 to 1
    delay: float  # seconds that the picture is later than the sound


def babble() -> tuple[np.ndarray, int]:
    """Syllables of unequal length and loudness: samples [n] float32 in -1..1, and their rate."""
    rng = np.random.default_rng(1)
    time = np.arange(round(SECONDS * RATE)) / RATE
    pitch = 120 + 25 * np.sin(2 * np.pi * 0.4 * time)  # Hz
    harmonics = np.arange(1, 30) * pitch[:, None]
    phase = np.cumsum(harmonics, axis=0) * 2 * np.pi / RATE
    vowels = [
        (np.sin(phase) / (1 + ((harmonics[..., None] - formants) / 90) ** 2).min(-1)).sum(1)
        for formants in FORMANTS
    ]
    samples, start = np.zeros_like(time), 0.1
    while start < SECONDS - 0.4:
        length = rng.uniform(0.12, 0.35)
        shape = np.sin(np.pi * ((time - start) / length).clip(0, 1)) ** 2
        samples += rng.uniform(0.3, 1) * shape * vowels[rng.integers(len(vowels))]
        start += length * rng.uniform(0.7, 1.3)
    return (0.8 * samples / np.abs(samples).max()).astype(np.float32), RATE


def envelope(samples: np.ndarray, rate: int, times: np.ndarray) -> np.ndarray:
    """Loudness of samples [n] at `times` [T] seconds, 0 to 1: the amplitude below 6 Hz."""
    cutoff = 6.0  # Hz where a Gaussian of this width has lost 3 dB
    width = np.sqrt(np.log(2)) / (2 * np.pi * cutoff)
    block = rate // 1000
    count = len(samples) // block
    loudness = np.abs(samples[: count * block]).reshape(count, block).mean(axis=1)
    loudness = gaussian_filter1d(loudness, width * rate / block, mode="constant")
    middles = (np.arange(count) * block + (block - 1) / 2) / rate
    return np.interp(times, middles, loudness / loudness.max(), left=0.0, right=0.0)


def write_talking(
    path: Path,
    sound: tuple[np.ndarray, int],
    *,
    video_delay: float = 0.0,
    start_offset: float = 0.0,
    seconds: float | None = None,
    gain: float | None = 1.0,
    size: tuple[int, int] = (320, 320),
    fps: Fraction | int = 30,
    faces: int = 1,
    roll: float = 0.0,
    scale: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> Truth:
    """Write a clip with the codecs that its suffix is known for.

    sound: samples [n] and their rate, as of `speech`; repeated or cut to last `seconds`.
    video_delay: seconds that the mouth is late, in what is drawn.
    start_offset: seconds that the video stream begins after the audio stream (before, if negative)
      by the container's timestamps; what is seen and heard stays at its time. Not in .avi.
    gain: 0 makes an audio stream of zeros, None makes none.
    size: width and height in pixels; the face is half as high as the frame.
    faces: 0, 1, or 2, of which the one at the right is small and still: for a wide frame.
    roll, scale, shift: of the head, in degrees clockwise, times, pixels to the right and down.
    """
    samples, rate = sound
    samples = np.resize(samples, round(seconds * rate)) if seconds else samples
    first = max(start_offset, 0.0)
    count = int((len(samples) / rate - first) * fps)
    times = first + np.arange(count) / float(fps)
    shown = np.rint(envelope(samples, rate, times - video_delay) * (LEVELS - 1)).astype(int)
    drawn = pictures(size, faces, roll, scale, shift)
    skipped = round(max(-start_offset, 0.0) * rate)
    heard = None if gain is None else (gain * samples[skipped:], rate, skipped)
    write_clip(path, [drawn[level] for level in shown], times, fps, heard)
    return Truth(video_times(path), shown / (LEVELS - 1), video_delay)


def write_pair(path: Path, sound: tuple[np.ndarray, int], speaking: str) -> None:
    """Write a clip of two faces side by side.

    Each is drawn in the middle of its half of 320 pixels, the right one smaller by 0.6.
    speaking: small, large or none; the mouth of the other is still.
    """
    samples, rate = sound
    times = np.arange(int(len(samples) / rate * 30)) / 30
    shown = np.rint(envelope(samples, rate, times) * (LEVELS - 1)).astype(int)
    halves = []
    for name, scale in (("large", 1.0), ("small", 0.6)):
        drawn = pictures((320, 320), 1, 0.0, scale, (0.0, 0.0))
        halves.append([drawn[level if name == speaking else 0] for level in shown])
    frames = [np.hstack(both) for both in zip(*halves, strict=True)]
    write_clip(path, frames, times, 30, (samples, rate, 0))


def write_clip(
    path: Path,
    pictures: list[np.ndarray],
    times: np.ndarray,
    fps: Fraction | int,
    sound: tuple[np.ndarray, int, int] | None,
) -> None:
    """Encode pictures [H, W, 3] at `times`, and sound: samples, rate, number of the first one.

    Without pictures, or with None for the sound, the file lacks that stream.
    """
    video, audio = CODECS[path.suffix]
    packets = []
    with av.open(path, "w") as file:
        if pictures:
            packets += _encode_pictures(file, video, pictures, times, fps)
        if sound is not None:
            packets += _encode_sound(file, audio, *sound)
        file.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))


def video_times(path: Path) -> np.ndarray:
    """Seconds of the video frames, as the container states them."""
    with av.open(path) as file:
        packets = file.demux(video=0)
        return np.array(sorted(float(p.pts * p.time_base) for p in packets if p.pts is not None))


@lru_cache(maxsize=4)
def pictures(
    size: tuple[int, int], faces: int, roll: float, scale: float, shift: tuple[float, float]
) -> list[np.ndarray]:
    """The frame [H, W, 3] uint8 of each opening of the mouth."""
    photo = skimage.data.astronaut()
    where = _places(size, FACE if faces else SUIT, roll, scale, shift)
    still = _sample(photo, where)
    if faces == 2:
        _add_still_face(still, photo)
    across, down = _from_mouth(where)
    moving = (np.abs(across) < HALF_WIDTH) & (down > 0) & (down < NECK)
    drawn = []
    for gape in GAPES:
        frame = still.copy()
        frame[moving] = _open_mouth(photo, where[moving], gape)
        drawn.append(frame.clip(0, 255).astype(np.uint8))
    return drawn


def _places(size, middle, roll, scale, shift) -> np.ndarray:
    """Where in the photograph each pixel of a frame comes from: [H, W, 2], x and y."""
    width, height = size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    from_middle = np.stack([x - width / 2 - shift[0], y - height / 2 - shift[1]], axis=-1)
    return middle + _turn(from_middle * HEIGHT / height / scale, np.radians(roll))


def _turn(vectors: np.ndarray, angle: float) -> np.ndarray:
    """Vectors [..., 2] in axes that are turned clockwise by `angle`."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return vectors @ np.array([[cosine, -sine], [sine, cosine]])


def _sample(photo: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Colours [..., 3] of the photograph at `where` [..., 2]."""
    rows_columns = np.moveaxis(where[..., ::-1], -1, 0)
    channels = np.moveaxis(photo.astype(np.float32), -1, 0)
    return np.stack(
        [map_coordinates(c, rows_columns, order=1, mode="nearest") for c in channels], axis=-1
    )


def _add_still_face(frame: np.ndarray, photo: np.ndarray) -> None:
    """The head again at the right edge, a fifth as high as the frame."""
    side = round(0.4 * len(frame))
    head = photo[14:194, 134:314]
    top = len(frame) // 2
    frame[top : top + side, -side:] = resize(
        head, (side, side), anti_aliasing=True, preserve_range=True
    )


def _from_mouth(where: np.ndarray) -> Iterator[np.ndarray]:
    """Distances from the middle of the mouth to the right, and down."""
    return np.moveaxis(_turn(where - MOUTH, TILT), -1, 0)


def _open_mouth(photo: np.ndarray, where: np.ndarray, gape: float) -> np.ndarray:
    """Colours [n, 3] at `where` [n, 2] when the lower lip and the jaw have gone down by `gape`.

    Up, if negative: the lip hides the teeth. They stay where they are; between them and the lip
    it is dark; down to the neck the skin gives way.
    """
    across, down = _from_mouth(where)
    gape = gape * np.cos(np.pi / 2 * across / HALF_WIDTH) ** 2
    lip = LIP * (1 - (across / HALF_WIDTH) ** 2)
    lowered = gape * (NECK - down) / (NECK - lip - gape)
    skin = _sample(photo, where - lowered[:, None] * np.array([-np.sin(TILT), np.cos(TILT)]))
    dark = (down - lip).clip(0, 1)[:, None]
    teeth = _sample(photo, where) * (1 - dark) + INSIDE * dark
    covered = (down - lip - gape + 0.5).clip(0, 1)[:, None]
    return teeth * (1 - covered) + skin * covered


def _encode_pictures(file, codec, pictures, times, fps) -> list[av.Packet]:
    options = {"preset": "superfast"} if codec == "libx264" else {}
    stream = file.add_stream(codec, rate=fps, options=options)
    # Frames of .avi have no times of their own; elsewhere a tick is short enough for any start.
    tick = 1 / Fraction(fps) if file.format.name == "avi" else Fraction(1, 30000)
    stream.codec_context.time_base = tick
    stream.height, stream.width = pictures[0].shape[:2]
    stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
    packets = []
    for picture, time in zip(pictures, times, strict=True):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = round(time / tick), tick
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def _encode_sound(file, codec, samples, rate, first) -> list[av.Packet]:
    stream = file.add_stream(codec, rate=rate, layout="mono")
    frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), "fltp", "mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
    return stream.encode(frame) + stream.encode(None)
