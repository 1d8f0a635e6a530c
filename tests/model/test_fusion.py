"""Cross-attention over seconds: against a dense reference, and what may not change it."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmattn.config import ModelConfig
from mmattn.data.augment import change_tempo
from mmattn.data.batches import Batch
from mmattn.data.stream import PADDING, Ragged, Stream, make_stream, pack_streams
from mmattn.model.fusion.cross import ROUNDING, Cross, CrossAttention, Window, window_of
from tests.model.compiled import Model
from tests.model.test_network import batch_of, with_streams

WIDTHS = {"audio": 3, "video": 4}
CONFIG = ModelConfig(
    fusion="cross",
    cross_window=0.5,
    cross_heads=2,
    cross_units=8,
    units={"audio": (4,), "video": (3,)},
    head_units=(8,),
    head_dropout=(0.1,),
)


def irregular(rng, length: int, rate: float) -> np.ndarray:
    """Times (s) of frames at that rate on average, as float32 has them."""
    times = rng.uniform(0, 0.2) + np.cumsum(rng.uniform(0.2, 1.8, length)) / rate
    return np.float64(np.float32(times))


def ragged(times: list[np.ndarray]) -> Ragged:
    return pack_streams([make_stream(np.zeros((len(own), 1), np.float32), own) for own in times])


def padded(rows: list[np.ndarray], frames: int, fill: float) -> np.ndarray:
    """Rows of unequal length [n, …] as one array [B, frames, …]."""
    result = np.full((len(rows), frames, *rows[0].shape[1:]), fill, np.float32)
    for own, row in zip(result, rows, strict=True):
        own[: len(row)] = row
    return result


class Side(NamedTuple):
    """One modality of some clips: what attends, or what is attended to, without padding."""

    times: list[np.ndarray]
    x: list[np.ndarray]
    """[n, 8]"""
    valid: list[np.ndarray]


def draw_side(seed: int, lengths: tuple[int, ...], rate: float) -> Side:
    rng = np.random.default_rng(seed)
    times = [irregular(rng, length, rate) for length in lengths]
    x = [2 * rng.standard_normal((length, 8)).astype(np.float32) for length in lengths]
    return Side(times, x, [rng.random(length) < 0.8 for length in lengths])


def without_invalid(side: Side) -> Side:
    """The side with its invalid frames deleted."""
    kept = [[own[valid] for own, valid in zip(part, side.valid, strict=True)] for part in side]
    return Side(*kept)


def layer_of(chunks: Window, config: ModelConfig = CONFIG) -> CrossAttention:
    """Heads that look a little ahead or back, at content and distance."""
    layer = CrossAttention(config, chunks)
    layer.centre[...] = jnp.linspace(-0.1, 0.2, config.cross_heads)
    return layer


def attend(layer: CrossAttention, own: Side, other: Side, frames: tuple[int, int], garbage=0.0):
    """Padded output, weights and distances; the values attended to are the keys, backwards."""
    key = [x[:, ::-1] for x in other.x]
    return run_layer(
        *nnx.split(layer),
        padded(own.x, frames[0], garbage),
        padded(own.times, frames[0], PADDING),
        padded(key, frames[1], garbage),
        padded(other.x, frames[1], garbage),
        padded(other.times, frames[1], PADDING),
        padded(other.valid, frames[1], 0).astype(bool),
    )


@partial(jax.jit, static_argnums=0)
def run_layer(graph, state, *inputs):
    return nnx.merge(graph, state)(*inputs)


def dense(layer: CrossAttention, own: Side, other: Side, clip: int):
    """Output [T, D] and weights [T, S] of one clip in float64, all frames at once."""
    query, value = np.float64(own.x[clip]), np.float64(other.x[clip])
    key = value[:, ::-1]
    distance = other.times[clip] - own.times[clip][:, None]
    near = (np.abs(distance) <= layer.window) & other.valid[clip]
    outputs, weights = [], []
    for columns, centre, log_width in zip(
        np.split(np.arange(query.shape[1]), layer.heads),
        np.float64(layer.centre[...]),
        np.float64(layer.log_width[...]),
        strict=True,
    ):
        content = query[:, columns] @ key[:, columns].T / np.sqrt(len(columns))
        scores = content - 0.5 * ((distance - centre) / np.exp(log_width)) ** 2
        shares = np.where(near, np.exp(scores - scores.max(1, keepdims=True)), 0)
        shares /= np.where(near.any(1, keepdims=True), shares.sum(1, keepdims=True), 1)
        outputs.append(shares @ value[:, columns])
        weights.append(shares)
    return np.concatenate(outputs, 1), np.mean(weights, 0), near, distance


@pytest.mark.parametrize(("rates", "heads"), [((12.0, 5.0), 1), ((5.0, 12.0), 4)])
def test_it_equals_attention_over_all_frames_in_float64(rates, heads):
    """Several chunks, irregular times, invalid frames, clips of unequal length."""
    config = ModelConfig(cross_window=0.5, cross_heads=heads, cross_units=8)
    own = draw_side(0, tuple(int(seconds * rates[0]) for seconds in (4, 1.5, 6)), rates[0])
    other = draw_side(1, tuple(int(seconds * rates[1]) for seconds in (4, 2.5, 5)), rates[1])
    chunks = window_of(ragged(own.times), ragged(other.times), config.cross_window)
    layer = layer_of(chunks, config)
    lengths = max(map(len, own.times)), max(map(len, other.times)) + 3
    assert lengths[0] > 2 * chunks.chunk and lengths[1] > chunks.others
    found, attended = attend(layer, own, other, lengths)
    for clip, times in enumerate(own.times):
        expected, weights, near, distance = dense(layer, own, other, clip)
        np.testing.assert_allclose(found[clip, : len(times)], expected, atol=1e-5)
        for frame in range(len(times)):
            row = np.asarray(attended.weights[clip, frame])
            np.testing.assert_allclose(
                row[row > 0], weights[frame, near[frame]], atol=1e-5, rtol=1e-4
            )
            found_distance = np.asarray(attended.distance[clip, frame])[row > 0]
            np.testing.assert_allclose(found_distance, distance[frame, near[frame]], atol=1e-5)
        assert not np.asarray(attended.weights[clip, len(times) :]).any()


def test_padding_and_invalid_frames_have_no_influence():
    own, other = draw_side(2, (30, 12), 10.0), draw_side(3, (30, 20), 10.0)
    layer = layer_of(window_of(ragged(own.times), ragged(other.times), 0.5))
    expected, attended = attend(layer, own, other, (33, 34))
    found, theirs = attend(layer, own, other, (33, 34), garbage=1e6)
    spoilt = other._replace(
        x=[
            np.where(valid[:, None], x, np.float32(1e6))
            for x, valid in zip(other.x, other.valid, strict=True)
        ]
    )
    also, _ = attend(layer, own, spoilt, (33, 34))
    longer, _ = attend(layer, own, other, (60, 50))
    fewer, _ = attend(layer, own, without_invalid(other), (33, 34))
    later, _ = attend(layer, without_invalid(own), other, (33, 34))
    for clip, valid in enumerate(own.valid):
        inside = np.asarray(expected[clip, : len(valid)])
        np.testing.assert_array_equal(found[clip, : len(valid)], inside)
        np.testing.assert_array_equal(also[clip, : len(valid)], inside)
        np.testing.assert_allclose(longer[clip, : len(valid)], inside, atol=1e-6)
        np.testing.assert_allclose(fewer[clip, : len(valid)], inside, atol=1e-5)
        np.testing.assert_allclose(later[clip, : valid.sum()], inside[valid], atol=1e-5)
    np.testing.assert_array_equal(theirs.weights, attended.weights)


def test_a_frame_with_nothing_near_gets_zeros_and_finite_gradients():
    own, other = draw_side(4, (20, 20), 10.0), draw_side(5, (20, 20), 10.0)
    other.times[0][:] += 30
    other.valid[1][10:] = False
    layer = layer_of(window_of(ragged(own.times), ragged(other.times), 0.5))
    found, attended = attend(layer, own, other, (20, 20))
    assert not found[0].any() and not attended.weights[0].any()
    far = np.abs(other.times[1][:10] - own.times[1][:, None]).min(1) > 0.6
    assert far.any() and not far.all()
    assert not found[1][far].any() and not attended.weights[1][far].any()
    graph, state = nnx.split(layer)

    def loss(state, query, key):
        times = [np.float32(side.times) for side in (own, other)]
        layer = nnx.merge(graph, state)
        return (layer(query, times[0], key, key, times[1], np.stack(other.valid))[0] ** 2).sum()

    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))(state, np.stack(own.x), np.stack(other.x))
    assert all(np.isfinite(gradient).all() for gradient in jax.tree.leaves(gradients))
    _, of_query, of_key = gradients
    assert not of_query[0].any() and not of_key[0].any() and of_query[1].any()


def hand_made_streams(rng, kind: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Times of both modalities of some clips, about as unlike each other as clips can be."""
    own, other = [], []
    for _ in range(8):
        seconds = rng.uniform(0.4, 1.2) if kind == "short" else rng.uniform(2, 5)
        rates = (20, 8) if kind == "one rate" else rng.uniform(6, 30, 2)
        for streams, rate in zip((own, other), rates, strict=True):
            times = irregular(rng, max(5, int(seconds * rate)), rate)
            if kind == "gaps":
                times[rng.integers(1, len(times)) :] += rng.uniform(0.5, 2)
            streams.append(times)
    return own, other


