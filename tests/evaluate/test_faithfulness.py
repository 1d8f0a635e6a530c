import numpy as np
import pytest

from mmattn.evaluate.faithfulness import deletion_and_insertion, emap, removed

SHARES = np.linspace(0, 1, 11)


def test_the_highest_valid_frames_are_removed_and_ties_by_order():
    scores = np.array([0.3, 9.0, 0.5, 0.3, 0.1, 0.3])
    valid = np.array([True, False, True, True, True, True])

    def frames(share: float) -> list[int]:
        return np.flatnonzero(removed(scores, valid, share)).tolist()

    assert frames(0) == []
    assert frames(0.2) == [2]
    assert frames(0.4) == [0, 2]
    assert frames(0.6) == [0, 2, 3]
    assert frames(1) == [0, 2, 3, 4, 5]
    assert not removed(scores, np.zeros(6, bool), 1).any()


def linear(weights: list[dict[str, np.ndarray]]):
    """A model whose probability is the summed weight of the frames that are left."""

    def probability_of(masks):
        return np.array(
            [
                sum(float(weight[name][~mask[name]].sum()) for name in weight)
                for weight, mask in zip(weights, masks, strict=True)
            ]
        )

    return probability_of


def clip(audio: list[float], video: list[float]) -> dict[str, np.ndarray]:
    return {"audio": np.array(audio), "video": np.array(video)}


def everywhere(clips):
    return [{name: np.ones(len(scores), bool) for name, scores in c.items()} for c in clips]


def test_areas_by_hand():
    weights = [clip([0.4, 0.1], [0.4, 0.1]), clip([0.5, 0.0], [0.0, 0.5])]
    scores = [clip([2, 1], [2, 1]), clip([2, 1], [2, 1])]  # the second clip's video is misjudged
    shares = np.array([0, 0.5, 1])
    deletion, insertion = deletion_and_insertion(
        scores, everywhere(scores), linear(weights), shares
    )
    # deletion curves 1, 0.2, 0 and 1, 0.5, 0; insertion curves 0, 0.8, 1 and 0, 0.5, 1
    np.testing.assert_allclose(deletion, [0.35, 0.5])
    np.testing.assert_allclose(insertion, [0.65, 0.5])


def test_true_scores_beat_random_ones_which_beat_reversed_ones():
    rng = np.random.default_rng(0)
    weights = [
        {name: rng.dirichlet(np.full(frames, 0.3)) / 2 for name, frames in lengths.items()}
        for lengths in [{"audio": 100, "video": 15}] * 20
    ]
    random = [{name: rng.random(len(w)) for name, w in c.items()} for c in weights]
    reverse = [{name: -w for name, w in c.items()} for c in weights]
    areas = [
        deletion_and_insertion(scores, everywhere(weights), linear(weights), SHARES)
        for scores in (weights, random, reverse)
    ]
    deletion, insertion = np.mean(areas, axis=2).T
    assert deletion[0] < deletion[1] - 0.2 and deletion[1] < deletion[2] - 0.2
    assert insertion[0] > insertion[1] + 0.2 and insertion[1] > insertion[2] + 0.2
    assert deletion[1] == pytest.approx(0.5, abs=0.05)


def test_invalid_frames_are_neither_deleted_nor_inserted():
    scores = [clip([9, 2, 1], [1, 2, 9])]
    valid = [{"audio": np.array([False, True, True]), "video": np.array([True, True, False])}]
    seen = []

    def probability_of(masks):
        seen.extend(masks)
        return np.zeros(len(masks))

    deletion_and_insertion(scores, valid, probability_of, SHARES)
    assert not any(mask["audio"][0] or mask["video"][2] for mask in seen)
    assert sum(mask["audio"].sum() == 2 for mask in seen) >= 2  # both curves reach the empty clip


def test_the_projection_of_an_additive_model_is_exact():
    rng = np.random.default_rng(0)
    audio, video = rng.standard_normal((2, 7, 3))
    logits = audio[:, None] + video[None]
    np.testing.assert_allclose(emap(logits), audio + video)


def test_the_projection_of_exclusive_or_knows_nothing():
    audio, video = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    logits = np.eye(2)[audio[:, None] ^ video[None]]
    np.testing.assert_allclose(emap(logits), 0.5)


def test_the_projection_is_the_nearest_additive_model():
    rng = np.random.default_rng(0)
    count = 5
    logits = rng.standard_normal((count, count, 1))
    one_hot = np.eye(count)
    design = np.concatenate(
        [np.repeat(one_hot, count, axis=0), np.tile(one_hot, (count, 1))], axis=1
    )
    fitted = design @ np.linalg.lstsq(design, logits.ravel(), rcond=None)[0]
    np.testing.assert_allclose(emap(logits)[:, 0], np.diag(fitted.reshape(count, count)))
