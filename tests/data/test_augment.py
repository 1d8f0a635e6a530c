"""Augmentation: what each operation does to values, time, alignment and validity."""

from collections.abc import Iterator
from itertools import product
from unittest.mock import Mock

import numpy as np
import pytest

from mmattn.config import AugmentConfig, SyntheticConfig
from mmattn.data.augment import (
    OPERATIONS,
    Streams,
    augment,
    change_tempo,
    mix,
    stretched,
)
from mmattn.data.corpora.synthetic import BUMP, TAU, draw_clips
from mmattn.data.stream import Stream

TEMPO = (0.9, 1.1)
ALL = AugmentConfig(
    tempo=TEMPO,
    own_tempo={"audio": TEMPO, "video": TEMPO},
    scale={"audio": (0.8, 0.9)},
    noise={"audio": (0.1, 0.2), "video": (0.1, 0.2)},
    dropout={"video": 0.5},
    gap={"video": 1.0},
    time_mask=1.0,
    feature_mask=0.9,
    drop_modality=1.0,
)
EACH = {}  # of ALL, one operation at a time
for operation, strength in vars(ALL).items():
    if isinstance(strength, dict):
        for modality, own in strength.items():
            EACH[f"{operation} {modality}"] = AugmentConfig(**{operation: {modality: own}})
    elif strength != getattr(AugmentConfig(), operation):
        EACH[operation] = AugmentConfig(**{operation: strength})


def frames_of(values, times, valid=None) -> Stream:
    values, times = np.array(values, np.float32), np.array(times, np.float64)
    valid = np.ones(len(times), bool) if valid is None else np.array(valid, bool)
    return Stream(values * valid[:, None], times, valid)


def random_frames(rng, length, width, rate, start=0.0, invalid=0.0) -> Stream:
    values = rng.standard_normal((length, width))
    return frames_of(values, start + np.arange(length) / rate, rng.random(length) >= invalid)


def pair_of(audio: Stream, video: Stream) -> Streams:
    return {"audio": audio, "video": video}


def random_pair(seed=0, invalid=0.2) -> Streams:
    rng = np.random.default_rng(seed)
    audio = random_frames(rng, int(rng.integers(100, 300)), 12, 100)
    return pair_of(audio, random_frames(rng, int(rng.integers(20, 60)), 8, 15, 0.4, invalid))


def bumps(middles, times, deviation) -> Stream:
    """A feature an event: a Gaussian bump at its time."""
    return frames_of(np.exp(-0.5 * ((times[:, None] - middles) / deviation) ** 2), times)


def located(frames: Stream) -> np.ndarray:
    """Seconds [F] of each feature's bump, by its centroid."""
    return frames.times @ frames.frames / frames.frames.sum(axis=0)


def spacing(frames: Stream) -> float:
    return (frames.times[-1] - frames.times[0]) / (len(frames.times) - 1)


def both(one: Streams, other: Streams) -> Iterator[tuple[Stream, Stream]]:
    """A modality of both clips after the other."""
    assert [*one] == [*other]
    return zip(one.values(), other.values(), strict=True)


def same(one: Streams, other: Streams) -> bool:
    return all(
        np.array_equal(a, b)
        for left, right in both(one, other)
        for a, b in zip(left, right, strict=True)
    )


def random_events(seed):
    """Events that both streams cover, with rates and starts drawn at random."""
    rng = np.random.default_rng(seed)
    streams = []
    for rate in (rng.uniform(40, 120), rng.uniform(12, 32)):
        start, seconds = rng.uniform(0, 2), rng.uniform(4, 6)
        streams.append(start + np.arange(int(seconds * rate)) / rate)
    first = max(times[0] for times in streams) + 0.4
    last = min(times[-1] for times in streams) - 0.4
    middles = rng.uniform(first, last, 10)
    parts = (bumps(middles, times, np.diff(times).mean() * 0.8) for times in streams)
    return middles, pair_of(*parts), rng


