"""A tree of arrays as one flat vector."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


class FlatTree:
    """The layout of a tree's arrays in a vector, padded to a multiple of `parts`."""

    def __init__(self, like: Any, parts: int):
        leaves, self.structure = jax.tree.flatten(like)
        self.shapes = [leaf.shape for leaf in leaves]
        self.ends = np.cumsum([np.prod(shape, dtype=int) for shape in self.shapes])
        self.padding = -int(self.ends[-1]) % parts

    def ravel(self, tree: Any) -> Any:
        """The tree's arrays concatenated, with zeros at the end; NumPy stays NumPy."""
        leaves = [leaf.ravel() for leaf in jax.tree.leaves(tree)]
        numpy = np if isinstance(leaves[0], np.ndarray) else jnp
        return numpy.concatenate([*leaves, numpy.zeros(self.padding, leaves[0].dtype)])

    def unravel(self, vector: Any) -> Any:
        """The tree from a vector."""
        starts = (0, *self.ends[:-1])
        leaves = [
            vector[start:end].reshape(shape)
            for start, end, shape in zip(starts, self.ends, self.shapes, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)

    def mark(self, chosen: Callable[[tuple[int, ...]], bool]) -> Array:
        """1 in the vector where the shape of the array is `chosen`, 0 elsewhere."""
        parts = [jnp.full(np.prod(shape, dtype=int), float(chosen(shape))) for shape in self.shapes]
        return jnp.concatenate([*parts, jnp.zeros(self.padding)])
