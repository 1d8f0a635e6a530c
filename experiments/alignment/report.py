"""The results of a study: tables on the screen, results.csv, results.md and report.html."""

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from experiments.alignment.claims import MEASURES
from experiments.alignment.measure import LAGS
from experiments.alignment.plan import REFERENCE, SPLIT_SEED, Block, Cell, Study
from experiments.alignment.plots import CLEAR, plot_curves_over, plot_differences
from experiments.alignment.results import CUE_TIMES, Comparison, CurveOf, compare
from experiments.alignment.runner import load_measures
from experiments.alignment.statistics import Difference, Interval
from mmattn.console import say, say_table, waiting
from mmattn.data.corpus import Corpus, open_corpus
from mmattn.data.normalise import fit_normaliser
from mmattn.data.splits import make_split
from mmattn.evaluate.tables import Interval as Shown
from mmattn.evaluate.tables import Table, cell_text, markdown
from mmattn.evaluate.views import ClipView, view_clips
from mmattn.files import write_text
from mmattn.report import page
from mmattn.report.figures import Curve, CurvePlot, Forest
from mmattn.train.shifts import OFFSETS, TEMPOS

VIEWED = 12  # clips in the viewer
RULE = (
    "The rule: a claim is supported if the 95 % interval of the paired difference is on its side "
    "of 0 and Holm's adjusted p is below 0.05; refuted if the interval excludes the smallest "
    "relevant effect (0.02 in each measure); inconclusive otherwise, and if there is nothing to "
    "compare or to gain: neither arm is shown to be above chance by 0.02, or the reference is "
    "within 0.02 of the maximum. (All but this last part, and Student's t, was fixed before any "
    "run.)"
)


def write_results(study: Study, folder: Path, command: str) -> None:
    """Compare the arms of a complete study; write and print the results."""
    with waiting("comparing"):
        found = compare(study, folder)
        write_text(folder / "results.csv", to_csv(found))
        write_text(folder / "results.md", "\n".join(to_markdown(found)) + "\n")
        write_page(study, folder, found, command)
        for one in found:
            name = f"{one.block.name}-{one.fusion}"
            plot_differences(one, folder / f"{name}-differences.png")
            plot_curves_over(one, folder / f"{name}-curves.png")
    for one in found:
        for table in (claim_table(one), main_table(one)):
            rows = [[cell_text(cell) for cell in row] for row in table.rows]
            say_table(table.title, table.columns, rows, left=True)
    say(f"results in {folder}: report.html, results.md, results.csv")


def claim_table(found: Comparison) -> Table:
    """The verdicts for a block and a fusion."""
    rows = [
        (claim.text, _signed(claim.row.difference), f"{claim.row.adjusted_p:.3f}", claim.verdict)
        for claim in found.claims
    ]
    columns = ("claim", found.difference_title, "p (Holm)", "verdict")
    return Table(f"{_setting(found)}: claims", columns, rows)


def main_table(found: Comparison) -> Table:
    """Means of the arms for the measures of claims."""
    keys = [row.measure for row in found.rows if row.measure.smallest is not None]
    measures = [measure for measure in MEASURES if measure in keys]
    rows = [
        (arm, *(Shown(*_mean(found, measure.key, arm)) for measure in measures))
        for arm in found.block.arms
    ]
    rows.append(("linear baseline", Shown(*found.baseline), *[None] * (len(measures) - 1)))
    title = f"{_setting(found)}: mean [95 % interval over seeds and speakers]"
    return Table(title, ("arm", *(measure.title for measure in measures)), rows)


def measure_tables(found: Comparison) -> Iterator[Table]:
    """A table for each measure: each arm's mean and its paired difference."""
    for measure in MEASURES:
        rows = [
            (
                row.title,
                Shown(*row.mean),
                _signed(row.difference) if row.difference else "",
                f"{row.difference.p:.4f}" if row.difference else "",
                f"{row.adjusted_p:.3f}" if row.difference else "",
            )
            for row in found.rows
            if row.measure == measure
        ]
        if rows:
            columns = ("arm", "mean", found.difference_title, "p", "p (Holm)")
            yield Table(f"{_setting(found)}: {measure.title}", columns, rows)


