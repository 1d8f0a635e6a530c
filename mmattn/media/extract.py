"""From one clip to streams of audio and face features with their times."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from mmattn.config import VARIANT, ExtractConfig, kind_of
from mmattn.data.corpora import ravdess
from mmattn.data.extractor import difference
from mmattn.data.feature_file import MIN_FRAMES
from mmattn.data.stream import Stream, make_stream
from mmattn.errors import UserError
from mmattn.files import write_bytes
from mmattn.media.align import smooth_loudness
from mmattn.media.audio import LogMel
from mmattn.media.decode import read_frames
from mmattn.media.dlib_face import DlibFace
from mmattn.media.egemaps import EGeMAPS
from mmattn.media.expression import Expression
from mmattn.media.facenet import FaceNet
from mmattn.media.faces import Face, FaceDetector, FaceTracker, area
from mmattn.media.hugging_face import HuggingFace
from mmattn.media.mesh import OPENING_COLUMN, FaceMesh
from mmattn.media.models import FACE_DETECTOR, FACE_MESH, model_file
from mmattn.media.onnx_face import OnnxFace
from mmattn.media.sound import Audio, read_audio
from mmattn.media.speaker import MOST, Seen, follow_speaker
from mmattn.media.survey import BadMedia, Plan, survey
from mmattn.media.variants import variants_of
from mmattn.media.whisper import Whisper

FASTEST = 1000.0  # fps
MANY = 0.2  # fraction of frames without a face that gives a note
NONE = {
    "name": "none",
    "version": 1,
    "settings": {},
}  # the record of a modality that is not extracted
AUDIO_ALONE = (".wav", ".flac")  # formats of RAVDESS's 03-* files


class Extractor(Protocol):
    """Extracts features: a feature is a class with these two, and a line in EXTRACTORS."""

    def record(self) -> dict:
        """Its record in a feature file: see `mmattn.data.extractor`."""

    def start(self) -> Callable:
        """Load its models; returns a function. For audio, it maps samples [n] and their rate to a
        Stream; for video, a frame [H, W, 3] and a Face to a row of features, or None."""


EXTRACTORS: dict[str, dict[str, Callable[[ExtractConfig], Extractor]]] = {
    "audio": {
        "log-mel": lambda config: LogMel(),
        "egemaps": lambda config: EGeMAPS(),
        "whisper": lambda config: Whisper(
            config.whisper_model, config.models, config.whisper_layer
        ),
        "hf": lambda config: HuggingFace(config.hf_model, config.hf_layer),
    },
    "video": {
        "face-mesh": lambda config: FaceMesh(config.models),
        "expression": lambda config: Expression(config.models),
        "dlib": lambda config: DlibFace(),
        "facenet": lambda config: FaceNet(config.facenet),
        "onnx": lambda config: OnnxFace(
            config.onnx_model,
            config.onnx_size,
            config.onnx_colour,
            config.onnx_mean,
            config.onnx_std,
            config.onnx_margin,
        ),
    },
}
KEPT = {  # options in records, and their JSON types
    "whisper_model": str,
    "whisper_layer": int,
    "hf_model": str,
    "hf_layer": int,
    "onnx_size": int,
    "onnx_colour": str,
    "onnx_mean": list,
    "onnx_std": list,
    "onnx_margin": float,
}


class Extraction(NamedTuple):
    """The features of a clip."""

    streams: dict[str, Stream]
    """By modality; no audio if the clip is silent, no video if no frame shows a face."""
    extractor: dict[str, dict]
    """By modality, the record of its extractor: name, version and settings; NONE if it was not
    requested."""
    notes: tuple[str, ...]
    """Notes for the user: what is missing or came from elsewhere."""
    seconds: float
    """The end of the clip (s)."""
    done: dict[str, list[str]]
    """By modality, what decoding did to its stream, in words."""


def extract_clip(path: Path, config: ExtractConfig) -> Extraction:
    """The features of a clip: mp4, flv, avi, mkv, wav or anything else FFmpeg reads.

    A clip without audio takes that of the file 03-* of the same RAVDESS take next to it. The same
    clip gives the same numbers, bit for bit.

    Raises:
        BadMedia: it cannot be read, or has none of the requested modalities.
        UserError: a model file or a library is missing.
    """
    plan = survey(path)
    plan.check_length()
    streams = _hear(plan, config) | _follow_face(plan, config)
    for name, stream in streams.items():
        if len(stream.times) < MIN_FRAMES:
            raise BadMedia(f"its {name} has {len(stream.times)} frames; expected {MIN_FRAMES}")
    if not streams:
        raise BadMedia(f"no features can be extracted: {'; '.join(plan.notes)}")
    extractor = {
        name: record
        for name, record in extractor_of(config).items()
        if name in streams or record == NONE
    }
    seconds = max(plan.end, *(stream.times[-1] for stream in streams.values()))
    return Extraction(streams, extractor, tuple(plan.notes), float(seconds), plan.done)


@lru_cache(1)  # checksums of models are slow
def extractor_of(config: ExtractConfig) -> dict[str, dict]:
    """By modality, the extractor record of a feature file."""
    found = {name: one.record() for name, one in _extractors(config, "audio").items()}
    for variant in variants_of(config.augment_audio):
        changed = {"augment": [variant.kind, variant.value]}
        for name in config.audio:
            settings = {**found[name]["settings"], **changed}
            found[name + VARIANT + variant.name] = {**found[name], "settings": settings}
    found = found or {"audio": NONE}
    if not config.video:
        return {**found, "video": NONE}
    for name, one in _extractors(config, "video").items():
        record = one.record()
        settings = {"rate": config.video_rate, "face": config.face, **record["settings"]}
        found[name] = {**record, "settings": settings}
    return found


def config_like(extractor: dict[str, dict], default: ExtractConfig) -> ExtractConfig:
    """The config that makes the features of these extractor records.

    Args:
        extractor: by modality, as in a feature file; a missing modality is left out.
        default: for the places of files; its options take precedence over those of a record.

    Raises:
        UserError: this version has no such extractor, or makes other features; a model is missing.
    """
    changes: dict[str, Any] = {kind: {} for kind in EXTRACTORS}
    for modality, record in extractor.items():
        made = EXTRACTORS.get(kind := kind_of(modality), ("feature files that have them",))
        if record["name"] not in made:
            raise UserError(
                f"{modality} features of {record['name']!r} cannot be extracted; expected "
                f"{', '.join(made)}"
            )
        changes[kind][modality] = record["name"]
        for name, value in record["settings"].items():
            if isinstance(value, KEPT.get(name, ())):
                value = tuple(value) if isinstance(value, list) else value
                chosen = getattr(default, name)
                changes[name] = value if chosen == getattr(ExtractConfig, name) else chosen
    settings: dict[str, Any] = next((extractor[name]["settings"] for name in changes["video"]), {})
    changes["video_rate"] = rate = settings.get("rate", default.video_rate)
    if not (isinstance(rate, float | int) and 0 < rate <= FASTEST):
        raise UserError(f"video features at {rate!r} fps cannot be made")
    changes["face"] = "largest" if settings.get("face") == "largest" else "speaker"
    config = replace(default, **changes)
    made = extractor_of(config)
    wanted = {modality: made[modality] for modality in extractor}
    if wanted != extractor:
        raise UserError(
            f"the features of raw clips would differ from those the run was trained on: "
            f"{difference(wanted, extractor)}; expected feature files (.npz) made as those were, "
            f"or a run that is trained on features extracted anew"
        )
    return config


def write_features(path: Path, found: Extraction) -> None:
    """Write a feature file, atomically.

    Besides the streams, it holds JSON of their extractors and of the decoding: a list of texts for
    each modality, and the notes.
    """
    decoding = {**found.done, "notes": found.notes}
    arrays: dict[str, Any] = {
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
    """The audio of a clip and notes about it, from the track of `read_audio`.

    If the track is missing or silent, it is the audio of 03-* of the same RAVDESS take, if that
    file is next to the clip. It starts with the clip's first frame, which is not at 0: see decode.
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
    """The audio-only file of a clip's RAVDESS take, if it is next to the clip."""
    if not (name := ravdess.audio_of(path.stem)):
        return None
    others = (path.with_name(name + suffix) for suffix in AUDIO_ALONE)
    return next((other for other in others if other.exists()), None)


