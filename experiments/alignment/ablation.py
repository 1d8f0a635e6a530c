"""Trains the models of an ablation on each fold with each seed, and compares them to the first."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.alignment.plan import part_name
from experiments.alignment.runner import kept_corpus, run_tasks, train_part
from experiments.alignment.statistics import mean_with_interval, paired_difference
from mmattn.config import ExperimentConfig
from mmattn.console import say
from mmattn.data.corpus import open_corpus
from mmattn.data.splits import chosen_folds, make_split
from mmattn.evaluate.baseline import corpus_statistics, test_baselines
from mmattn.evaluate.metrics import scores_by_speaker
from mmattn.evaluate.plots import BLUE, DPI, ORANGE
from mmattn.evaluate.predictions import join, read_predictions, write_predictions
from mmattn.evaluate.tables import Interval, Table, markdown, say_wide
from mmattn.files import write_text

LINEAR = ("linear", "linear-late")  # baselines on all modalities; for one modality only the first
DONE = "done"  # file in a folder that has all its predictions

Grid = dict[str, dict[str, ExperimentConfig]]  # by features, by model


class Row(NamedTuple):
    """A model: its UAR, and the first model's lead, over speakers and seeds."""

    features: str
    model: str
    uar: Interval
    behind: Interval | None


def run_ablation(grid: Grid, folder: Path, seeds: int, workers: int) -> None:
    """Train what is not done yet, then compare.

    Args:
        grid: configs that differ in model and augmentation; the first is the reference.
        folder: of the ablation, new or to resume.
        seeds: of each model.
        workers: trainings in parallel, each on its own core.

    Raises:
        UserError: bad input; see also `run_tasks`.
    """
    tasks, folds = [], []
    for features, models in grid.items():
        first = next(iter(models.values()))
        folds = chosen_folds(open_corpus(first.data, first.streams), first.data)
        works = {"linear": (_test_linear, first)}
        works |= {name: (_train_and_test, config) for name, config in models.items()}
        for seed, fold in product(range(seeds), folds):
            tasks += [
                (
                    work,
                    folder / features / name / part_name(seed, fold),
                    replace(config, seed=seed),
                    fold,
                )
                for name, (work, config) in works.items()
            ]
    about = {
        "seeds": seeds,
        "models": {
            features: {name: config.to_json() for name, config in models.items()}
            for features, models in grid.items()
        },
    }
    say(f"ablation {folder}: {len(tasks)} trainings, {workers} in parallel")
    run_tasks(folder, about, tasks, DONE, workers)
    _write_results(list(_rows(grid, folder, seeds, folds)), folder, seeds)


def _train_and_test(folder: Path, config: ExperimentConfig, fold: int | None) -> None:
    """Train one network and keep only its test predictions."""
    _, predictor, split = train_part(folder, config, fold, config.seed)
    write_predictions(folder / f"{folder.parent.name}.csv", predictor.predictions(split.test))
    shutil.rmtree(folder / "checkpoints")
    write_text(folder / DONE, "")


def _test_linear(folder: Path, config: ExperimentConfig, fold: int | None) -> None:
    """The linear models on the same test clips."""
    corpus = kept_corpus(config.data, config.streams)
    split = make_split(corpus, config.data, config.seed, fold)
    statistics = {name: corpus_statistics(corpus, (name,)) for name in config.model.modalities}
    for name, found in test_baselines(corpus, statistics, split).items():
        write_predictions(folder / f"{name}.csv", found)
    write_text(folder / DONE, "")


def _rows(grid: Grid, folder: Path, seeds: int, folds: list[int | None]) -> Iterator[Row]:
    first = None
    for features, models in grid.items():
        several = len(next(iter(models.values())).model.modalities) > 1
        places = dict.fromkeys(models) | dict.fromkeys(LINEAR if several else LINEAR[:1], "linear")
        for name, place in places.items():
            uar = np.stack(
                [
                    _by_speaker(folder / features / (place or name), name, seed, folds)
                    for seed in range(seeds)
                ]
            )
            behind = None if first is None else Interval(*paired_difference(first, uar)[:3])
            first = uar if first is None else first
            yield Row(features, name, Interval(*mean_with_interval(uar)), behind)


def _by_speaker(folder: Path, name: str, seed: int, folds: list[int | None]) -> np.ndarray:
    """UAR of each test speaker [P], for a model with one seed."""
    tests = [read_predictions(folder / part_name(seed, fold) / f"{name}.csv") for fold in folds]
    return scores_by_speaker(join(tests))["uar"]


def _write_results(rows: list[Row], folder: Path, seeds: int) -> None:
    """results.md, results.png and the table on the screen."""
    note = (
        f"UAR over the speakers of all test folds, mean of {seeds} seeds, one network per fold; in "
        "brackets: 95 % interval over speakers and seeds. Ahead: the first row minus this row, "
        "paired."
    )
    columns = ("features", "model", "UAR", "first row ahead")
    table = Table("Ablation", columns, rows, note)
    write_text(folder / "results.md", "\n".join((*markdown(table), "")))
    _plot(rows, folder / "results.png")
    several = len({row.features for row in rows}) > 1
    shown = [(f"{row.model}; {row.features}" if several else row.model, *row[2:]) for row in rows]
    say_wide("Ablation", Table("", ("", *columns[2:]), shown))
    say(f"{note}\nresults in {folder}: results.md, results.png")


def _plot(rows: list[Row], path: Path) -> None:
    """UAR of each model with its interval, a panel for each kind of features."""
    features = list(dict.fromkeys(row.features for row in rows))
    figure = Figure(figsize=(1.5 + 3.2 * len(features), 4.2))
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, len(features), sharex=True, squeeze=False)[0]
    for axes, name in zip(panels, features, strict=True):
        own = [row for row in rows if row.features == name]
        for place, row in enumerate(own):
            colour = ORANGE if row.model in LINEAR else BLUE
            axes.hlines(place, row.uar.low, row.uar.high, color=colour, linewidth=2)
            axes.plot(row.uar.value, place, "o", color=colour, markersize=5)
        axes.set_yticks(range(len(own)), [row.model for row in own])
        axes.axvline(rows[0].uar.value, color="black", linewidth=0.8)
        axes.set(title=name, xlabel="UAR, 95 % interval")
        axes.grid(axis="x", alpha=0.3)
        axes.invert_yaxis()
    figure.savefig(path, dpi=DPI)
