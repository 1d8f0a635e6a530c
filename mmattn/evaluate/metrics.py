"""Scores of predictions, with intervals from a bootstrap over speakers.

Every score is a function of sums over clips (a confusion matrix, calibration bins, …), so sums per
speaker are computed once, and a resample of speakers is a weighted sum of them. Confusion matrices
are [true, predicted] throughout; leading axes, such as resamples, are free. `METRICS` is the only
table of scores: its entries appear in summaries, tables and the report.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mmattn.errors import expect
from mmattn.evaluate.predictions import SMALLEST_PROBABILITY, Predictions

CALIBRATION_BINS = 15
INTERVAL = (0.025, 0.975)
UNKNOWN = "unknown"  # the group of clips whose cell is empty
MOST_VALUES = 100  # of a group column that is scored

Score = dict[str, float | None]


class Sums(NamedTuple):
    """Sums over clips; leading axes, such as speakers or resamples, are free.

    confusion [..., K, K], bins [..., 15, 3] (clips, hits, summed confidence) and hard [..., 4]
    (clips, hits of the top two, summed log loss, summed Brier score) of the clips with a label;
    soft [..., 3] (clips, summed cross-entropy, summed divergence) of all clips, [..., 0] without
    targets.
    """

    confusion: np.ndarray
    bins: np.ndarray
    hard: np.ndarray
    soft: np.ndarray


class Metric(NamedTuple):
    """A score: its title in tables, what it means there, and its value [...] of sums.

    best is the value of perfect predictions: 1.0, or 0.0 where lower is better. A metric that is
    `soft` compares with the raters' distribution and exists only with targets.
    """

    title: str
    meaning: str
    best: float
    value: Callable[[Sums], np.ndarray]
    soft: bool = False


METRICS = {
    "uar": Metric("UAR", "mean of the classes' recalls", 1.0, lambda sums: uar(sums.confusion)),
    "accuracy": Metric(
        "accuracy",
        "fraction of clips predicted correctly",
        1.0,
        lambda sums: accuracy(sums.confusion),
    ),
    "top2": Metric(
        "top-2 accuracy",
        "fraction of clips whose class is one of the two most probable",
        1.0,
        lambda sums: _mean(sums.hard, 1),
    ),
    "macro_f1": Metric(
        "macro-F1", "mean of the classes' F1", 1.0, lambda sums: macro_f1(sums.confusion)
    ),
    "ece": Metric("ECE", "expected calibration error", 0.0, lambda sums: ece(sums.bins)),
    "log_loss": Metric(
        "log loss", "of the true class, in nats", 0.0, lambda sums: _mean(sums.hard, 2)
    ),
    "brier": Metric(
        "Brier score",
        "squared error of the probabilities, summed over classes, 0 to 2",
        0.0,
        lambda sums: _mean(sums.hard, 3),
    ),
    "cross_entropy": Metric(
        "cross-entropy",
        "of predictions to the raters' distribution, in nats",
        0.0,
        lambda sums: _mean(sums.soft, 1),
        soft=True,
    ),
    "js_divergence": Metric(
        "JS divergence",
        "Jensen-Shannon divergence of predictions and raters, in bits",
        0.0,
        lambda sums: _mean(sums.soft, 2),
        soft=True,
    ),
}


def scores(predictions: Predictions, seed: int = 0, resamples: int = 2000) -> dict[str, Score]:
    """Each applicable metric of `METRICS`, as {"value", "low", "high"}.

    Low and high are the ends of the 95 % percentile interval over resamples of whole speakers
    (clips of a speaker depend on each other). They are None with fewer than two speakers, or if a
    speaker is unknown. Without a clip to score, a value is None, and a resample is left out. ECE
    grows when fewer distinct clips are drawn, so its interval is biased upwards, and sometimes lies
    above the value.
    """
    sums = _speaker_sums(predictions)
    resampled = {}
    if _has_interval(predictions.speakers):
        resampled = _resampled(sums, _draws(len(sums.confusion), seed, resamples))
    return {name: _score(value, resampled.get(name)) for name, value in _total(sums).items()}


class Paired(NamedTuple):
    """How far one model is ahead of another on the same clips."""

    differences: dict[str, Score]
    """For each metric that both have: the difference of the values, with a 95 % interval."""
    mcnemar: float
    """The p-value of `mcnemar`."""


def paired(one: Predictions, other: Predictions, seed: int = 0, resamples: int = 2000) -> Paired:
    """Compare the predictions of two models for the same clips, in any order.

    The interval is as in `scores`, but each resample of speakers is scored for both models, so
    that a speaker's difficulty for both cancels. McNemar's test is over clips, ignoring speakers.

    Raises:
        UserError: they are no predictions, or their clips, labels or classes differ.
    """
    for predictions in (one, other):
        expect("paired", predictions, Predictions, "what Run.predict_corpus returns, twice")
    other = other.like(one)
    sums = _speaker_sums(one), _speaker_sums(other)

    def less(first: dict, second: dict) -> dict[str, np.ndarray]:
        return {name: first[name] - second[name] for name in first if name in second}

    resampled = {}
    if _has_interval(one.speakers):
        drawn = _draws(len(sums[0].confusion), seed, resamples)
        resampled = less(*(_resampled(own, drawn) for own in sums))
    values = less(*map(_total, sums))
    known = one.labels >= 0
    right = ((own.predicted == own.labels)[known] for own in (one, other))
    return Paired(
        {name: _score(value, resampled.get(name)) for name, value in values.items()},
        mcnemar(*right),
    )


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """Exact two-sided p-value of equal accuracy of a and b, bools [n] over the same clips.

    The binomial test on the clips that only one of them gets right (McNemar 1947); 1 if none.
    """
    from scipy.stats import binomtest  # imported here: a prediction does not need it

    only_a = np.count_nonzero(right_a & ~right_b)
    only_one = np.count_nonzero(right_a != right_b)
    return float(binomtest(only_a, only_one).pvalue) if only_one else 1.0


def metric_values(predictions: Predictions) -> dict[str, np.ndarray]:
    """Only the values of `scores`; NaN if there is no clip to score."""
    return _total(_speaker_sums(predictions))


def group_scores(
    predictions: Predictions,
    groups: Mapping[str, np.ndarray],
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, dict[str, Any]]:
    """Scores of the clips of each value of each group column, and the differences between groups.

    Args:
        predictions: of N clips.
        groups: the columns by name, each [N] str; an empty cell is in the group "unknown".
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        By column, {"values", "differences"}. Values: by name {"speakers", "clips", **scores}, with
        speakers resampled within the group. Differences: by metric {"highest", "lowest", "value",
        "low", "high"}, the largest difference between two groups; the interval is that of these
        two, so it may reach below 0. With more than two groups, the largest difference is above 0
        by chance even if all groups are equal. Groups without an interval (fewer than two speakers)
        are compared only if fewer than two have one; "unknown" is never compared. A column with one
        value, with more than 100, or with fewer than 5 clips per value on average is not scored and
        has {"left_out": the reason}.
    """
    return {
        column: _scores_of_column(predictions, np.asarray(cells, str), seed, resamples)
        for column, cells in groups.items()
    }


def _scores_of_column(
    predictions: Predictions, cells: np.ndarray, seed: int, resamples: int
) -> dict[str, Any]:
    cells = np.where(cells == "", UNKNOWN, cells)
    names = np.unique(cells)
    if len(names) == 1:
        return {"left_out": f"all {len(cells)} clips have the same value"}
    if len(names) > min(MOST_VALUES, len(cells) / 5):
        found = f"{len(names)} values in {len(cells)} clips"
        return {
            "left_out": f"{found}; expected at most {MOST_VALUES}, with 5 clips each on average"
        }
    parts = {name: predictions.select(cells == name) for name in names.tolist()}
    values = {
        name: {
            "speakers": len(np.unique(part.speakers[part.speakers != ""])),
            "clips": len(part.clips),
            **scores(part, seed, resamples),
        }
        for name, part in parts.items()
    }
    known = [name for name in parts if name != UNKNOWN]
    sure = [name for name in known if _has_interval(parts[name].speakers)]
    compared = {name: parts[name] for name in (sure if len(sure) > 1 else known)}
    differences = _differences(compared, values, seed, resamples if len(sure) > 1 else 0)
    return {"values": values, "differences": differences}


def _differences(
    parts: Mapping[str, Predictions], values: Mapping[str, dict], seed: int, resamples: int
) -> dict[str, dict[str, Any]]:
    """The largest difference between two of the parts in each metric; see `group_scores`."""
    resampled: dict[str, dict] = {name: {} for name in parts}
    if resamples:
        speakers = [np.unique(part.speakers) for part in parts.values()]
        names, drawn = _joint_draws(speakers, seed, resamples)
        resampled = {
            name: _resampled(_speaker_sums(part), drawn[:, np.searchsorted(names, own)])
            for (name, part), own in zip(parts.items(), speakers, strict=True)
        }
    found = {}
    for metric in METRICS:
        value = {
            name: values[name][metric]["value"]
            for name in parts
            if values[name].get(metric, {}).get("value") is not None
        }
        if len(value) > 1:
            lowest, *_, highest = sorted(value, key=value.__getitem__)
            gaps = resampled[highest][metric] - resampled[lowest][metric] if resamples else None
            gap = _score(value[highest] - value[lowest], gaps)
            found[metric] = {"highest": highest, "lowest": lowest, **gap}
    return found


def _joint_draws(
    groups: list[np.ndarray], seed: int, resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    """All speakers [S] of groups, each [S_g] names, and how often each is drawn [R, S].

    Drawn within each group. Groups that share speakers are merged, so that these are drawn equally
    often in both and differences are paired.
    """
    # Imported here: a prediction does not need it.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, speaker = np.unique(np.concatenate(groups), return_inverse=True)
    group = len(names) + np.repeat(np.arange(len(groups)), [len(own) for own in groups])
    shape = (len(names) + len(groups),) * 2
    links = coo_array((np.ones(len(speaker)), (speaker, group)), shape=shape)
    block = connected_components(links, directed=False)[1][: len(names)]
    rng = np.random.default_rng(seed)  # one for all groups, which are drawn independently
    drawn = np.empty((resamples, len(names)))
    for own in (block == one for one in np.unique(block)):
        drawn[:, own] = _draws(own.sum(), rng, resamples)
    return names, drawn


def mean_over_clips(
    values: np.ndarray, speakers: np.ndarray, seed: int = 0, resamples: int = 2000
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [...] of values [n, ...] over the clips of speakers [n]; the ends of its interval [...].

    Low and high as in `scores`, from the same resamples of speakers; NaN if there are none.
    """
    names, speaker = np.unique(speakers, return_inverse=True)
    sums = np.zeros((len(names), *values.shape[1:]))
    np.add.at(sums, speaker, values)
    mean = values.mean(axis=0)
    if not _has_interval(names):
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    drawn = _draws(len(names), seed, resamples)
    clips = (drawn @ np.bincount(speaker)).reshape(-1, *[1] * mean.ndim)
    return mean, *np.quantile(np.tensordot(drawn, sums, 1) / clips, INTERVAL, axis=0)


