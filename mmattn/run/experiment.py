"""Train and evaluate: from a config to a run's folder with all its results."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from mmattn.config import ExperimentConfig
from mmattn.console import log_to, say, say_table
from mmattn.data.clips import valid_frames
from mmattn.data.corpus import Corpus, open_corpus
from mmattn.data.splits import Split, chosen_folds, make_split, split_from_json, split_to_json
from mmattn.errors import Stopped
from mmattn.evaluate.metrics import confusion, per_class, scores
from mmattn.evaluate.predictions import (
    Predictions,
    combine,
    join,
    read_predictions,
    write_predictions,
)
from mmattn.evaluate.report import MEASURES, interval_text, say_per_class, say_scores
from mmattn.files import explain_full_disk, read_json, write_json
from mmattn.run.folder import (
    check_new,
    config_to_resume,
    environment,
    locked,
    write_config,
    write_environment,
)
from mmattn.train.checkpoints import Checkpoints
from mmattn.train.devices import start_jax
from mmattn.train.loop import best_epoch, fit, make_trainer, sigterm_asks
from mmattn.train.predict import ClipPredictions

if TYPE_CHECKING:
    from mmattn.evaluate.plots import AttentionExample

SIDES = {"validation": "predictions_validation.csv", "test": "predictions.csv"}


def run_experiment(config: ExperimentConfig, default: ExperimentConfig) -> None:
    """Train and evaluate, once or for each fold.

    Args:
        config: of the run; `out` and `resume` say where.
        default: the experiment's own config, against which a resumed run's options are read.

    Raises:
        UserError: bad input or options, an existing folder, a full disk.
    """
    config.check()
    roots = tuple(root.expanduser().resolve() for root in config.data.roots)
    config = replace(config, data=replace(config.data, roots=roots))
    folder = config.out or Path("runs") / config.name / time.strftime("%Y%m%d-%H%M%S")
    if config.resume:
        config = config_to_resume(folder, config, default)
    else:
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if not config.resume:
            check_new(folder)
        with explain_full_disk(f"the run {folder}"), log_to(folder / "train.log"):
            say(f"run {folder}")
            try:
                with sigterm_asks() as asked:
                    _run_parts(config, folder, asked)
            except Stopped as stop:
                raise Stopped(f"{stop}; `--resume --out {folder}` goes on") from None


def _run_parts(config: ExperimentConfig, folder: Path, asked: threading.Event) -> None:
    """Train and evaluate each part and put them together, until `asked` to stop."""
    corpus = open_corpus(config.data)
    groups = plan_parts(config, corpus, folder)
    config = replace(config, devices=start_jax(config.devices, config.train.batch))
    write_config(folder, config)
    write_environment(folder, jax.devices()[0].device_kind)
    for fold_folder, parts in groups.items():
        for part in parts:
            if asked.is_set():
                raise Stopped(f"SIGTERM before {part.folder}")
            part.folder.mkdir(parents=True, exist_ok=True)
            of_part = replace(part.config, devices=config.devices)
            if part.folder != folder:
                write_config(part.folder, of_part)
            train_and_evaluate(of_part, corpus, part.split, part.folder, asked)
        if config.members > 1:
            pool_members(fold_folder, [part.folder for part in parts], corpus, config.seed)
    if list(groups) != [folder]:
        pool_folds(folder, list(groups), corpus, config.seed)


class Part(NamedTuple):
    """One training: of a fold, or of a member of its committee."""

    folder: Path
    split: Split
    config: ExperimentConfig


def plan_parts(config: ExperimentConfig, corpus: Corpus, folder: Path) -> dict[Path, list[Part]]:
    """All trainings of a run, by the folder of their fold; the splits are checked.

    The members of a committee differ in their validation speakers and in their seed.
    """
    groups = {}
    for fold in chosen_folds(corpus, config.data):
        data = config.data if fold is None else replace(config.data, fold=fold)
        fold_folder = folder if data == config.data else folder / f"fold{fold}"
        groups[fold_folder] = [
            Part(
                fold_folder / f"member{member}" if config.members > 1 else fold_folder,
                make_split(corpus, data, config.seed, fold, member, config.members),
                replace(config, data=data, seed=_member_seed(config, member), members=1),
            )
            for member in range(config.members)
        ]
    return groups


def _member_seed(config: ExperimentConfig, member: int) -> int:
    """The run's seed, or one of the member's own, unlike those of other seeds' members."""
    if config.members == 1:
        return config.seed
    return int(np.random.SeedSequence([config.seed, member]).generate_state(1)[0])


def train_and_evaluate(
    config: ExperimentConfig, corpus: Corpus, split: Split, folder: Path, asked: threading.Event
) -> None:
    """Train on a split, then evaluate the best checkpoint on validation and test, once.

    A split that the folder has already is gone on with; a run that is complete stays as it is.
    """
    if (folder / "summary.json").exists():
        say(f"{folder} is complete")
        return
    if (folder / "split.json").exists():
        split = split_from_json(read_json(folder / "split.json"), corpus)
    write_json(folder / "split.json", split_to_json(split, corpus))
    _say_data(corpus, split)
    trainer = make_trainer(config, corpus, split, config.devices)
    history = fit(trainer, split, folder, config.resume, asked)
    state, _ = trainer.load(Checkpoints(folder), "best")
    found = {side: trainer.predict(state, getattr(split, side)) for side in SIDES}
    predictions = {
        side: to_predictions(corpus, getattr(split, side), found[side]) for side in SIDES
    }
    note = split.description if split.leaking else None
    # Not with the others: the start would wait half a second for matplotlib.
    from mmattn.evaluate.plots import plot_attention, plot_curves

    plot_curves(history, folder / "curves.png", note)
    examples = _attention_examples(corpus, split.test, found["test"])
    plot_attention(examples, folder / "attention.png", note)
    say_per_class(predictions["test"], f"Test, each class; {split.description}")
    best = best_epoch(history)
    write_results(
        folder,
        predictions,
        corpus,
        config.seed,
        f"{split.description}; epoch {best}, the best of {len(history)}",
        note=note,
        best_epoch=best,
        epochs=len(history),
        seconds=sum(row["seconds"] for row in history),
        devices=config.devices,
        leaking=split.leaking,
        clips={side: len(getattr(split, side)) for side in ("train", *SIDES)},
        per_class=per_class(predictions["test"]),
        confusion=confusion(predictions["test"]).tolist(),
    )


