"""Log-mel features of audio, and its loudness over time."""

from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from scipy.signal.windows import hann

from mmattn.data.stream import Stream, make_stream
from mmattn.media.survey import BadMedia

BLOCK = 4096  # windows at once: hours of audio need no more memory than minutes
FLOOR = 1e-8  # of the power: silence has a logarithm, a quiet room is hardly louder


@dataclass(frozen=True)
class LogMel:
    """Logarithm of the power in bands of equal width in mel.

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

    def __call__(self, samples: np.ndarray, rate: int) -> Stream:
        """Frames [T, bands] of samples [n]; their times are the middles of the windows, in seconds.

        Raises BadMedia if the audio is shorter than a window.
        """
        length, hop = round(self.window * rate), round(self.hop * rate)
        if len(samples) < length:
            raise BadMedia(
                f"its audio lasts {1000 * len(samples) / rate:.0f} ms; expected "
                f"{1000 * self.window:.0f} ms, a window, or more"
            )
        windows = np.lib.stride_tricks.sliding_window_view(samples, length)[::hop]
        size = 1 << (length - 1).bit_length()
        filters = mel_filters(self.bands, self.lowest, self.highest, size, rate)
        frames = np.empty((len(windows), self.bands), np.float32)
        for first in range(0, len(windows), BLOCK):
            block = windows[first : first + BLOCK] * hann(length, sym=False)
            power = np.abs(np.fft.rfft(block, size)) ** 2
            frames[first : first + BLOCK] = np.log(power @ filters.T + FLOOR)
        return make_stream(frames, (np.arange(len(windows)) * hop + length / 2) / rate)


@lru_cache
def mel_filters(bands: int, lowest: float, highest: float, size: int, rate: int) -> np.ndarray:
    """Weights [bands, size / 2 + 1] of the bins of a Fourier transform of `size` samples.

    Each triangle is 1 at its middle and 0 at the middles of its neighbours.
    """
    ends = 2595 * np.log10(1 + np.array([lowest, highest]) / 700)
    corners = 700 * (10 ** (np.linspace(*ends, bands + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(size, 1 / rate)
    left, middle, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising, falling = (bins - left) / (middle - left), (right - bins) / (right - middle)
    return np.maximum(0, np.minimum(rising, falling))


def loudness(log_mel: np.ndarray) -> np.ndarray:
    """Amplitude [T] of audio from its log-mel frames [T, bands]: the root of their power."""
    return np.sqrt(np.exp(log_mel.astype(np.float64)).sum(axis=1))
