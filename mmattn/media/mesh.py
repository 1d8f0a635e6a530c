"""A face's geometry: distances between points of MediaPipe's face mesh (Kartynnik et al. 2019).

All are distances in three dimensions over the size of the head. They do not change with the head's
position, distance and roll, and change little when it turns.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from mmattn.media.faces import Face, Model, logistic
from mmattn.media.models import FACE_MESH, model_file

SIDE = 192  # pixels, side of the mesh model's input
WIDER = 1.5  # side of its input over that of the face
LEAST_SCORE = 0.5
ROUNDS = 2  # the second starts from the first's result, which removes the jitter of the box

# Points of the mesh that do not move with the expression: corners of the eyes, bridge of the nose.
RIGID = (33, 133, 362, 263, 168, 6, 197)
OPENING = "mouth opening"
# The two points of each distance; right and left from the person's view. Comments: the action unit
# of the Facial Action Coding System (Ekman & Friesen 1978) that changes it most.
DISTANCES = {
    OPENING: (13, 14),  # 25-27
    "mouth opening right": (82, 87),
    "mouth opening left": (312, 317),
    "mouth width": (61, 291),  # 18, 20
    "mouth width inside": (78, 308),
    "lips height": (0, 17),
    "upper lip height": (0, 13),  # 23, 24
    "lower lip height": (14, 17),
    "upper lip to nose": (2, 0),  # 10
    "lower lip to chin": (17, 152),  # 17
    "nose to chin": (1, 152),  # 26
    "mouth corner to eye right": (61, 33),  # 12, 15
    "mouth corner to eye left": (291, 263),
    "mouth corner to nose right": (61, 129),
    "mouth corner to nose left": (291, 358),
    "mouth corner to chin right": (61, 152),
    "mouth corner to chin left": (291, 152),
    "cheek to eye right": (50, 145),  # 6
    "cheek to eye left": (280, 374),
    "eye opening right": (159, 145),  # 5, 7, 43
    "eye opening left": (386, 374),
    "inner eye opening right": (158, 153),
    "inner eye opening left": (385, 380),
    "inner brow to eye right": (55, 133),  # 1
    "inner brow to eye left": (285, 362),
    "middle brow to eye right": (105, 159),
    "middle brow to eye left": (334, 386),
    "outer brow to eye right": (70, 33),  # 2
    "outer brow to eye left": (300, 263),
    "between the brows": (55, 285),  # 4
    "nose width": (129, 358),  # 9
    "nose to bridge": (1, 168),  # 9
}
OPENING_COLUMN = list(DISTANCES).index(OPENING)


@dataclass(frozen=True)
class FaceMesh:
    """Distances between points of the face mesh."""

    models: Path = field(repr=False)  # folder of the model files

    def record(self) -> dict:
        """What a feature file records of its video features."""
        return {"name": "face-mesh", "version": 2, "settings": {"features": list(DISTANCES)}}

    def start(self) -> Callable[[np.ndarray, Face], np.ndarray | None]:
        """Load the model: the features [32] of a face in a frame, None if the mesh finds no face.

        Raises UserError if the model file is missing or the wrong one.
        """
        model = Model(model_file(FACE_MESH, self.models).read_bytes())

        def features(frame: np.ndarray, face: Face) -> np.ndarray | None:
            points = find_mesh(model, frame, face)
            return None if points is None else distances(points)

        return features


def find_mesh(model: Model, frame: np.ndarray, face: Face) -> np.ndarray | None:
    """The mesh [468, 3] of a face: x, y, depth in pixels of the frame; None if there is no face."""
    image = Image.fromarray(np.ascontiguousarray(frame))
    box, (right, left) = face.box.reshape(2, 2), face.points[:2]
    for _ in range(ROUNDS):
        axis = (left - right) / max(np.linalg.norm(left - right), 1e-6)  # along the eyes
        to_frame = np.stack([axis, [-axis[1], axis[0]]], axis=1)  # columns: right and down
        side = WIDER * (box[1] - box[0]).max()
        corner = box.mean(axis=0) - to_frame @ [side / 2, side / 2]
        scale = side / SIDE
        rows = np.column_stack([scale * to_frame, corner])
        part = image.transform(
            (SIDE, SIDE), Image.Transform.AFFINE, rows.ravel().tolist(), Image.Resampling.BILINEAR
        )
        mesh, score = model(np.asarray(part, np.float32) / 255)
        if logistic(score).item() < LEAST_SCORE:
            return None
        points = mesh.reshape(468, 3).astype(np.float64) * scale
        upright = points[:, :2].copy()
        points[:, :2] = upright @ to_frame.T + corner
        middle = to_frame @ (upright.min(axis=0) + upright.max(axis=0)) / 2 + corner
        half = (upright.max(axis=0) - upright.min(axis=0)) / 2
        box = np.stack([middle - half, middle + half])
        right, left = points[33, :2], points[263, :2]
    return points


def distances(points: np.ndarray) -> np.ndarray:
    """The distances [32] float32 in a mesh [468, 3], in units of the head's size.

    Its size is the root mean square distance of the RIGID points from their centre.
    """
    rigid = points[list(RIGID)]
    size = np.sqrt(((rigid - rigid.mean(axis=0)) ** 2).sum(axis=1).mean())
    first, second = np.array(list(DISTANCES.values())).T
    return (np.linalg.norm(points[first] - points[second], axis=1) / size).astype(np.float32)
