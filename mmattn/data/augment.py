"""Augmentation of training clips: normalised features and their timestamps.

Time is in seconds on the axis that both modalities of a clip share, so that what an operation does
to their alignment can be told from its arguments. No operation changes its input, and frames that
are invalid stay invalid and zero.
"""

from typing import NamedTuple

import numpy as np

from mmattn.config import AugmentConfig, Modality

# In the order in which they are done. The place of an operation seeds its draws.
_OPERATIONS = (
    "tempo",
    "audio_tempo",
    "video_tempo",
    "audio_scale",
    "audio_noise",
    "video_noise",
    "video_dropout",
    "video_gap",
    "time_mask",
    "feature_mask",
    "drop_modality",
)
_OFF = AugmentConfig()


class Frames(NamedTuple):
    """One modality of a clip."""

    frames: np.ndarray
    """[T, F] float32, normalised; 0 where a frame is invalid."""
    times: np.ndarray
    """[T] float64 seconds."""
    valid: np.ndarray
    """[T] bool."""


class Pair(NamedTuple):
    """Both modalities of a clip."""

    audio: Frames
    video: Frames


def augment(pair: Pair, config: AugmentConfig, rng: np.random.Generator) -> Pair:
    """The clip as the network sees it this time; mixup is apart, as it needs a second clip.

    Each operation has random numbers of its own: with equal `rng` it draws the same, whichever
    others are asked for.
    """
    asked = [name for name in _OPERATIONS if getattr(config, name) != getattr(_OFF, name)]
    if not asked:
        return pair
    seed = rng.integers(2**63)
    change, choice = rng.random(2)
    if change >= config.probability:
        return pair
    if config.pick == "one-or-all":
        asked = [*([name] for name in asked), asked][int(choice * (len(asked) + 1))]
    for name in asked:
        own = np.random.default_rng([seed, _OPERATIONS.index(name)])
        pair = _do(name, pair, config, own)
    return pair


def stretched(length: int | np.ndarray, config: AugmentConfig) -> int | np.ndarray:
    """Most frames that a stream of `length` frames can have after `augment`."""
    steps = np.rint((length - 1) / min(1.0, config.tempo[0]))
    steps = np.rint(steps / min(1.0, config.audio_tempo[0], config.video_tempo[0]))
    return steps.astype(np.int64) + 1


def mix(pair: Pair, other: Pair, share: float) -> Pair:
    """Mixup (Zhang et al., ICLR 2018): share · pair + (1 - share) · other.

    The other's frames are taken at the same seconds in both modalities, so that either clip stays
    aligned with itself, and are the mean, 0, where it has none. Times and validity are the pair's.
    """
    return Pair(*(_mixed(*both, share) for both in zip(pair, other, strict=True)))


def add_noise(frames: Frames, deviation: float, rng: np.random.Generator) -> Frames:
    """Gaussian noise of that deviation on each feature of each valid frame."""
    noisy = rng.standard_normal(frames.frames.shape, np.float32)
    noisy *= deviation
    noisy += frames.frames
    noisy[~frames.valid] = 0
    return frames._replace(frames=noisy)


def scale(frames: Frames, factor: float) -> Frames:
    """All features times a factor."""
    return frames._replace(frames=frames.frames * np.float32(factor))


def change_tempo(frames: Frames, factor: float, anchor: float) -> Frames:
    """Move what happens at second t to anchor + (t - anchor) / factor.

    The new stream has the old one's mean spacing and round((T - 1) / factor) + 1 frames, linearly
    interpolated in time; one is valid if all frames that it is made of are. The last one may lie
    up to half a frame after the old stream's end and then repeats its last frame.
    """
    steps = len(frames.times) - 1
    first, last = frames.times[0], frames.times[-1]
    start = anchor + (first - anchor) / factor
    spacing = (last - first) / max(steps, 1)
    times = start + spacing * np.arange(round(steps / factor) + 1)
    values, valid = _interpolate(frames, anchor + (times - anchor) * factor)
    return Frames(values, times, valid)


def drop_features(frames: Frames, share: float, rng: np.random.Generator) -> Frames:
    """Set each feature, with probability `share`, to its mean throughout."""
    kept = rng.random(frames.frames.shape[1]) >= share
    return frames._replace(frames=frames.frames * kept)


def add_gap(frames: Frames, start: float, end: float) -> Frames:
    """Make the frames from second `start` to before `end` invalid."""
    outside = ~_between(frames.times, start, end)
    return frames._replace(frames=frames.frames * outside[:, None], valid=frames.valid & outside)