def write_results(
    folder: Path,
    predictions: dict[str, Predictions],
    corpus: Corpus,
    seed: int,
    what: str,
    note: str | None = None,
    **about: Any,
) -> None:
    """Write and say what came out, summary.json last: with it, a run is complete.

    Args:
        folder: of the run, fold or member.
        predictions: by side.
        corpus: where they come from.
        seed: of the bootstrap.
        what: split and model in one line.
        note: drawn in the plot: that the split leaks.
        about: more for the summary.
    """
    from mmattn.evaluate.plots import plot_confusion

    for side, one in predictions.items():
        write_predictions(folder / SIDES[side], one)
    plot_confusion(predictions["test"], folder / "confusion.png", "Test clips", note)
    found = {side: scores(one, seed) for side, one in predictions.items()}
    say_scores(f"{corpus.description}; {what}", found)
    summary = {**found, "data": corpus.description, "what": what, **about, **environment()}
    write_json(folder / "summary.json", summary)
    say(f"results in {folder}")


def to_predictions(corpus: Corpus, clips: np.ndarray, found: ClipPredictions) -> Predictions:
    """Predictions with the names, speakers and labels of the clips [n]."""
    return Predictions(
        tuple(corpus.names[clip] for clip in clips),
        corpus.speakers[clips],
        corpus.labels[clips],
        found.probabilities,
        corpus.class_names,
    )


def pool_members(folder: Path, parts: list[Path], corpus: Corpus, seed: int) -> None:
    """A committee's results: the members' mean for the test clips, which all of them predict.

    Each validation clip is predicted by the one member that was not trained on its speaker.
    """
    validation, test = (
        [read_predictions(part / name) for part in parts] for name in SIDES.values()
    )
    predictions = {"validation": join(validation), "test": combine(test)}
    mean = _mean_scores(parts)
    what = f"{folder.name}, committee of {len(parts)}"
    write_results(folder, predictions, corpus, seed, what, mean_over_members=mean)


def pool_folds(folder: Path, parts: list[Path], corpus: Corpus, seed: int) -> None:
    """Join the folds' tests: each clip is predicted by networks that never saw its speaker."""
    pooled = join([read_predictions(part / SIDES["test"]) for part in parts])
    tests = {part.name: read_json(part / "summary.json")["test"] for part in parts}
    rows = [
        (name, *(interval_text(found[measure]) for measure in MEASURES))
        for name, found in tests.items()
    ]
    mean = _mean_scores(parts)
    rows.append(("mean", *(f"{mean['test'][measure]:.3f}" for measure in MEASURES)))
    say_table("Test, by fold", ("", *MEASURES.values()), rows)
    what = f"test clips of {len(parts)} folds together"
    write_results(folder, {"test": pooled}, corpus, seed, what, mean_over_folds=mean)


def _mean_scores(parts: list[Path]) -> dict:
    """The mean of each score over the parts' summaries, by side."""
    summaries = [read_json(part / "summary.json") for part in parts]
    return {
        side: {
            measure: float(np.mean([one[side][measure]["value"] for one in summaries]))
            for measure in MEASURES
        }
        for side in SIDES
    }


def _say_data(corpus: Corpus, split: Split) -> None:
    say(f"{corpus.description}; split by {split.description}")
    rows = [
        (side, len(clips), len(np.unique(corpus.speakers[clips])))
        for side, clips in ((side, getattr(split, side)) for side in ("train", *SIDES))
    ]
    say_table("Data", ("", "clips", "speakers"), rows)


def _attention_examples(
    corpus: Corpus, clips: np.ndarray, found: ClipPredictions
) -> list["AttentionExample"]:
    """The first clip of each class, with its attention."""
    from mmattn.evaluate.plots import AttentionExample

    examples = []
    for label in np.unique(corpus.labels[clips]):
        row = int(np.flatnonzero(corpus.labels[clips] == label)[0])
        clip, attention = clips[row], found.attention[row]
        audio, video = corpus.audio.clip_times(clip), corpus.video.clip_times(clip)
        examples.append(
            AttentionExample(
                clip=corpus.names[clip],
                label=corpus.class_names[label],
                predicted=corpus.class_names[found.probabilities[row].argmax()],
                audio_times=audio if "audio" in attention else None,
                audio_attention=attention.get("audio"),
                video_times=video if "video" in attention else None,
                video_attention=attention.get("video"),
                video_valid=valid_frames(corpus.video.clip(clip)) if "video" in attention else None,
                cues=corpus.cues
                and [(cue.modality, cue.time) for cue in corpus.cues[clip] if not cue.decoy],
            )
        )
    return examples
