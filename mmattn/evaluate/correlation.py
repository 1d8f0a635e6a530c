"""How well one modality's frames predict the other's: canonical correlation at a lag.

Projections are fitted on training clips; everything else is measured on held-out clips. Correlation
within a clip shows how the two vary together over time, not how clips or speakers differ.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmattn.evaluate.cca import CCA, pearson


class Frames(NamedTuple):
    """Embeddings of one clip's frames with their times in seconds, increasing; no padding."""

    audio: np.ndarray  # [Ta, Ha]
    audio_times: np.ndarray  # [Ta]
    video: np.ndarray  # [Tv, Hv]
    video_times: np.ndarray  # [Tv]
    valid: np.ndarray  # [Tv] bool, video frames with a face


class Gain(NamedTuple):
    """Correlation of each clip, and of two controls in which it should vanish."""

    aligned: np.ndarray  # [n], lag 0
    shuffled: np.ndarray  # [n], with the audio of another clip
    wrong_lag: np.ndarray  # [n], mean over lags far from 0


def centred_pairs(clips: Sequence[Frames]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of all clips, x [n, Ha] and y [n, Hv], minus each clip's mean.

    The pairs are the valid video frames within the audio, and the audio linearly interpolated at
    their times. Centring makes the fit, like the later measures, depend on variation within clips;
    otherwise differences between clips and speakers would dominate.
    """
    pairs = []
    for clip in clips:
        x, inside = _audio_at(clip.audio, clip.audio_times, clip.video_times[clip.valid])
        if inside.any():
            pairs.append((x[inside], clip.video[clip.valid][inside]))
    x, y = ([one - one.mean(axis=0) for one in side] for side in zip(*pairs, strict=True))
    return np.concatenate(x), np.concatenate(y)


def lag_curve(cca: CCA, clips: Sequence[Frames], lags: np.ndarray | Sequence[float]) -> np.ndarray:
    """Mean canonical correlation within each clip at each lag (s) [n, L]; NaN as in `pearson`.

    Pairs are as in `centred_pairs`, with the audio at the video's time + lag. Projections fitted at
    lag 0 favour lag 0 if an embedding holds its signal at several delays.
    """
    lags = np.asarray(lags)
    curves = np.empty((len(clips), len(lags)))
    for row, clip in enumerate(clips):
        x = (
            clip.audio - cca.x_mean
        ) @ cca.x_projection  # interpolation is linear, so it can use K columns, not Ha
        y = (clip.video[clip.valid] - cca.y_mean) @ cca.y_projection
        x, inside = _audio_at(x, clip.audio_times, clip.video_times[clip.valid] + lags[:, None])
        curves[row] = pearson(x, y, inside).mean(axis=-1)
    return curves


def shuffled(clips: Sequence[Frames], rng: np.random.Generator) -> list[Frames]:
    """The clips, each with the audio of another one; there must be at least two."""
    order = rng.permutation(len(clips))
    other = np.empty_like(order)
    other[order] = np.roll(order, 1)  # one cycle: no clip keeps its own audio
    return [
        clip._replace(audio=clips[n].audio, audio_times=clips[n].audio_times)
        for clip, n in zip(clips, other, strict=True)
    ]


def correlation_gain(
    cca: CCA,
    clips: Sequence[Frames],
    rng: np.random.Generator,
    wrong_lags: Sequence[float] = (-1.0, 1.0),
    shuffles: int = 5,
) -> Gain:
    """Correlation at lag 0 and its two baselines, for each clip [n].

    Each baseline is the mean over the wrong lags (s), or over the shuffles, that have a value.
    """
    others = [lag_curve(cca, shuffled(clips, rng), [0.0]) for _ in range(shuffles)]
    return Gain(
        lag_curve(cca, clips, [0.0])[:, 0],
        mean_of_known(np.concatenate(others, axis=1)),
        mean_of_known(lag_curve(cca, clips, wrong_lags)),
    )


def peak_lag(curve: np.ndarray, lags: np.ndarray) -> np.ndarray:
    """Lag (ms) of the peak [...] of curves [..., L] at evenly spaced lags [L] (s).

    The top of the parabola through the highest point and its neighbours; if the highest point is an
    end of the curve, that end. NaN if a curve has a NaN. Above 0: the audio lags.
    """
    top = curve.argmax(axis=-1, keepdims=True)
    middle = np.clip(top, 1, len(lags) - 2)
    before, at, after = (
        np.take_along_axis(curve, middle + step, axis=-1)[..., 0] for step in (-1, 0, 1)
    )
    bend = before - 2 * at + after
    inner = (top == middle)[..., 0] & (bend < 0)
    offset = np.where(inner, (before - after) / (2 * np.where(inner, bend, 1)), 0)
    peak = lags[top[..., 0]] + offset * (lags[1] - lags[0])
    return np.where(np.isnan(curve).any(axis=-1), np.nan, 1000 * peak)


def true_against_shifted_auc(
    cca: CCA, clips: Sequence[Frames], shifts: Sequence[float] = (-0.5, -0.3, 0.3, 0.5)
) -> np.ndarray:
    """Area under the ROC curve [n] of each clip's true pairs against its own shifted (s) ones.

    The fraction of the shifts with a lower correlation than lag 0, ties counted half: chance is
    0.5. It is computed within a clip, so that differences between clips do not blur it. Shifts
    without a correlation are dropped; NaN if none is left.
    """
    curve = lag_curve(cca, clips, [0.0, *shifts])
    true, moved = curve[:, :1], curve[:, 1:]
    wins = (true > moved) + 0.5 * (true == moved)
    return mean_of_known(np.where(np.isnan(true + moved), np.nan, wins))


def _audio_at(
    audio: np.ndarray, audio_times: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Audio [..., H] interpolated at times [...] (s), and which times lie inside the audio."""
    place = np.interp(times, audio_times, np.arange(len(audio_times)))
    left = place.astype(int)
    right = np.minimum(left + 1, len(audio) - 1)
    share = (place - left)[..., None]
    inside = (times >= audio_times[0]) & (times <= audio_times[-1])
    return (1 - share) * audio[left] + share * audio[right], inside


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the values that are not NaN; NaN if all are."""
    known = ~np.isnan(values)
    count = known.sum(axis=-1)
    return np.where(count, np.where(known, values, 0).sum(axis=-1) / np.maximum(count, 1), np.nan)
