"""What the correlation at lags is measured against: pair by pair, lag by lag."""

import numpy as np

from mmattn.evaluate.cca import CCA, pearson
from mmattn.evaluate.correlation import Frames


def canonical_correlations(cca: CCA, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of each canonical pair [K] on pairs x [n, Hx], y [n, Hy]."""
    x, y = (x - cca.x_mean) @ cca.x_projection, (y - cca.y_mean) @ cca.y_projection
    return pearson(x, y, np.ones(len(x), bool))


def pairs_at_lag(clip: Frames, lag: float) -> tuple[np.ndarray, np.ndarray]:
    """Audio [n, Ha] at time t + lag (s) and the valid video frame [n, Hv] at time t."""
    times = clip.video_times[clip.valid] + lag
    inside = (times >= clip.audio_times[0]) & (times <= clip.audio_times[-1])
    at = (np.interp(times[inside], clip.audio_times, feature) for feature in clip.audio.T)
    return np.stack([*at], axis=1), clip.video[clip.valid][inside]
