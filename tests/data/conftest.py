"""Feature files for the tests: written anew, or the real subset if it is at hand."""

import os
from pathlib import Path

import numpy as np
import pytest

from mmattn.config import DataConfig


def _clip_arrays(seconds: float = 1.0, seed: int = 0, **changes) -> dict:
    rng = np.random.default_rng(seed)
    audio, video = int(seconds * 50), int(seconds * 15)
    arrays = {
        "audio_features": rng.standard_normal((audio, 4)).astype(np.float32),
        "audio_timestamps": np.arange(audio) / 50,
        "video_features": rng.standard_normal((video, 3)).astype(np.float32),
        "video_timestamps": np.arange(video) / 15,
    }
    for key, change in changes.items():
        arrays[key] = change(arrays[key]) if callable(change) else change
    return {key: array for key, array in arrays.items() if array is not None}


def _write_clip(path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **_clip_arrays(**options))
    return path


def _write_corpus(folder: Path, actors: int = 4, seed: int = 0) -> Path:
    for actor in range(1, actors + 1):
        for emotion in range(1, 9):
            path = folder / f"Actor_{actor:02d}" / f"03-01-0{emotion}-01-01-01-{actor:02d}.npz"
            _write_clip(path, seconds=1 + 0.1 * emotion, seed=seed + 100 * actor + emotion)
    return folder


@pytest.fixture
def clip_arrays():
    """`clip_arrays(seconds, seed, **changes)`: a good clip, 4 wide at 50 Hz, 3 wide at 15 Hz.

    A change is another array, None to leave the array out, or a function of it.
    """
    return _clip_arrays


@pytest.fixture
def write_clip():
    """`write_clip(path, ...)`: the arrays of `clip_arrays` as a feature file."""
    return _write_clip


@pytest.fixture
def write_corpus():
    """`write_corpus(folder, actors, seed)`: a clip of each emotion of some RAVDESS actors."""
    return _write_corpus


@pytest.fixture
def corpus_folder(tmp_path) -> Path:
    """32 clips of 4 actors, of different lengths."""
    return _write_corpus(tmp_path / "clips")


@pytest.fixture
def options(tmp_path):
    """`options(root, ...)`: a DataConfig with all eight labels and a cache of its own."""

    def make(*roots: Path, **changes) -> DataConfig:
        return DataConfig(
            **{"roots": roots, "labels": ("ravdess8",), "cache": tmp_path / "cache"} | changes
        )

    return make


@pytest.fixture
def real_features() -> Path:
    """The real subset: 720 clips of 12 RAVDESS actors."""
    folder = os.environ.get("MMATTN_RAVDESS")
    if not folder:
        pytest.skip("MMATTN_RAVDESS is not set: the folder with ravdess_features")
    return Path(folder) / "ravdess_features"
