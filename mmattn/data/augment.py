"""Augmentation of training clips: normalised features and their timestamps.

Time is in seconds on the axis that all modalities of a clip share, so an operation's arguments
show whether it changes their alignment. No operation changes its input; invalid frames stay invalid
and zero.

An operation is named as its strength in `AugmentConfig`. It acts on one stream if the config has a
strength for each modality, and otherwise on all streams of a clip.
"""

import zlib
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

from mmattn.config import AugmentConfig, Range
from mmattn.data.stream import Stream

# Seeds of these operations, kept from earlier versions so that their runs resume the same; other
# operations are seeded by the CRC-32 of their name.
_NUMBERS = {
    **{"tempo": 0, "own_tempo audio": 1, "own_tempo video": 2, "scale audio": 3, "noise audio": 4},
    **{"noise video": 5, "dropout video": 6, "gap video": 7, "time_mask": 8, "feature_mask": 9},
    "drop_modality": 10,
}

Streams = dict[str, Stream]  # a clip, by modality: frames normalised, 0 where they are not valid
Rng = np.random.Generator


def augment(streams: Streams, config: AugmentConfig, seed: int | Sequence[int] | Rng) -> Streams:
    """The augmented clip, without mixup, which needs a second clip.

    Each operation has its own random stream: its draws depend on the seed, not on which other
    operations are used.
    """
    asked: list[tuple[str, ...]] = []  # operations, each with the modality if it acts on one
    for operation in OPERATIONS:
        strength = getattr(config, operation)
        if isinstance(strength, dict):
            asked += [(operation, name) for name in sorted(strength)]
        elif strength != getattr(AugmentConfig, operation):
            asked.append((operation,))
    if not asked:
        return streams
    rng = np.random.default_rng(seed)
    seed = int(rng.integers(2**63))
    change, choice = rng.random(2)
    if change >= config.probability:
        return streams
    if config.pick == "one-or-all":
        asked = [*([one] for one in asked), asked][int(choice * (len(asked) + 1))]
    for operation, *modality in asked:
        draws = " ".join([operation, *modality])
        own = np.random.default_rng([seed, _NUMBERS.get(draws, zlib.crc32(draws.encode()))])
        change, strength = OPERATIONS[operation], getattr(config, operation)
        for name in modality:
            streams = {**streams, name: change(streams[name], strength[name], own)}
        if not modality:
            streams = change(streams, strength, own)
    return streams


def stretched(length: int, config: AugmentConfig) -> int:
    """Maximum frames of a stream of `length` frames after `augment`, in any modality."""
    steps = np.rint((length - 1) / min(1.0, config.tempo[0]))
    return int(np.rint(steps / min(1.0, *(low for low, _ in config.own_tempo.values()), 1.0))) + 1


def mix(streams: Streams, other: Streams, weight: float) -> Streams:
    """Mixup (Zhang et al., ICLR 2018): weight · clip + (1 - weight) · other.

    The other clip is sampled at the same seconds in every modality, so that both clips keep their
    alignment; where it has no frames, the mean, 0, is used. Times and validity are the clip's.
    """
    mixed = {}
    for name, stream in streams.items():
        frames, there = _interpolate(other[name], stream.times)
        first, last = other[name].times[[0, -1]]
        there &= (first <= stream.times) & (stream.times <= last)
        frames[~(there & stream.valid)] = 0
        frames *= 1 - weight
        frames += np.float32(weight) * stream.frames
        mixed[name] = stream._replace(frames=frames)
    return mixed


def tempo(streams: Streams, factors: Range, rng: Rng) -> Streams:
    """One tempo for all streams, about second 0: separate anchors would misalign them."""
    factor = rng.uniform(*factors)
    return {name: change_tempo(stream, factor, 0.0) for name, stream in streams.items()}


def own_tempo(stream: Stream, factors: Range, rng: Rng) -> Stream:
    """Change the tempo of one stream about its first frame."""
    return change_tempo(stream, rng.uniform(*factors), stream.times[0])


