"""The whole network: what may change a clip's prediction, and what may not."""

import jax
import numpy as np
import pytest
from flax import nnx

from mmattn.config import ModelConfig
from mmattn.data.batches import Batch
from mmattn.data.stream import PADDING, Stream
from mmattn.model.network import Network
from tests.model.compiled import Model

WIDTHS = {"audio": 3, "video": 4}
FRAMES = {"audio": 9, "video": 6}
RATES = {"audio": 6.0, "video": 4.0}
SMALL = ModelConfig(
    units={"audio": (4, 3), "video": (3,)}, head_units=(16, 12), head_dropout=(0.2, 0.1)
)
AUDIO_LENGTHS, VIDEO_LENGTHS = (9, 4, 7, 0), (6, 6, 3, 2)
NO_FACE = (1, 2)  # clip, frame


def stream(name: str, lengths, frames: int | None = None, seed: int = 0) -> Stream:
    rng = np.random.default_rng(seed)
    length = np.array(lengths, np.int32)
    valid = np.arange(frames or FRAMES[name]) < length[:, None]
    x = np.zeros((*valid.shape, WIDTHS[name]), np.float32)
    for clip, own in enumerate(length):
        x[clip, :own] = rng.standard_normal((own, WIDTHS[name]))
    times = np.arange(valid.shape[1], dtype=np.float32) / np.float32(RATES[name])
    return Stream(x, np.where(valid, times, PADDING), valid)


def batch_of(**streams: Stream) -> Batch:
    clips = len(next(iter(streams.values())).valid)
    numbers, ones = np.arange(clips, dtype=np.int32), np.ones(clips, np.float32)
    return Batch(streams, numbers, numbers, ones, None, ones, numbers)


def with_streams(batch: Batch, **streams: Stream) -> Batch:
    """The batch with others in the place of some streams."""
    return batch._replace(streams=batch.streams | streams)


def without_face(video: Stream, clip: int, frame: int) -> Stream:
    frames, valid = video.frames.copy(), video.valid.copy()
    frames[clip, frame], valid[clip, frame] = 0, False
    return video._replace(frames=frames, valid=valid)


def replace_clip(stream: Stream, clip: int, frames: np.ndarray, valid: np.ndarray) -> Stream:
    """Another clip in the place of one."""
    new = Stream(*(array.copy() for array in stream))
    times = np.where(stream.times < PADDING, stream.times, 0).max(0)  # of the longest clip
    for array, values, blank in (
        (new.frames, frames, 0),
        (new.valid, valid, False),
        (new.times, times, PADDING),
    ):
        array[clip] = blank
        array[clip, : len(frames)] = values[: len(frames)]
    return new


def with_garbage(stream: Stream, size: float) -> Stream:
    inside = stream.times < PADDING
    noise = size * np.random.default_rng(9).standard_normal(stream.frames.shape)
    return stream._replace(
        frames=np.where(inside[..., None], stream.frames, noise).astype(np.float32)
    )


@pytest.fixture(scope="module")
def batch() -> Batch:
    video = without_face(stream("video", VIDEO_LENGTHS, seed=1), *NO_FACE)
    return batch_of(audio=stream("audio", AUDIO_LENGTHS), video=video)


@pytest.fixture(scope="module")
def model(batch) -> Model:
    model = Model(SMALL, WIDTHS)
    assert np.abs(model.predict(batch).logits).max(1).min() > 0.1  # no clip's logits are all 0
    return model


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_attention_sums_to_one_over_the_valid_frames(model, batch):
    attention = model.predict(batch).fused.attention
    for name in WIDTHS:
        valid, weights = batch.streams[name].valid, np.asarray(attention[name])
        np.testing.assert_allclose(weights.sum(1), valid.any(1), rtol=1e-6)
        assert (weights[~valid] == 0).all() and (weights[valid] > 0).all()
    assert attention["video"][NO_FACE] == 0


def test_embeddings_are_zero_in_the_padding_alone(model, batch):
    embeddings = model.predict(batch).embeddings
    for name, width in (("audio", 6), ("video", 6)):
        part, found = batch.streams[name], np.asarray(embeddings[name])
        assert found.shape == (*part.valid.shape, width)
        inside = np.arange(part.valid.shape[1]) < part.length[:, None]
        assert (found[~inside] == 0).all()
        assert (np.abs(found[inside]).max(-1) > 0).all()  # frames without a face included


def test_a_frame_without_a_face_keeps_its_place_in_time(model, batch):
    clip, frame = NO_FACE
    video = batch.streams["video"]
    frames, valid = video.frames[clip], video.valid[clip]
    later = [0, 1, 3, 4, 2, 5]  # the frame without a face two places on, the others in order
    changed = [
        replace_clip(video, clip, np.delete(frames, frame, 0), np.delete(valid, frame)),
        replace_clip(video, clip, frames[later], valid[later]),
    ]
    logits = model.predict(batch).logits[clip]
    for other in changed:
        moved = model.predict(with_streams(batch, video=other)).logits[clip]
        assert np.abs(moved - logits).max() > 1e-3


