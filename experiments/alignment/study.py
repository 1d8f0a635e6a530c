"""A complete study: from its options to its results."""

import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

from experiments.alignment.plan import Block, Study
from experiments.alignment.report import write_results
from experiments.alignment.runner import run_cells
from mmattn.config import OtherDataConfig
from mmattn.console import say
from mmattn.data.corpus import open_corpus
from mmattn.data.splits import chosen_folds
from mmattn.errors import UserError
from mmattn.machine import cores


def run_study(
    study: Study,
    out: Path | None,
    seeds: int | None,
    workers: int | str,
    data: OtherDataConfig,
) -> None:
    """Run what is not done yet, then compare.

    Args:
        study: as defined in its module.
        out: its folder; None for a new one.
        seeds: their number, if not the study's.
        workers: trainings in parallel, or "auto": one per core.
        data: where the clips are.

    Raises:
        UserError: bad options or input; see also `run_cells`.
    """
    count = cores() if workers == "auto" else int(workers)
    for option, value in (("workers", count), ("seeds", study.seeds if seeds is None else seeds)):
        if value < 1:
            raise UserError(f"--{option} {value}: expected 1 or more")
    study = replace(
        study,
        seeds=study.seeds if seeds is None else seeds,
        blocks=tuple(_at_hand(block, data) for block in study.blocks),
    )
    folder = out or Path("runs") / "compare" / time.strftime("%Y%m%d-%H%M%S")
    trainings = sum(1 for _ in study.cells())
    say(f"study {folder}: {trainings} trainings and linear baselines, {count} in parallel")
    run_cells(study, folder, count)
    write_results(study, folder, shlex.join(["python", "-m", "experiments.compare", *sys.argv[1:]]))


def _at_hand(block: Block, data: OtherDataConfig) -> Block:
    """The block with the clips and folds that exist; checks configs and copies."""
    config = replace(block.config, data=data.apply(block.config.data))
    roots = tuple(root.expanduser().resolve() for root in config.data.roots)
    config = replace(config, data=replace(config.data, roots=roots))
    for augment in block.arms.values():
        replace(config, augment=augment).check()
    copies = {name for augment in block.arms.values() for name in augment.variants}
    if config.data.folds is None and not copies:
        return replace(block, config=config)
    corpus = open_corpus(config.data, config.streams, variants=sorted(copies))
    folds = chosen_folds(corpus, config.data)
    return replace(block, config=config, folds=tuple(folds))
