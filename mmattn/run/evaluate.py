"""Tests of a run: repeated from its checkpoints, and compared to baselines and other runs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np

from mmattn.config import OtherDataConfig, Pooling
from mmattn.console import counted, progress, say
from mmattn.data.corpus import Corpus
from mmattn.data.splits import split_from_json
from mmattn.errors import UserError
from mmattn.evaluate.baseline import corpus_statistics, test_baselines
from mmattn.evaluate.metrics import group_scores, scores
from mmattn.evaluate.predictions import (
    Predictions,
    combine,
    read_predictions,
    write_predictions,
)
from mmattn.evaluate.tables import (
    paired_table,
    say_groups,
    say_per_class,
    say_scores,
    say_ties,
    say_wide,
)
from mmattn.files import check_folder, write_json
from mmattn.run.fit import fit
from mmattn.run.folder import (
    PREDICTIONS,
    check_complete,
    corpus_of,
    make_folder,
    read_config,
)
from mmattn.run.run import Run, load_run
from mmattn.train.checkpoints import Chosen
from mmattn.train.devices import start_devices

BASELINES = "baselines"  # folder of their test predictions below the run's


def evaluate_run(
    folder: Path, kind: Chosen, device_count: int | str | None, other: OtherDataConfig
) -> None:
    """Print the scores of a run, or of each of its parts and of all together.

    Args:
        folder: the run's.
        kind: which checkpoint.
        device_count: a number or "auto"; None for the run's own.
        other: where the clips are now.

    Raises:
        UserError: no run, no checkpoint, or clips that do not fit the network.
    """
    config, corpus = read_config(folder), corpus_of(folder, other)
    device_count = config.devices if device_count is None else device_count
    count = start_devices(device_count, config.train.batch)
    _test(load_run(folder, kind, calibrated=False), corpus, count)


def baseline_of_run(folder: Path, other: OtherDataConfig, networks: bool = False) -> None:
    """Train and test baselines on a run's splits, and print them with the run, paired.

    They are linear models on functionals over time of the run's modalities. With folds, one is
    trained for each fold and the test predictions are pooled. The scores are written to
    baseline.json, the predictions to baselines/.

    Args:
        folder: the run's.
        other: where the clips are now.
        networks: also train the run's network without its LSTM, with attention and with the mean
            over time.

    Raises:
        UserError: no run, or its clips are missing.
    """
    config = read_config(folder)
    check_folder(folder)
    corpus = corpus_of(folder, other, config.augment.variants if networks else ())
    if networks:  # before JAX starts
        start_devices(config.devices, config.train.batch)
    run = load_run(folder, calibrated=False)
    statistics = {name: corpus_statistics(corpus, (name,)) for name in config.model.modalities}

    def linear(part: Run) -> dict[str, Predictions]:
        advance(1)
        return test_baselines(corpus, statistics, split_from_json(part.split, corpus))

    with progress("linear baselines", len(run.networks), "splits") as advance:
        found = _by_part(run, linear)
    if networks:
        for part, own in _by_part(run, partial(_without_lstm, corpus)).items():
            found[part] |= own
    together = {}
    if (folder / PREDICTIONS["test"]).exists():
        together[run.name] = read_predictions(folder / PREDICTIONS["test"])
    else:
        why = "it has no test predictions (yet; mmattn.fit makes none)"
        say(f"{run.name} is not in the table: {why}")
    together |= found[run]
    tested = len(next(iter(found[run].values())).clips)
    title = f"Test: {counted(tested, 'clip')}; corpus: {corpus.description}"
    title += f"; {run.split['description']}" if run.split["leaking"] else ""
    _say_paired(title, [*together.items()], config.seed)
    make_folder(folder / BASELINES)
    for name, predictions in found[run].items():
        write_predictions(folder / BASELINES / f"{name}.csv", predictions)
    test = {
        "together" if part is run else part.saved_in.name: {
            name: scores(predictions, config.seed) for name, predictions in found[part].items()
        }
        for part in (*run.parts, run)
    }
    write_json(folder / "baseline.json", {"leaking": run.split["leaking"], "test": test})


def compare_runs(folders: Sequence[Path]) -> None:
    """Print the test scores of runs and of the first one's baselines, with paired differences.

    Raises:
        UserError: no run, or test clips that differ from the first run's.
    """
    if not folders:
        raise UserError("RUN...: expected one run or more")
    for folder in folders:
        check_complete(folder)
    paths = [(str(folder), folder / PREDICTIONS["test"]) for folder in folders]
    paths += sorted((path.stem, path) for path in (folders[0] / BASELINES).glob("*.csv"))
    found = [(name, read_predictions(path)) for name, path in paths]
    _say_paired(f"Test, {folders[0]} and others", found, read_config(folders[0]).seed)


def _say_paired(title: str, found: list[tuple[str, Predictions]], seed: int) -> None:
    table = paired_table(found, seed)
    say_wide(title, table)
    say(table.note)


def _by_part(
    run: Run, test: Callable[[Run], dict[str, Predictions]]
) -> dict[Run, dict[str, Predictions]]:
    """Predictions by model name, for each training of a run and for its parts together."""
    if not run.parts:
        return {run: test(run)}
    found: dict[Run, dict[str, Predictions]] = {}
    for part in run.parts:
        found |= _by_part(part, test)
    names = found[run.parts[0]]
    found[run] = {name: combine([found[part][name] for part in run.parts]) for name in names}
    return found


def _without_lstm(corpus: Corpus, part: Run) -> dict[str, Predictions]:
    """Train a run's network without LSTM on its split, with each pooling; test predictions."""
    split, found = split_from_json(part.split, corpus), {}
    for pooling in get_args(Pooling):
        say(f"{part.name}: {pooling} pooling without LSTM")
        model = replace(part.config.model, encoder="none", pooling=pooling)
        trained = fit(corpus, split, replace(part.config, model=model))
        if not trained.complete:
            raise KeyboardInterrupt
        every, devices = np.concatenate([*split.clips.values()]), int(trained.config.devices)
        predictor = trained.predictor(corpus, every, devices)
        found[f"{pooling}-pooling"] = predictor.predictions(split.test)
    return found


