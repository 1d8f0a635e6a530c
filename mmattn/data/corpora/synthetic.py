"""The built-in corpus: clips with known cues, each drawn from (seed, clip index) only.

A cue is one or more bumps: a Gaussian in time along a fixed random direction of the features. Noise
is added and, for each speaker and modality, an offset and a gain.

`unimodal`: a cue is three bumps, one in each of three directions, and the class is their order.
All classes have the same bumps, so functionals over time carry little information. Decoys are
single bumps (kinds 0 to 2), and all three at once (kind 3).

`coincidence`: a cue is one bump. Every clip has each of three audio kinds and of two video kinds
equally often; the class is which audio kind coincides with which video kind, once, within TAU. Any
other audio cue is at least APART from any video cue. The place of the coinciding pair does not
depend on the kinds, so one modality alone carries no information about the class.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np

from mmattn.config import SyntheticConfig
from mmattn.data.labels import SIX
from mmattn.data.stream import Stream, make_stream

SHORTEST, LONGEST = 2.0, 5.0  # seconds of a clip
TAU = 0.08  # seconds within which two cues coincide
JITTER = 0.05  # seconds, maximum offset of two coinciding cues
APART = 0.3  # seconds, minimum distance of cues that do not coincide
EDGE = 0.25  # seconds at both ends of a clip without the centre of a bump
BUMP = {"audio": 0.04, "video": 0.06}  # seconds, standard deviation of a bump
FAR = 12.0  # standard deviations; beyond, a bump is lost in rounding
STEP = {"audio": 0.08, "video": 0.14}  # seconds from bump to bump of an ordered cue
SLOT = 0.75  # seconds reserved for an ordered cue
HEIGHT = {"audio": 12.0, "video": 8.0}  # of a bump
NOISE = 0.5  # standard deviation of the noise of every feature
OFFSET = 0.5  # standard deviation of a speaker's offset of every feature
ORDERS = tuple(permutations(range(3)))
KINDS = {"audio": 3, "video": 2}  # of coinciding cues; the class is audio kind * 2 + video kind

# Purposes of the random streams; a number is never reused.
_CLIP, _SPEAKER, _DIRECTIONS = 0, 1, 2


@dataclass(frozen=True)
class Cue:
    """An event in a synthetic clip."""

    modality: str
    kind: int
    time: float  # seconds, the centre of the event
    decoy: bool  # it carries no information about the class


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
    for index in range(config.clips):
        yield _draw_clip(config, index)


def _draw_clip(config: SyntheticConfig, index: int) -> Clip:
    speaker = index % config.speakers
    label = index // config.speakers % len(SIX)
    rng = np.random.default_rng([config.seed, _CLIP, index])
    duration = rng.uniform(SHORTEST, LONGEST)
    ordered = config.rule == "unimodal"
    cues = (_place_ordered if ordered else _place_meeting)(rng, label, duration)
    streams = {}
    for number, modality in enumerate(KINDS):
        width, rate = (getattr(config, f"{modality}_{of}") for of in ("width", "rate"))
        times = np.arange(int(duration * rate)) / rate
        signal = np.zeros((len(times), width))
        directions = _directions(config.seed, number, width)
        for middle, direction in _bumps(cues, modality, ordered):
            first, last = (middle + end * FAR * BUMP[modality] for end in (-1, 1))
            near = slice(max(int(first * rate), 0), int(last * rate) + 1)
            shape = HEIGHT[modality] * np.exp(-0.5 * ((times[near] - middle) / BUMP[modality]) ** 2)
            signal[near] += shape[:, None] * directions[direction]
        signal += NOISE * rng.standard_normal(signal.shape)
        offset, gain = _recording(config.seed, number, speaker, width)
        frames = (offset + gain * signal).astype(np.float32)
        streams[modality] = make_stream(frames, times, modality == "video")
    cues = tuple(sorted(cues, key=lambda cue: cue.time))
    return Clip(f"synthetic-{index:06d}", f"synthetic-{speaker:03d}", label, streams, cues)


@cache
def _recording(seed: int, modality: int, speaker: int, width: int) -> tuple[np.ndarray, float]:
    """A speaker's offset [F] and gain."""
    rng = np.random.default_rng([seed, _SPEAKER, modality, speaker])
    return OFFSET * rng.standard_normal(width), rng.uniform(0.8, 1.25)


@cache
def _directions(seed: int, modality: int, width: int) -> np.ndarray:
    """Three orthonormal directions [3, F]."""
    rng = np.random.default_rng([seed, _DIRECTIONS, modality])
    return np.linalg.qr(rng.standard_normal((width, 3)))[0].T


def _bumps(cues: Sequence[Cue], modality: str, ordered: bool) -> Iterator[tuple[float, int]]:
    """The centre in seconds and the direction of each bump of a modality's cues."""
    for cue in (cue for cue in cues if cue.modality == modality):
        in_order = ordered and not cue.decoy
        step = STEP[modality] if in_order else 0.0
        together = range(3) if cue.kind == 3 else [cue.kind]
        for place, direction in enumerate(ORDERS[cue.kind] if in_order else together):
            yield cue.time + step * (place - 1), direction


def _place_ordered(rng: np.random.Generator, label: int, duration: float) -> list[Cue]:
    """Cues of the rule `unimodal`: at least two in each modality, decoys in some other slots."""
    cues = []
    slots = int(duration / SLOT)
    room = duration / slots
    for modality in KINDS:
        true = set(rng.permutation(slots)[: max(2, slots // 2)])
        for slot in range(slots):
            middle = room * slot + rng.uniform(EDGE, room - EDGE)
            if slot in true:
                cues.append(Cue(modality, label, middle, decoy=False))
            elif rng.random() < 0.8:
                cues.append(Cue(modality, int(rng.integers(4)), middle, decoy=True))
    return cues


def _place_meeting(rng: np.random.Generator, label: int, duration: float) -> list[Cue]:
    """Cues of the rule `coincidence`; all kinds twice if there is room, else once."""
    gap = APART + JITTER
    for repeats in (2, 1):
        places = repeats * sum(KINDS.values()) - 1  # one place holds the coinciding pair
        spare = duration - 2 * EDGE - gap * (places - 1)
        if spare > 0:
            break
    times = EDGE + gap * np.arange(places) + np.sort(rng.uniform(0, spare, places))
    order = rng.permutation(places)
    met = repeats * KINDS["audio"] - 1  # the pair is at this place of `order`
    audio, video = divmod(label, KINDS["video"])
    cues = []
    for modality, at, pair, kind in (
        ("audio", order[: met + 1], met, audio),
        ("video", order[met:], 0, video),
    ):
        kinds = rng.permutation(np.repeat(np.arange(KINDS[modality]), repeats))
        # Swap in a cue of the wanted kind: all orders of kinds stay equally likely.
        other = int(rng.choice(np.flatnonzero(kinds == kind)))
        kinds[[pair, other]] = kinds[[other, pair]]
        jitter = rng.uniform(-JITTER, JITTER, len(at)) if modality == "video" else 0
        middles = (times[at] + jitter).tolist()
        cues += [
            Cue(modality, kind, middle, decoy=number != pair)
            for number, (kind, middle) in enumerate(zip(kinds.tolist(), middles, strict=True))
        ]
    return cues
