"""What holds weights that train near their pre-trained values."""

import dataclasses

import jax
import jax.numpy as jnp

from adapt import tree
from adapt.models import random_bits


@dataclasses.dataclass(frozen=True)
class Regularizer:
    """What holds training weights near their pre-trained values, which the step finds under ``frozen["anchor"]``.

    ``l2sp`` adds strength times (w - w0) to the gradient: that of strength / 2 ||w - w0||^2 (Li et al. 2018, eq. 2).
    ``mixout`` computes with w0 in place of w with this probability, scaled to keep the mean (Lee et al. 2020, 3).
    """

    l2sp: float = 0.0
    mixout: float = 0.0

    def mix(self, params: tree.Tree, anchor: tree.Tree, key: jax.Array) -> tree.Tree:
        """``params`` with a share of the weights as in ``anchor``."""
        home = tree.paths(anchor)
        place = {path: number for number, path in enumerate(tree.paths(anchor))}

        def mixed(path: str, leaf: jax.Array) -> jax.Array:
            if path not in home:
                return leaf
            bits = random_bits(jax.random.fold_in(key, place[path]), leaf.shape)
            keep = bits >= jnp.uint32(round(self.mixout * 2**32))
            return home[path] + jnp.where(keep, (leaf - home[path]) / (1 - self.mixout), 0.0)

        return tree.map_paths(mixed, params)

    def add_gradient(self, grads: tree.Tree, params: tree.Tree, anchor: tree.Tree) -> tree.Tree:
        """The gradient with the penalty's."""
        home = tree.paths(anchor)
        now = tree.paths(params)
        return tree.map_paths(
            lambda p, g: g + self.l2sp * (now[p] - home[p]) if p in home else g, grads
        )
