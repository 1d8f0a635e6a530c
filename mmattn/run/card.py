"""What is needed to share a run: its model file, and a model card."""

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from mmattn.console import counted, say
from mmattn.data.corpora import CORPORA, row_of
from mmattn.evaluate.metrics import mean_over_clips, per_class
from mmattn.evaluate.predictions import Predictions, read_predictions
from mmattn.evaluate.tables import Interval, Table, cell_text, group_tables, markdown, score_table
from mmattn.files import read_json, write_text
from mmattn.media import LICENCES
from mmattn.run.folder import PREDICTIONS, check_complete, make_folder
from mmattn.run.report import NOTES, training_command, training_facts
from mmattn.run.run import Run, load_run
from mmattn.run.shared import CARD, MODEL, write_shared
from mmattn.train.devices import start_devices

UNKNOWN = "not known: fill in"
MISUSE = """\
- **Decisions about people**: hiring, work, policing, borders, education, health, insurance, credit.
  The European Union prohibits inferring emotions of people at work and in education, except for
  medical or safety reasons (Regulation (EU) 2024/1689, article 5(1)(f)).
- **Diagnosis**, or lie detection.
- **Inferring what someone feels**: a label is {labels}.
- **Speech unlike the data below**, unless its scores were measured on it: expect lower scores, and
  overconfident probabilities."""
USE = f"""\
Written by `mmattn card`.

```
mmattn predict FOLDER CLIP        # FOLDER: where {MODEL} is
```
"""
PER_CLASS = (
    "Recall: fraction of a class's clips that are predicted as the class, with its 95 % interval "
    "over speakers. Precision: fraction of the clips predicted as a class that are of it."
)


class Data(NamedTuple):
    """Facts about a corpus, and the number of its clips in training or validation."""

    corpus: str
    clips: int
    speech: str = UNKNOWN
    label: str = UNKNOWN
    licence: str = UNKNOWN
    source: str = UNKNOWN


def write_card(folder: Path, to: Path, half: bool = False) -> None:
    """Write the model file and the model card of a run.

    Args:
        folder: of a complete run; its clips are not needed.
        to: the folder of both.
        half: see `write_shared`.

    Raises:
        UserError: no complete run, or no checkpoint.
    """
    check_complete(folder)
    start_devices(1, batch=1)
    run, to = load_run(folder), make_folder(to)
    text, model = card(run), to / MODEL
    write_shared(model, run, trust(run), half)
    write_text(to / CARD, text)
    command = f"mmattn predict {shlex.quote(str(to))} CLIP"
    say(f"{model}: {model.stat().st_size / 1e6:.2f} MB, for `{command}`")
    gaps = f", {count} times {UNKNOWN!r}" if (count := text.count(UNKNOWN)) else ""
    say(f"{to / CARD}: read it before you share it{gaps}")


def trust(run: Run) -> tuple[str, ...]:
    """Lines on what a complete run is and how far to trust it, for its users."""
    uar = read_json(run.saved_in / "summary.json")["test"]["uar"]
    data = _and(
        one.corpus if one.licence == UNKNOWN else f"{one.corpus} ({one.licence})"
        for one in _data(run)
    )
    count, modalities = len(run.class_names), _and(run.config.model.modalities)
    label = "" if UNKNOWN in (labels := _labels(run)) else f"; a label is {labels}"
    return (
        f"{run.config.name}: {count} classes from {modalities}, trained on {data}{label}.",
        f"On {_whom(run)}: UAR {cell_text(Interval(**uar))}, chance {1 / count:.3f}. Expect "
        "less on other speech, and do not use it for decisions about people.",
        *filter(None, [NOTES[run.split["leaking"]]]),
    )


def card(run: Run) -> str:
    """The model card of a complete run, in Markdown."""
    config, data, count = run.config, _data(run), len(run.networks)
    networks = f"{count} networks, pooled by a geometric mean" if count > 1 else "one network"
    networks += ", calibrated" if run.is_calibrated else ""
    start = read_json(run.saved_in / "environment.json")["starts"][0]
    licences = _and(dict.fromkeys(one.licence for one in data))
    speakers = len({speaker for part in _seen(run) for speaker in part["speakers"]} - {""})
    columns = ("corpus", "clips", "speech", "a label is", "licence", "source")
    facts = {
        **training_facts(config, start),
        "Epochs": f"up to {config.train.epochs}, the best by validation {config.train.monitor}",
        "Split": run.split["description"] + (" (the first network's)" if count > 1 else ""),
    }
    return f"""\
# Model card: {config.name}

Predicts {_and(run.class_names)} from {_and(config.model.modalities)}: {networks}. {USE}
Licence of the weights: {licences}{"" if UNKNOWN in licences else ", as of the data"}.

## What not to use it for

{MISUSE.format(labels=_labels(run))}

## Data

{_text(Table("", columns, data))}

{speakers} speakers, including validation.

## Features

{_text(_features(run))}

## Training

{chr(10).join(f"- {name}: {text}" for name, text in facts.items())}

```
{shlex.join(map(_without_folders, shlex.split(training_command(config, start))))}
```

## Scores on {_whom(run)}

{_scores(run)}
"""


