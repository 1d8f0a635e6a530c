"""Train the branched LSTM-attention model of the earlier system, without audio augmentation.

python -m experiments.no_aug [--data.roots FOLDER …]   (default: the built-in synthetic corpus)

On the built-in corpus: all test clips correct (UAR 1.00, chance 0.17), 2 minutes on 2 cores.
"""

from mmattn.cli import experiment
from mmattn.config import ExperimentConfig

CONFIG = ExperimentConfig(name="no_aug")

if __name__ == "__main__":
    experiment(CONFIG, __doc__)
