"""Predictions of a trained network: the same batches, the same call, for every use."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from mmattn.data.batches import Batch, Bucket, Dispatch, collate, plan_epoch
from mmattn.data.corpus import Corpus
from mmattn.data.normalise import Normaliser
from mmattn.train import devices
from mmattn.train.step import Learner, Settings, TrainState

AHEAD = 2  # dispatches made ready while the devices work on another
T = TypeVar("T")


class Feed(NamedTuple):
    """Makes dispatches of clips ready on the devices."""

    corpus: Corpus
    normaliser: Normaliser
    buckets: list[Bucket]
    batch: int
    devices: int

    def __call__(self, dispatches: Iterable[Dispatch], steps: int) -> Iterator[tuple[Batch, Batch]]:
        """Yield each dispatch's arrays on the host and on the devices: [D, steps, B/D, …]."""

        def make(dispatch: Dispatch) -> tuple[Batch, Batch]:
            arrays = collate(
                self.corpus, dispatch, self.normaliser, self.devices, self.batch, steps
            )
            return arrays, devices.place(arrays)

        return ahead(make, dispatches)


class ClipPredictions(NamedTuple):
    """What the network says of n clips, in the order asked for."""

    loss: np.ndarray
    """[n]"""
    probabilities: np.ndarray
    """[n, K] float64"""
    attention: list[dict[str, np.ndarray]]
    """Of each clip, by modality: [T], padding cut off."""


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
    rows = {clip: row for row, clip in enumerate(clips)}
    loss = np.zeros(len(clips))
    probabilities: list = [None] * len(clips)
    attention: list = [None] * len(clips)
    plan = plan_epoch(feed.corpus, clips, feed.buckets, feed.batch, steps=1, rng=None)
    weights = learner.weights(state)
    for host, placed in feed(plan, steps=1):
        prediction = learner.predict(weights, placed, settings)
        found = {name: np.asarray(weights) for name, weights in prediction.attention.items()}
        losses, shares = np.asarray(prediction.loss), np.asarray(prediction.probabilities)
        for place in zip(*np.nonzero(host.clip >= 0), strict=True):
            row = rows[host.clip[place]]
            loss[row], probabilities[row] = losses[place], shares[place].astype(np.float64)
            attention[row] = {
                name: values[place][: getattr(host, name).length[place]]
                for name, values in found.items()
            }
    return ClipPredictions(loss, np.stack(probabilities), attention)


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
