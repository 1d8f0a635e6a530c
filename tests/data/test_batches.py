"""Batches: every clip once, in its bucket, in an order of (seed, epoch), padded and normalised."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import jax
import numpy as np
import pytest

from mmattn.config import (
    AugmentConfig,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    SyntheticConfig,
    TrainConfig,
)
from mmattn.data.augment import stretched
from mmattn.data.batches import (
    Augmentation,
    Batch,
    Bucket,
    Dispatch,
    collate,
    make_buckets,
    places,
    plan_epoch,
    read_ahead,
    shared_shape,
)
from mmattn.data.corpus import Corpus, open_corpus
from mmattn.data.normalise import fit_normaliser, normalised
from mmattn.data.stream import PADDING, Ragged, make_stream, pack_streams
from mmattn.train import devices
from mmattn.train.feed import Feed
from mmattn.train.inference import Predictor
from mmattn.train.step import NO_SUMS, Learner, Settings

BATCH, STEPS = 8, 3


def ragged(*clips, zero_is_missing: bool = False) -> Ragged:
    """Clips whose frames are a second apart."""
    streams = [
        make_stream(np.array(clip, np.float32), np.arange(len(clip) * 1.0)) for clip in clips
    ]
    return pack_streams(streams, zero_is_missing)


def corpus_of(audio: Ragged, video: Ragged, labels) -> Corpus:
    names = tuple(f"{number}" for number in range(len(audio)))
    streams = {"audio": audio, "video": video}
    return Corpus("test", names, np.array(names), np.array(labels), tuple("abc"), streams)


def shape(audio: int, video: int) -> Bucket:
    return {"audio": audio, "video": video}


def lengths(corpus: Corpus, name: str = "audio") -> np.ndarray:
    return corpus.streams[name].lengths


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    sizes = {"audio_width": 3, "video_width": 3, "audio_rate": 12, "video_rate": 10}
    data = DataConfig(synthetic=SyntheticConfig(clips=150, speakers=5, **sizes))
    return open_corpus(data, ("audio", "video"))


CLIPS = np.random.default_rng(3).permutation(150)[:107]  # 13 whole batches and three clips


@pytest.fixture(scope="module")
def buckets(corpus) -> list[Bucket]:
    return make_buckets(corpus, np.arange(len(corpus)), 4)


def plan(corpus, buckets, clips=CLIPS, seed=0, epoch=0, steps=STEPS) -> list[Dispatch]:
    rng = np.random.default_rng([seed, epoch])
    return plan_epoch(corpus, clips, buckets, BATCH, steps, rng)


def as_lists(dispatches: list[Dispatch]) -> list:
    return [(bucket, [batch.tolist() for batch in batches]) for bucket, batches in dispatches]


def batches_of(dispatches: list[Dispatch]) -> list[np.ndarray]:
    return [batch for dispatch in dispatches for batch in dispatch.batches]


@pytest.mark.parametrize("count", [1, 3, 4, 40, 107])
def test_every_clip_once_in_as_few_steps_as_there_can_be(corpus, count):
    clips = CLIPS[:count]
    dispatches = plan(corpus, make_buckets(corpus, CLIPS, 4), clips)
    batches = batches_of(dispatches)
    assert sorted(np.concatenate(batches)) == sorted(clips)
    assert len(batches) == -(-count // BATCH)
    incomplete = [len(batch) for batch in batches if len(batch) != BATCH]
    assert incomplete == ([count % BATCH] if count % BATCH else [])
    assert all(1 <= len(dispatch.batches) <= STEPS for dispatch in dispatches)


def test_clips_fit_their_bucket_and_most_of_them_no_shorter_one(corpus, buckets):
    shorter = 0
    for dispatch in plan(corpus, buckets):
        for clip in np.concatenate(dispatch.batches):
            fits = [
                all(lengths(corpus, name)[clip] <= bucket[name] for name in bucket)
                for bucket in buckets
            ]
            assert fits[buckets.index(dispatch.bucket)]
            shorter += fits.index(True) != buckets.index(dispatch.bucket)
    assert shorter <= (BATCH - 1) * (len(buckets) - 1)  # what was left over


def test_buckets_are_few_and_nested_and_the_last_holds_every_clip(corpus, buckets):
    assert len(buckets) == 4
    for short, long in pairwise(buckets):
        assert short["audio"] <= long["audio"] and short["video"] <= long["video"]
    assert buckets[-1] == shape(lengths(corpus).max(), lengths(corpus, "video").max())
    held = [np.mean(lengths(corpus) <= bucket["audio"]) for bucket in buckets]
    np.testing.assert_allclose(held, [0.25, 0.5, 0.75, 1], atol=0.05)


@pytest.mark.parametrize(
    ("count", "shared"), [(1, [0]), (2, [0, 1]), (3, [0, 2, 2]), (4, [1, 1, 3, 3])]
)
def test_half_of_the_buckets_share_a_shape(count, shared):
    buckets = [shape(10 + n, 5 + n) for n in range(count)]
    assert [shared_shape(one, buckets) for one in buckets] == [buckets[n] for n in shared]


def test_equal_lengths_share_a_bucket_and_a_long_video_widens_those_after_it():
    audio = ragged(*(np.ones((length, 1)) for length in (4, 4, 4, 6, 6, 9)))
    video = ragged(*(np.ones((length, 1)) for length in (2, 2, 2, 8, 3, 3)))
    corpus = corpus_of(audio, video, [0] * 6)
    four = [shape(4, 2), shape(6, 3), shape(6, 8), shape(9, 8)]
    assert make_buckets(corpus, np.arange(6), 6) == four
    assert make_buckets(corpus, np.arange(6), 2) == [shape(4, 2), shape(9, 8)]
    assert make_buckets(corpus, np.array([0, 1, 2]), 3) == [shape(4, 2)]


def test_the_order_in_which_modalities_are_named_changes_no_batch(corpus):
    """Audio, whose name comes first, decides the order of the clips."""
    named = replace(corpus, streams=dict(reversed(corpus.streams.items())))
    buckets = make_buckets(corpus, CLIPS, 4)
    assert make_buckets(named, CLIPS, 4) == buckets
    assert as_lists(plan(named, buckets)) == as_lists(plan(corpus, buckets))
    config = AugmentConfig(feature_mask=0.5, drop_modality=0.5, mixup=0.5)
    dispatch = Dispatch(buckets[-1], [CLIPS[:8]])
    batches = augmented(corpus, dispatch, config), augmented(named, dispatch, config)
    jax.tree.map(np.testing.assert_array_equal, *batches)


def test_a_bucket_has_a_frame_of_a_modality_that_its_clips_lack():
    audio = ragged(*(np.ones((length, 1)) for length in (0, 0, 4)))
    video = pack_streams(3 * [make_stream(np.zeros((0, 2), np.float32), np.zeros(0))])
    corpus = corpus_of(audio, video, [0] * 3)
    assert make_buckets(corpus, np.arange(3), 3) == [shape(1, 1), shape(4, 1)]
    (dispatch,) = plan_epoch(corpus, np.array([0, 1]), [shape(1, 1)], BATCH, STEPS, None)
    normaliser = fit_normaliser(corpus, np.array([2]))
    batch = collate(corpus, dispatch, normaliser, devices=1, batch=2, steps=1)
    for name, width in corpus.widths.items():
        part = batch.streams[name]
        assert part.frames.shape == (1, 1, 2, 1, width)
        assert not part.frames.any() and not part.valid.any() and not part.length.any()
    assert batch.weight.tolist() == [[[1, 1]]]


def test_the_plan_depends_on_seed_and_epoch_and_not_on_the_order_of_the_clips(corpus, buckets):
    first = as_lists(plan(corpus, buckets))
    assert as_lists(plan(corpus, buckets, np.sort(CLIPS))) == first
    assert as_lists(plan(corpus, buckets, CLIPS[::-1])) == first
    assert as_lists(plan(corpus, buckets, epoch=1)) != first
    assert as_lists(plan(corpus, buckets, seed=1)) != first


def test_clips_are_shuffled_within_buckets_and_dispatches_between_them(corpus, buckets):
    orders, mates = set(), Counter()
    for epoch in range(30):
        dispatches = plan(corpus, buckets, epoch=epoch)
        orders.add(tuple(buckets.index(dispatch.bucket) for dispatch in dispatches))
        (with_first,) = (batch for batch in batches_of(dispatches) if CLIPS[0] in batch)
        mates.update(with_first.tolist())
    assert len(orders) > 20
    del mates[CLIPS[0]]
    # Some 27 clips share its bucket, and meet it in 7 / 26 of the epochs.
    assert len(mates) >= 20
    assert max(mates.values()) < 20


def test_without_shuffling_the_order_is_the_corpus_s(corpus, buckets):
    dispatches = plan_epoch(corpus, CLIPS, buckets[-1:], BATCH, STEPS, None)
    assert np.concatenate(batches_of(dispatches)).tolist() == sorted(CLIPS)


def test_dispatches_of_one_step_have_the_same_batches(corpus, buckets):
    several, one = (
        {tuple(batch.tolist()) for batch in batches_of(plan(corpus, buckets, steps=steps))}
        for steps in (4, 1)
    )
    assert several == one


@pytest.fixture
def three_clips() -> Corpus:
    audio = ragged([[3, 1], [5, 1]], [[1, 1], [3, 3], [7, 1]], [[9, 9]])
    video = ragged([[8], [0], [4]], [[6]], [[0], [2]], zero_is_missing=True)
    return corpus_of(audio, video, [2, 0, 1])


NORMALISER = {
    **{"audio_mean": np.float32([3, 1]), "audio_std": np.float32([2, 1])},
    **{"video_mean": np.float32([4]), "video_std": np.float32([2])},
}


def test_collate_by_hand(three_clips):
    dispatch = Dispatch(shape(4, 3), [np.array([2, 0, 1]), np.array([1])])
    batch = collate(three_clips, dispatch, NORMALISER, devices=1, batch=3, steps=3)
    assert batch.clip.tolist() == [[[2, 0, 1], [1, -1, -1], [-1, -1, -1]]]
    assert batch.weight.tolist() == [[[1, 1, 1], [1, 0, 0], [0, 0, 0]]]
    assert batch.label.tolist() == [[[1, 2, 0], [0, 0, 0], [0, 0, 0]]]
    audio, video = batch.streams["audio"], batch.streams["video"]
    first_step = [
        [[3, 8], [0, 0], [0, 0], [0, 0]],
        [[0, 0], [1, 0], [0, 0], [0, 0]],
        [[-1, 0], [0, 2], [2, 0], [0, 0]],
    ]
    assert audio.frames[0, 0].tolist() == first_step
    assert audio.frames[0, 1, 0].tolist() == first_step[2]
    assert audio.length.tolist() == [[[1, 2, 3], [3, 0, 0], [0, 0, 0]]]
    assert video.frames[0, 0, :, :, 0].tolist() == [[0, -1, 0], [2, 0, 0], [1, 0, 0]]
    assert video.valid[0, 0].tolist() == [
        [False, True, False],
        [True, False, True],
        [True, False, False],
    ]
    assert video.length.tolist() == [[[2, 3, 1], [1, 0, 0], [0, 0, 0]]]
    inside = np.arange(4) < audio.length[..., None]
    np.testing.assert_array_equal(audio.valid, inside)
    np.testing.assert_array_equal(audio.times, np.where(inside, np.arange(4), PADDING))
    far = PADDING
    assert video.times[0, 0].tolist() == [[0, 1, far], [0, 1, 2], [0, far, far]]
    np.testing.assert_array_equal(batch.mixup_label, batch.label)
    assert (batch.mixup_lambda == 1).all() and batch.target is None
    assert batch.mixup_lambda.dtype == audio.times.dtype == np.float32
    for part in (audio, video):
        assert not part.frames[0, 1, 1:].any() and not part.frames[0, 2].any()
        assert not part.valid[0, 1, 1:].any() and not part.valid[0, 2].any()
        assert part.frames.dtype == np.float32 and part.valid.dtype == bool


def test_places_on_devices_that_do_not_divide_the_batch(three_clips):
    dispatch = Dispatch(shape(3, 3), [np.array([0, 1, 2, 0, 1]), np.array([2, 1])])
    batch = collate(three_clips, dispatch, NORMALISER, devices=3, batch=5, steps=2)
    assert batch.clip.tolist() == [[[0, 1], [2, 1]], [[2, 0], [-1, -1]], [[1, -1], [-1, -1]]]
    np.testing.assert_array_equal(batch.weight, batch.clip >= 0)
    whole = collate(three_clips, dispatch, NORMALISER, devices=1, batch=5, steps=2)
    for found, expected in zip(jax.tree.leaves(batch), jax.tree.leaves(whole), strict=True):
        in_order = np.concatenate([found[device, 0] for device in range(3)])
        np.testing.assert_array_equal(in_order[:5], expected[0, 0])


def partners(augmentation: Augmentation, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each clip [n] of a batch is mixed with, and its own weight."""
    _, _, *found = zip(*places(Dispatch({}, [clips]), 1, len(clips), augmentation), strict=True)
    return tuple(map(np.array, found))


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_a_process_makes_and_reads_the_clips_of_its_own_devices(monkeypatch, corpus, mixup):
    augmentation = Augmentation(replace(ROUGH, mixup=mixup), 0, 0)
    (bucket,) = make_buckets(corpus, CLIPS, 1)
    dispatch = Dispatch(bucket, [CLIPS[:8], CLIPS[8:13]])
    common = (corpus, dispatch, fit_normaliser(corpus, CLIPS), 4, 8, 3, augmentation)
    whole = collate(*common)
    read, clip = [], Ragged.clip
    monkeypatch.setattr(Ragged, "clip", lambda self, at: read.append(at) or clip(self, at))
    own = collate(*common, slice(2, 4))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[2:]), own, whole)
    wanted = {*CLIPS[4:8], *CLIPS[12:13]}
    if mixup:
        for batch, part in ((CLIPS[:8], slice(4, 8)), (CLIPS[8:13], slice(4, 5))):
            wanted.update(partners(augmentation, batch)[0][part])
    assert set(read) == wanted
    begun = []
    monkeypatch.setattr(Ragged, "read_ahead", lambda self, at: begun.append(at))
    read_ahead(corpus, places(dispatch, 4, 8, augmentation, slice(2, 4)))
    assert sorted(begun) == sorted(read)


