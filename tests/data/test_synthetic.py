"""The built-in corpus: what is said of it holds."""

from itertools import islice, product

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmattn.config import DataConfig, SyntheticConfig
from mmattn.data.corpora.synthetic import (
    APART,
    JITTER,
    ORDERS,
    STEP,
    TAU,
    _directions,
    draw_clips,
)
from mmattn.data.corpus import open_corpus
from mmattn.data.labels import SIX
from mmattn.errors import UserError

RULES = ("unimodal", "coincidence")
CHANCE = 1 / 6


@pytest.fixture(scope="module")
def meetings():
    """Many `coincidence` clips with few, cheap frames."""
    config = SyntheticConfig(
        rule="coincidence",
        clips=3000,
        audio_width=3,
        video_width=3,
        audio_rate=25,
        video_rate=15,
    )
    return list(draw_clips(config))


@pytest.fixture(scope="module")
def ordered():
    return open_corpus(DataConfig(synthetic=SyntheticConfig(rule="unimodal")), ("audio", "video"))


def cues_of(clip, modality: str) -> list:
    return [cue for cue in clip.cues if cue.modality == modality]


def pairs(clip) -> list:
    """Every audio cue with every video cue."""
    return list(product(cues_of(clip, "audio"), cues_of(clip, "video")))


def statistics(frames: np.ndarray) -> np.ndarray:
    change = np.abs(np.diff(frames, axis=0)).mean(axis=0)
    parts = frames.mean(axis=0), frames.std(axis=0), frames.min(axis=0), frames.max(axis=0), change
    return np.concatenate(parts)


def linear_accuracy(features: np.ndarray, labels: np.ndarray, parts: int = 3) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    return cross_val_score(model, features, labels, cv=parts).mean()


@pytest.mark.parametrize("rule", RULES)
def test_a_clip_depends_on_seed_and_index_alone(rule):
    few = list(draw_clips(SyntheticConfig(rule=rule, clips=5)))
    many = list(islice(draw_clips(SyntheticConfig(rule=rule, clips=500)), 5))
    other = list(draw_clips(SyntheticConfig(rule=rule, clips=5, seed=1)))
    for one, same, different in zip(few, many, other, strict=True):
        assert (one.name, one.cues) == (same.name, same.cues)
        assert one.streams["audio"].frames.tobytes() == same.streams["audio"].frames.tobytes()
        assert one.streams["video"].frames.tobytes() == same.streams["video"].frames.tobytes()
        assert one.cues != different.cues


@pytest.mark.parametrize("rule", RULES)
def test_sizes_and_balance(rule):
    corpus = open_corpus(DataConfig(synthetic=SyntheticConfig(rule=rule)), ("audio", "video"))
    assert len(corpus) == len(corpus.cues) == 864
    assert list(corpus.names) == sorted(corpus.names)
    table = {
        (speaker, label) for speaker, label in zip(corpus.speakers, corpus.labels, strict=True)
    }
    assert len(table) == 24 * 6
    assert np.bincount(corpus.labels).tolist() == [144] * 6
    for part, rate, width in (
        (corpus.streams["audio"], 100, 24),
        (corpus.streams["video"], 15, 16),
    ):
        seconds = part.lengths / rate
        assert 1.9 < seconds.min() < 2.1
        assert 4.9 < seconds.max() < 5.1
        assert part.width == width
        np.testing.assert_allclose(np.diff(part.clip_times(7)), 1 / rate)
    assert corpus.class_names == SIX
    assert corpus.description.startswith(f"built-in synthetic corpus (rule {rule}, seed 0)")


def test_speakers_have_offsets_of_their_own(ordered):
    means = np.array(
        [ordered.streams["audio"].clip(i).frames.mean(axis=0) for i in range(len(ordered))]
    )
    of_speaker = np.array(
        [means[ordered.speakers == s].mean(axis=0) for s in set(ordered.speakers)]
    )
    within = np.mean([means[ordered.speakers == s].std(axis=0) for s in set(ordered.speakers)])
    assert of_speaker.std(axis=0).mean() > 2 * within


@pytest.mark.parametrize("rule", RULES)
def test_cues_are_where_they_are_said_to_be(rule):
    """Along its own direction, a cue of one bump stands out at its time from what is around it."""
    config = SyntheticConfig(rule=rule, clips=48)
    for number, modality in enumerate(("audio", "video")):
        directions = _directions(config.seed, number, getattr(config, f"{modality}_width"))
        for clip in draw_clips(config):
            stream = clip.streams[modality]
            along = (stream.frames - np.median(stream.frames, axis=0)) @ directions.T
            for cue in cues_of(clip, modality):
                if rule == "unimodal" and (not cue.decoy or cue.kind == 3):
                    continue
                frame = np.abs(stream.times - cue.time).argmin()
                assert along[frame].argmax() == cue.kind
                assert along[frame, cue.kind] > 4


def order_at(frames: np.ndarray, times: np.ndarray, middle: float, step: float) -> tuple:
    """The order of the three directions' bumps around `middle`, from frames along them."""
    near = np.flatnonzero(np.abs(times - middle) < 2.5 * step)
    weights = np.clip(frames[near] - 1.5, 0, None)
    centres = (weights * times[near, None]).sum(axis=0) / weights.sum(axis=0)
    return tuple(np.argsort(centres).tolist())


