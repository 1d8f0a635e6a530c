"""Train one network: used by `mmattn.fit` and by every training of an experiment."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from mmattn.config import ExperimentConfig, config_from_json
from mmattn.data.corpus import Corpus, variants_named
from mmattn.data.splits import Split, split_from_json, split_to_json
from mmattn.errors import Stopped, UserError, expect
from mmattn.files import explain_full_disk, read_json, write_json
from mmattn.run.folder import (
    check_new,
    locked,
    make_folder,
    read_config,
    write_config,
    write_environment,
)
from mmattn.run.run import Run
from mmattn.train import processes
from mmattn.train.callbacks import Callback, JsonLines
from mmattn.train.checkpoints import Exported
from mmattn.train.devices import fitting_devices
from mmattn.train.loop import make_trainer, train


def fit(
    corpus: Corpus,
    split: Split,
    config: ExperimentConfig | None = None,
    callbacks: Sequence[Callback] = (),
    folder: Path | str | None = None,
    resume: bool = False,
) -> Run:
    """Train a network on the training clips of a split; validation selects the best epoch.

    Ctrl-C, or a callback's `run.stop()`, ends it early with the best so far.

    Args:
        corpus: all clips.
        split: of the corpus; the test clips are not used.
        config: of model, training and augmentation; data options are those of the corpus, except
            the buckets; out, resume and track are ignored.
        callbacks: observe the training.
        folder: where checkpoints and metrics.jsonl are stored; None: in memory, see `Run.save`.
        resume: continue the training in the folder.

    Raises:
        UserError: an option is invalid, the split does not fit the corpus, the folder holds
            something else, or the split differs from the one the training began with.
        Diverged: a loss or gradient is not finite; the checkpoints before it are kept.
    """
    config = config or ExperimentConfig()
    expect("corpus", corpus, Corpus, "what mmattn.load_corpus returns")
    expect("split", split, Split, "what mmattn.split returns, or one of mmattn.folds")
    expect("config", config, ExperimentConfig, "mmattn.Config")
    for one in callbacks:
        expect("callbacks", one, Callback, "objects of subclasses of mmattn.Callback")
    config_from_json(
        config.to_json(), "the config"
    )  # check it as when it is read from a run's folder
    if missing := {*config.model.modalities} - {*corpus.streams}:
        has = ", ".join(corpus.streams)
        raise UserError(f"model.modalities {', '.join(missing)}: the corpus has {has}")
    for asked in config.augment.variants:
        variants_named(asked, corpus.variants)
    if config.ensemble_size > 1 or config.distributed.address:
        raise UserError("ensemble_size, distributed: fit trains one network in one process")
    count = fitting_devices(config.devices, config.train.batch)
    data = replace(corpus.data, buckets=config.data.buckets)
    config = replace(config, devices=count, data=data)
    config.check()
    with ExitStack() as held:
        if folder is not None:
            folder = make_folder(folder)
            held.enter_context(locked(folder))
            held.enter_context(explain_full_disk(f"the run {folder}"))
            if not resume:
                check_new(folder, "resume=True")
                write_config(folder, config)
            elif read_config(folder).to_json() != config.to_json():
                raise UserError(f"{folder}: expected the config and data that it began with")
            elif _keep_split(folder, own := split_to_json(split, corpus)) != own:
                raise UserError(f"{folder}: expected the split that it began with")
            write_environment(folder, 1)
        run = Run(config, folder)
        try:
            train_run(run, corpus, split, callbacks, resume)
        except (KeyboardInterrupt, Stopped):
            if not run.history:
                raise
    return run


def train_run(
    run: Run,
    corpus: Corpus,
    split: Split,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    asked: processes.AgreedStop | None = None,
    finish: Callable[[Split], None] = lambda split: None,
) -> None:
    """Train a run of one network to its end, from its latest checkpoint with `resume`.

    A split already in the folder takes precedence over this one.

    Args:
        run: with its config and, perhaps, folder.
        corpus: all clips.
        split: of them.
        callbacks: called at the start, after each epoch, and at the end, even after an error.
        resume: see `train`.
        asked: whether to stop.
        finish: called with the split after the training, before the callbacks' end.

    Raises:
        see `train`.
    """
    run.split = split_to_json(split, corpus)
    if (folder := run.folder) is not None:
        run.split = processes.from_first(lambda: _keep_split(folder, run.split))
        callbacks = [JsonLines(), *callbacks]
    split = split_from_json(run.split, corpus)

    def call(hook: str, *about: object) -> None:
        for one in callbacks:
            getattr(one, hook)(run, *about)

    def begin(history: list[dict]) -> None:
        run.take(history)
        processes.from_first(lambda: call("on_train_begin"))

    def report(history: list[dict]) -> None:
        run.take(history)
        processes.from_first(lambda: call("on_epoch_end", history[-1]))

    run.asked = asked or run.asked
    assert not isinstance(run.checkpoints, Exported)  # a model file is not trained
    trainer = make_trainer(run.config, corpus, split, int(run.config.devices))
    try:
        train(trainer, split, run.checkpoints, resume, run.asked, begin, report)
        finish(split)
        run.status = "complete"
    except (KeyboardInterrupt, Stopped):
        run.status = "stopped"
        raise
    except BaseException:
        run.status = "failed"
        raise
    finally:
        if processes.first():  # without the other processes, which may be lost
            call("on_train_end")


def _keep_split(folder: Path, split: dict) -> dict:
    """The split in a training's folder as JSON; if there is none, this one, which is stored."""
    path = folder / "split.json"
    stored = read_json(path) if path.exists() else split
    write_json(path, stored)
    return stored
