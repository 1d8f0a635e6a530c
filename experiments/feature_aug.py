"""`no_aug` with masks and mixup of features, at the same times in audio and video.

python -m experiments.feature_aug [--data.roots FOLDER …]

Time masks over both modalities, feature masks, modality dropout, mixup.
"""

from mmattn.cli import experiment
from mmattn.config import AugmentConfig, ExperimentConfig

CONFIG = ExperimentConfig(
    name="feature_aug",
    augment=AugmentConfig(
        time_mask=0.3,
        feature_mask=0.2,
        drop_modality=0.1,
        mixup=0.2,
    ),
)

if __name__ == "__main__":
    experiment(CONFIG, __doc__)