def change_tempo(stream: Stream, factor: float, anchor: float) -> Stream:
    """Move what happens at second t to anchor + (t - anchor) / factor.

    The new stream has the old one's mean spacing and round((T - 1) / factor) + 1 frames, linearly
    interpolated in time; a frame is valid if all frames it is interpolated from are. The last frame
    may lie up to half a frame after the old stream's end; it then repeats the old last frame.
    """
    steps = len(stream.times) - 1
    first, last = stream.times[0], stream.times[-1]
    start = anchor + (first - anchor) / factor
    spacing = (last - first) / max(steps, 1)
    times = start + spacing * np.arange(round(steps / factor) + 1)
    frames, valid = _interpolate(stream, anchor + (times - anchor) * factor)
    return Stream(frames, times, valid)


def scale(stream: Stream, factors: Range, rng: Rng) -> Stream:
    """All features times a factor."""
    return stream._replace(frames=stream.frames * np.float32(rng.uniform(*factors)))


def noise(stream: Stream, deviations: Range, rng: Rng) -> Stream:
    """Add Gaussian noise, of one drawn standard deviation, to the valid frames."""
    deviation = rng.uniform(*deviations)
    noisy = rng.standard_normal(stream.frames.shape, np.float32)
    noisy *= deviation
    noisy += stream.frames
    noisy[~stream.valid] = 0
    return stream._replace(frames=noisy)


def dropout(stream: Stream, share: float, rng: Rng) -> Stream:
    """Set each feature, with probability `share`, to its mean throughout."""
    return stream._replace(frames=stream.frames * (rng.random(stream.frames.shape[1]) >= share))


def gap(stream: Stream, longest: float, rng: Rng) -> Stream:
    """Make the frames of up to `longest` seconds invalid."""
    (outside,) = _outside([stream], longest, rng)
    return Stream(stream.frames * outside[:, None], stream.times, stream.valid & outside)


def time_mask(streams: Streams, longest: float, rng: Rng) -> Streams:
    """SpecAugment's time mask (Park et al., 2019): set the same seconds of all streams to 0."""
    both = zip(streams.items(), _outside(streams.values(), longest, rng), strict=True)
    return {name: one._replace(frames=one.frames * kept[:, None]) for (name, one), kept in both}


def feature_mask(streams: Streams, share: float, rng: Rng) -> Streams:
    """SpecAugment's frequency mask: set a band of up to `share` of the features to 0."""
    masked = {}
    for name, stream in sorted(streams.items()):
        frames, features = stream.frames.copy(), stream.frames.shape[1]
        count = rng.integers(int(share * features), endpoint=True)
        first = rng.integers(features - count, endpoint=True)
        frames[:, first : first + count] = 0
        masked[name] = stream._replace(frames=frames)
    return masked


def drop_modality(streams: Streams, share: float, rng: Rng) -> Streams:
    """ModDrop (Neverova et al., TPAMI 2016): drop one stream if others have valid frames."""
    chance, which = rng.random(2)
    name = sorted(streams)[int(which * len(streams))]
    others = (stream for other, stream in streams.items() if other != name)
    if chance >= share or not any(stream.valid.any() for stream in others):
        return streams
    frames, times, valid = streams[name]
    return {**streams, name: Stream(np.zeros_like(frames), times, np.zeros_like(valid))}


_ORDER = (tempo, own_tempo, scale, noise, dropout, gap, time_mask, feature_mask, drop_modality)
OPERATIONS: dict[str, Callable] = {operation.__name__: operation for operation in _ORDER}


def _outside(streams: Collection[Stream], longest: float, rng: Rng) -> Iterator[np.ndarray]:
    """For each stream, the frames [T] outside a random interval of up to `longest` seconds."""
    ends = np.concatenate([stream.times[[0, -1]] for stream in streams])
    length = rng.uniform(0, longest)
    start = rng.uniform(ends.min(), max(ends.min(), ends.max() - length))
    return ((stream.times < start) | (stream.times >= start + length) for stream in streams)


def _interpolate(stream: Stream, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames [N, F] and validity [N] at the times [N]; beyond the ends, the end frames."""
    last = len(stream.times) - 1
    # Rounding of the times must not give an invalid neighbour a tiny weight.
    position = np.rint(np.interp(times, stream.times, np.arange(last + 1)) * 1e6) / 1e6
    before = position.astype(np.intp)
    after = np.minimum(before + 1, last)
    weight = (position - before).astype(np.float32)
    valid = stream.valid[before] & (stream.valid[after] | (weight == 0))
    frames = stream.frames.take(before, axis=0)
    step = stream.frames.take(after, axis=0)
    step -= frames
    step *= weight[:, None]
    frames += step
    frames[~valid] = 0
    return frames, valid
