"""Augmented copies of clips, drawn into training clips alone."""

import re
from dataclasses import replace

import numpy as np
import pytest

from mmattn.config import AugmentConfig
from mmattn.data.batches import (
    UNCHANGED,
    Augmentation,
    Dispatch,
    collate,
    make_buckets,
    places,
    read_ahead,
)
from mmattn.data.corpus import open_corpus
from mmattn.data.normalise import fit_normaliser
from mmattn.data.stream import Ragged
from mmattn.errors import UserError

FACTORS = {"tempo_0_8": 0.8, "tempo_1_25": 1.25, "noise_20": 1.0}
BOTH = ("audio", "video")
CLIPS = np.arange(32)
EVENT = 0.5  # seconds


@pytest.fixture
def folder(corpus_folder, write_clip):
    """32 clips whose audio is the number of the copy, but for a peak at EVENT in the first feature.

    The original is 0, the copies are 1, 2 and 3; their times are those of the clip.
    """
    for path in corpus_folder.rglob("*.npz"):
        with np.load(path) as archive:
            arrays = dict(archive)
        end = arrays["audio_timestamps"][-1]
        for number, (name, factor) in enumerate([("", 1.0), *FACTORS.items()]):
            times = np.arange(0, end + 1e-9, 0.02 * factor)
            frames = np.full((len(times), 4), number, np.float32)
            frames[np.abs(times - EVENT).argmin(), 0] = 9
            key = f"audio__{name}" if name else "audio"
            arrays |= {f"{key}_features": frames, f"{key}_timestamps": times}
        write_clip(path, **arrays)
    return corpus_folder


@pytest.fixture
def corpus(folder, options):
    return open_corpus(options(folder), BOTH, variants=("tempo", "noise_20"))


def drawn(corpus, config: AugmentConfig, clips=CLIPS, seed=0, epoch=0):
    """A batch of all clips, not normalised, and which copy each is of."""
    (bucket,) = make_buckets(corpus, CLIPS, 1)
    normaliser = fit_normaliser(corpus, CLIPS[:0])
    dispatch, augmentation = Dispatch(bucket, [clips]), Augmentation(config, seed, epoch)
    batch = collate(corpus, dispatch, normaliser, 1, len(clips), 1, augmentation)
    return batch, batch.streams["audio"].frames[0, 0, :, 0, 1].astype(int)


def test_a_stream_has_its_copies_and_they_are_no_modalities(corpus, folder, options):
    assert corpus.streams.keys() == {*BOTH} and corpus.widths == {"audio": 4, "video": 3}
    assert corpus.variants == sorted(FACTORS)
    assert open_corpus(options(folder), BOTH).variants == []
    assert open_corpus(options(folder), BOTH, variants=("tempo_0_8",)).variants == ["tempo_0_8"]


def test_as_many_clips_are_copies_as_asked_for(corpus):
    config = AugmentConfig(variants={"tempo": 0.4, "noise": 0.1})
    names = [Augmentation(config, 0, epoch).variant(corpus, 3) for epoch in range(3000)]
    shares = [names.count(name) / len(names) for name in ("", *FACTORS)]
    assert shares == pytest.approx([0.5, 0.2, 0.2, 0.1], abs=0.03)


def test_draws_depend_on_seed_epoch_and_clip_alone(corpus):
    config = AugmentConfig(variants={"tempo": 0.5})
    _, whole = drawn(corpus, config)
    _, half = drawn(corpus, replace(config, noise={"video": (0.1, 0.1)}), CLIPS[::-2])
    np.testing.assert_array_equal(half, whole[::-2])
    assert (drawn(corpus, config, epoch=1)[1] != whole).any()
    assert (drawn(corpus, config, seed=1)[1] != whole).any()


def test_a_copy_on_the_clip_s_clock_stays_aligned_and_on_its_own_does_not(corpus):
    aligned, which = drawn(corpus, AugmentConfig(variants={"tempo": 1.0}))
    apart, same = drawn(corpus, AugmentConfig(variants={"tempo": 1.0}, variant_times="own"))
    np.testing.assert_array_equal(same, which)
    assert {*which} == {1, 2}
    for batch, moved in ((aligned, [0, 0]), (apart, [EVENT / 0.8 - EVENT, EVENT / 1.25 - EVENT])):
        audio = batch.streams["audio"]
        for clip, number in enumerate(which):
            peak = audio.times[0, 0, clip][audio.frames[0, 0, clip, :, 0].argmax()]
            assert peak == pytest.approx(EVENT + moved[number - 1], abs=0.0126)
            spacing = np.diff(audio.times[0, 0, clip][: audio.length[0, 0, clip]])
            expected = 0.02 * (1 if batch is apart else [0.8, 1.25][number - 1])
            assert spacing == pytest.approx(expected, abs=1e-4)
    np.testing.assert_array_equal(aligned.streams["audio"].frames, apart.streams["audio"].frames)
    np.testing.assert_array_equal(aligned.streams["video"].times, apart.streams["video"].times)


