"""Streams of one modality: many clips in shared memory, chosen, cropped, measured, read ahead."""

import mmap

import numpy as np
import pytest

from mmattn.data import stream as stream_module
from mmattn.data.stream import PADDING, Ragged, Stream, make_stream, pack_streams


def test_packed_streams_and_their_subsets_share_frames():
    streams = [make_stream(np.full((n, 2), n, np.float32), np.arange(n * 1.0)) for n in (3, 1, 2)]
    ragged = pack_streams(streams)
    assert ragged.starts.tolist() == [0, 3, 4]
    some = ragged.select(np.array([2, 0]))
    assert some.lengths.tolist() == [2, 3]
    assert some.clip(0).frames.tolist() == [[2, 2], [2, 2]]
    assert some.clip_times(1).tolist() == [0, 1, 2]
    assert np.shares_memory(some.clip(0).frames, ragged.frames)


def test_frames_of_zeros_are_missing_where_that_is_said():
    frames, times = np.float32([[0, 1], [0, 0], [2, 0]]), np.arange(3.0)
    assert make_stream(frames, times).valid.tolist() == [True, True, True]
    for zero_is_missing, valid in ((False, [True] * 3), (True, [True, False, True])):
        assert make_stream(frames, times, zero_is_missing).valid.tolist() == valid
        ragged = pack_streams([make_stream(frames, times)], zero_is_missing)
        assert ragged.select(np.array([0])).clip(0).valid.tolist() == valid


def test_the_length_is_that_without_padding():
    times = np.array([[0, 1, 2], [0.5, PADDING, PADDING], [PADDING] * 3])
    stream = Stream(np.zeros((3, 3, 2)), times, np.zeros((3, 3), bool))
    assert stream.length.tolist() == [3, 1, 0]


def test_only_what_is_mapped_is_read_ahead(tmp_path, monkeypatch):
    """In pieces that are at most 128 KiB long and begin with a page; a clip may have no rows."""
    path = tmp_path / "frames"
    np.zeros(200_000, np.float32).tofile(path)
    frames = np.asarray(np.memmap(path, np.float32, "r", shape=(50_000, 4)))
    times = np.zeros(50_000)
    lengths = np.array([10_000, 30_000, 0])
    clips = Ragged(frames, times, np.array([1000, 20_000, 50_000]), lengths)
    advised, advise = [], stream_module._madvise

    def advise_and_note(at, size, advice):
        assert advise(at, size, advice) == 0
        advised.append((at - frames.ctypes.data, size))

    monkeypatch.setattr(stream_module, "_madvise", advise_and_note)
    clips.read_ahead(2)
    assert not advised
    clips.read_ahead(0)
    begin, end = 16_000 // mmap.PAGESIZE * mmap.PAGESIZE, 176_000
    assert advised == [(begin, 2**17), (begin + 2**17, end - begin - 2**17)]
    pack_streams([make_stream(frames, times)]).read_ahead(0)
    assert len(advised) == 2


def at(*clips: list[float]) -> Ragged:
    """Clips whose frames are at these times."""
    return pack_streams([make_stream(np.zeros((len(one), 1)), np.array(one)) for one in clips])


@pytest.mark.parametrize(
    ("frames", "seconds"),
    [(1, 0), (2, 2), (3, 2.5), (4, 3), (5, 4), (99, 4)],  # a clip lasts no longer than it does
)
def test_how_long_some_frames_last(frames, seconds):
    clips = at([0, 1, 2, 3, 4], [10, 12, 12.5])
    assert clips.longest_span(frames) == seconds


@pytest.mark.parametrize(
    ("seconds", "frames"), [(0, 1), (0.2, 1), (0.25, 2), (0.75, 3), (2.25, 3), (2.75, 4), (9, 4)]
)
def test_how_many_frames_lie_within_some_seconds(seconds, frames):
    """Both ends count; a clip's neighbours in memory do not."""
    clips = at([0, 1, 2], [2.25, 2.75, 3, 5])
    assert clips.most_within(seconds) == frames


def test_mean_spacing_is_of_each_clip_chosen():
    clips = at([0, 1, 2], [5, 5.5], [1, 1.25, 4])
    np.testing.assert_allclose(clips.spacings(), [1, 0.5, 1.5])
    np.testing.assert_allclose(clips.select(np.array([2, 0])).spacings(), [1.5, 1])
    cropped = clips.crop(np.array([[0, 2], [0, 2], [0, 2]]))
    np.testing.assert_allclose(cropped.spacings(), [1, 0.5, 0.25])


def test_clips_without_frames_among_others():
    """They keep the width and leave every measure as it is without them."""
    empty = make_stream(np.zeros((0, 2), np.float32), np.zeros(0))
    whole = make_stream(np.ones((3, 2), np.float32), np.array([0, 1, 2.5]))
    ragged = pack_streams([empty, whole, empty])
    assert ragged.width == 2 and ragged.lengths.tolist() == [0, 3, 0]
    assert [ragged.clip(index).frames.shape for index in range(3)] == [(0, 2), (3, 2), (0, 2)]
    assert ragged.clip_times(2).shape == (0,)
    alone = pack_streams([whole])
    for measure in ("longest_span", "most_within"):
        for value in (1, 2, 9):
            assert getattr(ragged, measure)(value) == getattr(alone, measure)(value)
    np.testing.assert_array_equal(ragged.spacings(), alone.spacings())
    none = pack_streams([empty, empty])
    assert (none.width, none.longest_span(2), none.most_within(2)) == (2, 0, 0)
    assert none.spacings().shape == (0,) and none.clip(0).frames.dtype == np.float32
