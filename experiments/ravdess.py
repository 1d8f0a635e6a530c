"""The model of `no_aug` on RAVDESS: eight classes, four unseen speakers per fold.

python -m experiments.ravdess --data.roots FOLDER   (the published folds whose speakers are present)

Three folds of 12 actors: UAR 0.59, below a linear model's 0.64: it overfits.
"""

from mmattn.cli import experiment
from mmattn.config import DataConfig, ExperimentConfig

CONFIG = ExperimentConfig(
    name="ravdess",
    data=DataConfig(labels=("ravdess8",), folds="ravdess", validation=0.25),
)

if __name__ == "__main__":
    experiment(CONFIG, __doc__)
