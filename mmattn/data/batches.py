"""From clips to padded batches: length buckets, shuffled by (seed, epoch)."""

import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np

from mmattn.config import AugmentConfig
from mmattn.data.augment import Rng, Streams, augment, mix, stretched
from mmattn.data.corpus import Corpus, variants_named
from mmattn.data.normalise import Normaliser, normalised
from mmattn.data.stream import PADDING, AnyArray, Stream


class Batch(NamedTuple):
    """Clips for the network; all arrays have the same leading axes."""

    streams: dict[str, Stream]  # padded; frames float32, normalised, 0 if not valid; times float32
    label: AnyArray  # […, B] int32 class number
    mixup_label: AnyArray  # […, B] int32 class number of the other clip
    mixup_lambda: AnyArray  # […, B] float32 weight of the clip itself, 1 without mixup
    target: AnyArray | None  # […, B, K] float32 soft labels after mixup, with data.soft
    weight: AnyArray  # […, B] float32, 1 for a clip and 0 for the padding of an incomplete batch
    clip: AnyArray  # […, B] int32 position in the corpus, -1 for padding


Bucket = dict[str, int]  # a padded shape: frames by modality


class Dispatch(NamedTuple):
    """Batches of one padded shape, sent to the devices in one call."""

    bucket: Bucket
    batches: list[np.ndarray]  # positions in the corpus of each batch's clips


def make_buckets(corpus: Corpus, clips: np.ndarray, count: int) -> list[Bucket]:
    """Padded shapes, short to long, of buckets with about the same number of clips.

    Clips are ordered by their length in the modality whose name comes first. A bucket is as long as
    its longest clip in each modality, and at least as long as the bucket before, so that a clip
    fits every later bucket too. If all clips lack a modality, it still has one frame of padding,
    which the network needs.
    """
    names = sorted(corpus.streams)
    lengths = np.array([corpus.streams[name].lengths[clips] for name in names])
    parts = np.array_split(np.lexsort(lengths[::-1]), min(count, len(clips)))
    longest = np.maximum.accumulate([lengths[:, part].max(axis=1, initial=1) for part in parts])
    return [dict(zip(names, of, strict=True)) for of in np.unique(longest, axis=0).tolist()]


def shared_shape(bucket: Bucket, buckets: list[Bucket]) -> Bucket:
    """The padded shape of a bucket's batches: one for the shorter half of buckets, one for others.

    The LSTM kernel skips padding, so it gains from similar lengths within a batch but hardly from
    tight shapes, each of which must be compiled.
    """
    half = len(buckets) // 2
    return buckets[half - 1 if buckets.index(bucket) < half else -1]


def plan_epoch(
    corpus: Corpus,
    clips: np.ndarray,
    buckets: list[Bucket],
    batch: int,
    steps: int,
    rng: Rng | None,
) -> list[Dispatch]:
    """Divide clips into batches of one bucket each, and batches into dispatches.

    Clips left over in a bucket move to the next longer one, so that only the last batch can be
    incomplete: an epoch has ceil(n / batch) steps.

    Args:
        corpus: its lengths are used.
        clips: [n] positions in the corpus, in any order; each must fit the last bucket.
        buckets: from `make_buckets`.
        batch: clips per batch.
        steps: maximum batches per dispatch.
        rng: shuffles within and between buckets; None keeps the order of the corpus.
    """
    shuffled = np.asarray if rng is None else rng.permutation
    clips = np.sort(clips)
    lengths = {name: stream.lengths[clips] for name, stream in corpus.streams.items()}
    fits = [np.all([lengths[name] <= most for name, most in of.items()], axis=0) for of in buckets]
    first = np.argmax(fits, axis=0)
    left_over, dispatches = clips[:0], []
    for number, bucket in enumerate(buckets):
        members = np.concatenate([left_over, shuffled(clips[first == number])])
        whole = len(members) if bucket is buckets[-1] else len(members) // batch * batch
        left_over = members[whole:]
        batches = [members[at : at + batch] for at in range(0, whole, batch)]
        dispatches += [
            Dispatch(bucket, batches[at : at + steps]) for at in range(0, len(batches), steps)
        ]
    return [dispatches[number] for number in shuffled(np.arange(len(dispatches)))]