def scores_by_speaker(predictions: Predictions) -> dict[str, np.ndarray]:
    """Each of `METRICS` over the clips of each speaker [P], speakers in order."""
    return _values(_speaker_sums(predictions))


def per_class(predictions: Predictions) -> list[dict[str, Any]]:
    """A row for each class: class, precision, recall, f1, clips (the number of that class).

    None means a ratio over no clips: precision if the class was never predicted, recall if it has
    no clips, F1 if both.
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
    """Confusion matrix [K, K] int: clips of each true class by predicted class."""
    classes = len(predictions.class_names)
    return confusion_counts(predictions.labels, predictions.predicted, classes)


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Confusion matrix [K, K] int of labels [N], -1 for a clip to ignore, and predicted [N]."""
    labels, predicted = labels[labels >= 0], predicted[labels >= 0]
    pairs = np.bincount(labels * classes + predicted, minlength=classes**2)
    return pairs.reshape(classes, classes)


def uar(confusion: np.ndarray) -> np.ndarray:
    """Unweighted average recall [...] of confusion [..., K, K], over the classes present.

    scikit-learn's `balanced_accuracy_score`.
    """
    clips = confusion.sum(axis=-1)
    return _mean_over_present(_hits(confusion) / np.maximum(clips, 1), clips)


