"""From clips to padded batches: length buckets, shuffled by (seed, epoch)."""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mmattn.config import AugmentConfig
from mmattn.data.augment import Frames, Pair, augment, mix, stretched
from mmattn.data.clips import valid_frames
from mmattn.data.corpus import Corpus
from mmattn.data.normalise import Normaliser, normalise_audio, normalise_video


class Sequence(NamedTuple):
    """Padded frames of one modality; the leading axes are those of the batch."""

    frames: np.ndarray
    """[…, B, T, F] float32, normalised; 0 in the padding and where a frame is invalid."""
    valid: np.ndarray
    """[…, B, T] bool, False in the padding and where a frame has no data (no face)."""
    length: np.ndarray
    """[…, B] int32 frames of each clip, invalid ones included."""
    times: np.ndarray
    """[…, B, T] float32 seconds, 0 in the padding."""


class Batch(NamedTuple):
    """Clips for the network; the leading axes of every array are the same."""

    audio: Sequence
    video: Sequence
    label: np.ndarray
    """[…, B] int32 class number."""
    other_label: np.ndarray
    """[…, B] int32 class number of the clip that is mixed in."""
    share: np.ndarray
    """[…, B] float32 share of the clip itself, 1 where nothing is mixed in."""
    weight: np.ndarray
    """[…, B] float32, 1 for a clip and 0 for the filler of an incomplete batch."""
    clip: np.ndarray
    """[…, B] int32 position in the corpus, -1 for filler."""


class Bucket(NamedTuple):
    """A padded shape and the clips that fit it."""

    audio_frames: int
    video_frames: int


class Dispatch(NamedTuple):
    """Batches of one padded shape that go to the devices in one call."""

    bucket: Bucket
    batches: list[np.ndarray]
    """Positions in the corpus of each batch's clips."""


