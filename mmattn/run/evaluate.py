"""The tests of a run, repeated: from its checkpoints, or by the linear baseline in its place."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from mmattn.config import OtherDataConfig
from mmattn.console import progress, say
from mmattn.data.corpus import Corpus
from mmattn.data.splits import split_from_json
from mmattn.errors import UserError
from mmattn.evaluate.baseline import corpus_statistics, test_baseline
from mmattn.evaluate.metrics import group_scores, scores
from mmattn.evaluate.predictions import Predictions, combine
from mmattn.evaluate.tables import (
    Interval,
    Table,
    say_groups,
    say_per_class,
    say_scores,
    say_ties,
    say_wide,
    titles,
)
from mmattn.files import write_json
from mmattn.run.folder import PREDICTIONS, corpus_of, read_config
from mmattn.run.run import Run, load_run
from mmattn.train.checkpoints import Kind
from mmattn.train.devices import start_devices


def evaluate_run(
    folder: Path, kind: Kind, device_count: int | str | None, other: OtherDataConfig
) -> None:
    """Say the scores of a run, or of each of its parts and of all together.

    Args:
        folder: the run's.
        kind: which checkpoint.
        device_count: a number or "auto"; None for the run's own.
        other: where the clips are now.

    Raises:
        UserError: no run, no checkpoint, or clips that do not fit the network.
    """
    config, corpus = read_config(folder), corpus_of(folder, other)
    count = start_devices(device_count or config.devices, config.train.batch)
    run = load_run(folder, kind, calibrated=False)
    _test(run, corpus, partial(_test_network, device_count=count), _say_together)


def baseline_of_run(folder: Path, other: OtherDataConfig) -> None:
    """Train and test on functionals over time; print the scores and write them to baseline.json.

    The modalities are those of the run. With folds, each is trained by itself and the test
    predictions are pooled.
    """
    run = load_run(folder)
    corpus = corpus_of(folder, other)
    statistics = corpus_statistics(corpus, run.config.model.modalities)
    found: dict[str, dict] = {}

    def keep(part: Run, predictions: Predictions, _: Corpus) -> None:
        name = str(part.folder.relative_to(folder)) if part is not run else "together"
        found[name] = scores(predictions, run.config.seed)

    def test(part: Run, _: Corpus) -> Predictions:
        predictions = test_baseline(corpus, statistics, split_from_json(part.split, corpus))
        keep(part, predictions, corpus)
        advance(1)
        return predictions

    with progress("linear baseline", len(run.networks), "splits") as advance:
        _test(run, corpus, test, keep)
    shown = titles(*found.values())
    rows = [
        (name, *(Interval(**score[metric]) for metric in shown))
        for name, score in found.items()
        if "member" not in name
    ]
    title = f"Linear baseline on functionals over time, test; {corpus.description}"
    title += f"; {run.split['description']}" if run.split["leaking"] else ""
    say_wide(title, Table("", ("", *shown.values()), rows))
    write_json(folder / "baseline.json", {"leaking": run.split["leaking"], "test": found})


def _test(
    run: Run,
    corpus: Corpus,
    test: Callable[[Run, Corpus], Predictions],
    together: Callable[[Run, Predictions, Corpus], None],
) -> Predictions:
    """Test a training, or the parts of a run and then all `together`."""
    if not run.parts:
        return test(run, corpus)
    predictions = combine([_test(part, corpus, test, together) for part in run.parts])
    together(run, predictions, corpus)
    return predictions


def _say_together(run: Run, predictions: Predictions, corpus: Corpus) -> None:
    title = f"{run.folder}, all parts together"
    say_scores(title, {"test": scores(predictions, run.config.seed)})
    say_groups(title, group_scores(predictions, predictions.cells(corpus.groups), run.config.seed))


def _test_network(run: Run, corpus: Corpus, device_count: int) -> Predictions:
    """Say the scores of a training; returns the test's predictions."""
    splits, seed = _clips_to_evaluate(run.split, corpus), run.config.seed
    # The padded lengths of the training, where its clips are there: the same numbers to the bit.
    own = set(run.split["train"]["clips"]) & set(corpus.names)
    training = [number for number, name in enumerate(corpus.names) if name in own]
    clips = np.concatenate([np.array(training, int), *splits.values()])
    predictor = run.predictor(corpus, clips, device_count)
    predictions = {name: predictor.predictions(clips) for name, clips in splits.items()}
    *_, last = predictions.values()
    counts = ", ".join(f"{len(clips)} {name}" for name, clips in splits.items())
    say_per_class(last, f"{run.folder}, each class")
    title = f"{run.folder}, {run.checkpoint} checkpoint, not calibrated; "
    title += f"{counts} clips of {corpus.description}"
    found = {name: scores(part, seed) for name, part in predictions.items()}
    say_scores(f"{title}; {run.split['description']}", found)
    say_ties(predictions)
    groups = group_scores(last, last.cells(corpus.groups), seed)
    say_groups(f"{run.folder}, {list(found)[-1]}", groups)
    return last


def _clips_to_evaluate(document: dict, corpus: Corpus) -> dict[str, np.ndarray]:
    """The run's own splits where the corpus has them, else the clips of speakers it never saw."""
    index = {name: number for number, name in enumerate(corpus.names)}
    splits = {name: document[name]["clips"] for name in PREDICTIONS}
    if all(clip in index for clips in splits.values() for clip in clips):
        return {name: np.array([index[c] for c in clips]) for name, clips in splits.items()}
    used = document["train"], document["validation"]
    speakers, clips = ([one for part in used for one in part[of]] for of in ("speakers", "clips"))
    # By name too: a corpus in another folder may call its speakers otherwise.
    unseen = np.flatnonzero(~np.isin(corpus.speakers, speakers) & ~np.isin(corpus.names, clips))
    if not len(unseen):
        raise UserError(
            f"{corpus.description}: the run's validation and test clips are not all there, and "
            "every speaker, or clip by name, was in its training or validation; expected speakers "
            "it never saw"
        )
    say(f"{len(unseen)} of {len(corpus)} clips are of speakers that the run never saw")
    return {"unseen": unseen}
