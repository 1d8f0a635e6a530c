"""dlib's face embedding: mostly identity, with some information on expression."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mmattn.errors import UserError
from mmattn.media.faces import Face
from mmattn.media.models import DLIB_EMBEDDING, DLIB_POINTS, model_file


@dataclass(frozen=True)
class DlibFace:
    """The 128 values of dlib's residual network (King 2017; He et al. 2016).

    Five points, the corners of the eyes and the base of the nose (Kazemi & Sullivan 2014), turn
    and scale the face to 150 × 150 pixels first. Embeddings of one person are within about 0.6.
    """

    def record(self) -> dict:
        """What a feature file records of its video features."""
        return {"name": "dlib", "version": 2, "settings": {}}

    def start(self) -> Callable[[np.ndarray, Face], np.ndarray | None]:
        """Load the models: the embedding [128] float32 of a face in a frame [H, W, 3] uint8.

        None for a face outside the frame. Raises UserError if dlib or a model file is missing,
        or a file is the wrong one.
        """
        try:
            import dlib
        except ImportError as error:
            raise UserError(
                f"the dlib embedding needs dlib ({error}): pip install 'mmattn[dlib]'"
            ) from error
        folder = _model_folder()
        find_points = dlib.shape_predictor(str(model_file(DLIB_POINTS, folder)))
        network = dlib.face_recognition_model_v1(str(model_file(DLIB_EMBEDDING, folder)))

        def features(frame: np.ndarray, face: Face) -> np.ndarray | None:
            height, width = frame.shape[:2]
            seen = np.minimum(face.box[2:], (width, height)) - np.maximum(face.box[:2], 0)
            if seen.min() < 1:
                return None
            frame = np.ascontiguousarray(frame)
            box = dlib.rectangle(*(round(float(side)) for side in face.box))
            points = find_points(frame, box)
            return np.array(network.compute_face_descriptor(frame, points), np.float32)

        return features


def _model_folder() -> Path:
    # Importing the package needs pkg_resources, which newer Pythons lack.
    package = find_spec("face_recognition_models")
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "the dlib embedding needs face-recognition-models (not found): "
            "pip install 'mmattn[dlib]'"
        )
    return Path(package.submodule_search_locations[0]) / "models"
