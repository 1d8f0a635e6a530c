"""Scores of predictions, with intervals from a bootstrap over speakers.

Every score is a function of sums over clips (a confusion matrix, calibration bins), so sums per
speaker are made once and a resample of speakers is a weighted sum of them. Confusion matrices
are [true, predicted] throughout; leading axes, such as resamples, are free.
"""

import numpy as np

from mmattn.evaluate.predictions import Predictions

CALIBRATION_BINS = 15
INTERVAL = (0.025, 0.975)


def scores(
    predictions: Predictions, seed: int = 0, resamples: int = 2000
) -> dict[str, dict[str, float | None]]:
    """UAR, accuracy, macro-F1 and ECE, each as {"value", "low", "high"}.

    Low and high are the ends of the 95 % percentile interval over resamples of whole speakers
    (clips of a speaker depend on each other). With fewer than two speakers they are None. ECE
    grows when fewer different clips are drawn, so its interval sits high, at times above the
    value.
    """
    confusions, bins = _speaker_sums(predictions)
    values = _measures(confusions.sum(axis=0), bins.sum(axis=0))
    if len(confusions) < 2:
        return {name: _score(value, None, None) for name, value in values.items()}
    drawn = _draws(len(confusions), seed, resamples)
    resampled = _measures(np.tensordot(drawn, confusions, 1), np.tensordot(drawn, bins, 1))
    return {
        name: _score(value, *np.quantile(resampled[name], INTERVAL))
        for name, value in values.items()
    }


def mean_over_clips(
    values: np.ndarray, speakers: np.ndarray, seed: int = 0, resamples: int = 2000
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [...] of values [n, ...] over the clips of speakers [n]; the ends of its interval [...].

    Low and high as in `scores`, from the same resamples of speakers; NaN with fewer than two.
    """
    names, speaker = np.unique(speakers, return_inverse=True)
    sums = np.zeros((len(names), *values.shape[1:]))
    np.add.at(sums, speaker, values)
    mean = values.mean(axis=0)
    if len(names) < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    drawn = _draws(len(names), seed, resamples)
    clips = (drawn @ np.bincount(speaker)).reshape(-1, *[1] * mean.ndim)
    return mean, *np.quantile(np.tensordot(drawn, sums, 1) / clips, INTERVAL, axis=0)


def scores_by_speaker(predictions: Predictions) -> dict[str, np.ndarray]:
    """UAR, accuracy, macro-F1 and ECE over the clips of each speaker [P], speakers in order."""
    return _measures(*_speaker_sums(predictions))


def per_class(predictions: Predictions) -> list[dict[str, str | float | int | None]]:
    """A row a class: class, precision, recall, f1, clips (how many truly are of that class).

    None stands for a ratio over no clips: precision where the class was never predicted, recall
    where it has no clips, F1 where neither happened.
    """
    counts = confusion(predictions)
    hits, clips, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    return [
        {
            "class": name,
            "precision": _ratio(hits[row], predicted[row]),
            "recall": _ratio(hits[row], clips[row]),
            "f1": _ratio(2 * hits[row], clips[row] + predicted[row]),
            "clips": int(clips[row]),
        }
        for row, name in enumerate(predictions.class_names)
    ]


def confusion(predictions: Predictions) -> np.ndarray:
    """How many clips of each true class got each predicted class [K, K] int."""
    classes = len(predictions.class_names)
    return confusion_counts(predictions.labels, predictions.predicted, classes)


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Confusion matrix [K, K] int of labels [N] and predicted [N], both in 0…K-1."""
    pairs = np.bincount(labels * classes + predicted, minlength=classes**2)
    return pairs.reshape(classes, classes)


def uar(confusion: np.ndarray) -> np.ndarray:
    """Unweighted average recall [...] of confusion [..., K, K], over the classes present.

    scikit-learn's `balanced_accuracy_score`.
    """
    clips = confusion.sum(axis=-1)
    return _mean_over_present(_hits(confusion) / np.maximum(clips, 1), clips)


def accuracy(confusion: np.ndarray) -> np.ndarray:
    """Share of clips that are right [...] of confusion [..., K, K]; also called WAR."""
    return _hits(confusion).sum(axis=-1) / confusion.sum(axis=(-2, -1))


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Mean F1 [...] of confusion [..., K, K], over the classes present.

    F1 = 2 hits / (clips + predicted): scikit-learn's `f1_score(average="macro")` with `labels`
    the classes present.
    """
    clips, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    return _mean_over_present(2 * _hits(confusion) / np.maximum(clips + predicted, 1), clips)


def ece(bins: np.ndarray) -> np.ndarray:
    """Expected calibration error [...] of bins [..., 15, 3]: clips, hits, summed confidence.

    sum over bins of clips / N · |accuracy - confidence| (Guo et al., ICML 2017).
    """
    clips, hits, confidence = np.moveaxis(bins, -1, 0)
    return np.abs(hits - confidence).sum(axis=-1) / clips.sum(axis=-1)


def calibration_bins(predictions: Predictions) -> np.ndarray:
    """Clips, hits and summed confidence [15, 3] of equal bins (0, 1/15] … (14/15, 1]."""
    return _speaker_sums(predictions)[1].sum(axis=0)


def _draws(speakers: int, seed: int, resamples: int) -> np.ndarray:
    """How often each resample draws each speaker [R, S]."""
    uniform = np.full(speakers, 1 / speakers)
    return np.random.default_rng(seed).multinomial(speakers, uniform, size=resamples)


def _measures(confusion: np.ndarray, bins: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "uar": uar(confusion),
        "accuracy": accuracy(confusion),
        "macro_f1": macro_f1(confusion),
        "ece": ece(bins),
    }


def _speaker_sums(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Confusion matrix [S, K, K] and calibration bins [S, 15, 3] of each speaker, float64."""
    names, speaker = np.unique(predictions.speakers, return_inverse=True)
    classes = len(predictions.class_names)
    predicted, confidence = predictions.predicted, predictions.probabilities.max(axis=1)
    confusions = np.zeros((len(names), classes, classes))
    np.add.at(confusions, (speaker, predictions.labels, predicted), 1)
    hits = predictions.labels == predicted
    bins = np.zeros((len(names), CALIBRATION_BINS, 3))
    columns = np.stack([np.ones_like(confidence), hits, confidence], axis=1)
    np.add.at(bins, (speaker, _calibration_bin(confidence)), columns)
    return confusions, bins


def _calibration_bin(confidence: np.ndarray) -> np.ndarray:
    """Which of 15 equal bins, (0, 1/15] … (14/15, 1], each confidence [N] falls into."""
    inner_edges = np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS
    return np.digitize(confidence, inner_edges, right=True)


def _hits(confusion: np.ndarray) -> np.ndarray:
    return confusion.diagonal(axis1=-2, axis2=-1)


def _mean_over_present(values: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """Mean over the last axis of values [..., K], of classes with clips [..., K] alone."""
    present = clips > 0
    return (values * present).sum(axis=-1) / present.sum(axis=-1)


def _ratio(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def _score(value: float, low: float | None, high: float | None) -> dict[str, float | None]:
    return {
        "value": float(value),
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
    }
