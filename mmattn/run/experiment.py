"""Train and evaluate: from a config to a run's folder with all results."""

import hashlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmattn.config import DataConfig, ExperimentConfig, config_from_json
from mmattn.console import be_quiet, log_to, say, say_table
from mmattn.data.corpus import Corpus, open_corpus
from mmattn.data.splits import CAVEATS, Split, chosen_folds, make_split
from mmattn.errors import Stopped, UserError
from mmattn.evaluate.metrics import confusion, group_scores, per_class, scores
from mmattn.evaluate.predictions import (
    Predictions,
    combine,
    join,
    read_predictions,
    write_predictions,
)
from mmattn.evaluate.tables import (
    Cell,
    Interval,
    Table,
    say_groups,
    say_per_class,
    say_scores,
    say_ties,
    say_wide,
    titles,
)
from mmattn.files import explain_full_disk, read_json, write_json
from mmattn.run.fit import train_run
from mmattn.run.folder import (
    PREDICTIONS,
    check_new,
    config_to_resume,
    environment,
    locked,
    write_config,
    write_environment,
)
from mmattn.run.run import Run
from mmattn.train import processes
from mmattn.train.callbacks import Callback, Console
from mmattn.train.devices import start_devices
from mmattn.train.history import best_epoch
from mmattn.train.trackers import make_trackers


def run_experiment(config: ExperimentConfig, default: ExperimentConfig) -> None:
    """Train and evaluate, once or for each fold.

    Args:
        config: of the run; with `out` and `resume`.
        default: the experiment's own config; options that differ from it were given by the user.

    Raises:
        UserError: bad input or options, an existing folder, a full disk.
    """
    config.check()
    roots = tuple(root.expanduser().resolve() for root in config.data.roots)
    config = replace(config, data=replace(config.data, roots=roots))
    processes.start_processes(config.distributed)
    if not processes.first():
        be_quiet()
    with ExitStack() as held, processes.explain_lost_process():
        stored = processes.from_first(lambda: _take_folder(config, default, held))
        config = replace(config_from_json(stored), distributed=config.distributed)
        folder = Path(stored["out"])
        resumes = f"`--resume --out {folder}` continues"
        try:
            with sigterm_asks() as asked:
                _run_parts(config, folder, asked)
        except Stopped as stop:
            raise Stopped(f"SIGTERM: {stop}; {resumes}") from None
        except KeyboardInterrupt:
            told = [resumes] if (folder / "config.json").exists() else []
            raise KeyboardInterrupt(*told) from None


@contextmanager
def sigterm_asks() -> Iterator[processes.AgreedStop]:
    """An event that SIGTERM to any process sets, instead of ending that process."""
    asked = processes.AgreedStop()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _take_folder(config: ExperimentConfig, default: ExperimentConfig, held: ExitStack) -> dict:
    """Lock the run's folder and start its log, until `held` ends; returns the config as JSON."""
    folder = config.out or Path("runs") / config.name / time.strftime("%Y%m%d-%H%M%S")
    if config.resume:
        config = config_to_resume(folder, config, default, processes.count())
    else:
        folder.mkdir(parents=True, exist_ok=True)
    held.enter_context(locked(folder))
    if not config.resume:
        check_new(folder, "--resume")
    if config.out is None:
        held.callback(_drop_unstarted, folder)
    held.enter_context(explain_full_disk(f"the run {folder}"))
    held.enter_context(log_to(folder / "train.log"))
    return replace(config, out=folder).to_json()


def _drop_unstarted(folder: Path) -> None:
    """Remove the folder of a start that failed before its config was written: it has only a log."""
    if not (folder / "config.json").exists():
        with suppress(OSError):
            (folder / "train.log").unlink()
            folder.rmdir()


