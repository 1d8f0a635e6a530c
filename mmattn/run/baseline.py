"""The linear baseline on the very clips and splits of a run."""

from pathlib import Path

import numpy as np

from mmattn.data.clips import valid_frames
from mmattn.data.corpus import Corpus, open_corpus
from mmattn.data.splits import Split, split_from_json
from mmattn.evaluate.baseline import linear_baseline, time_statistics
from mmattn.evaluate.metrics import scores
from mmattn.evaluate.predictions import Predictions, join
from mmattn.evaluate.report import say_scores
from mmattn.files import read_json, write_json
from mmattn.run.folder import read_config


def baseline_of_run(run: Path) -> None:
    """Train and test on time statistics; say the scores and write them to baseline.json.

    The modalities are those of the run. With folds, each is trained by itself and the test
    predictions are pooled.
    """
    config = read_config(run)
    corpus = open_corpus(config.data)
    statistics = np.stack(
        [
            time_statistics(
                corpus.audio.clip(clip),
                corpus.video.clip(clip),
                valid_frames(corpus.video.clip(clip)),
                config.model.modalities,
            )
            for clip in range(len(corpus))
        ]
    )
    parts = [run] if (run / "split.json").exists() else sorted(run.glob("fold*"))
    splits = [split_from_json(read_json(part / "split.json"), corpus) for part in parts]
    tested = [_test(corpus, statistics, split) for split in splits]
    found = {part.name: scores(one, config.seed) for part, one in zip(parts, tested, strict=True)}
    if len(parts) > 1:
        found["pooled"] = scores(join(tested))
    title = f"Linear baseline on time statistics, test; {corpus.description}"
    say_scores(title, found)
    write_json(run / "baseline.json", found)


def _test(corpus: Corpus, statistics: np.ndarray, split: Split) -> Predictions:
    train, validation, test = split.train, split.validation, split.test
    probabilities = linear_baseline(
        statistics[train],
        corpus.labels[train],
        statistics[validation],
        corpus.labels[validation],
        statistics[test],
        len(corpus.class_names),
    )
    names = tuple(corpus.names[clip] for clip in test)
    return Predictions(
        names, corpus.speakers[test], corpus.labels[test], probabilities, corpus.class_names
    )
