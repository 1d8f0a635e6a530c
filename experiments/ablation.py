"""Ablation of `ravdess_best`: its features, pooling, LSTM and fusion.

python -m experiments.ablation --data.roots FOLDER --features audio+video audio_log_mel+video

Every model is trained on the same folds of unseen speakers with the same seeds, which also draw the
validation speakers of each fold: one network per fold, not an ensemble. All are compared, paired by
speaker, to the first: LSTM and attention, concat, on the first features. The same command with the
same --out resumes.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from experiments import ravdess_best
from mmattn.cli import run_command
from mmattn.commands import worker_count
from mmattn.config import TOLD, AugmentConfig, ExperimentConfig, OtherDataConfig
from mmattn.errors import UserError

BEST = ravdess_best.CONFIG
BASE = replace(BEST, name="ablation", ensemble_size=1, data=replace(BEST.data, validation=0.125))
NETWORKS = {
    "lstm-attention": {},
    "attention": {"encoder": "none"},
    "mean": {"encoder": "none", "pooling": "mean"},
}
FUSIONS = ("concat", "late", "cross")


def models(base: ExperimentConfig, features: str) -> Iterator[tuple[str, ExperimentConfig]]:
    """The networks on these features, MODALITY or MODALITY+MODALITY, the complete one first."""
    modalities = tuple(features.split("+"))
    base = replace(
        base,
        model=replace(base.model, modalities=modalities, units=dict.fromkeys(modalities, (32,))),
    )
    for network, of in NETWORKS.items():
        for fusion in FUSIONS if len(modalities) > 1 else FUSIONS[:1]:
            model = replace(base.model, fusion=fusion, **of)
            yield f"{network}-{fusion}", replace(base, model=model)
    yield "without-functionals", replace(base, model=replace(base.model, statistics=False))
    yield "without-masks", replace(base, augment=AugmentConfig())


@dataclass(frozen=True)
class Options:
    """Options of the ablation."""

    data: OtherDataConfig = field(default_factory=OtherDataConfig)
    features: Annotated[tuple[str, ...], TOLD] = ("audio+video",)
    """Modalities joined by +, named as in the feature files (default: audio+video)."""
    out: Path | None = None
    """The ablation's folder, new or to resume (default: runs/ablation/<time>)."""
    seeds: int = 3
    """Number of seeds for each model."""
    workers: int | Literal["auto"] = "auto"
    """Trainings in parallel, each on its own core (default: the number of cores)."""

    def __call__(self) -> None:
        """Train what is not done yet, then compare. UserError if options or input are bad."""
        from experiments.alignment.ablation import (
            run_ablation,
        )  # slow to import, and --help does not need it

        workers = worker_count(self.workers)
        if self.seeds < 1:
            raise UserError(f"--seeds {self.seeds}: expected 1 or more")
        if not self.data.roots:
            raise UserError("--data.roots: expected folders of RAVDESS's feature files")
        if not (self.features and all(self.features)):
            raise UserError("--features: expected MODALITY or MODALITY+MODALITY, found nothing")
        data = self.data.apply(BASE.data)
        roots = tuple(root.expanduser().resolve() for root in data.roots)
        base = replace(BASE, data=replace(data, roots=roots))
        grid = {features: dict(models(base, features)) for features in self.features}
        for config in (config for of in grid.values() for config in of.values()):
            config.check()
        out = self.out or Path("runs/ablation") / time.strftime("%Y%m%d-%H%M%S")
        run_ablation(grid, out, self.seeds, workers)


if __name__ == "__main__":
    prog = "python -m experiments.ablation"
    run_command(Options, prog, __doc__)
