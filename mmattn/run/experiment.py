"""Train and evaluate: from a config to a run's folder with all its results."""

import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from mmattn.config import ExperimentConfig
from mmattn.console import log_to, say, say_table
from mmattn.data.clips import valid_frames
from mmattn.data.corpus import Corpus, open_corpus
from mmattn.data.splits import Split, chosen_folds, make_split, split_from_json, split_to_json
from mmattn.evaluate.metrics import confusion, per_class, scores
from mmattn.evaluate.plots import AttentionExample, plot_attention, plot_confusion, plot_curves
from mmattn.evaluate.predictions import Predictions, join, read_predictions, write_predictions
from mmattn.evaluate.report import interval_text, say_per_class, say_scores
from mmattn.files import explain_full_disk, read_json, write_json
from mmattn.run.folder import (
    config_to_resume,
    environment,
    new_folder,
    write_config,
    write_environment,
)
from mmattn.train.checkpoints import Checkpoints
from mmattn.train.devices import start_jax
from mmattn.train.loop import best_epoch, fit, make_trainer
from mmattn.train.predict import ClipPredictions

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
    folder = config.out or Path("runs") / config.name / time.strftime("%Y%m%d-%H%M%S")
    if config.resume:
        config = config_to_resume(folder, config, default)
    else:
        new_folder(folder)
    with explain_full_disk(f"the run {folder}"), log_to(folder / "train.log"):
        say(f"run {folder}")
        corpus = open_corpus(config.data)
        folds = chosen_folds(corpus, config.data)
        splits = [make_split(corpus, config.data, config.seed, fold) for fold in folds]
        config = replace(config, devices=start_jax(config.devices, config.train.batch))
        write_config(folder, config)
        write_environment(folder, jax.devices()[0].device_kind)
        if config.data.folds is None or config.data.fold != "all":
            train_and_evaluate(config, corpus, splits[0], folder)
            return
        parts = [folder / f"fold{fold}" for fold in folds]
        for fold, split, part in zip(folds, splits, parts, strict=True):
            part.mkdir(exist_ok=True)
            of_fold = replace(config, data=replace(config.data, fold=fold))
            write_config(part, of_fold)
            train_and_evaluate(of_fold, corpus, split, part)
        pool_folds(folder, parts)


def train_and_evaluate(
    config: ExperimentConfig, corpus: Corpus, split: Split, folder: Path
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
    history = fit(trainer, split, folder, config.resume)
    state, _ = trainer.load(Checkpoints(folder), "best")
    found = {side: trainer.predict(state, getattr(split, side)) for side in SIDES}
    predictions = {
        side: to_predictions(corpus, getattr(split, side), found[side]) for side in SIDES
    }
    for side, name in SIDES.items():
        write_predictions(folder / name, predictions[side])
    note = split.description if split.leaking else None
    plot_curves(history, folder / "curves.png", note)
    plot_confusion(predictions["test"], folder / "confusion.png", "Test clips", note)
    examples = _attention_examples(corpus, split.test, found["test"])
    plot_attention(examples, folder / "attention.png", note)
    summary = {
        **{side: scores(predictions[side], config.seed) for side in reversed(SIDES)},
        "per_class": per_class(predictions["test"]),
        "confusion": confusion(predictions["test"]).tolist(),
        "best_epoch": best_epoch(history),
        "epochs": len(history),
        "seconds": sum(row["seconds"] for row in history),
        "devices": config.devices,
        "data": corpus.description,
        "split": split.description,
        "leaking": split.leaking,
        "clips": {side: len(getattr(split, side)) for side in ("train", *SIDES)},
        **environment(),
    }
    write_json(folder / "summary.json", summary)
    _say_results(folder, corpus, split, summary, predictions["test"])


def to_predictions(corpus: Corpus, clips: np.ndarray, found: ClipPredictions) -> Predictions:
    """Predictions with the names, speakers and labels of the clips [n]."""
    return Predictions(
        tuple(corpus.names[clip] for clip in clips),
        corpus.speakers[clips],
        corpus.labels[clips],
        found.probabilities,
        corpus.class_names,
    )


def pool_folds(folder: Path, parts: list[Path]) -> None:
    """Join the folds' results: each clip is tested once, by the model that never heard its speaker.

    The mean over folds stands beside scores, and their intervals over speakers, of all test
    predictions together.
    """
    summaries = [read_json(part / "summary.json") for part in parts]
    summary = {"folds": {part.name: one for part, one in zip(parts, summaries, strict=True)}}
    for side, name in SIDES.items():
        # A speaker validates several folds; only tests can be pooled.
        if side == "test":
            pooled = join([read_predictions(part / name) for part in parts])
            write_predictions(folder / name, pooled)
            plot_confusion(pooled, folder / "confusion.png", "Test clips of all folds")
            summary["test"] = scores(pooled)
        summary[f"{side}_mean_over_folds"] = {
            measure: float(np.mean([one[side][measure]["value"] for one in summaries]))
            for measure in summaries[0][side]
        }
    write_json(folder / "summary.json", summary)
    rows = [
        (part.name, *(interval_text(one["test"][measure]) for measure in ("uar", "accuracy")))
        for part, one in zip(parts, summaries, strict=True)
    ]
    mean = summary["test_mean_over_folds"]
    rows.append(("mean", f"{mean['uar']:.3f}", f"{mean['accuracy']:.3f}"))
    rows.append(("pooled", *(interval_text(summary["test"][m]) for m in ("uar", "accuracy"))))
    say_table("Test, by fold", ("", "UAR", "accuracy"), rows)
    say(f"results in {folder}")


def _say_data(corpus: Corpus, split: Split) -> None:
    say(f"{corpus.description}; split by {split.description}")
    rows = [
        (side, len(clips), len(np.unique(corpus.speakers[clips])))
        for side, clips in ((side, getattr(split, side)) for side in ("train", *SIDES))
    ]
    say_table("Data", ("", "clips", "speakers"), rows)


def _say_results(
    folder: Path, corpus: Corpus, split: Split, summary: dict, test: Predictions
) -> None:
    title = f"{corpus.description}; best of {summary['epochs']} epochs: {summary['best_epoch']}"
    if split.leaking:
        title += f"; {split.description}"
    say_per_class(test, "Test, each class")
    say_scores(title, {side: summary[side] for side in SIDES})
    say(
        f"trained {summary['seconds']:.0f} s on {summary['devices']} device(s); results in {folder}"
    )


def _attention_examples(
    corpus: Corpus, clips: np.ndarray, found: ClipPredictions
) -> list[AttentionExample]:
    """The first clip of each class, with its attention."""
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
