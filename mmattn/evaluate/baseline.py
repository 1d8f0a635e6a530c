"""Linear baselines: logistic regression on functionals over time, ignoring order and alignment.

A temporal model must beat them.
"""

from collections.abc import Collection, Mapping

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from mmattn.data.corpus import Corpus
from mmattn.data.splits import Split
from mmattn.data.stream import Stream
from mmattn.evaluate.metrics import confusion_counts, uar
from mmattn.evaluate.predictions import Predictions, pool, predictions_of

STRENGTHS = np.logspace(-4, 1, 11).tolist()
MAX_ITERATIONS = 5000


def functionals(stream: Stream) -> np.ndarray:
    """Functionals of the frames of one modality of a clip [5 * F] float64.

    Of the valid frames: mean, standard deviation, minimum, maximum and mean absolute difference of
    neighbours. Without valid frames all are zero.
    """
    frames, valid = np.asarray(stream.frames, np.float64), stream.valid
    kept = frames[valid]
    if not len(kept):
        return np.zeros(5 * frames.shape[1])
    steps = np.abs(np.diff(frames, axis=0))[valid[1:] & valid[:-1]]
    change = steps.mean(axis=0) if len(steps) else np.zeros(frames.shape[1])
    return np.concatenate(
        [kept.mean(axis=0), kept.std(axis=0), kept.min(axis=0), kept.max(axis=0), change]
    )


def corpus_statistics(corpus: Corpus, modalities: Collection[str]) -> np.ndarray:
    """Functionals over time of all clips [N, D], the modalities concatenated."""
    return np.stack(
        [
            np.concatenate(
                [functionals(corpus.streams[name].clip(clip)) for name in sorted(modalities)]
            )
            for clip in range(len(corpus))
        ]
    )


def test_baselines(
    corpus: Corpus, statistics: Mapping[str, np.ndarray], split: Split
) -> dict[str, Predictions]:
    """Predictions of the split's test clips by linear models, by name.

    Args:
        corpus: all clips.
        statistics: of all clips [N, D], by modality.
        split: of the clips.

    Returns:
        "linear", one model of all modalities. If there are several, also "linear-MODALITY" for
        each alone, and "linear-late", which pools their log-probabilities.
    """
    together = np.concatenate([statistics[name] for name in sorted(statistics)], axis=1)
    if len(statistics) == 1:
        return {"linear": test_baseline(corpus, together, split)}
    alone = {
        f"linear-{name}": test_baseline(corpus, own, split) for name, own in statistics.items()
    }
    late = pool([one.probabilities for one in alone.values()])
    return {
        "linear": test_baseline(corpus, together, split),
        "linear-late": predictions_of(corpus, split.test, late),
        **alone,
    }


def test_baseline(corpus: Corpus, statistics: np.ndarray, split: Split) -> Predictions:
    """Predictions of the split's test clips from statistics [N, D] of all clips."""
    train, validation = (
        clips[corpus.labels[clips] >= 0] for clips in (split.train, split.validation)
    )
    test = split.test
    probabilities = linear_baseline(
        statistics[train],
        corpus.labels[train],
        statistics[validation],
        corpus.labels[validation],
        statistics[test],
        len(corpus.class_names),
    )
    return predictions_of(corpus, test, probabilities)


def linear_baseline(
    train_x: np.ndarray,
    train_y: np.ndarray,
    validation_x: np.ndarray,
    validation_y: np.ndarray,
    test_x: np.ndarray,
    classes: int,
) -> np.ndarray:
    """Class probabilities [N, K] of test_x [N, D] by multinomial logistic regression.

    x is [clips, D], y [clips] int in 0…K-1. The regularisation is chosen by validation UAR, then
    the model is refitted on training and validation clips together. This favours the baseline: a
    network uses its validation clips only for early stopping. Features are standardised on the
    clips of each fit. A class without clips in the fit gets probability zero. Raises ValueError if
    there is only one class.
    """
    strength = best_strength(train_x, train_y, validation_x, validation_y, classes)
    model = _fit(
        np.concatenate([train_x, validation_x]), np.concatenate([train_y, validation_y]), strength
    )
    probabilities = np.zeros((len(test_x), classes))
    probabilities[:, model.classes_] = model.predict_proba(test_x)
    return probabilities


def best_strength(
    train_x: np.ndarray,
    train_y: np.ndarray,
    validation_x: np.ndarray,
    validation_y: np.ndarray,
    classes: int,
) -> float:
    """The smallest of `STRENGTHS` (scikit-learn's C) with the highest validation UAR."""

    def validation_uar(strength: float) -> float:
        predicted = _fit(train_x, train_y, strength).predict(validation_x)
        return float(uar(confusion_counts(validation_y, predicted, classes)))

    return max(STRENGTHS, key=validation_uar)


@threadpool_limits.wrap(limits=1)  # the problem is small: more threads are slower
def _fit(x: np.ndarray, y: np.ndarray, strength: float) -> Pipeline:
    regression = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS)
    return make_pipeline(StandardScaler(), regression).fit(x, y)
