"""The loss of mixed clips."""

from dataclasses import replace

import numpy as np
import pytest

from mmattn.config import ModelConfig, TrainConfig
from mmattn.data.batches import Batch
from mmattn.data.stream import Stream
from mmattn.model.network import Output, Vote
from mmattn.train.loss import focal_loss
from mmattn.train.step import Learner

MODEL = ModelConfig(
    modalities=("audio",), units={"audio": (2,)}, head_units=(), head_dropout=(), statistics=True
)
LOGITS = np.log(np.array([[3.0, 1.0]] * 4, np.float32))  # probabilities ¾ and ¼
OWN, OTHER = np.array([0, 0, 1, 1], np.int32), np.array([0, 1, 0, 1], np.int32)
SHARES = np.array([0.5, 0.75, 0.75, 1.0], np.float32)


def loss(gamma, shares, statistics=None, weights=(1.0, 1.0)) -> np.ndarray:
    learner = Learner(MODEL, TrainConfig(gamma=gamma), {"audio": 2}, 2, 1)
    nothing = [None] * len(Batch._fields)
    batch = Batch(*nothing)._replace(label=OWN, mixup_label=OTHER, mixup_lambda=shares)
    output = Output(LOGITS, Vote(LOGITS, LOGITS, statistics), {}, {}, None)
    return np.asarray(learner.loss(output, batch, np.array(weights, np.float32)))


def test_a_mixed_clip_has_the_mean_loss_of_its_labels_by_their_shares():
    right, wrong = np.log(4 / 3), np.log(4)
    by_hand = np.array([right, 0.75 * right + 0.25 * wrong, 0.75 * wrong + 0.25 * right, wrong])
    np.testing.assert_allclose(loss(0.0, SHARES), by_hand, rtol=1e-6)
    right, wrong = np.log(4 / 3) / 16, np.log(4) * 9 / 16
    focal = np.array([right, 0.75 * right + 0.25 * wrong, 0.75 * wrong + 0.25 * right, wrong])
    np.testing.assert_allclose(loss(2.0, SHARES), focal, rtol=1e-6)
    # The linear classifier has a loss of its own, without focus: here its p are ½.
    both = loss(2.0, SHARES, statistics=np.zeros((4, 2), np.float32))
    np.testing.assert_allclose(both, focal + np.log(2), rtol=1e-6)


def test_losses_of_single_modalities_are_added_up_where_a_clip_has_them():
    present = {
        "audio": np.array([[1], [1], [0], [0]], bool),
        "video": np.array([[1], [0]] * 2, bool),
    }
    streams = {name: Stream(None, None, valid) for name, valid in present.items()}
    batch = Batch(streams, OWN, OWN, np.ones(4, np.float32), None, None, None)
    votes = dict.fromkeys(present, Vote(LOGITS, LOGITS, np.zeros((4, 2), np.float32)))
    right, wrong = np.log(4 / 3) + np.log(2), np.log(4) + np.log(2)

    def found(output, **model):
        learner = Learner(replace(MODEL, **model), TrainConfig(gamma=0.0), {"audio": 2}, 2, 1)
        return learner.loss(output, batch, np.ones(2, np.float32))

    late = found(Output(LOGITS, None, votes, {}, None), fusion="late")
    np.testing.assert_allclose(late, [2 * right, right, wrong, 0], rtol=1e-6)
    joint = Vote(LOGITS, LOGITS, None)
    both = found(Output(LOGITS, joint, votes, {}, None), branch_loss=0.5)
    own = np.log([4 / 3, 4 / 3, 4, 4])
    np.testing.assert_allclose(both, own + np.array([right, right / 2, wrong / 2, 0]), rtol=1e-6)


def test_each_label_has_its_own_class_weight():
    right, wrong = 2 * np.log(4 / 3), 5 * np.log(4)
    expected = [right, 0.75 * right + 0.25 * wrong, 0.75 * wrong + 0.25 * right, wrong]
    np.testing.assert_allclose(loss(0.0, SHARES, weights=(2.0, 5.0)), expected, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_a_whole_share_is_the_plain_loss(gamma):
    plain = focal_loss(LOGITS, OWN, gamma, np.ones(2, np.float32))
    np.testing.assert_array_equal(loss(gamma, np.ones(4, np.float32)), plain)
