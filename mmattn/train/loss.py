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
        gamma: focusing parameter γ ≥ 0.
        class_weights: [K] α, or None for 1.

    Returns:
        […] losses.

    References:
        Lin et al., Focal Loss for Dense Object Detection, 2017 (https://arxiv.org/abs/1708.02002).

    >>> focal_loss(jnp.array([0.0, 0.0]), jnp.array(0), gamma=2.0)  # (1/2)² log 2
    Array(0.1732868, dtype=float32)
    """
    # Selected, not indexed: gather and scatter are slow to compile.
    own = labels[..., None] == jnp.arange(logits.shape[-1])
    loss = _focal(jnp.where(own, jax.nn.log_softmax(logits), 0).sum(-1), gamma)
    if class_weights is None:
        return loss
    return loss * jnp.where(own, jnp.asarray(class_weights), 0).sum(-1)


def soft_focal_loss(
    logits: Array, targets: Array, gamma: float = 2.0, class_weights: Array | None = None
) -> Array:
    """Focal loss for target distributions, for each clip: the mean of `focal_loss` over labels ~ p.

        L = -Σ_k p_k α_k (1 - q_k)^γ log q_k

    It is linear in p: a one-hot p gives `focal_loss` of its label, and mixed targets give mixed
    losses. γ = 0 without weights is the cross-entropy of q to p. With γ > 0 the loss is not proper:
    without weights, its minimum has the most probable class of p, but is not at p itself.

    Args:
        logits: […, K] of the predicted distribution q.
        targets: […, K] distributions p.
        gamma: focusing parameter γ ≥ 0.
        class_weights: [K] α, or None for 1.

    Returns:
        […] losses.

    References:
        Lin et al., 2017, as for `focal_loss`. Charoenphakdee et al., On Focal Loss for
        Class-Posterior Probability Estimation, CVPR 2021 (https://arxiv.org/abs/2011.09172), on
        the mean over labels and on its minimum.

    >>> soft_focal_loss(jnp.array([0.0, 0.0]), jnp.array([0.5, 0.5]), gamma=2.0)  # (1/2)² log 2
    Array(0.1732868, dtype=float32)
    """
    losses = _focal(jax.nn.log_softmax(logits), gamma)
    if class_weights is not None:
        losses = losses * jnp.asarray(class_weights)
    return (targets * losses).sum(axis=-1)


def _focal(log_p: Array, gamma: float) -> Array:
    """-(1 - p)^γ log p of log p […]."""
    loss = -log_p
    if gamma:
        # 1 - p without cancellation; kept above 0, where the power has no finite gradient if γ < 1.
        loss = loss * jnp.maximum(-jnp.expm1(log_p), jnp.finfo(log_p.dtype).tiny) ** gamma
    return loss


def balanced_class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Weights n / (k n_c) of the classes of a training split: [n] labels -> [k] float32."""
    return _class_weights(len(labels), np.bincount(labels, minlength=classes))


def soft_class_weights(targets: np.ndarray) -> np.ndarray:
    """Weights n / (k Σ_i p_ic) of the classes of target distributions p [n, k] -> [k] float32.

    A class with a mass below one clip is weighted as if it had one clip: otherwise one vote of one
    rater could weigh as much as all votes for another class.
    """
    return _class_weights(len(targets), targets.sum(axis=0))


def _class_weights(clips: int, mass: np.ndarray) -> np.ndarray:
    return (clips / (len(mass) * np.maximum(mass, 1))).astype(np.float32)
