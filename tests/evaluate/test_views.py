import numpy as np

from mmattn.evaluate.views import StreamView, ratio_to_uniform, spans_without_data


def test_ratio_to_uniform_by_hand():
    attention, valid = np.array([0.5, 0.0, 0.25, 0.25]), np.array([True, False, True, True])
    np.testing.assert_allclose(ratio_to_uniform(attention, valid), [1.5, np.nan, 0.75, 0.75])
    np.testing.assert_allclose(ratio_to_uniform(np.full(5, 0.2), np.ones(5, bool)), 1)
    assert np.isnan(ratio_to_uniform(np.zeros(3), np.zeros(3, bool))).all()
    assert np.isnan(ratio_to_uniform(np.zeros(3), np.ones(3, bool))).all()


def test_spans_without_a_face_by_hand():
    times, valid = np.arange(6) * 0.2, np.array([False, True, False, False, True, False])
    expected = [(-0.1, 0.1), (0.3, 0.7), (0.9, 1.1)]
    np.testing.assert_allclose(spans_without_data(times, valid), expected)
    assert spans_without_data(times, np.ones(6, bool)) == []
    assert spans_without_data(np.array([0.4]), np.array([False])) == [(0.4, 0.4)]


def test_a_stream_without_gaps_is_valid_throughout():
    stream = StreamView(np.arange(4) / 10, np.array([1.0, 3.0, 2.0, 2.0]), np.zeros((4, 1)))
    np.testing.assert_allclose(stream.ratio, [0.5, 1.5, 1, 1])
    assert stream.gaps == []
