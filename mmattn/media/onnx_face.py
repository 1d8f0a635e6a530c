"""A face embedding by the user's own network, an ONNX file."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from mmattn.config import Colour
from mmattn.errors import UserError
from mmattn.media.faces import Face, cut_square
from mmattn.media.models import sha256

MOST_MARGIN = 10.0
Found = TypeVar("Found")


@dataclass(frozen=True)
class OnnxFace:
    """The first output of an ONNX network for a face.

    Its input is float32 [1, C, S, S] or [1, S, S, C]; C is 1 if `colour` is grey, 3 otherwise. The
    fields are those of ExtractConfig.
    """

    model: Path | None = field(repr=False)
    size: int | None
    colour: Colour
    mean: tuple[float, ...]
    std: tuple[float, ...]
    margin: float

    def record(self) -> dict:
        """What a feature file records of its video features. Raises UserError without the file."""
        settings = {
            "sha256": _read(self.model, sha256),
            "onnx_size": self.size,
            "onnx_colour": self.colour,
            "onnx_mean": list(self.mean),
            "onnx_std": list(self.std),
            "onnx_margin": self.margin,
        }
        return {"name": "onnx", "version": 1, "settings": settings}

    def start(self) -> Callable[[np.ndarray, Face], np.ndarray | None]:
        """Load the network: its output, as one row, for a face in a frame [H, W, 3] uint8.

        None for a face outside the frame. Raises UserError without onnxruntime or the file, or if
        the network does not run with these options.
        """
        channels = 1 if self.colour == "grey" else 3
        self._check(channels)
        run, shape = _load(self.model)
        match shape:
            case [_, depth, *sides] if depth == channels and len(sides) == 2:
                order = (2, 0, 1)
            case [_, *sides, depth] if depth == channels and len(sides) == 2:
                order = (0, 1, 2)
            case _:
                raise UserError(
                    f"--onnx-model {self.model}: expected an input [1, {channels}, S, S] or "
                    f"[1, S, S, {channels}] for --onnx-colour {self.colour}, got {shape}"
                )
        size = self._side(sides)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)

        def embed(square: np.ndarray) -> np.ndarray:
            pixels = square.reshape(size, size, channels)
            if self.colour == "bgr":
                pixels = pixels[..., ::-1]
            return run(((pixels / np.float32(255) - mean) / std).transpose(order)[None])

        embed(
            np.zeros((size, size, channels), np.uint8)
        )  # so that an unsuitable network fails at once

        def features(frame: np.ndarray, face: Face) -> np.ndarray | None:
            square = cut_square(frame, face, self.margin, size)
            if square is None:
                return None
            return embed(np.asarray(square.convert("L") if channels == 1 else square))

        return features

    def _check(self, channels: int) -> None:
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, channels):
                raise UserError(
                    f"--onnx-{name}: expected one number, or one for each channel of --onnx-colour "
                    f"{self.colour}, got {len(numbers)}"
                )
        if not min(self.std) > 0:
            raise UserError(f"--onnx-std {min(self.std)}: expected above 0")
        if not 0 < self.margin <= MOST_MARGIN:
            raise UserError(
                f"--onnx-margin {self.margin}: expected above 0, at most {MOST_MARGIN:g}"
            )

    def _side(self, sides: list[int | str | None]) -> int:
        """S, from the last axes of the input and the option."""
        given = {side for side in (*sides, self.size) if isinstance(side, int)}
        if len(given) == 1 and min(given) > 0:
            return given.pop()
        raise UserError(
            f"--onnx-size {self.size}: expected the side of the square input of {self.model}, "
            f"whose sides are {' and '.join(map(str, sides))}"
        )


def _read(path: Path | None, read: Callable[[Path], Found]) -> Found:
    """Apply a function to the network's file. Raises UserError without the file."""
    if path is None:
        raise UserError("--onnx-model is missing: --video onnx needs the file of a network")
    try:
        return read(path.expanduser())
    except OSError as error:
        raise UserError(f"--onnx-model {path}: {error.strerror}") from error


def _load(path: Path | None) -> tuple[Callable[[np.ndarray], np.ndarray], list[int | str | None]]:
    """A function that returns the first output as one row float32, and the input's shape."""
    content = _read(path, Path.read_bytes)
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"--video onnx needs onnxruntime ({error}): pip install 'mmattn[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # clips are extracted in parallel, each on a core
    options.log_severity_level = 4  # failures are in the error
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        entry, output = session.get_inputs()[0], session.get_outputs()[0]
    except Exception as error:  # onnxruntime has a class for each cause, and names none publicly
        raise UserError(f"--onnx-model {path}: not an ONNX network: {error}") from error

    def run(pixels: np.ndarray) -> np.ndarray:
        try:
            (found,) = session.run([output.name], {entry.name: pixels})
            return found.astype(np.float32).ravel()
        except Exception as error:
            raise UserError(f"--onnx-model {path}: {' '.join(str(error).split())}") from error

    return run, entry.shape
