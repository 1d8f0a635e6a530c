import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmattn.data.stream import Stream
from mmattn.evaluate.baseline import STRENGTHS, best_strength, functionals, linear_baseline

AUDIO = np.array([[1.0], [4.0], [2.0], [1.0]])
VIDEO = np.array([[0.0, 1.0], [9.0, 9.0], [2.0, 1.0], [6.0, 4.0]])
FACES = np.array([True, False, True, True])


def statistics(frames: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    valid = np.ones(len(frames), bool) if valid is None else valid
    return functionals(Stream(frames, np.arange(len(frames)) / 10, valid))


def test_time_statistics_by_hand():
    audio = [2, np.sqrt(1.5), 1, 4, (3 + 2 + 1) / 3]
    np.testing.assert_allclose(statistics(AUDIO), audio)
    valid = VIDEO[[0, 2, 3]]
    change = [4, 3]  # from the third to the fourth frame: the second has no face on either side
    video = np.concatenate([valid.mean(0), valid.std(0), valid.min(0), valid.max(0), change])
    np.testing.assert_allclose(statistics(VIDEO, FACES), video)


def test_frames_without_a_face_change_nothing():
    garbage = np.where(FACES[:, None], VIDEO, np.nan)
    np.testing.assert_array_equal(statistics(garbage, FACES), statistics(VIDEO, FACES))


def test_a_modality_without_frames_gives_zeros():
    np.testing.assert_array_equal(statistics(VIDEO, np.zeros(4, bool)), np.zeros(10))
    np.testing.assert_array_equal(statistics(np.zeros((0, 3))), np.zeros(15))


def test_a_single_frame_does_not_change_or_vary():
    np.testing.assert_array_equal(statistics(AUDIO[:1]), [1, 0, 1, 1, 0])


def test_half_precision_is_summed_in_double():
    mean, deviation, *_ = statistics(np.full((5000, 1), 100, np.float16))
    assert (mean, deviation) == (100, 0)


def blobs(clips: int, seed: int, classes=(0, 1, 2)) -> tuple[np.ndarray, np.ndarray]:
    """Three classes around three centres, on features of very different scale, one constant."""
    random = np.random.default_rng(seed)
    labels = random.choice(classes, clips)
    centres = np.array([[0, 0], [4, 0], [0, 4.0]])
    x = (centres[labels] + random.normal(size=(clips, 2))) * [1e-3, 1e4]
    return np.concatenate([x, np.ones((clips, 1))], axis=1), labels


def test_the_baseline_learns_what_is_linear():
    test_x, test_y = blobs(200, seed=2)
    probabilities = linear_baseline(*blobs(90, seed=0), *blobs(30, seed=1), test_x, classes=3)
    assert probabilities.shape == (200, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (probabilities.argmax(axis=1) == test_y).mean() > 0.9


def test_the_scale_of_a_feature_does_not_matter():
    scale = np.array([1e3, 1e-2, 7.0])
    (train_x, train_y), (validation_x, validation_y) = blobs(90, seed=0), blobs(30, seed=1)
    test_x, _ = blobs(50, seed=2)
    plain = linear_baseline(train_x, train_y, validation_x, validation_y, test_x, 3)
    scaled = linear_baseline(
        train_x * scale, train_y, validation_x * scale, validation_y, test_x * scale, 3
    )
    np.testing.assert_allclose(scaled, plain, atol=1e-6)


def test_classes_that_are_absent_get_probability_zero():
    train, validation = blobs(60, seed=0, classes=(0, 2)), blobs(20, seed=1, classes=(0,))
    test_x, test_y = blobs(50, seed=2, classes=(0, 2))
    probabilities = linear_baseline(*train, *validation, test_x, classes=5)
    assert probabilities.shape == (50, 5)
    np.testing.assert_array_equal(probabilities[:, [1, 3, 4]], 0)
    assert (probabilities.argmax(axis=1) == test_y).mean() > 0.9


def test_validation_clips_are_fitted_too():
    """A class that only validation clips have can be predicted in the end."""
    train, validation = blobs(60, seed=0, classes=(0, 1)), blobs(60, seed=1)
    test_x, test_y = blobs(50, seed=2)
    third = linear_baseline(*train, *validation, test_x, classes=3)[:, 2]
    assert np.median(third[test_y == 2]) > third[test_y != 2].max() > 0


def test_one_class_alone_is_an_error():
    one = blobs(20, seed=0, classes=(1,))
    with pytest.raises(ValueError, match="class"):
        linear_baseline(*one, *one, one[0], classes=3)


def noisy(clips: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes told weakly by two of thirty features: fitting them closely is a mistake."""
    x, labels = blobs(clips, seed)
    random = np.random.default_rng(seed + 100)
    weak = x[:, :2] / [1e-3, 1e4] + 2 * random.normal(size=(clips, 2))
    return np.concatenate([weak, random.normal(size=(clips, 28))], axis=1), labels


def test_the_strength_is_the_smallest_with_the_best_validation_uar():
    train, (validation_x, validation_y) = noisy(60, seed=0), noisy(60, seed=1)
    reference = [
        balanced_accuracy_score(
            validation_y,
            make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
            .fit(*train)
            .predict(validation_x),
        )
        for strength in STRENGTHS
    ]
    assert reference[-1] < max(reference)
    assert best_strength(*train, validation_x, validation_y, 3) == STRENGTHS[np.argmax(reference)]


def test_validation_that_repeats_the_training_clips_wants_a_close_fit():
    train, validation = noisy(60, seed=0), noisy(60, seed=1)
    assert best_strength(*train, *train, 3) > best_strength(*train, *validation, 3)
