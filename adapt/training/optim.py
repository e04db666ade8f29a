"""Optimizers by group: freezing as an optax mask, learning-rate schedules, decay where it belongs."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adapt import tree
from adapt.errors import RuleError, StrategyError

FROZEN = "frozen"  # a string, never None: None is an empty pytree


def trainable(params: tree.Tree, labels: tree.Tree) -> tree.Tree:
    """The leaves that some group trains."""
    group = tree.group_of(labels)
    return tree.select(params, lambda path: not path.endswith("/") and group(path) != FROZEN)


def frozen(params: tree.Tree, labels: tree.Tree) -> tree.Tree:
    """The leaves labelled FROZEN, and empty subtrees."""
    group = tree.group_of(labels)
    return tree.select(params, lambda path: path.endswith("/") or group(path) == FROZEN)


def by_label(
    groups: Mapping[str, optax.GradientTransformation],
    labels: tree.Tree,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """One optimizer a group; leaves labelled FROZEN get zero updates and own no optimizer state.

    Takes the whole parameter tree (a loop of your own) or only the trainable part of it (``make_step``): both
    give the same updates, for labels are looked up by path. ``clip_norm`` clips the global norm of the gradients
    of what trains; frozen leaves have no part in it. Raises :class:`RuleError` when groups and labels differ.
    """
    group = tree.group_of(labels)
    names = set(tree.paths(labels).values()) - {FROZEN}
    if names != set(groups):
        raise RuleError(
            f"the labels name the groups {sorted(names)}, the optimizers are for {sorted(groups)}"
        )

    def labels_of(params: Any) -> Any:
        return tree.map_paths(lambda path, _: group(path), params)

    def trains(params: Any) -> Any:
        return jax.tree.map(lambda group: group != FROZEN, labels_of(params))

    transforms = optax.partition({**groups, FROZEN: optax.set_to_zero()}, labels_of)
    if clip_norm is None:
        return transforms
    return optax.chain(optax.masked(optax.clip_by_global_norm(clip_norm), trains), transforms)


def rounded_away(params: Any, updates: Any) -> jax.Array:
    """Of the elements that an update other than zero is for, the share that stays as it is, float32 [].

    The update is then below half a unit in the last place of the parameter's dtype: near 1, bfloat16 has steps of 0.0078
    and float32 of 1.2e-7. Parameters that train belong in float32 for that reason.
    """

    def counts(param: jax.Array, update: jax.Array) -> jax.Array:
        asked = update != 0
        still = asked & (optax.apply_updates(param, update) == param)
        return jnp.stack([still.sum(dtype=jnp.float32), asked.sum(dtype=jnp.float32)])

    still, asked = sum(jax.tree.leaves(jax.tree.map(counts, params, updates)), jnp.zeros(2))
    return still / jnp.maximum(asked, 1)


def decays(params: Any) -> Any:
    """Mask for weight decay: every leaf but biases and normalisation scales (Devlin et al. 2019, A.2)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key not in ("bias", "scale"), params
    )


def adamw(rate: optax.ScalarOrSchedule, weight_decay: float = 0.01) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) with bias correction; decay on neither biases nor norms."""
    return optax.adamw(rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay, mask=decays)


def schedule(
    peak: float, steps: int, warmup: float = 0.1, decay: str = "linear"
) -> Callable[[Any], Any]:
    """Linear warm-up over ``warmup`` (a share of ``steps``), then ``linear`` or ``cosine`` decay to 0, or ``constant``.

    The rate of step 0 is ``peak / warm`` rather than 0, so that no step is spent on nothing.
    """
    warm = min(round(warmup * steps), steps - 1)
    rest = max(steps - warm, 1)
    shapes = {
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "constant": optax.constant_schedule(peak),
    }
    if decay not in shapes:
        raise StrategyError(f"unknown decay {decay!r}: give one of {', '.join(shapes)}")
    after = shapes[decay]
    return (
        after
        if warm < 1
        else optax.join_schedules(
            [optax.linear_schedule(peak / warm, peak, max(warm - 1, 1)), after], [warm]
        )
    )
