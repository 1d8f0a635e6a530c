"""The LSTM layer: against references that share nothing with it, and blind to the padding."""

from shutil import which

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmattn.model import native
from mmattn.model.lstm import LSTM, lstm

FRAMES, FEATURES, UNITS = 9, 4, 3
LENGTHS = np.array([9, 5, 1, 0])
INSIDE = np.arange(FRAMES)[:, None] < LENGTHS  # [T, B]
DIRECTIONS = pytest.mark.parametrize("reverse", [False, True], ids=["ahead", "back"])


def draw(*shape: int, seed: int, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X = draw(FRAMES, len(LENGTHS), FEATURES, seed=0) * INSIDE[..., None]
WEIGHTS = (
    draw(FEATURES, 4 * UNITS, seed=1, scale=0.6),
    draw(UNITS, 4 * UNITS, seed=2, scale=0.6),
    draw(4 * UNITS, seed=3, scale=0.6),
)
D_OUT = draw(FRAMES, len(LENGTHS), UNITS, seed=4)


@pytest.fixture(params=["jax", "native"], scope="module", autouse=True)
def implementation(request):
    """Every test of this file holds for both."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMATTN_KERNEL", request.param)
        if which("c++") is None and request.param == "native":
            pytest.skip("no C++ compiler")
        native.usable.cache_clear()
        jax.clear_caches()
        assert native.usable() == (request.param == "native")
        yield
    native.usable.cache_clear()


@jax.jit(static_argnames="reverse")
def run(x, weights, d_out, reverse):
    """The layer's output, and the gradients of sum(output * d_out): of x and each weight."""
    out, pull_back = jax.vjp(lambda x, *weights: lstm(x, LENGTHS, *weights, reverse), x, *weights)
    return out, pull_back(d_out)


def reference(x, weights, reverse) -> np.ndarray:
    """The textbook's equations in float64: clip by clip, frame by frame, without any padding."""
    input_kernel, recurrent_kernel, bias = weights
    out = np.zeros((*x.shape[:2], UNITS))
    for clip, length in enumerate(LENGTHS):
        h, c = np.zeros(UNITS), np.zeros(UNITS)
        for time in reversed(range(length)) if reverse else range(length):
            z = x[time, clip] @ input_kernel + h @ recurrent_kernel + bias
            i, f, o, g = np.split(z, 4)
            i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
            c = f * c + i * np.tanh(g)
            h = o * np.tanh(c)
            out[time, clip] = h
    return out


def slopes(function, array: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences of a scalar function, one element at a time."""
    result = np.zeros_like(array)
    for place in np.ndindex(array.shape):
        ends = []
        for sign in (1, -1):
            moved = array.copy()
            moved[place] += sign * step
            ends.append(function(moved))
        result[place] = (ends[0] - ends[1]) / (2 * step)
    return result


def assert_close(found, expected):
    """Equal but for the rounding of float32."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@DIRECTIONS
def test_output_and_gradients_agree_with_the_equations_in_float64(reverse):
    out, gradients = run(X, WEIGHTS, D_OUT, reverse)
    exact = [array.astype(np.float64) for array in (X, *WEIGHTS)]
    assert_close(out, reference(exact[0], exact[1:], reverse))
    for number, gradient in enumerate(gradients):

        def loss(array, number=number):
            x, *weights = [*exact[:number], array, *exact[number + 1 :]]
            return (reference(x, weights, reverse) * D_OUT).sum()

        assert_close(gradient, slopes(loss, exact[number]))


ZEROS = nnx.initializers.zeros_init()


def optimized_cell(*weights) -> nnx.OptimizedLSTMCell:
    """flax's cell with our weights; its columns are i, f, g, o."""
    cell = nnx.OptimizedLSTMCell(FEATURES, UNITS, recurrent_kernel_init=ZEROS, rngs=nnx.Rngs(0))
    parts = cell.dense_i.kernel, cell.dense_h.kernel, cell.dense_h.bias
    for part, weight in zip(parts, weights, strict=True):
        i, f, o, g = jnp.split(weight, 4, axis=-1)
        part.set_value(jnp.concatenate([i, f, g, o], axis=-1))
    return cell


def plain_cell(*weights) -> nnx.LSTMCell:
    """flax's cell that has a dense layer for each gate, with our weights."""
    cell = nnx.LSTMCell(FEATURES, UNITS, recurrent_kernel_init=ZEROS, rngs=nnx.Rngs(0))
    gates = zip(*(jnp.split(weight, 4, axis=-1) for weight in weights), strict=True)
    inputs, recurrents = (cell.ii, cell.if_, cell.io, cell.ig), (cell.hi, cell.hf, cell.ho, cell.hg)
    for of_input, of_state, gate in zip(inputs, recurrents, gates, strict=True):
        of_input.kernel.set_value(gate[0])
        of_state.kernel.set_value(gate[1])
        of_state.bias.set_value(gate[2])
    return cell


@DIRECTIONS
@pytest.mark.parametrize("make_cell", [optimized_cell, plain_cell])
def test_it_agrees_with_flax(make_cell, reverse):
    cell = make_cell(*WEIGHTS)
    rnn = nnx.RNN(cell, time_major=True, reverse=reverse, keep_order=True, rngs=False)
    graph, state = nnx.split(rnn)
    zero = jnp.zeros((len(LENGTHS), UNITS))

    def forward(x, state):
        rnn = nnx.merge(graph, state)
        out = rnn(x, initial_carry=(zero, zero), seq_lengths=jnp.asarray(LENGTHS))
        return jnp.where(INSIDE[..., None], out, 0)

    @jax.jit
    def run_flax(x, state):
        out, pull_back = jax.vjp(forward, x, state)
        return out, pull_back(D_OUT)

    expected, (d_x, d_state) = run_flax(X, state)
    out, (found_d_x, *found) = run(X, WEIGHTS, D_OUT, reverse)
    assert_close(out, expected)
    assert_close(found_d_x, d_x)
    found_state = nnx.state(make_cell(*found))  # gradients are sorted the way weights are
    jax.tree.map(assert_close, found_state, d_state["cell"])


@DIRECTIONS
@pytest.mark.parametrize("size", [1e3, 1e6])
def test_garbage_in_the_padding_changes_nothing(reverse, size):
    garbage = np.where(INSIDE[..., None], X, draw(*X.shape, seed=5, scale=size))
    d_garbage = np.where(INSIDE[..., None], D_OUT, draw(*D_OUT.shape, seed=6, scale=size))
    out, gradients = run(X, WEIGHTS, D_OUT, reverse)
    assert (np.asarray(out)[~INSIDE] == 0).all()
    assert (np.asarray(gradients[0])[~INSIDE] == 0).all()
    for x, d_out in ((garbage, D_OUT), (X, d_garbage), (garbage, d_garbage)):
        found, found_gradients = run(x, WEIGHTS, d_out, reverse)
        np.testing.assert_array_equal(found, out)
        for gradient, expected in zip(found_gradients, gradients, strict=True):
            np.testing.assert_array_equal(gradient, expected)


@DIRECTIONS
def test_no_recurrent_weight_opens_the_gates_in_the_padding(reverse):
    input_kernel, recurrent_kernel, bias = WEIGHTS
    out, gradients = run(X, (input_kernel, 500 * recurrent_kernel, bias), D_OUT, reverse)
    assert (np.asarray(out)[~INSIDE] == 0).all()
    assert (np.asarray(gradients[0])[~INSIDE] == 0).all()


def test_the_module_passes_its_weights_on_and_starts_with_open_forget_gates():
    layers = [LSTM(FEATURES, UNITS, reverse=back, rngs=nnx.Rngs(7)) for back in (False, True)]
    assert layers[0].bias[...].tolist() == [0] * 3 + [1] * 3 + [0] * 6
    for layer, back in zip(layers, (False, True), strict=True):
        weights = layer.input_kernel, layer.recurrent_kernel, layer.bias
        out = jax.jit(lambda x, layer=layer: layer(x, LENGTHS))(X)
        exact = [np.asarray(weight[...], np.float64) for weight in weights]
        assert_close(out, reference(X.astype(np.float64), exact, back))