def baseline_table(found: Comparison) -> Table:
    """UAR against the linear baseline, McNemar's test and validation."""
    rows = [
        (
            arm,
            f"{found.validation_uar[arm]:.3f}",
            _signed(found.above_baseline[arm]),
            f"{found.above_baseline[arm].p:.4f}",
            f"{found.mcnemar[arm]:.4f}" if arm in found.mcnemar else "",
        )
        for arm in found.block.arms
    ]
    columns = ("arm", "validation UAR", "UAR above linear", "p", f"McNemar p to {REFERENCE}")
    best = max(found.validation_uar, key=found.validation_uar.get)
    return Table(
        f"{_setting(found)}: compared to the linear baseline "
        f"(UAR {cell_text(Shown(*found.baseline))}); best arm by validation: {best}",
        columns,
        rows,
    )


def cue_tables(found: Comparison) -> Iterator[Table]:
    """Accuracy by the time of coincidence; none if cues do not coincide."""
    columns = ("", *(f"{a:g} to {b:g} s" for a, b in pairwise(CUE_TIMES)))
    for title, curves in (
        ("accuracy on clean clips by time of coincidence", found.by_cue_time),
        (
            f"that accuracy minus that of {REFERENCE}, paired",
            found.cost_by_cue_time,
        ),
        (
            f"accuracy of {REFERENCE} by time of coincidence, audio at another tempo",
            found.by_cue_time_at_tempo,
        ),
    ):
        rows = [(curve.arm, *(Shown(*point) for point in curve.points)) for curve in curves]
        if not all(np.isnan(point.value) for curve in curves for point in curve.points):
            yield Table(f"{_setting(found)}: {title}", columns, rows)


def curve_tables(found: Comparison) -> Iterator[Table]:
    """Accuracy over a test-time offset and tempo of the audio."""
    for title, places, unit, curves in (
        ("accuracy by audio delay (ms)", OFFSETS * 1000, "{:+.0f}", found.at_offset),
        ("accuracy with the audio at tempo", TEMPOS, "{:.1f}", found.at_tempo),
    ):
        columns = ("arm", *(unit.format(place) for place in places))
        rows = [(curve.arm, *(f"{p.value:.3f}" for p in curve.points)) for curve in curves]
        yield Table(f"{_setting(found)}: {title}", columns, rows)


def all_tables(found: Comparison) -> list[Table]:
    """Every table of numbers, the most important first."""
    first = main_table(found), baseline_table(found)
    return [*first, *cue_tables(found), *curve_tables(found), *measure_tables(found)]


def to_markdown(found: Sequence[Comparison]) -> Iterator[str]:
    """All tables as Markdown."""
    for one in found:
        yield f"## {_setting(one)}\n\n{one.block.about} {_size(one)}\n"
        for table in (claim_table(one), *all_tables(one)):
            yield from (f"**{table.title}**\n", *markdown(table), "")


def to_csv(found: Sequence[Comparison]) -> str:
    """A line for each block, fusion, measure and arm, with all digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    difference = ("difference", "difference_low", "difference_high", "p")
    ends = ("mean", "low", "high")
    writer.writerow(("block", "fusion", "measure", "arm", *ends, *difference, "p_holm"))
    for one in found:
        for row in one.rows:
            paired = (*row.difference, row.adjusted_p) if row.difference else [""] * 5
            place = (one.block.name, one.fusion, row.measure.key, row.title)
            writer.writerow((*place, *row.mean, *paired))
    return text.getvalue()


def write_page(study: Study, folder: Path, found: Sequence[Comparison], command: str) -> None:
    """The study's report.html."""
    seconds = sum(one.seconds for one in found)
    first = found[0]
    page.write_study_page(
        folder / "report.html",
        "Augmentation and alignment: " + ", ".join(block.name for block in study.blocks),
        [f"{_setting(one)}: {one.block.about} {_size(one)}" for one in found] + [RULE],
        [
            page.Verdict(
                claim.text,
                _setting(one),
                claim.verdict,
                f"{_signed(claim.row.difference)}, adjusted p {claim.row.adjusted_p:.3f}",
            )
            for one in found
            for claim in one.claims
        ],
        [
            table
            for one in found
            for table in (
                main_table(one),
                baseline_table(one),
                *cue_tables(one),
                *measure_tables(one),
            )
        ],
        [forest for one in found for forest in _forests(one)],
        [plot for one in found for plot in _plots(one)],
        _views(study, folder, first.fusion),
        _corpus(first.block).class_names,
        command,
        f"{seconds / 60:.0f} core minutes of training and measuring",
    )


