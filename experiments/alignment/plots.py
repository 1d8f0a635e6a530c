"""The main plots of a study as PNG files, for documents."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.alignment.claims import MEASURES
from experiments.alignment.plan import REFERENCE
from experiments.alignment.results import CUE_TIMES, Comparison, CurveOf
from mmattn.evaluate.plots import BLUE, DPI, GREEN, ORANGE
from mmattn.train.shifts import OFFSETS, TEMPOS

CYCLE = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00")
CLEAR = (REFERENCE, "audio_tempo", "audio_aug", "sync_tempo", "sync_aug")  # few enough to read


def plot_differences(found: Comparison, path: Path) -> None:
    """Paired differences to the reference with 95 % intervals, a panel for each claimed measure."""
    measures = [
        measure
        for measure in MEASURES
        if measure.smallest is not None and any(row.measure == measure for row in found.rows)
    ]
    figure = Figure(figsize=(3.1 * len(measures), 0.9 + 0.3 * len(found.block.arms)))
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        rows = [row for row in found.rows if row.measure == measure and row.difference]
        places = np.arange(len(rows))
        values = np.array([row.difference[:3] for row in rows])
        axes.axvline(0, color="black", linewidth=0.8)
        axes.hlines(places, values[:, 1], values[:, 2], color=BLUE, linewidth=2)
        axes.plot(values[:, 0], places, "o", color=BLUE, markersize=5)
        axes.set_yticks(places, [row.title for row in rows])
        axes.set_title(measure.title, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    figure.supxlabel(f"{found.difference_title}, 95 % interval", fontsize=9)
    figure.savefig(path, dpi=DPI)


def plot_curves_over(found: Comparison, path: Path) -> None:
    """Accuracy over test-time offset and tempo of the audio, and by the time of the cues."""
    middles = (CUE_TIMES[:-1] + CUE_TIMES[1:]) / 2
    arms = [arm for arm in CLEAR if arm in found.block.arms]
    panels = [
        (1000 * OFFSETS, "audio delay (ms)", _of(found.at_offset, arms)),
        (TEMPOS, "audio tempo", _of(found.at_tempo, arms)),
    ]
    if not np.isnan(found.by_cue_time[0].points[0].value):
        label = "time of the cues (s); "
        panels.append((middles, f"{label}clean clips", _of(found.by_cue_time, arms)))
        tempos = found.by_cue_time_at_tempo
        panels.append((middles, f"{label}{REFERENCE}, other audio tempo", tempos))
    figure = Figure(figsize=(4.2 * min(len(panels), 2), 3.4 * -(-len(panels) // 2)))
    figure.set_layout_engine("constrained")
    grid = figure.subplots(-(-len(panels) // 2), 2, squeeze=False).ravel()
    for axes, (x, label, curves) in zip(grid, panels, strict=True):
        _draw(axes, x, curves)
        axes.set(xlabel=label, ylabel="accuracy", ylim=(0, 1.03))
    figure.savefig(path, dpi=DPI)


def _of(curves: Sequence[CurveOf], arms: Sequence[str]) -> list[CurveOf]:
    return [curve for curve in curves if curve.arm in arms]


def _draw(axes: Axes, x: np.ndarray, curves: Sequence[CurveOf]) -> None:
    for curve, colour in zip(curves, CYCLE[: len(curves)], strict=True):
        value, low, high = np.array(curve.points).T
        axes.plot(x, value, ".-", color=colour, label=curve.arm)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.3)