def test_longer_padding_does_not_change_logits(model, batch):
    def longer(part: Stream, more: int) -> Stream:
        frames = np.pad(part.frames, ((0, 0), (0, more), (0, 0)))
        times = np.pad(part.times, ((0, 0), (0, more)), constant_values=PADDING)
        return Stream(frames, times, np.pad(part.valid, ((0, 0), (0, more))))

    streams = batch.streams
    padded = batch_of(audio=longer(streams["audio"], 5), video=longer(streams["video"], 3))
    found, expected = model.predict(padded), model.predict(batch)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=1e-5)
    for name, frames in FRAMES.items():
        np.testing.assert_allclose(
            found.fused.attention[name][:, :frames], expected.fused.attention[name], atol=1e-5
        )


@pytest.mark.parametrize("size", [1e3, 1e6])
def test_garbage_in_the_padding_changes_nothing(model, batch, size):
    garbage = batch_of(**{name: with_garbage(part, size) for name, part in batch.streams.items()})
    assert_same(model.predict(garbage), model.predict(batch))
    assert_same(model.train(garbage), model.train(batch))


def test_other_clips_do_not_change_a_prediction(model, batch):
    others = {
        "audio": stream("audio", (1, 9, 2, 8), seed=2),
        "video": stream("video", (1, 0, 5, 6), seed=3),
    }
    kept, mixed = 2, {}
    for name, part in batch.streams.items():
        inside = slice(part.length[kept])
        own = part.frames[kept, inside], part.valid[kept, inside]
        mixed[name] = replace_clip(others[name], kept, *own)
    found = model.predict(batch_of(**mixed)).logits
    expected = model.predict(batch).logits
    np.testing.assert_allclose(found[kept], expected[kept], rtol=1e-6)
    assert np.abs(found - expected)[[0, 1, 3]].max(1).min() > 1e-3


@pytest.mark.parametrize("missing", [("audio",), ("video",), ("audio", "video")])
def test_a_missing_modality_is_harmless(model, batch, missing):
    for clips in ([0], [0, 1, 2, 3]):
        lacking = batch
        for name in missing:
            part = lacking.streams[name]
            for clip in clips:
                part = replace_clip(part, clip, np.empty((0, WIDTHS[name])), np.empty(0, bool))
            lacking = with_streams(lacking, **{name: part})
        output = model.predict(lacking)
        for values in jax.tree.leaves((output, model.train(lacking))):
            assert np.isfinite(values).all()
        for name in missing:
            assert (np.asarray(output.fused.attention[name])[clips] == 0).all()


@pytest.mark.parametrize(("name", "other"), [("audio", "video"), ("video", "audio")])
def test_a_network_of_one_modality_has_that_branch_alone(batch, name, other):
    config = ModelConfig(modalities=(name,), units={name: (3,)}, head_units=(), head_dropout=())
    model = Model(config, WIDTHS)
    output = model.predict(batch)
    assert list(output.fused.attention) == list(output.embeddings) == [name]
    for path, _ in nnx.to_flat_state(model.params):
        assert other not in path
    changed = with_streams(batch, **{other: stream(other, (1, 2, 3, 4), seed=5)})
    assert_same(model.predict(changed), output)
    assert_same(model.predict(batch_of(**{name: batch.streams[name]})), output)
    changed = with_streams(batch, **{name: stream(name, (1, 2, 3, 4), seed=5)})
    assert np.abs(model.predict(changed).logits - output.logits).max() > 1e-4


def test_training_differs_from_prediction_and_reaches_every_parameter(model, batch):
    logits, gradients = model.train(batch)
    assert np.abs(logits - model.predict(batch).logits).max() > 1e-3
    for gradient in jax.tree.leaves(gradients):
        assert np.abs(gradient).max() > 0


def test_the_default_has_the_earlier_systems_size():
    def lstm(features, units):
        return 2 * 4 * units * (features + units + 1)  # directions, gates, kernels and bias

    def dense(features, units):
        return (features + 1) * units

    audio = lstm(89, 128) + lstm(2 * 128, 64) + 2 * 64  # the attention has no bias
    video = lstm(512, 256) + lstm(2 * 256, 128) + 2 * 128
    head = dense(128 + 256, 256) + 2 * 256 + dense(256, 128) + 2 * 128 + dense(128, 6)
    network = nnx.eval_shape(
        lambda: Network(ModelConfig(), {"audio": 89, "video": 512}, classes=6, rngs=nnx.Rngs(0))
    )
    sizes = [np.prod(param.shape) for param in jax.tree.leaves(nnx.state(network, nnx.Param))]
    assert sum(sizes) == audio + video + head == 2_752_262
