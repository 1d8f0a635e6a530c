"""Expressions of faces: what the network sees, and that it is the one whose values are stored."""

import os
from pathlib import Path

import numpy as np
import pytest

from mmattn.config import ExtractConfig
from mmattn.errors import UserError
from mmattn.media import expression
from mmattn.media.expression import CLASSES, Expression
from mmattn.media.extract import extract_clip
from mmattn.media.faces import Face
from mmattn.media.models import EXPRESSION

FACE = Face(np.array([40.0, 40, 80, 80]), np.zeros((6, 2)), 1.0)


def test_the_network_sees_the_face_in_grey_from_minus_one_to_one(monkeypatch, tmp_path):
    """One in place of it gives its input's first and last pixels, and a layer of known mean."""

    def network(content: bytes, inner: list[str]):
        assert content == b"weights"
        layer = np.arange(4 * 4 * 128, dtype=np.float32).reshape(4, 4, 128)
        return lambda seen: [seen[[0, 0, -1, -1], [0, -1, 0, -1], 0], *([layer] * len(inner))]

    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    monkeypatch.setattr(expression, "Model", network)
    monkeypatch.setattr(expression, "model_file", lambda name, folder: path)
    frame = np.zeros((120, 120, 3), np.uint8)
    frame[:60] = (255, 0, 0)  # red: 0.299 of white
    frame[60:] = (0, 255, 0)  # green: 0.587
    corners = [76 / 127.5 - 1] * 2 + [150 / 127.5 - 1] * 2
    row = Expression(tmp_path).start()(frame, FACE)
    np.testing.assert_allclose(row[:4], corners, atol=1e-6)
    np.testing.assert_allclose(row[4:], 128 * 7.5 + np.arange(128))
    posteriors = Expression(tmp_path, inner=False).start()
    np.testing.assert_allclose(posteriors(frame, FACE), corners, atol=1e-6)
    assert posteriors(frame, FACE._replace(box=FACE.box + 200)) is None


def test_a_missing_model_says_where_it_comes_from(tmp_path):
    with pytest.raises(UserError, match=f"{EXPRESSION}.*mmattn download face-models"):
        Expression(tmp_path).start()


@pytest.mark.slow
def test_posteriors_and_the_layer_before_of_the_real_network(face_models):
    """The logits are a convolution of the layer before: of its mean nearly a linear map."""
    both = Expression(face_models).start()
    posteriors = Expression(face_models, inner=False).start()
    rng = np.random.default_rng(0)
    frames = [rng.normal(128, 40, (8, 8, 3)).clip(0, 255).astype(np.uint8) for _ in range(400)]
    frames = [frame.repeat(16, 0).repeat(16, 1) for frame in frames]
    rows = np.stack([both(frame, FACE) for frame in frames])
    assert rows.shape == (400, 7 + 128) and rows.dtype == np.float32
    np.testing.assert_allclose(rows[:, :7].sum(1), 1, rtol=1e-5)
    for frame, row in zip(frames[:5], rows, strict=False):
        np.testing.assert_array_equal(posteriors(frame, FACE), row[:7])
    logits = np.log(rows[:, :7].astype(float))
    logits -= logits.mean(1, keepdims=True)
    inputs = np.column_stack([rows[:, 7:], np.ones(400)])
    fitted, *_ = np.linalg.lstsq(inputs[:300], logits[:300])
    left = logits[300:] - inputs[300:] @ fitted
    assert (left.var(0) < 0.3 * logits[300:].var(0)).all()


@pytest.mark.slow
def test_posteriors_of_real_clips_are_those_that_were_stored(face_models):
    """They were made of another detector's boxes; a class is followed best by the same class."""
    data = Path(os.environ.get("MMATTN_RAVDESS", "/nowhere"))
    clips = sorted(data.glob("ravdess_clips/Actor_01/01-*.mp4"))
    if not clips:
        pytest.skip("MMATTN_RAVDESS does not name a folder with RAVDESS's clips")
    config = ExtractConfig(face_models, audio={}, video={"video": "expression"}, video_rate=30)
    found, stored = [], []
    for clip in clips:
        with np.load(data / "ravdess_features" / "Actor_01" / f"{clip.stem}.npz") as file:
            stream = extract_clip(clip, config).streams["video"]
            at = np.searchsorted(stream.times, file["video_timestamps"] - 1e-3)
            np.testing.assert_allclose(stream.times[at], file["video_timestamps"], atol=1e-4)
            found.append(stream.frames[at, :7])
            stored.append(file["video_features"].astype(float))
    found, stored = np.concatenate(found), np.concatenate(stored)
    assert np.corrcoef(found.ravel(), stored.ravel())[0, 1] > 0.85
    assert (found.argmax(1) == stored.argmax(1)).mean() > 0.7
    each = np.corrcoef(found.T, stored.T)[:7, 7:]
    for name in ("angry", "sad", "surprise", "neutral"):  # others are all below 0.2
        column = CLASSES.index(name)
        assert each[column, column] == each[column].max() > 0.6, name