@pytest.mark.parametrize("kind", ["one rate", "mixed rates", "short", "gaps"])
def test_no_neighbour_is_cut_off_at_any_tempo(kind):
    rng = np.random.default_rng(0)
    streams = hand_made_streams(rng, kind)
    layer = layer_of(
        window_of(*map(ragged, streams), 0.5), ModelConfig(cross_units=1, cross_heads=1)
    )
    layer.log_width[...] = jnp.zeros(1)  # no weight is too small to be seen

    def at_tempo(times: np.ndarray, factor: float) -> np.ndarray:
        frames = np.zeros((len(times), 1), np.float32)
        return change_tempo(make_stream(frames, times), factor, 0.0).times

    own, other = [], []
    for tempos in ((None, None), (1, 1), (0.9, 1), (1.1, 1), (1, 0.9), (0.9, 1.1), (0.9, 0.9)):
        for streams_at, times, tempo in zip((own, other), streams, tempos, strict=True):
            streams_at += [x if tempo is None else at_tempo(x, tempo) for x in times]
    frames = max(map(len, own)), max(map(len, other))
    query, key = (np.zeros((len(own), size, 1), np.float32) for size in frames)
    times = [padded(side, size, PADDING) for side, size in zip((own, other), frames, strict=True)]
    inputs = query, times[0], key, key, times[1], times[1] < PADDING
    _, attended = run_layer(*nnx.split(layer), *inputs)
    found = (np.asarray(attended.weights) > 0).sum(-1)
    for clip, (here, there) in enumerate(zip(own, other, strict=True)):
        near = np.abs(np.float32(there) - np.float32(here)[:, None]) <= layer.window
        np.testing.assert_array_equal(found[clip, : len(here)], near.sum(1))


