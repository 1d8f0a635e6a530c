"""From clips to padded batches: length buckets, shuffled by (seed, epoch)."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mmattn.data.clips import Ragged, valid_frames
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


class Batch(NamedTuple):
    """Clips for the network; the leading axes of every array are the same."""

    audio: Sequence
    video: Sequence
    label: np.ndarray
    """[…, B] int32 class number."""
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
    and at least as long as the bucket before, so that a clip fits every later bucket too.
    """
    audio, video = corpus.audio.lengths[clips], corpus.video.lengths[clips]
    order = np.lexsort((video, audio))
    buckets: list[Bucket] = []
    for part in np.array_split(order, min(count, len(clips))):
        before = buckets[-1] if buckets else Bucket(0, 0)
        bucket = Bucket(
            max(before.audio_frames, int(audio[part].max())),
            max(before.video_frames, int(video[part].max())),
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


def collate(
    corpus: Corpus,
    dispatch: Dispatch,
    normaliser: Normaliser,
    devices: int,
    batch: int,
    steps: int,
) -> Batch:
    """Normalised, padded arrays of a dispatch, with leading axes [devices, steps, clips].

    Position p of a batch lies on device p // clips; the steps that the dispatch does not fill
    and the places that a batch does not fill are filler.
    """
    share = -(-batch // devices)
    index = np.full((devices, steps, share), -1, np.int32)
    for step, clips in enumerate(dispatch.batches):
        device, place = np.divmod(np.arange(len(clips)), share)
        index[device, step, place] = clips
    audio = _pad(
        corpus.audio,
        index,
        dispatch.bucket.audio_frames,
        lambda frames: (normalise_audio(normaliser, frames), True),
    )
    video = _pad(
        corpus.video,
        index,
        dispatch.bucket.video_frames,
        lambda frames: (normalise_video(normaliser, frames), valid_frames(frames)),
    )
    present = index >= 0
    label = np.where(present, corpus.labels[index], 0).astype(np.int32)
    return Batch(audio, video, label, present.astype(np.float32), index)


def _pad(
    ragged: Ragged,
    index: np.ndarray,
    frames: int,
    normalise: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | bool]],
) -> Sequence:
    padded = np.zeros((*index.shape, frames, ragged.width), np.float32)
    valid = np.zeros((*index.shape, frames), bool)
    length = np.zeros(index.shape, np.int32)
    for place in zip(*np.nonzero(index >= 0), strict=True):
        clip = ragged.clip(index[place])
        length[place] = len(clip)
        padded[place][: len(clip)], valid[place][: len(clip)] = normalise(clip)
    return Sequence(padded, valid, length)
