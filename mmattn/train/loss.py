"""The focal loss with class weights."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def focal_loss(
    logits: Array, labels: Array, gamma: float = 2.0, class_weights: Array | None = None
) -> Array:
    """Focal loss of softmax classification, for each clip.

        L = -α_y (1 - p_y)^γ log p_y

    γ = 0 without weights is `optax.softmax_cross_entropy_with_integer_labels`.

    Args:
        logits: […, K].
        labels: […] integer class numbers.
        gamma: focusing exponent γ ≥ 0.
        class_weights: [K] α, or None for 1.

    Returns:
        […] losses.

    References:
        Lin et al., Focal Loss for Dense Object Detection, 2017 (https://arxiv.org/abs/1708.02002).

    >>> focal_loss(jnp.array([0.0, 0.0]), jnp.array(0), gamma=2.0)  # (1/2)² log 2
    Array(0.1732868, dtype=float32)
    """
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]
    loss = -log_p
    if gamma:
        # 1 - p without cancellation; kept off 0, where the power has no finite gradient for γ < 1.
        loss = loss * jnp.maximum(-jnp.expm1(log_p), jnp.finfo(log_p.dtype).tiny) ** gamma
    return loss if class_weights is None else loss * jnp.asarray(class_weights)[labels]


def balanced_class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Weights n / (k n_c) of the classes of a training split: [n] labels -> [k] float32."""
    counts = np.bincount(labels, minlength=classes)
    return (len(labels) / (classes * np.maximum(counts, 1))).astype(np.float32)
