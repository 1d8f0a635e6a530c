"""Compare augmentations: what is the effect of audio-only augmentation, which breaks alignment?

    python -m experiments.compare                       (synthetic corpora with known truth)
    python -m experiments.compare --data.roots FOLDER   (RAVDESS features, folds of unseen speakers)
    python -m experiments.compare --data.roots FOLDER --arms waveform waveform_aligned
        (features of augmented audio: mmattn extract --augment-audio)

Every arm is trained with the same seeds for the same number of optimiser steps, measured on clean
test clips, and compared to `no_aug`, paired by speaker. The same command with the same --out
resumes.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from experiments import aligned_aug, audio_aug, feature_aug, sync_aug
from experiments.alignment.plan import REFERENCE, Block, Study
from mmattn.cli import run_command
from mmattn.config import (
    TOLD,
    AugmentConfig,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OtherDataConfig,
    SyntheticConfig,
    TrainConfig,
)
from mmattn.errors import UserError

MIX = audio_aug.CONFIG.augment
SYNC = sync_aug.CONFIG.augment
COPIES = dict.fromkeys(("tempo", "pitch", "noise"), 0.25)
ARMS = {
    REFERENCE: AugmentConfig(),
    "audio_noise": AugmentConfig(noise=MIX.noise),
    "audio_scale": AugmentConfig(scale=MIX.scale),
    "audio_tempo": AugmentConfig(own_tempo=MIX.own_tempo),
    "audio_aug": MIX,
    "both_tempo": AugmentConfig(own_tempo=dict.fromkeys(("audio", "video"), (0.9, 1.1))),
    "sync_tempo": AugmentConfig(tempo=SYNC.tempo),
    "sync_aug": SYNC,
    "aligned_aug": aligned_aug.CONFIG.augment,
    "feature_aug": feature_aug.CONFIG.augment,
    # For files with augmented copies: a quarter each of the original, another tempo, another pitch
    # and noise; or another tempo in two thirds of the clips.
    "waveform": AugmentConfig(variants=COPIES, variant_times="own"),
    "waveform_aligned": AugmentConfig(variants=COPIES),
    "waveform_tempo": AugmentConfig(variants={"tempo": 2 / 3}, variant_times="own"),
    "waveform_tempo_aligned": AugmentConfig(variants={"tempo": 2 / 3}),
}
CONTROLS = {name: ARMS[name] for name in (REFERENCE, "audio_tempo", "audio_aug", "sync_tempo")}
MODEL = ModelConfig(units={"audio": (32,), "video": (32,)}, head_units=(64,), head_dropout=(0.3,))
TRAIN = TrainConfig(
    epochs=16, batch=32, learning_rate=3e-3, schedule="cosine", patience=0, save_every=1000
)
SYNTHETIC = ExperimentConfig(
    name="compare",
    data=DataConfig(
        validation=1 / 6,
        test=1 / 3,
        buckets=2,
        synthetic=SyntheticConfig(rule="coincidence", clips=1440, speakers=48, audio_rate=50),
    ),
    model=replace(MODEL, input_dropout=0.0, pooled_dropout=0.1, head_dropout=(0.1,)),
    train=TRAIN,
)
UNIMODAL = replace(
    SYNTHETIC,
    data=replace(SYNTHETIC.data, synthetic=replace(SYNTHETIC.data.synthetic, rule="unimodal")),
)
COINCIDENCE = Block(
    "coincidence",
    "Synthetic. The class is which audio cue coincides with which video cue within 80 ms; one "
    "modality alone carries no information.",
    SYNTHETIC,
    ("cross",),
    ARMS,
)
BLOCKS = (
    COINCIDENCE,
    replace(COINCIDENCE, name="coincidence-pooled", fusions=("concat",), arms=CONTROLS),
    Block(
        "unimodal",
        "Synthetic. The cues of each modality determine the class: a control in which alignment "
        "does not matter.",
        UNIMODAL,
        ("cross",),
        CONTROLS,
    ),
    Block(
        "tiled",
        "Synthetic. As unimodal, with each clip's audio replaced by its mean, like the earlier "
        "system's audio features: a control in which tempo has no effect on alignment.",
        replace(UNIMODAL, data=replace(UNIMODAL.data, tile=("audio",))),
        ("cross",),
        CONTROLS,
    ),
)
RAVDESS = Block(
    "ravdess",
    "RAVDESS features, eight classes; every speaker is tested by networks that never saw them.",
    ExperimentConfig(
        name="compare",
        data=DataConfig(
            labels=("ravdess8",), folds="ravdess", overlap=True, validation=0.25, buckets=2
        ),
        model=MODEL,
        train=replace(TRAIN, epochs=15, learning_rate=2e-3, weight_decay=3.0),
    ),
    ("concat", "cross"),
    {
        name: ARMS[name]
        for name in (
            *(REFERENCE, "audio_tempo", "audio_aug", "sync_tempo"),
            *("sync_aug", "aligned_aug", "feature_aug"),
        )
    },
)
QUICK = (replace(COINCIDENCE, arms={name: ARMS[name] for name in (REFERENCE, "audio_tempo")}),)

SYNTHETIC_STUDY = Study(BLOCKS, seeds=5)
QUICK_STUDY = Study(QUICK, seeds=2)
RAVDESS_STUDY = Study((RAVDESS,), seeds=5)


@dataclass(frozen=True)
class Options:
    """Options of the study."""

    out: Path | None = None
    """The study's folder, new or to resume (default: runs/compare/<time>)."""
    quick: bool = False
    """Two arms and two seeds on the synthetic corpus: minutes, not an hour, but few conclusions."""
    arms: Annotated[tuple[str, ...], TOLD] = ()
    """Arms to compare to no_aug (default: the study's); X is also compared to X_aligned."""
    fusions: Annotated[tuple[Literal["concat", "cross"], ...], TOLD] = ()
    """Fusions to train (default: the study's)."""
    seeds: int | None = None
    """Number of seeds for each arm (default: 5; with --quick: 2)."""
    workers: int | Literal["auto"] = "auto"
    """Trainings in parallel, each on its own core (default: the number of cores)."""
    data: OtherDataConfig = field(default_factory=OtherDataConfig)

    def __call__(self) -> None:
        """Run the chosen study; UserError if options conflict."""
        from experiments.alignment.study import (
            run_study,
        )  # slow to import, and --help does not need it

        if self.quick and self.data.roots:
            raise UserError("--quick: expected no --data.roots, as it uses the synthetic corpus")
        study = QUICK_STUDY if self.quick else RAVDESS_STUDY if self.data.roots else SYNTHETIC_STUDY
        if unknown := {*self.arms} - {*ARMS}:
            raise UserError(f"--arms {min(unknown)}: expected some of {', '.join(ARMS)}")
        arms = {name: ARMS[name] for name in (REFERENCE, *self.arms)}
        blocks = tuple(
            replace(
                block,
                arms=arms if self.arms else block.arms,
                fusions=self.fusions or block.fusions,
            )
            for block in study.blocks
        )
        study = replace(study, blocks=blocks)
        run_study(study, self.out, self.seeds, self.workers, self.data)


if __name__ == "__main__":
    prog = "python -m experiments.compare"
    run_command(Options, prog, __doc__)
