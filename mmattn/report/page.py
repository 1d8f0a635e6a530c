"""The pages of a run, of a study and of predictions, each one HTML file that works offline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mmattn.evaluate.plots import GREEN
from mmattn.evaluate.predictions import Predictions
from mmattn.evaluate.tables import (
    Cell,
    Scores,
    Table,
    class_table,
    group_tables,
    score_table,
    ties_text,
)
from mmattn.evaluate.views import ClipView
from mmattn.files import write_text
from mmattn.report.clips import LARGEST, pack_viewer
from mmattn.report.document import document, facts, paragraphs, table
from mmattn.report.figures import (
    CYCLE,
    CurvePlot,
    Figure,
    Forest,
    confusion_figure,
    curves_figure,
    epoch_figures,
    forest_figure,
    reliability_figure,
)
from mmattn.report.footage import Footage
from mmattn.train.history import Row

VIEWER_COLOURS = {"right": GREEN, "arms": CYCLE}
FOOT = (
    "<p>In every plot: point to read values, drag to zoom, double-click to reset. This page is "
    "one file and works offline.</p>"
)
SIGNS = {"supported": "✓", "refuted": "✗", "inconclusive": "?"}


class Verdict(NamedTuple):
    """The study's verdict on a claim in a setting (corpus, fusion), in a word and a sentence."""

    claim: str
    setting: str
    verdict: Literal["supported", "refuted", "inconclusive"]
    sentence: str


@dataclass
class _Plots:
    """The figures of a page, numbered in order; the page's script draws them."""

    drawn: list[dict[str, Any]] = field(default_factory=list)

    def add(self, figure: Figure) -> str:
        """The HTML of a figure, with its numbers in an expandable table."""
        name, title = f"plot-{len(self.drawn)}", escape(figure.title)
        self.drawn.append({"id": name, "data": figure.data, "layout": figure.layout})
        numbers = ""
        if figure.numbers:
            numbers = f"<details><summary>Numbers</summary>{table(figure.numbers)}</details>"
        return (
            f'<figure class="plot"><h3>{title}</h3>'
            f'<div id="{name}" class="drawing" role="img" aria-label="{title}"></div>'
            f"<figcaption>{escape(figure.caption)}</figcaption>{numbers}</figure>"
        )


def write_run_page(
    path: Path,
    title: str,
    about: Mapping[str, str],
    scores: Mapping[str, Scores],
    predictions: Predictions,
    command: str,
    history: Sequence[Row] = (),
    monitor: str = "accuracy",
    clips: Sequence[ClipView] = (),
    about_clips: Sequence[str] = (),
    curves: Sequence[CurvePlot] = (),
    note: str | None = None,
    groups: Mapping[str, Mapping] | None = None,
    calibrated: Mapping[str, Scores] | None = None,
) -> None:
    """Write the page of a run, atomically.

    Args:
        path: of the page.
        title: names the run; says if its data is synthetic.
        about: facts by name: data, split, best epoch, network, date, versions.
        scores: of `metrics.scores`, by split.
        predictions: of the test set.
        command: that repeats the run.
        history: rows of metrics.jsonl; empty for several trainings.
        monitor: the score that selected the epoch.
        clips: for the viewer.
        about_clips: paragraphs: which clips these are, and which network predicts them.
        curves: over a test-time offset and tempo.
        note: a warning at the top, e.g. that the split leaks speakers.
        groups: of `metrics.group_scores` for the test set, if any.
        calibrated: as `scores`, for calibrated predictions, if any.
    """
    plots = _Plots()
    shown = table(score_table(scores, calibrated)) + table(class_table(predictions))
    shown += paragraphs(filter(None, [ties_text("test", predictions)]))
    sections = {"scores": ("Scores", shown)}
    if tables := group_tables(groups or {}):
        sections["groups"] = ("Scores by group", "".join(map(table, tables)))
    if history:
        shown = _side_by_side(plots, *epoch_figures(history, monitor))
        sections["training"] = ("Learning curves", shown)
    shown = _side_by_side(plots, confusion_figure(predictions), reliability_figure(predictions))
    sections["answers"] = ("Predictions and calibration", shown)
    if curves:
        shown = _side_by_side(plots, *map(curves_figure, curves))
        sections["curves"] = ("Offset and tempo at test time", shown)
    viewer = None
    if clips:
        viewer = pack_viewer({"": clips}, predictions.class_names)
        sections["clips"] = ("Clips", paragraphs(about_clips) + _viewer("true"))
    foot = f"<p>Made by <code>{escape(command)}</code>.</p>{FOOT}"
    introduction = _note(note) + facts(about)
    payload = {"plots": plots.drawn, "colours": VIEWER_COLOURS, "viewer": viewer}
    write_text(path, document(title, introduction, sections, foot, payload))


