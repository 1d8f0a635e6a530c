"""What one page of `mmattn live` sends from its start to its end, and what it is answered.

A message is 16 bytes, little-endian, and a content: the kind in the first byte, the time in
milliseconds as float64 in the last eight. FRAME: a JPEG. AUDIO: mono PCM, int16 at 16 kHz; the time
is that of its first sample. All times are of one clock of the page's own.
"""

import io
import math
import struct
import time
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmattn.config import ExtractConfig
from mmattn.data.feature_file import LATEST, MIN_FRAMES
from mmattn.files import write_text
from mmattn.media.extract import Extraction, extractor_of, face_streams, look, write_features
from mmattn.media.faces import Face, Model
from mmattn.media.mesh import find_mesh
from mmattn.media.models import FACE_MESH, model_file
from mmattn.media.sound import RATE
from mmattn.media.speaker import Seen, follow_largest
from mmattn.media.windows import Person, Windows
from mmattn.run.run import Failure, Prediction, Run
from mmattn.run.timeline import to_csv

HEADER = struct.Struct("<B7xd")
FRAME, AUDIO = 1, 2
BEHIND = 0.5  # seconds that one of audio and video may be behind, before its frames count as lost
BREAK = 1.0  # seconds without anything, after which windows are not left out but not there
SIDE = 2048  # pixels a side of a frame at most
SAID = 5.0  # seconds for which it is said that windows were left out
ALL = 1e9  # seconds


class BadMessage(ValueError):
    """What no page of ours sends."""