def test_where_each_clip_of_a_dispatch_lies(three_clips):
    dispatch = Dispatch(shape(3, 3), [np.array([0, 1, 2, 0, 1]), np.array([2, 1])])
    batch = collate(three_clips, dispatch, NORMALISER, devices=3, batch=5, steps=2)
    found = list(places(dispatch, devices=3, batch=5))
    assert len(found) == (batch.clip >= 0).sum()
    assert all(batch.clip[place] == clip for place, clip, *_ in found)


ROUGH = AugmentConfig(
    tempo=(0.8, 1.2),
    own_tempo={"audio": (0.9, 1.1)},
    noise={"audio": (0.1, 0.2), "video": (0.1, 0.2)},
    gap={"video": 0.5},
    probability=0.8,
)


def augmented(corpus, dispatch, config, devices=1, seed=0, epoch=0) -> Batch:
    """A dispatch of one batch."""
    (clips,) = dispatch.batches
    normaliser = fit_normaliser(corpus, CLIPS)
    augmentation = Augmentation(config, seed, epoch)
    return collate(corpus, dispatch, normaliser, devices, len(clips), 1, augmentation)


def by_clip(batch: Batch) -> dict[int, list[np.ndarray]]:
    """All arrays of each clip, without padding of time."""
    found = {}
    for place in zip(*np.nonzero(batch.clip >= 0), strict=True):
        labels = (batch.label, batch.mixup_label, batch.mixup_lambda, batch.weight)
        rest = [np.asarray(array[place]) for array in labels]
        for part in batch.streams.values():
            for array in (part.frames, part.valid, part.times):
                rest.append(array[place][: part.length[place]])
        found[int(batch.clip[place])] = rest
    return found


