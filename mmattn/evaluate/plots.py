"""Plots of a run as PNG files: learning curves, confusion matrix, attention over time.

`note` is drawn small under a plot, e.g. that the split leaks speakers.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from mmattn.evaluate.metrics import confusion
from mmattn.evaluate.predictions import Predictions
from mmattn.evaluate.views import ClipView
from mmattn.train.history import Row, best_epoch, by_split, monitor_of

DPI = 120
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"  # Okabe & Ito, colour-blind
COLOURS = {"audio": BLUE, "video": ORANGE}
OTHERS = ("#CC79A7", "#E69F00", "#56B4E9")  # of other modalities
DENSE = 100  # frames above which a line of attention has no markers


def plot_curves(history: Sequence[Row], monitor: str, path: Path, note: str | None = None) -> None:
    """The plots of `epoch_plots`, with the best epoch and its monitor value marked."""
    figure = _figure(9, 4.2, note)
    best = best_epoch(history, monitor)
    for axes, names in zip(figure.subplots(1, 2), epoch_plots(monitor), strict=True):
        for key, label, colour in epoch_curves(history, names):
            _draw_curve(axes, history, key, colour, label)
        top = 1.02 if monitor_of(names[0]).best else 1.05 * axes.dataLim.y1
        axes.set(ylabel=", ".join(monitor_of(name).title for name in names), ylim=(0, top))
        if monitor in names:
            value = history[best - 1][f"validation_{monitor}"]
            label = f"best: epoch {best}, {value:.3f}"
            axes.plot(best, value, "*", color=GREEN, markersize=13, label=label)
        _mark_epochs(axes, history, best)
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=9
        )
    figure.savefig(path, dpi=DPI)


def epoch_plots(monitor: str) -> tuple[list[str], list[str]]:
    """The scores to plot over the epochs: lower is better, and higher is better.

    They include the monitor.
    """
    low, high = ["loss"], ["accuracy", "uar"]
    side = high if monitor_of(monitor).best else low
    if monitor not in side:
        side.append(monitor)
    return low, high


def epoch_curves(history: Sequence[Row], names: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Key, label and colour of each score's curves: validation and, if present, training."""
    for name, colour in zip(names, (BLUE, ORANGE, OTHERS[0]), strict=False):
        for split in by_split(history[0], name):
            own = ("training", GREY) if split == "train" else (split, colour)
            yield f"{split}_{name}", f"{own[0]} {monitor_of(name).title}", own[1]


def learning_rate_drops(history: Sequence[Row]) -> list[float]:
    """Epochs with a lower learning rate than the one before; none if most have one.

    A rate that falls all the time needs no marks.
    """
    drops = [
        epoch["epoch"]
        for before, epoch in pairwise(history)
        if epoch["learning_rate"] < before["learning_rate"]
    ]
    return drops if len(drops) <= len(history) / 2 else []


