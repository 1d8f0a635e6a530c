"""The feed: what it reads, in which order, and how far ahead."""

import threading

import numpy as np
import pytest

from mmattn.config import AugmentConfig, DataConfig, SyntheticConfig
from mmattn.data.batches import Augmentation, make_buckets, plan_epoch
from mmattn.data.corpus import open_corpus
from mmattn.data.normalise import fit_normaliser
from mmattn.data.stream import Ragged
from mmattn.train.feed import AHEAD, Feed

BATCH = 4


@pytest.mark.parametrize("augment", [AugmentConfig(), AugmentConfig(mixup=0.5)])
def test_clips_are_read_ahead_of_the_batches_that_have_them(monkeypatch, augment):
    sizes = {"audio_width": 3, "video_width": 3, "audio_rate": 10, "video_rate": 10}
    data = DataConfig(synthetic=SyntheticConfig(clips=48, speakers=4, **sizes))
    corpus = open_corpus(data, ("audio", "video"))
    clips = np.arange(48)
    buckets = make_buckets(corpus, clips, 1)
    plan = plan_epoch(corpus, clips, buckets, BATCH, 1, np.random.default_rng(0))
    feed = Feed(corpus, fit_normaliser(corpus, clips), buckets, BATCH, 1)
    begun: list[tuple[int, int]] = []
    clip = Ragged.clip

    def taken(self, index):
        assert (id(self), index) in begun
        return clip(self, index)

    monkeypatch.setattr(Ragged, "read_ahead", lambda self, at: begun.append((id(self), at)))
    monkeypatch.setattr(Ragged, "clip", taken)
    threads = threading.active_count()
    augmentation = Augmentation(augment, 0, 0)
    dispatches = feed(plan, 1, augmentation)
    next(dispatches)
    dispatches.close()
    assert threading.active_count() == threads
    assert len(begun) == 2 * BATCH * (1 + 2 * AHEAD)
    begun.clear()
    assert len(list(feed(plan, 1, augmentation))) == len(plan)
    streams = {id(stream) for stream in corpus.streams.values()}
    assert sorted(begun) == sorted((stream, at) for stream in streams for at in clips)