def assert_equal(found: list[np.ndarray], expected: list[np.ndarray]):
    for array, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, other)


def test_augmentation_depends_on_seed_epoch_and_clip_alone(corpus, buckets):
    clips = CLIPS[:6]
    reference = by_clip(augmented(corpus, Dispatch(buckets[-1], [clips]), ROUGH))
    others = [(clips[::-1], 1), (CLIPS[4:13], 1), (clips[2:3], 1), (clips, 4)]
    for batch, count in others:
        found = by_clip(augmented(corpus, Dispatch(buckets[-1], [batch]), ROUGH, count))
        for clip in set(found) & set(reference):
            assert_equal(found[clip], reference[clip])
    for seed, epoch in ((1, 0), (0, 1)):
        dispatch = Dispatch(buckets[-1], [clips])
        found = by_clip(augmented(corpus, dispatch, ROUGH, seed=seed, epoch=epoch))
        same = [np.array_equal(found[clip][4], reference[clip][4]) for clip in clips]
        assert sum(same) < len(clips) / 2


def test_the_padding_is_as_long_as_the_longest_can_get(corpus, buckets):
    slowest = AugmentConfig(tempo=(0.8, 0.8), own_tempo={"audio": (0.9, 0.9)})
    longest = np.argsort(lengths(corpus))[-5:]
    batch = augmented(corpus, Dispatch(buckets[-1], [longest]), slowest)
    assert [*batch.streams] == [*buckets[-1]]
    for name, part in batch.streams.items():
        assert part.frames.shape[-2] == stretched(buckets[-1][name], slowest)
        inside = np.arange(part.valid.shape[-1]) < part.length[..., None]
        assert (part.times[~inside] == PADDING).all() and not part.valid[~inside].any()
        assert not part.frames[~inside].any() and not part.frames[~part.valid].any()
        assert (np.diff(part.times)[inside[..., 1:]] > 0).all()
    assert batch.streams["audio"].length.max() == stretched(lengths(corpus).max(), slowest)


