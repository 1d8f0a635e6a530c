"""`no_aug` with augmentation that does not change time, only the content of frames.

python -m experiments.aligned_aug [--data.roots FOLDER …]

Audio noise and gain; video noise, missing features, short gaps without a face.
"""

from mmattn.cli import experiment
from mmattn.config import AugmentConfig, ExperimentConfig

CONFIG = ExperimentConfig(
    name="aligned_aug",
    augment=AugmentConfig(
        noise={"audio": (0.05, 0.2), "video": (0.05, 0.2)},
        scale={"audio": (0.9, 1.1)},
        dropout={"video": 0.1},
        gap={"video": 0.2},
    ),
)

if __name__ == "__main__":
    experiment(CONFIG, __doc__)