def _run_parts(config: ExperimentConfig, folder: Path, asked: processes.AgreedStop) -> None:
    """Train and evaluate each part and combine them, until `asked` to stop."""
    corpus = _open_alike(config)
    groups = plan_parts(config, corpus, folder)
    config = replace(config, devices=start_devices(config.devices, config.train.batch))

    def describe() -> None:
        say(f"run {folder}")
        _say_if_one_tests(config.data, corpus, next(iter(groups.values()))[0].split)
        write_config(folder, config)
        write_environment(folder, processes.count())

    callbacks: list[Callback] = [Console(say)]
    processes.from_first(lambda: callbacks.extend(make_trackers(config.track)))
    processes.from_first(describe)
    runs = {}
    for fold_folder, parts in groups.items():
        for part in parts:
            if asked.is_set():
                raise Stopped(f"stopped before {part.folder}")
            of_part = replace(part.config, devices=config.devices)
            train_and_evaluate(of_part, corpus, part.split, part.folder, asked, folder, callbacks)
        networks = [Run(one.config, one.folder) for one in parts]
        runs[fold_folder] = Run(config, fold_folder, networks if config.ensemble_size > 1 else ())
        if config.ensemble_size > 1:
            _by_first(partial(pool_ensemble, runs[fold_folder], folder, corpus))
    if list(groups) != [folder]:
        _by_first(partial(pool_folds, Run(config, folder, [*runs.values()]), folder, corpus))


def _by_first(work: Callable[[], None]) -> None:
    """Do some work only in process 0, with its own devices, while the others wait."""

    def do() -> None:
        with processes.alone():
            work()

    processes.from_first(do)


def _open_alike(config: ExperimentConfig) -> Corpus:
    """The corpus, opened in process 0 first, so that others on the same disk find its cache.

    Raises UserError if a process finds other clips than process 0, or cannot read them.
    """
    opened: list[Corpus] = []
    how = {"variants": tuple(config.augment.variants)}
    processes.from_first(lambda: opened.append(open_corpus(config.data, config.streams, **how)))
    found, failure = "", None
    try:
        opened = opened or [open_corpus(config.data, config.streams, **how)]
        if processes.count() > 1:
            found = _digest(opened[0])
    except UserError as error:
        failure = str(error)
    for number, (digest, reason) in enumerate(all_found := processes.exchange([found, failure])):
        if reason or digest != all_found[0][0]:
            raise processes.agreed(
                f"process {number}: {reason or 'has other clips than process 0'}"
            )
    return opened[0]


def _digest(corpus: Corpus) -> str:
    """A digest of a corpus's clip names, speakers, labels and lengths."""
    texts = (corpus.names, corpus.class_names, corpus.speakers, *corpus.streams)
    arrays = [corpus.labels, *(stream.lengths for stream in corpus.streams.values())]
    if corpus.targets is not None:
        arrays.append(corpus.targets)
    parts = ["\n".join(text).encode(errors="surrogateescape") for text in texts] + [
        array.tobytes() for array in arrays
    ]
    return hashlib.sha256(b"".join(parts)).hexdigest()


class Part(NamedTuple):
    """One training: of a fold, or of one network of a fold's ensemble."""

    folder: Path
    split: Split
    config: ExperimentConfig


def plan_parts(config: ExperimentConfig, corpus: Corpus, folder: Path) -> dict[Path, list[Part]]:
    """All trainings of a run, by the folder of their fold; the splits are checked.

    The networks of an ensemble differ in their validation speakers and in their seed.
    """
    groups = {}
    for fold in chosen_folds(corpus, config.data):
        data = config.data if fold is None else replace(config.data, fold=fold)
        fold_folder = folder if data == config.data else folder / f"fold{fold}"
        groups[fold_folder] = [
            Part(
                fold_folder / f"member{member}" if config.ensemble_size > 1 else fold_folder,
                make_split(corpus, data, config.seed, fold, member, config.ensemble_size),
                replace(config, data=data, seed=_network_seed(config, member), ensemble_size=1),
            )
            for member in range(config.ensemble_size)
        ]
    return groups


def _network_seed(config: ExperimentConfig, member: int) -> int:
    """The run's seed, or for an ensemble a seed for each network, distinct across run seeds."""
    if config.ensemble_size == 1:
        return config.seed
    return int(np.random.SeedSequence([config.seed, member]).generate_state(1)[0])


