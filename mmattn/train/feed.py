"""Batches on their way to the devices: a thread prepares them while the devices work."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from mmattn.data.batches import (
    UNCHANGED,
    Augmentation,
    Batch,
    Bucket,
    Dispatch,
    collate,
    places,
    read_ahead,
    shared_shape,
)
from mmattn.data.corpus import Corpus
from mmattn.data.normalise import Normaliser
from mmattn.train import devices

# Dispatches to prepare ahead of the devices; as many more are read from the disk before that.
AHEAD = 2
T = TypeVar("T")


class Feed(NamedTuple):
    """Prepares dispatches of clips on the devices."""

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

        Each process makes those of its own devices.
        """
        own = devices.own_devices(self.devices)

        def make(dispatch: Dispatch) -> tuple[Batch, Batch]:
            layout = self.devices, self.batch, steps, augmentation, own
            shape = shared_shape(dispatch.bucket, self.buckets)
            padded = dispatch._replace(bucket=shape)
            arrays = collate(self.corpus, padded, self.normaliser, *layout)
            return arrays, devices.place(arrays)

        def begin_reading(dispatch: Dispatch) -> Dispatch:
            placed = places(dispatch, self.devices, self.batch, augmentation, own)
            read_ahead(self.corpus, placed, augmentation)
            return dispatch

        return ahead(make, ahead(begin_reading, dispatches))


def ahead(make: Callable[[Dispatch], T], work: Iterable[Dispatch]) -> Iterator[T]:
    """Map in order, in a thread that stays a little ahead of the consumer."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[T]] = deque()
        for item in work:
            waiting.append(pool.submit(make, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