@pytest.mark.parametrize("seed", range(40))
def test_synchronised_tempo_keeps_simultaneous_events_simultaneous(seed):
    middles, pair, rng = random_events(seed)
    changed = augment(pair, EACH["tempo"], rng)
    half = max(spacing(pair["audio"]), spacing(pair["video"])) / 2
    factor = pair["audio"].times[0] / changed["audio"].times[0]
    assert TEMPO[0] <= factor <= TEMPO[1]
    assert np.abs(located(changed["audio"]) - located(changed["video"])).max() < half
    for before, after in both(pair, changed):
        assert np.abs(located(after) - middles / factor).max() < spacing(before) / 2
        assert spacing(after) == pytest.approx(spacing(before), rel=1e-9)


@pytest.mark.parametrize("modality", ["audio", "video"])
@pytest.mark.parametrize("seed", range(10))
def test_tempo_of_one_modality_parts_events_the_more_the_later_they_are(modality, seed):
    middles, pair, rng = random_events(seed)
    changed = augment(pair, EACH[f"own_tempo {modality}"], rng)
    kept = "video" if modality == "audio" else "audio"
    assert changed[kept] is pair[kept]
    before, after = pair[modality], changed[modality]
    assert after.times[0] == before.times[0]
    moved = located(after) - middles
    since = middles - before.times[0]
    slowness = np.mean(moved / since) + 1
    assert 1 / TEMPO[1] < slowness < 1 / TEMPO[0]
    assert np.abs(moved - (slowness - 1) * since).max() < spacing(before) / 2


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(0.8, 1.0 + 2.0 / 0.8), (0.9, 1.0 + 2.0 / 0.9), (1.0, 3.0), (1.25, 1.0 + 2.0 / 1.25)],
)
def test_an_event_two_seconds_after_the_start(factor, expected):
    frames = bumps(np.array([3.0]), 1.0 + np.arange(300) / 100, 0.02)
    changed = change_tempo(frames, factor, frames.times[0])
    assert located(changed)[0] == pytest.approx(expected, abs=0.001)
    assert len(changed.times) == round(299 / factor) + 1


def test_tempo_by_hand():
    frames = frames_of([[0], [2], [4], [10], [0]], [1, 2, 3, 4, 5], [1, 1, 1, 1, 0])
    slow = change_tempo(frames, 0.5, 1.0)
    np.testing.assert_allclose(slow.times, np.arange(1, 10))
    np.testing.assert_allclose(slow.frames[:, 0], [0, 1, 2, 3, 4, 7, 10, 0, 0])
    assert slow.valid.tolist() == [True] * 7 + [False] * 2  # half of frame 7 is invalid
    fast = change_tempo(frames, 2.0, 0.0)
    np.testing.assert_allclose(fast.times, [0.5, 1.5, 2.5])
    np.testing.assert_allclose(fast.frames[:, 0], [0, 4, 0])
    assert fast.valid.tolist() == [True, True, False]


def test_tempo_one_changes_nothing_though_frames_are_invalid():
    frames = random_frames(np.random.default_rng(0), 77, 3, 29.97, 0.917, invalid=0.3)
    changed = change_tempo(frames, 1.0, 0.0)
    np.testing.assert_array_equal(changed.valid, frames.valid)
    np.testing.assert_allclose(changed.frames, frames.frames, atol=1e-5)
    np.testing.assert_allclose(changed.times, frames.times, atol=1e-12)


@pytest.mark.parametrize("factor", [0.9, 1.07])
def test_tempo_follows_uneven_timestamps(factor):
    times = np.cumsum(np.random.default_rng(0).uniform(0.02, 0.08, 60))
    changed = change_tempo(frames_of(times[:, None], times), factor, 0.0)
    np.testing.assert_allclose(np.diff(changed.times), spacing(frames_of(times[:, None], times)))
    inside = changed.times * factor <= times[-1]
    np.testing.assert_allclose(changed.frames[inside, 0], changed.times[inside] * factor, rtol=1e-5)