class Session:
    """The camera and microphone of one page. Its methods are called by one thread at a time.

    Args:
        run: that predicts.
        config: its features, as `Run.extraction` gives them.
        window: seconds of a prediction.
        hop: seconds from one to the next.
        kinds: audio, video or both: what the page sends of what the run uses.
        keep: whether all is kept in memory, for `save`.
    """

    def __init__(
        self,
        run: Run,
        config: ExtractConfig,
        window: float,
        hop: float,
        kinds: Collection[str],
        keep: bool = False,
    ):
        self.run, self.config, self.kinds = run, config, kinds
        self.left_out = 0
        self._left_at = -math.inf
        self._windows = Windows(config, window, hop, kinds)
        self._reached: dict[str, float] = dict.fromkeys(kinds, 0.0)  # seconds from the start
        self._start: float | None = None  # of the page's clock, seconds
        self._mesh = "video" in kinds and _mesh_model(config)
        self._heard = Windows(config, ALL, ALL, {"audio"}) if keep else None
        self._seen: list[tuple[float, list[Seen]]] | None = [] if keep else None
        self._rows: list[dict[str, Any]] = []
        self._began = datetime.now()

    @property
    def has_any(self) -> bool:
        """Whether anything came."""
        return self._start is not None

    def take(self, messages: Sequence[bytes]) -> list[dict[str, Any]]:
        """Take what the page sent, in its order; the answers to its frames.

        An answer has the size of the frame and the x, y of the points of the face's mesh in it.
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
        """The answer for the newest window that is finished; None if there is none.

        Those that were finished before it, while others were predicted, are left out and counted.
        A window in which a device that runs gives nothing of use is a gap, not a guess. An answer
        has start and end on the page's clock (ms), predicted and probabilities, None in a gap; by
        modality, times (ms) and attention over uniform, None for a frame without data; and notes.
        """
        if not (ready := self._windows.ready):
            return None
        if ready > 1:
            self._windows.skip(ready - 1)
            self.left_out, self._left_at = self.left_out + ready - 1, time.monotonic()
        [window] = self._windows.finished()
        found = [self._predict(person) for person in window.people]
        widths = [0.0 if one.box is None else one.box[2] - one.box[0] for one in window.people]
        shown = max(range(len(found)), key=lambda at: (found[at][0] is not None, widths[at]))
        prediction, notes = found[shown]
        if len(found) > 1:
            who = ", the one who speaks is predicted" if window.people[shown].speaking else ""
            notes = [*notes, f"{len(found)} people are seen{who}"]
        if self._heard:
            self._rows += [
                {
                    "start": round(window.start, 3),
                    "end": round(window.end, 3),
                    "person": None if person.number is None else 1 + person.number,
                    "speaking": person.speaking,
                    "probabilities": one and [round(float(p), 6) for p in one.probabilities],
                    "gap": "; ".join(said),
                }
                for person, (one, said) in zip(window.people, found, strict=True)
            ]
        streams = {
            name: {
                "times": self._on_page(window.start + view.times).round(1).tolist(),
                "ratio": [None if np.isnan(one) else round(one, 3) for one in view.ratio.tolist()],
            }
            for name, view in (prediction.streams if prediction else {}).items()
        }
        return {
            "type": "window",
            "start": self._on_page(window.start),
            "end": self._on_page(window.end),
            "predicted": prediction and prediction.predicted,
            "probabilities": prediction and prediction.probabilities.tolist(),
            "streams": streams,
            "notes": notes,
            "left_out": self.left_out,
            "behind": time.monotonic() - self._left_at < SAID,
        }

    def _predict(self, person: Person) -> tuple[Prediction | None, list[str]]:
        """What is predicted for a person, None in a gap, and what is to say of it."""
        if gaps := [reason for kind, reason in person.gaps.items() if kind in self.kinds]:
            return None, gaps
        [found] = self.run.predict_streams([person.streams])
        return (None, [found.reason]) if isinstance(found, Failure) else (found, [*found.notes])

    def save(self, folder: Path) -> list[Path]:
        """Write what was kept: a feature file, unless there is too little for one, and a table of
        the predictions. Returns their paths. Times are seconds from the first message."""
        streams, notes = {}, ["recorded live; of several faces the largest is followed"]
        self._heard.end()
        for all_of_it in self._heard.finished():
            streams |= all_of_it.people[0].streams
        if self._seen:
            followed = follow_largest([faces for _, faces in self._seen])
            times = np.array([at for at, _ in self._seen])
            found, said = face_streams(times, followed, self.config)
            streams, notes = streams | found, notes + said
        streams = {name: one for name, one in streams.items() if len(one.times) >= MIN_FRAMES}
        path = _free(folder / f"{self._began:%Y%m%d-%H%M%S}.csv")
        write_text(path, to_csv({"classes": self.run.class_names, "windows": self._rows}))
        if not streams:
            return [path]
        made = {name: one for name, one in extractor_of(self.config).items() if name in streams}
        seconds = max(float(one.times[-1]) for one in streams.values())
        write_features(
            path.with_suffix(".npz"), Extraction(streams, made, tuple(notes), seconds, {})
        )
        return [path.with_suffix(".npz"), path]

    def _look(self, at: float, jpeg: bytes) -> dict[str, Any]:
        frame = _decode(jpeg)
        faces = look(frame, self.config)
        mesh = find_mesh(self._mesh, frame, faces[0].face) if faces else None
        if at > self._reached["video"]:
            self._windows.see(at, faces)
            self._reached["video"] = at
            if self._seen is not None:
                self._seen.append((at, faces))
        points = np.zeros(0) if mesh is None else mesh[:, :2].ravel()
        return {"type": "frame", "size": frame.shape[1::-1], "mesh": points.round(1).tolist()}

    def _listen(self, at: float, pcm: bytes) -> None:
        samples = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
        self._windows.hear(at, samples)
        if self._heard:
            self._heard.hear(at, samples)
        self._reached["audio"] = at + len(samples) / RATE

    def _catch_up(self, until: float, late: float = 0.0) -> None:
        """Give no data up to a time to what is later than `late` before it: it has stopped, and
        windows need not wait."""
        for kind, reached in self._reached.items():
            if reached + late < until:
                self._reached[kind] = until
                if kind == "audio":
                    self._windows.hear(until, np.zeros(0, np.float32))
                else:
                    self._windows.see(until, [])

    def _on_page(self, seconds: Any) -> Any:
        """Times on the page's clock, in milliseconds, of those from the start in seconds."""
        return 1000 * (self._start + seconds)


def warm_up(run: Run, config: ExtractConfig, window: float) -> None:
    """Load all models and compile the network for windows of a length, so that the first that is
    shown is not late. Raises UserError if a model is missing."""
    windows = Windows(config, window, window)
    noise = np.random.default_rng(0).normal(size=round(window * RATE)).astype(np.float32)
    windows.hear(0.0, noise / 10)
    face = Face(np.array([0.0, 0, 1, 1]), np.zeros((6, 2)), 1.0)
    rows = {name: np.ones(run.widths[name], np.float32) for name in config.video}
    if rows:
        _mesh_model(config)
        look(np.zeros((480, 640, 3), np.uint8), config)
    for at in np.arange(0, window, 1 / config.video_rate):
        windows.see(at, [Seen(face, rows, 0.0)] if rows else [])
    windows.end()
    for one in windows.finished():
        streams = one.people[0].streams
        for there in (streams, *({name: streams[name]} for name in streams)):
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
    except Exception as error:  # Pillow raises several kinds on damaged files, and on huge ones
        raise BadMessage(f"a frame that is no JPEG: {error}") from error
    raise BadMessage(f"a frame of {size[0]} x {size[1]} pixels")


def _free(path: Path) -> Path:
    """The path, or one beside it if it or its feature file is there."""
    number, found = 1, path
    while found.exists() or found.with_suffix(".npz").exists():
        number += 1
        found = path.with_stem(f"{path.stem}-{number}")
    return found