def _mark_epochs(axes: Axes, history: Sequence[Row], best: int) -> None:
    """The epoch axis, with lines at the best epoch and where the learning rate fell."""
    for number, epoch in enumerate(learning_rate_drops(history)):
        label = None if number else "learning rate fell"
        axes.axvline(epoch, color="black", linewidth=0.8, linestyle=":", zorder=0, label=label)
    axes.axvline(best, color=GREEN, linewidth=1, zorder=0)
    axes.set(xlabel="epoch", xlim=(history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _draw_curve(axes: Axes, history: Sequence[Row], key: str, colour: str, label: str) -> None:
    epochs = [epoch["epoch"] for epoch in history]
    marker = "." if len(history) < 15 else None  # a single epoch has no line
    axes.plot(epochs, [epoch[key] for epoch in history], color=colour, marker=marker, label=label)


def plot_confusion(
    predictions: Predictions, path: Path, title: str, note: str | None = None
) -> None:
    """Confusion matrix: numbers are counts, colour is the fraction of the true class (row)."""
    counts = confusion(predictions)
    clips = counts.sum(axis=1)
    shares = counts / np.maximum(clips, 1)[:, None]
    names = predictions.class_names
    figure = _figure(2.6 + 0.62 * len(names), 2.0 + 0.56 * len(names), note)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, count, ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(
        range(len(names)), [f"{name} ({count})" for name, count in zip(names, clips, strict=True)]
    )
    axes.tick_params(length=0)
    axes.set(xlabel="predicted", ylabel="true (clips)")
    axes.set_title(title, parse_math=False, fontsize=11)
    figure.colorbar(image, shrink=0.8, label="fraction of the true class")
    figure.savefig(path, dpi=DPI)


def plot_attention(
    clips: Sequence[ClipView], class_names: tuple[str, ...], path: Path, note: str | None = None
) -> None:
    """Attention over time, one row per clip, relative to uniform attention over the valid frames.

    Vertical marks are true cues, in the colour of their modality; grey areas have no data.
    """
    colours = modality_colours(clips)
    figure = _figure(9, 0.9 + 1.65 * len(clips), note)
    rows = figure.subplots(len(clips), 1, sharex=True, squeeze=False)[:, 0]
    for axes, clip in zip(rows, clips, strict=True):
        _draw_clip(axes, clip, class_names[clip.probabilities.argmax()], colours)
    rows[-1].set_xlabel("time (s)")
    figure.supylabel("attention (1 = uniform)", fontsize=10)
    figure.legend(
        handles=_attention_legend(clips, colours),
        loc="outside upper center",
        ncols=6,
        frameon=False,
    )
    figure.savefig(path, dpi=DPI)


def modality_colours(clips: Sequence[ClipView]) -> dict[str, str]:
    """The colour of each modality of the clips and their cues, in order of appearance."""
    names = dict.fromkeys(name for clip in clips for name in clip.streams)
    names |= dict.fromkeys(sorted(cue[0] for clip in clips for cue in clip.cues or ()))
    others = cycle(OTHERS)
    return {name: COLOURS.get(name) or next(others) for name in names}


def _draw_clip(axes: Axes, clip: ClipView, predicted: str, colours: Mapping[str, str]) -> None:
    axes.axhline(1, color="black", linewidth=0.6, linestyle=":", zorder=1)
    for name, stream in clip.streams.items():
        x, y, marker = stream.times, stream.ratio, "." if len(stream.times) <= DENSE else None
        axes.plot(x, y, color=colours[name], linewidth=1.3, marker=marker, markersize=4)
        for start, end in stream.gaps:
            axes.axvspan(start, end, color=GREY, alpha=0.3, linewidth=0)
    for modality, time, decoy in clip.cues or ():
        if not decoy:
            axes.axvline(time, color=colours[modality], linewidth=1, alpha=0.6, zorder=0)
    verdict = "correct" if clip.label == predicted else f"predicted {predicted}"
    text = f"{clip.clip}: {clip.label}, {verdict}"
    axes.set_title(text, parse_math=False, fontsize=9, loc="left", pad=3)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)


def _attention_legend(
    clips: Sequence[ClipView], colours: Mapping[str, str]
) -> list[Line2D | Patch]:
    """An entry for each modality, cue and gap that occurs in a clip."""
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=colour, label=name)
        for name, colour in colours.items()
        if any(name in clip.streams for clip in clips)
    ]
    cued = {modality for clip in clips for modality, _, decoy in clip.cues or () if not decoy}
    for modality in sorted(cued):
        mark = Line2D([], [], color=colours[modality], marker="|", markersize=12, linestyle="none")
        mark.set_label(f"{modality} cue")
        handles.append(mark)
    if any(one.gaps for clip in clips for one in clip.streams.values()):
        handles.append(Patch(color=GREY, alpha=0.3, linewidth=0, label="no data"))
    return handles


def _figure(width: float, height: float, note: str | None) -> Figure:
    """A figure of this size (inches), with the note small at the bottom."""
    figure = Figure(figsize=(width, height), layout="constrained")
    if note:
        figure.supxlabel(note, parse_math=False, fontsize=8, color=ORANGE, x=0.01, ha="left")
    return figure