def _whom(run: Run) -> str:
    """Whose clips a run was tested on."""
    return "its test clips" if run.split["leaking"] else "unseen speakers"


def _without_folders(word: str) -> str:
    """An option or its value; an absolute path, which may identify the user, keeps its last name.

    >>> _without_folders("--data.roots=/home/anna/CLIPS")
    '--data.roots=CLIPS'
    """
    option, equals, value = word.rpartition("=")
    path = PurePath(value)
    return f"{option}{equals}{path.name if path.is_absolute() else value}"


def _data(run: Run) -> list[Data]:
    """The corpora that a run was trained on, as far as its clip names show."""
    counts = Counter(map(_corpus_of, {name for part in _seen(run) for name in part["clips"]}))
    options, found = run.config.data, []
    for name, count in sorted(counts.items()):
        if corpus := CORPORA.get(name):
            label = corpus.LABEL if options.target == "emotion" and not options.soft else UNKNOWN
            about = corpus.SPEECH, label, corpus.LICENCE, corpus.SOURCE
            found.append(Data(corpus.TITLE, count, *about))
        elif options.roots:
            # Runs of version 0.1 did not store the names.
            names = {name for part in _seen(run) for name in part.get("corpora", ())} - {*CORPORA}
            known = sorted(names) or [root.name for root in options.roots]
            found.append(Data(_and(known), count))
        else:
            found.append(
                Data("built-in", count, "none: random numbers", "the class that was drawn")
            )
    return found


def _seen(run: Run) -> list[dict]:
    """For each network, the training and validation clips in its split.json."""
    return [one.split[name] for one in run.networks for name in ("train", "validation")]


def _corpus_of(clip: str) -> str:
    """The corpus whose naming scheme a clip follows, "" if none."""
    try:
        return row_of(PurePath(clip).name)["corpus"]
    except ValueError:
        return ""


def _labels(run: Run) -> str:
    return _and(dict.fromkeys(one.label for one in _data(run)))


def _features(run: Run) -> Table:
    """For each modality, what its features are made with."""
    rows = []
    for modality in run.config.model.modalities:
        record = run.extractor.get(modality, {"name": UNKNOWN, "settings": {}})
        settings = ", ".join(f"{name} {value}" for name, value in record["settings"].items())
        licence = LICENCES.get(record["name"], UNKNOWN)
        rows.append((modality, record["name"], settings, licence))
    return Table("", ("modality", "features", "settings", "made with"), rows)


def _test(run: Run) -> Predictions:
    return read_predictions(run.saved_in / PREDICTIONS["test"])


def _of_speakers(test: Predictions) -> str:
    speakers = counted(len({*test.speakers} - {""}), "speaker")
    return f"{counted(len(test.clips), 'clip')} of {speakers}"


def _scores(run: Run) -> str:
    """The section of the card: over all clips, by group, by class."""
    summary, test, parts = read_json(run.saved_in / "summary.json"), _test(run), []
    if warning := NOTES[run.split["leaking"]]:
        parts.append(f"**{warning}**")
    parts.append(f"{_of_speakers(test)}: {summary['what']}.")
    if run.parts and run.config.data.folds:
        parts.append(
            "Each clip was predicted only by the networks of the fold that had not seen its "
            "speaker. The file has the networks of all folds; some of them have seen that speaker."
        )
    calibrated = summary["calibrated"] and {"test": summary["calibrated"]["test"]}
    tables = [score_table({"test": summary["test"]}, calibrated), *group_tables(summary["groups"])]
    columns = ("class", "recall", "precision", "clips")
    tables.append(Table("", columns, [*_by_class(test, run.config.seed)], PER_CLASS))
    return "\n\n".join([*parts, *map(_text, tables)])


def _by_class(test: Predictions, seed: int) -> Iterator[tuple]:
    """The rows of a table: class, recall with its interval over speakers, precision, clips."""
    right = (test.predicted == test.labels).astype(float)
    for label, row in enumerate(per_class(test)):
        own, recall = test.labels == label, Interval(row["recall"])
        if own.any():
            _, *ends = map(float, mean_over_clips(right[own], test.speakers[own], seed))
            recall = Interval(row["recall"], *(None if np.isnan(end) else end for end in ends))
        yield row["class"], recall, row["precision"], row["clips"]


def _text(table: Table) -> str:
    """A table and its note in Markdown."""
    return "\n".join([*markdown(table), "", table.note]).strip()


def _and(names: Iterable[str]) -> str:
    """`a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
