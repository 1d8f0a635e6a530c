"""Attention, batch norm and dropout: values by hand, and what must not matter to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmattn.data.stream import Stream
from mmattn.evaluate.baseline import functionals as of_stream
from mmattn.model.layers import (
    BatchNorm,
    Dropout,
    TemporalAttention,
    Training,
    draw_for_dropout,
    functionals,
)
from mmattn.train import devices


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def training(uniform=None, sum_over_devices=lambda tree: tree) -> Training:
    return Training(uniform, sum_over_devices)


def attention(kernel) -> TemporalAttention:
    layer = TemporalAttention(len(kernel), rngs=nnx.Rngs(0))
    layer.kernel.set_value(jnp.asarray(kernel, jnp.float32)[:, None])
    return layer


def test_attention_by_hand():
    x = np.array([[0.0, 5.0], [0.5, -1.0], [7.0, 7.0]], np.float32)[:, None]
    pooled, weights = attention([2.0, 0.0])(x, np.array([[True], [True], [False]]))
    second = 1 / (1 + np.exp(-np.tanh(1.0)))  # scores 0 and tanh(1): 0.3183 and 0.6817
    np.testing.assert_allclose(weights[:, 0], [1 - second, second, 0], rtol=1e-6)
    np.testing.assert_allclose(pooled[0], [0.5 * second, 5 - 6 * second], rtol=1e-6)


def test_masked_frames_count_as_if_they_were_not_there():
    x, layer = draw(7, 1, 3), attention(draw(3, seed=1))
    valid = np.array([1, 0, 1, 1, 0, 0, 1], bool)
    pooled, weights = layer(x, valid[:, None])
    fewer, their_weights = layer(x[valid], np.ones((4, 1), bool))
    np.testing.assert_allclose(pooled, fewer, rtol=1e-6)
    np.testing.assert_allclose(weights[valid], their_weights, rtol=1e-6)
    assert (weights[~valid] == 0).all()


def test_attention_to_a_clip_without_valid_frames_is_zero_and_harms_no_gradient():
    x, kernel = draw(4, 2, 3), draw(3, 1, seed=1)
    valid = np.array([[True, False]] * 4)

    def run(x, kernel, valid):
        pooled, weights = attention(kernel[:, 0])(x, valid)
        return (pooled**2).sum() + pooled.sum(), (pooled, weights)

    gradient = jax.jit(jax.grad(run, (0, 1), has_aux=True))
    (d_x, d_kernel), (pooled, weights) = gradient(x, kernel, valid)
    assert (pooled[1] == 0).all() and (weights[:, 1] == 0).all()
    assert (d_x[:, 1] == 0).all()
    (_, d_kernel_without_it), _ = gradient(x[:, :1], kernel, valid[:, :1])
    assert np.abs(d_kernel).max() > 0
    np.testing.assert_allclose(d_kernel, d_kernel_without_it, rtol=1e-6)


def test_batch_norm_has_the_statistics_of_the_clips_alone():
    x = 3 * draw(6, 4) + 2
    weight = np.array([1, 1, 0, 1, 1, 0], np.float32)
    x[weight == 0] = 1e3
    layer = BatchNorm(4)
    layer.scale[...] = jnp.arange(1.0, 5.0)
    layer.bias[...] = jnp.arange(4.0)
    out = layer(x, training(), weight)
    clips = x[weight == 1].astype(np.float64)
    mean, var = clips.mean(0), clips.var(0)
    expected = (clips - mean) / np.sqrt(var + 1e-3) * np.arange(1, 5) + np.arange(4)
    np.testing.assert_allclose(out[weight == 1], expected, atol=1e-4)
    np.testing.assert_allclose(layer.mean[...], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(layer.var[...], 0.9 + 0.1 * var, rtol=1e-5)


def test_prediction_uses_the_running_statistics_and_leaves_them():
    layer, x = BatchNorm(2), draw(5, 2)
    layer.mean[...], layer.var[...] = jnp.array([1.0, -2.0]), jnp.array([4.0, 0.25])
    out = layer(x, None, np.ones(5, np.float32))
    expected = (x - [1, -2]) / np.sqrt(np.array([4, 0.25]) + 1e-3)
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    assert layer.mean[...].tolist() == [1, -2] and layer.var[...].tolist() == [4, 0.25]
    alone = layer(x[:1], None, np.ones(1, np.float32))
    np.testing.assert_array_equal(alone[0], out[0])


def batch_norm_over(count: int, x, weight, d_out):
    """Output, gradients of x, scale and bias, and running statistics on `count` devices."""

    def run(x, weight, d_out):
        def loss(x, scale, bias):
            layer = BatchNorm(x.shape[-1])
            layer.scale[...], layer.bias[...] = scale, bias
            out = layer(x, training(sum_over_devices=devices.sum_over_devices), weight)
            own = (weight[:, None] * d_out * out**2).sum()
            return own, (out, layer.mean[...], layer.var[...])

        arguments = x, jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 0.0, -1.0])
        (d_x, *d_rest), out = jax.grad(loss, (0, 1, 2), has_aux=True)(*arguments)
        return d_x, devices.sum_over_devices(d_rest), out

    share = [
        array.reshape(count, len(x) // count, *array.shape[1:]) for array in (x, weight, d_out)
    ]
    d_x, d_rest, (out, *statistics) = devices.parallel(run, count, (0, 0, 0))(*share)
    clips = weight == 1
    flat = [np.asarray(array).reshape(x.shape)[clips] for array in (out, d_x)]
    of_each_device = [np.asarray(array) for array in (*d_rest, *statistics)]
    return flat, of_each_device


@pytest.mark.parametrize("count", [2, 4])
def test_batch_norm_does_not_depend_on_how_clips_lie_on_devices(count):
    x, d_out = draw(8, 3), draw(8, 3, seed=1)
    weight = np.array([1, 1, 1, 0, 0, 0, 1, 0], np.float32)  # 2, 1, 0 and 1 clips on 4 devices
    flat, of_each_device = batch_norm_over(count, x, weight, d_out)
    expected_flat, expected = batch_norm_over(1, x, weight, d_out)
    for found, one in zip(flat, expected_flat, strict=True):
        np.testing.assert_allclose(found, one, rtol=1e-4, atol=1e-5)
    for found, one in zip(of_each_device, expected, strict=True):
        np.testing.assert_allclose(found, np.repeat(one, count, 0), rtol=1e-4, atol=1e-5)


RATE, WIDE = 0.3, 2000


def drop(x, keys, number: int = 0) -> np.ndarray:
    uniform = jax.vmap(lambda key: draw_for_dropout(key, 2, WIDE))(keys)
    return np.asarray(Dropout(RATE, number, x.shape[-1])(x, training(uniform)))


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(0), 3)


def test_dropout_zeros_a_share_of_the_features_and_keeps_the_expectation(keys):
    out = drop(np.ones((3, WIDE), np.float32), keys)
    assert set(np.unique(out)) == {0, np.float32(1) / np.float32(1 - RATE)}
    deviation = np.sqrt(RATE * (1 - RATE) / WIDE)
    assert (np.abs((out == 0).mean(1) - RATE) < 4 * deviation).all()
    np.testing.assert_allclose(out.mean(1), 1, atol=4 * deviation / (1 - RATE))


def test_a_clip_keeps_its_dropped_features_over_time(keys):
    x = np.abs(draw(5, 3, WIDE)) + 1
    dropped = drop(x, keys) == 0
    assert (dropped == dropped[0]).all()
    np.testing.assert_array_equal(dropped[0], drop(x[0], keys) == 0)


def test_what_is_dropped_depends_on_the_clips_key_and_the_layer_alone(keys):
    ones = np.ones((3, WIDE), np.float32)
    dropped = drop(ones, keys) == 0
    order = np.array([2, 0, 1])
    np.testing.assert_array_equal(drop(5 * ones, keys[order]) == 0, dropped[order])
    np.testing.assert_array_equal(drop(ones[:1], keys[1:2])[0] == 0, dropped[1])
    for other in (dropped[[1, 2, 0]], drop(ones, keys, number=1) == 0):
        together = (dropped & other).mean(1)  # of independent draws: RATE²
        np.testing.assert_allclose(together, RATE**2, atol=0.03)


def test_what_is_dropped_is_drawn_for_each_layer_as_if_it_were_the_only_one(keys):
    for number, features in ((0, WIDE), (1, 8)):
        found = drop(np.ones((3, features), np.float32), keys, number) != 0
        for key, kept in zip(keys, found, strict=True):
            own = jax.random.fold_in(key, number)
            np.testing.assert_array_equal(kept, jax.random.bernoulli(own, 1 - RATE, (features,)))


def test_no_dropout_in_prediction_or_at_rate_zero():
    x = draw(3, 8)
    np.testing.assert_array_equal(Dropout(RATE, 0, 8)(x, None), x)
    np.testing.assert_array_equal(Dropout(0.0, 0, 8)(x, training(np.zeros((3, 1, 0)))), x)


def test_functionals_over_time_are_those_of_the_linear_baseline():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 3, 4)).astype(np.float32)
    valid = np.ones((9, 3), bool)
    valid[7:, 0] = valid[4, 1] = valid[:, 2] = False
    found = jax.jit(functionals)(x, valid)
    expected = [of_stream(Stream(x[:, clip], np.arange(9.0), valid[:, clip])) for clip in range(3)]
    np.testing.assert_allclose(found, expected, atol=2e-6)
    gradient = jax.jit(jax.grad(lambda x: functionals(x, valid).sum()))(x)
    assert np.isfinite(gradient).all()
