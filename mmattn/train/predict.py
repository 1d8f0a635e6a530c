"""Predictions of a trained network: the same batches, the same call, for every use."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from mmattn.data.batches import (
    UNCHANGED,
    Augmentation,
    Batch,
    Bucket,
    Dispatch,
    collate,
    places,
    plan_epoch,
    read_ahead,
)
from mmattn.data.corpus import Corpus
from mmattn.data.normalise import Normaliser
from mmattn.evaluate.predictions import Predictions
from mmattn.train import devices
from mmattn.train.step import Learner, Settings, TrainState

# Dispatches made ready while the devices work on another; before, as many are read from the disk.
AHEAD = 2
T = TypeVar("T")


class Feed(NamedTuple):
    """Makes dispatches of clips ready on the devices."""

    corpus: Corpus
    normaliser: Normaliser
    buckets: list[Bucket]
    batch: int
    devices: int

    def __call__(
        self,
        dispatches: Iterable[Dispatch],
        steps: int,
        augmentation: Augmentation = UNCHANGED,
    ) -> Iterator[tuple[Batch, Batch]]:
        """Yield each dispatch's arrays on the host and on the devices: [D, steps, B/D, …].

        Of several processes each makes those of its own devices.
        """
        own = devices.own_devices(self.devices)

        def make(dispatch: Dispatch) -> tuple[Batch, Batch]:
            layout = self.devices, self.batch, steps, augmentation, own
            arrays = collate(self.corpus, dispatch, self.normaliser, *layout)
            return arrays, devices.place(arrays)

        def begin_reading(dispatch: Dispatch) -> Dispatch:
            placed = places(dispatch, self.devices, self.batch, augmentation, own)
            read_ahead(self.corpus, placed)
            return dispatch

        return ahead(make, ahead(begin_reading, dispatches))


class ClipPredictions(NamedTuple):
    """The network's outputs for n clips, in the order asked for."""

    loss: np.ndarray
    """[n]"""
    probabilities: np.ndarray
    """[n, K] float64"""
    attention: list[dict[str, np.ndarray]]
    """Of each clip, by modality: [T], padding cut off."""


class ClipInspections(NamedTuple):
    """Activations inside the network, of each of n clips, by modality; padding cut off."""

    embeddings: list[dict[str, np.ndarray]]
    """[T, H]"""
    gradient_input: list[dict[str, np.ndarray]]
    """[T]"""


def predict_clips(
    learner: Learner, state: TrainState, settings: Settings, feed: Feed, clips: np.ndarray
) -> ClipPredictions:
    """Predict the clips at the positions `clips` [n] of the feed's corpus.

    Args:
        learner: the compiled network.
        state: on the devices.
        settings: its class weights enter the loss.
        feed: its corpus, normalisation and buckets; a bucket must fit the longest clip.
        clips: positions in the corpus.
    """
    loss = np.zeros(len(clips))
    probabilities: list = [None] * len(clips)
    attention: list = [None] * len(clips)
    weights = learner.weights(state)
    for row, found, cut in _each_clip(
        lambda placed: learner.predict(weights, placed, settings), feed, clips
    ):
        loss[row], probabilities[row] = found.loss, found.probabilities.astype(np.float64)
        attention[row] = cut(found.attention)
    return ClipPredictions(loss, np.stack(probabilities), attention)


def to_predictions(corpus: Corpus, clips: np.ndarray, found: ClipPredictions) -> Predictions:
    """Predictions with the names, speakers, labels and targets of the clips [n]."""
    return Predictions(
        tuple(corpus.names[clip] for clip in clips),
        corpus.speakers[clips],
        corpus.labels[clips],
        found.probabilities,
        corpus.class_names,
        None if corpus.targets is None else corpus.targets[clips],
    )


def inspect_clips(
    learner: Learner, state: TrainState, feed: Feed, clips: np.ndarray
) -> ClipInspections:
    """Look inside the network while it sees the clips [n]; see `predict_clips`."""
    embeddings: list = [None] * len(clips)
    gradient_input: list = [None] * len(clips)
    weights = learner.weights(state)
    for row, found, cut in _each_clip(lambda placed: learner.inspect(weights, placed), feed, clips):
        embeddings[row], gradient_input[row] = cut(found.embeddings), cut(found.gradient_input)
    return ClipInspections(embeddings, gradient_input)


def _each_clip(call: Callable, feed: Feed, clips: np.ndarray) -> Iterator[tuple]:
    """The clip's row, its slice of what `call` returns, and what cuts padding off [T, …]."""
    rows = {clip: row for row, clip in enumerate(clips)}
    plan = plan_epoch(feed.corpus, clips, feed.buckets, feed.batch, steps=1, rng=None)
    for dispatch, (_, placed) in zip(plan, feed(plan, steps=1), strict=True):
        results = devices.fetch(call(placed))
        for at, clip, *_ in places(dispatch, feed.devices, feed.batch):
            streams = feed.corpus.streams
            lengths = {name: stream.lengths[clip] for name, stream in streams.items()}

            def cut(found, lengths=lengths):
                return {name: values[: lengths[name]].copy() for name, values in found.items()}

            yield rows[clip], jax.tree.map(lambda x, at=at: x[at], results), cut


def ahead(make: Callable[[Dispatch], T], work: Iterable[Dispatch]) -> Iterator[T]:
    """Map in order, in a thread that stays a little ahead of the consumer."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque()
        for item in work:
            waiting.append(pool.submit(make, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
