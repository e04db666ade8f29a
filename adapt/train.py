"""One jitted step, one loop. What is frozen is an argument of its own: not differentiated, not donated, not returned."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adapt import optim
from adapt import tree as t
from adapt.errors import RuleError, TrainingError
from adapt.losses import Loss
from adapt.models import Model, merged
from adapt.prefix import Cut, cut_at, suffix_batch
from adapt.pull import Pull
from adapt.shard import Layout, placing, put


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """All that training changes: steps taken, the trainable parameters, their optimizer state.

    ``key`` never changes: step s uses ``fold_in(key, s)``. ``halted`` is set by a step whose loss or gradient is not
    finite; from then on steps change nothing, so the parameters stay those of the last good step.
    """

    step: jax.Array
    params: t.Tree
    opt_state: Any
    key: jax.Array
    halted: jax.Array


def init_state(
    params: t.Tree,
    labels: t.Tree,
    tx: optax.GradientTransformation,
    key: jax.Array,
    layout: Layout | None = None,
    frozen_dtype: Any = None,
) -> tuple[t.Tree, State]:
    """Split ``params`` by ``labels`` into (frozen parameters, State with a copy of what trains).

    ``params`` and ``key`` stay usable: what the step gets donated is a copy. With a ``layout`` all of it is made straight
    in its place on the mesh. ``frozen_dtype`` is what frozen matrices are stored in, by default their own.
    Raises :class:`TrainingError` if nothing trains.
    """
    trainable, still = optim.trainable(params, labels), optim.frozen(params, labels)
    if frozen_dtype is not None:
        still = t.map_paths(
            lambda _, leaf: leaf.astype(frozen_dtype) if leaf.ndim > 1 else leaf, still
        )
    if not t.paths(trainable):
        raise TrainingError(
            "every parameter is FROZEN: nothing would train; label at least one leaf with a group"
        )
    if layout:
        layout.check(params)
        trainable, still = layout.put(trainable), layout.put(still, layout.frozen_rules)
        copied = jax.jit(
            lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=layout.shardings(trainable)
        )(trainable)
        moments = layout.shardings(jax.eval_shape(tx.init, trainable))
        opt_state = jax.jit(tx.init, out_shardings=moments)(trainable)
        rest = layout.put((np.int32(0), key, np.bool_(False)))
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
    return put(still), jax.device_put(state, device)


def advance(
    frozen: t.Tree,
    state: State,
    before: t.Tree,
    labels: t.Tree,
    tx: optax.GradientTransformation,
    layout: Layout | None = None,
) -> tuple[t.Tree, State]:
    """The next phase: (frozen, state) by new labels and optimizer, steps and key going on.

    Leaves that go on training in their group keep their moments and their count; others begin anew. ``before`` are the
    labels until now. Raises :class:`RuleError` where a group that goes on gains leaves: they would share its count.
    """
    groups = [{}, {}]
    for found, tree in zip(groups, (before, labels), strict=True):
        for path, group in t.paths(tree).items():
            found.setdefault(group, set()).add(path)
    old, new = groups
    for group in (old.keys() & new.keys()) - {optim.FROZEN}:
        if old[group] & new[group] and (gained := new[group] - old[group]):
            raise RuleError(
                f"group {group!r} goes on and gains {min(gained)}: give what begins a group of its own"
            )
    still, fresh = init_state(t.merge(frozen, state.params), labels, tx, state.key, layout)
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
    pull: Pull | None = None
    layout: Layout | None = None

    def placed(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The batch over the mesh, where there is one."""
        return self.layout.batch(batch, len(batch["weight"].shape) - 2) if self.layout else batch

    def __call__(
        self, frozen: t.Tree, state: "State", batch: Mapping[str, Any]
    ) -> tuple["State", dict[str, jax.Array]]:
        batch = self.placed(batch)
        if self.prefix is not None:
            frozen, batch = self.prefix(frozen, batch)
        return self.suffix(frozen, state, batch)

    def programs(self, frozen: t.Tree, state: "State", batch: Mapping[str, Any]) -> dict[str, Any]:
        """The compiled ``prefix`` (unless the batch brings ``hidden``) and ``suffix``: their text, FLOPs and memory."""
        found, batch = {}, self.placed(batch)
        if self.prefix is not None:
            below, above = self.prefix.split(frozen)
            hidden = batch.get("hidden")
            if hidden is None:
                found["prefix"] = self.prefix.run.lower(below, batch).compile()
                hidden = jax.eval_shape(self.prefix.run, below, batch)
            frozen, batch = (
                above,
                self.placed(suffix_batch(self.prefix.model, batch, self.prefix.at, hidden)),
            )
        return found | {"suffix": self.suffix.lower(frozen, state, batch).compile()}


