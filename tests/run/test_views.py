import numpy as np

from mmattn.evaluate.predictions import Predictions
from mmattn.evaluate.views import choose_rows


def predictions(labels, predicted) -> Predictions:
    names = tuple(f"clip{row:03d}" for row in range(len(labels)))
    return Predictions(names, ["s"] * len(labels), labels, np.eye(3)[predicted], ("a", "b", "c"))


def test_right_and_wrong_clips_of_each_class_take_turns():
    #         0  1  2  3  4  5  6  7  8
    labels = [0, 0, 0, 0, 0, 1, 1, 2, 2]
    answer = [0, 0, 0, 0, 1, 1, 1, 0, 0]
    one = predictions(labels, answer)
    # Groups: right a 0 1 2 3, wrong a 4, right b 5 6, wrong c 7 8.
    np.testing.assert_array_equal(choose_rows(one, 4), [0, 4, 5, 7])
    np.testing.assert_array_equal(choose_rows(one, 7), [0, 1, 4, 5, 6, 7, 8])
    np.testing.assert_array_equal(choose_rows(one, 60), np.arange(9))
