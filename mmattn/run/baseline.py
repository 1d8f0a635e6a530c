"""The linear baseline on the very clips and splits of a run."""

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from mmattn.config import OtherDataConfig
from mmattn.console import progress
from mmattn.data.corpus import Corpus
from mmattn.data.splits import Split, split_from_json
from mmattn.evaluate.baseline import functionals, linear_baseline
from mmattn.evaluate.metrics import scores
from mmattn.evaluate.predictions import Predictions, combine
from mmattn.evaluate.tables import Interval, Table, say_wide, titles
from mmattn.files import read_json, write_json
from mmattn.run.folder import check_complete, corpus_of, parts_of, read_config


def baseline_of_run(run: Path, other: OtherDataConfig) -> None:
    """Train and test on functionals over time; print the scores and write them to baseline.json.

    The modalities are those of the run. With folds, each is trained by itself and the test
    predictions are pooled.
    """
    config = read_config(run)
    corpus = corpus_of(run, other)
    statistics = corpus_statistics(corpus, config.model.modalities)
    found: dict[str, dict] = {}
    splits = list(run.rglob("split.json"))
    with progress("linear baseline", len(splits), "splits") as advance:
        _test_folder(run, run, corpus, statistics, config.seed, found, advance)
    shown = titles(*found.values())
    rows = [
        (name, *(Interval(**score[metric]) for metric in shown))
        for name, score in found.items()
        if "member" not in name
    ]
    split = read_json(splits[0])
    title = f"Linear baseline on functionals over time, test; {corpus.description}"
    title += f"; {split['description']}" if split["leaking"] else ""
    say_wide(title, Table("", ("", *shown.values()), rows))
    write_json(run / "baseline.json", {"leaking": split["leaking"], "test": found})


def corpus_statistics(corpus: Corpus, modalities: Collection[str]) -> np.ndarray:
    """Functionals over time of all clips [N, D], of one modality after the other."""
    return np.stack(
        [
            np.concatenate(
                [functionals(corpus.streams[name].clip(clip)) for name in sorted(modalities)]
            )
            for clip in range(len(corpus))
        ]
    )


def _test_folder(
    run: Path,
    folder: Path,
    corpus: Corpus,
    statistics: np.ndarray,
    seed: int,
    found: dict[str, dict],
    advance: Callable[[int], None],
) -> Predictions:
    """Test a split, or the parts of a folder and all together; scores are added to `found`."""
    parts = parts_of(folder)
    if parts:
        check_complete(folder)
        tested = [
            _test_folder(run, part, corpus, statistics, seed, found, advance) for part in parts
        ]
        together = combine(tested)
    else:
        split = split_from_json(read_json(folder / "split.json"), corpus)
        together = test_baseline(corpus, statistics, split)
        advance(1)
    name = str(folder.relative_to(run)) if folder != run else "together"
    found[name] = scores(together, seed)
    return together


def test_baseline(corpus: Corpus, statistics: np.ndarray, split: Split) -> Predictions:
    """Predictions of the split's test clips from statistics [N, D] of all clips."""
    train, validation = (
        clips[corpus.labels[clips] >= 0] for clips in (split.train, split.validation)
    )
    test = split.test
    probabilities = linear_baseline(
        statistics[train],
        corpus.labels[train],
        statistics[validation],
        corpus.labels[validation],
        statistics[test],
        len(corpus.class_names),
    )
    names = tuple(corpus.names[clip] for clip in test)
    targets = None if corpus.targets is None else corpus.targets[test]
    speakers, labels = corpus.speakers[test], corpus.labels[test]
    return Predictions(names, speakers, labels, probabilities, corpus.class_names, targets)
