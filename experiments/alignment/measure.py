"""All measures of a trained network: arrays with a row for each test clip.

Test clips are not augmented. Costly measures use `FEW` clips of each speaker; others have NaN.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from mmattn.data.corpora.synthetic import TAU
from mmattn.data.corpus import Corpus
from mmattn.data.splits import Split
from mmattn.data.stream import Ragged, pack_streams
from mmattn.evaluate import attention, correlation
from mmattn.evaluate.cca import fit_cca
from mmattn.evaluate.faithfulness import deletion_and_insertion, emap
from mmattn.train.inference import ClipInspections, ClipPredictions, Predictor
from mmattn.train.shifts import clips_of, measure_shifts

FEW = 6  # clips of each speaker for the costly measures
FITTED = 120  # training clips to fit the canonical correlation on
COMPONENTS = 4
LAGS = np.linspace(-0.4, 0.4, 21)  # seconds
SHARES = np.linspace(0, 1, 6)  # of the frames deleted
PAIRED = 36  # clips whose streams are combined with each other's

Measures = dict[str, np.ndarray]


def measure(network: Predictor, split: Split, seed: int) -> Measures:
    """All measures of one training on its test clips [n]; see the functions below for the keys."""
    corpus, test = network.corpus, split.test
    few = few_of_each(corpus.speakers[test], FEW)
    found = network.predict(test)
    spaced = np.linspace(0, len(split.train) - 1, FITTED).astype(int)
    fitted = split.train[np.unique(spaced)]
    inside = network.inspect(test)
    fit_on = network.inspect(fitted)
    rng = np.random.default_rng(seed)
    of_few = {
        **measure_faithfulness(network, test, few, found, inside, rng),
        **compare_with_random_weights(network, test, few, found, seed),
        **keep_attention(found, few),
    }
    return {
        "clip": np.array([corpus.names[clip] for clip in test]),
        "speaker": corpus.speakers[test],
        "label": corpus.labels[test],
        "probabilities": found.probabilities,
        "meeting": meeting_times(corpus, test),
        **measure_correlation(corpus, fitted, fit_on, test, inside, rng),
        **measure_attention(corpus, test, found),
        **measure_shifts(network, test, "audio"),
        **_spread(len(test), few, of_few),
        **_spread(len(test), *measure_interaction(network, test, rng)),
    }


def few_of_each(speakers: np.ndarray, count: int) -> np.ndarray:
    """Rows of up to `count` clips of each speaker [n], evenly spaced over the speaker's clips."""
    rows = []
    for speaker in np.unique(speakers):
        own = np.flatnonzero(speakers == speaker)
        rows += list(own[np.unique(np.linspace(0, len(own) - 1, count).astype(int))])
    return np.sort(rows)


def meeting_times(corpus: Corpus, clips: np.ndarray) -> np.ndarray:
    """Time (s) [n] at which the cues that determine the class coincide; NaN if not unique."""
    times = np.full(len(clips), np.nan)
    for row, clip in enumerate(clips):
        true = true_cues(corpus, clip, "audio") + true_cues(corpus, clip, "video")
        if len(true) == 2:
            times[row] = np.mean(true)
    return times


def measure_correlation(
    corpus: Corpus,
    fitted: np.ndarray,
    fit_on: ClipInspections,
    test: np.ndarray,
    inside: ClipInspections,
    rng: np.random.Generator,
) -> Measures:
    """correlation, the same over shuffled pairs and over a wrong lag, shift_auc, lag_curve [n, L].

    The others are [n].
    """
    train = _frames(corpus, fitted, fit_on)
    clips = _frames(corpus, test, inside)
    cca = fit_cca(*correlation.centred_pairs(train), COMPONENTS)
    gain = correlation.correlation_gain(cca, clips, rng)
    return {
        "correlation": gain.aligned,
        "correlation_gain": gain.aligned - gain.shuffled,
        "correlation_over_wrong_lag": gain.aligned - gain.wrong_lag,
        "shift_auc": correlation.true_against_shifted_auc(cca, clips),
        "lag_curve": correlation.lag_curve(cca, clips, LAGS),
    }


def measure_attention(corpus: Corpus, test: np.ndarray, found: ClipPredictions) -> Measures:
    """Attention of both modalities against each other and against the cues of the class.

    agreement, and with known cues the mean over modalities of pointing, cue_mass, cue_auroc,
    cue_error (ms): [n] each.
    """
    rows: dict[str, list[float]] = defaultdict(list)
    for clip, weights in zip(test, found.attention, strict=True):
        streams = {name: stream.clip(clip) for name, stream in corpus.streams.items()}
        places = {name: (stream.times, stream.valid) for name, stream in streams.items()}
        cues = {name: np.array(true_cues(corpus, clip, name)) for name in places}
        of_cues = [attention.cue_measures(weights[m], *places[m], cues[m], TAU) for m in places]
        for name in of_cues[0]:
            rows[name].append(np.mean([one[name] for one in of_cues]))
        errors = [attention.centroid_error(weights[m], *places[m], cues[m]) for m in places]
        rows["cue_error"].append(np.mean(errors))
        both = ((weights[m], places[m][0]) for m in ("audio", "video"))
        rows["agreement"].append(attention.agreement(*chain(*both)))
    return {name: np.array(values) for name, values in rows.items()}


def true_cues(corpus: Corpus, clip: int, modality: str) -> list[float]:
    """Times (s) of the cues that determine a clip's class; none if cues are unknown."""
    cues = corpus.cues[clip] if corpus.cues else ()
    return [cue.time for cue in cues if cue.modality == modality and not cue.decoy]