def test_without_an_option_nothing_changes(corpus, buckets):
    dispatch = Dispatch(buckets[1], [CLIPS[lengths(corpus)[CLIPS] <= buckets[1]["audio"]][:7]])
    plain = collate(corpus, dispatch, fit_normaliser(corpus, CLIPS), 2, 7, 2)
    same = collate(
        *(corpus, dispatch, fit_normaliser(corpus, CLIPS), 2, 7, 2),
        Augmentation(AugmentConfig(), 5, 3),
    )
    jax.tree.map(np.testing.assert_array_equal, same, plain)


def test_mixup_by_hand(corpus, buckets):
    """Another clip of the batch, at the same seconds, with the smaller share."""
    clips = np.array([clip for clip in CLIPS if lengths(corpus)[clip] > 40][:12])
    config = AugmentConfig(mixup=0.5)
    batch = augmented(corpus, Dispatch(buckets[-1], [clips]), config)
    others, shares = partners(Augmentation(config, 0, 0), clips)
    assert sorted(others) == sorted(clips) and (others != clips).sum() > 6
    assert ((shares >= 0.5) & (shares <= 1)).all() and len(set(shares)) == len(clips)
    np.testing.assert_array_equal(batch.clip[0, 0], clips)
    np.testing.assert_array_equal(batch.label[0, 0], corpus.labels[clips])
    np.testing.assert_array_equal(batch.mixup_label[0, 0], corpus.labels[others])
    np.testing.assert_allclose(batch.mixup_lambda[0, 0], shares, rtol=1e-6)
    normaliser = fit_normaliser(corpus, CLIPS)
    for place, (clip, other, share) in enumerate(zip(clips, others, shares, strict=True)):
        own, mixed_in = (normalised(corpus, one, normaliser)["audio"] for one in (clip, other))
        assert batch.streams["audio"].length[0, 0, place] == len(own.frames)
        both = min(len(own.frames), len(mixed_in.frames))  # regular times from 0: the same frames
        found = batch.streams["audio"].frames[0, 0, place]
        expected = share * own.frames[:both] + (1 - share) * mixed_in.frames[:both]
        np.testing.assert_allclose(found[:both], expected, atol=1e-5)
        alone = slice(both, len(own.frames))
        np.testing.assert_allclose(found[alone], share * own.frames[alone], atol=1e-5)


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_soft_labels_are_mixed_by_the_same_shares(corpus, buckets, mixup):
    clips, config = CLIPS[:7], AugmentConfig(mixup=mixup, noise={"audio": (0.1, 0.1)})
    soft = np.random.default_rng(0).dirichlet(np.ones(6), len(corpus)).astype(np.float32)
    batch = augmented(replace(corpus, targets=soft), Dispatch(buckets[-1], [clips]), config)
    plain = augmented(corpus, Dispatch(buckets[-1], [clips]), config)
    shares = plain.mixup_lambda[0, 0, :, None]
    others = partners(Augmentation(config, 0, 0), clips)[0]
    expected = shares * soft[clips] + (1 - shares) * soft[others]
    np.testing.assert_allclose(batch.target[0, 0], expected, atol=1e-6)
    assert plain.target is None and batch.target.dtype == np.float32
    jax.tree.map(np.testing.assert_array_equal, batch._replace(target=None), plain)


