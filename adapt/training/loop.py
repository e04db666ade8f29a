"""Steps over batches, and the outputs for a set of examples."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from adapt.errors import DivergedError
from adapt.training.step import Batch, Metrics, State
from adapt.tree import Tree

Item = TypeVar("Item")

# The examples of a batch, int [n] of each of its groups. Without a mesh there is one group.
Index = list[np.ndarray]


def evaluate(
    forward: Callable[[Tree, Batch], jax.Array],
    params: Tree,
    batches: Iterable[tuple[Index, Batch]],
    count: int,
) -> np.ndarray:
    """The outputs of ``forward`` for ``count`` examples: float32 [count, ...], in their order.

    ``forward`` is made by :func:`adapt.training.step.make_eval`. ``batches`` are (index, batch)
    pairs, in any order; ``index`` says which examples are in the batch. An example that comes
    several times, as a text in several windows does, has the mean of its outputs. [0, 0] for no
    batch.
    """
    outputs: np.ndarray | None = None
    times = np.zeros(count, np.int32)  # that an example came
    computing = ((index, forward(params, batch)) for index, batch in batches)
    for index, values in pipelined(computing):
        examples, rows = scatter_outputs(index, np.asarray(values))
        if outputs is None:
            outputs = np.zeros((count, *rows.shape[1:]), np.float32)
        np.add.at(times, examples, 1)
        if times[examples].max(initial=0) <= 1:
            outputs[examples] = rows
        else:
            np.add.at(outputs, examples, rows)
    if outputs is None:
        return np.zeros((0, 0), np.float32)
    several = times > 1
    if several.any():
        divisor = times[several].reshape(-1, *[1] * (outputs.ndim - 1))
        outputs[several] /= divisor
    return outputs


def scatter_outputs(index: Index, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The examples of a batch, int [n], and the outputs for them, [n, ...].

    ``values`` are the outputs of all its slots, [N, ...], those of one group after the other. The
    outputs of empty slots, the last of a group, are left out.
    """
    groups = np.split(values, len(index))
    rows = [group[: len(examples)] for examples, group in zip(index, groups, strict=True)]
    return np.concatenate(index), np.concatenate(rows)


def pipelined(items: Iterable[Item], ahead: int = 2) -> Iterator[Item]:
    """The same items, each when ``ahead`` more have been asked for.

    With items that a device computes, the host packs the next batches meanwhile: what it is given
    is computed, or nearly.
    """
    pending: list[Item] = []
    for item in items:
        pending.append(item)
        if len(pending) > ahead:
            yield pending.pop(0)
    yield from pending


@dataclasses.dataclass(frozen=True)
class Pace:
    """How a loop of steps keeps the device busy; the default is for a CPU.

    ``steps`` are taken in one call where batches of one shape follow each other: so many batches
    travel and are called for at once, and small models do not wait for the host. ``is_late`` says
    that a record is made when the steps after it have been called for, so that the device does not
    wait while the host reads: its state is then that of later steps.
    """

    steps: int = 1
    is_late: bool = False


STEP_BY_STEP = Pace()


def run_steps(
    step: Callable[[Tree, State, Batch], tuple[State, Metrics]],
    frozen: Tree,
    state: State,
    batches: Iterable[Mapping[str, Any]],
    log_every: int,
    seen: set[Any] | None = None,
    on_compile: Callable[[Batch], None] = lambda batch: None,
    pace: Pace = STEP_BY_STEP,
) -> Iterator[tuple[State, dict[str, float]]]:
    """Take a step a batch; every ``log_every`` steps, and at the end, yield (state, record).

    The host waits for the device only then. The yielded state is valid until the next one is asked
    for: the step donates it. A record has, for the steps since the last one:

    * ``step``, the count of all steps; ``loss``, the mean over examples; ``grad_norm``, the mean
      over steps; ``examples``, the sum of weights; ``rounded_away`` if the step gives it;
    * ``tokens``, and the ``slots`` of the rows that they were packed into; 0 for images and for
      what was pooled before;
    * ``seconds``, and ``compile_seconds`` beside them: the time of steps with a shape that is not
      yet in ``seen``, whose examples are not in ``timed_examples``. ``on_compile(batch)`` is called
      before such a step.

    A ``pace`` of several steps a call needs a :class:`adapt.training.step.Step`.

    Raises :class:`DivergedError` with the number of the step if its loss is not finite; the state
    is still the last good one.

        for state, record in run_steps(step, frozen, state, batches, log_every=20):
            print(record["step"], record["loss"])
    """
    seen = set() if seen is None else seen
    window = Window()
    before: Window | None = None  # whose record is late
    count = int(state.step) if pace.is_late else 0
    for shape, group in groups_of(batches, pace.steps, log_every):
        compiles = shape not in seen
        compile_start = 0.0
        if compiles:
            seen.add(shape)
            jax.block_until_ready(state.step)
            on_compile(group[0])
            compile_start = time.perf_counter()

        state, metrics = take_group(step, frozen, state, group, pace.steps)
        window.add(group, metrics)

        if compiles:
            jax.block_until_ready(state.step)
            window.compile_seconds += time.perf_counter() - compile_start
            window.compiled_weights.append((metrics["weight"], len(group)))
        if before is not None:
            late = record(None, before)
            before = None
            window.start = time.perf_counter()  # the seconds before are those of the record
            yield state, late
        if window.steps == log_every:
            count += window.steps
            window.step = count
            if pace.is_late:
                before = window
            else:
                yield state, record(state, window)
            window = Window()
    for rest in (before, window):
        if rest is not None and rest.metrics:
            yield state, record(state if rest is window else None, rest)


