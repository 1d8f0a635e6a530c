"""One clip to streams of features: what is heard and whose face is seen, each when."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmattn.config import ExtractConfig
from mmattn.data.corpora import ravdess
from mmattn.data.extractor import difference
from mmattn.data.feature_file import MIN_FRAMES
from mmattn.data.stream import Stream, make_stream
from mmattn.errors import UserError
from mmattn.files import write_bytes
from mmattn.media.align import smooth_loudness
from mmattn.media.audio import LogMel
from mmattn.media.decode import Audio, read_audio, read_frames
from mmattn.media.egemaps import EGeMAPS
from mmattn.media.faces import FaceDetector, FaceTracker, area
from mmattn.media.mesh import OPENING_COLUMN, FaceMesh
from mmattn.media.models import FACE_DETECTOR, model_file
from mmattn.media.speaker import MOST, Seen, follow_speaker
from mmattn.media.survey import BadMedia, Plan, survey

FASTEST = 1000.0  # fps
MANY = 0.2  # fraction of frames without a face that is worth a note
NONE = {"name": "none", "version": 1, "settings": {}}  # the record of what is not extracted
MADE = {"audio": ("log-mel", "egemaps"), "video": ("face-mesh", "dlib", "facenet")}
AUDIO_ALONE = (".wav", ".flac")  # in which RAVDESS's 03-* files come


class Extraction(NamedTuple):
    """What was taken from a clip."""

    streams: dict[str, Stream]
    """By modality; no audio if nothing is heard, no video if a face is seen in no frame."""
    extractor: dict[str, dict]
    """By modality that is there, the name, version and settings of what took it; and NONE for one
    that was not asked for."""
    notes: tuple[str, ...]
    """What the user should know: what is missing or came from elsewhere."""
    seconds: float
    """Where the clip ends."""
    done: dict[str, list[str]]
    """By modality, what decoding did to its stream, in words."""


def extract_clip(path: Path, config: ExtractConfig) -> Extraction:
    """The features of a clip: mp4, flv, avi, mkv, wav or whatever else FFmpeg reads.

    The audio of a clip that has none is that of the file 03-* of the same RAVDESS take beside it.
    The same clip gives the same numbers, bit for bit.

    Raises:
        BadMedia: it cannot be read, or has nothing of what is asked for.
        UserError: a model file or a library is missing.
    """
    plan, streams = survey(path), {}
    plan.check_length()
    for name, take in (("audio", _hear), ("video", _follow_face)):
        if getattr(config, name) != "none" and (stream := take(plan, config)):
            streams[name] = stream
    for name, stream in streams.items():
        if len(stream.times) < MIN_FRAMES:
            raise BadMedia(f"its {name} has {len(stream.times)} frames; expected {MIN_FRAMES}")
    if not streams:
        raise BadMedia(f"nothing to learn from: {'; '.join(plan.notes)}")
    extractor = {
        name: record
        for name, record in extractor_of(config).items()
        if name in streams or record == NONE
    }
    seconds = max(plan.end, *(stream.times[-1] for stream in streams.values()))
    return Extraction(streams, extractor, tuple(plan.notes), float(seconds), plan.done)


def extractor_of(config: ExtractConfig) -> dict[str, dict]:
    """By modality, what a feature file records of how its features were made."""
    audio = NONE if config.audio == "none" else _audio_features(config).record()
    if config.video == "none":
        return {"audio": audio, "video": NONE}
    video = _video_features(config).record()
    settings = {"rate": config.video_rate, "face": config.face, **video["settings"]}
    return {"audio": audio, "video": {**video, "settings": settings}}


def config_like(extractor: dict[str, dict], default: ExtractConfig) -> ExtractConfig:
    """The config that makes features like those that an extractor's record tells of.

    Args:
        extractor: by modality, as in a feature file; a modality that is not there is left out.
        default: for the places of files.

    Raises:
        UserError: this version has no such extractor.
    """
    names = {modality: record["name"] for modality, record in extractor.items()}
    for modality, name in names.items():
        if name not in MADE.get(modality, ()):
            raise UserError(
                f"{modality} features by {name!r} are not made here; expected "
                f"{', '.join(MADE.get(modality, ('feature files that have them',)))}"
            )
    settings = extractor.get("video", {"settings": {}})["settings"]
    rate = settings.get("rate", default.video_rate)
    if not (isinstance(rate, float | int) and 0 < rate <= FASTEST):
        raise UserError(f"video features at {rate!r} fps cannot be made")
    face = "largest" if settings.get("face") == "largest" else "speaker"
    taken = {**dict.fromkeys(MADE, "none"), **names}
    config = replace(default, video_rate=rate, face=face, **taken)
    made = extractor_of(config)
    wanted = {modality: made[modality] for modality in extractor}
    if wanted != extractor:
        raise UserError(
            f"this version makes other features than those asked for: "
            f"{difference(wanted, extractor)}"
        )
    return config


def write_features(path: Path, found: Extraction) -> None:
    """Write a feature file, atomically.

    Beside the streams it has the JSON of what made them and of what decoding did: a list of words
    a modality, and the notes.
    """
    decoding = {**found.done, "notes": found.notes}
    arrays = {
        "extractor": np.array(json.dumps(found.extractor, sort_keys=True)),
        "decoding": np.array(json.dumps(decoding, sort_keys=True)),
    }
    for name, stream in found.streams.items():
        arrays[f"{name}_features"] = stream.frames
        arrays[f"{name}_timestamps"] = stream.times
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_bytes(path, content.getvalue())


def heard_audio(path: Path, track: Audio | None) -> tuple[Audio | None, list[str]]:
    """The audio of a clip and what is to note about it, from the track that `read_audio` gives.

    Where nothing is heard in that, it is the audio of 03-* of the same RAVDESS take, if that file
    lies beside the clip. It starts with the clip's first frame, which is not at 0: see decode.
    """
    if track is not None and not track.silent:
        return track, []
    has = "no" if track is None else "a silent"
    other = audio_beside(path)
    if other is None:
        return None, [f"it has {has} audio track"]
    try:
        audio = read_audio(other)
    except BadMedia as error:
        raise BadMedia(f"{other.name}: {error}") from error
    first = next((time for time, _ in read_frames(path, 1000)), 0.0)
    note = f"it has {has} audio track; the audio is from {other.name}"
    return audio and audio._replace(start=audio.start + first), [note]


def audio_beside(path: Path) -> Path | None:
    """The file of audio alone of a clip's RAVDESS take, if it lies beside the clip."""
    if not (name := ravdess.audio_of(path.stem)):
        return None
    others = (path.with_name(name + suffix) for suffix in AUDIO_ALONE)
    return next((other for other in others if other.exists()), None)


