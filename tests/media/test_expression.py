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
    """One in place of it gives its input's corners."""

    def network(content: bytes):
        assert content == b"weights"
        return lambda seen: [seen[[0, 0, -1, -1], [0, -1, 0, -1], 0]]

    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    monkeypatch.setattr(expression, "Model", network)
    monkeypatch.setattr(expression, "model_file", lambda name, folder: path)
    frame = np.zeros((120, 120, 3), np.uint8)
    frame[:60] = (255, 0, 0)  # red: 0.299 of white
    frame[60:] = (255, 255, 0)  # yellow: 0.886
    features = Expression(tmp_path).start()
    corners = np.repeat([76 / 127.5 - 1, 226 / 127.5 - 1], 2)
    with np.errstate(invalid="ignore"):  # red is below 0 here
        row = features(frame, FACE)
    np.testing.assert_allclose(row[:4], corners, atol=1e-6)
    np.testing.assert_allclose(row[6:], np.log(corners[2:] + 1e-3), atol=1e-6)
    assert features(frame, FACE._replace(box=FACE.box + 200)) is None


def test_a_missing_model_says_where_it_comes_from(tmp_path):
    with pytest.raises(UserError, match=f"{EXPRESSION}.*mmattn download models"):
        Expression(tmp_path).start()


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
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert np.corrcoef(found.ravel(), stored.ravel())[0, 1] > 0.85
    assert (found.argmax(1) == stored.argmax(1)).mean() > 0.7
    each = np.corrcoef(found.T, stored.T)[:7, 7:]
    for name in ("angry", "sad", "surprise", "neutral"):  # others are all below 0.2
        column = CLASSES.index(name)
        assert each[column, column] == each[column].max() > 0.6, name
