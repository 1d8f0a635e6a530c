"""Audio that comes late, to a network that cannot tell."""

from dataclasses import replace

import numpy as np

from mmattn.config import DataConfig, ExperimentConfig, ModelConfig, SyntheticConfig
from mmattn.data.corpus import open_corpus
from mmattn.data.splits import make_split
from mmattn.train.loop import make_trainer

SYNTHETIC = SyntheticConfig(clips=36, speakers=6, audio_width=4, video_width=3, audio_rate=20)
SMALL = ModelConfig(units={"audio": (4,), "video": (4,)}, head_units=(4,), head_dropout=(0.0,))


def test_fusion_concat_reads_no_times():
    config = ExperimentConfig("no_aug", data=DataConfig(buckets=1, synthetic=SYNTHETIC))
    config = replace(config, model=SMALL)
    corpus = open_corpus(config.data, config.streams)
    split = make_split(corpus, config.data, seed=0)
    trainer = make_trainer(config, corpus, split, device_count=1)
    state, _ = trainer.start()
    audio = corpus.streams["audio"]
    delayed = replace(audio, delay=0.3)
    late = replace(corpus, streams=corpus.streams | {"audio": delayed})
    np.testing.assert_allclose(delayed.clip(5).times, audio.clip(5).times + 0.3)
    np.testing.assert_array_equal(delayed.clip(5).frames, audio.clip(5).frames)
    network = trainer.predictor(state)
    other = network.with_corpus(late).predict(split.test)
    found = network.predict(split.test)
    np.testing.assert_array_equal(other.probabilities, found.probabilities)
