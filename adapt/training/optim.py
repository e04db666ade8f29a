"""Optimizers by group: freezing as an optax mask, learning-rate schedules, weight decay.

tx = by_label({"head": adamw(1e-3), "encoder": adamw(schedule(2e-5, steps))}, labels, clip_norm=1.0)

Rates, the length of a schedule, weight decay and the norm of clipping are :class:`Settings` in the
optimizer's state. To a compiled step they are data: with others of them nothing is compiled again.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from adapt import tree
from adapt.errors import RuleError, StrategyError
from adapt.models.accelerated import is_for_one_accelerator

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
    clip = optax.masked(clip_by_norm(clip_norm), trains)
    return optax.chain(clip, transforms)


def clip_by_norm(largest: float) -> optax.GradientTransformation:
    """``optax.clip_by_global_norm``, with the norm in its state, and one factor for all gradients.

    XLA computes a product inside of what follows; where every gradient is divided by the norm, it
    writes them all once more, and compiles a step for a CPU for half as long again.
    """

    def init(params: Any) -> Any:
        return Settings.of(norm=largest)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        limit = state.values["norm"]
        norm = norm_of(updates)
        factor = jnp.where(norm < limit, 1.0, limit / norm)
        return jax.tree.map(lambda grad: factor.astype(grad.dtype) * grad, updates), state

    return optax.GradientTransformation(init, update)


def divide(grads: Any, weight: jax.Array) -> Any:
    """Every gradient over ``weight``.

    On an accelerator those of biases and scales go through one array: each of them alone takes a
    kernel that costs more to start than to run.
    """
    leaves, form = jax.tree.flatten(grads)
    divided = [leaf / weight for leaf in leaves]
    vectors = vector_indices(leaves)
    if vectors:
        # Without the barrier XLA divides each by itself.
        together = jnp.concatenate([leaves[index] for index in vectors])
        together = jax.lax.optimization_barrier(together) / weight
        ends = np.cumsum([leaves[index].size for index in vectors])
        for index, vector in zip(vectors, jnp.split(together, ends[:-1]), strict=True):
            divided[index] = vector
    return jax.tree.unflatten(form, divided)


def norm_of(updates: Any) -> jax.Array:
    """The norm of all leaves together, float32 []; on an accelerator vectors are summed as one."""
    leaves = jax.tree.leaves(updates)
    vectors = vector_indices(leaves)
    if vectors:
        together = jnp.concatenate([leaves[index] for index in vectors])
        others = [leaf for index, leaf in enumerate(leaves) if index not in vectors]
        leaves = [*others, together]
    return optax.tree.norm(leaves)


def vector_indices(leaves: Sequence[jax.Array]) -> list[int]:
    """Which leaves :func:`divide` and :func:`norm_of` take as one: float32 vectors, in a program for
    one accelerator; else none.
    """
    if not is_for_one_accelerator():
        return []
    return [
        index for index, leaf in enumerate(leaves) if leaf.ndim == 1 and leaf.dtype == jnp.float32
    ]


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


# What is data of a compiled step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
    """Numbers of an optimizer that no step changes, by name; a number or a :class:`Schedule` each.

    They lie in the optimizer's state, so that they are arguments of a compiled step: together one
    array, since every argument costs a small step time. A checkpoint does not have them: a run that
    goes on takes those of its options.
    """

    numbers: jax.typing.ArrayLike  # float32 [n]
    form: Any = dataclasses.field(metadata={"static": True})  # the tree whose leaves they are

    @classmethod
    def of(cls, **values: Any) -> "Settings":
        numbers, form = jax.tree.flatten(values)
        return cls(np.asarray(numbers, np.float32), form)

    @property
    def values(self) -> Mapping[str, Any]:
        """Each by its name, float32 []."""
        return jax.tree.unflatten(self.form, list(self.numbers))  # pyright: ignore


def is_settings(node: Any) -> bool:
    return isinstance(node, Settings)


def drop_settings(opt_state: optax.OptState) -> optax.OptState:
    """An optimizer's state without its settings: what a step changes."""

    def without(node: Any) -> Any:
        return None if is_settings(node) else node

    return jax.tree.map(without, opt_state, is_leaf=is_settings)


def take_settings(opt_state: optax.OptState, source: optax.OptState) -> optax.OptState:
    """``opt_state``, whose settings may have been dropped, with a copy of those of ``source``."""

    def settings_of(node: Any, other: Any) -> Any:
        return jax.tree.map(jnp.copy, node) if is_settings(node) else other

    return jax.tree.map(settings_of, source, opt_state, is_leaf=is_settings)


class AdamWState(NamedTuple):
    """The state of :func:`adamw`: moments, the number of updates, and rate, decay and correction."""

    moments: optax.OptState  # of optax.scale_by_adam
    count: jax.typing.ArrayLike  # int32 []
    settings: Settings


BETAS = (0.9, 0.999)


