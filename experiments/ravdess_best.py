"""The best configuration found for RAVDESS: eight classes, four unseen speakers per fold.

python -m experiments.ravdess_best --data.roots FOLDER

On Whisper's encoder states and expression posteriors: the ensemble of `ravdess_tuned`, trained
longer, with feature masks and time masks over both modalities. docs/accuracy.md has its results,
and how it was chosen, on validation speakers only; a fold takes about 4 minutes on a core.
"""

from dataclasses import replace

from experiments import ravdess_tuned
from mmattn.cli import experiment
from mmattn.config import AugmentConfig

TUNED = ravdess_tuned.CONFIG
CONFIG = replace(
    TUNED,
    name="ravdess_best",
    augment=AugmentConfig(feature_mask=0.5, time_mask=1.0),
    train=replace(TUNED.train, epochs=30, patience=30),
)

if __name__ == "__main__":
    experiment(CONFIG, __doc__)