def train_and_evaluate(
    config: ExperimentConfig,
    corpus: Corpus,
    split: Split,
    folder: Path,
    asked: processes.AgreedStop,
    root: Path,
    callbacks: Sequence[Callback],
) -> None:
    """Train on a split, then evaluate the best checkpoint on validation and test, once.

    A split already in the folder is used to resume; a complete training is left untouched.

    Args:
        config: of the training.
        corpus: all clips.
        split: of them.
        folder: of the training.
        asked: whether to stop.
        root: the folder of the whole run, which may be the same.
        callbacks: observe it.
    """
    if processes.from_first(lambda: (folder / "summary.json").exists()):
        say(f"{folder} is complete")
        return

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if folder != root:
            write_config(folder, config)

    def finish(split: Split) -> None:
        clips = np.concatenate([*split.clips.values()])
        predictor = run.predictor(corpus, clips, int(config.devices))
        run.predictions = {name: predictor.predictions(split.clips[name]) for name in PREDICTIONS}
        _by_first(partial(_write_training, run, corpus, split, root))

    processes.from_first(prepare)
    _say_data(corpus, split)
    run = Run(config, folder, calibrated=False)
    train_run(run, corpus, split, callbacks, config.resume, asked, finish)


def _write_training(run: Run, corpus: Corpus, split: Split, root: Path) -> None:
    """Write the results of a training; see `train_and_evaluate` and `write_results`."""
    # Imported here: matplotlib would delay the start by half a second.
    from mmattn.evaluate.plots import plot_attention, plot_curves

    folder, history, test = run.saved_in, run.history, run.predictions["test"]
    note = split.description if split.leaking else None
    plot_curves(history, run.config.train.monitor, folder / "curves.png", note)
    classes, first = np.unique(corpus.labels[split.test], return_index=True)
    every, own = np.concatenate([*split.clips.values()]), processes.share(int(run.config.devices))
    views = run.predictor(corpus, every, own).views(split.test[first[classes >= 0]])
    plot_attention(views, corpus.class_names, folder / "attention.png", note)
    say_per_class(test, f"Test, each class; {split.description}")
    best = best_epoch(history, run.config.train.monitor)
    write_results(
        run,
        root,
        run.predictions,
        corpus,
        f"{split.description}; epoch {best}, the best of {len(history)}",
        note=note,
        temperature=run.about.get("temperature"),
        late_weights=run.about.get("late_weights"),
        best_epoch=best,
        epochs=len(history),
        seconds=sum(row["seconds"] for row in history),
        devices=run.config.devices,
        leaking=split.leaking,
        clips={name: len(clips) for name, clips in split.clips.items()},
        per_class=per_class(test),
        confusion=confusion(test).tolist(),
    )
    _say_if_chance(history[best - 1]["validation_uar"], corpus, split)


def _say_if_one_tests(data: DataConfig, corpus: Corpus, split: Split) -> None:
    """Say what helps if there is one test speaker."""
    drawn = data.split == "speakers" and data.folds is None
    if drawn and len({*corpus.speakers[split.test]} - {""}) == 1:
        say("One test speaker gives no intervals: --data.folds speaker tests each in turn")


def _say_if_chance(uar: float, corpus: Corpus, split: Split) -> None:
    """Say what helps if the best epoch's UAR on the validation clips is that of a guess."""
    labels = corpus.labels[split.validation]
    classes = len({*labels[labels >= 0].tolist()})
    if classes > 1 and uar <= 1 / classes:
        say(
            f"Validation UAR {uar:.3f} is no better than chance: if clips are few, see Small "
            "corpora in docs/train.md; and compare linear models (`mmattn baseline`)"
        )


