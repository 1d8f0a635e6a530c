"""`no_aug` with the earlier system's augmentation: audio only, which breaks alignment.

python -m experiments.audio_aug [--data.roots FOLDER …]

Noise, scale ("pitch") and tempo of the audio features: at random one of the three or all.
"""

from mmattn.cli import experiment
from mmattn.config import AugmentConfig, ExperimentConfig

CONFIG = ExperimentConfig(
    name="audio_aug",
    augment=AugmentConfig(
        pick="one-or-all",
        noise={"audio": (0.005, 0.02)},
        scale={"audio": (0.9, 1.1)},
        own_tempo={"audio": (0.9, 1.1)},
    ),
)

if __name__ == "__main__":
    experiment(CONFIG, __doc__)