def follow_face(
    path: Path, config: ExtractConfig, with_features: bool = True, plan: Plan | None = None
) -> tuple[np.ndarray, list[Seen | None], str | None]:
    """Times [T] (s) of a clip's frames, the face tracked in each, and a note if there are several.

    Models are loaded once per process; `plan` records what is done. Raises BadMedia.
    """
    detect, features, mesh = _face_models(config)
    track, times, frames = FaceTracker(), [], []
    for time, frame in read_frames(plan or path, config.video_rate):
        faces = detect(frame)
        if config.face == "largest":
            faces = [face for face in [track(faces)] if face]
        times.append(time)
        frames.append(_measured(frame, _largest(faces), features if with_features else {}, mesh))
    times = np.array(times)
    if config.face == "largest":
        return times, [next(iter(seen), None) for seen in frames], None
    return times, *follow_speaker(times, frames, lambda: _loudness(path))


def look(frame: np.ndarray, config: ExtractConfig) -> list[Seen]:
    """The largest faces of a video frame [H, W, 3] uint8, each with its features.

    Models are loaded once per process.
    """
    detect, features, mesh = _face_models(config)
    return _measured(frame, _largest(detect(frame)), features, mesh)


def _largest(faces: Sequence[Face]) -> list[Face]:
    return sorted(faces, key=area, reverse=True)[:MOST]


