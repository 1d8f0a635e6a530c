"""The LSTM layer.

Hochreiter & Schmidhuber (1997) with forget gate (Gers et al., 2000), for each time step t:

    i, f, o = σ(x_t W_x + h_{t-1} W_h + b)      g = tanh(x_t W_x + h_{t-1} W_h + b)
    c_t = f ⊙ c_{t-1} + i ⊙ g                   h_t = o ⊙ tanh(c_t)

Two equivalent implementations: `scan`, in JAX, which runs everywhere, and `native`, a C++ kernel
for the CPU, used where available. Everything inside is time-major ([T, B, …]).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mmattn.model import native, scan
from mmattn.model.initial import Keys, glorot_uniform, orthogonal


class LSTM(nnx.Module):
    """One direction of an LSTM layer.

    The four gates lie side by side in the kernels' columns, in the order i, f, o, g.
    """

    def __init__(self, features: int, units: int, *, reverse: bool = False, rngs: nnx.Rngs | Keys):
        self.input_kernel = nnx.Param(glorot_uniform(rngs.params(), (features, 4 * units)))
        self.recurrent_kernel = nnx.Param(orthogonal(rngs.params(), (units, 4 * units)))
        # Forget gates start open (Jozefowicz et al., 2015), as in Keras.
        self.bias = nnx.Param(jax.device_put(np.repeat(np.array([0, 1, 0, 0], np.float32), units)))
        self.reverse = reverse

    def __call__(self, x: Array, length: Array) -> Array:
        """Run over time, from the last frame to the first if the layer is reversed.

        Args:
            x: [T, B, F] frames; finite values in the padding have no influence.
            length: [B] int32 frames of each clip; the rest is padding.

        Returns:
            [T, B, units] hidden states, exactly 0 in the padding.
        """
        return lstm(x, length, *self.weights, self.reverse)

    @property
    def weights(self) -> tuple[Array, Array, Array]:
        """Input kernel [F, 4 H], recurrent kernel [H, 4 H] and bias [4 H]."""
        return self.input_kernel[...], self.recurrent_kernel[...], self.bias[...]


@jax.custom_vjp
def both(x, length, ahead, back):
    """Both directions of a layer, side by side: x [T, B, F] and their weights -> [T, B, 2 H].

    Without a gradient, the kernel runs both at once.
    """
    if _implementation(x) is native:
        return native.predict(x, length, ahead, back)
    return one_by_one(x, length, ahead, back)


def one_by_one(x, length, ahead, back):
    """`both`, for training: the gradient of x is computed only if needed."""
    return jnp.concatenate([lstm(x, length, *ahead, False), lstm(x, length, *back, True)], axis=-1)


# The forward pass returns a function, which to JAX is a tree of arrays.
both.defvjp(partial(jax.vjp, one_by_one), lambda backward, dh: backward(dh))


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def lstm(x, length, input_kernel, recurrent_kernel, bias, reverse=False):
    """The layer as a function: x [T, B, F] and its weights -> [T, B, H]. See `LSTM`."""
    run = _implementation(x).forward
    return run(x, length, input_kernel, recurrent_kernel, bias, reverse)[0]


def _forward(x, length, input_kernel, recurrent_kernel, bias, reverse):
    # The input kernel is kept only for the gradient of x, which input data does not need.
    kept = input_kernel.value if x.perturbed else None
    x, length, *weights = (one.value for one in (x, length, input_kernel, recurrent_kernel, bias))
    h, c, t = _implementation(x).forward(x, length, *weights, reverse)
    return h, (x, h, c, t, length, kept, weights[1])


def _backward(reverse, saved, dh):
    dx, d_input, d_recurrent, d_bias = _implementation(dh).backward(dh, *saved, reverse)
    return dx, None, d_input, d_recurrent, d_bias


lstm.defvjp(_forward, _backward, symbolic_zeros=True)


def _implementation(x):
    # The kernel takes only float32, and no symbolic shapes, which `jax.export` uses.
    fits = x.dtype == jnp.float32 and all(isinstance(size, int) for size in x.shape)
    return native if native.usable() and fits else scan
