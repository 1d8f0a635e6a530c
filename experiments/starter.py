"""The model that comes with the package, mmattn/starter: audio only, on Whisper's states.

    mmattn extract RAVDESS --to FEATURES --audio whisper --video none
    python -m experiments.starter --data.roots FEATURES --out runs/starter
    mmattn card runs/starter --to mmattn/starter --half

Eight classes of RAVDESS; three folds of four unseen speakers each. All twelve networks are stored;
they are small and take less than 2 MB. UAR 0.703 [0.618, 0.776] with 12 actors, in 5 minutes on two
shared cores.
"""

from dataclasses import replace

from experiments import ravdess_best
from mmattn.cli import experiment

BEST = ravdess_best.CONFIG
CONFIG = replace(
    BEST,
    name="starter",
    ensemble_size=4,
    data=replace(BEST.data, overlap=False),
    model=replace(BEST.model, modalities=("audio",), units={"audio": (16,)}),
)

if __name__ == "__main__":
    experiment(CONFIG, __doc__)
