"""Normalisation: the training clips' valid frames and nothing else."""

import numpy as np
import pytest

from mmattn.config import DataConfig, SyntheticConfig
from mmattn.data.corpus import Corpus, open_corpus
from mmattn.data.normalise import (
    BLOCKS,
    fit_normaliser,
    normalised,
)
from mmattn.data.stream import Ragged, make_stream, pack_streams


def ragged(*clips, zero_is_missing: bool = False) -> Ragged:
    streams = [
        make_stream(np.array(clip, np.float32), np.arange(len(clip) * 1.0)) for clip in clips
    ]
    return pack_streams(streams, zero_is_missing)


def corpus_of(**streams: Ragged) -> Corpus:
    clips = len(streams["audio"])
    names = tuple(map(str, range(clips)))
    return Corpus("test", names, np.array(names), np.zeros(clips, np.int32), ("only",), streams)


def drawn(**sizes: int) -> Corpus:
    return open_corpus(DataConfig(synthetic=SyntheticConfig(**sizes)), ("audio", "video"))


def test_hand_computed_values_and_frames_without_a_face():
    audio = ragged([[1.0, 5.0], [3.0, 5.0]], [[5.0, 5.0]], [[1e6, -1e6]])
    video = ragged([[2.0], [0.0], [4.0]], [[0.0], [6.0]], [[1e6]], zero_is_missing=True)
    text = ragged([[0.0]], [[0.0], [3.0]], [[1e6]])
    corpus = corpus_of(audio=audio, video=video, text=text)
    normaliser = fit_normaliser(corpus, np.array([0, 1]))
    np.testing.assert_allclose(normaliser["audio_mean"], [3, 5])
    np.testing.assert_allclose(normaliser["audio_std"], [np.sqrt(8 / 3), 1], rtol=1e-6)
    np.testing.assert_allclose(normaliser["video_mean"], [4])
    np.testing.assert_allclose(normaliser["video_std"], [np.sqrt(8 / 3)], rtol=1e-6)
    np.testing.assert_allclose(normaliser["text_mean"], [1])  # zeros are values there
    np.testing.assert_allclose(normaliser["text_std"], [np.sqrt(2)], rtol=1e-6)
    assert len(normaliser) == 6
    assert all(array.dtype == np.float32 for array in normaliser.values())
    normal = normalised(corpus, 0, normaliser)["video"].frames
    np.testing.assert_allclose(normal[:, 0], [-np.sqrt(1.5), 0, 0], rtol=1e-6)
    assert normal[1, 0] == 0  # without a face, and not -4 / deviation
    assert normalised(corpus, 1, normaliser)["audio"].frames[0, 1] == 0


def test_validation_and_test_clips_cannot_change_it(corpus_folder, options, write_clip):
    train = np.arange(0, 32, 2)
    corpus = open_corpus(options(corpus_folder), ("audio", "video"))
    first, names = fit_normaliser(corpus, train), corpus.names
    for index in range(1, 32, 2):
        (path,) = corpus_folder.rglob(f"{names[index]}.npz")
        write_clip(path, seconds=2, seed=1000 + index)
    again = fit_normaliser(open_corpus(options(corpus_folder), ("audio", "video")), train)
    assert len(first) == 4
    for name, before in first.items():
        assert before.tobytes() == again[name].tobytes()


def test_it_agrees_with_all_frames_at_once():
    corpus, train = drawn(clips=30, speakers=3), np.arange(20)
    audio = corpus.streams["audio"]
    frames = np.concatenate([audio.clip(index).frames for index in train]).astype(np.float64)
    normaliser = fit_normaliser(corpus, train)
    np.testing.assert_allclose(normaliser["audio_mean"], frames.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(normaliser["audio_std"], frames.std(axis=0), rtol=1e-6)
    normal = np.concatenate([normalised(corpus, i, normaliser)["audio"].frames for i in train])
    np.testing.assert_allclose(normal.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize(("clips", "count"), [(20, 3), (200, 4), (5, 7)])
def test_parts_measured_apart_give_the_same_bits(clips, count):
    corpus = drawn(clips=clips, speakers=2)
    each = -(-BLOCKS // count)
    parts = []

    def gather(moments):
        """Of the processes so far."""
        parts.append(moments)
        return {name: np.concatenate([part[name] for part in parts]) for name in moments}

    for number in range(count):
        own = range(number * each, (number + 1) * each)
        together = fit_normaliser(corpus, np.arange(clips), own, gather)
    expected = fit_normaliser(corpus, np.arange(clips))
    assert together.keys() == expected.keys()
    for name, found in together.items():
        assert found.tobytes() == expected[name].tobytes()


@pytest.mark.parametrize("value", [0.0, 0.1, -1234.567])
def test_constant_features_get_deviation_one(value):
    audio = ragged(*(np.full((n, 2), value) for n in (7, 11, 13)))
    video = ragged([[0.0]], [[0.0]], [[0.0]], zero_is_missing=True)
    corpus = corpus_of(audio=audio, video=video)
    normaliser = fit_normaliser(corpus, np.arange(3))
    assert normaliser["audio_std"].tolist() == [1, 1]
    assert normaliser["video_std"].tolist() == [1]  # no face in any frame
    normal = normalised(corpus, 0, normaliser)["audio"].frames
    np.testing.assert_allclose(normal, 0, atol=1e-4)


def test_without_clips_frames_stay_as_they_are():
    corpus = drawn(clips=3, speakers=1)
    normaliser = fit_normaliser(corpus, np.array([], int))
    for name, stream in normalised(corpus, 1, normaliser).items():
        assert stream.valid.any()
        found, expected = stream.frames, corpus.streams[name].clip(1).frames
        np.testing.assert_array_equal(found[stream.valid], expected[stream.valid])


def test_a_large_mean_costs_no_digits():
    signal = np.random.default_rng(0).standard_normal((500, 1)) + 1e5
    audio = ragged(signal[:100], signal[100:])
    normaliser = fit_normaliser(corpus_of(audio=audio), np.arange(2))
    exact = signal.astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(normaliser["audio_std"], exact.std(axis=0), rtol=1e-6)
