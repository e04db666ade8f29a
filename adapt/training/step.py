"""One jitted step, one loop. What is frozen is an argument of its own: not differentiated, not donated, not returned."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adapt.errors import RuleError, TrainingError
from adapt.models import Model, flatten_groups
from adapt.parallel.sharding import Layout, shard_inputs, shard_tree
from adapt.training import optim
from adapt.training.frozen_prefix import Cut, cut_at, suffix_batch
from adapt.training.losses import Loss
from adapt.training.regularizers import Regularizer
from adapt.tree import Tree, map_paths, merge, paths


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """All that training changes: steps taken, the trainable parameters, their optimizer state.

    ``key`` never changes: step s uses ``fold_in(key, s)``. ``halted`` is set by a step whose loss or gradient is not
    finite; from then on steps change nothing, so the parameters stay those of the last good step.
    """

    step: jax.Array
    params: Tree
    opt_state: Any
    key: jax.Array
    halted: jax.Array


def init_state(
    params: Tree,
    labels: Tree,
    tx: optax.GradientTransformation,
    key: jax.Array,
    layout: Layout | None = None,
    frozen_dtype: Any = None,
) -> tuple[Tree, State]:
    """Split ``params`` by ``labels`` into (frozen parameters, State with a copy of what trains).

    ``params`` and ``key`` stay usable: what the step gets donated is a copy. With a ``layout`` all of it is made straight
    in its place on the mesh. ``frozen_dtype`` is what frozen matrices are stored in, by default their own.
    Raises :class:`TrainingError` if nothing trains.
    """
    trainable = optim.trainable(params, labels)
    still = optim.frozen(params, labels)
    if frozen_dtype is not None:
        still = map_paths(
            lambda _, leaf: leaf.astype(frozen_dtype) if leaf.ndim > 1 else leaf, still
        )
    if not paths(trainable):
        raise TrainingError(
            "every parameter is FROZEN: nothing would train; label at least one leaf with a group"
        )
    if layout:
        layout.check(params)
        trainable = layout.shard(trainable)
        still = layout.shard(still, layout.frozen_rules)
        copied = jax.jit(
            lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=layout.shardings(trainable)
        )(trainable)
        moments = layout.shardings(jax.eval_shape(tx.init, trainable))
        opt_state = jax.jit(tx.init, out_shardings=moments)(trainable)
        rest = layout.shard((np.int32(0), key, np.bool_(False)))
        return still, State(rest[0], copied, opt_state, *rest[1:])
    device = jax.local_devices()[0]
    trainable = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(trainable)
    state = State(
        jnp.int32(0),
        trainable,
        jax.jit(tx.init)(trainable),
        jnp.array(key, copy=True),
        jnp.bool_(False),
    )
    # Committed to a device, as restored arrays are: otherwise the first step after a resume would compile again.
    return shard_tree(still), jax.device_put(state, device)


def advance(
    frozen: Tree,
    state: State,
    before: Tree,
    labels: Tree,
    tx: optax.GradientTransformation,
    layout: Layout | None = None,
) -> tuple[Tree, State]:
    """The next phase: (frozen, state) by new labels and optimizer, steps and key going on.

    Leaves that go on training in their group keep their moments and their count; others begin anew. ``before`` are the
    labels until now. Raises :class:`RuleError` where a group that goes on gains leaves: they would share its count.
    """
    groups = [{}, {}]
    for found, tree in zip(groups, (before, labels), strict=True):
        for path, group in paths(tree).items():
            found.setdefault(group, set()).add(path)
    old, new = groups
    for group in (old.keys() & new.keys()) - {optim.FROZEN}:
        if old[group] & new[group] and (gained := new[group] - old[group]):
            raise RuleError(
                f"group {group!r} goes on and gains {min(gained)}: give what begins a group of its own"
            )
    still, fresh = init_state(merge(frozen, state.params), labels, tx, state.key, layout)
    kept = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
    }

    def carried(path: Any, leaf: jax.Array) -> jax.Array:
        found = kept.get(jax.tree_util.keystr(path), leaf)
        return found if found.shape == leaf.shape else leaf

    opt_state = jax.tree_util.tree_map_with_path(carried, fresh.opt_state)
    return still, dataclasses.replace(
        fresh, step=state.step, halted=state.halted, opt_state=opt_state
    )


@dataclasses.dataclass(frozen=True)
class Step:
    """``(frozen, state, batch) -> (state, metrics)``: the compiled prefix, where there is one, and the compiled suffix.

    A batch that brings ``hidden``, what the prefix would put out, skips the prefix.
    """

    prefix: Cut | None
    suffix: Any  # jitted (frozen, state, batch) -> (state, metrics), with the state donated
    regularizer: Regularizer | None = None
    layout: Layout | None = None

    def shard_batch(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The batch over the mesh, where there is one."""
        return (
            self.layout.shard_batch(batch, len(batch["weight"].shape) - 2) if self.layout else batch
        )

    def __call__(
        self, frozen: Tree, state: "State", batch: Mapping[str, Any]
    ) -> tuple["State", dict[str, jax.Array]]:
        batch = self.shard_batch(batch)
        if self.prefix is not None:
            frozen, batch = self.prefix(frozen, batch)
        return self.suffix(frozen, state, batch)

    def programs(self, frozen: Tree, state: "State", batch: Mapping[str, Any]) -> dict[str, Any]:
        """The compiled ``prefix`` (unless the batch brings ``hidden``) and ``suffix``: their text, FLOPs and memory."""
        found = {}
        batch = self.shard_batch(batch)
        if self.prefix is not None:
            below, above = self.prefix.split(frozen)
            hidden = batch.get("hidden")
            if hidden is None:
                found["prefix"] = self.prefix.run.lower(below, batch).compile()
                hidden = jax.eval_shape(self.prefix.run, below, batch)
            frozen = above
            batch = self.shard_batch(
                suffix_batch(self.prefix.model, batch, self.prefix.depth, hidden)
            )
        return found | {"suffix": self.suffix.lower(frozen, state, batch).compile()}


