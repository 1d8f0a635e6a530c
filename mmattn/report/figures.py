"""The page's plots as Plotly figures in plain JSON values; `page.js` draws and colours them."""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mmattn.evaluate.metrics import CALIBRATION_BINS, calibration_bins, confusion, ece
from mmattn.evaluate.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    epoch_curves,
    epoch_plots,
    learning_rate_drops,
)
from mmattn.evaluate.predictions import Predictions
from mmattn.evaluate.tables import Interval, Table
from mmattn.train.history import Row, best_epoch, monitor_of

CYCLE = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", GREY)  # Okabe & Ito
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")
BLUES = [[0.0, "#f7fbff"], [0.5, "#6baed6"], [1.0, "#08306b"]]
DASHES = ("solid", "dash", "dot", "dashdot")


class Curve(NamedTuple):
    """Values y [n] of an arm over x [n] with their 95 % band; low and high NaN if there is none."""

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray


class CurvePlot(NamedTuple):
    """A plot of one or more arms' curves; the note explains it."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    note: str = ""


class Forest(NamedTuple):
    """Differences to a baseline with their 95 % intervals: (arm, difference) from top to bottom."""

    title: str
    x_label: str
    differences: Sequence[tuple[str, Interval]]
    note: str = ""


class Figure(NamedTuple):
    """A Plotly figure with its title and caption."""

    title: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    caption: str
    numbers: Table | None = None


def epoch_figures(history: Sequence[Row], monitor: str) -> list[Figure]:
    """The plots of `epoch_plots`, the best epoch marked."""
    return [_epoch_figure(history, monitor, names) for names in epoch_plots(monitor)]


def _epoch_figure(history: Sequence[Row], monitor: str, names: Sequence[str]) -> Figure:
    best = best_epoch(history, monitor)
    data = [_epoch_line(history, *curve) for curve in epoch_curves(history, names)]
    titles = [monitor_of(name).title for name in names]
    layout = _epoch_layout(history, best, ", ".join(titles))
    caption = "Lower is better."
    if monitor_of(names[0]).best:
        layout["yaxis"]["range"] = [0, 1.02]
        caption = "Training accuracy is measured with dropout, so it can lie below validation."
    if monitor in names:
        value = history[best - 1][f"validation_{monitor}"]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [best],
                "y": [_number(value)],
                "marker": {"symbol": "star", "size": 13, "color": GREEN},
                "name": "best epoch",
                "hoverinfo": "skip",
            }
        )
        caption += f" Best: epoch {best}, validation {monitor_of(monitor).title} {value:.3f}."
    caption += " The vertical line marks the best epoch, whose network is tested."
    if learning_rate_drops(history):
        caption += " Dotted lines: the learning rate was lowered."
    title = " and ".join(filter(None, [", ".join(titles[:-1]), titles[-1]]))
    return Figure(title[0].upper() + title[1:], data, layout, caption)


def _epoch_line(history: Sequence[Row], key: str, name: str, colour: str) -> dict[str, Any]:
    dash = {GREY: "dot", BLUE: "solid"}.get(colour, "dash")
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(history) < 15 else "lines",  # one epoch has no line
        "x": [epoch["epoch"] for epoch in history],
        "y": [_number(epoch[key]) for epoch in history],
        "name": name,
        "line": {"color": colour, "dash": dash, "width": 2},
        "hovertemplate": f"{name} %{{y:.3f}}<extra></extra>",
    }


def _epoch_layout(history: Sequence[Row], best: int, label: str) -> dict[str, Any]:
    lines = [(epoch, "dot", GREY) for epoch in learning_rate_drops(history)]
    lines.append((best, "solid", GREEN))
    return {
        "height": 330,
        "hovermode": "x unified",
        "xaxis": {
            "title": {"text": "epoch"},
            "range": [history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5],
            "tickformat": "d",
            **({"dtick": 1} if len(history) < 10 else {"nticks": 8}),
        },
        "yaxis": {"title": {"text": label}, "rangemode": "tozero"},
        "shapes": [
            {
                "type": "line",
                "xref": "x",
                "yref": "paper",
                "x0": epoch,
                "x1": epoch,
                "y0": 0,
                "y1": 1,
                "layer": "below",
                "line": {"color": colour, "dash": dash, "width": 1.2},
            }
            for epoch, dash, colour in lines
        ],
    }


def confusion_figure(predictions: Predictions) -> Figure:
    """Numbers are counts, colour is the fraction of the true class."""
    counts = confusion(predictions)
    clips = counts.sum(axis=1)
    shares = counts / np.maximum(clips, 1)[:, None]
    names = [plain(name) for name in predictions.class_names]
    ticks = {"tickvals": list(range(len(names))), "showgrid": False, "zeroline": False}
    data = {
        "type": "heatmap",
        "z": shares.tolist(),
        "text": counts.tolist(),
        "texttemplate": "%{text}",
        "customdata": [[[row, column] for column in names] for row in names],
        "hovertemplate": (
            "%{customdata[0]} predicted as %{customdata[1]}<br>"
            "%{text} clips, %{z:.1%} of the class<extra></extra>"
        ),
        "colorscale": BLUES,
        "zmin": 0,
        "zmax": 1,
        "xgap": 1,
        "ygap": 1,
        "colorbar": {"thickness": 10, "tickformat": ".0%", "outlinewidth": 0},
    }
    layout = {
        "height": 150 + 38 * len(names),
        "xaxis": {**ticks, "ticktext": names, "title": {"text": "predicted"}, "automargin": True},
        "yaxis": {
            **ticks,
            "ticktext": [f"{name} ({count})" for name, count in zip(names, clips, strict=True)],
            "title": {"text": "true (clips)"},
            "autorange": "reversed",
            "automargin": True,
        },
    }
    caption = (
        "Rows are true classes, columns predicted ones. The number counts clips, the colour is "
        "their fraction of the row. Correct predictions are on the diagonal."
    )
    return Figure("Confusion matrix", [data], layout, caption)


def reliability_figure(predictions: Predictions) -> Figure:
    """Accuracy against confidence in 15 bins, and the clips in each (Guo et al., ICML 2017)."""
    bins = calibration_bins(predictions)
    clips, hits, confidence = bins[bins[:, 0] > 0].T
    edges = np.arange(CALIBRATION_BINS + 1) / CALIBRATION_BINS
    used = np.flatnonzero(bins[:, 0])
    about = [
        [f"{edges[row]:.2f} to {edges[row + 1]:.2f}", int(count), round(mean, 4)]
        for row, count, mean in zip(used, clips, confidence / clips, strict=True)
    ]
    centres = ((edges[used] + edges[used + 1]) / 2).tolist()
    common = {"type": "bar", "x": centres, "customdata": about, "width": 0.9 / CALIBRATION_BINS}
    common["showlegend"] = False
    hover = "confidence %{customdata[0]}, on average %{customdata[2]:.3f}<br>%{customdata[1]} clips"
    data = [
        {
            **common,
            "y": (hits / clips).round(4).tolist(),
            "marker": {"color": BLUE},
            "hovertemplate": f"accuracy %{{y:.3f}}<br>{hover}<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "x": (confidence / clips).round(4).tolist(),
            "y": (hits / clips).round(4).tolist(),
            "marker": {"color": ORANGE, "size": 7, "symbol": "diamond"},
            "showlegend": False,
            "hoverinfo": "skip",
        },
        {
            **common,
            "y": clips.astype(int).tolist(),
            "yaxis": "y2",
            "marker": {"color": GREY},
            "hovertemplate": f"{hover}<extra></extra>",
        },
    ]
    ideal = {"type": "line", "x0": 0, "y0": 0, "x1": 1, "y1": 1}
    layout = {
        "height": 400,
        "xaxis": {"title": {"text": "confidence"}, "range": [0, 1], "anchor": "y2"},
        "yaxis": {"title": {"text": "accuracy"}, "range": [0, 1.02], "domain": [0.32, 1]},
        "yaxis2": {"title": {"text": "clips"}, "domain": [0, 0.24], "nticks": 4},
        "shapes": [{**ideal, "line": {"color": GREY, "dash": "dash", "width": 1.5}}],
    }
    caption = (
        "Accuracy (bars) by confidence; diamonds mark each bin's mean confidence. Points on the "
        "dashed line are calibrated, those below it are overconfident. Expected "
        f"calibration error over {CALIBRATION_BINS} bins: {ece(bins):.3f}."
    )
    return Figure(f"Reliability, ECE {ece(bins):.3f}", data, layout, caption)


def curves_figure(plot: CurvePlot) -> Figure:
    """A line and a band for each arm."""
    data = []
    for number, curve in enumerate(plot.curves):
        data += _curve(curve, number)
    several = len(plot.curves) > 1
    layout = {
        "height": 420 if several else 330,
        "hovermode": "closest",
        "showlegend": several,
        "xaxis": {"title": {"text": plain(plot.x_label)}},
        "yaxis": {
            "title": {"text": plain(plot.y_label)},
            "rangemode": "normal" if several else "tozero",
        },
    }
    caption = plot.note
    if np.isfinite([one.low for one in plot.curves]).any():
        caption += " Bands are 95 % intervals."
    if several:
        caption += " Click an arm in the legend to hide it; double-click to show only that arm."
    return Figure(plot.title, data, layout, caption.strip(), _curve_table(plot))


def _curve(curve: Curve, number: int) -> list[dict[str, Any]]:
    """The band, if any, and the line of a curve."""
    colour = CYCLE[number % len(CYCLE)]
    x, y, low, high = (np.asarray(part, float) for part in curve[1:])
    known = np.isfinite(low) & np.isfinite(high)
    common = {"type": "scatter", "legendgroup": f"{number}", "name": plain(curve.name)}
    line = {
        **common,
        "mode": "lines+markers",
        "x": x.tolist(),
        "y": _numbers(y),
        "customdata": [[_number(a), _number(b)] for a, b in zip(low, high, strict=True)],
        "line": {"color": colour, "width": 2, "dash": DASHES[number // len(CYCLE) % len(DASHES)]},
        "marker": {"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 7},
        "hovertemplate": (
            "%{x}: %{y:.3f}" + (" [%{customdata[0]:.3f}, %{customdata[1]:.3f}]" * bool(known.all()))
        ),
    }
    if not known.any():
        return [line]
    band = {
        **common,
        "mode": "lines",
        "x": [*x[known], *x[known][::-1]],
        "y": [*high[known], *low[known][::-1]],
        "fill": "toself",
        "fillcolor": f"{colour}22",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    return [band, line]


def _curve_table(plot: CurvePlot) -> Table:
    """A row for each x, a column for each arm."""
    cells: dict[float, dict[str, Interval]] = {}
    for curve in plot.curves:
        for x, *interval in zip(*map(np.ndarray.tolist, map(np.asarray, curve[1:])), strict=True):
            cells.setdefault(x, {})[curve.name] = Interval(*map(_number, interval))
    names = [curve.name for curve in plot.curves]
    rows = [[f"{x:g}", *(row.get(name) for name in names)] for x, row in sorted(cells.items())]
    return Table(plot.y_label, [plot.x_label, *names], rows)


def forest_figure(forest: Forest) -> Figure:
    """A row for each arm, the first on top; filled markers: the interval excludes zero."""
    arms = [plain(arm) for arm, _ in forest.differences]
    value, low, high = np.array([tuple(interval) for _, interval in forest.differences], float).T
    clear = (low > 0) | (high < 0)
    data = {
        "type": "scatter",
        "mode": "markers",
        "x": _numbers(value),
        "y": list(range(len(arms))),
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": _numbers(high - value),
            "arrayminus": _numbers(value - low),
            "color": BLUE,
            "thickness": 2,
            "width": 5,
        },
        "marker": {
            "size": 10,
            "color": BLUE,
            "symbol": ["circle" if sure else "circle-open" for sure in clear],
            "line": {"width": 2, "color": BLUE},
        },
        "customdata": [
            [arm, _number(a), _number(b)] for arm, a, b in zip(arms, low, high, strict=True)
        ],
        "hovertemplate": (
            "%{customdata[0]}<br>%{x:+.3f} [%{customdata[1]:+.3f}, %{customdata[2]:+.3f}]"
            "<extra></extra>"
        ),
    }
    layout = {
        "height": 90 + 30 * len(arms),
        "showlegend": False,
        "xaxis": {"title": {"text": plain(forest.x_label)}, "zeroline": True, "nticks": 7},
        "yaxis": {
            "tickvals": data["y"],
            "ticktext": arms,
            "range": [len(arms) - 0.5, -0.5],
            "automargin": True,
            "zeroline": False,
        },
    }
    caption = (
        f"{forest.note} Points are paired differences, bars their 95 % intervals; the interval "
        "of a filled point excludes zero."
    )
    table = Table(
        forest.title, ["arm", forest.x_label], [[arm, gap] for arm, gap in forest.differences]
    )
    return Figure(forest.title, [data], layout, caption.strip(), table)


def plain(text: str) -> str:
    """Escaped text for Plotly, which otherwise interprets tags and entities."""
    return html.escape(text, quote=False)


def _number(value: float | None) -> float | None:
    """A JSON number, or None if it is not finite."""
    return float(value) if value is not None and np.isfinite(value) else None


def _numbers(values: np.ndarray) -> list[float | None]:
    return [_number(value) for value in values]