def accuracy(confusion: np.ndarray) -> np.ndarray:
    """Fraction of clips predicted correctly [...], of confusion [..., K, K]; also called WAR."""
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
    return _speaker_sums(predictions).bins.sum(axis=0)


def cross_entropy(targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Cross-entropy -Σ p log q (nats) [...] of probabilities q to targets p, both [..., K].

    A q below the smallest normal float32, which a float32 softmax may round to 0, counts as that
    number: no class costs more than 87.3 nats.
    """
    return -(targets * np.log(np.maximum(probabilities, SMALLEST_PROBABILITY))).sum(axis=-1)


def brier(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Brier score Σ_k (p_k - y_k)² [N] of probabilities p [N, K] for labels [N], y one-hot.

    From 0 to 2, as Brier defined it (Verification of forecasts expressed in terms of probability,
    Monthly Weather Review 78, 1950); for two classes some authors use half of it.
    """
    return ((probabilities - np.eye(probabilities.shape[-1])[labels]) ** 2).sum(axis=-1)


def in_top_two(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each label [N] is one of the two most probable classes [N] bool.

    In a tie the first classes win, as in `Predictions.predicted`, so that top-2 accuracy is never
    below accuracy (in scikit-learn's `top_k_accuracy_score` the last ones win).
    """
    order = np.argsort(-probabilities, axis=-1, kind="stable")
    return (order[:, :2] == labels[:, None]).any(axis=-1)


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence (bits) [...] of distributions p and q, both [..., K].

    (KL(p ‖ m) + KL(q ‖ m)) / 2 with m = (p + q) / 2: 0 if they are equal, 1 if they have no
    class in common (Lin, Divergence measures based on the Shannon entropy, IEEE Transactions on
    Information Theory 37, 1991).
    """
    from scipy.special import rel_entr  # imported here: a prediction does not need it

    middle = (p + q) / 2
    return (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=-1) / (2 * np.log(2))


def _has_interval(speakers: np.ndarray) -> bool:
    """Whether there are two or more speakers [N] to resample, and none is unknown ("").

    Clips without a speaker may be of one person or of several.
    """
    names = np.unique(speakers)
    return len(names) > 1 and names[0] != ""


def _draws(speakers: int, seed: int | np.random.Generator, resamples: int) -> np.ndarray:
    """How often each resample draws each speaker [R, S]."""
    uniform = np.full(speakers, 1 / speakers)
    return np.random.default_rng(seed).multinomial(speakers, uniform, size=resamples)


def _values(sums: Sums) -> dict[str, np.ndarray]:
    """Each metric [...] of sums; NaN if there is no clip to score."""
    with np.errstate(invalid="ignore"):
        return {
            name: metric.value(sums)
            for name, metric in METRICS.items()
            if not metric.soft or sums.soft.shape[-1]
        }


def _total(sums: Sums) -> dict[str, np.ndarray]:
    """Each metric of all speakers' sums [S, ...] together."""
    return _values(Sums(*(part.sum(axis=0) for part in sums)))


def _resampled(sums: Sums, drawn: np.ndarray) -> dict[str, np.ndarray]:
    """Each metric [R] of the sums of speakers [S, ...] drawn [R, S] times."""
    return _values(Sums(*(np.tensordot(drawn, part, 1) for part in sums)))


def _speaker_sums(predictions: Predictions) -> Sums:
    """Sums over the clips of each speaker [S, ...], float64, speakers in order."""
    names, speaker = np.unique(predictions.speakers, return_inverse=True)
    classes = len(predictions.class_names)
    soft = np.zeros((len(names), 0))
    if predictions.targets is not None:
        both = predictions.targets, predictions.probabilities
        columns = np.ones(len(speaker)), cross_entropy(*both), jensen_shannon(*both)
        soft = np.zeros((len(names), 3))
        np.add.at(soft, speaker, np.stack(columns, axis=1))
    known = predictions.labels >= 0
    speaker, labels = speaker[known], predictions.labels[known]
    predicted, probabilities = predictions.predicted[known], predictions.probabilities[known]
    confidence = probabilities.max(axis=1)
    confusions = np.zeros((len(names), classes, classes))
    np.add.at(confusions, (speaker, labels, predicted), 1)
    bins = np.zeros((len(names), CALIBRATION_BINS, 3))
    ones = np.ones_like(confidence)
    columns = np.stack([ones, labels == predicted, confidence], axis=1)
    np.add.at(bins, (speaker, _calibration_bin(confidence)), columns)
    hard = np.zeros((len(names), 4))
    log_loss = cross_entropy(np.eye(classes)[labels], probabilities)
    columns = ones, in_top_two(probabilities, labels), log_loss, brier(probabilities, labels)
    np.add.at(hard, speaker, np.stack(columns, axis=1))
    return Sums(confusions, bins, hard, soft)


def _calibration_bin(confidence: np.ndarray) -> np.ndarray:
    """Which of 15 equal bins, (0, 1/15] … (14/15, 1], each confidence [N] falls into."""
    inner_edges = np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS
    return np.digitize(confidence, inner_edges, right=True)


def _mean(sums: np.ndarray, column: int) -> np.ndarray:
    """Mean [...] of a column of sums [..., C]; the first column counts clips."""
    return sums[..., column] / sums[..., 0]


def _hits(confusion: np.ndarray) -> np.ndarray:
    return confusion.diagonal(axis1=-2, axis2=-1)


def _mean_over_present(values: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """Mean over the last axis of values [..., K], over classes with clips [..., K] only."""
    present = clips > 0
    return (values * present).sum(axis=-1) / present.sum(axis=-1)


def _ratio(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def _score(value: np.ndarray | float, resampled: np.ndarray | None) -> Score:
    """A value with the ends of the 95 % interval of resampled ones [R], if there are any."""
    low = high = None
    if resampled is not None and (known := resampled[np.isfinite(resampled)]).size:
        low, high = map(float, np.quantile(known, INTERVAL))
    return {"value": float(value) if np.isfinite(value) else None, "low": low, "high": high}
