import base64
from dataclasses import replace

import numpy as np
import pytest

from mmattn.evaluate.views import ClipView, StreamView
from mmattn.report.clips import LARGEST, STEP, pack_viewer

NAMES = ("anger", "happy", "sad")


def stream(frames=20, width=4, seed=0) -> StreamView:
    random = np.random.default_rng(seed)
    attention = random.random(frames)
    features = 2 * random.normal(size=(frames, width))
    return StreamView(np.arange(frames) / 10, attention / attention.sum(), features)


def clip(name="one", **streams) -> ClipView:
    view = ClipView(name, "s1", "happy", np.array([0.2, 0.7, 0.1]), {})
    return replace(view, streams={"audio": stream(), "video": stream(seed=1), **streams})


def array(packed: dict, key: int, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["pool"][key]), dtype)


def test_arrays_come_back_within_their_rounding():
    view = clip()
    given = view.streams["audio"]
    packed = pack_viewer({"": [view]}, NAMES)
    (kept,) = packed["clips"]
    audio = kept["views"][0]["streams"]["audio"]
    assert kept["label"] == 1
    np.testing.assert_allclose(array(packed, audio["times"], "<f4"), given.times, rtol=1e-6)
    ratio = array(packed, audio["attention"], "<f4")
    np.testing.assert_allclose(ratio, given.attention * 20, rtol=1e-6)
    features = STEP * array(packed, audio["features"], "i1").reshape(4, 20).T
    np.testing.assert_allclose(features, given.features, atol=STEP / 2 + 1e-9)


def test_features_beyond_the_range_are_kept_as_its_end():
    far = replace(stream(), features=np.full((20, 4), 1e4) * [1, -1, 1, -1])
    packed = pack_viewer({"": [clip(audio=far)]}, NAMES)
    key = packed["clips"][0]["views"][0]["streams"]["audio"]["features"]
    features = STEP * array(packed, key, "i1").reshape(4, 20)
    np.testing.assert_allclose(features[:, 0], [LARGEST, -LARGEST, LARGEST, -LARGEST])


def test_attention_is_a_ratio_over_the_valid_frames_and_gaps_are_spans():
    valid = np.arange(20) >= 10
    half = replace(stream(), attention=valid / 10, valid=valid)
    packed = pack_viewer({"": [clip(video=half)]}, NAMES)
    video = packed["clips"][0]["views"][0]["streams"]["video"]
    ratio = array(packed, video["attention"], "<f4")
    assert np.isnan(ratio[:10]).all()
    np.testing.assert_allclose(ratio[10:], 1)
    np.testing.assert_array_equal(array(packed, video["valid"], "u1"), valid)
    assert video["gaps"] == [[-0.05, 0.95]]


def test_what_arms_have_in_common_is_kept_once():
    views = [clip("one"), clip("two", audio=stream(seed=2))]
    audios = [view.streams["audio"] for view in views]
    turned = [replace(audio, attention=audio.attention[::-1]) for audio in audios]
    others = [
        replace(view, streams={**view.streams, "audio": audio})
        for view, audio in zip(views, turned, strict=True)
    ]
    alone = pack_viewer({"no_aug": views}, NAMES)
    both = pack_viewer({"no_aug": views, "sync_aug": others}, NAMES)
    assert both["arms"] == ["no_aug", "sync_aug"]
    assert len(both["pool"]) == len(alone["pool"]) + 2  # attention to the two clips' audio


def test_arms_with_different_clips_are_refused():
    with pytest.raises(ValueError, match="also sync_aug"):
        pack_viewer({"no_aug": [clip("one")], "sync_aug": [clip("two")]}, NAMES)


def test_modalities_come_in_their_order_each_with_a_colour():
    (view,) = views = [clip(text=stream(frames=5, seed=2), pose=stream(width=3))]
    packed = pack_viewer({"": views}, NAMES)
    assert list(packed["clips"][0]["views"][0]["streams"]) == ["audio", "video", "text", "pose"]
    assert list(packed["colours"]) == ["audio", "video", "text", "pose"]
    assert len(set(packed["colours"].values())) == 4
    of_two = pack_viewer({"": [clip()]}, NAMES)["colours"]
    assert of_two.items() <= packed["colours"].items()
    text = packed["clips"][0]["views"][0]["streams"]["text"]
    times = array(packed, text["times"], "<f4")
    np.testing.assert_allclose(times, view.streams["text"].times, rtol=1e-6)


def test_a_cue_of_a_modality_that_is_not_shown_has_a_colour():
    view = replace(clip(), streams={"audio": stream()}, cues=[("video", 0.5, False)])
    colours = pack_viewer({"": [view]}, NAMES)["colours"]
    assert colours == pack_viewer({"": [clip()]}, NAMES)["colours"]