def _measured(
    frame: np.ndarray, faces: Sequence[Face], features: dict[str, Callable], mesh: Callable
) -> list[Seen]:
    """The faces of a frame with features and, if there are several, mouth opening."""
    measured, seen = next((name for name, take in features.items() if take is mesh), None), []
    for face in faces:
        rows = {name: take(frame, face) for name, take in features.items()}
        opening = 0.0
        if len(faces) > 1:
            shape = rows[measured] if measured else mesh(frame, face)
            opening = 0.0 if shape is None else float(shape[OPENING_COLUMN])
        seen.append(Seen(face, rows, opening))
    return seen


def _loudness(path: Path) -> Stream | None:
    try:
        audio, _ = heard_audio(path, read_audio(path))
    except BadMedia:  # reported by the audio features; the video features do not need it
        return None
    return audio and loudness_of(audio)


def loudness_of(audio: Audio) -> Stream | None:
    """Loudness [T, 1] of the audio, for any audio features; None if it is too short."""
    try:
        stream = LogMel()(audio.samples, audio.rate)
    except BadMedia:
        return None
    return smooth_loudness(stream._replace(times=stream.times + audio.start))


def _hear(plan: Plan, config: ExtractConfig) -> dict[str, Stream]:
    """The audio features by modality."""
    if not config.audio:
        return {}
    audio, notes = heard_audio(plan.path, read_audio(plan))
    plan.notes.extend(notes)
    if audio is None:
        return {}
    models, (samples, rate, _) = audio_models(config), audio
    found = {name: take(samples, rate) for name, take in models.items()}
    for variant in variants_of(config.augment_audio):
        changed = variant.of(samples, rate)
        for name, take in models.items():
            stream = take(changed, rate)
            stream = stream._replace(times=stream.times * variant.tempo)  # in the clip's time
            found[name + VARIANT + variant.name] = stream
    return {name: one._replace(times=one.times + audio.start) for name, one in found.items()}


def _follow_face(plan: Plan, config: ExtractConfig) -> dict[str, Stream]:
    """The features of the tracked face, by modality."""
    if not config.video:
        return {}
    times, followed, note = follow_face(plan.path, config, plan=plan)
    streams, notes = face_streams(times, followed, config)
    plan.notes.extend(dict.fromkeys([note, *notes] if note else notes))
    return streams


def face_streams(
    times: np.ndarray, followed: Sequence[Seen | None], config: ExtractConfig
) -> tuple[dict[str, Stream], list[str]]:
    """By modality, the features of the tracked face in frames at times [T] (s), and notes."""
    streams, notes = {}, [] if followed else ["it has no video frames"]
    for name in config.video if followed else ():
        rows = [one and one.features[name] for one in followed]
        seen = [row for row in rows if row is not None]
        if not seen:
            notes.append(f"no face is seen in its {len(rows)} video frames")
            continue
        if len(rows) - len(seen) > MANY * len(rows):
            notes.append(f"no face is seen in {len(rows) - len(seen)} of its {len(rows)} frames")
        nothing = np.zeros_like(seen[0])
        frames = np.stack([nothing if row is None else row for row in rows])
        streams[name] = make_stream(frames, times, zero_is_missing=True)
    return streams, notes


def _extractors(config: ExtractConfig, kind: str) -> dict[str, Extractor]:
    """By modality, the extractors of audio or video. Raises UserError if there is none."""
    names, made = getattr(config, kind), EXTRACTORS[kind]
    if not made.keys() >= {*names.values()}:
        raise UserError(
            f"--{kind} {' '.join(names.values())}: expected none, or some of {', '.join(made)}"
        )
    return {modality: made[name](config) for modality, name in names.items()}


@lru_cache(1)
def audio_models(config: ExtractConfig) -> dict[str, Callable[[np.ndarray, int], Stream]]:
    """By modality, the audio feature functions; loaded once per process."""
    return {name: one.start() for name, one in _extractors(config, "audio").items()}


@lru_cache(1)
def _face_models(config: ExtractConfig) -> tuple[FaceDetector, dict[str, Callable], Callable]:
    """The face detector, the feature functions by modality, and the mesh distances; loaded once
    per process."""
    detector = model_file(FACE_DETECTOR, config.models)
    features = {name: one.start() for name, one in _extractors(config, "video").items()}
    mesh = next((name for name, of in config.video.items() if of == "face-mesh"), None)
    mesh = features[mesh] if mesh else _mesh_later(config)
    return FaceDetector(detector.read_bytes()), features, mesh


def _mesh_later(config: ExtractConfig) -> Callable:
    """The distances of a face, by a model that is loaded with the first of several faces (7 MB).
    UserError if it is missing."""
    model_file(FACE_MESH, config.models)
    start = lru_cache(1)(FaceMesh(config.models).start)
    return lambda frame, face: start()(frame, face)