class Augmentation(NamedTuple):
    """Augmentation of the clips of a training epoch, drawn from (seed, epoch, clip)."""

    config: AugmentConfig
    seed: int
    epoch: int

    def seed_of(self, purpose: str, clip: int) -> list[int]:
        """The seed of the draws for a clip."""
        return [self.seed, zlib.crc32(purpose.encode()), self.epoch, clip]

    def variant(self, corpus: Corpus, clip: int) -> str:
        """The variant that replaces a clip; "": none."""
        if not self.config.variants:
            return ""
        chance, which = np.random.default_rng(self.seed_of("variants", clip)).random(2)
        for asked, share in sorted(self.config.variants.items()):
            chance -= share
            if chance < 0:
                names = variants_named(asked, corpus.variants)
                return names[int(which * len(names))]
        return ""


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

    Clips are placed as by `places`; the rest is padding. The arrays hold only the `own` devices,
    and only the clips of these devices are read.
    """
    lead = len(range(devices)[own]), steps, -(-batch // devices)
    streams = {}
    for name, frames in dispatch.bucket.items():
        if augmentation.config.variants:
            frames = corpus.streams[name].longest(frames)
        shape = *lead, stretched(frames, augmentation.config)
        blank = np.zeros((*shape, corpus.streams[name].width), np.float32)
        streams[name] = Stream(blank, np.full(shape, PADDING), np.zeros(shape, bool))
    label, mixup_label = np.zeros((2, *lead), np.int32)
    mixup_lambda, weight = np.ones(lead, np.float32), np.zeros(lead, np.float32)
    position, soft = np.full(lead, -1, np.int32), corpus.targets
    target = None if soft is None else np.zeros((*lead, soft.shape[1]), np.float32)

    # With mixup, keep each clip, which is used twice; without, let its memory be reused at once.
    @lru_cache(batch if augmentation.config.mixup else 1)
    def made(clip: int) -> Streams:
        config, variant = augmentation.config, augmentation.variant(corpus, clip)
        own_clock = config.variant_times == "own"
        streams = normalised(corpus, clip, normaliser, variant, own_clock)
        return augment(streams, config, augmentation.seed_of("augment", clip))

    for at, clip, other, share in places(dispatch, devices, batch, augmentation, own):
        mixed = made(clip)
        if augmentation.config.mixup:
            mixed = mix(mixed, made(other), share)
        for name, stream in mixed.items():
            for padded, array in zip(streams[name], stream, strict=True):
                padded[at][: len(array)] = array
        label[at], mixup_label[at], position[at] = corpus.labels[clip], corpus.labels[other], clip
        mixup_lambda[at], weight[at] = share, 1
        if soft is not None and target is not None:
            target[at] = share * soft[clip] + (1 - share) * soft[other]
    return Batch(streams, label, mixup_label, mixup_lambda, target, weight, position)


def read_ahead(
    corpus: Corpus,
    placed: Iterable[tuple[tuple, int, int, float]],
    augmentation: Augmentation = UNCHANGED,
) -> None:
    """Start reading from disk the clips that `collate` will need for these `places`."""
    for clip in dict.fromkeys(chain(*(both for _, *both, _ in placed))):
        variant = augmentation.variant(corpus, clip)
        for stream in corpus.streams.values():
            stream.variants.get(variant, stream).read_ahead(clip)


def places(
    dispatch: Dispatch,
    devices: int,
    batch: int,
    augmentation: Augmentation = UNCHANGED,
    own: slice = slice(None),
) -> Iterator[tuple[tuple[int, int, int], int, int, float]]:
    """Each clip's place in the arrays of `collate`; the clip, its mixup partner, and its λ ≥ ½.

    Position p of a batch is on device p // n, at place p % n, with n clips per device. Without
    mixup, a clip is its own partner and λ is 1. Only the `own` devices are included.
    """
    share, numbers, mixup = -(-batch // devices), range(devices)[own], augmentation.config.mixup
    for step, clips in enumerate(dispatch.batches):
        others, weights = clips, np.ones(len(clips))
        if mixup:
            rng = np.random.default_rng(augmentation.seed_of("mixup", clips[0]))
            weights = rng.beta(mixup, mixup, len(clips))
            others, weights = rng.permutation(clips), np.maximum(weights, 1 - weights)
        for position, row in enumerate(zip(clips, others, weights, strict=True)):
            device, place = divmod(position, share)
            if device in numbers:
                yield (device - numbers.start, step, place), *row
