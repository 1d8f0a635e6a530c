"""The session of one page of `mmattn live`: its messages and the answers.

A message is a header of 16 bytes, little-endian, and a content: the kind in the first byte, the
time in milliseconds as float64 in the last eight. FRAME: a JPEG. AUDIO: mono PCM, int16 at 16 kHz,
with the time of its first sample. All times are on one clock of the page.
"""

import io
import math
import struct
from bisect import bisect
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmattn.config import ExtractConfig, kind_of
from mmattn.data.feature_file import LATEST, MIN_FRAMES
from mmattn.data.stream import Stream, make_stream
from mmattn.files import write_text
from mmattn.media.extract import (
    Extraction,
    audio_models,
    extractor_of,
    face_streams,
    look,
    write_features,
)
from mmattn.media.faces import Model
from mmattn.media.mesh import find_mesh
from mmattn.media.models import FACE_MESH, model_file
from mmattn.media.sound import RATE
from mmattn.media.speaker import Seen
from mmattn.media.windows import Window, Windows
from mmattn.run.run import Prediction, Run
from mmattn.run.timeline import Sliding, predict_person, row_of, to_csv

HEADER = struct.Struct("<B7xd")
FRAME, AUDIO = 1, 2
BEHIND = 0.5  # seconds that audio or video may lag the other before its data count as lost
BREAK = 1.0  # seconds without data, after which the windows between do not count as left out
SIDE = 2048  # maximum pixels of a side of a frame
ALL = 1e9  # seconds


class BadMessage(ValueError):
    """A message that our page never sends."""


class Recording:
    """A session in memory, until it is written. Times are seconds from its start.

    rows: of the table; audio: the whole audio; frames: time and faces of each, by person number;
    shown: the ends of windows, each with the number of the person whose prediction was shown.
    """

    def __init__(self, run: Run):
        self._run, self._config = run, run.extraction()
        self._began = datetime.now()
        self.rows: list[dict[str, Any]] = []
        self.audio = Windows(self._config, ALL, ALL, {"audio"})
        self.frames: list[tuple[float, dict[int, Seen]]] = []
        self.shown = [(0.0, 0)]

    def save(self, folder: Path) -> list[Path]:
        """Write a feature file and a table of the predictions, each if there is enough data.

        The face in a frame is that of the person shown at the time. Returns the paths.
        """
        self.audio.end()
        streams: dict[str, Stream] = {}
        for all_of_it in self.audio.finished():
            streams |= all_of_it.people[0].streams
        ends = [end for end, _ in self.shown]
        followed = [
            faces.get(self.shown[min(bisect(ends, at), len(ends) - 1)][1])
            for at, faces in self.frames
        ]
        seen, notes = face_streams(np.array([at for at, _ in self.frames]), followed, self._config)
        streams = {
            name: one for name, one in (streams | seen).items() if len(one.times) >= MIN_FRAMES
        }
        features = folder / f"{self._began:%Y%m%d-%H%M%S-%f}.npz"
        if streams:
            notes = ("live; of several faces the one whose prediction was shown", *notes)
            made = {name: extractor_of(self._config)[name] for name in streams}
            seconds = max(float(one.times[-1]) for one in streams.values())
            write_features(features, Extraction(streams, made, notes, seconds, {}))
        if self.rows:
            timeline = {"classes": self._run.class_names, "windows": self.rows}
            write_text(features.with_suffix(".csv"), to_csv(timeline))
        return sorted(folder.glob(f"{features.stem}.*"), reverse=True)


