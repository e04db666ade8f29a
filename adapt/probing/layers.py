"""The features of every layer of an encoder, pooled, in one pass over the data."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adapt import tree
from adapt.devices import check_frozen_dtype
from adapt.errors import StrategyError
from adapt.models import POOLINGS, Classifier, Encoder, Model, cached_program, flatten_groups
from adapt.options import FrozenDType
from adapt.parallel.sharding import Layout, shard_inputs
from adapt.pretrained.hub import Pretrained
from adapt.training.loop import evaluate
from adapt.training.step import place_kernels


def layer_features(
    pretrained: Pretrained,
    batches: Iterable[tuple[Any, Mapping[str, Any]]],
    count: int,
    poolings: Sequence[str],
    layout: Layout | None = None,
    frozen_dtype: FrozenDType | None = None,
) -> np.ndarray:
    """Features float32 [layers + 1, poolings, N, D] of every layer, in memory.

    ``batches`` are (index, batch) pairs over ``count`` examples. Layer 0 is the embedding, the last
    one has the final norm. ``frozen_dtype`` is that of the kernels on the devices, by default
    float32, in which all is computed. Raises :class:`StrategyError` for a pooling with weights,
    which are another head's, and for a dtype that there is not.
    """
    check_poolings(poolings)
    check_frozen_dtype(frozen_dtype)
    params = place_kernels(tree.drop(pretrained.params, "head"), frozen_dtype, layout)
    model = Model(Encoder(pretrained.config), Classifier(0), layout)
    forward = pooled_layers(model, tuple(poolings))
    return np.moveaxis(evaluate(forward, params, batches, count), 0, 2)


def weightless_poolings() -> list[str]:
    """The poolings that can be probed."""
    return [name for name in POOLINGS if name != "pooler"]


def check_poolings(poolings: Sequence[str]) -> None:
    """Raise :class:`StrategyError` for a pooling that there is not, or that has weights."""
    without_weights = weightless_poolings()
    for name in poolings:
        if name not in without_weights:
            known = ", ".join(without_weights)
            raise StrategyError(f"`pooling` {name!r} can't be probed: give some of {known}")


@cached_program
def pooled_layers(model: Model, poolings: tuple[str, ...]) -> Any:
    """Jitted (params, batch) -> float32 [slots, layers + 1, poolings, D]."""

    def forward(params: tree.Tree, batch: Mapping[str, Any]) -> jax.Array:
        layers = []
        for states in model.hidden_states(params, dict(batch)):
            tokens = states.reshape(-1, states.shape[-1])
            pooled = [POOLINGS[name](tokens, batch) for name in poolings]
            layers.append(jnp.stack(pooled, 1))
        return jnp.stack(layers, 1).astype(jnp.float32)

    layout = model.layout
    if layout is None:
        return jax.jit(forward)

    def forward_groups(params: tree.Tree, batch: Mapping[str, Any]) -> jax.Array:
        params = params | {"encoder": model.gather_tables(params["encoder"])}
        of_group = functools.partial(forward, params)
        return flatten_groups(layout.over_groups(of_group)(batch))

    return shard_inputs(jax.jit(forward_groups, out_shardings=layout.replicated), layout)