def write_results(
    run: Run,
    root: Path,
    predictions: dict[str, Predictions],
    corpus: Corpus,
    what: str,
    note: str | None = None,
    **about: Any,
) -> None:
    """Write and print the results, summary.json last: with it, a run is complete.

    The whole run also gets its report page.

    Args:
        run: a training, fold or whole run.
        root: the folder of the whole run.
        predictions: by split.
        corpus: of the clips.
        what: split and model in one line.
        note: a warning about the split, shown with the scores and in the plot.
        about: more for the summary.
    """
    from mmattn.evaluate.plots import plot_confusion

    folder, seed, test = run.saved_in, run.config.seed, predictions["test"]
    for name, one in predictions.items():
        write_predictions(folder / PREDICTIONS[name], one)
    plot_confusion(test, folder / "confusion.png", "Test clips", note)
    found = {name: scores(one, seed) for name, one in predictions.items()}
    calibrated = run.calibrated_scores(predictions)
    what = f"{what}, {note}" if note and note not in what else what
    say_scores(f"{corpus.description}; {what}", found, calibrated)
    say_ties(predictions)
    groups = group_scores(test, test.cells(corpus.groups), seed)
    say_groups("Test", groups)
    if folder == root:
        from mmattn.run.report import write_page

        write_page(run, corpus, processes.share(int(run.config.devices)))
    ties = {name: one.ties for name, one in predictions.items()}
    summary = {
        **found,
        "calibrated": calibrated,
        "groups": groups,
        "ties": ties,
        "data": corpus.description,
        "what": what,
    }
    write_json(folder / "summary.json", {**summary, **about, **environment()})
    say(f"results in {folder}")


def pool_ensemble(run: Run, root: Path, corpus: Corpus) -> None:
    """An ensemble's results: its networks pooled on the test clips, which all of them predict.

    Each validation clip is predicted by the one network that was not trained on its speaker.
    """
    parts = [part.saved_in for part in run.parts]
    validation, test = (
        [read_predictions(part / name).with_columns(corpus) for part in parts]
        for name in PREDICTIONS.values()
    )
    predictions = {"validation": join(validation), "test": combine(test)}
    mean = _mean_scores(parts)
    what, note = f"{run.saved_in.name}, ensemble of {len(parts)}", CAVEATS[run.split["leaking"]]
    write_results(run, root, predictions, corpus, what, note, mean_over_members=mean)


def pool_folds(run: Run, root: Path, corpus: Corpus) -> None:
    """Join the folds' tests: each clip is predicted by networks that never saw its speaker."""
    parts = [part.saved_in for part in run.parts]
    tests = [read_predictions(part / PREDICTIONS["test"]) for part in parts]
    pooled = join(tests).with_columns(corpus)
    tests = {part.name: read_json(part / "summary.json")["test"] for part in parts}
    shown = titles(*tests.values())
    rows: list[Sequence[Cell]] = [
        (name, *(Interval(**found[metric]) for metric in shown)) for name, found in tests.items()
    ]
    mean = _mean_scores(parts)
    rows.append(("mean", *(mean["test"][metric] for metric in shown)))
    say_wide("Test, by fold", Table("", ("", *shown.values()), rows))
    what, note = f"test clips of {len(parts)} folds together", CAVEATS[run.split["leaking"]]
    write_results(run, root, {"test": pooled}, corpus, what, note, mean_over_folds=mean)


def _mean_scores(parts: list[Path]) -> dict:
    """The mean of each score over the parts' summaries, by split; None if a part lacks it."""
    summaries = [read_json(part / "summary.json") for part in parts]
    return {
        name: {
            metric: _mean([one[name][metric]["value"] for one in summaries])
            for metric in titles(*(one[name] for one in summaries))
        }
        for name in PREDICTIONS
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _say_data(corpus: Corpus, split: Split) -> None:
    say(f"{corpus.description}; split by {split.description}")
    rows = []
    for name, clips in split.clips.items():
        labels = corpus.labels[clips]
        classes = f"{len(np.unique(labels[labels >= 0]))} of {len(corpus.class_names)}"
        speakers = len({*corpus.speakers[clips]} - {""})
        rows.append((name, len(clips), speakers or "unknown", classes))
    say_table("Data", ("", "clips", "speakers", "classes"), rows)
