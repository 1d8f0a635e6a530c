"""Predictions of a trained network: every use makes the same batches and the same call."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np

from mmattn.config import ExperimentConfig, config_from_json
from mmattn.data.batches import Bucket, Dispatch, collate, make_buckets, places, plan_epoch
from mmattn.data.corpus import Corpus
from mmattn.data.extractor import difference
from mmattn.data.normalise import Normaliser, neutral
from mmattn.errors import Diverged, UserError
from mmattn.evaluate.predictions import Predictions, predictions_of
from mmattn.evaluate.views import ClipView, view_clips
from mmattn.model.fusion import fusion_of
from mmattn.train import devices
from mmattn.train.checkpoints import Checkpoints, Exported, InMemory, Kind, about_of
from mmattn.train.feed import Feed
from mmattn.train.step import NO_SUMS, Learner, Weights, compiled_learner

SHORTEST, RUNG = 16, 1.25  # frames of the ladder's first step, and the ratio between steps
TOGETHER = 32  # clips per call to an ensemble


class ClipPredictions(NamedTuple):
    """The network's outputs for n clips, in the requested order."""

    loss: np.ndarray
    """[n]"""
    probabilities: np.ndarray
    """[n, K] float64"""
    attention: list[dict[str, np.ndarray]]
    """Of each clip, by modality: [T], without padding."""
    votes: np.ndarray
    """[n, M, K] log-probabilities of each modality alone, sorted by name, 0 if a clip lacks it;
    M is 0 if the network has no single-modality classifiers."""


class ClipInspections(NamedTuple):
    """Activations inside the network, of each of n clips, by modality; without padding."""

    embeddings: list[dict[str, np.ndarray]]
    """[T, H]"""
    gradient_input: list[dict[str, np.ndarray]]
    """[T]"""


@dataclass(frozen=True)
class Predictor:
    """A network and a corpus of clips to predict, whose longest clip fits the buckets.

    learner: the compiled network; weights: on the devices; class_weights [K]: for the loss; feed:
    the corpus, the network's normalisation, the buckets.
    """

    config: ExperimentConfig
    learner: Learner
    weights: Weights
    class_weights: np.ndarray
    feed: Feed

    @property
    def corpus(self) -> Corpus:
        """The clips."""
        return self.feed.corpus

    @property
    def normaliser(self) -> Normaliser:
        """The network's normaliser."""
        return self.feed.normaliser

    def with_corpus(self, corpus: Corpus, buckets: list[Bucket] | None = None) -> "Predictor":
        """The same network for other clips, which must fit `buckets`, or its own buckets."""
        feed = self.feed._replace(corpus=corpus, buckets=buckets or self.feed.buckets)
        return replace(self, feed=feed)

    def predict(self, clips: np.ndarray) -> ClipPredictions:
        """Predict the clips at these positions [n] of the corpus.

        Raises:
            Diverged: a prediction is not finite.
        """
        loss = np.zeros(len(clips))
        shares: list = [None] * len(clips)
        attention: list = [None] * len(clips)
        votes: list = [None] * len(clips)
        for row, found, cut in self._each_clip(
            lambda placed: self.learner.predict(self.weights, placed, self.class_weights), clips
        ):
            loss[row], shares[row] = found.loss, found.probabilities.astype(np.float64)
            attention[row] = cut(found.attention)
            votes[row] = [found.votes[name] for name in sorted(found.votes)]
        probabilities = np.stack(shares)
        bad = ~np.isfinite(probabilities).all(1) | ~np.isfinite(loss)
        if bad.any():
            names = ", ".join(self.corpus.names[clip] for clip in clips[bad])
            raise Diverged(f"the prediction is not finite for {names}; expected finite numbers")
        return ClipPredictions(loss, probabilities, attention, np.array(votes, np.float64))

    def predictions(self, clips: np.ndarray) -> Predictions:
        """As `predict`, with the names, speakers and labels of the clips."""
        return predictions_of(self.corpus, clips, self.predict(clips).probabilities)

    def views(self, clips: np.ndarray) -> list[ClipView]:
        """The clips at these positions [n], with attention and features, for display."""
        found = self.predict(clips)
        both = found.probabilities, found.attention
        return view_clips(self.corpus, clips, self.normaliser, *both)

    def inspect(self, clips: np.ndarray) -> ClipInspections:
        """Activations of the network for the clips at these positions [n]."""
        embeddings: list = [None] * len(clips)
        gradient_input: list = [None] * len(clips)
        for row, found, cut in self._each_clip(
            lambda placed: self.learner.inspect(self.weights, placed), clips
        ):
            embeddings[row], gradient_input[row] = cut(found.embeddings), cut(found.gradient_input)
        return ClipInspections(embeddings, gradient_input)

    def _each_clip(self, call: Callable, clips: np.ndarray) -> Iterator[tuple]:
        """For each clip: its row, its slice of the result of `call`, a function to cut padding."""
        feed, rows = self.feed, {clip: row for row, clip in enumerate(clips)}
        plan = plan_epoch(feed.corpus, clips, feed.buckets, feed.batch, steps=1, rng=None)
        for dispatch, (_, placed) in zip(plan, feed(plan, steps=1), strict=True):
            results = devices.fetch(call(placed))
            for at, clip, *_ in places(dispatch, feed.devices, feed.batch):
                streams = feed.corpus.streams
                lengths = {name: stream.lengths[clip] for name, stream in streams.items()}

                def cut(found, lengths=lengths):
                    return {name: values[: lengths[name]].copy() for name, values in found.items()}

                yield rows[clip], jax.tree.map(lambda x, at=at: x[at], results), cut


