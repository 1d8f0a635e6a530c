"""Faces in video frames, by MediaPipe's BlazeFace (Bazarevsky et al. 2019), and their tracking."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

SIZE = 128  # pixels, side of the detector's input
LEAST_SCORE = 0.5
FORGOTTEN = 15  # frames without the face after which another may be tracked: a cut
SAME = 0.3  # overlap above which two boxes show the same face


class Face(NamedTuple):
    """A face in a frame, in pixels of the frame."""

    box: np.ndarray
    """[4] left, top, right, bottom."""
    points: np.ndarray
    """[6, 2] x, y of right eye, left eye, nose, mouth, right ear, left ear (the person's own)."""
    score: float
    """The detector's confidence, 0 to 1."""


class Model:
    """A TensorFlow Lite model on one core, so that it gives the same numbers every time."""

    def __init__(self, content: bytes):
        with _quiet():
            self._interpreter = Interpreter(model_content=content, num_threads=1)
            self._interpreter.allocate_tensors()
        (entry,) = self._interpreter.get_input_details()
        self._input = entry["index"]
        self._outputs = [output["index"] for output in self._interpreter.get_output_details()]

    def __call__(self, frame: np.ndarray) -> list[np.ndarray]:
        """Outputs for one frame [H, W, C] float32, without the batch axis."""
        self._interpreter.set_tensor(self._input, frame[None])
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(output)[0] for output in self._outputs]


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what C++ code writes to standard error: the name of the delegate."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class FaceDetector:
    """BlazeFace for faces within about two metres."""

    def __init__(self, model: bytes):
        self._model, self._anchors = Model(model), anchors()

    def __call__(self, frame: np.ndarray) -> list[Face]:
        """The faces in a frame [H, W, 3] uint8, the most confident first.

        If the whole frame shows none, because they are small, search both ends and the middle.
        """
        height, width = frame.shape[:2]
        found = self._look(frame, 0, 0)
        if not len(found[1]) and height != width:
            side = min(height, width)
            starts = ((max(height, width) - side) * np.arange(3)) // 2
            places = [(0, start) if width > height else (start, 0) for start in starts]
            parts = [
                self._look(frame[top : top + side, left : left + side], left, top)
                for top, left in places
            ]
            found = tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return merge_boxes(*found)

    def _look(self, frame: np.ndarray, left: int, top: int) -> tuple[np.ndarray, np.ndarray]:
        """Centre, size and points [n, 8, 2] of faces in a part of a frame, and scores [n]."""
        height, width = frame.shape[:2]
        scale = SIZE / max(height, width)
        small = Image.fromarray(np.ascontiguousarray(frame)).resize(
            (max(1, round(width * scale)), max(1, round(height * scale))),
            Image.Resampling.BILINEAR,
            reducing_gap=2.0,
        )
        square = Image.new("RGB", (SIZE, SIZE))
        corner = np.array([(SIZE - small.width) // 2, (SIZE - small.height) // 2])
        square.paste(small, tuple(corner))
        regressed, scores = self._model(np.asarray(square, np.float32) / 127.5 - 1)
        scores = logistic(scores[:, 0])
        kept = scores >= LEAST_SCORE
        found = regressed[kept].reshape(-1, 8, 2)
        places = self._anchors[kept] * SIZE - corner
        found[:, 0] += places
        found[:, 2:] += places[:, None]
        found /= scale
        found[:, [0, *range(2, 8)]] += (left, top)
        return found, scores[kept]


def logistic(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), as SciPy's `expit`, whose import takes 13 MB."""
    return 1 / (1 + np.exp(-np.maximum(x, -80)))  # float32 has no exp(89)


def anchors() -> np.ndarray:
    """Centres [896, 2] (x, y in 0 to 1) of BlazeFace's anchors."""
    places = []
    for cells, each in ((16, 2), (8, 6)):
        middles = (np.arange(cells) + 0.5) / cells
        y, x = np.meshgrid(middles, middles, indexing="ij")
        places.append(np.repeat(np.stack([x.ravel(), y.ravel()], axis=1), each, axis=0))
    return np.concatenate(places)


def merge_boxes(found: np.ndarray, scores: np.ndarray) -> list[Face]:
    """Merge overlapping faces into their mean weighted by scores [n], as in BlazeFace's paper.

    `found` [n, 8, 2] is centre, size and six points of each, (x, y) in pixels.
    """
    boxes = np.concatenate([found[:, 0] - found[:, 1] / 2, found[:, 0] + found[:, 1] / 2], axis=1)
    order, faces = list(np.argsort(-scores, kind="stable")), []
    while order:
        best = order[0]
        same = [row for row in order if row == best or overlap(boxes[row], boxes[best]) > SAME]
        weights = scores[same] / scores[same].sum()
        points = np.tensordot(weights, found[same, 2:], 1)
        faces.append(Face(weights @ boxes[same], points, float(scores[best])))
        order = [row for row in order if row not in same]
    return faces


def area(face: Face) -> float:
    """Area of a face's box in pixels."""
    return float(np.prod(face.box[2:] - face.box[:2]))


def cut_square(frame: np.ndarray, face: Face, margin: float, size: int) -> Image.Image | None:
    """The square around a face's box, `size` pixels a side; None for a face outside the frame.

    Its side in the frame [H, W, 3] uint8 is `margin` times the box's longer side. It is black
    outside the frame.
    """
    middle = (face.box[:2] + face.box[2:]) / 2
    half = margin * (face.box[2:] - face.box[:2]).max() / 2
    left, top, right, bottom = np.rint([*(middle - half), *(middle + half)]).astype(int)
    x, y = max(left, 0), max(top, 0)
    part = frame[y : max(bottom, 0), x : max(right, 0)]
    if not part.size:
        return None
    image = Image.fromarray(np.ascontiguousarray(part))
    square = image.crop((left - x, top - y, right - x, bottom - y))
    return square.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes [4]."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    both = np.prod(np.maximum(sides, 0))
    areas = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])
    return float(both / (areas - both)) if areas > both else 0.0


class FaceTracker:
    """Tracks one face through a clip: first the largest, then the one that overlaps it.

    After frames without it, its last position is used; after many, the largest face again.
    """

    def __init__(self) -> None:
        self._last: np.ndarray | None = None  # its last box
        self._missed = 0  # frames since then

    def __call__(self, faces: Sequence[Face]) -> Face | None:
        """The tracked face among those of the next frame; None if it is not there."""
        last = self._last
        if last is None:
            chosen = max(faces, key=area, default=None)
        else:
            near = [face for face in faces if overlap(face.box, last) > 0]
            chosen = max(near, key=lambda face: overlap(face.box, last), default=None)
        self._missed = 0 if chosen else self._missed + 1
        if chosen is not None:
            self._last = chosen.box
        elif self._missed == FORGOTTEN:
            self._last = None
        return chosen
