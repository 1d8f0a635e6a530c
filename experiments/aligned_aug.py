"""`no_aug` with augmentation that leaves time as it is: what changes is what each frame holds.

python -m experiments.aligned_aug [--data.roots FOLDER …]

Audio noise and gain; video noise, features that are missing, short gaps without a face.
"""

from mmattn.cli import experiment
from mmattn.config import AugmentConfig, ExperimentConfig

CONFIG = ExperimentConfig(
    name="aligned_aug",
    augment=AugmentConfig(
        audio_noise=(0.05, 0.2),
        audio_scale=(0.9, 1.1),
        video_noise=(0.05, 0.2),
        video_dropout=0.1,
        video_gap=0.2,
    ),
)

if __name__ == "__main__":
    experiment(CONFIG, __doc__)
