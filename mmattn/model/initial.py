"""Initial parameters, drawn by NumPy.

XLA would compile for seconds what runs for milliseconds. Given a key of `Keys`, the initialisers
here draw in NumPy the same numbers as Flax's from JAX's key, within float32 rounding; given a JAX
key, e.g. from `nnx.Rngs`, they call Flax's.
"""

import math
from collections.abc import Callable
from functools import wraps

import jax
import numpy as np
from flax import nnx
from jax import Array

ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
CHUNK = 2**15  # numbers drawn at once, so that they stay in the processor's cache


class Keys:
    """Stands in for `nnx.Rngs(params=jax.random.key(seed))` when a module is built.

    Without a seed all parameters are 0, which is enough if only their shapes are needed.
    """

    def __init__(self, seed: int | None):
        self._key = None if seed is None else np.array([0, seed % 2**32], np.uint32)
        self._count = 0

    def params(self) -> np.ndarray | None:
        """The next key, [2] uint32."""
        if self._key is None:
            return None
        key = np.concatenate(_threefry(self._key, np.array([self._count], np.uint32)))
        self._count += 1
        return key


def _drawn_by(flax: Callable) -> Callable:
    """Turn a function that draws in NumPy as a Flax initialiser does in JAX into an initialiser."""

    def decorate(draw: Callable) -> Callable:
        @wraps(draw)
        def initialise(key, shape: tuple[int, ...], dtype=np.float32) -> Array:
            if isinstance(key, Array):
                return flax(key, shape, dtype)
            array = np.zeros(shape) if key is None else draw(key, shape)
            return jax.device_put(array.astype(dtype))

        return initialise

    return decorate


@_drawn_by(nnx.initializers.glorot_uniform())
def glorot_uniform(key, shape):
    """Uniform within ±√(6 / (inputs + outputs)) (Glorot & Bengio, 2010)."""
    return _uniform(key, shape, -1, 1) * np.sqrt(np.float32(6 / sum(shape)))


@_drawn_by(nnx.initializers.lecun_normal())
def lecun_normal(key, shape):
    """Normal, truncated at two standard deviations, with variance 1 / inputs."""
    end = math.erf(math.sqrt(2))
    deviation = 0.87962566103423978  # of a standard normal truncated at ±2
    scale = np.float32(np.sqrt(np.float32(1 / shape[0])) / np.float32(deviation))
    return _normal(_uniform(key, shape, -end, end)) * scale


@_drawn_by(nnx.initializers.orthogonal())
def orthogonal(key, shape):
    """Orthonormal rows; there are at most as many as columns (Saxe et al., 2014)."""
    from scipy.linalg import lapack  # imported here, because a prediction does not need it

    least = np.nextafter(np.float32(-1), np.float32(0))
    # The LAPACK routines that JAX calls: others round differently, which an LSTM amplifies.
    r, factors, *_ = lapack.sgeqrf(_normal(_uniform(key, shape[::-1], least, 1)))
    return (lapack.sorgqr(r, factors)[0] * np.sign(np.diagonal(r))).T


def zeros(key, shape: tuple[int, ...], dtype=np.float32) -> Array:
    """Zeros; `jnp.zeros` and `jnp.asarray` would compile a program for each shape."""
    return jax.device_put(np.zeros(shape, dtype))


def _normal(uniform: np.ndarray) -> np.ndarray:
    """Standard normal numbers from uniform ones in (-1, 1), float32, by JAX's own function."""
    flat = np.zeros(-(-uniform.size // CHUNK) * CHUNK, np.float32)
    flat[: uniform.size] = uniform.ravel()
    # One fixed shape, so that it is compiled once.
    found = np.concatenate([jax.lax.erf_inv(part) for part in flat.reshape(-1, CHUNK)])
    return np.float32(np.sqrt(2)) * found[: uniform.size].reshape(uniform.shape)


def _uniform(key: np.ndarray, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    """`jax.random.uniform` with a range, float32."""
    size = math.prod(shape)
    counts = (np.arange(at, min(at + CHUNK, size), dtype=np.uint32) for at in range(0, size, CHUNK))
    bits = np.concatenate([np.bitwise_xor(*_threefry(key, one)) for one in counts])
    one_to_two = (bits >> 9 | np.float32(1).view(np.uint32)).view(np.float32)
    low, high = np.float32(low), np.float32(high)
    return np.maximum(low, (one_to_two - 1) * (high - low) + low).reshape(shape)


def _threefry(key: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Threefry-2x32 (Salmon et al., Parallel random numbers, 2011) of (0, counts), uint32 [n]."""
    keys = (*key, key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    x, y = np.full_like(counts, keys[0]), counts + keys[1]
    high, low = np.empty_like(x), np.empty_like(x)
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            x += y
            np.left_shift(y, rotation, out=high)
            np.right_shift(y, 32 - rotation, out=low)
            np.bitwise_or(high, low, out=y)
            y ^= x
        x += keys[(group + 1) % 3]
        y += keys[(group + 2) % 3]
        y += np.uint32(group + 1)
    return x, y
