"""FaceNet's face embedding, from a weights file that the user provides."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmattn.errors import UserError
from mmattn.media.faces import Face
from mmattn.media.models import FACENET, check_model

SIDE = 160  # pixels that the network sees


@dataclass(frozen=True)
class FaceNet:
    """The 512 values of FaceNet (Schroff et al. 2015), of length 1.

    An Inception-ResNet-v1 trained on VGGFace2 (Cao et al. 2018), with the weights of
    facenet-pytorch and its way of cropping a face, without a margin.
    """

    weights: Path | None = field(repr=False)

    def record(self) -> dict:
        """What a feature file records of its video features."""
        return {"name": "facenet", "version": 2, "settings": {"weights": FACENET}}

    def start(self) -> Callable[[np.ndarray, Face], np.ndarray | None]:
        """Load the network: the embedding [512] float32 of a face in a frame [H, W, 3] uint8.

        None for a face outside the frame. Raises UserError if torch or the file of weights is
        missing, or the file is the wrong one.
        """
        if self.weights is None:
            raise UserError(
                f"--facenet is missing: FaceNet needs the path of its weights, {FACENET} of "
                "facenet-pytorch's release v2.2.9"
            )
        try:
            path = check_model(self.weights.expanduser(), FACENET)
        except UserError as error:
            raise UserError(f"--facenet: {error}") from error
        try:
            import torch

            from mmattn.media.inception import inception_resnet_v1
        except ImportError as error:
            raise UserError(
                f"FaceNet needs torch ({error}): pip install 'mmattn[facenet]'"
            ) from error
        torch.set_num_threads(1)  # clips are extracted in parallel, each on a core
        weights = torch.load(path, map_location="cpu", weights_only=True)
        network = inception_resnet_v1()
        # The last layer tells the people of VGGFace2 apart, not those of these clips.
        network.load_state_dict(
            {name: value for name, value in weights.items() if not name.startswith("logits.")}
        )
        network.eval()

        @torch.inference_mode()
        def features(frame: np.ndarray, face: Face) -> np.ndarray | None:
            part = cut_out(frame, face.box)
            if not part.size:
                return None
            pixels = torch.from_numpy(part).permute(2, 0, 1)[None].float()
            pixels = torch.nn.functional.interpolate(pixels, (SIDE, SIDE), mode="area").floor()
            embedding = network((pixels - 127.5) / 128)
            return torch.nn.functional.normalize(embedding)[0].numpy()

        return features


def cut_out(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """A copy of the part of a frame [H, W, 3] within a box [4], which may cross its edges."""
    height, width = frame.shape[:2]
    left, top, right, bottom = np.clip(box, 0, [width, height, width, height]).astype(int)
    return frame[top:bottom, left:right].copy()
