"""What keeps training weights near their pre-trained values: L2-SP and mixout."""

import dataclasses

import jax
import jax.numpy as jnp

from adapt import tree
from adapt.models import random_bits


@dataclasses.dataclass(frozen=True)
class Regularizer:
    """Keeps weights that train near their pre-trained values, the ``anchor``.

    The step finds the anchor in ``frozen["anchor"]``: the leaves of the parameter tree that train
    and have a pre-trained value. Leaves that are not in it are left alone.

    ``l2sp`` is the strength of a penalty on the squared distance, ``l2sp / 2 * ||w - w0||^2`` (Li
    et al. 2018, eq. 2). ``mixout`` is the probability with which a step computes with w0 in place
    of w, an element at a time, scaled so that the mean stays w (Lee et al. 2020, section 3).

        step = make_step(model, loss, tx, regularizer=Regularizer(l2sp=0.01))
        state, metrics = step(frozen | {"anchor": anchor}, state, batch)
    """

    l2sp: float = 0.0
    mixout: float = 0.0

    def mix(self, params: tree.Tree, anchor: tree.Tree, key: jax.Array) -> tree.Tree:
        """``params`` with a random fraction ``mixout`` of the elements as in ``anchor``."""
        anchors = tree.paths(anchor)
        numbers = {path: number for number, path in enumerate(anchors)}

        def mix_leaf(path: str, leaf: jax.Array) -> jax.Array:
            if path not in anchors:
                return leaf
            bits = random_bits(jax.random.fold_in(key, numbers[path]), leaf.shape)
            keep = bits >= jnp.uint32(round(self.mixout * 2**32))
            offset = (leaf - anchors[path]) / (1 - self.mixout)
            return anchors[path] + jnp.where(keep, offset, 0.0)

        return tree.map_paths(mix_leaf, params)

    def add_gradient(self, grads: tree.Tree, params: tree.Tree, anchor: tree.Tree) -> tree.Tree:
        """``grads`` with the gradient of the L2-SP penalty added."""
        anchors = tree.paths(anchor)
        weights = tree.paths(params)

        def add(path: str, grad: jax.Array) -> jax.Array:
            if path not in anchors:
                return grad
            return grad + self.l2sp * (weights[path] - anchors[path])

        return tree.map_paths(add, grads)