def make_step(
    model: Model,
    loss: Loss,
    tx: optax.GradientTransformation,
    cut: int = 0,
    dropout: bool = True,
    pull: Pull | None = None,
) -> Step:
    """The train step ``(frozen, state, batch) -> (state, metrics)``, jitted, with the state donated.

    A batch holds the model's inputs, ``label`` and ``weight`` [N]; if ``weight`` is [A, N], everything has a leading
    axis of A micro-batches, whose sums of losses and of weights are accumulated before one division: the same gradient
    as one large batch. The first ``cut`` stages run deterministic, in a program of their own (see :mod:`adapt.prefix`).
    With a ``pull``, ``frozen["anchor"]`` holds pre-trained values by path.
    Metrics: ``loss`` (weighted mean), ``grad_norm`` (before clipping, of what trains), ``weight``; where something trains
    that is stored in less than float32, ``swallowed``: see :func:`adapt.optim.swallowed`.
    """

    def total(
        trainable: t.Tree, frozen: t.Tree, batch: Mapping[str, Any], key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        if pull and pull.mixout and dropout:
            trainable = pull.mix(trainable, frozen["anchor"], jax.random.fold_in(key, 0xA11))
        params = t.merge(frozen, trainable)
        output = model.suffix(params, batch.get("hidden"), batch, cut, key if dropout else None)
        label, weight = (
            merged(batch[name]) if model.layout else batch[name] for name in ("label", "weight")
        )
        return (loss(output, label) * weight).sum(), weight.sum()

    gradient = jax.value_and_grad(total, has_aux=True)

    def step(
        frozen: t.Tree, state: State, batch: Mapping[str, Any]
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
        grads = pull.add(grads, state.params, frozen["anchor"]) if pull and pull.l2sp else grads
        norm, mean = optax.tree.norm(grads), summed / weight
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        good = jnp.isfinite(mean) & jnp.isfinite(norm) & ~state.halted
        new = (optax.apply_updates(state.params, updates), opt_state)
        params, opt_state = jax.tree.map(
            lambda n, o: jnp.where(good, n, o), new, (state.params, state.opt_state)
        )
        after = State(state.step + good, params, opt_state, state.key, ~good)
        after = model.layout.hold(after) if model.layout else after
        narrow = any(leaf.dtype.itemsize < 4 for leaf in jax.tree.leaves(state.params))
        lost = {"swallowed": optim.swallowed(state.params, updates)} if narrow else {}
        return after, {"loss": mean, "grad_norm": norm, "weight": weight} | lost

    return Step(
        cut_at(model, cut) if cut else None,
        jax.jit(model.fused(step), donate_argnums=1),
        pull,
        model.layout,
    )


def make_eval(
    model: Model, cut: Cut | None = None
) -> Callable[[t.Tree, Mapping[str, Any]], jax.Array]:
    """``(params, batch) -> outputs`` [N, ...] of the head, deterministic, jitted; cut as a step is cut, where it is."""
    layout = model.layout
    whole = layout.whole if layout else None  # every process gets all outputs
    if cut is None:
        return placing(
            jax.jit(
                model.fused(lambda params, batch: model.apply(params, batch)), out_shardings=whole
            ),
            layout,
        )
    above = model.fused(lambda params, batch: model.suffix(params, batch["hidden"], batch, cut.at))
    suffix = jax.jit(above, out_shardings=whole)
    return placing(lambda params, batch: suffix(*cut(params, batch)), layout)


def evaluate(
    forward: Callable[[t.Tree, Mapping[str, Any]], jax.Array],
    params: t.Tree,
    batches: Iterable[tuple[np.ndarray, Mapping[str, Any]]],
    count: int,
) -> np.ndarray:
    """Run ``forward`` over (index, batch) pairs: outputs float32 [count, ...] in the order of the examples."""
    out: np.ndarray | None = None
    for index, values in late((index, forward(params, batch)) for index, batch in batches):
        own, fetched = of_examples(index, np.asarray(values))
        out = np.zeros((count, *fetched.shape[1:]), np.float32) if out is None else out
        out[own] = fetched
    return np.zeros((0, 0), np.float32) if out is None else out


def of_examples(index: Any, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(which examples [n], what came out for them [n, ...]) of a batch, or of its groups: their indices are a list."""
    if not isinstance(index, list):
        return index, values[: len(index)]
    parts = np.split(values, len(index))
    return np.concatenate(index), np.concatenate(
        [part[: len(own)] for own, part in zip(index, parts, strict=True)]
    )


def late(computing: Iterable[Any], behind: int = 2) -> Iterator[Any]:
    """The same items, ``behind`` of them later: so the next batch is packed while the device still computes this one."""
    pending = []
    for each in computing:
        pending.append(each)
        if len(pending) > behind:
            yield pending.pop(0)
    yield from pending


def loop(
    step: Callable[[t.Tree, State, Mapping[str, Any]], tuple[State, dict[str, jax.Array]]],
    frozen: t.Tree,
    state: State,
    batches: Iterable[Mapping[str, Any]],
    log_every: int,
    seen: set[Any] | None = None,
) -> Iterator[tuple[State, dict[str, float]]]:
    """Take a step a batch; every ``log_every`` steps, and at the end, yield (state, record).

    The host looks at the device only there. The record has ``step``, ``loss`` (mean over examples since the last
    record), ``grad_norm``, ``examples``, and the ``seconds`` and ``compile_seconds`` they took; a step with a shape not
    yet in ``seen`` counts as compilation and its examples are not in ``timed_examples``; ``tokens`` of the examples filled
    so many of the ``slots`` of their rows. The yielded state is valid until the next one is asked for: the step donates it.
    Raises :class:`TrainingError`, saying at which step, when the loss is not finite; the state stays the last good one.
    """
    seen = set() if seen is None else seen
    window: list[dict[str, jax.Array]] = []
    started, compiling, compiled, tokens, slots = time.perf_counter(), 0.0, [], 0, 0
    for batch in batches:
        shape = tuple((name, np.shape(value)) for name, value in sorted(batch.items()))
        if fresh := shape not in seen:
            seen.add(shape)
            jax.block_until_ready(state.step)
            before = time.perf_counter()
        state, metrics = step(frozen, state, batch)
        window.append(metrics)
        if "segments" in batch:
            tokens, slots = tokens + int(batch["length"].sum()), slots + batch["segments"].size
        if fresh:
            jax.block_until_ready(state.step)
            compiling += time.perf_counter() - before
            compiled.append(metrics["weight"])
        if len(window) == log_every:
            yield (
                state,
                record(state, window, started, compiling, compiled)
                | {"tokens": tokens, "slots": slots},
            )
            window, started, compiling, compiled, tokens, slots = (
                [],
                time.perf_counter(),
                0.0,
                [],
                0,
                0,
            )
    if window:
        yield (
            state,
            record(state, window, started, compiling, compiled)
            | {"tokens": tokens, "slots": slots},
        )


def record(
    state: State,
    window: list[dict[str, jax.Array]],
    started: float,
    compiling: float,
    compiled: list[jax.Array],
) -> dict[str, float]:
    halted, taken, fetched, compiled = jax.device_get((state.halted, state.step, window, compiled))
    if halted:
        raise TrainingError(
            f"the loss is not finite at step {int(taken) + 1}: training stopped, the last good checkpoint is kept; "
            "lower the learning rate, clip the gradient (--clip-norm), or look at the data of that step"
        )
    loss, norm, weight = (
        np.array([metrics[name] for metrics in fetched], np.float64)
        for name in ("loss", "grad_norm", "weight")
    )
    return {
        "step": int(taken),
        "loss": float((loss * weight).sum() / weight.sum()),
        "grad_norm": float(norm.mean()),
        "examples": float(weight.sum()),
        "timed_examples": float(weight.sum() - sum(compiled)),
        "seconds": time.perf_counter() - started - compiling,
        "compile_seconds": compiling,
    } | (
        {"swallowed": float(np.mean([metrics["swallowed"] for metrics in fetched]))}
        if "swallowed" in fetched[0]
        else {}
    )
