"""Optimizers by group: freezing as an optax mask, learning-rate schedules, weight decay.

tx = by_label({"head": adamw(1e-3), "encoder": adamw(schedule(2e-5, steps))}, labels, clip_norm=1.0)
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adapt import tree
from adapt.errors import RuleError, StrategyError

#: The group of leaves that do not train. A string, never None: None is an empty pytree.
FROZEN = "frozen"


def trainable(params: tree.Tree, labels: tree.Tree) -> tree.Tree:
    """The leaves that some group trains. Raises :class:`RuleError` for a path without a label."""
    group = tree.group_of(labels)
    return tree.select(params, lambda path: not path.endswith("/") and group(path) != FROZEN)


def frozen(params: tree.Tree, labels: tree.Tree) -> tree.Tree:
    """The leaves labelled FROZEN, and empty subtrees. The rest of :func:`trainable`."""
    group = tree.group_of(labels)
    return tree.select(params, lambda path: path.endswith("/") or group(path) == FROZEN)


def by_label(
    groups: Mapping[str, optax.GradientTransformation],
    labels: tree.Tree,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """One optimizer a group; leaves labelled FROZEN get zero updates and own no optimizer state.

    ``groups`` maps each group of the label tree ``labels`` but FROZEN to its optimizer. With
    ``clip_norm`` the gradients of what trains are scaled down to that global norm; those of frozen
    leaves do not count.

    The result takes the whole parameter tree (in a loop of your own), or only what trains of it (as
    :func:`adapt.training.step.make_step` does), and gives the same updates: labels are looked up by
    path.

    Raises :class:`RuleError` if the groups are not those that ``labels`` names.

        labels = label(params, [("head/.*", "head"), (".*", FROZEN)])
        tx = by_label({"head": adamw(1e-3)}, labels, clip_norm=1.0)
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
    clip = optax.masked(optax.clip_by_global_norm(clip_norm), trains)
    return optax.chain(clip, transforms)


def rounded_away(params: Any, updates: Any) -> jax.Array:
    """The fraction of nonzero updates without effect, float32 []: the parameter stays as it is.

    Such an update is below half a unit in the last place of the parameter's dtype: near 1, bfloat16
    has steps of 0.0078 and float32 of 1.2e-7. For that reason parameters that train belong in
    float32.
    """

    def counts(param: jax.Array, update: jax.Array) -> jax.Array:
        nonzero = update != 0
        unchanged = nonzero & (optax.apply_updates(param, update) == param)
        return jnp.stack([unchanged.sum(dtype=jnp.float32), nonzero.sum(dtype=jnp.float32)])

    by_leaf = jax.tree.leaves(jax.tree.map(counts, params, updates))
    unchanged, nonzero = sum(by_leaf, jnp.zeros(2))
    return unchanged / jnp.maximum(nonzero, 1)


def decays(params: Any) -> Any:
    """Mask of weight decay: all but biases and scales of norms (Devlin et al. 2019, A.2)."""

    def decayed(path: Any, _: Any) -> bool:
        return path[-1].key not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(decayed, params)


def adamw(rate: optax.ScalarOrSchedule, weight_decay: float = 0.01) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019), bias-corrected: betas 0.9 and 0.999, epsilon 1e-8.

    ``rate`` is a number or a schedule. Biases and normalisation scales do not decay.

        adamw(schedule(2e-5, steps=1000))
    """
    return optax.adamw(rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay, mask=decays)


def schedule(
    peak: float, steps: int, warmup: float = 0.1, decay: str = "linear"
) -> Callable[[Any], Any]:
    """The learning rate at each step: it rises linearly to ``peak``, then decays.

    ``warmup`` is the fraction of ``steps`` in which it rises. ``decay`` is ``linear`` or
    ``cosine``, both to 0, or ``constant``. With W steps of warm-up, step 0 has the rate ``peak /
    W`` and not 0, so that no step is without effect.

    Raises :class:`StrategyError` for an unknown ``decay``.

        rate = schedule(1e-3, steps=100)
        rate(0), rate(9), rate(99)   # 1e-4, 1e-3, 1.1e-5
    """
    warmup_steps = min(round(warmup * steps), steps - 1)
    decay_steps = max(steps - warmup_steps, 1)
    shapes = {
        "linear": optax.linear_schedule(peak, 0.0, decay_steps),
        "cosine": optax.cosine_decay_schedule(peak, decay_steps),
        "constant": optax.constant_schedule(peak),
    }
    if decay not in shapes:
        raise StrategyError(f"unknown decay {decay!r}: give one of {', '.join(shapes)}")
    if warmup_steps < 1:
        return shapes[decay]
    rise = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([rise, shapes[decay]], [warmup_steps])
