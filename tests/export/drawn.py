"""Networks that were never trained, without anything in them that is 0 or 1."""

from dataclasses import replace

import jax
import numpy as np

from mmattn.config import DataConfig, ExperimentConfig, ModelConfig
from mmattn.data.corpus import Corpus
from mmattn.export.check import draw_clips
from mmattn.train.inference import Restored, learner_for
from mmattn.train.step import Weights

DEFAULT = DataConfig()
CLASSES = ("calm", "happy", "sad")
WIDTHS = {"audio": 5, "audio_words": 2, "video": 4}
UNITS = {"audio": (4, 3), "video": (3,), "audio_words": (2,)}
SMALL = ModelConfig(units=UNITS, head_units=(6, 5), head_dropout=(0, 0), cross_units=4)


def draw(
    count: int = 1, data: DataConfig = DEFAULT, **model: object
) -> tuple[list[Restored], Corpus]:
    """So many networks of one architecture, and the clips to compare them on."""
    rng, config = (
        np.random.default_rng(0),
        ExperimentConfig(data=data, model=replace(SMALL, **model)),
    )
    normalisers = [
        {
            f"{name}_{of}": rng.uniform(0.5, 2, WIDTHS[name]).astype(np.float32)
            for name in config.model.modalities
            for of in ("mean", "std")
        }
        for _ in range(count)
    ]
    corpus = draw_clips(config.model.modalities, normalisers[0], data, CLASSES)
    state = learner_for(config, corpus, 1).initial(0)

    def alter(x):
        return (x + rng.uniform(-0.5, 0.5, x.shape)).astype(np.float32)

    return [
        Restored(
            {"config": config.to_json()},
            Weights(*jax.tree.map(alter, (state.params, state.batch_stats))),
            own,
        )
        for own in normalisers
    ], corpus