def test_labels_of_meeting_cues_survive_a_shared_tempo_but_not_one_of_audio_alone():
    config = SyntheticConfig(rule="coincidence", clips=300, audio_width=3, video_width=3)
    lost = 0
    for clip in draw_clips(config):
        cues = [[c for c in clip.cues if c.modality == name] for name in BUMP]
        streams = zip(cues, clip.streams.values(), BUMP.values(), strict=True)
        pair = pair_of(
            *(bumps(np.array([c.time for c in own]), s.times, width) for own, s, width in streams)
        )
        true = [not audio.decoy and not video.decoy for audio, video in product(*cues)]
        meet = {}
        for name in ("tempo", "own_tempo audio"):
            changed = augment(pair, EACH[name], np.random.default_rng(int(clip.name[-6:])))
            apart = np.abs(np.subtract.outer(*map(located, changed.values())))
            meet[name] = (apart < TAU).ravel().tolist()
        assert meet["tempo"] == true
        lost += meet["own_tempo audio"] != true
    assert lost > 0.4 * 300


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("seed", range(5))
def test_every_operation_keeps_what_all_must_keep(name, seed):
    pair, untouched = random_pair(seed), random_pair(seed)
    changed = augment(pair, EACH[name], np.random.default_rng(seed))
    assert same(pair, untouched)
    for before, after in both(pair, changed):
        assert (after.frames.dtype, after.times.dtype, after.valid.dtype) == (
            np.float32,
            np.float64,
            bool,
        )
        assert after.frames.shape == (len(after.times), before.frames.shape[1])
        assert after.valid.shape == after.times.shape
        assert len(after.times) <= stretched(len(before.times), EACH[name])
        assert not after.frames[~after.valid].any()
        if "tempo" not in name:
            np.testing.assert_array_equal(after.times, before.times)
            assert not after.valid[~before.valid].any()


@pytest.mark.parametrize("name", EACH)
def test_every_operation_changes_clips_and_comes_from_the_generator(name):
    pair = random_pair()
    first, again, *others = (
        augment(pair, EACH[name], np.random.default_rng(seed)) for seed in (3, *range(3, 20))
    )
    assert not same(first, pair)
    assert same(first, again)
    assert not all(same(first, other) for other in others)


@pytest.mark.parametrize(
    "config",
    [AugmentConfig(), AugmentConfig(pick="one-or-all", probability=0.5), AugmentConfig(mixup=0.4)],
)
def test_nothing_asked_for_returns_the_same_objects(config):
    pair = random_pair()
    assert augment(pair, config, np.random.default_rng(0)) is pair
    assert stretched(57, config) == 57


def test_lengths_never_exceed_what_is_foreseen_and_reach_it():
    lengths = range(1, 400)
    for low in (0.25, 0.77, 0.9, 1.0):
        config = AugmentConfig(
            tempo=(low, low), own_tempo={"audio": (low, 1.0), "video": (0.8, 2.0)}
        )
        slowest = min(low, 0.8)
        bound = [stretched(length, config) for length in lengths]
        for length in (1, 2, 5, 38, 399):
            frames = frames_of(np.zeros((length, 1)), np.arange(length) / 15)
            once = change_tempo(frames, low, 0.0)
            assert len(change_tempo(once, slowest, 0.0).times) == bound[length - 1]
            for seed in range(10):
                changed = augment(pair_of(frames, frames), config, np.random.default_rng(seed))
                assert max(len(part.times) for part in changed.values()) <= bound[length - 1]
    faster = AugmentConfig(tempo=(1.1, 1.2))
    assert [stretched(length, faster) for length in lengths] == [*lengths]


def test_each_operation_draws_the_same_whichever_others_are_on():
    pair = random_pair(invalid=0)
    for seed in range(20):
        alone = augment(pair, EACH["tempo"], np.random.default_rng(seed))
        noisy = AugmentConfig(tempo=TEMPO, noise={"video": (0.1, 0.2)}, time_mask=1.0)
        together = augment(pair, noisy, np.random.default_rng(seed))
        np.testing.assert_array_equal(alone["audio"].times, together["audio"].times)
        scaled = augment(pair, EACH["scale audio"], np.random.default_rng(seed))["audio"].frames
        two = AugmentConfig(scale={"audio": (0.8, 0.9)}, noise={"audio": (0.1, 0.2)})
        noise = augment(pair, EACH["noise audio"], np.random.default_rng(seed))["audio"].frames
        sum_of_both = augment(pair, two, np.random.default_rng(seed))["audio"].frames
        np.testing.assert_allclose(sum_of_both - scaled, noise - pair["audio"].frames, atol=1e-6)