def test_who_is_mixed_with_whom_depends_on_the_batch_seed_and_epoch():
    config = AugmentConfig(mixup=0.3)
    first = [part.tolist() for part in partners(Augmentation(config, 0, 0), CLIPS)]
    again = [part.tolist() for part in partners(Augmentation(config, 0, 0), CLIPS)]
    assert again == first
    for seed, epoch, clips in ((1, 0, CLIPS), (0, 1, CLIPS), (0, 0, CLIPS[1:])):
        others, shares = partners(Augmentation(config, seed, epoch), clips)
        assert others.tolist() != first[0] and shares.tolist() != first[1]


def test_mixup_acts_on_augmented_clips(corpus, buckets):
    clips = CLIPS[:8]
    config = AugmentConfig(tempo=(1.2, 1.2), mixup=0.5)
    batch = augmented(corpus, Dispatch(buckets[-1], [clips]), config)
    plain = augmented(corpus, Dispatch(buckets[-1], [clips]), AugmentConfig(tempo=(1.2, 1.2)))
    np.testing.assert_array_equal(batch.streams["audio"].length, plain.streams["audio"].length)
    np.testing.assert_array_equal(batch.streams["audio"].times, plain.streams["audio"].times)
    assert (batch.streams["audio"].length[0, 0] < lengths(corpus)[clips]).all()
    assert not np.array_equal(batch.streams["audio"].frames, plain.streams["audio"].frames)


