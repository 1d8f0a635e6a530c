"""The network that comes with the package, mmattn/starter: audio alone, on Whisper's features.

mmattn extract RAVDESS --to FEATURES --audio whisper --video none
python -m experiments.starter --data.roots FEATURES --out runs/starter
mmattn card runs/starter --to mmattn/starter --half

Eight classes of RAVDESS; three folds of four unseen speakers each, whose networks are all stored:
small ones, so that the twelve take less than 2 MB. UAR 0.712 [0.628, 0.785] with 12 actors, in 10
minutes on a core that other work shared.
"""

from mmattn.cli import experiment
from mmattn.config import AugmentConfig, DataConfig, ExperimentConfig, ModelConfig, TrainConfig

CONFIG = ExperimentConfig(
    name="starter",
    members=4,
    data=DataConfig(labels=("ravdess8",), folds="ravdess"),
    augment=AugmentConfig(feature_mask=0.5, time_mask=1.0),
    model=ModelConfig(
        modalities=("audio",),
        units={"audio": (16,)},
        statistics=True,
        head_units=(64,),
        head_dropout=(0.5,),
    ),
    train=TrainConfig(
        epochs=30,
        batch=32,
        learning_rate=2e-3,
        weight_decay=3.0,
        schedule="cosine",
        patience=30,
    ),
)

if __name__ == "__main__":
    experiment(CONFIG, __doc__)