def test_one_or_all_picks_each_equally_often():
    pair = random_pair()
    config = AugmentConfig(
        scale={"audio": (2.0, 2.0)},
        dropout={"video": 1.0},
        own_tempo={"audio": (0.5, 0.5)},
        pick="one-or-all",
    )
    rng = np.random.default_rng(0)
    counts = {}
    for _ in range(2000):
        audio, video = augment(pair, config, rng).values()
        slow = len(audio.times) != len(pair["audio"].times)
        loud = audio.frames[0, 0] != pair["audio"].frames[0, 0]
        done = (slow, bool(loud), not video.frames.any())
        counts[done] = counts.get(done, 0) + 1
    expected = {(True, False, False), (False, True, False), (False, False, True), (True,) * 3}
    assert counts.keys() == expected
    assert all(abs(count - 500) < 4 * np.sqrt(2000 * 3 / 16) for count in counts.values())


def test_the_share_of_clips_that_are_changed():
    pair = random_pair()
    config = AugmentConfig(scale={"audio": (2.0, 2.0)}, probability=0.8)
    rng = np.random.default_rng(0)
    changed = sum(augment(pair, config, rng) is not pair for _ in range(2000))
    assert abs(changed - 1600) < 4 * np.sqrt(2000 * 0.16)


def test_strengths_fill_their_range():
    pair = random_pair()
    rng = np.random.default_rng(0)
    config = AugmentConfig(scale={"audio": (0.9, 1.1)})
    factors = [
        augment(pair, config, rng)["audio"].frames / pair["audio"].frames for _ in range(300)
    ]
    factors = [factor[0, 0] for factor in factors]
    assert 0.9 <= min(factors) < 0.905 and 1.095 < max(factors) <= 1.1001


@pytest.mark.parametrize("deviation", [0.005, 0.5])
def test_noise_has_the_deviation_asked_for_and_spares_invalid_frames(deviation):
    rng = np.random.default_rng(0)
    frames = random_frames(rng, 2000, 20, 100, invalid=0.3)
    change = OPERATIONS["noise"](frames, (deviation, deviation), rng).frames - frames.frames
    assert not change[~frames.valid].any()
    change = change[frames.valid]
    assert change.std() == pytest.approx(deviation, rel=0.02)
    assert np.abs(change.mean(axis=0)).max() < 5 * deviation / np.sqrt(len(change))
    off_diagonal = np.corrcoef(change.T) - np.eye(20)
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(len(change))
    assert abs(np.corrcoef(change[:-1].ravel(), change[1:].ravel())[0, 1]) < 0.03


def test_scale_by_hand():
    frames, rng = frames_of([[1, -2], [0, 4]], [0, 1]), np.random.default_rng(0)
    scaled = OPERATIONS["scale"](frames, (1.5, 1.5), rng)
    np.testing.assert_array_equal(scaled.frames, [[1.5, -3], [0, 6]])


def test_dropped_features_are_zero_throughout_and_the_rest_stay():
    rng = np.random.default_rng(0)
    frames = random_frames(rng, 4, 5000, 15)
    dropped = OPERATIONS["dropout"](frames, 0.3, rng).frames
    gone = ~dropped.any(axis=0)
    assert gone.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / 5000))
    np.testing.assert_array_equal(dropped[:, ~gone], frames.frames[:, ~gone])


def drawing(*numbers: float) -> Mock:
    """A generator whose uniform numbers are these."""
    return Mock(uniform=Mock(side_effect=numbers))


def test_a_gap_by_hand():
    frames = frames_of([[1], [2], [3], [4]], [0.5, 1.0, 1.5, 2.0])
    gap = OPERATIONS["gap"](frames, 3.0, drawing(1.0, 1.0))  # 1 s from 1 s on
    assert gap.frames[:, 0].tolist() == [1, 0, 0, 4]
    assert gap.valid.tolist() == [True, False, False, True]