def _test(run: Run, corpus: Corpus, device_count: int) -> Predictions:
    """Print the scores of a training, or of a run's parts and then of all together."""
    if not run.parts:
        return _test_network(run, corpus, device_count)
    predictions = combine([_test(part, corpus, device_count) for part in run.parts])
    title = f"{run.folder}, all parts together"
    say_scores(title, {"test": scores(predictions, run.config.seed)})
    say_groups(title, group_scores(predictions, predictions.cells(corpus.groups), run.config.seed))
    return predictions


def _test_network(run: Run, corpus: Corpus, device_count: int) -> Predictions:
    """Print the scores of a training; returns the test predictions."""
    splits, seed = _clips_to_evaluate(run.split, corpus), run.config.seed
    # Use the training's padded lengths if its clips are present: bit-identical results.
    own = set(run.split["train"]["clips"]) & set(corpus.names)
    training = [number for number, name in enumerate(corpus.names) if name in own]
    clips = np.concatenate([np.array(training, int), *splits.values()])
    predictor = run.predictor(corpus, clips, device_count)
    predictions = {name: predictor.predictions(clips) for name, clips in splits.items()}
    *_, last = predictions.values()
    counts = ", ".join(f"{len(clips)} {name}" for name, clips in splits.items())
    say_per_class(last, f"{run.folder}, each class")
    title = f"{run.folder}, {run.checkpoint} checkpoint, before calibration; "
    title += f"{counts} clips of {corpus.description}"
    found = {name: scores(part, seed) for name, part in predictions.items()}
    say_scores(f"{title}; {run.split['description']}", found)
    say_ties(predictions)
    groups = group_scores(last, last.cells(corpus.groups), seed)
    say_groups(f"{run.folder}, {list(found)[-1]}", groups)
    return last


def _clips_to_evaluate(document: dict, corpus: Corpus) -> dict[str, np.ndarray]:
    """The run's own splits if the corpus has them, else the clips of unseen speakers."""
    index = {name: number for number, name in enumerate(corpus.names)}
    splits = {name: document[name]["clips"] for name in PREDICTIONS}
    if all(clip in index for clips in splits.values() for clip in clips):
        return {name: np.array([index[c] for c in clips]) for name, clips in splits.items()}
    used = document["train"], document["validation"]
    speakers, clips = ([one for part in used for one in part[of]] for of in ("speakers", "clips"))
    # By name too: a corpus in another folder may name its speakers differently.
    unseen = np.flatnonzero(~np.isin(corpus.speakers, speakers) & ~np.isin(corpus.names, clips))
    if not len(unseen):
        raise UserError(
            f"{corpus.description}: some of the run's validation or test clips are missing, and "
            "every speaker or clip name was in its training or validation; expected all of these "
            "clips, or unseen speakers"
        )
    say(f"{len(unseen)} of {len(corpus)} clips are of unseen speakers")
    return {"unseen": unseen}
