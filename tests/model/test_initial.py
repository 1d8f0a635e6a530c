"""Initial parameters drawn by NumPy are those that Flax draws from JAX's keys."""

import jax
import numpy as np
import pytest
from flax import nnx

from mmattn.config import ModelConfig, TrainConfig
from mmattn.model import initial
from mmattn.model.initial import CHUNK, Keys
from mmattn.model.network import Network
from mmattn.train.step import Learner

WIDTHS = {"audio": 3, "video": 2}
MODEL = ModelConfig(units={"audio": (4,), "video": (5,)}, head_units=(7,), head_dropout=(0.1,))


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32 + 5])
def test_keys_are_those_of_rngs(seed):
    keys, rngs = Keys(seed), nnx.Rngs(params=jax.random.key(seed))
    for _ in range(3):
        np.testing.assert_array_equal(keys.params(), jax.random.key_data(rngs.params()))


@pytest.mark.parametrize("shape", [(24, 64), (CHUNK // 8, 9)])
@pytest.mark.parametrize("name", ["glorot_uniform", "lecun_normal", "orthogonal"])
def test_initialisers_draw_what_those_of_flax_do(name, shape):
    draw, seed = getattr(initial, name), 3
    shape = tuple(sorted(shape)) if name == "orthogonal" else shape  # more columns than rows
    found = draw(Keys(seed).params(), shape)
    expected = getattr(nnx.initializers, name)()(nnx.Rngs(seed).params(), shape)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert (draw(None, shape) == 0).all()


def test_a_seed_gives_the_network_that_it_gives_in_jax():
    state = Learner(MODEL, TrainConfig(), WIDTHS, 6, 1).initial(5)

    @jax.jit
    def build(key):
        network = Network(MODEL, WIDTHS, 6, nnx.Rngs(params=key))
        return nnx.split(network, nnx.Param, nnx.BatchStat)[1:]

    expected = build(jax.random.key(5))
    found = state.params, state.batch_stats
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    assert not any(moment.any() for moment in jax.tree.leaves(state.opt_state))
