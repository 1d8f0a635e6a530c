"""Whether audio and video of a clip are aligned: mouth opening against loudness, lag by lag."""

from typing import NamedTuple

import numpy as np

from mmattn.config import kind_of
from mmattn.data.stream import Stream
from mmattn.evaluate.cca import CCA
from mmattn.evaluate.correlation import Frames, lag_curve, peak_lag
from mmattn.media.audio import loudness
from mmattn.media.mesh import OPENING_COLUMN
from mmattn.media.survey import BadMedia

LAGS = np.linspace(-0.6, 0.6, 121)  # seconds
SMOOTH = 0.05  # seconds; a syllable is five times as long
APART = 0.15  # seconds; a peak further away is a competing answer
# Thresholds of a clear offset; set and measured by tests/media/test_align.py.
LEAST_CORRELATION = 0.5
LEAST_CONFIDENCE = 0.2
# Range of audio delays (ms) that viewers do not notice (ITU-R BT.1359). It is not symmetric, nor is
# speech: a mouth opens up to 0.1 s before it is heard.
ALIGNED = (-45.0, 125.0)
_SAME = CCA(
    np.zeros(1), np.zeros(1), np.ones((1, 1)), np.ones((1, 1))
)  # compares without projection


class Movement(NamedTuple):
    """Mouth opening and loudness over a clip, at times in seconds."""

    opening: Stream
    """[T, 1] distance of the inner lips over the head's size; 0 without a face."""
    loudness: Stream
    """[T, 1] amplitude, smoothed."""


class Alignment(NamedTuple):
    """The alignment of mouth and audio in a clip."""

    offset: float
    """Delay of the audio (ms); below 0, it is early."""
    correlation: float
    """Pearson's r at that offset."""
    confidence: float
    """How much higher r is there than at any other peak, 150 ms or more away."""
    curve: np.ndarray
    """[L] r at each of LAGS."""

    @property
    def sure(self) -> bool:
        """Whether the offset is clear: its peak is neither weak nor at an end of LAGS, which cuts
        off one flank."""
        return (
            self.correlation >= LEAST_CORRELATION
            and self.confidence >= LEAST_CONFIDENCE
            and abs(self.offset) < 1000 * (LAGS[-1] - SMOOTH)
        )

    @property
    def suspect(self) -> bool:
        """Whether the audio is clearly more than 45 ms early or 125 ms late."""
        return self.sure and not ALIGNED[0] <= self.offset <= ALIGNED[1]


def movement(streams: dict[str, Stream], extractor: dict[str, dict]) -> Movement:
    """Mouth opening and loudness of a clip from its log-mel and face-mesh features.

    Raises BadMedia naming what is missing.
    """
    audio = _stream_by("log-mel", "audio", streams, extractor)
    video = _stream_by("face-mesh", "video", streams, extractor)
    return Movement(
        video._replace(frames=video.frames[:, [OPENING_COLUMN]]), smooth_loudness(audio)
    )


def _stream_by(
    name: str, kind: str, streams: dict[str, Stream], extractor: dict[str, dict]
) -> Stream:
    """The stream of a kind that an extractor made. Raises BadMedia."""
    makers = {
        modality: extractor.get(modality, {}).get("name", "an unnamed extractor")
        for modality in streams
        if kind_of(modality) == kind
    }
    if not makers:
        raise BadMedia(f"no {kind}; both audio and a face are needed")
    for modality, made_by in makers.items():
        if made_by == name:
            return streams[modality]
    raise BadMedia(
        f"its {kind} features are by {' and '.join(makers.values())}; expected {name}, or the raw "
        "clip"
    )


def smooth_loudness(log_mel: Stream) -> Stream:
    """The smoothed loudness [T, 1] of audio, from its log-mel frames [T, bands]."""
    hop = np.diff(log_mel.times).mean()
    smooth = _smoothed(loudness(log_mel.frames), SMOOTH / hop)
    return log_mel._replace(frames=smooth[:, None])


def _smoothed(values: np.ndarray, deviation: float) -> np.ndarray:
    """Values [n] smoothed by a Gaussian, mirrored at the ends, as by SciPy's `gaussian_filter1d`.

    Importing SciPy's takes 20 MB.
    """
    reach = round(4 * deviation)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    mirrored = np.pad(values, reach, mode="symmetric")
    return np.convolve(mirrored, weights / weights.sum(), mode="valid").astype(values.dtype)


def align(clip: Movement) -> Alignment:
    """The offset at which loudness and mouth opening correlate best.

    Raises BadMedia if one of them does not vary, or the clip is shorter than the lags.
    """
    curve = _curve(clip, LAGS)
    if np.isnan(curve).any():
        raise BadMedia("mouth or audio do not vary, or both last less than 1.2 s")
    return read_curve(curve)


def agreement(clip: Movement) -> float:
    """The highest r of mouth opening and loudness at offsets that viewers do not notice.

    0 if one of them does not vary.
    """
    first, end = np.searchsorted(1000 * LAGS, ALIGNED)
    return float(np.nan_to_num(_curve(clip, LAGS[first:end])).max())


def _curve(clip: Movement, lags: np.ndarray) -> np.ndarray:
    """r [L] at lags [L] (s); NaN if undefined."""
    opening, audio = clip
    valid = opening.frames[:, 0] > 0
    frames = Frames(audio.frames, audio.times, opening.frames, opening.times, valid)
    return lag_curve(_SAME, [frames], lags)[0]


def read_curve(curve: np.ndarray) -> Alignment:
    """The offset, from a curve [L] of r over LAGS."""
    offset, top = float(peak_lag(curve, LAGS)), curve.argmax()
    inner = np.r_[False, (curve[1:-1] >= curve[:-2]) & (curve[1:-1] >= curve[2:]), False]
    other = curve[(inner | (np.abs(LAGS) == LAGS[-1])) & (np.abs(LAGS - LAGS[top]) >= APART)]
    return Alignment(offset, float(curve[top]), float(curve[top] - other.max()), curve)
