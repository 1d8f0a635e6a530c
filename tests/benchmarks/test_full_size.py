"""The full-size corpus, scaled down."""

from collections import Counter

import numpy as np
import pytest

from benchmarks.full_size import _choose_names, write_full_size
from mmattn.config import DataConfig
from mmattn.data.corpora import row_of
from mmattn.data.corpus import open_corpus
from mmattn.errors import UserError


def test_a_part_of_the_full_size_corpus_opens(tmp_path):
    write_full_size(tmp_path / "full", clips=100, seed=3)
    data = DataConfig(roots=(tmp_path / "full",), cache=tmp_path / "cache")
    corpus = open_corpus(data, ("audio", "video"))
    surprised = len(list((tmp_path / "full").rglob("01-01-08-*.npz")))
    assert len(corpus) == 100 - surprised
    assert corpus.widths == {"audio": 89, "video": 512}
    for corpus_name, audio, video in (("ravdess", 383.8, 57.5), ("crema-d", 266.6, 40.0)):
        clips = np.flatnonzero(corpus.columns["corpus"] == corpus_name)
        assert corpus.streams["audio"].lengths[clips].mean() == pytest.approx(audio, rel=0.1)
        assert corpus.streams["video"].lengths[clips].mean() == pytest.approx(video, rel=0.1)
    with np.load(next((tmp_path / "full").rglob("*.npz"))) as arrays:
        assert set(arrays.files) == {
            *("audio_features", "audio_timestamps", "video_features", "video_timestamps"),
            "emotion_label",
        }


def test_the_names_of_the_whole_corpus():
    names = _choose_names(8882, seed=0)
    assert len(set(names)) == 8882
    rows = [row_of(name) for name in names]
    assert Counter(row["corpus"] for row in rows) == {"ravdess": 1440, "crema-d": 7442}
    ravdess = [row for row in rows if row["corpus"] == "ravdess"]
    assert set(Counter(row["speaker"] for row in ravdess).values()) == {60}
    assert Counter(row["emotion"] for row in ravdess)["neutral"] == 96
    assert len({(row["corpus"], row["speaker"]) for row in rows}) == 24 + 91


def test_it_writes_into_new_folders_only(tmp_path):
    (tmp_path / "something").touch()
    with pytest.raises(UserError, match="is not empty"):
        write_full_size(tmp_path, clips=10)