class Restored(NamedTuple):
    """A network as stored in a checkpoint."""

    about: dict
    weights: Weights
    """Trees of NumPy arrays."""
    normaliser: Normaliser

    @property
    def config(self) -> ExperimentConfig:
        """The config of its training."""
        return config_from_json(self.about["config"])

    def predictor(self, corpus: Corpus, clips: np.ndarray, device_count: int) -> Predictor:
        """The network, ready to predict clips [n] of a corpus that passes `check_fits`."""
        config = self.config
        learner = learner_for(config, corpus, device_count)
        weights = devices.replicate(self.weights, device_count)
        buckets = make_buckets(corpus, clips, config.data.buckets)
        feed = Feed(corpus, self.normaliser, buckets, config.train.batch, device_count)
        class_weights = np.ones(len(corpus.class_names), np.float32)
        return Predictor(config, learner, weights, class_weights, feed)


def learner_for(
    config: ExperimentConfig, corpus: Corpus, device_count: int, *round_up: Callable[[int], int]
) -> Learner:
    """The learner of a config for the clips of a corpus; equal architectures share one."""
    geometry = fusion_of(config.model.fusion).geometry(corpus.streams, config.model, *round_up)
    widths, classes = tuple(corpus.widths.items()), len(corpus.class_names)
    return compiled_learner(config.model, config.train, widths, classes, device_count, geometry)


def restore(
    checkpoints: Checkpoints | InMemory | Exported,
    kind: Kind,
    corpus: Corpus,
    device_count: int = 1,
) -> Restored:
    """The network of a checkpoint that fits a corpus, for use on `device_count` devices."""
    about = about_of(checkpoints, kind)
    learner = learner_for(config_from_json(about["config"]), corpus, device_count)
    like = {
        "state": learner.blank(),
        "sums": jax.tree.map(lambda x: np.repeat(x, about["devices"]), NO_SUMS),
        "normaliser": neutral(corpus.widths),
    }
    found = checkpoints.load(kind, like)
    state = found["state"]
    return Restored(about, Weights(state.params, state.batch_stats), found["normaliser"])


def check_fits(where: object, about: dict, corpus: Corpus, clips: np.ndarray) -> None:
    """Raise UserError if clips [n] do not have the features and classes of a checkpoint."""
    if corpus.widths != about["widths"]:
        raise UserError(
            f"{where} was trained on features of dimension {about['widths']}, the clips have "
            f"{corpus.widths}"
        )
    check_extractor(where, about, corpus, clips)
    if list(corpus.class_names) != about["class_names"]:
        raise UserError(
            f"{where} was trained on the classes {', '.join(about['class_names'])}, the "
            f"clips have {', '.join(corpus.class_names)}"
        )


def check_extractor(where: object, about: dict, corpus: Corpus, clips: np.ndarray) -> None:
    """Raise UserError if the clips' [n] features come from another extractor than a checkpoint's.

    Only modalities that the network uses and the clips have are compared.
    """
    modalities = about["config"]["model"]["modalities"]
    used = [m for m in modalities if corpus.streams[m].lengths[clips].any()]
    # Checkpoints of earlier versions do not store it.
    both = corpus.extractor, about.get("extractor", {})
    found = difference(*({m: own[m] for m in used if m in own} for own in both))
    if found:
        raise UserError(
            f"{where}: the clips' features differ from those it was trained on: {found}"
        )


class Ensemble:
    """One or more networks of one architecture that predict together, on one device."""

    def __init__(self, networks: Sequence[Restored]):
        self.config = networks[0].config
        both = [(network.weights, network.normaliser) for network in networks]
        self.weights, self.normalisers = jax.device_put(jax.tree.map(lambda *x: np.stack(x), *both))

    def predict(self, corpus: Corpus) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
        """Predict all clips of a corpus with the networks' classes and features.

        Returns:
            Probabilities [n, N, K] float64 of n clips by N networks; attention of each clip, by
            modality [N, T]. They are not finite where a network diverges.
        """
        probabilities: list = [None] * len(corpus)
        attention: list = [None] * len(corpus)
        learner = learner_for(self.config, corpus, 1, rung)
        lengths = {name: stream.lengths for name, stream in corpus.streams.items()}
        raw = neutral(corpus.widths)  # each network has its own normaliser
        for dispatch in plan_ladder(lengths):
            clips = dispatch.batches[0]
            size = 1 if len(clips) == 1 else TOGETHER
            arrays = jax.tree.map(
                lambda x: x[0, 0], collate(corpus, dispatch, raw, devices=1, batch=size, steps=1)
            )
            found = jax.device_get(learner.ensemble(self.weights, self.normalisers, arrays))
            for place, clip in enumerate(clips):
                probabilities[clip] = found.probabilities[:, place].astype(np.float64)
                attention[clip] = {
                    name: weights[:, place, : lengths[name][clip]]
                    for name, weights in found.attention.items()
                }
        return np.stack(probabilities), attention


def plan_ladder(lengths: dict[str, np.ndarray]) -> Iterator[Dispatch]:
    """Divide clips, of lengths [n] in frames by modality, into batches of up to `TOGETHER`.

    A batch is padded to steps of a ladder, `RUNG` apart, so that clips of any length share few
    compilations.
    """
    order = np.lexsort([*lengths.values()])
    for first in range(0, len(order), TOGETHER):
        clips = order[first : first + TOGETHER]
        yield Dispatch({name: rung(of[clips].max()) for name, of in lengths.items()}, [clips])


def rung(frames: int) -> int:
    """The lowest step of the ladder 16, 20, 25, … that is at least `frames`."""
    step = SHORTEST
    while step < frames:
        step = int(step * RUNG)
    return step
