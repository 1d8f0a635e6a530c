"""Fusion late, and the classifiers of one modality: their joint vote and what each learns from."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmattn.config import ModelConfig, TrainConfig
from mmattn.data.batches import Batch
from mmattn.data.stream import Stream
from mmattn.model.encoder import Encoder
from mmattn.model.fusion.cross import Window
from mmattn.model.fusion.late import Late
from mmattn.model.initial import Keys
from mmattn.model.layers import Training
from mmattn.model.network import Network
from mmattn.train.step import Learner

WIDTHS = {"audio": 3, "video": 2}
LATE = ModelConfig(
    fusion="late",
    encoder="none",  # quicker to compile
    head_units=(3,),
    head_dropout=(0.0,),
    input_dropout=0.0,
    pooled_dropout=0.0,
    statistics=True,
)
CROSS = replace(LATE, fusion="cross", cross_units=2, branch_loss=0.5)
GEOMETRY = {"concat": None, "cross": (("audio", Window(5, 5)), ("video", Window(5, 5)))}
VOTES = {"audio": [0.5, 0.3, 0.2], "video": [0.1, 0.1, 0.8]}


def there(*present: bool) -> Stream:
    """Streams of clips, some of which have no valid frame."""
    return Stream(None, None, np.array(present)[:, None])


def test_the_joint_vote_is_the_weighted_geometric_mean_of_those_that_there_are():
    late = Late({"video": 2, "audio": 3}, LATE, None, None, None)
    logits = {name: jnp.log(jnp.array([vote] * 4)) + 7 for name, vote in VOTES.items()}
    streams = {"video": there(1, 0, 1, 0), "audio": there(1, 1, 0, 0)}
    audio, video = np.array(VOTES["audio"]), np.array(VOTES["video"])
    found = jax.nn.softmax(late.join(logits, streams))
    both = np.sqrt(audio * video)
    expected = [both / both.sum(), audio, video, [1 / 3] * 3]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    late.log_weights.set_value(jnp.log(jnp.array([3.0, 1.0])))  # of audio and video
    both = audio**0.75 * video**0.25
    found = jax.nn.softmax(late.join(logits, streams))
    np.testing.assert_allclose(found, [both / both.sum(), audio, video, [1 / 3] * 3], rtol=1e-5)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Eight clips; the second has no video, the last is padding."""
    rng = np.random.default_rng(0)
    streams = {}
    for name, width in WIDTHS.items():
        valid = np.ones((8, 5), bool)
        valid[1] = name != "video"
        frames = rng.standard_normal((8, 5, width)).astype(np.float32) * valid[..., None]
        streams[name] = Stream(frames, np.tile(np.arange(5, dtype=np.float32), (8, 1)), valid)
    label, weight = np.arange(8, dtype=np.int32) % 3, np.float32([1] * 7 + [0])
    return Batch(streams, label, label, np.ones(8, np.float32), None, weight, label)


@cache
def differentiated(config: ModelConfig) -> Callable[[Batch], nnx.State]:
    """Gradients of the summed loss of a batch, compiled once."""
    geometry = GEOMETRY.get(config.fusion)
    learner = Learner(config, TrainConfig(), WIDTHS, 3, 1, geometry)
    graph, params, rest = nnx.split(Network(config, WIDTHS, 3, Keys(0), geometry), nnx.Param, ...)

    def loss(params, batch):
        shape = (len(batch.weight), *learner.dropout_shape)
        training = Training(jnp.zeros(shape), lambda tree: tree)
        output = nnx.merge(graph, params, rest, copy=True)(batch, training)
        return batch.weight @ learner.loss(output, batch, np.ones(3, np.float32))

    return partial(jax.jit(jax.grad(loss)), params)


def gradients(config: ModelConfig, batch: Batch) -> dict[str, np.ndarray]:
    """In each parameter that has any, by its path."""
    found = jax.tree_util.tree_leaves_with_path(differentiated(config)(batch))
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in found if np.any(x)}


def of(modality: str, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {path: x for path, x in found.items() if f"'{modality}'" in path}


def test_each_modality_learns_as_if_it_were_alone(batch):
    found = gradients(LATE, batch)
    assert len(of("audio", found)) + len(of("video", found)) == len(found)
    video = batch.streams["video"]
    other = batch.streams | {"video": video._replace(frames=-video.frames)}
    changed = gradients(LATE, batch._replace(streams=other))
    assert of("audio", changed).keys() == of("audio", found).keys()
    for path, expected in of("audio", found).items():
        np.testing.assert_array_equal(changed[path], expected, err_msg=path)
    assert any(np.any(changed[path] != x) for path, x in of("video", found).items())


@pytest.mark.parametrize("model", [LATE, pytest.param(CROSS, marks=pytest.mark.slow)])
def test_a_clip_without_a_modality_teaches_its_classifier_nothing(batch, model):
    """The second clip has no video: to the video's own classifier it is padding."""
    found = gradients(model, batch)
    without = gradients(model, batch._replace(weight=np.float32([1, 0] + [1] * 5 + [0])))
    own = [path for path in of("video", found) if "classifiers" in path]
    assert len(own) >= 6
    for path in own:
        np.testing.assert_allclose(found[path], without[path], atol=1e-4, err_msg=path)
    audio = [path for path in of("audio", found) if "classifiers" in path]
    assert any(np.abs(found[path] - without[path]).max() > 1e-3 for path in audio)


def test_a_batch_in_which_all_clips_lack_a_modality_is_harmless(batch):
    video = batch.streams["video"]
    blind = video._replace(frames=0 * video.frames, valid=np.zeros_like(video.valid))
    found = gradients(LATE, batch._replace(streams=batch.streams | {"video": blind}))
    assert not of("video", found) and of("audio", found)
    assert all(np.isfinite(x).all() for x in found.values())


@pytest.mark.parametrize("fusion", ["concat", "cross"])
def test_auxiliary_heads_are_added_and_leave_the_prediction_alone(batch, fusion):
    plain = replace(LATE, fusion=fusion, cross_units=2)
    more = replace(plain, branch_loss=0.5)
    before, after = (Network(one, WIDTHS, 3, Keys(0), GEOMETRY[fusion]) for one in (plain, more))
    own, all_of_them = (set(nnx.to_flat_state(nnx.state(one)).paths) for one in (before, after))
    added = all_of_them - own
    assert own < all_of_them and {path[0] for path in added} <= {"classifiers", "branches"}
    output = nnx.eval_shape(after, batch)
    assert sorted(output.votes) == ["audio", "video"] and output.votes["audio"].statistics is None


def test_without_lstm_a_branch_is_the_mean_of_its_frames_or_attention_to_them(batch):
    stream = batch.streams["audio"]
    for pooling, parameters in (("mean", 0), ("attention", 1)):
        config = replace(LATE, pooling=pooling)
        encoder = Encoder("audio", 3, config, True, iter(range(9)), Keys(0))
        assert len(jax.tree.leaves(nnx.state(encoder, nnx.Param))) == parameters
        valid = stream.valid & (np.arange(5) != 2)
        pooled, weights = encoder.pool(encoder.encode(stream, None), valid, None)
        np.testing.assert_allclose(
            pooled, np.einsum("bt,btf->bf", weights, stream.frames), rtol=1e-5
        )
        if pooling == "mean":
            np.testing.assert_allclose(weights, valid / valid.sum(1, keepdims=True))
