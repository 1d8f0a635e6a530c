"""Log-mel features of audio, and its loudness over time."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

from mmattn.data.stream import Stream, make_stream
from mmattn.media.survey import BadMedia

BLOCK = 4096  # windows per block, so that hours of audio need no more memory than minutes
LONGEST = 30  # seconds that encoders were trained on
FLOOR = 1e-8  # of the power: gives silence a logarithm, near that of a quiet room


@dataclass(frozen=True)
class LogMel:
    """Log power in bands of equal width in mel.

    Triangular filters (Davis & Mermelstein 1980) on the HTK mel scale, m = 2595 log10(1 + f / 700),
    over the squared magnitude of frames under a Hann window.
    """

    bands: int = 64
    window: float = 0.025  # seconds
    hop: float = 0.02  # seconds
    lowest: float = 20.0  # Hz
    highest: float = 8000.0  # Hz

    def record(self) -> dict:
        """What a feature file records of its audio features."""
        return {"name": "log-mel", "version": 2, "settings": asdict(self)}

    def start(self) -> Callable[[np.ndarray, int], Stream]:
        """Nothing to load: returns itself."""
        return self

    def __call__(self, samples: np.ndarray, rate: int) -> Stream:
        """Frames [T, bands] of samples [n]; their times are the centres of the windows, in seconds.

        Raises BadMedia if the audio is shorter than a window.
        """
        check_lasts(samples, rate, self.window)
        length, hop = round(self.window * rate), round(self.hop * rate)
        size = 1 << (length - 1).bit_length()
        filters = mel_filters(self.bands, self.lowest, self.highest, size, rate)
        frames = np.log(band_powers(samples, length, hop, filters) + FLOOR).astype(np.float32)
        return make_stream(frames, (np.arange(len(frames)) * hop + length / 2) / rate)


def check_lasts(samples: np.ndarray, rate: int, seconds: float) -> None:
    """Raise BadMedia if samples [n] are shorter than a window of `seconds`."""
    if len(samples) < round(seconds * rate):
        raise BadMedia(
            f"its audio lasts {1000 * len(samples) / rate:.1f} ms; expected "
            f"{1000 * seconds:.0f} ms, a window, or more"
        )


def in_windows(
    encode: Callable[[np.ndarray, int], Stream],
) -> Callable[[np.ndarray, int], Stream]:
    """Apply an encoder made for up to LONGEST seconds to audio of any length.

    Longer audio is cut into the fewest windows of equal length, each encoded as a separate clip.
    """

    def encode_all(samples: np.ndarray, rate: int) -> Stream:
        parts = np.array_split(samples, max(1, math.ceil(len(samples) / (LONGEST * rate))))
        starts = np.cumsum([0, *map(len, parts)]) / rate
        found = [encode(part, rate) for part in parts]
        times = [one.times + start for one, start in zip(found, starts[:-1], strict=True)]
        return make_stream(np.concatenate([one.frames for one in found]), np.concatenate(times))

    return encode_all


def band_powers(samples: np.ndarray, length: int, hop: int, filters: np.ndarray) -> np.ndarray:
    """Power [T, bands] of samples [n] under a periodic Hann window of `length`, each `hop`.

    `filters` [bands, size / 2 + 1] weight the bins of a Fourier transform of `size` samples.
    """
    windows = np.lib.stride_tricks.sliding_window_view(samples, length)[::hop]
    powers = np.empty((len(windows), len(filters)))
    for first in range(0, len(windows), BLOCK):
        block = windows[first : first + BLOCK] * hann(length)
        bins = np.fft.rfft(block, 2 * (filters.shape[1] - 1))
        powers[first : first + BLOCK] = np.abs(bins) ** 2 @ filters.T
    return powers


@lru_cache
def hann(length: int) -> np.ndarray:
    """The periodic Hann window [length], as SciPy computes it; importing that takes 60 MB."""
    return 0.5 + 0.5 * np.cos(np.linspace(-np.pi, np.pi, length + 1)[:-1])


@lru_cache
def mel_filters(bands: int, lowest: float, highest: float, size: int, rate: int) -> np.ndarray:
    """Weights [bands, size / 2 + 1] of bands of equal width in mel, see `triangles`."""
    low, high = 2595 * np.log10(1 + np.array([lowest, highest]) / 700)
    return triangles(700 * (10 ** (np.linspace(low, high, bands + 2) / 2595) - 1), size, rate)


def triangles(corners: np.ndarray, size: int, rate: int) -> np.ndarray:
    """Weights [bands, size / 2 + 1] of the bins of a Fourier transform of `size` samples.

    Each triangle is 1 at its centre and 0 at the centres of its neighbours; `corners` [bands + 2]
    (Hz) are these centres, including the outer ones.
    """
    bins = np.fft.rfftfreq(size, 1 / rate)
    left, middle, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising, falling = (bins - left) / (middle - left), (right - bins) / (right - middle)
    return np.maximum(0, np.minimum(rising, falling))


def loudness(log_mel: np.ndarray) -> np.ndarray:
    """Amplitude [T] of audio from its log-mel frames [T, bands]: the root of their power."""
    return np.sqrt(np.exp(log_mel.astype(np.float64)).sum(axis=1))
