"""The LSTM layer: jit-compiled scans with a hand-written backward pass.

Hochreiter & Schmidhuber (1997) with forget gate (Gers et al., 2000), for each time step t:

    i, f, o = σ(x_t W_x + h_{t-1} W_h + b)      g = tanh(x_t W_x + h_{t-1} W_h + b)
    c_t = f ⊙ c_{t-1} + i ⊙ g                   h_t = o ⊙ tanh(c_t)

Everything inside is time-major ([T, B, …]). What makes it quick on a CPU: x W_x is one matrix
product before the scan; the backward scan emits only the gate gradients dZ, and dW_x, dW_h and dX
are one large product each after it; σ(z) = ½ tanh(z/2) + ½, so one tanh serves all four gates.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

PADDING_GATE = -1e4  # tanh of it is exactly −1: input and forget gate 0, so state and output 0


class LSTM(nnx.Module):
    """One direction of an LSTM layer.

    The four gates lie side by side in the kernels' columns, in the order i, f, o, g.
    """

    def __init__(self, features: int, units: int, *, reverse: bool = False, rngs: nnx.Rngs):
        glorot, orthogonal = nnx.initializers.glorot_uniform(), nnx.initializers.orthogonal()
        self.input_kernel = nnx.Param(glorot(rngs.params(), (features, 4 * units)))
        self.recurrent_kernel = nnx.Param(orthogonal(rngs.params(), (units, 4 * units)))
        # Forget gates start open (Jozefowicz et al., 2015), as in Keras.
        self.bias = nnx.Param(jnp.zeros(4 * units).at[units : 2 * units].set(1.0))
        self.reverse = reverse

    def __call__(self, x: Array, inside: Array) -> Array:
        """Run over time, from the last frame to the first where the layer is reversed.

        Args:
            x: [T, B, F] frames; what lies in the padding has no influence if it is finite.
            inside: [T, B] bool, False in the padding.

        Returns:
            [T, B, units] hidden states, exactly 0 in the padding.
        """
        return lstm(
            x,
            inside,
            self.input_kernel[...],
            self.recurrent_kernel[...],
            self.bias[...],
            self.reverse,
        )


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def lstm(x, inside, input_kernel, recurrent_kernel, bias, reverse=False):
    """The layer as a function: [T, B, F] -> [T, B, H]. See `LSTM`."""
    return _forward(x, inside, input_kernel, recurrent_kernel, bias, reverse)[0]


def _forward(x, inside, input_kernel, recurrent_kernel, bias, reverse):
    units = recurrent_kernel.shape[0]
    # Halving the columns of the sigmoid gates here spares a pass over z at each time step.
    half = jnp.where(jnp.arange(4 * units) < 3 * units, 0.5, 1.0)
    projected = jnp.einsum("tbf,fg->tbg", x, input_kernel * half) + bias * half
    projected = jnp.where(inside[..., None], projected, PADDING_GATE)
    recurrent = recurrent_kernel * half

    def step(carry, z):
        h, c = carry
        # The barrier keeps the tanh one fusion, computed once a gate.
        t = lax.optimization_barrier(jnp.tanh(z + h @ recurrent))
        i, f, o, g = _gates(t, units)
        c = f * c + i * g
        h = o * jnp.tanh(c)
        return (h, c), (h, c, t)

    zero = jnp.zeros((x.shape[1], units), x.dtype)
    _, (h, c, t) = lax.scan(step, (zero, zero), projected, reverse=reverse)
    return h, (x, input_kernel, recurrent_kernel, h, c, t)


def _gates(t, units):
    i, f, o = (0.5 * t[..., n * units : (n + 1) * units] + 0.5 for n in range(3))
    return i, f, o, t[..., 3 * units :]


def _backward(reverse, saved, dh_out):
    x, input_kernel, recurrent_kernel, h, c, t = saved
    units = recurrent_kernel.shape[0]
    tanh_c = lax.optimization_barrier(jnp.tanh(c))
    h_before, c_before = _before(h, reverse), _before(c, reverse)

    def step(carry, now):
        dh, dc = carry
        dh_out, t, tanh_c, c_before = now
        i, f, o, g = _gates(t, units)
        dh = dh + dh_out
        dc = dc + dh * o * (1 - tanh_c * tanh_c)
        dz = jnp.concatenate(
            [
                dc * g * i * (1 - i),
                dc * c_before * f * (1 - f),
                dh * tanh_c * o * (1 - o),
                dc * i * (1 - g * g),
            ],
            axis=-1,
        )
        dz = lax.optimization_barrier(dz)
        return (dz @ recurrent_kernel.T, dc * f), dz

    zero = jnp.zeros_like(h[0])
    now = (dh_out, t, tanh_c, c_before)
    _, dz = lax.scan(step, (zero, zero), now, reverse=not reverse)
    d_input = jnp.einsum("tbf,tbg->fg", x, dz)
    d_recurrent = jnp.einsum("tbh,tbg->hg", h_before, dz)
    dx = jnp.einsum("tbg,fg->tbf", dz, input_kernel)
    return dx, None, d_input, d_recurrent, dz.sum((0, 1))


def _before(states, reverse):
    """The states [T, B, H] one step earlier in the direction of the scan, first 0."""
    zero = jnp.zeros_like(states[:1])
    parts = [states[1:], zero] if reverse else [zero, states[:-1]]
    return jnp.concatenate(parts)


lstm.defvjp(_forward, _backward)
