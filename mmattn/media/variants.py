"""Augmented copies of a clip's audio: tempo or pitch by FFmpeg's filters, or noise."""

import zlib
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import NamedTuple

import av
import av.filter
import numpy as np

from mmattn.errors import UserError

TAIL = 0.25  # seconds of silence after the audio, to flush filters that delay the end
Filters = list[tuple[str, float]]  # names and arguments of FFmpeg's filters, in their order


def _resampled(factor: float, rate: int) -> Filters:
    """Tempo and pitch together, like a tape that runs faster."""
    return [("asetrate", round(rate * factor)), ("aresample", rate)]


def _shifted(semitones: float, rate: int) -> Filters:
    """Pitch alone: resampled, with the tempo corrected."""
    played = _resampled(2 ** (semitones / 12), rate)
    return [*played, ("atempo", rate / played[0][1])]


class Kind(NamedTuple):
    """A kind of augmentation, with one value."""

    low: float
    high: float
    unit: str
    filters: Callable[[float, int], Filters] | None  # of a value and a rate (Hz); None: noise
    changes_tempo: bool = False


KINDS = {
    "tempo": Kind(0.5, 2, "times", lambda value, rate: [("atempo", value)], changes_tempo=True),
    "pitch": Kind(-12, 12, "semitones", _shifted),
    "speed": Kind(0.5, 2, "times", _resampled, changes_tempo=True),
    "noise": Kind(-20, 100, "dB of signal over noise", None),
}


class Variant(NamedTuple):
    """One copy of the audio of each clip."""

    kind: str
    value: float

    @property
    def name(self) -> str:
        """The NAME in a feature file's `MODALITY__NAME_features`.

        >>> Variant("pitch", -1.5).name
        'pitch_minus_1_5'
        """
        value = f"{self.value:g}".replace("-", "minus_").replace(".", "_")
        return f"{self.kind}_{value}"

    @property
    def tempo(self) -> float:
        """The speed relative to the original."""
        return self.value if KINDS[self.kind].changes_tempo else 1.0

    def of(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """The copy [m] of samples [n], float32: m = n / tempo. Deterministic."""
        filters = KINDS[self.kind].filters
        if filters is None:
            seed = zlib.crc32(self.name.encode(), zlib.crc32(samples.tobytes()))
            noise = np.random.default_rng(seed).standard_normal(len(samples), np.float32)
            power = np.mean(np.square(samples, dtype=np.float64)) / np.mean(np.square(noise))
            return samples + noise * np.float32(np.sqrt(power / 10 ** (self.value / 10)))
        padded = np.pad(samples, (0, round(TAIL * rate)))
        filtered = _filter(padded, rate, filters(self.value, rate))
        return filtered[: round(len(samples) / self.tempo)]


def variants_of(asked: Mapping[str, tuple[float, ...]]) -> list[Variant]:
    """The copies that --augment-audio requests; UserError at the first invalid one."""
    for name, values in asked.items():
        if name not in KINDS:
            raise UserError(f"--augment-audio {name}: expected some of {', '.join(KINDS)}")
        low, high, unit, *_ = KINDS[name]
        for value in values:
            if not low <= value <= high:
                raise UserError(
                    f"--augment-audio {name}={value:g}: expected {low:g} to {high:g} {unit}"
                )
    return [
        Variant(name, value) for name, values in asked.items() for value in dict.fromkeys(values)
    ]


def _filter(samples: np.ndarray, rate: int, filters: Filters) -> np.ndarray:
    """Samples [n] filtered by FFmpeg, one filter after the other."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(
        sample_rate=rate, format="flt", layout="mono", time_base=Fraction(1, rate)
    )
    nodes = [source, *(graph.add(*map(str, one)) for one in filters), graph.add("abuffersink")]
    graph.link_nodes(*nodes).configure()
    frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), "flt", "mono")
    frame.sample_rate, frame.pts = rate, 0
    graph.push(frame)
    graph.push(None)
    found = []
    while True:
        try:
            found.append(graph.pull().to_ndarray()[0])
        except av.error.EOFError:
            return np.concatenate(found)
