"""Augmentation of training clips: normalised features and their timestamps.

Time is in seconds on the axis that both modalities of a clip share, so that what an operation does
to their alignment can be told from its arguments. No operation changes its input, and frames that
are invalid stay invalid and zero.
"""

import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from mmattn.config import AugmentConfig, Range
from mmattn.data.stream import Stream

# In the order in which they are done: what acts on all modalities at once, or on one at a time.
_OPERATIONS = (
    *("tempo", "own_tempo", "scale", "noise", "dropout", "gap"),
    *("time_mask", "feature_mask", "drop_modality"),
)
# The numbers that seed the draws of an operation in runs of earlier versions; of others, their
# name's CRC-32.
_NUMBERS = {
    **{"tempo": 0, "own_tempo audio": 1, "own_tempo video": 2, "scale audio": 3, "noise audio": 4},
    **{"noise video": 5, "dropout video": 6, "gap video": 7, "time_mask": 8, "feature_mask": 9},
    "drop_modality": 10,
}
_OFF = AugmentConfig()

Streams = dict[str, Stream]  # a clip, by modality: frames normalised, 0 where they are not valid


def augment(streams: Streams, config: AugmentConfig, rng: np.random.Generator) -> Streams:
    """The clip as the network sees it this time; mixup is apart, as it needs a second clip.

    Each operation has random numbers of its own: with equal `rng` it draws the same, whichever
    others are asked for.
    """
    asked = list(_asked(config))
    if not asked:
        return streams
    seed = rng.integers(2**63)
    change, choice = rng.random(2)
    if change >= config.probability:
        return streams
    if config.pick == "one-or-all":
        asked = [*([name] for name in asked), asked][int(choice * (len(asked) + 1))]
    for operation, *modality in asked:
        name = " ".join([operation, *modality])
        own = np.random.default_rng([seed, _NUMBERS.get(name, zlib.crc32(name.encode()))])
        strength = getattr(config, operation)
        if not modality:
            streams = _do(operation, streams, strength, own)
        else:
            name = modality[0]
            changed = _do_one(operation, streams[name], strength[name], own)
            streams = {**streams, name: changed}
    return streams


def _asked(config: AugmentConfig) -> Iterator[tuple[str, ...]]:
    """The operations that do something, each with its modality if it acts on one alone."""
    for operation in _OPERATIONS:
        strength = getattr(config, operation)
        if isinstance(strength, Mapping):
            yield from ((operation, name) for name in sorted(strength))
        elif strength != getattr(_OFF, operation):
            yield (operation,)


def stretched(length: int, config: AugmentConfig) -> int:
    """Most frames that a stream of `length` frames can have after `augment`, in any modality."""
    steps = np.rint((length - 1) / min(1.0, config.tempo[0]))
    return int(np.rint(steps / min(1.0, *(low for low, _ in config.own_tempo.values()), 1.0))) + 1


def mix(streams: Streams, other: Streams, weight: float) -> Streams:
    """Mixup (Zhang et al., ICLR 2018): weight · clip + (1 - weight) · other.

    The other's frames are taken at the same seconds in every modality, so that either clip stays
    aligned with itself, and are the mean, 0, where it has none. Times and validity are the clip's.
    """
    return {name: _mixed(stream, other[name], weight) for name, stream in streams.items()}


def add_noise(stream: Stream, deviation: float, rng: np.random.Generator) -> Stream:
    """Gaussian noise of that standard deviation on each feature of each valid frame."""
    noisy = rng.standard_normal(stream.frames.shape, np.float32)
    noisy *= deviation
    noisy += stream.frames
    noisy[~stream.valid] = 0
    return stream._replace(frames=noisy)


def scale(stream: Stream, factor: float) -> Stream:
    """All features times a factor."""
    return stream._replace(frames=stream.frames * np.float32(factor))


def change_tempo(stream: Stream, factor: float, anchor: float) -> Stream:
    """Move what happens at second t to anchor + (t - anchor) / factor.

    The new stream has the old one's mean spacing and round((T - 1) / factor) + 1 frames, linearly
    interpolated in time; one is valid if all frames that it is made of are. The last one may lie
    up to half a frame after the old stream's end and then repeats its last frame.
    """
    steps = len(stream.times) - 1
    first, last = stream.times[0], stream.times[-1]
    start = anchor + (first - anchor) / factor
    spacing = (last - first) / max(steps, 1)
    times = start + spacing * np.arange(round(steps / factor) + 1)
    values, valid = _interpolate(stream, anchor + (times - anchor) * factor)
    return Stream(values, times, valid)


def drop_features(stream: Stream, share: float, rng: np.random.Generator) -> Stream:
    """Set each feature, with probability `share`, to its mean throughout."""
    kept = rng.random(stream.frames.shape[1]) >= share
    return stream._replace(frames=stream.frames * kept)