def test_what_is_not_training_sees_originals(corpus, folder, options):
    plain = open_corpus(options(folder), BOTH)
    (bucket,) = make_buckets(corpus, CLIPS, 1)
    assert [bucket] == make_buckets(plain, CLIPS, 1)  # the same batches with and without
    normaliser = fit_normaliser(corpus, CLIPS)
    for name, statistics in fit_normaliser(plain, CLIPS).items():
        np.testing.assert_array_equal(normaliser[name], statistics)
    for one in (corpus, plain):
        batch = collate(one, Dispatch(bucket, [CLIPS]), normaliser, 1, 32, 1, UNCHANGED)
        raw = batch.streams["audio"].frames * normaliser["audio_std"] + normaliser["audio_mean"]
        assert (np.abs(raw[..., 1]) < 1e-6).all()
        assert batch.streams["audio"].frames.shape[-2] == bucket["audio"]


@pytest.mark.slow
def test_networks_among_the_baselines_are_trained_on_copies_too(commands, folder, tmp_path):
    options = ("--data.labels", "ravdess8", "--augment.variants", "tempo=0.5")
    small = ("--model.encoder", "none", "--train.epochs", 1, "--devices", 1)
    run = tmp_path / "run"
    commands.run("experiments.no_aug", "--data.roots", folder, *options, *small, "--out", run)
    assert "mean-pooling" in commands.run("mmattn", "baseline", run, "--networks")


def test_only_what_was_drawn_is_read(corpus, monkeypatch):
    augmentation = Augmentation(AugmentConfig(variants={"noise": 0.5}), 0, 0)
    _, which = drawn(corpus, augmentation.config)
    begun = []
    monkeypatch.setattr(Ragged, "read_ahead", lambda self, at: begun.append((self, at)))
    read_ahead(corpus, places(Dispatch({}, [CLIPS]), 1, 32, augmentation), augmentation)
    audio = corpus.streams["audio"]
    of_copies = [at for stream, at in begun if stream is audio.variants["noise_20"]]
    assert of_copies == np.flatnonzero(which == 3).tolist()
    assert sum(stream is audio for stream, _ in begun) == (which == 0).sum()


def test_cropped_and_tiled_as_the_clips_are(folder, options):
    data = options(folder, overlap=True, tile=("audio",))
    corpus = open_corpus(data, BOTH, variants=("tempo",))
    batch, which = drawn(corpus, AugmentConfig(variants={"tempo": 1.0}))
    audio, video = batch.streams["audio"], batch.streams["video"]
    for clip in CLIPS:
        ends = [one.times[0, 0, clip][one.length[0, 0, clip] - 1] for one in (audio, video)]
        assert ends[1] - 1e-6 <= ends[0] + 0.025 <= ends[1] + 0.05
        frames = audio.frames[0, 0, clip, : audio.length[0, 0, clip]]
        assert (frames == frames[0]).all() and which[clip] == round(frames[0, 1])


def test_a_copy_on_its_own_clock_began_with_the_clip_not_with_what_is_kept(
    folder, options, write_clip
):
    """Video from 0.3 s on: at 0.8 times the tempo the event at 0.5 s is still at 0.625 s."""
    for path in folder.rglob("*.npz"):
        with np.load(path) as archive:
            arrays = dict(archive)
        write_clip(path, **arrays | {"video_timestamps": arrays["video_timestamps"] + 0.3})
    corpus = open_corpus(options(folder, overlap=True), BOTH, variants=("tempo_0_8",))
    for audio in (corpus.streams["audio"], corpus.streams["audio"].select(CLIPS)):
        copy = audio.clip_or_variant(5, "tempo_0_8", own_clock=True)
        assert copy.times[copy.frames[:, 0].argmax()] == pytest.approx(EVENT / 0.8, abs=0.0126)
        assert copy.times[0] == pytest.approx(0.3 / 0.8, abs=0.0201)


def test_windows_of_attention_hold_the_copies(corpus):
    audio = corpus.streams["audio"]
    assert audio.most_within(0.5) == 1 + int(0.5 / 0.016)
    assert audio.select(CLIPS[:2]).most_within(0.5) == 1 + int(0.5 / 0.016)
    assert audio.spacings().max() == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("asked", "found"), [("pitch", "noise_20, tempo_0_8, tempo_1_25"), ("temp", "noise_20, ")]
)
def test_copies_that_files_do_not_have(folder, options, asked, found):
    message = f"--augment.variants {asked}: expected augmented copies of that name in the files"
    with pytest.raises(UserError, match=re.escape(message) + ".*found " + found):
        open_corpus(options(folder), BOTH, variants=(asked,))


def test_the_built_in_corpus_has_no_copies(options):
    with pytest.raises(UserError, match=r"--augment\.variants tempo: .*found none"):
        open_corpus(replace(options(), labels=()), BOTH, variants=("tempo",))


def test_a_clip_without_its_copy_is_a_bad_clip(folder, options, write_clip):
    path = next(folder.rglob("03-01-03-01-01-01-02.npz"))
    write_clip(path)
    with pytest.raises(UserError, match=r"1 bad clip of 32 .*audio__tempo_0_8_features is miss"):
        open_corpus(options(folder), BOTH, variants=("tempo",))
    assert len(open_corpus(options(folder), BOTH)) == 32


def test_copies_are_not_among_what_a_file_has(folder, options):
    with pytest.raises(UserError, match=r"the file has audio_features, video_features, which"):
        open_corpus(options(folder), ("text",))