def test_gaps_are_one_run_no_longer_than_asked_for():
    pair = random_pair(invalid=0)
    longest = 0
    for seed in range(300):
        changed = augment(pair, AugmentConfig(gap={"video": 0.5}), np.random.default_rng(seed))
        assert changed["audio"] is pair["audio"]
        gone = np.flatnonzero(~changed["video"].valid)
        assert not len(gone) or len(gone) == gone[-1] - gone[0] + 1
        longest = max(longest, len(gone))
    assert longest == 8  # 0.5 s at 15 frames a second


def test_a_time_mask_covers_the_same_seconds_in_both():
    audio = frames_of(np.ones((400, 2)), np.arange(400) / 100)
    video = frames_of(np.ones((45, 3)), 0.9 + np.arange(45) / 15)
    by_hand = OPERATIONS["time_mask"](pair_of(audio, video), 1.0, drawing(0.2, 1.0))
    for name, expected in (("audio", list(range(100, 120))), ("video", [2, 3, 4])):
        assert np.flatnonzero(by_hand[name].frames[:, 1] == 0).tolist() == expected
    seen = 0
    for seed in range(200):
        changed = augment(
            pair_of(audio, video), AugmentConfig(time_mask=1.0), np.random.default_rng(seed)
        )
        assert changed["audio"].valid.all() and changed["video"].valid.all()
        masked = audio.times[~changed["audio"].frames.any(axis=1)]
        if len(masked):
            assert masked[-1] - masked[0] < 1.0
            gone = ~changed["video"].frames.any(axis=1)
            inside = (masked[0] <= video.times) & (video.times <= masked[-1])
            near = (masked[0] - 0.01 < video.times) & (video.times < masked[-1] + 0.01)
            assert gone[inside].all() and not gone[~near].any()
            seen += gone.any()
    assert seen > 100


def test_feature_masks_are_neighbours_and_no_more_than_their_share():
    rng = np.random.default_rng(0)
    frames = random_frames(rng, 6, 20, 15)
    sizes = set()
    for _ in range(300):
        masked = OPERATIONS["feature_mask"]({"video": frames}, 0.25, rng)["video"].frames
        gone = np.flatnonzero(~masked.any(axis=0))
        assert not len(gone) or len(gone) == gone[-1] - gone[0] + 1
        sizes.add(len(gone))
        kept = np.setdiff1d(np.arange(20), gone)
        np.testing.assert_array_equal(masked[:, kept], frames.frames[:, kept])
    assert sizes == {0, 1, 2, 3, 4, 5}


def test_one_modality_is_lost_in_the_share_of_clips_asked_for_and_never_both():
    pair = random_pair()
    rng = np.random.default_rng(0)
    lost = np.zeros(2)
    for _ in range(2000):
        changed = augment(pair, AugmentConfig(drop_modality=0.4), rng)
        gone = [not part.valid.any() for part in changed.values()]
        assert sum(gone) < 2
        lost += gone
        for before, after in both(pair, changed):
            assert after is before or not (after.frames.any() or after.valid.any())
    assert np.abs(lost - 400).max() < 4 * np.sqrt(2000 * 0.16)


def test_a_clip_without_any_face_keeps_its_audio():
    pair = random_pair(invalid=1)
    for seed in range(20):
        assert augment(pair, EACH["drop_modality"], seed)["audio"] is pair["audio"]


def test_mixing_by_hand():
    audio = frames_of([[10], [20], [30]], [0, 1, 2])
    video = frames_of([[1], [2], [3], [0]], [0.5, 1.0, 1.5, 2.0], [1, 1, 1, 0])
    other = pair_of(
        frames_of([[4], [8]], [0.5, 1.5]),
        frames_of([[0], [8], [12], [16]], [0.5, 0.9, 1.1, 2.5], [0, 1, 1, 1]),
    )
    mixed = mix(pair_of(audio, video), other, 0.75)
    np.testing.assert_allclose(mixed["audio"].frames[:, 0], [7.5, 15 + 1.5, 22.5])
    np.testing.assert_allclose(
        mixed["video"].frames[:, 0],
        [0.75, 1.5 + 0.25 * 10, 2.25 + 0.25 * (12 + 4 * 0.4 / 1.4), 0],
        rtol=1e-6,
    )
    for before, after in zip((audio, video), mixed.values(), strict=True):
        assert after.frames.dtype == np.float32
        np.testing.assert_array_equal(after.times, before.times)
        np.testing.assert_array_equal(after.valid, before.valid)