class Session:
    """The camera and microphone of one page. Its methods are called by one thread at a time.

    run: predicts; sliding: the sliding windows; kinds: audio, video or both, that the run uses and
    the page sends; recording: keeps the data, if given.
    """

    def __init__(
        self, run: Run, sliding: Sliding, kinds: Collection[str], recording: Recording | None = None
    ):
        self.run, self.kinds, self.recording = run, kinds, recording
        self._config = run.extraction()
        self._left_out = 0
        self._windows = Windows(self._config, sliding.window, sliding.hop, kinds, sliding.silence)
        self._reached: dict[str, float] = dict.fromkeys(kinds, 0.0)  # seconds from the start
        self._start: float | None = None  # of the page's clock, seconds
        self._mesh = _mesh_model(self._config) if "video" in kinds else None

    def take(self, messages: Sequence[bytes]) -> list[dict[str, Any]]:
        """Take messages of the page, in order; returns the answers to its frames.

        An answer has the size of the frame and the x, y of the points of the face mesh in it.
        Raises BadMessage.
        """
        answers = []
        for message in messages:
            if len(message) <= HEADER.size:
                raise BadMessage(f"a message of {len(message)} bytes")
            kind, at = HEADER.unpack_from(message)
            content, at = message[HEADER.size :], at / 1000
            if self._start is None and math.isfinite(at):
                self._start = at
            at -= self._start or 0.0
            if not -1 <= at <= LATEST:
                raise BadMessage(f"a message at {at:g} s")
            if at > max(self._reached.values()) + BREAK:
                self._catch_up(at)
                self._windows.skip(self._windows.ready)
            if kind == FRAME and "video" in self.kinds:
                answers.append(self._look(at, content))
            elif kind == AUDIO and "audio" in self.kinds and not len(content) % 2:
                self._listen(at, content)
            else:
                raise BadMessage(f"a message of kind {kind} and {len(message)} bytes")
            self._catch_up(max(self._reached.values()) - BEHIND, self._windows.hop)
        return answers

    def predict(self) -> dict[str, Any] | None:
        """The answer for the newest complete window; None if there is none.

        Older windows, completed during a prediction, are left out and counted. A window in which a
        running device gives nothing usable is a gap, not a guess.
        """
        if not (ready := self._windows.ready):
            return None
        self._windows.skip(ready - 1)
        self._left_out += ready - 1
        [window] = self._windows.finished()
        rows, found = [], []
        for person in window.people:
            gaps = {kind: why for kind, why in person.gaps.items() if kind in self.kinds}
            one, gap = predict_person(self.run, person._replace(gaps=gaps))
            rows.append(row_of(window, person, one, gap))
            width = 0.0 if person.box is None else person.box[2] - person.box[0]
            found.append((one is not None, width, person, one, gap))
        *_, person, prediction, gap = max(found, key=lambda one: one[:2])
        if self.recording:
            self.recording.rows += rows
            if person.number is not None:
                self.recording.shown.append((window.end, person.number))
        notes = [*prediction.notes] if prediction and not gap else [gap]
        if len(found) > 1:
            who = ", the prediction is of the speaker" if person.speaking else ""
            notes.append(f"{len(found)} people are visible{who}")
        return self._answer(window, prediction, notes)

    def _answer(
        self, window: Window, prediction: Prediction | None, notes: list[str]
    ) -> dict[str, Any]:
        """Times on the page's clock (ms); predicted class and probabilities, None in a gap; by
        modality, attention over uniform, None for a frame without data."""
        start = 1000 * ((self._start or 0.0) + window.start)
        streams = {
            name: {
                "times": (start + 1000 * view.times).round(1).tolist(),
                "ratio": [None if np.isnan(one) else round(one, 3) for one in view.ratio.tolist()],
            }
            for name, view in (prediction.streams if prediction else {}).items()
        }
        return {
            "type": "window",
            "start": start,
            "end": start + 1000 * (window.end - window.start),
            "predicted": prediction and prediction.predicted,
            "probabilities": prediction and prediction.probabilities.tolist(),
            "streams": streams,
            "notes": notes,
            "left_out": self._left_out,
        }

    def _look(self, at: float, jpeg: bytes) -> dict[str, Any]:
        frame = _decode(jpeg)
        faces = look(frame, self._config)
        mesh = find_mesh(self._mesh, frame, faces[0].face) if faces and self._mesh else None
        if at > self._reached["video"]:
            numbers = self._windows.see(at, faces)
            self._reached["video"] = at
            if self.recording:
                self.recording.frames.append((at, dict(zip(numbers, faces, strict=True))))
        points = np.zeros(0) if mesh is None else mesh[:, :2].ravel()
        return {"type": "frame", "size": frame.shape[1::-1], "mesh": points.round(1).tolist()}

    def _listen(self, at: float, pcm: bytes) -> None:
        samples = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
        self._windows.hear(at, samples)
        if self.recording:
            self.recording.audio.hear(at, samples)
        self._reached["audio"] = at + len(samples) / RATE

    def _catch_up(self, until: float, late: float = 0.0) -> None:
        """Mark as empty, up to a time, each kind that lags it by more than `late`: it has stopped,
        and windows need not wait for it."""
        for kind, reached in self._reached.items():
            if reached + late < until:
                self._reached[kind] = until
                if kind == "audio":
                    self._windows.hear(until, np.zeros(0, np.float32))
                else:
                    self._windows.see(until, [])


def warm_up(run: Run, window: float) -> None:
    """Load all models and compile the network for windows of a length, so that the first prediction
    is not late. Raises UserError if a model is missing."""
    config = run.extraction()
    noise = 0.1 * np.random.default_rng(0).normal(size=round(window * RATE)).astype(np.float32)
    streams = {name: take(noise, RATE) for name, take in audio_models(config).items()}
    times = np.arange(0, window, 1 / config.video_rate)
    for name in config.video:
        streams[name] = make_stream(np.ones((len(times), run.widths[name]), np.float32), times)
    if config.video:
        look(np.zeros((480, 640, 3), np.uint8), config)
        _mesh_model(config)
    for kinds in (("audio", "video"), ("audio",), ("video",)):  # a device may be missing
        if there := {name: one for name, one in streams.items() if kind_of(name) in kinds}:
            run.predict_streams([there])


def _mesh_model(config: ExtractConfig) -> Model:
    return Model(model_file(FACE_MESH, config.models).read_bytes())


def _decode(jpeg: bytes) -> np.ndarray:
    """A frame [H, W, 3] uint8. Raises BadMessage."""
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            size = image.size
            if max(size) <= SIDE:
                return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow raises various errors on damaged and huge files
        raise BadMessage(f"a frame that is not a JPEG: {error}") from error
    raise BadMessage(f"a frame of {size[0]} x {size[1]} pixels")
