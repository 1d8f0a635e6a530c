"""A training of a moment on the corpus that needs alignment."""

from mmattn.config import (
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    SyntheticConfig,
    TrainConfig,
)

CONFIG = ExperimentConfig(
    name="compare",
    data=DataConfig(
        buckets=1,
        validation=0.2,
        test=0.5,
        synthetic=SyntheticConfig(
            rule="coincidence",
            clips=144,
            speakers=12,
            audio_rate=20,
            audio_width=6,
            video_width=5,
        ),
    ),
    model=ModelConfig(
        units={"audio": (4,), "video": (4,)}, head_units=(8,), head_dropout=(0.1,), cross_units=8
    ),
    train=TrainConfig(epochs=2, batch=16, patience=0, save_every=9, steps_per_dispatch=1),
)