def write_study_page(
    path: Path,
    title: str,
    introduction: Sequence[str],
    verdicts: Sequence[Verdict],
    tables: Sequence[Table],
    forests: Sequence[Forest],
    curves: Sequence[CurvePlot],
    clips: Mapping[str, Sequence[ClipView]],
    class_names: Sequence[str],
    command: str,
    running_time: str,
    note: str | None = None,
) -> None:
    """Write the page of a study, atomically, without its empty sections.

    Args:
        path: of the page.
        title: names the study; says if its data is synthetic.
        introduction: paragraphs of text.
        verdicts: on each claim in each setting.
        tables: the numbers of one or all measures, by arm.
        forests: paired differences to the baseline arm.
        curves: over a test-time offset and tempo.
        clips: for the viewer, the same for each arm.
        class_names: of the clips' probabilities.
        command: that repeats the study.
        running_time: of the study, with the machine.
        note: a warning at the top.

    Raises:
        ValueError: the arms show different clips.
    """
    plots = _Plots()
    sections = {}
    if verdicts:
        sections["verdicts"] = ("Verdicts", _verdict_table(verdicts))
    if forests:
        shown = _side_by_side(plots, *map(forest_figure, forests))
        sections["differences"] = ("Differences between arms", shown)
    if tables:
        sections["tables"] = ("Tables", "".join(map(table, tables)))
    if curves:
        shown = _side_by_side(plots, *map(curves_figure, curves))
        sections["curves"] = ("Offset and tempo at test time", shown)
    viewer = None
    if clips:
        viewer = pack_viewer(clips, class_names)
        sections["clips"] = ("Clips", _viewer("true"))
    foot = f"<p>Made by <code>{escape(command)}</code> in {escape(running_time)}.</p>{FOOT}"
    opening = _note(note) + paragraphs(introduction)
    payload = {"plots": plots.drawn, "colours": VIEWER_COLOURS, "viewer": viewer}
    write_text(path, document(title, opening, sections, foot, payload))


def write_prediction_page(
    path: Path,
    title: str,
    about: Mapping[str, str],
    clips: Sequence[ClipView],
    footage: Sequence[Footage],
    class_names: Sequence[str],
    failures: Sequence[tuple[str, str]],
    command: str,
) -> None:
    """Write the page of predictions for clips of unknown class, atomically.

    Args:
        path: of the page.
        title: says what was predicted.
        about: facts by name: the run, its checkpoint and networks.
        clips: one or more.
        footage: of each clip.
        class_names: of the clips' probabilities.
        failures: clips that could not be predicted, with the reason.
        command: that rewrites the page.
    """
    rows: list[list[Cell]] = [
        [view.clip, class_names[int(view.probabilities.argmax())], *map(float, view.probabilities)]
        for view in clips
    ]
    shown = table(Table("Probabilities.", ("clip", "predicted", *class_names), rows))
    sections = {
        "predictions": ("Predictions", shown),
        "clips": ("Clips", _viewer("predicted")),
    }
    if failures:
        shown = table(Table("Not predicted.", ("clip", "reason"), failures))
        sections["failures"] = ("Clips that could not be predicted", shown)
    foot = f"<p>Made by <code>{escape(command)}</code>.</p>{FOOT}"
    viewer = pack_viewer({"": clips}, class_names, footage)
    payload = {"plots": [], "colours": VIEWER_COLOURS, "viewer": viewer}
    write_text(path, document(title, facts(about), sections, foot, payload))


def _verdict_table(verdicts: Sequence[Verdict]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(one.claim)}</th><td>{escape(one.setting)}</td>'
        f'<td><span class="verdict {one.verdict}">{SIGNS[one.verdict]} {one.verdict}</span></td>'
        f"<td>{escape(one.sentence)}</td></tr>"
        for one in verdicts
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("claim", "setting", "verdict", ""))
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Verdicts">'
        f'<table class="text"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _side_by_side(plots: _Plots, *figures: Figure) -> str:
    return f'<div class="plots">{"".join(map(plots.add, figures))}</div>'


def _note(note: str | None) -> str:
    return f'<p class="note" role="note">{escape(note)}</p>' if note else ""


def _viewer(bold: str) -> str:
    """The form of the clip viewer; `bold`: the class in bold."""
    return f"""
<form id="viewer" autocomplete="off">
<div class="controls">
<label>Search <input id="search" type="search" placeholder="clip, speaker or class"></label>
<label>Show <select id="filter"></select></label>
<label class="wide">Clip <select id="clip"></select></label>
<span class="buttons"><button type="button" id="previous">← previous</button>
<button type="button" id="next">next →</button></span>
</div>
<fieldset id="arms" hidden><legend>Arms</legend></fieldset>
<h3 id="clip-title" aria-live="polite"></h3>
<p id="clip-about"></p>
<div id="key" class="key"></div>
<div class="clip">
<figure><div id="clip-time" class="drawing" role="img" aria-label="Attention and features over time"
></div>
<ol id="faces" class="faces" aria-label="Faces where the attention to the video is highest" hidden>
</ol><figcaption>All panels share one time axis. Attention is relative to uniform attention over the
clip's valid frames: 1, the broken line. Features are normalised: 0 is the mean over the training
frames, 1 a standard deviation; colours are clipped at ±3, values at ±{LARGEST:g}. Point at a frame
to read its values.</figcaption></figure>
<figure><div id="clip-classes" class="drawing" role="img" aria-label="Class probabilities"></div>
<figcaption>Probability of each class; the {bold} one is in bold.</figcaption></figure>
</div>
<p class="hint">The keys ← and → move between clips.</p>
</form>
"""