def groups_of(
    batches: Iterable[Mapping[str, Any]], most: int, log_every: int
) -> Iterator[tuple[Any, list[Mapping[str, Any]]]]:
    """(their shape, batches that follow each other and have it), up to ``most`` in a list; none
    goes on after ``log_every`` batches.
    """
    group: list[Mapping[str, Any]] = []
    of_group: Any = None
    for taken, batch in enumerate(batches, 1):
        shape = shape_of(batch)
        if group and shape != of_group:
            yield of_group, group
            group = []
        of_group = shape
        group.append(batch)
        if len(group) == most or taken % log_every == 0:
            yield of_group, group
            group = []
    if group:
        yield of_group, group


def take_group(
    step: Any, frozen: Tree, state: State, group: list[Mapping[str, Any]], most: int
) -> tuple[State, Metrics]:
    """The state after a step a batch, and the metrics of the steps, by name: one call."""
    if most == 1:
        return step(frozen, state, group[0])
    return step.take_several(frozen, state, group, most)


def shape_of(batch: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides whether a batch compiles: names and shapes."""
    return tuple((name, np.shape(array)) for name, array in sorted(batch.items()))


@dataclasses.dataclass
class Window:
    """The steps since the last record. Metrics stay on the device, each with how many steps it is
    of.
    """

    metrics: list[tuple[Metrics, int]] = dataclasses.field(default_factory=list)
    compiled_weights: list[tuple[jax.Array, int]] = dataclasses.field(default_factory=list)
    compile_seconds: float = 0.0
    steps: int = 0
    step: int = 0  # of the run, after these
    tokens: int = 0
    slots: int = 0
    start: float = dataclasses.field(default_factory=time.perf_counter)

    def add(self, group: Sequence[Mapping[str, Any]], metrics: Metrics) -> None:
        """Count the steps of a call."""
        self.metrics.append((metrics, len(group)))
        self.steps += len(group)
        for batch in group:
            if "segments" in batch:
                self.tokens += int(batch["length"].sum())
                self.slots += batch["segments"].size


def values_of(metrics: Iterable[tuple[Any, int]]) -> np.ndarray:
    """The values of steps one after the other, float64; each array has those of so many steps."""
    values = [np.reshape(array, -1)[:count] for array, count in metrics]
    return np.concatenate([np.zeros(0), *values]).astype(np.float64)


def record(state: State | None, window: Window) -> dict[str, float]:
    """The record of :func:`run_steps`. The one place of a loop where the host waits.

    Without the state after the window, which later steps were given, the metrics say whether it
    halted: at the first step whose loss or gradient is not finite.
    """
    of_state = None if state is None else (state.halted, state.step)
    fetched = jax.device_get((of_state, window.metrics, window.compiled_weights))
    of_state, metrics, compiled_weights = fetched

    def values(name: str) -> np.ndarray:
        return values_of((step_metrics[name], count) for step_metrics, count in metrics)

    loss = values("loss")
    if of_state is None:
        is_good = np.isfinite(loss) & np.isfinite(values("grad_norm"))
        halted = not is_good.all()
        step = window.step - (window.steps - int(is_good.argmin()) if halted else 0)
    else:
        halted, step = of_state
    if halted:
        raise DivergedError(
            f"the loss is not finite at step {int(step) + 1}: training stopped, the last good "
            "checkpoint is kept; lower the learning rate, clip the gradient (`clip_norm`), "
            "or look at the data of that step",
            steps=int(step),
        )

    weight = values("weight")
    compiled = values_of(compiled_weights).sum()
    result: dict[str, float] = {
        "step": int(step),
        "loss": float((loss * weight).sum() / weight.sum()),
        "grad_norm": float(values("grad_norm").mean()),
        "examples": float(weight.sum()),
        "timed_examples": float(weight.sum() - compiled),
        "seconds": time.perf_counter() - window.start - window.compile_seconds,
        "compile_seconds": window.compile_seconds,
    }
    if "rounded_away" in metrics[0][0]:
        result["rounded_away"] = float(values("rounded_away").mean())
    result["tokens"] = window.tokens
    result["slots"] = window.slots
    return result
