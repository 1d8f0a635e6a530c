"""Repeat the evaluation of a run from its checkpoint, on its own clips or on others."""

from pathlib import Path

import numpy as np

from mmattn.config import OtherDataConfig
from mmattn.console import say
from mmattn.data.corpus import Corpus
from mmattn.errors import UserError
from mmattn.evaluate.metrics import scores
from mmattn.evaluate.predictions import Predictions, combine
from mmattn.evaluate.tables import say_groups, say_per_class, say_scores, say_ties
from mmattn.files import read_json
from mmattn.run.folder import PREDICTIONS, check_complete, corpus_of, parts_of, read_config
from mmattn.run.groups import scores_by_group
from mmattn.train.checkpoints import Kind
from mmattn.train.devices import start_devices
from mmattn.train.loop import restore
from mmattn.train.predict import to_predictions


def evaluate_run(
    run: Path, kind: Kind, device_count: int | str | None, other: OtherDataConfig
) -> None:
    """Say the scores of a run, or of each of its parts and of all together.

    Args:
        run: the run's folder.
        kind: which checkpoint.
        device_count: a number or "auto"; None for the run's own.
        other: where the clips are now.

    Raises:
        UserError: no run, no checkpoint, or clips that do not fit the network.
    """
    config = read_config(run)
    corpus = corpus_of(run, other)
    count = start_devices(device_count or config.devices, config.train.batch)
    _evaluate_folder(run, kind, config.seed, corpus, count)


def _evaluate_folder(
    folder: Path, kind: Kind, seed: int, corpus: Corpus, device_count: int
) -> Predictions:
    """Say the scores of a training, or of its parts and of all together; returns the test's."""
    parts = parts_of(folder)
    if parts:
        check_complete(folder)
        tested = [_evaluate_folder(part, kind, seed, corpus, device_count) for part in parts]
        together = combine(tested)
        title = f"{folder}, all parts together"
        say_scores(title, {"test": scores(together, seed)})
        say_groups(title, scores_by_group(corpus, together, seed))
        return together
    document = read_json(folder / "split.json")
    splits = _clips_to_evaluate(document, corpus)
    # The padded lengths of the training, where its clips are there: the same numbers to the bit.
    own = set(document["train"]["clips"]) & set(corpus.names)
    training = [number for number, name in enumerate(corpus.names) if name in own]
    clips = np.concatenate([np.array(training, int), *splits.values()])
    trainer, state = restore(folder, kind, corpus, clips, device_count)
    predictions = {
        name: to_predictions(corpus, clips, trainer.predict(state, clips))
        for name, clips in splits.items()
    }
    *_, last = predictions.values()
    counts = ", ".join(f"{len(clips)} {name}" for name, clips in splits.items())
    say_per_class(last, f"{folder}, each class")
    found = {name: scores(part, seed) for name, part in predictions.items()}
    title = f"{folder}, {kind} checkpoint; {counts} clips of {corpus.description}"
    say_scores(f"{title}; {document['description']}", found)
    say_ties(predictions)
    say_groups(f"{folder}, {list(found)[-1]}", scores_by_group(corpus, last, seed))
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
