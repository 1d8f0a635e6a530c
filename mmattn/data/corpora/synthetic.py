"""The built-in corpus: clips whose cues are known, each drawn from (seed, clip index) alone.

A cue is one or more bumps: a Gaussian in time along a fixed random direction of the features. On
top come noise and, for each speaker and modality, an offset and a gain.

`unimodal`: a cue is three bumps, one in each of three directions, and the class is their order.
Every cue has the same bumps whatever the class, so that means, deviations and extremes over time
say little. Decoys are single bumps (kinds 0 to 2), and all three at once (kind 3).

`coincidence`: a cue is one bump. Every clip has each of three audio kinds and of two video kinds
equally often; the class is which audio kind meets which video kind, once, within TAU. Any other
audio cue is at least APART from any video cue. The pair that meets is drawn without regard to the
kinds, so one modality alone says nothing about the class.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from mmattn.config import SyntheticConfig
from mmattn.data.labels import SIX
from mmattn.data.stream import Stream, make_stream
from mmattn.errors import UserError

SHORTEST, LONGEST = 2.0, 5.0  # seconds of a clip
TAU = 0.08  # seconds, within which two cues meet
JITTER = 0.05  # seconds, by which two cues that meet are off at most
APART = 0.3  # seconds between an audio and a video cue that do not meet
EDGE = 0.25  # seconds without a bump's middle at both ends of a clip
BUMP = {"audio": 0.04, "video": 0.06}  # seconds, standard deviation of a bump
STEP = {"audio": 0.08, "video": 0.14}  # seconds from bump to bump of an ordered cue
SLOT = 0.75  # seconds that an ordered cue has for itself
HEIGHT = {"audio": 12.0, "video": 8.0}  # of a bump
NOISE = 0.5  # standard deviation of the noise of every feature
OFFSET = 0.5  # standard deviation of a speaker's offset of every feature
MIN_RATE = 10.0  # frames a second, so that no bump falls between two frames
ORDERS = tuple(permutations(range(3)))
KINDS = {"audio": 3, "video": 2}  # of cues that meet; the class is audio kind * 2 + video kind
MODALITIES = ("audio", "video")

# Purposes of the random streams; a number is never used again.
_CLIP, _SPEAKER, _DIRECTIONS = 0, 1, 2

Bump = tuple[float, int]  # middle in seconds, direction


@dataclass(frozen=True)
class Cue:
    """An event that was put into a synthetic clip."""

    modality: str
    kind: int
    time: float  # seconds, the middle of the event
    decoy: bool  # it says nothing about the class


@dataclass(frozen=True)
class Clip:
    """A synthetic clip."""

    name: str
    speaker: str
    label: int  # of SIX
    streams: dict[str, Stream]
    cues: tuple[Cue, ...]


def draw_clips(config: SyntheticConfig) -> Iterator[Clip]:
    """All clips in the order of their names; classes are balanced within every speaker."""
    _check(config)
    directions = {
        modality: _directions(config.seed, number, width)
        for number, (modality, width) in enumerate(_widths(config).items())
    }
    for index in range(config.clips):
        yield draw_clip(config, index, directions)


def draw_clip(config: SyntheticConfig, index: int, directions: dict[str, np.ndarray]) -> Clip:
    """Clip `index`; `directions` [3, F] of each modality are the same for the whole corpus."""
    speaker = index % config.speakers
    label = index // config.speakers % len(SIX)
    rng = _generator(config.seed, _CLIP, index)
    duration = rng.uniform(SHORTEST, LONGEST)
    place = _place_ordered if config.rule == "unimodal" else _place_meeting
    cues, bumps = place(rng, label, duration)
    rates = {"audio": config.audio_rate, "video": config.video_rate}
    streams = {}
    for number, modality in enumerate(MODALITIES):
        times = np.arange(int(duration * rates[modality])) / rates[modality]
        signal = _render(times, bumps[modality], directions[modality], modality)
        signal += NOISE * rng.standard_normal(signal.shape)
        offset, gain = _speaker(config.seed, number, speaker, signal.shape[1])
        frames = (offset + gain * signal).astype(np.float32)
        streams[modality] = make_stream(frames, times, modality == "video")
    return Clip(
        name=f"synthetic-{index:06d}",
        speaker=f"synthetic-{speaker:03d}",
        label=label,
        streams=streams,
        cues=tuple(sorted(cues, key=lambda cue: cue.time)),
    )


def _check(config: SyntheticConfig) -> None:
    for option, value, least in (
        ("clips", config.clips, 1),
        ("speakers", config.speakers, 1),
        ("audio-width", config.audio_width, 3),
        ("video-width", config.video_width, 3),
        ("audio-rate", config.audio_rate, MIN_RATE),
        ("video-rate", config.video_rate, MIN_RATE),
        ("seed", config.seed, 0),
    ):
        if not value >= least:
            raise UserError(f"--data.synthetic.{option} must be at least {least}, not {value}")


def _widths(config: SyntheticConfig) -> dict[str, int]:
    return {"audio": config.audio_width, "video": config.video_width}


def _generator(seed: int, purpose: int, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([seed, purpose, *numbers])


def _directions(seed: int, modality: int, width: int) -> np.ndarray:
    """Three orthonormal directions [3, F]."""
    rng = _generator(seed, _DIRECTIONS, modality)
    return np.linalg.qr(rng.standard_normal((width, 3)))[0].T


def _speaker(seed: int, modality: int, speaker: int, width: int) -> tuple[np.ndarray, float]:
    """A speaker's own offset [F] and gain."""
    rng = _generator(seed, _SPEAKER, modality, speaker)
    return OFFSET * rng.standard_normal(width), rng.uniform(0.8, 1.25)


