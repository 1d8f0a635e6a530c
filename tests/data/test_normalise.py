"""Normalisation: the training clips' valid frames and nothing else."""

import numpy as np
import pytest

from mmattn.config import DataConfig, SyntheticConfig
from mmattn.data.clips import Ragged, Stream, pack_streams
from mmattn.data.corpus import Corpus, open_corpus
from mmattn.data.normalise import (
    BLOCKS,
    Moments,
    fit_normaliser,
    measure_blocks,
    normalise_audio,
    normalise_video,
    normaliser_of,
)


def ragged(*clips) -> Ragged:
    return pack_streams(
        [Stream(np.array(clip, np.float32), np.arange(len(clip), dtype=float)) for clip in clips]
    )


def corpus_of(audio: Ragged, video: Ragged) -> Corpus:
    names = tuple(f"{number}" for number in range(len(audio)))
    labels = np.zeros(len(audio), np.int32)
    return Corpus("test", names, np.array(names), labels, ("only",), audio, video, None)


def test_hand_computed_values_and_frames_without_a_face():
    audio = ragged([[1.0, 5.0], [3.0, 5.0]], [[5.0, 5.0]], [[1e6, -1e6]])
    video = ragged([[2.0], [0.0], [4.0]], [[0.0], [6.0]], [[1e6]])
    corpus = corpus_of(audio, video)
    normaliser = fit_normaliser(corpus, np.array([0, 1]))
    np.testing.assert_allclose(normaliser.audio_mean, [3, 5])
    np.testing.assert_allclose(normaliser.audio_std, [np.sqrt(8 / 3), 1], rtol=1e-6)
    np.testing.assert_allclose(normaliser.video_mean, [4])
    np.testing.assert_allclose(normaliser.video_std, [np.sqrt(8 / 3)], rtol=1e-6)
    assert all(array.dtype == np.float32 for array in normaliser)
    normal = normalise_video(normaliser, video.clip(0))
    np.testing.assert_allclose(normal[:, 0], [-np.sqrt(1.5), 0, 0], rtol=1e-6)
    assert normal[1, 0] == 0  # without a face, and not -4 / deviation
    assert normalise_audio(normaliser, audio.clip(1)).tolist()[0][1] == 0


def test_validation_and_test_clips_cannot_change_it(corpus_folder, options, write_clip):
    train = np.arange(0, 32, 2)
    first = fit_normaliser(open_corpus(options(corpus_folder)), train)
    names = open_corpus(options(corpus_folder)).names
    for index in range(1, 32, 2):
        (path,) = corpus_folder.rglob(f"{names[index]}.npz")
        write_clip(path, seconds=2, seed=1000 + index)
    again = fit_normaliser(open_corpus(options(corpus_folder)), train)
    for before, after in zip(first, again, strict=True):
        assert before.tobytes() == after.tobytes()


def test_it_agrees_with_all_frames_at_once():
    corpus = open_corpus(DataConfig(synthetic=SyntheticConfig(clips=30, speakers=3)))
    train = np.arange(20)
    frames = np.concatenate([corpus.audio.clip(index) for index in train]).astype(np.float64)
    normaliser = fit_normaliser(corpus, train)
    np.testing.assert_allclose(normaliser.audio_mean, frames.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(normaliser.audio_std, frames.std(axis=0), rtol=1e-6)
    normal = np.concatenate([normalise_audio(normaliser, corpus.audio.clip(i)) for i in train])
    np.testing.assert_allclose(normal.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize(("clips", "count"), [(20, 3), (200, 4), (5, 7)])
def test_parts_measured_apart_give_the_same_bits(clips, count):
    corpus = open_corpus(DataConfig(synthetic=SyntheticConfig(clips=clips, speakers=2)))
    each = -(-BLOCKS // count)
    parts = [
        measure_blocks(corpus, np.arange(clips), range(number * each, (number + 1) * each))
        for number in range(count)
    ]
    together = normaliser_of(Moments(*map(np.concatenate, zip(*parts, strict=True))))
    for found, expected in zip(together, fit_normaliser(corpus, np.arange(clips)), strict=True):
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("value", [0.0, 0.1, -1234.567])
def test_constant_features_get_deviation_one(value):
    audio = ragged(*(np.full((n, 2), value) for n in (7, 11, 13)))
    normaliser = fit_normaliser(corpus_of(audio, ragged([[0.0]], [[0.0]], [[0.0]])), np.arange(3))
    assert normaliser.audio_std.tolist() == [1, 1]
    assert normaliser.video_std.tolist() == [1]  # no face in any frame
    np.testing.assert_allclose(normalise_audio(normaliser, audio.clip(0)), 0, atol=1e-4)


def test_a_large_mean_costs_no_digits():
    signal = np.random.default_rng(0).standard_normal((500, 1)) + 1e5
    audio = ragged(signal[:100], signal[100:])
    normaliser = fit_normaliser(corpus_of(audio, ragged([[1.0]], [[1.0]])), np.arange(2))
    exact = signal.astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(normaliser.audio_std, exact.std(axis=0), rtol=1e-6)