class Compilations:
    """Counts what XLA compiles while it is entered."""

    def __enter__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def _listen(self, event: str, duration: float, **_):
        self.count += event == "/jax/core/compile/backend_compile_duration"

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._listen)


def test_training_and_prediction_are_compiled_twice_whatever_the_buckets(corpus, monkeypatch):
    traces = Counter()
    for name in ("_train_steps", "_predict"):
        original = getattr(Learner, name)

        def traced(*args, name=name, original=original):
            traces[name] += 1
            return original(*args)

        monkeypatch.setattr(Learner, name, traced)
    clips = CLIPS[:50]
    buckets = make_buckets(corpus, np.arange(len(corpus)), 3)
    # Without dropout: random numbers take longest to compile.
    rates = {"input_dropout": 0.0, "pooled_dropout": 0.0, "head_dropout": (0.0,)}
    config = ModelConfig(("audio",), units={"audio": (2,)}, head_units=(3,), **rates)
    learner = Learner(config, TrainConfig(), {"audio": 3}, classes=6, device_count=2)
    feed = Feed(corpus, fit_normaliser(corpus, clips), buckets, BATCH, 2)
    state = learner.shard_state(learner.initial(seed=0))
    compiled = []
    for epoch in range(2):  # with other settings the second time
        key, weights = jax.random.key(epoch), np.full(6, 1 + epoch, np.float32)
        settings = Settings(key, weights, np.float32(1e-3 / (1 + epoch)))
        with Compilations() as compilations:
            sums = devices.replicate(NO_SUMS, 2)
            dispatches = plan(corpus, buckets, clips, epoch=epoch)
            for dispatch, (_, placed) in zip(dispatches, feed(dispatches, STEPS), strict=True):
                count = np.int32(len(dispatch.batches))
                state, sums, _ = learner.train(state, sums, placed, count, settings)
            Predictor(ExperimentConfig(), learner, learner.weights(state), weights, feed).predict(
                clips
            )
        assert {tuple(one.bucket.items()) for one in dispatches} == {
            tuple(b.items()) for b in buckets
        }
        assert np.asarray(sums.clips).sum() == len(clips)
        compiled.append(compilations.count)
    assert traces == {"_train_steps": 2, "_predict": 2}
    assert compiled[0] >= 4 and compiled[1] == 0