def test_mixing_keeps_both_clips_aligned():
    """A clip without a signal of its own shows the other's events where they were."""
    for seed in range(20):
        middles, other, _ = random_events(seed)
        times = np.arange(0, 8, 0.01), np.arange(0.03, 8, 0.06)
        silent = pair_of(*(frames_of(np.zeros((len(own), 10)), own) for own in times))
        mixed = mix(silent, other, 0.3)
        for part, source in both(mixed, other):
            half = max(spacing(part), spacing(source)) / 2
            assert np.abs(located(part) - middles).max() < half


def test_mixing_with_the_whole_share_changes_nothing_and_inputs_stay():
    pair, other = random_pair(1), random_pair(2)
    assert same(mix(pair, other, 1.0), pair)
    mix(pair, other, 0.4)
    assert same(pair, random_pair(1)) and same(other, random_pair(2))


def test_the_order_of_the_modalities_has_no_influence():
    for seed in range(20):
        pair = random_pair(seed)
        changed = augment(pair, ALL, seed)
        other = augment(dict(reversed(pair.items())), ALL, seed)
        assert same({name: other[name] for name in pair}, changed)


def test_everything_at_once():
    for seed in range(100):
        pair = random_pair(seed)
        changed = augment(pair, ALL, np.random.default_rng(seed))
        assert any(part.valid.any() for part in changed.values())
        for before, after in both(pair, changed):
            assert len(after.times) <= stretched(len(before.times), ALL)
            assert np.isfinite(after.frames).all()
            assert not after.frames[~after.valid].any()


def test_a_third_modality_is_augmented_like_the_others():
    """Each operation on all or one of three; what it draws for two of them is as without it."""
    pair = random_pair(invalid=0)
    text = random_frames(np.random.default_rng(9), 12, 5, 3)
    three = {"audio": pair["audio"], "text": text, "video": pair["video"]}
    for seed in range(10):
        for config in (EACH["tempo"], EACH["noise audio"], EACH["gap video"]):
            found = augment(three, config, np.random.default_rng(seed))
            expected = augment(pair, config, np.random.default_rng(seed))
            assert same({name: found[name] for name in pair}, expected)
        for changed in (
            augment(three, AugmentConfig(own_tempo={"text": TEMPO}), np.random.default_rng(seed)),
            augment(three, AugmentConfig(noise={"text": (1, 2)}), np.random.default_rng(seed)),
        ):
            assert changed["audio"] is pair["audio"] and changed["video"] is pair["video"]
            assert not np.array_equal(changed["text"].times, text.times) or not np.array_equal(
                changed["text"].frames, text.frames
            )
    slow = AugmentConfig(tempo=(0.8, 0.8), own_tempo={"text": (0.5, 0.5)})
    slowed = augment(three, slow, np.random.default_rng(0))
    assert len(slowed["text"].times) == stretched(12, slow) == 1 + round(round(11 / 0.8) / 0.5)
    mixed = mix(three, augment(three, EACH["tempo"], np.random.default_rng(1)), 0.75)
    np.testing.assert_array_equal(mixed["text"].times, text.times)
    assert not np.array_equal(mixed["text"].frames, text.frames)
    rng, lost = np.random.default_rng(0), []
    for _ in range(900):
        changed = augment(three, AugmentConfig(drop_modality=1.0), rng)
        lost += [name for name, stream in changed.items() if not stream.valid.any()]
    assert len(lost) == 900  # one of each clip
    assert all(abs(lost.count(name) - 300) < 4 * np.sqrt(900 * 2 / 9) for name in three)