def add_gap(stream: Stream, start: float, end: float) -> Stream:
    """Make the frames from second `start` to before `end` invalid."""
    outside = ~_between(stream.times, start, end)
    return stream._replace(frames=stream.frames * outside[:, None], valid=stream.valid & outside)


def mask_time(stream: Stream, start: float, end: float) -> Stream:
    """Set all features to their mean from second `start` to before `end`.

    The time mask of SpecAugment (Park et al., Interspeech 2019), if on the axis that all share.
    """
    inside = _between(stream.times, start, end)
    return stream._replace(frames=stream.frames * ~inside[:, None])


def mask_features(stream: Stream, share: float, rng: np.random.Generator) -> Stream:
    """Set up to that share of the features, neighbours of each other, to their mean throughout.

    The frequency mask of SpecAugment (Park et al., Interspeech 2019).
    """
    features = stream.frames.shape[1]
    count = rng.integers(int(share * features), endpoint=True)
    first = rng.integers(features - count, endpoint=True)
    masked = stream.frames.copy()
    masked[:, first : first + count] = 0
    return stream._replace(frames=masked)


def drop_modality(streams: Streams, name: str) -> Streams:
    """Make all frames of one modality invalid, unless no other has valid ones to go by.

    ModDrop (Neverova et al., TPAMI 2016).
    """
    if not any(stream.valid.any() for other, stream in streams.items() if other != name):
        return streams
    frames, times, valid = streams[name]
    return {**streams, name: Stream(np.zeros_like(frames), times, np.zeros_like(valid))}


def _do(
    operation: str, streams: Streams, strength: Range | float, rng: np.random.Generator
) -> Streams:
    """One operation on all modalities, with a strength drawn from its range."""
    match operation:
        case "tempo":
            factor = rng.uniform(*strength)
            # About second 0 in all, wherever each begins: anchors of their own would part them.
            return {name: change_tempo(one, factor, 0.0) for name, one in streams.items()}
        case "time_mask":
            ends = np.concatenate([stream.times[[0, -1]] for stream in streams.values()])
            start, end = _span(ends, strength, rng)
            return {name: mask_time(one, start, end) for name, one in streams.items()}
        case "feature_mask":
            return {name: mask_features(one, strength, rng) for name, one in streams.items()}
        case "drop_modality":
            chance, which = rng.random(2)
            name = [*streams][int(which * len(streams))]
            return drop_modality(streams, name) if chance < strength else streams


def _do_one(
    operation: str, stream: Stream, strength: Range | float, rng: np.random.Generator
) -> Stream:
    """One operation on one modality, with a strength drawn from its range."""
    match operation:
        case "own_tempo":
            return change_tempo(stream, rng.uniform(*strength), stream.times[0])
        case "scale":
            return scale(stream, rng.uniform(*strength))
        case "noise":
            return add_noise(stream, rng.uniform(*strength), rng)
        case "dropout":
            return drop_features(stream, strength, rng)
        case "gap":
            return add_gap(stream, *_span(stream.times[[0, -1]], strength, rng))


def _span(times: np.ndarray, longest: float, rng: np.random.Generator) -> tuple[float, float]:
    """Seconds from and to, of a length drawn up to the longest, between the ends of the times."""
    first, last = times.min(), times.max()
    length = rng.uniform(0, longest)
    start = rng.uniform(first, max(first, last - length))
    return start, start + length


def _between(times: np.ndarray, start: float, end: float) -> np.ndarray:
    return (start <= times) & (times < end)


def _interpolate(stream: Stream, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames [N, F] at the times [N], and which are valid [N]; the end frames last for ever."""
    last = len(stream.times) - 1
    position = np.interp(times, stream.times, np.arange(last + 1))
    # Rounding in the times must not give an invalid neighbour a tiny weight.
    position = np.rint(position * 1e6) / 1e6
    before = position.astype(np.intp)
    after = np.minimum(before + 1, last)
    weight = (position - before).astype(np.float32)
    valid = stream.valid[before] & (stream.valid[after] | (weight == 0))
    values = stream.frames.take(before, axis=0)
    step = stream.frames.take(after, axis=0)
    step -= values
    step *= weight[:, None]
    values += step
    values[~valid] = 0
    return values, valid


def _mixed(stream: Stream, other: Stream, weight: float) -> Stream:
    values, there = _interpolate(other, stream.times)
    there &= (other.times[0] <= stream.times) & (stream.times <= other.times[-1])
    values[~(there & stream.valid)] = 0
    values *= 1 - weight
    values += np.float32(weight) * stream.frames
    return stream._replace(frames=values)
