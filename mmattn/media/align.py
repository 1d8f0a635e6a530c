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
SMOOTH = 0.05  # seconds; syllables are five times as long
APART = 0.15  # seconds from which another peak is another answer
# From these on an offset can be told; set and measured by tests/media/test_align.py.
LEAST_CORRELATION = 0.5
LEAST_CONFIDENCE = 0.2
# ms that the audio may come late: viewers notice no less (ITU-R BT.1359). It is not even around 0,
# and nor is speech, in which a mouth opens up to 0.1 s before it is heard.
ALIGNED = (-45.0, 125.0)
_SAME = CCA(np.zeros(1), np.zeros(1), np.ones((1, 1)), np.ones((1, 1)))  # compares as they are


class Movement(NamedTuple):
    """What moves in a clip, of two modalities, at times in seconds."""

    opening: Stream
    """[T, 1] distance of the inner lips over the head's size; 0 where no face is seen."""
    loudness: Stream
    """[T, 1] amplitude, smoothed."""


class Alignment(NamedTuple):
    """How the mouth and the audio of a clip go together."""

    offset: float
    """ms that the audio comes late; below 0, early."""
    correlation: float
    """Pearson's r at that offset."""
    confidence: float
    """By how much r is higher there than at any other peak, 150 ms or more away."""
    curve: np.ndarray
    """[L] r at each of LAGS."""

    @property
    def sure(self) -> bool:
        """Whether the offset can be told: not from a weak peak, nor from one at either end of LAGS,
        of which one flank is not seen."""
        return (
            self.correlation >= LEAST_CORRELATION
            and self.confidence >= LEAST_CONFIDENCE
            and abs(self.offset) < 1000 * (LAGS[-1] - SMOOTH)
        )

    @property
    def suspect(self) -> bool:
        """Whether the audio is surely more than 45 ms early or 125 ms late."""
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
        modality: extractor.get(modality, {}).get("name", "one that the file does not name")
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
    """The loudness [T, 1] of audio by its log-mel frames [T, bands], smoothed."""
    hop = np.diff(log_mel.times).mean()
    smooth = _smoothed(loudness(log_mel.frames), SMOOTH / hop)
    return log_mel._replace(frames=smooth[:, None])


def _smoothed(values: np.ndarray, deviation: float) -> np.ndarray:
    """Values [n] under a Gaussian, mirrored at their ends, as SciPy's `gaussian_filter1d`.

    Importing that takes 20 MB.
    """
    reach = round(4 * deviation)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    mirrored = np.pad(values, reach, mode="symmetric")
    return np.convolve(mirrored, weights / weights.sum(), mode="valid").astype(values.dtype)


def align(clip: Movement) -> Alignment:
    """The offset at which loudness goes best with mouth opening.

    Raises BadMedia where one of them does not vary, or the clip is shorter than the lags.
    """
    curve = _curve(clip, LAGS)
    if np.isnan(curve).any():
        raise BadMedia("mouth or audio do not move, or both last less than 1.2 s")
    return read_curve(curve)


def agreement(clip: Movement) -> float:
    """The highest r of mouth opening and loudness at offsets that viewers do not notice.

    0 where one of them does not move.
    """
    first, end = np.searchsorted(1000 * LAGS, ALIGNED)
    return float(np.nan_to_num(_curve(clip, LAGS[first:end])).max())


def _curve(clip: Movement, lags: np.ndarray) -> np.ndarray:
    """r [L] at lags [L] (s); NaN where it has none."""
    opening, audio = clip
    valid = opening.frames[:, 0] > 0
    frames = Frames(audio.frames, audio.times, opening.frames, opening.times, valid)
    return lag_curve(_SAME, [frames], lags)[0]


def read_curve(curve: np.ndarray) -> Alignment:
    """The offset that a curve [L] of r over LAGS tells."""
    offset, top = float(peak_lag(curve, LAGS)), curve.argmax()
    inner = np.r_[False, (curve[1:-1] >= curve[:-2]) & (curve[1:-1] >= curve[2:]), False]
    other = curve[(inner | (np.abs(LAGS) == LAGS[-1])) & (np.abs(LAGS - LAGS[top]) >= APART)]
    return Alignment(offset, float(curve[top]), float(curve[top] - other.max()), curve)
