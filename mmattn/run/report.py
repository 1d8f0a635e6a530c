"""The report of a run, report.html, made from its folder when it ends, or on request."""

import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np

from mmattn.config import AugmentConfig, ExperimentConfig, OtherDataConfig
from mmattn.console import waiting
from mmattn.data.corpus import Corpus
from mmattn.data.splits import split_from_json
from mmattn.evaluate.metrics import group_scores, mean_over_clips, scores
from mmattn.evaluate.predictions import read_predictions
from mmattn.evaluate.views import choose_rows
from mmattn.files import read_json
from mmattn.model.fusion import fusion_of
from mmattn.report.figures import Curve, CurvePlot
from mmattn.report.page import write_run_page
from mmattn.run.folder import PREDICTIONS, check_complete, corpus_of, read_config
from mmattn.run.run import Run, load_run
from mmattn.train.devices import start_devices
from mmattn.train.history import best_epoch
from mmattn.train.inference import Predictor
from mmattn.train.shifts import OFFSETS, TEMPOS, measure_shifts

VIEWED = 60  # clips in the viewer
SHIFTED = 2000  # clips for the offset and tempo curves
NOTES = {
    False: None,
    True: "THE SPLIT LEAKS SPEAKERS: test speakers are also in training. The scores say nothing "
    "about new speakers.",
    "unknown": "SPEAKERS UNKNOWN: test speakers may also be in training; no interval can be given.",
}


def report_run(folder: Path, device_count: int | str | None, other: OtherDataConfig) -> None:
    """Rewrite the report of a complete run.

    Args:
        folder: the run's.
        device_count: a number or "auto"; None for the run's own.
        other: where the clips are now.

    Raises:
        UserError: no complete run, no checkpoint, or not the run's clips.
    """
    config = read_config(folder)
    check_complete(folder)
    corpus = corpus_of(folder, other)
    device_count = config.devices if device_count is None else device_count
    count = start_devices(device_count, config.train.batch)
    write_page(load_run(folder), corpus, count)


def write_page(run: Run, corpus: Corpus, device_count: int) -> None:
    """Write report.html of a run that has its results; the summary may be missing.

    The first network predicts the clips in the viewer.
    """
    folder, config, part = run.saved_in, run.config, run.networks[0]
    of_part = part.saved_in
    alone = part is run
    path = folder / "report.html"
    with waiting(f"writing {path}"):
        predictions = {
            name: read_predictions(folder / file)
            for name, file in PREDICTIONS.items()
            if name == "test" or (folder / file).exists()
        }
        split = split_from_json(run.split, corpus)
        network = run.predictor(corpus, np.concatenate([*split.clips.values()]), device_count)
        test = split.test
        shown = test[choose_rows(read_predictions(of_part / PREDICTIONS["test"]), VIEWED)]
        about = f"{len(shown)} of {len(test)} test clips, correct and wrong ones of each class"
        if not alone:
            about += f", as predicted by {of_part.relative_to(folder)} alone"
        start = read_json(folder / "environment.json")["starts"][0]
        synthetic = "synthetic " if corpus.cues else ""
        tested = predictions["test"].with_columns(corpus)
        write_run_page(
            path,
            f"{config.name}: {len(tested.clips)} {synthetic}test clips",
            {
                "Data": corpus.description,
                **_split_facts(run),
                **training_facts(config, start),
            },
            {name: scores(one, config.seed) for name, one in predictions.items()},
            tested,
            training_command(config, start),
            run.history,
            config.train.monitor,
            network.views(shown),
            [f"{about}."],
            list(_curves(network, test)) if alone else [],
            NOTES[run.split["leaking"]],
            group_scores(tested, tested.cells(corpus.groups), config.seed),
            run.calibrated_scores(predictions),
        )


def _split_facts(run: Run) -> dict[str, str]:
    """The split, and the best epoch or the parts."""
    split = run.split["description"]
    if not run.parts:
        best = f"{best_epoch(run.history, run.config.train.monitor)} of {len(run.history)}"
        return {"Split": split, "Best epoch": best}
    parts = [part.saved_in.name for part in run.parts]
    ensembles = run.config.ensemble_size > 1 and "fold" in parts[0]
    each = f", each an ensemble of {run.config.ensemble_size}" if ensembles else ""
    return {"Parts, combined": ", ".join(parts) + each, "Split of the first": split}


def training_command(config: ExperimentConfig, start: dict) -> str:
    """The command that began a run; `start` is from environment.json."""
    return shlex.join(["python", "-m", f"experiments.{config.name}", *start["command"][1:]])


def training_facts(config: ExperimentConfig, start: dict) -> dict[str, str]:
    """What was trained, when, where, with which versions; `start` is from environment.json."""
    versions, modalities = start["versions"], config.model.modalities
    joined = f"{', '.join(modalities[:-1])} and {modalities[-1]}, fusion {config.model.fusion}"
    return {
        "Network": joined if len(modalities) > 1 else f"{modalities[0]} alone",
        "Augmentation": _changes(config.augment),
        "Seed": str(config.seed),
        "Started": f"{start['time']} on {config.devices} × {start['device']}",
        "Versions": f"mmattn {versions['mmattn']} ({start['commit'] or 'no commit'}), "
        f"jax {versions['jax']}, Python {start['python']}",
    }


def _changes(config: AugmentConfig) -> str:
    """The augmentations in use, by name."""
    texts = []
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, dict):
            texts += [f"{field.name} of {name} {_range(one)}" for name, one in value.items()]
        elif value != field.default:
            texts.append(f"{field.name} {_range(value)}")
    return ", ".join(texts) or "none"


def _range(value: object) -> str:
    return " to ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _curves(network: Predictor, test: np.ndarray) -> Iterator[CurvePlot]:
    """Accuracy over a test-time offset and tempo of the first of several modalities."""
    name, *others = network.config.model.modalities
    if not others:
        return
    drawn = test
    if len(test) > SHIFTED:
        rng = np.random.default_rng(network.config.seed)
        drawn = np.sort(rng.choice(test, SHIFTED, replace=False))
    right = measure_shifts(network, drawn, name)

    def curve(key: str, x: np.ndarray) -> list[Curve]:
        speakers = network.corpus.speakers[drawn]
        accuracy = mean_over_clips(right[key], speakers, network.config.seed)
        return [Curve(network.config.name, x, *accuracy)]

    of = (
        f" On {len(drawn)} of {len(test)} test clips, drawn at random."
        if len(drawn) < len(test)
        else ""
    )
    note = f"The {name} is delayed (right) or advanced (left) at test time.{of}"
    fusion = network.config.model.fusion
    if not fusion_of(fusion).uses_times:
        note += f" Fusion {fusion} ignores times, so an offset changes nothing."
    points, title = curve("right_at_offset", 1000 * OFFSETS), name.capitalize()
    yield CurvePlot(f"{title} offset", f"{name} delay (ms)", "accuracy", points, note)
    note = f"Only the {name} is slowed down (left) or sped up (right) at test time.{of}"
    points = curve("right_at_tempo", TEMPOS)
    yield CurvePlot(f"{title} tempo", f"tempo of the {name}", "accuracy", points, note)