def make_step(
    model: Model,
    loss: Loss,
    tx: optax.GradientTransformation,
    cut: int = 0,
    dropout: bool = True,
    regularizer: Regularizer | None = None,
) -> Step:
    """The train step ``(frozen, state, batch) -> (state, metrics)``, jitted, with the state donated.

    A batch holds the model's inputs, ``label`` and ``weight`` [N]; if ``weight`` is [A, N], everything has a leading
    axis of A micro-batches, whose sums of losses and of weights are accumulated before one division: the same gradient
    as one large batch. The first ``cut`` stages run deterministic, in a program of their own (see :mod:`adapt.training.frozen_prefix`).
    With a ``regularizer``, ``frozen["anchor"]`` holds pre-trained values by path.
    Metrics: ``loss`` (weighted mean), ``grad_norm`` (before clipping, of what trains), ``weight``; where something trains
    that is stored in less than float32, ``rounded_away``: see :func:`adapt.training.optim.rounded_away`.
    """

    def total(
        trainable: Tree, frozen: Tree, batch: Mapping[str, Any], key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        if regularizer and regularizer.mixout and dropout:
            trainable = regularizer.mix(trainable, frozen["anchor"], jax.random.fold_in(key, 0xA11))
        params = merge(frozen, trainable)
        output = model.suffix(params, batch.get("hidden"), batch, cut, key if dropout else None)
        label, weight = (
            flatten_groups(batch[name]) if model.layout else batch[name]
            for name in ("label", "weight")
        )
        return (loss(output, label) * weight).sum(), weight.sum()

    gradient = jax.value_and_grad(total, has_aux=True)

    def step(
        frozen: Tree, state: State, batch: Mapping[str, Any]
    ) -> tuple[State, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        if batch["weight"].ndim == 1 + bool(model.layout):
            (summed, weight), grads = gradient(state.params, frozen, batch, key)
        else:

            def add(carry: Any, part: Any) -> tuple[Any, None]:
                micro, index = part
                return jax.tree.map(
                    jnp.add,
                    carry,
                    gradient(state.params, frozen, micro, jax.random.fold_in(key, index)),
                ), None

            zero = ((jnp.zeros(()), jnp.zeros(())), jax.tree.map(jnp.zeros_like, state.params))
            parts = (dict(batch), jnp.arange(len(batch["weight"])))
            ((summed, weight), grads), _ = jax.lax.scan(add, zero, parts)
        weight = jnp.maximum(weight, 1e-9)
        grads = jax.tree.map(lambda g: g / weight, grads)
        grads = (
            regularizer.add_gradient(grads, state.params, frozen["anchor"])
            if regularizer and regularizer.l2sp
            else grads
        )
        norm = optax.tree.norm(grads)
        mean = summed / weight
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        good = jnp.isfinite(mean) & jnp.isfinite(norm) & ~state.halted
        new = (optax.apply_updates(state.params, updates), opt_state)
        params, opt_state = jax.tree.map(
            lambda n, o: jnp.where(good, n, o), new, (state.params, state.opt_state)
        )
        after = State(state.step + good, params, opt_state, state.key, ~good)
        after = model.layout.constrain(after) if model.layout else after
        narrow = any(leaf.dtype.itemsize < 4 for leaf in jax.tree.leaves(state.params))
        lost = {"rounded_away": optim.rounded_away(state.params, updates)} if narrow else {}
        return after, {"loss": mean, "grad_norm": norm, "weight": weight} | lost

    return Step(
        cut_at(model, cut) if cut else None,
        jax.jit(model.allow_fused_attention(step), donate_argnums=1),
        regularizer,
        model.layout,
    )


def make_eval(
    model: Model, cut: Cut | None = None
) -> Callable[[Tree, Mapping[str, Any]], jax.Array]:
    """``(params, batch) -> outputs`` [N, ...] of the head, deterministic, jitted; cut as a step is cut, where it is."""
    layout = model.layout
    whole = layout.replicated if layout else None  # every process gets all outputs
    if cut is None:
        return shard_inputs(
            jax.jit(
                model.allow_fused_attention(lambda params, batch: model.apply(params, batch)),
                out_shardings=whole,
            ),
            layout,
        )
    above = model.allow_fused_attention(
        lambda params, batch: model.suffix(params, batch["hidden"], batch, cut.depth)
    )
    suffix = jax.jit(above, out_shardings=whole)
    return shard_inputs(lambda params, batch: suffix(*cut(params, batch)), layout)
