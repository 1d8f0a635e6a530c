"""How accurately attention points at known cues, and how similar two attentions are.

Throughout: attention [T] ≥ 0, of which only ratios matter; times [T] of the frames in seconds,
increasing; valid [T] bool; cues [C], their true times in seconds, in any order; tolerance in
seconds to either side of a cue. NaN if there is nothing to measure: no valid frame,
no attention, no cue, no frame near a cue.
"""

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from mmattn.evaluate.metrics import jensen_shannon

_ROUNDING = 1e-5  # of a float32 softmax, relative to the mean attention


def cue_measures(
    attention: np.ndarray,
    times: np.ndarray,
    valid: np.ndarray,
    cues: np.ndarray,
    tolerance: float,
) -> dict[str, float]:
    """How well attention points at the frames near cues: pointing, cue_mass, cue_auroc.

    pointing: 1 if the frame of highest attention is near a cue, else 0; ties count by their
    fraction of hits, so uniform attention scores at chance (Zhang et al., Top-down neural attention
    by excitation backprop, 2018). cue_mass: fraction of the attention near cues over the fraction
    of valid frames there; uniform: 1. cue_auroc: area under the ROC curve of attention as a
    detector of frames near cues; uniform: 0.5; NaN also if all frames are near a cue.
    """
    attention, near = attention[valid], near_cues(times[valid], cues, tolerance)
    if not near.any() or not attention.any():
        return dict.fromkeys(("pointing", "cue_mass", "cue_auroc"), np.nan)
    return {
        "pointing": float(near[attention == attention.max()].mean()),
        "cue_mass": float(attention[near].sum() / attention.sum() / near.mean()),
        "cue_auroc": np.nan if near.all() else float(roc_auc_score(near, attention)),
    }


def centroid_error(
    attention: np.ndarray,
    times: np.ndarray,
    valid: np.ndarray,
    cues: np.ndarray,
    window: float = 0.3,
) -> float:
    """Mean distance (ms) from each cue to the centre of the attention around it.

    One centre over the clip is meaningless with several cues. So each cue gets the frames within
    `window` (s) that are nearest to it, and its centre is their mean time weighted by the attention
    above uniform. A cue without such attention counts as off by the full window; a cue without a
    valid frame in its window is dropped.
    """
    attention, times = attention[valid], times[valid]
    if not len(cues) or not attention.any():
        return np.nan
    distance = np.abs(times[:, None] - cues)  # [T, C]
    own = (distance <= window) & (distance.argmin(axis=1)[:, None] == np.arange(len(cues)))
    uniform = attention.mean()
    above = np.where(attention > (1 + _ROUNDING) * uniform, attention - uniform, 0)
    weights = own * above[:, None]
    mass = weights.sum(axis=0)
    centre = times @ weights / np.where(mass > 0, mass, 1)
    error = np.where(mass > 0, np.abs(centre - cues), window)[own.any(axis=0)]
    return float(1000 * error.mean()) if len(error) else np.nan


def agreement(
    audio_attention: np.ndarray,
    audio_times: np.ndarray,
    video_attention: np.ndarray,
    video_times: np.ndarray,
    bin_width: float = 0.1,
) -> float:
    """1 - Jensen-Shannon divergence (base 2) of two attentions over the same seconds.

    1: the same distribution in time; 0: no overlap. Attention is zero on invalid frames. Each
    frame's attention is spread evenly over its duration, cropped to the seconds that both
    modalities cover, put into bins of about `bin_width` (s) and normalised, so that frame rates do
    not matter.
    """
    audio_edges, video_edges = _frame_edges(audio_times), _frame_edges(video_times)
    start, end = max(audio_edges[0], video_edges[0]), min(audio_edges[-1], video_edges[-1])
    if end <= start:
        return np.nan
    edges = np.linspace(start, end, max(1, round((end - start) / bin_width)) + 1)
    audio = _binned(audio_attention, audio_edges, edges)
    video = _binned(video_attention, video_edges, edges)
    if not audio.sum() > 0 or not video.sum() > 0:
        return np.nan
    divergence = jensen_shannon(audio / audio.sum(), video / video.sum())
    return float(np.clip(1 - divergence, 0, 1))


def rank_correlation(a: np.ndarray, b: np.ndarray, valid: np.ndarray) -> float:
    """Spearman's correlation of attentions a [T] and b [T] over the valid frames.

    For two seeds, or for trained against randomised weights (Adebayo et al., Sanity checks for
    saliency maps, 2018). NaN if one is constant.
    """
    a, b = a[valid], b[valid]
    if not len(a) or np.ptp(a) == 0 or np.ptp(b) == 0:
        return np.nan
    return float(spearmanr(a, b).statistic)


def near_cues(times: np.ndarray, cues: np.ndarray, tolerance: float) -> np.ndarray:
    """[T] bool: the frames at times [T] (s) within the tolerance (s) of any of the cues [C]."""
    return (np.abs(times[:, None] - cues) <= tolerance).any(axis=1)


def _frame_edges(times: np.ndarray) -> np.ndarray:
    """Start and end [T + 1] (s) of each frame: halfway to its neighbours."""
    middles = (times[1:] + times[:-1]) / 2
    return np.concatenate([[2 * times[0] - middles[0]], middles, [2 * times[-1] - middles[-1]]])


def _binned(attention: np.ndarray, frame_edges: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Attention [T], of frames with edges [T + 1], in each bin of edges [N + 1]."""
    cumulative = np.concatenate([[0], np.cumsum(attention, dtype=np.float64)])
    return np.diff(np.interp(edges, frame_edges, cumulative))
