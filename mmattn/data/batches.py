"""From clips to padded batches: length buckets, shuffled by (seed, epoch)."""

import zlib
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np

from mmattn.config import AugmentConfig
from mmattn.data.augment import Streams, augment, mix, stretched
from mmattn.data.corpus import Corpus
from mmattn.data.normalise import Normaliser, normalised
from mmattn.data.stream import PADDING, Stream


class Batch(NamedTuple):
    """Clips for the network; the leading axes of every array are the same."""

    streams: dict[str, Stream]
    """By modality, padded: frames […, B, T, F] float32, normalised, 0 where they are not valid;
    times […, B, T] float32 seconds."""
    label: np.ndarray
    """[…, B] int32 class number."""
    mixup_label: np.ndarray
    """[…, B] int32 class number of the clip that is mixed in."""
    mixup_lambda: np.ndarray
    """[…, B] float32 weight of the clip itself, 1 where nothing is mixed in."""
    target: np.ndarray | None
    """[…, B, K] float32 distribution over the classes, if the labels are soft; mixed already."""
    weight: np.ndarray
    """[…, B] float32, 1 for a clip and 0 for the padding of an incomplete batch."""
    clip: np.ndarray
    """[…, B] int32 position in the corpus, -1 for padding."""


Bucket = dict[str, int]  # a padded shape: frames by modality


class Dispatch(NamedTuple):
    """Batches of one padded shape that go to the devices in one call."""

    bucket: Bucket
    batches: list[np.ndarray]
    """Positions in the corpus of each batch's clips."""


def make_buckets(corpus: Corpus, clips: np.ndarray, count: int) -> list[Bucket]:
    """Padded shapes, short to long, that hold about equally many of the clips.

    Clips are ordered by their length in the modality whose name comes first; a bucket is as long as
    its longest clip in each modality, and at least as long as the bucket before, so that a clip
    fits every later bucket too. Where all lack a modality it still has a frame, of padding: the
    network needs one.
    """
    names = sorted(corpus.streams)
    lengths = np.array([corpus.streams[name].lengths[clips] for name in names])
    parts = np.array_split(np.lexsort(lengths[::-1]), min(count, len(clips)))
    longest = np.maximum.accumulate([lengths[:, part].max(axis=1, initial=1) for part in parts])
    return [dict(zip(names, of, strict=True)) for of in np.unique(longest, axis=0).tolist()]


def plan_epoch(
    corpus: Corpus,
    clips: np.ndarray,
    buckets: list[Bucket],
    batch: int,
    steps: int,
    rng: np.random.Generator | None,
) -> list[Dispatch]:
    """Divide clips into batches of one bucket each, and batches into dispatches.

    What is left over in a bucket joins the next longer one, so that only the very last batch can
    be incomplete: an epoch has ceil(n / batch) steps.

    Args:
        corpus: gives the lengths.
        clips: [n] positions in the corpus; their order has no influence.
        buckets: from `make_buckets`; every clip must fit the last.
        batch: clips a batch.
        steps: at most so many batches a dispatch.
        rng: shuffles within and between buckets; None keeps the order of the corpus.
    """
    clips = np.sort(clips)
    lengths = {name: stream.lengths[clips] for name, stream in corpus.streams.items()}
    fits = [np.all([lengths[name] <= most for name, most in of.items()], axis=0) for of in buckets]
    first = np.argmax(fits, axis=0)
    left_over, dispatches = clips[:0], []
    for number, bucket in enumerate(buckets):
        members = clips[first == number]
        if rng is not None:
            members = rng.permutation(members)
        members = np.concatenate([left_over, members])
        whole = len(members) if bucket is buckets[-1] else len(members) // batch * batch
        left_over = members[whole:]
        batches = [members[at : at + batch] for at in range(0, whole, batch)]
        dispatches += [
            Dispatch(bucket, batches[at : at + steps]) for at in range(0, len(batches), steps)
        ]
    if rng is not None:
        dispatches = [dispatches[number] for number in rng.permutation(len(dispatches))]
    return dispatches