def mask_time(pair: Pair, start: float, end: float) -> Pair:
    """Set both modalities to their mean from second `start` to before `end`.

    The time mask of SpecAugment (Park et al., Interspeech 2019), on the shared axis.
    """
    return Pair(
        *(
            part._replace(frames=part.frames * ~_between(part.times, start, end)[:, None])
            for part in pair
        )
    )


def mask_features(frames: Frames, share: float, rng: np.random.Generator) -> Frames:
    """Set up to that share of the features, neighbours of each other, to their mean throughout.

    The frequency mask of SpecAugment (Park et al., Interspeech 2019).
    """
    features = frames.frames.shape[1]
    count = rng.integers(int(share * features), endpoint=True)
    first = rng.integers(features - count, endpoint=True)
    masked = frames.frames.copy()
    masked[:, first : first + count] = 0
    return frames._replace(frames=masked)


def drop_modality(pair: Pair, modality: Modality) -> Pair:
    """Make all frames of one modality invalid, unless the other has no valid ones to go by.

    ModDrop (Neverova et al., TPAMI 2016).
    """
    other, dropped = (pair.video, pair.audio) if modality == "audio" else pair
    if not other.valid.any():
        return pair
    nothing = Frames(np.zeros_like(dropped.frames), dropped.times, np.zeros_like(dropped.valid))
    return pair._replace(**{modality: nothing})


def _do(operation: str, pair: Pair, config: AugmentConfig, rng: np.random.Generator) -> Pair:
    """One operation with a strength drawn from its range."""
    audio, video = pair
    match operation:
        case "tempo":
            factor = rng.uniform(*config.tempo)
            # About second 0 in both, wherever each begins: anchors of their own would part them.
            audio, video = change_tempo(audio, factor, 0.0), change_tempo(video, factor, 0.0)
        case "audio_tempo":
            audio = change_tempo(audio, rng.uniform(*config.audio_tempo), audio.times[0])
        case "video_tempo":
            video = change_tempo(video, rng.uniform(*config.video_tempo), video.times[0])
        case "audio_scale":
            audio = scale(audio, rng.uniform(*config.audio_scale))
        case "audio_noise":
            audio = add_noise(audio, rng.uniform(*config.audio_noise), rng)
        case "video_noise":
            video = add_noise(video, rng.uniform(*config.video_noise), rng)
        case "video_dropout":
            video = drop_features(video, config.video_dropout, rng)
        case "video_gap":
            video = add_gap(video, *_span(video.times[[0, -1]], config.video_gap, rng))
        case "time_mask":
            ends = np.concatenate([audio.times[[0, -1]], video.times[[0, -1]]])
            audio, video = mask_time(pair, *_span(ends, config.time_mask, rng))
        case "feature_mask":
            audio = mask_features(audio, config.feature_mask, rng)
            video = mask_features(video, config.feature_mask, rng)
        case "drop_modality":
            chance, which = rng.random(2)
            if chance < config.drop_modality:
                audio, video = drop_modality(pair, "audio" if which < 0.5 else "video")
    return Pair(audio, video)


def _span(times: np.ndarray, longest: float, rng: np.random.Generator) -> tuple[float, float]:
    """Seconds from and to, of a length drawn up to the longest, between the ends of the times."""
    first, last = times.min(), times.max()
    length = rng.uniform(0, longest)
    start = rng.uniform(first, max(first, last - length))
    return start, start + length


def _between(times: np.ndarray, start: float, end: float) -> np.ndarray:
    return (start <= times) & (times < end)


def _interpolate(frames: Frames, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames [N, F] at the times [N], and which are valid [N]; the end frames last for ever."""
    last = len(frames.times) - 1
    position = np.interp(times, frames.times, np.arange(last + 1))
    # Rounding in the times must not give an invalid neighbour a tiny weight.
    position = np.rint(position * 1e6) / 1e6
    before = position.astype(np.intp)
    after = np.minimum(before + 1, last)
    weight = (position - before).astype(np.float32)
    valid = frames.valid[before] & (frames.valid[after] | (weight == 0))
    values = frames.frames.take(before, axis=0)
    step = frames.frames.take(after, axis=0)
    step -= values
    step *= weight[:, None]
    values += step
    values[~valid] = 0
    return values, valid


def _mixed(frames: Frames, other: Frames, share: float) -> Frames:
    values, there = _interpolate(other, frames.times)
    there &= (other.times[0] <= frames.times) & (frames.times <= other.times[-1])
    values[~(there & frames.valid)] = 0
    values *= 1 - share
    values += np.float32(share) * frames.frames
    return frames._replace(frames=values)
