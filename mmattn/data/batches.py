"""From clips to padded batches: length buckets, shuffled by (seed, epoch)."""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mmattn.config import AugmentConfig
from mmattn.data.augment import Streams, augment, mix, stretched
from mmattn.data.corpus import Corpus
from mmattn.data.normalise import Normaliser, normalise
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

    Clips are ordered by their length in the first modality; a bucket is as long as its longest clip
    in each modality, and at least as long as the bucket before, so that a clip fits every later
    bucket too. Where all lack a modality it still has a frame, of padding: the network needs one.
    """
    lengths = {name: stream.lengths[clips] for name, stream in corpus.streams.items()}
    order = np.lexsort([*lengths.values()][::-1])
    buckets: list[Bucket] = []
    for part in np.array_split(order, min(count, len(clips))):
        before = buckets[-1] if buckets else dict.fromkeys(lengths, 1)
        bucket = {name: max(before[name], int(of[part].max())) for name, of in lengths.items()}
        if not buckets or bucket != before:
            buckets.append(bucket)
    return buckets


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
    left_over = np.empty(0, clips.dtype)
    dispatches = []
    placed = np.zeros(len(clips), bool)
    for bucket in buckets:
        fits = np.all([of <= bucket[name] for name, of in lengths.items()], axis=0) & ~placed
        placed |= fits
        members = clips[fits]
        if rng is not None:
            members = rng.permutation(members)
        members = np.concatenate([left_over, members])
        last = bucket == buckets[-1]
        whole = len(members) if last else len(members) // batch * batch
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

    @property
    def mixes(self) -> bool:
        """Whether other clips are mixed in."""
        return self.config.mixup > 0

    def change(self, clip: int, streams: Streams) -> Streams:
        """The clip as this epoch has it."""
        return augment(streams, self.config, self._rng("augment", clip))

    def partners(self, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each clip [n] of a batch, which it is mixed with [n] and its own weight [n] ≥ ½."""
        rng = self._rng("mixup", *clips[:1])
        own = rng.beta(self.config.mixup, self.config.mixup, len(clips))
        return rng.permutation(clips), np.maximum(own, 1 - own)

    def _rng(self, purpose: str, clip: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(purpose.encode()), self.epoch, clip])


def collate(
    corpus: Corpus,
    dispatch: Dispatch,
    normaliser: Normaliser,
    devices: int,
    batch: int,
    steps: int,
    augmentation: Augmentation | None = None,
    own: slice | None = None,
) -> Batch:
    """Normalised, padded arrays of a dispatch, with leading axes [devices, steps, clips].

    Position p of a batch lies on device p // clips; the steps that the dispatch does not fill
    and the places that a batch does not fill are padding. Of the devices only the `own` ones are
    in the arrays, and of the clips only theirs are read.
    """
    share = -(-batch // devices)
    wanted = _places_of(own, devices, batch)
    lead = ((wanted.stop - wanted.start) // share, steps, share)
    bucket, classes = dispatch.bucket, len(corpus.class_names)
    if augmentation:
        bucket = {name: stretched(bucket[name], augmentation.config) for name in bucket}
    result = Batch(
        {name: _blank(lead, bucket[name], corpus.streams[name].width) for name in bucket},
        label=np.zeros(lead, np.int32),
        mixup_label=np.zeros(lead, np.int32),
        mixup_lambda=np.ones(lead, np.float32),
        target=None if corpus.targets is None else np.zeros((*lead, classes), np.float32),
        weight=np.zeros(lead, np.float32),
        clip=np.full(lead, -1, np.int32),
    )
    for step, clips in enumerate(dispatch.batches):
        for position, (clip, streams, other, weight) in enumerate(
            _prepare(corpus, clips, normaliser, augmentation, wanted)
        ):
            device, place = divmod(position, share)
            at = device, step, place
            for name, stream in streams.items():
                for padded, array in zip(result.streams[name], stream, strict=True):
                    padded[at][: len(array)] = array
            result.label[at], result.mixup_label[at] = corpus.labels[clip], corpus.labels[other]
            result.mixup_lambda[at], result.weight[at], result.clip[at] = weight, 1, clip
            if result.target is not None:
                both = corpus.targets[clip], corpus.targets[other]
                result.target[at] = weight * both[0] + (1 - weight) * both[1]
    return result


def read_ahead(
    corpus: Corpus,
    dispatch: Dispatch,
    devices: int,
    batch: int,
    augmentation: Augmentation | None = None,
    own: slice | None = None,
) -> None:
    """Have the system begin to read what `collate` will take from the disk."""
    wanted = _places_of(own, devices, batch)
    for batch_clips in dispatch.batches:
        clips, others, _ = _mixing(batch_clips, augmentation, wanted)
        for clip in dict.fromkeys([*clips, *others]):
            for stream in corpus.streams.values():
                stream.read_ahead(clip)


def places(dispatch: Dispatch, devices: int, batch: int) -> Iterator[tuple[int, int, int, int]]:
    """Each clip of a dispatch, and where `collate` puts it: device, step and place."""
    share = -(-batch // devices)
    for step, clips in enumerate(dispatch.batches):
        for position, clip in enumerate(clips):
            device, place = divmod(position, share)
            yield clip, device, step, place


def normalised(corpus: Corpus, clip: int, normaliser: Normaliser) -> Streams:
    """The streams of a clip, ready for the network or to be augmented."""
    return {
        name: normalise(normaliser, name, stream.clip(clip))
        for name, stream in corpus.streams.items()
    }


def _prepare(
    corpus: Corpus,
    clips: np.ndarray,
    normaliser: Normaliser,
    augmentation: Augmentation | None,
    wanted: slice,
) -> Iterator[tuple[int, Streams, int, float]]:
    """Each wanted clip of a batch, its streams, the clip mixed into it (or itself), its own weight.

    A clip's streams are made once, also if it is mixed into another.
    """
    mixed = augmentation is not None and augmentation.mixes
    clips, others, weights = _mixing(clips, augmentation, wanted)
    made = {clip: normalised(corpus, clip, normaliser) for clip in dict.fromkeys([*clips, *others])}
    if augmentation is not None:
        made = {clip: augmentation.change(clip, streams) for clip, streams in made.items()}
    for clip, other, weight in zip(clips, others, weights, strict=True):
        yield clip, mix(made[clip], made[other], weight) if mixed else made[clip], other, weight


def _mixing(
    clips: np.ndarray, augmentation: Augmentation | None, wanted: slice
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The wanted clips of a batch, the clips mixed into them, and their own weights."""
    others, weights = clips, np.ones(len(clips))
    if augmentation is not None and augmentation.mixes:
        others, weights = augmentation.partners(clips)
    return clips[wanted], others[wanted], weights[wanted]


def _places_of(own: slice | None, devices: int, batch: int) -> slice:
    """The places of a batch that the `own` devices have, all without them."""
    share = -(-batch // devices)
    first, last, _ = (own or slice(None)).indices(devices)
    return slice(first * share, last * share)


def _blank(lead: tuple[int, ...], frames: int, width: int) -> Stream:
    return Stream(
        np.zeros((*lead, frames, width), np.float32),
        np.full((*lead, frames), PADDING),
        np.zeros((*lead, frames), bool),
    )