def _forests(found: Comparison) -> Iterator[Forest]:
    for measure in MEASURES:
        rows = [row for row in found.rows if row.measure == measure and row.difference]
        if measure.smallest is not None and rows:
            yield Forest(
                f"{measure.title}; {_setting(found)}",
                found.difference_title,
                [(row.title, Shown(*row.difference[:3])) for row in rows],
            )


def _plots(found: Comparison) -> Iterator[CurvePlot]:
    middles = (CUE_TIMES[:-1] + CUE_TIMES[1:]) / 2
    for title, x, x_label, y_label, curves in (
        ("Offset at test time", OFFSETS * 1000, "audio delay (ms)", "accuracy", found.at_offset),
        ("Audio tempo at test time", TEMPOS, "tempo of the audio", "accuracy", found.at_tempo),
        ("Lag", LAGS * 1000, "audio delay (ms)", "canonical correlation", found.at_lag),
        ("Time of the cues", middles, "time of coincidence (s)", "accuracy", found.by_cue_time),
        (
            f"Time of the cues, audio of {REFERENCE} at another tempo",
            *(middles, "time of coincidence (s)", "accuracy"),
            found.by_cue_time_at_tempo,
        ),
    ):
        if not all(np.isnan(point.value) for curve in curves for point in curve.points):
            shown = [c for c in curves if c.arm in CLEAR or c.arm not in found.block.arms]
            drawn = [_drawn(curve, x) for curve in shown]
            yield CurvePlot(f"{title}; {_setting(found)}", x_label, y_label, drawn)


def _drawn(curve: CurveOf, x: np.ndarray) -> Curve:
    return Curve(curve.arm, x, *(np.array(part) for part in zip(*curve.points, strict=True)))


def _corpus(block: Block) -> Corpus:
    return open_corpus(block.config.data, block.config.streams)


def _views(study: Study, folder: Path, fusion: str) -> dict[str, list[ClipView]]:
    """Some test clips of the first block with the attention of its arms, for seed 0."""
    block = study.blocks[0]
    fold = block.folds[0]
    corpus = _corpus(block)
    split = make_split(corpus, block.config.data, SPLIT_SEED, fold)
    normaliser = fit_normaliser(corpus, split.train)
    number = {name: clip for clip, name in enumerate(corpus.names)}
    views = {}
    for arm in sorted(block.arms, key=lambda arm: arm not in CLEAR):
        measures = load_measures(folder / Cell(block.name, fusion, arm, 0, fold).folder)
        kept = np.flatnonzero(~np.isnan(measures["attention_audio"][:, 0]))
        rows = kept[np.linspace(0, len(kept) - 1, VIEWED).astype(int)]
        both = {name: measures[f"attention_{name}"][rows] for name in ("audio", "video")}
        attention = [  # without the padding
            {name: of[row][~np.isnan(of[row])] for name, of in both.items()}
            for row in range(len(rows))
        ]
        clips = [number[clip] for clip in measures["clip"][rows].tolist()]
        seen = measures["probabilities"][rows], attention
        views[arm] = view_clips(corpus, clips, normaliser, *seen)
    return views


def _mean(found: Comparison, key: str, arm: str) -> Interval:
    return next(row.mean for row in found.rows if (row.measure.key, row.arm) == (key, arm))


def _setting(found: Comparison) -> str:
    return f"{found.block.name}, fusion {found.fusion}"


def _size(found: Comparison) -> str:
    return f"{found.clips} test clips of {found.speakers} unseen speakers for each seed."


def _signed(difference: Difference) -> str:
    value, low, high, _ = difference
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