def adamw(
    rate: optax.ScalarOrSchedule, weight_decay: float = 0.01, bias_correction: bool = True
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019): betas 0.9 and 0.999, epsilon 1e-8.

    ``rate`` is a number, a :func:`schedule`, or any function of the number of updates, which a
    compiled step then has as it is. Biases and normalisation scales do not decay. Without
    ``bias_correction`` the two averages stay as they are, which begin at zero, as in BERT's first
    optimizer (Zhang et al. 2021, section 4): a step is up to 6.6 times as long, in some hundreds of
    the first updates. Raises :class:`StrategyError` for that beside a function of one's own.

        adamw(schedule(2e-5, steps=1000))
    """
    first, second = BETAS
    if callable(rate) and not isinstance(rate, Schedule):
        if not bias_correction:
            raise StrategyError("`bias_correction` False: give `rate` a number or a schedule")
        return optax.adamw(
            rate, b1=first, b2=second, eps=1e-8, weight_decay=weight_decay, mask=decays
        )
    adam = optax.scale_by_adam(b1=first, b2=second, eps=1e-8)

    def init(params: Any) -> Any:
        settings = Settings.of(
            rate=rate, weight_decay=weight_decay, bias_correction=bias_correction
        )
        zeros = jax.tree.map(zeros_like, params)
        moments = optax.ScaleByAdamState(np.int32(0), zeros, jax.tree.map(zeros_like, params))
        return AdamWState(moments, np.int32(0), settings)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, moments = adam.update(updates, state.moments, params)
        decay = state.settings.values["weight_decay"]
        step_size = state.settings.values["rate"]
        if isinstance(step_size, Schedule):
            step_size = step_size(state.count)
        count = optax.safe_increment(state.count)
        is_corrected = state.settings.values["bias_correction"] > 0
        bias = jnp.where(is_corrected, 1.0, bias_after(count))

        def scaled(is_decayed: bool, update: jax.Array, param: jax.Array) -> jax.Array:
            update = bias.astype(update.dtype) * update
            if is_decayed:
                update = update + decay.astype(param.dtype) * param
            return -step_size.astype(update.dtype) * update

        updates = jax.tree.map(scaled, decays(params), updates, params)
        return updates, AdamWState(moments, count, state.settings)

    return optax.GradientTransformation(init, update)


def bias_after(updates: Any) -> jax.Array:
    """By what Adam's correction divides an update, float32 []: how much shorter than their means
    the first average is, over the root of that of the second (Kingma and Ba 2015, section 3).
    """
    first, second = BETAS
    return (1 - first**updates) / jnp.sqrt(1 - second**updates)


def zeros_like(leaf: Any) -> Any:
    """Zeros of a parameter's shape: on the host, where each shape in JAX is a program of its own;
    in a traced function there.
    """
    if isinstance(leaf, Tracer):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, leaf.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate after a number of updates; made by :func:`schedule`.

    A pytree of numbers: its rates and lengths are data of a compiled step, the form of its decay is
    a part of the program.
    """

    peak: Any
    first: Any  # the rate of step 0
    warmup_steps: Any
    decay_steps: Any
    begun: Any  # steps of the schedule that were taken before update 0
    decay: str = dataclasses.field(metadata={"static": True})

    def __call__(self, count: Any) -> Any:
        step = count + self.begun
        rise = jnp.clip(step / jnp.maximum(self.warmup_steps - 1, 1), 0, 1)
        rising = (self.first - self.peak) * (1 - rise) + self.peak
        done = jnp.clip(step - self.warmup_steps, 0, self.decay_steps) / self.decay_steps
        falling = self.peak * DECAYS[self.decay](done)
        return jnp.where(step < self.warmup_steps, rising, falling)

    def after(self, steps: int) -> "Schedule":
        """The schedule from its step ``steps`` on."""
        return dataclasses.replace(self, begun=self.begun + steps)


@jax.jit
def rate_at(rate: Schedule, count: Any) -> jax.Array:
    """The learning rate after ``count`` updates, float32 []: a program for all schedules of a form."""
    return jnp.asarray(rate(count), jnp.float32)


DECAYS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + jnp.cos(jnp.pi * done)),
    "constant": jnp.ones_like,
}


def schedule(peak: float, steps: int, warmup: float = 0.1, decay: str = "linear") -> Schedule:
    """The learning rate at each step: it rises linearly to ``peak``, then decays.

    ``warmup`` is the fraction of ``steps`` in which it rises. ``decay`` is ``linear`` or
    ``cosine``, both to 0, or ``constant``. With W steps of warm-up, step 0 has the rate ``peak /
    W`` and not 0, so that no step is without effect.

    Raises :class:`StrategyError` for an unknown ``decay``.

        rate = schedule(1e-3, steps=100)
        rate(0), rate(9), rate(99)   # 1e-4, 1e-3, 1.1e-5
    """
    if decay not in DECAYS:
        raise StrategyError(f"unknown decay {decay!r}: give one of {', '.join(DECAYS)}")
    warmup_steps = min(round(warmup * steps), steps - 1)
    return Schedule(
        peak=float(peak),
        first=peak / max(warmup_steps, 1),
        warmup_steps=warmup_steps,
        decay_steps=max(steps - warmup_steps, 1),
        begun=0,
        decay=decay,
    )
