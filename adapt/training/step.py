"""One jitted step of training.

What is frozen is an argument of its own: it is not differentiated, not donated and not returned.

    frozen, state = init_state(params, labels, tx, key)
    step = make_step(model, cross_entropy, tx)
    for batch in batches:
        state, metrics = step(frozen, state, batch)
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adapt.errors import RuleError, StrategyError, TrainingError
from adapt.models import SCALE, Model, cached_program, flatten_groups, quantise
from adapt.parallel.sharding import Layout, shard_inputs, shard_tree
from adapt.training import optim
from adapt.training.context import ContextLoss, losses_with_context
from adapt.training.frozen_prefix import (
    Cut,
    cut_at,
    prefix_params,
    suffix_batch,
    suffix_params,
)
from adapt.training.losses import Loss
from adapt.training.regularizers import Regularizer
from adapt.tree import Tree, empties, map_paths, merge, paths, unflatten

Batch = Mapping[str, Any]  # arrays by name
Metrics = dict[str, jax.Array]  # float32 scalars by name

# (frozen, state, batch, key of the step) -> (state, metrics): a step that is not jitted.
Update = Callable[[Tree, "State", Batch, jax.Array], tuple["State", Metrics]]

# The sum of weighted losses, the sum of weights, and the gradient of the first by what trains.
LossAndGrad = Callable[[Tree, Tree, Batch, jax.Array], tuple[tuple[jax.Array, jax.Array], Tree]]

PARTS = 4  # of a loss, at the most
MIXOUT_STREAM = 0xA11  # folded into the key of a step: mixout and dropout draw from different bits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """All that training changes. A pytree; :func:`make_step`'s step donates it.

    ``step`` (int32 []) counts the steps taken. ``params`` is the trainable part of the parameter
    tree, ``opt_state`` the optimizer's state of it. ``key`` never changes: step s draws from
    ``fold_in(key, s)``. ``halted`` (bool []) is set by a step whose loss or gradient is not finite;
    from then on no step changes anything, so the parameters stay those of the last good step.
    """

    step: jax.Array
    params: Tree
    opt_state: optax.OptState
    key: jax.Array
    halted: jax.Array


def init_state(
    params: Tree,
    labels: Tree,
    tx: optax.GradientTransformation,
    key: jax.Array,
    layout: Layout | None = None,
    frozen_dtype: jax.typing.DTypeLike | None = None,
) -> tuple[Tree, State]:
    """The frozen parameters, and the :class:`State` of step 0 with a copy of the trainable ones.

    ``labels`` is the label tree of ``params`` (:func:`adapt.tree.label`), ``tx`` the optimizer of
    its groups (:func:`adapt.training.optim.by_label`), ``key`` a typed key
    (:func:`jax.random.key`) for dropout. ``params`` and ``key`` stay usable: the step is donated
    copies. With a ``layout`` each array is made straight in its place on the mesh. Frozen matrices
    are stored in ``frozen_dtype``, by default in their own dtype; vectors keep theirs. With int8
    these are the kernels of the encoder's dense layers alone (:func:`cast_kernels`).

    Raises :class:`TrainingError` if nothing trains, :class:`RuleError` for a path without a label.

        frozen, state = init_state(params, labels, tx, jax.random.key(0))
    """
    state = init_trainable(params, labels, tx, key, layout)
    frozen = optim.frozen(params, labels)
    if frozen_dtype is not None and jnp.dtype(frozen_dtype) == jnp.int8:
        return place_kernels(frozen, jnp.int8, layout), state
    if frozen_dtype is not None:
        frozen = cast_matrices(frozen, frozen_dtype)
    return place_frozen(frozen, layout), state


def place_frozen(frozen: Tree, layout: Layout | None) -> Tree:
    """Frozen parameters where they belong: on the mesh, or without one on the first device."""
    if layout is None:
        return shard_tree(frozen)
    return layout.shard(frozen, layout.frozen_rules)


def init_trainable(
    params: Tree,
    labels: Tree,
    tx: optax.GradientTransformation,
    key: jax.Array,
    layout: Layout | None = None,
) -> State:
    """The :class:`State` of :func:`init_state` alone: what is frozen stays where it is."""
    trainable = optim.trainable(params, labels)
    if not paths(trainable):
        raise TrainingError(
            "every parameter is FROZEN: nothing would train; label at least one leaf with a group"
        )
    if layout is None:
        return init_on_one_device(trainable, tx, key)
    layout.check(params)
    return init_on_mesh(layout.shard(trainable), tx, key, layout)


def is_kernel(path: str) -> bool:
    """Whether a parameter is the matrix of a dense layer of the encoder."""
    return path.startswith("encoder/") and path.endswith("/kernel")


def cast_kernels(params: Tree, dtype: jax.typing.DTypeLike) -> Tree:
    """The encoder's kernels in ``dtype``, the rest as it is; int8 ones with their scales beside them
    (:func:`adapt.models.quantise`).

    A computation in ``dtype`` casts the kernels of dense layers before it uses them, so what it
    computes has the same bits. It sums the rows of embedding tables, and scales by norms, in
    float32: these stay.
    """
    cast = dict.fromkeys(empties(params))
    for path, leaf in paths(params).items():
        cast |= cast_kernel(path, leaf, dtype)
    return unflatten(cast)


def cast_kernel(path: str, leaf: Any, dtype: jax.typing.DTypeLike) -> dict[str, Any]:
    """``{path: leaf}`` of :func:`cast_kernels` for one parameter: an int8 kernel becomes two."""
    if not is_kernel(path):
        return {path: leaf}
    if jnp.dtype(dtype) != jnp.int8:
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TrainingError(f"kernels can't be {jnp.dtype(dtype)}: int8 ones have a scale")
        return {path: leaf.astype(dtype)}
    values, scale = quantise(leaf)
    return {path: values, path.removesuffix("kernel") + SCALE: scale}


def place_kernels(
    frozen: Tree, dtype: jax.typing.DTypeLike | None, layout: Layout | None = None
) -> Tree:
    """:func:`cast_kernels` where frozen parameters belong: on the mesh, or on the first device. None
    leaves them in their dtype.

    They are cast and sent one after the other, so that the host holds no second copy of them all.
    """
    if dtype is None:
        return place_frozen(frozen, layout)
    placed = dict.fromkeys(empties(frozen))
    for path, leaf in paths(frozen).items():
        cast = unflatten(cast_kernel(path, leaf, dtype))
        placed |= paths(place_frozen(cast, layout))
    return unflatten(placed)


def cast_matrices(params: Tree, dtype: jax.typing.DTypeLike) -> Tree:
    """Leaves of two and more dimensions in ``dtype``; vectors and scalars as they are."""

    def cast(_: str, leaf: Any) -> Any:
        if leaf.ndim > 1:
            return leaf.astype(dtype)
        return leaf

    return map_paths(cast, params)


@jax.jit
def copy_leaves(tree: Any) -> Any:
    """A copy of every array, by one program."""
    return jax.tree.map(jnp.copy, tree)


def init_on_one_device(trainable: Tree, tx: optax.GradientTransformation, key: jax.Array) -> State:
    """The state of step 0 on the first device of this process."""
    copied = copy_leaves(trainable)
    zero: Any = np.int32(0)
    no: Any = np.bool_(False)
    state = State(
        step=zero,
        params=copied,
        opt_state=tx.init(copied),  # not jitted: its rates would be constants of a program
        key=jnp.array(key, copy=True),
        halted=no,
    )
    # Committed to a device, as restored arrays are: else a resumed run would compile a step twice.
    return jax.device_put(state, jax.local_devices()[0])


def init_on_mesh(
    trainable: Tree, tx: optax.GradientTransformation, key: jax.Array, layout: Layout
) -> State:
    """The state of step 0 over the mesh, from parameters that are there already."""
    copy = jax.jit(copy_leaves, out_shardings=layout.shardings(trainable))
    moments = layout.shardings(jax.eval_shape(tx.init, trainable))
    opt_state = jax.jit(tx.init, out_shardings=moments)(trainable)
    step, key, halted = layout.shard((np.int32(0), key, np.bool_(False)))
    return State(step, copy(trainable), opt_state, key, halted)


def advance(
    frozen: Tree,
    state: State,
    previous_labels: Tree,
    labels: Tree,
    tx: optax.GradientTransformation,
    layout: Layout | None = None,
    is_placed: bool = True,
) -> tuple[Tree, State]:
    """The frozen parameters and the state with which the next phase of a run begins.

    ``previous_labels`` are those of the phase that ends, ``labels`` and ``tx`` those of the next.
    The count of steps and the key stay. Leaves that stay in their group keep their moments, and the
    group its count; others begin with none. What is frozen lies on the devices, unless it is not
    to be ``is_placed`` there.

    Raises :class:`RuleError` where a group stays and gains leaves: they would share its count, and
    Adam would correct the bias of their moments by it.
    """
    check_no_group_gains(previous_labels, labels)
    params = merge(frozen, state.params)
    frozen = optim.frozen(params, labels)
    fresh = init_trainable(params, labels, tx, state.key, layout)
    if is_placed:
        frozen = place_frozen(frozen, layout)
    opt_state = carry_over(state.opt_state, fresh.opt_state)
    return frozen, State(state.step, fresh.params, opt_state, fresh.key, state.halted)


def check_no_group_gains(previous_labels: Tree, labels: Tree) -> None:
    """Raise :class:`RuleError` for a group that keeps leaves and gets others too."""
    previous = leaves_by_group(previous_labels)
    following = leaves_by_group(labels)
    for group in (previous.keys() & following.keys()) - {optim.FROZEN}:
        kept = previous[group] & following[group]
        gained = following[group] - previous[group]
        if kept and gained:
            raise RuleError(
                f"group {group!r} goes on and gains {min(gained)}: "
                "give what begins a group of its own"
            )


def leaves_by_group(labels: Tree) -> dict[str, set[str]]:
    """``{group: paths}`` of a label tree."""
    members: dict[str, set[str]] = {}
    for path, group in paths(labels).items():
        members.setdefault(group, set()).add(path)
    return members


def carry_over(old: optax.OptState, fresh: optax.OptState) -> optax.OptState:
    """``fresh``, with the leaves of ``old`` that have the same path and shape; rates and other
    settings are the fresh ones.
    """
    old_leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(old):
        old_leaves[jax.tree_util.keystr(path)] = leaf

    def carry(path: Any, leaf: jax.Array) -> jax.Array:
        old_leaf = old_leaves.get(jax.tree_util.keystr(path))
        if old_leaf is None or old_leaf.shape != leaf.shape:
            return leaf
        return old_leaf

    carried = jax.tree_util.tree_map_with_path(carry, fresh)
    return optim.take_settings(carried, fresh)


@dataclasses.dataclass(frozen=True)
class Step:
    """``(frozen, state, batch) -> (state, metrics)``: a compiled prefix, if any, and a suffix.

    A batch that brings ``hidden``, the output of the prefix, skips the prefix.
    """

    prefix: Cut | None
    suffix: Any  # jitted (frozen, state, batch) -> (state, metrics), with the state donated
    update: Update  # what the suffix computes, for a program of one's own
    regularizer: Regularizer | None = None
    layout: Layout | None = None
    several: Any = None  # jitted: several suffixes in one program, see :func:`make_several`

    def takes_several(self, batch: Batch) -> bool:
        """Whether :meth:`take_several` can be called with batches such as this one."""
        return self.layout is None and (self.prefix is None or "hidden" in batch)

    def take_several(
        self, frozen: Tree, state: State, batches: Sequence[Batch], most: int
    ) -> tuple[State, Metrics]:
        """The state after a step a batch, and metrics [``most``] of which the first are those of
        the steps: one call of one program, whatever the number of batches up to ``most``.
        """
        suffixes = []
        frozen_above = frozen
        for batch in batches:
            if self.prefix is not None:
                frozen_above, batch = self.prefix(frozen, batch)
            suffixes.append(batch)
        padded = [*suffixes, *[suffixes[-1]] * (most - len(suffixes))]
        stacked = {name: np.stack([batch[name] for batch in padded]) for name in padded[0]}
        return self.several(frozen_above, state, stacked, np.int32(len(batches)))

    def shard_batch(self, batch: Batch) -> Batch:
        """The batch over the mesh, if there is one."""
        if self.layout is None:
            return batch
        micro_batch_axes = len(batch["weight"].shape) - 2
        return self.layout.shard_batch(batch, micro_batch_axes)

    def __call__(self, frozen: Tree, state: State, batch: Batch) -> tuple[State, Metrics]:
        batch = self.shard_batch(batch)
        if self.prefix is not None:
            frozen, batch = self.prefix(frozen, batch)
        return self.suffix(frozen, state, batch)

    def programs(self, frozen: Tree, state: State, batch: Batch) -> dict[str, Any]:
        """The compiled programs (:class:`jax.stages.Compiled`): their text, FLOPs and memory.

        Arguments may be shapes. ``prefix`` is one of them if the step has one and the batch does
        not bring ``hidden``.
        """
        batch = self.shard_batch(batch)
        if self.prefix is None:
            return {"suffix": self.suffix.lower(frozen, state, batch).compile()}

        programs = {}
        prefix_params, suffix_params = self.prefix.split(frozen)
        hidden = batch.get("hidden")
        if hidden is None:
            programs["prefix"] = self.prefix.run.lower(prefix_params, batch).compile()
            hidden = jax.eval_shape(self.prefix.run, prefix_params, batch)
        batch = suffix_batch(self.prefix.model, batch, self.prefix.depth, hidden)
        batch = self.shard_batch(batch)
        programs["suffix"] = self.suffix.lower(suffix_params, state, batch).compile()
        return programs


def make_step(
    model: Model,
    loss: Loss | ContextLoss,
    tx: optax.GradientTransformation,
    cut: int = 0,
    dropout: bool = True,
    regularizer: Regularizer | None = None,
) -> Step:
    """The train step ``(frozen, state, batch) -> (state, metrics)``, jitted, the state donated.

    A batch holds the model's inputs, ``label`` [N, ...] and ``weight`` float32 [N], 0 for an empty
    slot. If ``weight`` is [A, N], every array has a leading axis of A micro-batches, whose sums of
    losses and of weights are accumulated before one division: the gradient of one large batch.
    With ``part`` int32 [N], numbers below :data:`PARTS`, the loss is the sum of the means of the
    parts, each within its micro-batch.

    ``loss`` maps (outputs, label) to one float32 number an example (:mod:`adapt.training.losses`),
    or is one of :func:`adapt.training.context.context_loss`, which sees more.
    The first ``cut`` stages (:func:`adapt.training.frozen_prefix.cut`) run without dropout, in a
    program of their own. With a ``regularizer``, ``frozen["anchor"]`` holds the pre-trained values
    of what trains.

    Metrics, float32 scalars: ``loss`` is the mean weighted by ``weight``; ``grad_norm`` the norm of
    the gradient of what trains, before clipping; ``weight`` the sum of weights. If something trains
    that is stored in less than float32, ``rounded_away`` is the fraction of updates without effect
    (:func:`adapt.training.optim.rounded_away`).

    Raises :class:`StrategyError` if the head reads a layer that the prefix hides, and at the first
    call for a loss that gives another number of values.

        step = make_step(model, cross_entropy, tx, cut(labels, layers))
        state, metrics = step(frozen, state, batch)
    """
    update = make_update(model, loss, tx, cut, dropout, regularizer)
    return Step(
        prefix=cut_at(model, cut) if cut else None,
        suffix=make_suffix(model, loss, update),
        update=update,
        regularizer=regularizer,
        layout=model.layout,
        several=make_several(model, loss, update),
    )


def make_suffix(model: Model, loss: Loss | ContextLoss, update: Update) -> Any:
    """The jitted ``(frozen, state, batch) -> (state, metrics)`` of :func:`make_step`, for batches
    that bring what the prefix makes. ``update`` is made by :func:`make_update`.
    """

    def step(frozen: Tree, state: State, batch: Batch) -> tuple[State, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        return update(frozen, state, batch, key)

    program = model.allow_fused_attention(step) if may_fuse(loss) else step
    return jax.jit(program, donate_argnums=1)


def may_fuse(loss: Loss | ContextLoss) -> bool:
    """Whether attention may be a fused kernel, which has no rule for a second derivative."""
    return not isinstance(loss, ContextLoss) or loss.differentiates_once


def make_several(model: Model, loss: Loss | ContextLoss, update: Update) -> Any:
    """The jitted ``(frozen, state, batches, count) -> (state, metrics)`` that takes ``count`` steps
    in one program, a loop over ``batches`` [K, ...], of which there may be more.

    Metrics are [K]; those after the first ``count`` are 0. The state is donated.
    """

    def run(frozen: Tree, state: State, batches: Batch, count: Any) -> tuple[State, Metrics]:
        def batch_at(index: Any) -> Batch:
            return {name: array[index] for name, array in batches.items()}

        def take(index: Any, carried: tuple[State, Metrics]) -> tuple[State, Metrics]:
            state, metrics = carried
            key = jax.random.fold_in(state.key, state.step)
            state, of_step = update(frozen, state, batch_at(index), key)
            written = {}
            for name, value in of_step.items():
                written[name] = metrics[name].at[index].set(value)
            return state, written

        _, shapes = jax.eval_shape(update, frozen, state, batch_at(0), state.key)
        most = len(next(iter(batches.values())))
        zeros = {name: jnp.zeros(most, shape.dtype) for name, shape in shapes.items()}
        return jax.lax.fori_loop(0, count, take, (state, zeros))

    program = model.allow_fused_attention(run) if may_fuse(loss) else run
    return jax.jit(program, donate_argnums=1)


def make_update(
    model: Model,
    loss: Loss | ContextLoss,
    tx: optax.GradientTransformation,
    cut: int = 0,
    dropout: bool = True,
    regularizer: Regularizer | None = None,
) -> Update:
    """What a step computes, ``(frozen, state, batch, key) -> (state, metrics)``, not jitted.

    ``key`` is that of the step, ``fold_in(state.key, state.step)``.
    """
    layout = model.layout

    def summed_loss(
        trainable: Tree, frozen: Tree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        if regularizer and regularizer.mixout and dropout:
            mixout_key = jax.random.fold_in(key, MIXOUT_STREAM)
            trainable = regularizer.mix(trainable, frozen["anchor"], mixout_key)
        params = merge(frozen, trainable)
        label = batch["label"]
        weight = batch["weight"]
        if layout:
            label = flatten_groups(label)
            weight = flatten_groups(weight)
        if isinstance(loss, ContextLoss):
            losses = losses_with_context(loss, model, params, batch, cut, key, dropout)
        else:
            dropout_key = key if dropout else None
            outputs = model.suffix(params, batch.get("hidden"), batch, cut, dropout_key)
            losses = loss(outputs, label)
            if "own_share" in batch:
                losses = of_both_labels(losses, loss, outputs, batch, layout is not None)
        check_losses(losses, weight)
        if "part" in batch:
            losses = losses * balance_of_parts(batch["part"].reshape(-1), weight)
        return (losses * weight).sum(), weight.sum()

    loss_and_grad = jax.value_and_grad(summed_loss, has_aux=True)
    example_axes = 2 if layout else 1  # [groups, N] on a mesh, [N] without one

    def update(frozen: Tree, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
        if batch["weight"].ndim == example_axes:
            (loss_sum, weight), grads = loss_and_grad(state.params, frozen, batch, key)
        else:
            (loss_sum, weight), grads = accumulate_gradients(
                loss_and_grad, state.params, frozen, batch, key
            )

        # Sums of losses over sums of weights, never a mean of means.
        weight = jnp.maximum(weight, 1e-9)
        grads = optim.divide(grads, weight)
        if regularizer and regularizer.l2sp:
            grads = regularizer.add_gradient(grads, state.params, frozen["anchor"])
        grad_norm = optim.norm_of(grads)
        mean_loss = loss_sum / weight

        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        # A step whose loss or gradient is not finite changes nothing, and no step does after it.
        ok = jnp.isfinite(mean_loss) & jnp.isfinite(grad_norm) & ~state.halted
        params = where(ok, params, state.params)
        opt_state = where(ok, opt_state, state.opt_state)
        new_state = State(state.step + ok, params, opt_state, state.key, halted=~ok)
        if layout:
            new_state = layout.constrain(new_state)

        metrics = {"loss": mean_loss, "grad_norm": grad_norm, "weight": weight}
        if has_half_precision(state.params):
            metrics["rounded_away"] = optim.rounded_away(state.params, updates)
        return new_state, metrics

    return update


def of_both_labels(
    losses: jax.Array, loss: Loss, outputs: jax.Array, batch: Batch, in_groups: bool
) -> jax.Array:
    """The losses [N] of examples that were mixed with others: share * own + (1 - share) * other.

    ``losses`` are those of the own labels. The sum of two cross-entropies is the cross-entropy of
    the labels mixed likewise (Zhang et al. 2018, 2).
    """
    other = batch["other_label"]
    share = batch["own_share"]
    if in_groups:
        other = flatten_groups(other)
        share = flatten_groups(share)
    return share * losses + (1 - share) * loss(outputs, other)


def balance_of_parts(part: jax.Array, weight: jax.Array) -> jax.Array:
    """Factors [n] of losses of several parts, by which their mean becomes the sum of the means of
    the parts. ``part`` int32 [n] has the number of each loss's part, and ``weight`` its weight.

    A part whose weights are all 0 counts nothing.
    """
    total_P = jax.ops.segment_sum(weight, part, PARTS)
    factor_P = weight.sum() / jnp.maximum(total_P, 1e-9)
    return factor_P[part]


def check_losses(losses: jax.Array, weight: jax.Array) -> None:
    """Raise :class:`StrategyError` unless there is one loss for each weight."""
    if jnp.shape(losses) != weight.shape:
        raise StrategyError(
            f"`loss` gave the shape {list(jnp.shape(losses))} for {weight.shape[0]} examples: give "
            "one number for each, [N], not their mean"
        )


def accumulate_gradients(
    loss_and_grad: LossAndGrad, params: Tree, frozen: Tree, batch: Batch, key: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], Tree]:
    """The sums over A micro-batches of what ``loss_and_grad`` returns. Arrays are [A, ...].

    They are computed one after the other, so the memory is that of one. Each has its own key.
    """

    def add(sums: Any, micro_batch: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        arrays, index = micro_batch
        own_key = jax.random.fold_in(key, index)
        result = loss_and_grad(params, frozen, arrays, own_key)
        return jax.tree.map(jnp.add, sums, result), None

    no_loss = jnp.zeros(())
    no_weight = jnp.zeros(())
    no_gradient = jax.tree.map(jnp.zeros_like, params)
    numbers = jnp.arange(len(batch["weight"]))
    sums, _ = jax.lax.scan(add, ((no_loss, no_weight), no_gradient), (dict(batch), numbers))
    return sums


def where(condition: jax.Array, new: Any, old: Any) -> Any:
    """:func:`jnp.where` on every leaf of two pytrees."""
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def has_half_precision(params: Tree) -> bool:
    """Whether a leaf is stored in less than 4 bytes an element."""
    return any(leaf.dtype.itemsize < 4 for leaf in jax.tree.leaves(params))


def make_eval(model: Model, cut: Cut | None = None) -> Callable[[Tree, Batch], jax.Array]:
    """``(params, batch) -> outputs`` of the head, float32 [N, ...], without dropout, jitted.

    ``params`` is the whole tree ``{"encoder", "head"}``. Give the :class:`Cut` of a step
    (``step.prefix``) to compute the prefix by the same program, or to take it as ``hidden`` from
    the batch. On a mesh every process gets the outputs of all groups.

        outputs = make_eval(model)(params, batch)
    """
    forward = eval_program(model, 0 if cut is None else cut.depth)
    if cut is None:
        return shard_inputs(forward, model.layout)

    def prefix_and_suffix(params: Tree, batch: Batch) -> jax.Array:
        suffix_params, suffix_inputs = cut(params, batch)
        return forward(suffix_params, suffix_inputs)

    return shard_inputs(prefix_and_suffix, model.layout)


@cached_program
def eval_program(model: Model, depth: int) -> Any:
    """The jitted function of :func:`make_eval` after ``depth`` stages: the same one for the same
    model, so that what it has compiled serves the next run.
    """

    def forward(params: Tree, batch: Batch) -> jax.Array:
        if depth == 0:
            return model.apply(params, batch)
        return model.suffix(params, batch["hidden"], batch, depth)

    out_shardings = model.layout.replicated if model.layout else None
    return jax.jit(model.allow_fused_attention(forward), out_shardings=out_shardings)


def compile_eval(model: Model, cut: Cut | None, params: Tree, batch: Batch) -> None:
    """Compile the programs of :func:`make_eval` for arguments such as these, without calling them.

    ``params`` may be shapes. A later call finds the programs in JAX's caches.
    """
    if cut is None:
        eval_program(model, 0).lower(params, batch).compile()
        return
    hidden = batch.get("hidden")
    if hidden is None:
        below = prefix_params(params, model, cut.depth)
        cut.run.lower(below, batch).compile()
        hidden = jax.eval_shape(cut.run, below, batch)
    suffix = suffix_batch(model, batch, cut.depth, hidden)
    forward = eval_program(model, cut.depth)
    forward.lower(suffix_params(params, model, cut.depth), suffix).compile()