@pytest.mark.parametrize("modality", ["audio", "video"])
@pytest.mark.parametrize("tempo", [0.9, 1.0, 1.1])
def test_every_ordered_cue_tells_the_class_by_itself_at_any_tempo(ordered, modality, tempo):
    part = ordered.streams[modality]
    directions = _directions(0, ("audio", "video").index(modality), part.width)
    right = total = 0
    for index, cues in enumerate(ordered.cues[:240]):
        frames = part.clip(index).frames
        along = (frames - np.median(frames, axis=0)) @ directions.T
        times = part.clip_times(index) / tempo
        true = [cue for cue in cues if cue.modality == modality and not cue.decoy]
        assert len(true) >= 2
        for cue in true:
            order = order_at(along, times, cue.time / tempo, STEP[modality] / tempo)
            right += ORDERS.index(order) == ordered.labels[index]
            total += 1
    assert right > 0.97 * total


@pytest.mark.slow
def test_statistics_over_time_tell_an_ordered_class_badly(ordered):
    audio = np.array(
        [statistics(ordered.streams["audio"].clip(i).frames) for i in range(len(ordered))]
    )
    video = np.array(
        [statistics(ordered.streams["video"].clip(i).frames) for i in range(len(ordered))]
    )
    accuracy = linear_accuracy(np.hstack([audio, video]), ordered.labels)
    assert CHANCE < accuracy < 0.65


@pytest.mark.slow
def test_one_pair_meets_and_tells_the_class(meetings):
    for clip in meetings:
        apart = np.array([abs(audio.time - video.time) for audio, video in pairs(clip)])
        assert np.count_nonzero(apart <= JITTER) == 1
        assert np.count_nonzero(apart >= APART) == len(apart) - 1
        audio, video = pairs(clip)[apart.argmin()]
        assert clip.label == audio.kind * 2 + video.kind
        assert not audio.decoy and not video.decoy
        assert sum(not cue.decoy for cue in clip.cues) == 2


@pytest.mark.parametrize("tempo", [0.9, 1.1])
def test_labels_survive_a_tempo_that_both_share_but_not_one_of_audio_alone(meetings, tempo):
    lost = 0
    for clip in meetings:
        true = [not audio.decoy and not video.decoy for audio, video in pairs(clip)]
        shared = [abs(a.time - v.time) / tempo < TAU for a, v in pairs(clip)]
        alone = [abs(a.time / tempo - v.time) < TAU for a, v in pairs(clip)]
        assert shared == true
        lost += alone != true
    assert lost > 0.6 * len(meetings)


def test_every_kind_is_equally_often_in_every_clip(meetings):
    for clip in meetings:
        audio = np.bincount([cue.kind for cue in cues_of(clip, "audio")], minlength=3)
        video = np.bincount([cue.kind for cue in cues_of(clip, "video")], minlength=2)
        assert len({*audio.tolist(), *video.tolist()}) == 1
        assert audio[0] in (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["audio", "video"])
def test_one_modality_of_meeting_cues_says_nothing(meetings, modality):
    """Trees that see every cue's time and kind, and the times between kinds, stay at chance."""
    features = np.full((len(meetings), 24), -1.0)
    for row, clip in enumerate(meetings):
        cues = cues_of(clip, modality)
        by_kind = sorted(cues, key=lambda cue: (cue.kind, cue.time))
        features[row, : len(cues)] = [cue.time for cue in cues]
        features[row, 6 : 6 + len(cues)] = [cue.kind for cue in cues]
        features[row, 12 : 12 + len(cues)] = [cue.time for cue in by_kind]
        features[row, 18 : 17 + len(cues)] = np.diff([cue.time for cue in by_kind])
    labels = np.array([clip.label for clip in meetings])
    trees = ExtraTreesClassifier(100, min_samples_leaf=5, random_state=0)
    accuracy = cross_val_score(trees, features, labels, cv=3).mean()
    assert abs(accuracy - CHANCE) < 3.5 * np.sqrt(CHANCE * (1 - CHANCE) / len(labels))


def test_statistics_over_time_of_meeting_cues_say_nothing(meetings):
    labels = np.array([clip.label for clip in meetings])
    both = np.array(
        [
            [*statistics(clip.streams["audio"].frames), *statistics(clip.streams["video"].frames)]
            for clip in meetings
        ]
    )
    for features in (both[:, :15], both[:, 15:], both):
        accuracy = linear_accuracy(features, labels)
        assert abs(accuracy - CHANCE) < 3.5 * np.sqrt(CHANCE * (1 - CHANCE) / len(labels))


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("audio_width", 2, "audio-width 2: expected 3 or more"),
        ("video_rate", 5.0, "video-rate 5.0: expected 10 or more"),
        ("video_rate", float("nan"), "video-rate nan: expected 10 or more"),
        ("clips", 0, "clips 0: expected 1 or more"),
        ("speakers", 0, "speakers 0: expected 1 or more"),
        ("seed", -1, "seed -1: expected 0 or more"),
    ],
)
def test_options_out_of_range(option, value, reason):
    with pytest.raises(UserError, match=f"--data.synthetic.{reason}"):
        open_corpus(DataConfig(synthetic=SyntheticConfig(**{option: value})), ("audio",))
