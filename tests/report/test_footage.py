"""Audio and faces for a page: hand-computed values."""

import io

import numpy as np
import pytest
from PIL import Image

from mmattn.evaluate.views import StreamView
from mmattn.report.footage import BINS, SIDE, envelope, most_attended, portrait


def test_an_envelope_is_the_largest_magnitude_of_each_part():
    samples = np.zeros(3 * BINS, np.float32)
    samples[[0, 4, 5]] = 0.1, -0.7, 0.6
    found = envelope(samples, 100, 2.0)
    assert len(found.times) == len(found.loudness) == BINS
    np.testing.assert_allclose(found.loudness[:3], [0.1, 0.7, 0], rtol=1e-6)
    np.testing.assert_allclose(found.times[:2], [2.015, 2.045])


def test_a_short_sound_is_its_own_envelope():
    found = envelope(np.array([0.5, -0.25]), 10, 0.0)
    np.testing.assert_allclose(found.loudness, [0.5, 0.25])
    np.testing.assert_allclose(found.times, [0.05, 0.15])


def stream(attention, valid=None) -> StreamView:
    attention = np.array(attention, float)
    times = np.arange(len(attention)) / 10
    return StreamView(times, attention, np.zeros((len(attention), 1)), valid)


def test_the_most_attended_frames_are_apart_and_in_order():
    #  frame      0  1  2  3  4  5  6  7  8  9 10 11
    attention = [1, 9, 8, 2, 7, 6, 9, 0, 3, 0, 0, 5]
    # 1 and 6 are first, 4 is 0.2 s from 6, 11 far; then 8, 0.2 s from 6.
    assert most_attended(stream(attention)).tolist() == [1, 4, 6, 8, 11]


def test_frames_without_a_face_are_never_the_most_attended():
    attention = [5, 0, 0, 9, 0, 0, 1]
    valid = np.array([1, 1, 1, 0, 1, 1, 1], bool)
    assert most_attended(stream(attention, valid)).tolist() == [0, 2, 4, 6]
    assert most_attended(stream(np.zeros(7), np.zeros(7, bool))).tolist() == []


@pytest.mark.parametrize("shift", [0, -30])
def test_a_portrait_is_a_square_around_the_face(shift):
    picture = np.full((90, 160, 3), 40, np.uint8)
    picture[30:50, max(40 + shift, 0) : 60 + shift] = (200, 60, 60)
    content = portrait(picture, (40 + shift, 30, 60 + shift, 50))
    image = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    assert image.shape == (SIDE, SIDE, 3)
    assert len(content) < 6000
    middle, edge = image[SIDE // 2, SIDE // 2], image[SIDE // 2, -4]
    np.testing.assert_allclose(middle, (200, 60, 60), atol=12)
    np.testing.assert_allclose(edge, 40, atol=12)
    # A face of 20 in a square of 30: a sixth of it is margin at each side.
    red = image[SIDE // 2, :, 0] > 120
    assert red.sum() == pytest.approx(SIDE * 20 / 30, abs=4)


def test_a_portrait_reaches_beyond_the_picture():
    picture = np.full((40, 40, 3), 250, np.uint8)
    content = portrait(picture, (-10, -10, 10, 10))
    image = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    assert image[4, 4] < 20 and image[-4, -4] > 230
