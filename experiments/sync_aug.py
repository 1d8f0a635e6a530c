"""`no_aug` with synchronised augmentation: one tempo for audio and video, noise on both.

python -m experiments.sync_aug [--data.roots FOLDER …]

Both streams are resampled with the same time map, so they stay aligned.
"""

from mmattn.cli import experiment
from mmattn.config import AugmentConfig, ExperimentConfig

CONFIG = ExperimentConfig(
    name="sync_aug",
    augment=AugmentConfig(
        tempo=(0.9, 1.1),
        noise={"audio": (0.005, 0.02), "video": (0.005, 0.02)},
    ),
)

if __name__ == "__main__":
    experiment(CONFIG, __doc__)