def measure_faithfulness(
    network: Predictor,
    test: np.ndarray,
    few: np.ndarray,
    found: ClipPredictions,
    inside: ClipInspections,
    rng: np.random.Generator,
) -> Measures:
    """Deletion and insertion areas of the predicted class, for three scores of frames [few].

    deletion_X and insertion_X for X attention, gradient (× input), random; faithfulness: attention
    against random, mean over both curves; faithfulness_gradient likewise.
    """
    corpus, clips = network.corpus, test[few]
    valid = [
        {name: stream.clip(clip).valid for name, stream in corpus.streams.items()} for clip in clips
    ]
    predicted = found.probabilities[few].argmax(1)

    def probability_of(masks) -> np.ndarray:
        streams = {
            name: _with_mean(
                stream, clips, [mask[name] for mask in masks], network.normaliser[f"{name}_mean"]
            )
            for name, stream in corpus.streams.items()
        }
        other = network.with_corpus(clips_of(corpus, clips, streams))
        probabilities = other.predict(np.arange(len(clips))).probabilities
        return probabilities[np.arange(len(clips)), predicted]

    scores = {
        "attention": [found.attention[row] for row in few],
        "gradient": [inside.gradient_input[row] for row in few],
        "random": [{name: rng.random(len(x)) for name, x in one.items()} for one in valid],
    }
    result = {}
    for name, of in scores.items():
        result[f"deletion_{name}"], result[f"insertion_{name}"] = deletion_and_insertion(
            of, valid, probability_of, SHARES
        )
    for measured, name in (("faithfulness", "attention"), ("faithfulness_gradient", "gradient")):
        deletion = result["deletion_random"] - result[f"deletion_{name}"]
        insertion = result[f"insertion_{name}"] - result["insertion_random"]
        result[measured] = (deletion + insertion) / 2
    return result


def compare_with_random_weights(
    network: Predictor,
    test: np.ndarray,
    few: np.ndarray,
    found: ClipPredictions,
    seed: int,
) -> Measures:
    """random_weights [few]: rank correlation of attention with that of an untrained network."""
    learner = network.learner
    weights = learner.weights(learner.shard_state(learner.initial(seed + 2**31)))
    other = replace(network, weights=weights).predict(test[few])
    rows = zip((found.attention[row] for row in few), other.attention, strict=True)
    return {"random_weights": np.array([rank_agreement(a, b) for a, b in rows])}


def rank_agreement(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Mean over modalities of the rank correlation of two attentions, where one is not 0."""
    return float(
        np.mean([attention.rank_correlation(a[m], b[m], (a[m] > 0) | (b[m] > 0)) for m in a])
    )


def keep_attention(found: ClipPredictions, few: np.ndarray) -> Measures:
    """attention_audio and attention_video [few, T], NaN after the end, to compare seeds."""
    return {
        f"attention_{name}": _padded([found.attention[row][name] for row in few])
        for name in ("audio", "video")
    }


def measure_interaction(
    network: Predictor, test: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, Measures]:
    """The rows measured, and emap_gap: accuracy minus that of the nearest additive model.

    The audio of each clip is paired with the video of every clip, so n clips make n² pairs.
    """
    corpus = network.corpus
    rows = np.sort(rng.permutation(len(test))[:PAIRED])
    clips = test[rows]
    audio, video = (index.ravel() for index in np.meshgrid(clips, clips, indexing="ij"))
    chosen = {"audio": audio, "video": video}
    streams = {name: corpus.streams[name].select(rows) for name, rows in chosen.items()}
    pairs = clips_of(corpus, audio, streams)
    probabilities = network.with_corpus(pairs).predict(np.arange(len(audio))).probabilities
    logits = np.log(np.maximum(probabilities, 1e-30)).reshape(len(clips), len(clips), -1)
    labels = corpus.labels[clips]
    own = logits[np.arange(len(clips)), np.arange(len(clips))].argmax(1) == labels
    additive = emap(logits).argmax(1) == labels
    return rows, {"emap_gap": own.astype(float) - additive}


def _frames(corpus: Corpus, clips: np.ndarray, inside: ClipInspections) -> list[correlation.Frames]:
    streams = corpus.streams
    return [
        correlation.Frames(
            embeddings["audio"],
            streams["audio"].clip_times(clip),
            embeddings["video"],
            *streams["video"].clip(clip)[1:],
        )
        for clip, embeddings in zip(clips, inside.embeddings, strict=True)
    ]


def _with_mean(
    stream: Ragged, clips: np.ndarray, masks: Sequence[np.ndarray], mean: np.ndarray
) -> Ragged:
    """Only these clips, with masked frames replaced by the mean."""
    changed = []
    for clip, mask in zip(clips, masks, strict=True):
        one = stream.clip(clip)
        changed.append(one._replace(frames=np.where(mask[:, None], mean, one.frames)))
    return pack_streams(changed, stream.zero_is_missing)


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    result = np.full((len(rows), max(map(len, rows))), np.nan, np.float32)
    for row, values in enumerate(rows):
        result[row, : len(values)] = values
    return result


def _spread(count: int, rows: np.ndarray, measures: Measures) -> Measures:
    """Arrays of all `count` clips from those of some rows; NaN elsewhere."""
    result = {}
    for name, values in measures.items():
        result[name] = np.full((count, *values.shape[1:]), np.nan, np.float32)
        result[name][rows] = values
    return result
