"""Runs the trainings of a study over all cores; finished ones are kept."""

import io
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import lru_cache
from itertools import cycle
from pathlib import Path

import numpy as np

from experiments.alignment.measure import Measures, measure
from experiments.alignment.plan import SPLIT_SEED, Study
from mmattn.config import DataConfig, ExperimentConfig
from mmattn.console import be_quiet, log_to, progress, say
from mmattn.data.corpus import Corpus, open_corpus
from mmattn.data.splits import Split, make_split
from mmattn.errors import UserError
from mmattn.evaluate.baseline import corpus_statistics, test_baseline
from mmattn.files import explain_full_disk, read_json, write_bytes, write_json
from mmattn.machine import own_cores, pin
from mmattn.run.fit import train_run
from mmattn.run.folder import check_empty, locked
from mmattn.run.run import Run
from mmattn.train.callbacks import Console
from mmattn.train.devices import start_devices
from mmattn.train.history import best_epoch
from mmattn.train.inference import Predictor

MEASURES = "measures.npz"


def run_cells(study: Study, folder: Path, workers: int) -> None:
    """Train and measure every cell, and the linear baseline of every fold, that is not done.

    Args:
        study: the plan; a folder that holds another study is rejected.
        folder: of the study.
        workers: processes, each on its own core.

    Raises:
        UserError: another study, a killed process, diverged training, a full disk.
    """
    run_tasks(folder, study.to_json(), _tasks(study, folder), MEASURES, workers)


def run_tasks(
    folder: Path, about: dict, tasks: Sequence["Task"], result: str, workers: int
) -> None:
    """Do each task of a study whose folder has no file `result` yet.

    Args:
        folder: of the study.
        about: all that decides its results, as plain values; another study's folder is rejected.
        tasks: a function, and its folder, config and fold.
        result: name of the file that a function writes last.
        workers: processes, each on its own core.

    Raises:
        UserError: see `run_cells`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder), explain_full_disk(f"the study {folder}"):
        _check_same(folder, about)
        if left := [task for task in tasks if not (task[1] / result).exists()]:
            _run(left, workers)


def load_measures(path: Path) -> Measures:
    """The measures of a cell or a baseline."""
    with np.load(path / MEASURES, allow_pickle=False) as archive:
        return dict(archive)


def baseline_folder(block: str, fold: int | None) -> str:
    """The path of a block's baseline below the study's folder."""
    return f"{block}/baseline" + ("" if fold is None else f"/fold{fold}")


def train_part(
    folder: Path, config: ExperimentConfig, fold: int | None, split_seed: int
) -> tuple[Run, Predictor, Split]:
    """A network, trained on one core, ready to predict the clips of its split."""
    with log_to(folder / "train.log"):
        corpus = kept_corpus(config.data, config.streams, tuple(config.augment.variants))
        split = make_split(corpus, config.data, split_seed, fold)
        run = Run(replace(config, devices=1), folder)
        train_run(run, corpus, split, [Console(say)])
    return run, run.predictor(corpus, np.concatenate([*split.clips.values()])), split


def train_and_measure(folder: Path, config: ExperimentConfig, fold: int | None) -> None:
    """Train one cell, measure the best checkpoint on the test clips, keep only the measures."""
    begin = time.perf_counter()
    run, predictor, split = train_part(folder, config, fold, SPLIT_SEED)
    measures = measure(predictor, split, config.seed)
    best = run.history[best_epoch(run.history, config.train.monitor) - 1]
    measures["seconds"] = np.array(time.perf_counter() - begin)
    measures["validation_uar"] = np.array(best["validation_uar"])
    _write(folder, measures)
    shutil.rmtree(folder / "checkpoints")


def test_linear_baseline(folder: Path, config: ExperimentConfig, fold: int | None) -> None:
    """The linear baseline on the same test clips."""
    corpus = kept_corpus(config.data, config.streams)
    split = make_split(corpus, config.data, SPLIT_SEED, fold)
    statistics = corpus_statistics(corpus, config.model.modalities)
    found = test_baseline(corpus, statistics, split)
    _write(
        folder,
        {
            "clip": np.array(found.clips),
            "speaker": found.speakers,
            "label": found.labels,
            "probabilities": found.probabilities,
        },
    )


Task = tuple[Callable, Path, ExperimentConfig, int | None]


def _tasks(study: Study, folder: Path) -> list[Task]:
    baselines = [
        (test_linear_baseline, folder / baseline_folder(block.name, fold), block.config, fold)
        for block in study.blocks
        for fold in block.folds
    ]
    cells = [
        (train_and_measure, folder / cell.folder, study.config(cell), cell.fold)
        for cell in study.cells()
    ]
    return baselines + cells


def _check_same(folder: Path, about: dict) -> None:
    path = folder / "study.json"
    if not path.exists():
        check_empty(folder)
        write_json(path, about)
    elif read_json(path) != about:
        raise UserError(f"{folder} holds another study; choose another --out, or its options")
    else:
        say(f"resuming the study in {folder}")


def _run(tasks: list[Task], workers: int) -> None:
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for core, _ in zip(cycle(own_cores()), range(workers), strict=False):
        cores.put(core)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (cores,))
    try:
        futures = {pool.submit(_do, *task): task[1] for task in tasks}
        with progress("study", len(futures), "models") as advance:
            for future in as_completed(futures):
                try:
                    future.result()
                except UserError as error:
                    raise type(error)(f"{futures[future]}: {error}") from error
                advance(1)
    except BrokenProcessPool as error:
        raise UserError(
            "a process of the study was killed (out of memory?); the same command with --out, "
            "the study's folder, resumes; --workers 1 needs the least memory"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(cores: multiprocessing.Queue) -> None:
    """Pin this process to a core, so that threads of several trainings do not compete.

    It ends with the study, however that ends: another may use the folder next.
    """
    study = multiprocessing.parent_process()
    threading.Thread(target=lambda: (study.join(), os._exit(1)), daemon=True).start()
    pin([cores.get()])
    be_quiet()
    start_devices(1, batch=1)


def _do(work: Callable, folder: Path, config: ExperimentConfig, fold: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed process
    folder.mkdir(parents=True)
    work(folder, config, fold)


@lru_cache(4)
def kept_corpus(
    data: DataConfig, streams: tuple[str, ...], variants: tuple[str, ...] = ()
) -> Corpus:
    """The clips, kept open for the next task of this process."""
    return open_corpus(data, streams, variants=variants)


def _write(folder: Path, measures: Measures) -> None:
    file = io.BytesIO()
    np.savez_compressed(file, **measures)
    write_bytes(folder / MEASURES, file.getvalue())
