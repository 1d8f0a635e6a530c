"""The shared work: full, ragged batches of the buckets' shapes, and their FLOP by hand."""

import numpy as np

from benchmarks.work import clip_flop, make_work
from mmattn.config import ModelConfig

WIDTHS = {"audio": 89, "video": 512}


def test_every_batch_is_full_ragged_and_padded_to_its_bucket():
    work = make_work(batch=24, per_bucket=40)
    batches = work.batches()
    assert len(batches) == 4 * 2
    assert work.clips == 8 * 24
    shapes = [d.bucket for d in work.dispatches for _ in d.batches]
    for batch, shape in zip(batches, shapes, strict=True):
        audio, video = batch.streams["audio"], batch.streams["video"]
        assert audio.frames.shape == (24, shape["audio"], 89)
        assert video.frames.shape == (24, shape["video"], 512)
        assert batch.weight.all()
        assert len(set(audio.length)) > 1
        np.testing.assert_array_equal(video.valid.sum(-1), video.length)


def test_everyone_gets_the_same_work():
    for one, other in zip(make_work(8, 8).batches(), make_work(8, 8).batches(), strict=True):
        np.testing.assert_array_equal(one.streams["audio"].frames, other.streams["audio"].frames)
        np.testing.assert_array_equal(one.label, other.label)


def test_flop_by_hand():
    model = ModelConfig(units={"audio": (3,), "video": (1, 2)})
    widths, frames = {"audio": 5, "video": 4}, {"audio": 7, "video": 2}
    # Both directions, two FLOP a multiplication; input kernel without, with dX; recurrent kernel.
    audio = 2 * 2 * 7 * 12 * (2 * 5 + 3 * 3)
    video = 2 * 2 * 2 * (4 * (2 * 4 + 3 * 1) + 8 * (3 * 2 + 3 * 2))
    assert clip_flop(model, widths, frames) == audio + video


def test_flop_of_the_full_size_network():
    flop = clip_flop(ModelConfig(), WIDTHS, {"audio": 380, "video": 57})
    assert round(flop / 1e9, 3) == 1.453


def test_the_flop_of_work_are_those_of_its_clips_without_padding():
    work = make_work(batch=2, per_bucket=2)
    every = [clip for dispatch in work.dispatches for batch in dispatch.batches for clip in batch]
    audio, video = (work.corpus.streams[name].lengths[every] for name in ("audio", "video"))
    lengths = zip(audio, video, strict=True)
    expected = sum(clip_flop(ModelConfig(), WIDTHS, {"audio": a, "video": v}) for a, v in lengths)
    assert work.flop == expected