@pytest.mark.slow
def test_memory_grows_linearly_with_time():
    rates, window = (20, 10), 0.25
    regular = [ragged([np.arange(10 * rate) / rate]) for rate in rates]
    chunks = window_of(*regular, window)

    def temporary(seconds: int, chunks: Window) -> int:
        graph, state = nnx.split(
            layer_of(chunks, ModelConfig(cross_window=window, cross_heads=2, cross_units=8))
        )

        def loss(state, query, times, key, others, valid):
            attended, _ = nnx.merge(graph, state)(query, times, key, key, others, valid)
            return (attended**2).sum()

        frames, others = (seconds * rate for rate in rates)
        shapes = [(2, frames, 8), (2, frames), (2, others, 8), (2, others)]
        arrays = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
        arrays.append(jax.ShapeDtypeStruct((2, others), bool))
        compiled = jax.jit(jax.grad(loss, (0, 1, 3))).lower(state, *arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    linear = [temporary(seconds, chunks) for seconds in (20, 40, 80)]
    assert linear[2] < 5 * linear[0]
    at_once = [temporary(seconds, Window(20 * seconds, 10 * seconds)) for seconds in (20, 80)]
    assert at_once[1] > 12 * at_once[0]
    assert linear[2] < at_once[1] / 10


class Fusion:
    """Cross-attention both ways and temporal attention, on embeddings of width 4."""

    def __init__(self):
        geometry = tuple((name, Window(8, 40)) for name in WIDTHS)
        layer = Cross(dict.fromkeys(WIDTHS, 4), CONFIG, geometry, iter([0]), rngs=nnx.Rngs(0))
        self.graph, self.state = nnx.split(layer)

    @partial(jax.jit, static_argnums=0)
    def __call__(self, embeddings, streams, scores):
        """Pooled [B, D] and temporal attention by modality [B, T], with its scores by a factor."""
        layer = nnx.merge(self.graph, self.state, copy=True)
        layer.attention.kernel[...] *= scores
        embeddings = {name: x.swapaxes(0, 1) for name, x in embeddings.items()}
        return layer({}, embeddings, streams, None)[:2]


@pytest.fixture(scope="module")
def fusion() -> Fusion:
    return Fusion()


@pytest.fixture
def embedded():
    """Embeddings and streams of two clips, with invalid frames and padding."""
    embeddings, streams = {}, {}
    for seed, (name, rate, lengths) in enumerate((("audio", 10, (30, 18)), ("video", 5, (14, 9)))):
        rng = np.random.default_rng(seed)
        frames = max(lengths)
        inside = np.arange(frames) < np.array(lengths)[:, None]
        x = rng.standard_normal((2, frames, 4)).astype(np.float32) * inside[..., None]
        valid = inside & (rng.random((2, frames)) < 0.8)
        times = padded([irregular(rng, length, rate) for length in lengths], frames, PADDING)
        embeddings[name] = x
        streams[name] = Stream(x, times, valid)
    return embeddings, streams


def test_an_invalid_frame_is_as_good_as_none(fusion, embedded):
    embeddings, streams = embedded
    expected, attention = fusion(embeddings, streams, scores=1.0)
    spoilt = {
        name: np.where(streams[name].valid[..., None], x, np.float32(1e3))
        for name, x in embeddings.items()
    }
    for changed in ((spoilt, streams), deleted(*embedded)):
        found, weights = fusion(*changed, scores=1.0)
        np.testing.assert_allclose(found, expected, atol=2e-6)
        for name in WIDTHS:
            np.testing.assert_allclose(weights[name].sum(1), attention[name].sum(1), atol=1e-6)
    assert not any(np.asarray(attention[name])[~streams[name].valid].any() for name in WIDTHS)


def deleted(embeddings, streams):
    """The clips without their invalid frames."""
    kept_x, kept = {}, {}
    for name, part in streams.items():
        rows = list(part.valid)
        frames = part.valid.shape[1]
        kept_x[name], times = (
            padded([x[row] for x, row in zip(array, rows, strict=True)], frames, fill)
            for array, fill in ((embeddings[name], 0), (part.times, PADDING))
        )
        kept[name] = Stream(kept_x[name], times, times < PADDING)
    return kept_x, kept


def test_both_modalities_have_the_same_say_whatever_their_rates(fusion, embedded):
    embeddings, streams = embedded
    _, attention = fusion(embeddings, streams, scores=0.0)
    for name, part in streams.items():
        count = part.valid.sum(1, keepdims=True)
        np.testing.assert_allclose(attention[name], part.valid * 0.5 / count, rtol=1e-5)
    without = streams["video"]._replace(valid=np.zeros_like(streams["video"].valid))
    _, attention = fusion(embeddings, streams | {"video": without}, scores=0.0)
    np.testing.assert_allclose(attention["audio"].sum(1), 1, rtol=1e-5)
    assert not attention["video"].any()


@pytest.mark.parametrize("name", ["audio", "video"])
def test_twice_the_frames_of_a_modality_change_nothing(fusion, embedded, name):
    """Each frame is there twice, at almost the same time."""
    embeddings, streams = embedded
    pooled, attention = fusion(embeddings, streams, scores=1.0)
    _, times, valid = streams[name]
    times = np.repeat(times, 2, 1)
    times[:, 1::2] += 1e-5
    x = np.repeat(embeddings[name], 2, 1)
    twice = Stream(x, times, np.repeat(valid, 2, 1))
    found, weights = fusion(embeddings | {name: x}, streams | {name: twice}, scores=1.0)
    np.testing.assert_allclose(found, pooled, atol=1e-4)
    np.testing.assert_allclose(weights[name][:, ::2] * 2, attention[name], atol=1e-4)


RATES = {"audio": 12.0, "video": 4.0}  # many frames are exactly at the window's edge
LENGTHS = {"audio": (36, 20, 30), "video": (12, 8, 7)}
OTHER = {"audio": "video", "video": "audio"}
GEOMETRY = (("audio", Window(13, 10)), ("video", Window(5, 40)))


def stream(name: str) -> Stream:
    """Regular frames, some of them invalid."""
    rng = np.random.default_rng(len(name) + ord(name[0]))
    length = np.array(LENGTHS[name], np.int32)
    number = np.arange(length.max() + 2, dtype=np.float32)
    inside = number < length[:, None]
    valid = inside & (rng.random(inside.shape) < 0.9)
    x = rng.standard_normal((*valid.shape, WIDTHS[name])).astype(np.float32)
    x[~valid] = 0
    return Stream(x, np.where(inside, number / np.float32(RATES[name]), PADDING), valid)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return batch_of(audio=stream("audio"), video=stream("video"))


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(CONFIG, WIDTHS, GEOMETRY)


def shifted(part: Stream, seconds: float) -> Stream:
    later = part.times + np.float32(seconds)
    return part._replace(times=np.where(part.times < PADDING, later, PADDING))


@pytest.mark.parametrize("seconds", [0.1, 1 / 3, -0.9, 7.77])
def test_a_shift_of_both_streams_changes_nothing_and_of_one_does(model, batch, seconds):
    expected = model.predict(batch).logits
    both = batch_of(**{name: shifted(part, seconds) for name, part in batch.streams.items()})
    # Times of some seconds are rounded to 5e-7 s, and logits are up to 10.
    np.testing.assert_allclose(model.predict(both).logits, expected, atol=5e-4)
    for name in WIDTHS:
        one = with_streams(batch, **{name: shifted(batch.streams[name], seconds)})
        assert np.abs(model.predict(one).logits - expected).max(1).min() > 1e-2


def test_garbage_in_the_padding_changes_no_bit(model, batch):
    def spoil(part: Stream) -> Stream:
        noise = 1e3 * np.random.default_rng(9).standard_normal(part.frames.shape)
        inside = part.times < PADDING
        frames = np.where(inside[..., None], part.frames, noise).astype(np.float32)
        return part._replace(frames=frames)

    garbage = batch_of(**{name: spoil(part) for name, part in batch.streams.items()})
    for run in (model.predict, model.train):
        jax.tree.map(np.testing.assert_array_equal, run(garbage), run(batch))


def test_attention_sums_to_one_over_both_modalities(model, batch):
    output = model.predict(batch)
    total = sum(weights.sum(1) for weights in output.fused.attention.values())
    np.testing.assert_allclose(total, 1, rtol=1e-5)
    for name in WIDTHS:
        valid = batch.streams[name].valid
        assert (np.asarray(output.fused.attention[name]) > 0)[valid].all()
        to_the_other = np.asarray(output.fused.attended[name][OTHER[name]].weights).sum(-1)
        near = to_the_other > 0
        np.testing.assert_allclose(to_the_other[near], 1, rtol=1e-5)
        assert near[valid].mean() > 0.5


@pytest.mark.parametrize("missing", [("audio",), ("video",), ("audio", "video")])
@pytest.mark.parametrize("how", ["no frames", "all invalid"])
def test_a_missing_modality_is_harmless(model, batch, missing, how):
    changed = batch
    for name in missing:
        part = Stream(*(array.copy() for array in batch.streams[name]))
        part.frames[0], part.valid[0] = 0, False
        if how == "no frames":
            part.times[0] = PADDING
        changed = with_streams(changed, **{name: part})
    output = model.predict(changed)
    for values in jax.tree.leaves((output, model.train(changed))):
        assert np.isfinite(values).all()
    for name in missing:
        assert not output.fused.attention[name][0].any()
    total = sum(weights[0].sum() for weights in output.fused.attention.values())
    assert total == pytest.approx(0 if len(missing) == 2 else 1, abs=1e-5)
    np.testing.assert_allclose(output.logits[1:], model.predict(batch).logits[1:], atol=1e-6)


def test_training_reaches_every_parameter(model, batch):
    for gradient in jax.tree.leaves(model.train(batch)[1]):
        assert np.abs(gradient).max() > 0


def test_the_window_by_hand():
    """Two frames a second; what the other sees is 1 s of them and half a second to either side."""
    own = ragged([np.arange(7) / 2, np.arange(3) / 2])
    other = ragged([np.arange(13) / 4])
    assert window_of(own, other, 0.5) == Window(chunk=3, others=9 + 1)
    assert window_of(other, own, 0.5) == Window(chunk=5, others=5 + 1)
    crowded = ragged([np.array([0, 0.01, 0.02, 0.03, 4.0])])
    assert window_of(crowded, other, 0.5).chunk == 4
    assert ROUNDING < 1e-3
