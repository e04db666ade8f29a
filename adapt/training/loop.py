"""Steps over batches, and outputs of a whole set."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from adapt.errors import TrainingError
from adapt.training.step import State
from adapt.tree import Tree


def evaluate(
    forward: Callable[[Tree, Mapping[str, Any]], jax.Array],
    params: Tree,
    batches: Iterable[tuple[np.ndarray, Mapping[str, Any]]],
    count: int,
) -> np.ndarray:
    """Run ``forward`` over (index, batch) pairs: outputs float32 [count, ...] in the order of the examples."""
    out: np.ndarray | None = None
    for index, values in pipelined((index, forward(params, batch)) for index, batch in batches):
        own, fetched = scatter_outputs(index, np.asarray(values))
        out = np.zeros((count, *fetched.shape[1:]), np.float32) if out is None else out
        out[own] = fetched
    return np.zeros((0, 0), np.float32) if out is None else out


def scatter_outputs(index: Any, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(which examples [n], what came out for them [n, ...]) of a batch, or of its groups: their indices are a list."""
    if not isinstance(index, list):
        return index, values[: len(index)]
    parts = np.split(values, len(index))
    return np.concatenate(index), np.concatenate(
        [part[: len(own)] for own, part in zip(index, parts, strict=True)]
    )


def pipelined(computing: Iterable[Any], behind: int = 2) -> Iterator[Any]:
    """The same items, ``behind`` of them later: so the next batch is packed while the device still computes this one."""
    pending = []
    for each in computing:
        pending.append(each)
        if len(pending) > behind:
            yield pending.pop(0)
    yield from pending


def run_steps(
    step: Callable[[Tree, State, Mapping[str, Any]], tuple[State, dict[str, jax.Array]]],
    frozen: Tree,
    state: State,
    batches: Iterable[Mapping[str, Any]],
    log_every: int,
    seen: set[Any] | None = None,
    on_compile: Callable[[], None] = lambda: None,
) -> Iterator[tuple[State, dict[str, float]]]:
    """Take a step a batch; every ``log_every`` steps, and at the end, yield (state, record).

    The host looks at the device only there. The record has ``step``, ``loss`` (mean over examples since the last
    record), ``grad_norm``, ``examples``, and the ``seconds`` and ``compile_seconds`` they took; a step with a shape not
    yet in ``seen`` counts as compilation and its examples are not in ``timed_examples``; ``tokens`` of the examples filled
    so many of the ``slots`` of their rows. The yielded state is valid until the next one is asked for: the step donates it.
    ``on_compile()`` is called before a step with such a shape.
    Raises :class:`TrainingError`, saying at which step, when the loss is not finite; the state stays the last good one.
    """
    seen = set() if seen is None else seen
    window: list[dict[str, jax.Array]] = []
    started = time.perf_counter()
    compiling = 0.0
    compiled = []
    tokens = 0
    slots = 0
    for batch in batches:
        shape = tuple((name, np.shape(value)) for name, value in sorted(batch.items()))
        if fresh := shape not in seen:
            seen.add(shape)
            on_compile()
            jax.block_until_ready(state.step)
            before = time.perf_counter()
        state, metrics = step(frozen, state, batch)
        window.append(metrics)
        if "segments" in batch:
            tokens = tokens + int(batch["length"].sum())
            slots = slots + batch["segments"].size
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
            window = []
            started = time.perf_counter()
            compiling = 0.0
            compiled = []
            tokens = 0
            slots = 0
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
        {"rounded_away": float(np.mean([metrics["rounded_away"] for metrics in fetched]))}
        if "rounded_away" in fetched[0]
        else {}
    )