def _render(
    times: np.ndarray, bumps: Sequence[Bump], directions: np.ndarray, modality: str
) -> np.ndarray:
    """The bumps alone: [T, F]."""
    signal = np.zeros((len(times), directions.shape[1]))
    for middle, direction in bumps:
        shape = HEIGHT[modality] * np.exp(-0.5 * ((times - middle) / BUMP[modality]) ** 2)
        signal += shape[:, None] * directions[direction]
    return signal


def _place_ordered(
    rng: np.random.Generator, label: int, duration: float
) -> tuple[list[Cue], dict[str, list[Bump]]]:
    """Cues of the rule `unimodal`: at least two in each modality, decoys in some other slots."""
    cues = []
    bumps: dict[str, list[Bump]] = {modality: [] for modality in MODALITIES}
    slots = int(duration / SLOT)
    for modality in MODALITIES:
        true = set(rng.permutation(slots)[: max(2, slots // 2)])
        for slot in range(slots):
            room = duration / slots
            middle = room * slot + rng.uniform(EDGE, room - EDGE)
            if slot in true:
                cues.append(Cue(modality, label, middle, decoy=False))
                for place, direction in enumerate(ORDERS[label]):
                    bumps[modality].append((middle + STEP[modality] * (place - 1), direction))
            elif rng.random() < 0.8:
                kind = int(rng.integers(4))
                cues.append(Cue(modality, kind, middle, decoy=True))
                together = range(3) if kind == 3 else [kind]
                bumps[modality] += [(middle, direction) for direction in together]
    return cues, bumps


def _place_meeting(
    rng: np.random.Generator, label: int, duration: float
) -> tuple[list[Cue], dict[str, list[Bump]]]:
    """Cues of the rule `coincidence`; all kinds twice where there is room, or else once."""
    gap = APART + JITTER
    for repeats in (2, 1):
        counts = {modality: repeats * kinds for modality, kinds in KINDS.items()}
        places = sum(counts.values()) - 1  # one place holds the pair that meets
        spare = duration - 2 * EDGE - gap * (places - 1)
        if spare > 0:
            break
    times = EDGE + gap * np.arange(places) + np.sort(rng.uniform(0, spare, places))
    order = rng.permutation(places)
    at = {"audio": order[: counts["audio"]], "video": order[counts["audio"] - 1 :]}
    meeting = {"audio": counts["audio"] - 1, "video": 0}  # both are at the same place of `order`
    wanted = {"audio": label // KINDS["video"], "video": label % KINDS["video"]}
    cues = []
    bumps: dict[str, list[Bump]] = {}
    for modality in MODALITIES:
        kinds = rng.permutation(np.repeat(np.arange(KINDS[modality]), repeats))
        pair = meeting[modality]
        # Swapped with one of the wanted kind, any order of kinds stays as likely as any other.
        other = rng.choice(np.flatnonzero(kinds == wanted[modality]))
        kinds[[pair, other]] = kinds[[other, pair]]
        middles = times[at[modality]]
        if modality == "video":
            middles = middles + rng.uniform(-JITTER, JITTER, len(middles))
        bumps[modality] = [
            (float(middle), int(kind)) for middle, kind in zip(middles, kinds, strict=True)
        ]
        cues += [
            Cue(modality, kind, middle, decoy=number != pair)
            for number, (middle, kind) in enumerate(bumps[modality])
        ]
    return cues, bumps
