"""What a page shows of the clip itself: its audio and faces."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mmattn.config import ExtractConfig
from mmattn.evaluate.views import StreamView

BINS = 600  # of an envelope: about one per pixel
SHOTS = 5
APART = 0.2  # minimum seconds between two faces shown
SIDE = 112  # pixels of a face
MARGIN = 0.25  # around a face, as a fraction of its larger side


@dataclass(frozen=True, eq=False)
class Envelope:
    """The envelope of the audio: times [n] s, largest magnitude [n] ≥ 0."""

    times: np.ndarray
    loudness: np.ndarray


@dataclass(frozen=True, eq=False)
class Face:
    """A face at a moment (s) of a clip, with the attention there, relative to uniform."""

    time: float
    attention: float
    jpeg: bytes


@dataclass(frozen=True, eq=False)
class Footage:
    """Audio and faces of one clip; a feature file has neither.

    notes: anything unusual about the clip.
    """

    notes: tuple[str, ...] = ()
    audio: Envelope | None = None
    faces: tuple[Face, ...] = ()


def envelope(samples: np.ndarray, rate: int, start: float) -> Envelope:
    """The largest magnitude in each of up to BINS equal parts of the audio.

    Args:
        samples: [n], one or more.
        rate: of the samples (Hz).
        start: time of the first sample (s).
    """
    parts = np.array_split(np.abs(samples), min(BINS, len(samples)))
    ends = np.cumsum([len(part) for part in parts])
    middles = (ends - [len(part) / 2 for part in parts]) / rate
    return Envelope(start + middles, np.array([part.max() for part in parts]))


def most_attended(stream: StreamView) -> np.ndarray:
    """Frames, increasing, of highest attention: up to SHOTS, each at least APART from the others.

    Invalid frames are left out.
    """
    chosen: list[int] = []
    for frame in np.argsort(-stream.ratio, kind="stable"):
        far = np.abs(stream.times[chosen] - stream.times[frame]) >= APART - 1e-9
        if stream.known[frame] and far.all():
            chosen.append(int(frame))
        if len(chosen) == SHOTS:
            break
    return np.sort(np.array(chosen, int))


def portrait(frame: np.ndarray, box: Iterable[float]) -> bytes:
    """A JPEG of the square around a face.

    Args:
        frame: [H, W, 3] uint8.
        box: left, top, right, bottom (pixels) of the face; may reach beyond the frame.
    """
    left, top, right, bottom = map(float, box)
    half = (0.5 + MARGIN) * max(right - left, bottom - top)
    x, y = (left + right) / 2, (top + bottom) / 2
    square = round(x - half), round(y - half), round(x + half), round(y + half)
    image = Image.fromarray(np.ascontiguousarray(frame)).crop(square).resize((SIDE, SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return content.getvalue()


def footage_of(
    path: Path, video: StreamView | None, config: ExtractConfig, notes: Sequence[str]
) -> Footage:
    """Audio and faces of a raw clip.

    Args:
        path: of the clip.
        video: the video stream that was used, if any.
        config: how it was extracted.
        notes: about the clip.

    Raises:
        BadMedia: the clip cannot be read.
        UserError: the face detector's file is missing.
    """
    faces = faces_of(path, video, config) if video else ()
    return Footage(tuple(notes), audio_envelope(path), faces)


def audio_envelope(path: Path) -> Envelope | None:
    """The envelope of a whole file's audio, as `extract_clip` hears it; None without.

    Raises BadMedia.
    """
    from mmattn.media.extract import heard_audio
    from mmattn.media.sound import read_audio

    audio, _ = heard_audio(path, read_audio(path))
    return None if audio is None else envelope(*audio)


def faces_of(path: Path, video: StreamView, config: ExtractConfig) -> tuple[Face, ...]:
    """The faces where attention is highest, in time order.

    Args:
        path: of the clip.
        video: the video stream that was used, extracted from this clip.
        config: how it was extracted.

    Raises:
        BadMedia: the clip cannot be read.
        UserError: the face detector's file is missing.
    """
    from mmattn.media.decode import read_frames
    from mmattn.media.extract import follow_face

    wanted = {float(video.times[frame]): video.ratio[frame] for frame in most_attended(video)}
    times, followed, _ = follow_face(path, config, with_features=False)  # the same as before
    boxes = {time: one.face.box for time, one in zip(times.tolist(), followed, strict=True) if one}
    found = []
    for time, frame in read_frames(path, config.video_rate):
        if time in wanted and time in boxes:
            found.append(Face(time, float(wanted[time]), portrait(frame, boxes[time])))
        if len(found) == len(wanted):
            break
    return tuple(found)