def follow_face(
    path: Path, config: ExtractConfig, with_features: bool = True, plan: Plan | None = None
) -> tuple[np.ndarray, list[Seen | None], str | None]:
    """Times [T] (s) of a clip's frames, the face followed in each, and a note if there are several.

    The models are loaded once a process; `plan` as in `read_frames`. Raises BadMedia.
    """
    detect, features, mesh = _face_models(config)
    track = FaceTracker(detect)
    times, frames = [], []
    for time, frame in read_frames(path, config.video_rate, plan):
        if config.face == "largest":
            faces = [face for face in [track(frame)] if face]
        else:
            faces = sorted(detect(frame), key=area, reverse=True)[:MOST]
        seen = []
        for face in faces:
            row = features(frame, face) if with_features else None
            opening = 0.0
            if len(faces) > 1:
                shape = row if features is mesh and with_features else mesh(frame, face)
                opening = 0.0 if shape is None else float(shape[OPENING_COLUMN])
            seen.append(Seen(face, row, opening))
        times.append(time)
        frames.append(seen)
    times = np.array(times)
    if config.face == "largest":
        return times, [next(iter(seen), None) for seen in frames], None
    return times, *follow_speaker(times, frames, lambda: _loudness(path))


def _loudness(path: Path) -> Stream | None:
    """[T, 1] of what is heard in a clip, whatever features are asked for; None if nothing is."""
    try:
        audio, _ = heard_audio(path, read_audio(path))
        stream = LogMel()(audio.samples, audio.rate) if audio else None
    except BadMedia:  # a matter of its audio features; the video's can do without
        return None
    if stream is None:
        return None
    return smooth_loudness(stream._replace(times=stream.times + audio.start))


def _hear(plan: Plan, config: ExtractConfig) -> Stream | None:
    """The features of what is heard."""
    try:
        track = read_audio(plan.path, plan)
    except BadMedia as error:
        if config.video == "none" or not plan.of("video"):
            raise
        track = plan.notes.append(str(error))
    audio, said = heard_audio(plan.path, track)
    plan.notes.extend(said)
    if audio is None:
        return None
    stream = _audio_features(config)(audio.samples, audio.rate)
    return stream._replace(times=stream.times + audio.start)


def _follow_face(plan: Plan, config: ExtractConfig) -> Stream | None:
    """The features of the face that is followed."""
    times, followed, note = follow_face(plan.path, config, plan=plan)
    plan.notes.extend([note] if note else [])
    rows = [one and one.features for one in followed]
    if not rows:
        plan.notes.append("it has no video frames")
        return None
    seen = [row for row in rows if row is not None]
    if not seen:
        plan.notes.append(f"no face is seen in its {len(rows)} video frames")
        return None
    if len(rows) - len(seen) > MANY * len(rows):
        plan.notes.append(f"no face is seen in {len(rows) - len(seen)} of its {len(rows)} frames")
    nothing = np.zeros_like(seen[0])
    frames = np.stack([nothing if row is None else row for row in rows])
    return make_stream(frames, times, zero_is_missing=True)


def _audio_features(config: ExtractConfig) -> LogMel | EGeMAPS:
    return LogMel() if config.audio == "log-mel" else EGeMAPS()


def _video_features(config: ExtractConfig):
    if config.video == "dlib":
        from mmattn.media.dlib_face import DlibFace

        return DlibFace()
    if config.video == "facenet":
        from mmattn.media.facenet import FaceNet

        return FaceNet(config.facenet)
    return FaceMesh(config.models)


@lru_cache(1)
def _face_models(config: ExtractConfig) -> tuple[FaceDetector, Callable, Callable]:
    """What finds faces, takes the features of one, and its distances; loaded once a process."""
    detector = model_file(FACE_DETECTOR, config.models)
    features = _video_features(config).start()
    mesh = features if config.video == "face-mesh" else FaceMesh(config.models).start()
    return FaceDetector(detector.read_bytes()), features, mesh
