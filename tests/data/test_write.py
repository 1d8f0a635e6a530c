"""The full-size corpus, scaled down."""

from collections import Counter

import numpy as np
import pytest

from mmattn.data.corpus import open_corpus
from mmattn.data.names import parse_name
from mmattn.data.write import _choose_names, write_full_size
from mmattn.errors import UserError


def test_a_part_of_the_full_size_corpus_opens(tmp_path, options):
    write_full_size(tmp_path / "full", clips=100, seed=3)
    corpus = open_corpus(options(tmp_path / "full", labels="six"))
    surprised = len(list((tmp_path / "full").rglob("01-01-08-*.npz")))
    assert len(corpus) == 100 - surprised
    assert (corpus.audio.width, corpus.video.width) == (89, 512)
    for corpus_name, audio, video in (("ravdess", 383.8, 57.5), ("crema-d", 266.6, 40.0)):
        clips = [i for i, name in enumerate(corpus.names) if parse_name(name).corpus == corpus_name]
        assert corpus.audio.lengths[clips].mean() == pytest.approx(audio, rel=0.1)
        assert corpus.video.lengths[clips].mean() == pytest.approx(video, rel=0.1)
    with np.load(next((tmp_path / "full").rglob("*.npz"))) as arrays:
        assert set(arrays.files) == {
            *("audio_features", "audio_timestamps", "video_features", "video_timestamps"),
            "emotion_label",
        }


def test_the_names_of_the_whole_corpus():
    names = _choose_names(8882, seed=0)
    assert len({name.stem for name in names}) == 8882
    assert Counter(name.corpus for name in names) == {"ravdess": 1440, "crema-d": 7442}
    ravdess = [name for name in names if name.corpus == "ravdess"]
    assert set(Counter(name.speaker for name in ravdess).values()) == {60}
    assert Counter(name.emotion for name in ravdess)["neutral"] == 96
    assert len({name.speaker for name in names}) == 24 + 91


def test_it_writes_into_new_folders_only(tmp_path):
    (tmp_path / "something").touch()
    with pytest.raises(UserError, match="is not empty"):
        write_full_size(tmp_path, clips=10)
