"""A clip that lacks a modality counts as one whose frames of it are all invalid."""

from dataclasses import replace
from functools import partial
from shutil import which

import jax
import numpy as np
import pytest
from flax import nnx

from mmattn.config import DataConfig, ModelConfig, SyntheticConfig
from mmattn.data import batches
from mmattn.data.augment import Streams
from mmattn.data.batches import Dispatch, collate, make_buckets
from mmattn.data.corpus import Corpus, open_corpus
from mmattn.data.normalise import Normaliser, fit_normaliser, normalised
from mmattn.data.stream import Stream, pack_streams
from mmattn.model import native
from mmattn.model.fusion import fusion_of
from mmattn.model.fusion.cross import window_of
from mmattn.model.network import Network, Output

SIZES = {"clips": 12, "speakers": 2, "audio_width": 4, "video_width": 3, "audio_rate": 12}
DATA = DataConfig(synthetic=SyntheticConfig(**SIZES, video_rate=10))
SMALL = {"cross_units": 4, "units": {"audio": (4,), "video": (3,)}, "head_units": ()}
MODELS = {
    fusion: ModelConfig(**SMALL, head_dropout=(), statistics=True, fusion=fusion)
    for fusion in ("concat", "late", "cross")
}
LACKS = {1: "audio", 2: "video"}  # by clip
CLIPS, OTHERS = np.arange(4), np.arange(3, 12)


@pytest.fixture(params=["jax", "native"], scope="module")
def kernel(request):
    """Scans or the C++ kernel."""
    if which("c++") is None and request.param == "native":
        pytest.skip("no C++ compiler")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMATTN_KERNEL", request.param)
        native.usable.cache_clear()
        jax.clear_caches()
        assert native.usable() == (request.param == "native")
        yield
    native.usable.cache_clear()
    jax.clear_caches()


@pytest.fixture(scope="module")
def whole() -> Corpus:
    return open_corpus(DATA, ("audio", "video"))


@pytest.fixture(scope="module")
def lacking(whole) -> Corpus:
    """The corpus with some streams that have no frames."""
    streams = {}
    for name, ragged in whole.streams.items():
        clips = [ragged.clip(clip) for clip in range(len(whole))]
        for clip in (clip for clip, lost in LACKS.items() if lost == name):
            clips[clip] = Stream(*(array[:0] for array in clips[clip]))
        streams[name] = pack_streams(clips, ragged.zero_is_missing)
    return replace(whole, streams=streams)


def with_invalid(corpus: Corpus, clip: int, normaliser: Normaliser, *copies) -> Streams:
    """`normalised`, but with all frames of a modality invalid, as in training."""
    streams = normalised(corpus, clip, normaliser, *copies)
    if lost := LACKS.get(clip):
        frames, times, valid = streams[lost]
        streams[lost] = Stream(np.zeros_like(frames), times, np.zeros_like(valid))
    return streams


def predict(corpus: Corpus, clips: np.ndarray, model: ModelConfig) -> tuple[Network, Output]:
    """A network of random weights, and what it says of the clips [n] in one batch."""
    normaliser = fit_normaliser(corpus, OTHERS)
    dispatch = Dispatch(*make_buckets(corpus, clips, 1), [clips])
    batch = collate(corpus, dispatch, normaliser, 1, len(clips), 1)
    streams = {name: ragged.select(clips) for name, ragged in corpus.streams.items()}
    geometry = fusion_of(model.fusion).geometry(streams, model)
    network = nnx.eval_shape(lambda: Network(model, corpus.widths, 6, nnx.Rngs(0), geometry))
    graph, params, rest = nnx.split(network, nnx.Param, ...)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.float32(rng.normal(0, 0.5, x.shape)), params)
    rest = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), rest)  # means and variances
    batch = jax.tree.map(lambda x: x[0, 0], batch)
    return nnx.merge(graph, params, rest), run(graph, params, rest, batch)


@partial(jax.jit, static_argnums=0)
def run(graph, params, rest, batch):
    return nnx.merge(graph, params, rest)(batch)


def probabilities(output: Output) -> np.ndarray:
    return np.asarray(jax.nn.softmax(output.logits))


@pytest.mark.slow
@pytest.mark.parametrize(
    "fusion", ["concat", *(pytest.param(one, marks=pytest.mark.slow) for one in ("late", "cross"))]
)
def test_it_is_predicted_as_one_with_invalid_frames(kernel, fusion, whole, lacking, monkeypatch):
    predict_of = partial(predict, clips=CLIPS, model=MODELS[fusion])
    (_, complete), (_, found) = predict_of(whole), predict_of(lacking)
    alone = {clip: predict(lacking, np.array([clip]), MODELS[fusion])[1] for clip in LACKS}
    with monkeypatch.context() as patch:
        patch.setattr(batches, "normalised", with_invalid)
        _, expected = predict_of(whole)
    np.testing.assert_allclose(probabilities(found), probabilities(expected), atol=1e-6)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)
    assert np.isfinite(probabilities(found)).all()
    for clip, lost in LACKS.items():
        kept = {"audio": "video", "video": "audio"}[lost]
        change = probabilities(complete)[clip] - probabilities(expected)[clip]
        assert np.abs(change).max() > 1e-3
        np.testing.assert_allclose(alone[clip].logits[0], expected.logits[clip], atol=1e-5)
        assert not np.any(found.fused.attention[lost][clip])
        weights = np.asarray(found.fused.attention[kept][clip])
        np.testing.assert_allclose(weights, expected.fused.attention[kept][clip], atol=1e-6)
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)


def test_concatenation_has_zeros_in_its_place(whole, lacking):
    network, complete = predict(whole, CLIPS, MODELS["concat"])
    _, found = predict(lacking, CLIPS, MODELS["concat"])
    features = np.array(complete.fused.features)
    split = network.branches["audio"].features
    for clip, lost in LACKS.items():
        features[clip, slice(split) if lost == "audio" else slice(split, None)] = 0
    np.testing.assert_allclose(found.fused.features, features, atol=1e-6)
    np.testing.assert_allclose(found.joint.head, network.classifier(features), atol=1e-5)


def test_it_does_not_change_how_far_cross_attention_must_see(lacking):
    others = np.array([0, *OTHERS])
    for own, other in (("audio", "video"), ("video", "audio")):
        streams = lacking.streams[own], lacking.streams[other]
        expected = window_of(*(ragged.select(others) for ragged in streams), 0.5)
        assert window_of(*streams, 0.5) == expected