class Augmentation(NamedTuple):
    """What happens to the clips of a training epoch: drawn from (seed, epoch, clip)."""

    config: AugmentConfig
    seed: int
    epoch: int

    def change(self, clip: int, streams: Streams) -> Streams:
        """The clip as this epoch has it."""
        return augment(streams, self.config, self._seed("augment", clip))

    def partners(self, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each clip [n] of a batch, which it is mixed with [n] and its own weight [n] ≥ ½.

        With itself, and 1, without mixup.
        """
        if not self.config.mixup:
            return clips, np.ones(len(clips))
        rng = np.random.default_rng(self._seed("mixup", clips[0]))
        own = rng.beta(self.config.mixup, self.config.mixup, len(clips))
        return rng.permutation(clips), np.maximum(own, 1 - own)

    def _seed(self, purpose: str, clip: int) -> list[int]:
        return [self.seed, zlib.crc32(purpose.encode()), self.epoch, clip]


UNCHANGED = Augmentation(AugmentConfig(), 0, 0)


def collate(
    corpus: Corpus,
    dispatch: Dispatch,
    normaliser: Normaliser,
    devices: int,
    batch: int,
    steps: int,
    augmentation: Augmentation = UNCHANGED,
    own: slice = slice(None),
) -> Batch:
    """Normalised, padded arrays of a dispatch, with leading axes [devices, steps, clips].

    The clips lie as `places` says; the rest is padding. Of the devices only the `own` ones are in
    the arrays, and only the clips that they need are read.
    """
    lead = len(range(devices)[own]), steps, -(-batch // devices)
    streams = {}
    for name, frames in dispatch.bucket.items():
        shape = *lead, stretched(frames, augmentation.config)
        blank = np.zeros((*shape, corpus.streams[name].width), np.float32)
        streams[name] = Stream(blank, np.full(shape, PADDING), np.zeros(shape, bool))
    soft = corpus.targets
    result = Batch(
        streams,
        label=np.zeros(lead, np.int32),
        mixup_label=np.zeros(lead, np.int32),
        mixup_lambda=np.ones(lead, np.float32),
        target=None if soft is None else np.zeros((*lead, soft.shape[1]), np.float32),
        weight=np.zeros(lead, np.float32),
        clip=np.full(lead, -1, np.int32),
    )

    @lru_cache(batch)  # a clip that is mixed into another is made once
    def made(clip: int) -> Streams:
        return augmentation.change(clip, normalised(corpus, clip, normaliser))

    for at, clip, other, weight in places(dispatch, devices, batch, augmentation, own):
        mixed = made(clip)
        if augmentation.config.mixup:
            mixed = mix(mixed, made(other), weight)
        for name, stream in mixed.items():
            for padded, array in zip(streams[name], stream, strict=True):
                padded[at][: len(array)] = array
        result.label[at], result.mixup_label[at] = corpus.labels[clip], corpus.labels[other]
        result.mixup_lambda[at], result.weight[at], result.clip[at] = weight, 1, clip
        if soft is not None:
            result.target[at] = weight * soft[clip] + (1 - weight) * soft[other]
    return result


def read_ahead(
    corpus: Corpus,
    dispatch: Dispatch,
    devices: int,
    batch: int,
    augmentation: Augmentation = UNCHANGED,
    own: slice = slice(None),
) -> None:
    """Have the system begin to read what `collate` will take from the disk."""
    pairs = (both for _, *both, _ in places(dispatch, devices, batch, augmentation, own))
    for clip in dict.fromkeys(chain(*pairs)):
        for stream in corpus.streams.values():
            stream.read_ahead(clip)


def places(
    dispatch: Dispatch,
    devices: int,
    batch: int,
    augmentation: Augmentation = UNCHANGED,
    own: slice = slice(None),
) -> Iterator[tuple[tuple[int, int, int], int, int, float]]:
    """Where clips lie in the arrays of `collate`, which they are, what is mixed in, own weights.

    Position p of a batch is at device p // clips, the batch's step, and place p % clips.
    """
    share, numbers = -(-batch // devices), range(devices)[own]
    for step, clips in enumerate(dispatch.batches):
        both = zip(clips, *augmentation.partners(clips), strict=True)
        for position, row in enumerate(both):
            device, place = divmod(position, share)
            if device in numbers:
                yield (device - numbers.start, step, place), *row