def make_buckets(corpus: Corpus, clips: np.ndarray, count: int) -> list[Bucket]:
    """Padded shapes, short to long, that hold about equally many of the clips.

    Clips are ordered by audio length; a bucket is as long as its longest clip in each modality,
    and at least as long as the bucket before, so that a clip fits every later bucket too. Where
    all lack a modality it still has a frame, of padding: the network needs one.
    """
    audio, video = corpus.audio.lengths[clips], corpus.video.lengths[clips]
    order = np.lexsort((video, audio))
    buckets: list[Bucket] = []
    for part in np.array_split(order, min(count, len(clips))):
        before = buckets[-1] if buckets else Bucket(0, 0)
        bucket = Bucket(
            max(before.audio_frames, int(audio[part].max()), 1),
            max(before.video_frames, int(video[part].max()), 1),
        )
        if bucket != before:
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
    audio, video = corpus.audio.lengths[clips], corpus.video.lengths[clips]
    left_over = np.empty(0, clips.dtype)
    dispatches = []
    placed = np.zeros(len(clips), bool)
    for bucket in buckets:
        fits = (audio <= bucket.audio_frames) & (video <= bucket.video_frames) & ~placed
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

    def change(self, clip: int, pair: Pair) -> Pair:
        """The clip as this epoch has it."""
        return augment(pair, self.config, self._rng("augment", clip))

    def partners(self, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each clip [n] of a batch, whom it is mixed with [n] and its own share [n] ≥ ½."""
        rng = self._rng("mixup", *clips[:1])
        share = rng.beta(self.config.mixup, self.config.mixup, len(clips))
        return rng.permutation(clips), np.maximum(share, 1 - share)

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
    and the places that a batch does not fill are filler. Of the devices only the `own` ones are
    in the arrays, and of the clips only theirs are read.
    """
    share = -(-batch // devices)
    wanted = _places_of(own, devices, batch)
    lead = ((wanted.stop - wanted.start) // share, steps, share)
    frames = dispatch.bucket
    if augmentation:
        frames = Bucket(*(stretched(length, augmentation.config) for length in frames))
    result = Batch(
        _blank(lead, frames.audio_frames, corpus.audio.width),
        _blank(lead, frames.video_frames, corpus.video.width),
        label=np.zeros(lead, np.int32),
        other_label=np.zeros(lead, np.int32),
        share=np.ones(lead, np.float32),
        weight=np.zeros(lead, np.float32),
        clip=np.full(lead, -1, np.int32),
    )
    for step, clips in enumerate(dispatch.batches):
        for position, (clip, pair, other, part) in enumerate(
            _prepare(corpus, clips, normaliser, augmentation, wanted)
        ):
            device, place = divmod(position, share)
            at = device, step, place
            _fill(result.audio, at, pair.audio)
            _fill(result.video, at, pair.video)
            result.label[at], result.other_label[at] = corpus.labels[clip], corpus.labels[other]
            result.share[at], result.weight[at], result.clip[at] = part, 1, clip
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
            corpus.audio.read_ahead(clip)
            corpus.video.read_ahead(clip)


def places(dispatch: Dispatch, devices: int, batch: int) -> Iterator[tuple[int, int, int, int]]:
    """Each clip of a dispatch, and where `collate` puts it: device, step and place."""
    share = -(-batch // devices)
    for step, clips in enumerate(dispatch.batches):
        for position, clip in enumerate(clips):
            device, place = divmod(position, share)
            yield clip, device, step, place


def normalised(corpus: Corpus, clip: int, normaliser: Normaliser) -> Pair:
    """Both streams of a clip, ready for the network or to be augmented."""
    audio, video = corpus.audio.clip(clip), corpus.video.clip(clip)
    return Pair(
        Frames(
            normalise_audio(normaliser, audio),
            corpus.audio.clip_times(clip),
            np.ones(len(audio), bool),
        ),
        Frames(
            normalise_video(normaliser, video), corpus.video.clip_times(clip), valid_frames(video)
        ),
    )


def _prepare(
    corpus: Corpus,
    clips: np.ndarray,
    normaliser: Normaliser,
    augmentation: Augmentation | None,
    wanted: slice,
) -> Iterator[tuple[int, Pair, int, float]]:
    """Each wanted clip of a batch, its streams, the clip mixed into it (or itself), its own share.

    A clip's streams are made once, also if it is mixed into another.
    """
    mixed = augmentation is not None and augmentation.mixes
    clips, others, shares = _mixing(clips, augmentation, wanted)
    needed = dict.fromkeys([*clips, *others])
    pairs = {clip: normalised(corpus, clip, normaliser) for clip in needed}
    if augmentation is not None:
        pairs = {clip: augmentation.change(clip, pair) for clip, pair in pairs.items()}
    for clip, other, share in zip(clips, others, shares, strict=True):
        yield clip, mix(pairs[clip], pairs[other], share) if mixed else pairs[clip], other, share


def _mixing(
    clips: np.ndarray, augmentation: Augmentation | None, wanted: slice
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The wanted clips of a batch, the clips mixed into them, and their own shares."""
    others, shares = clips, np.ones(len(clips))
    if augmentation is not None and augmentation.mixes:
        others, shares = augmentation.partners(clips)
    return clips[wanted], others[wanted], shares[wanted]


def _places_of(own: slice | None, devices: int, batch: int) -> slice:
    """The places of a batch that the `own` devices have, all without them."""
    share = -(-batch // devices)
    first, last, _ = (own or slice(None)).indices(devices)
    return slice(first * share, last * share)


def _blank(lead: tuple[int, ...], frames: int, width: int) -> Sequence:
    return Sequence(
        np.zeros((*lead, frames, width), np.float32),
        np.zeros((*lead, frames), bool),
        np.zeros(lead, np.int32),
        np.zeros((*lead, frames), np.float32),
    )


def _fill(sequence: Sequence, at: tuple[int, ...], stream: Frames) -> None:
    length = len(stream.frames)
    sequence.frames[at][:length] = stream.frames
    sequence.valid[at][:length] = stream.valid
    sequence.times[at][:length] = stream.times
    sequence.length[at] = length
