"""What this machine takes: clocks on compiled programs, and the few timed steps that the estimate of a cost is made of."""

import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from adapt import tree
from adapt.cli import console, plots
from adapt.data.examples import Examples
from adapt.errors import StrategyError
from adapt.models import Model, peft
from adapt.tasks import TASKS, metrics
from adapt.training import checkpoint, frozen_prefix, optim, phases, strategies
from adapt.training.step import State, Step, init_state, make_step


def timed(run: Callable[[int], Any], repeats: int) -> tuple[float, float]:
    """(seconds of the first call, which compiles; median of ``repeats`` later ones); ``run`` gets the number of the call."""
    seconds = []
    for number in range(repeats + 1):
        started = time.perf_counter()
        jax.block_until_ready(run(number))
        seconds.append(time.perf_counter() - started)
    return seconds[0], statistics.median(seconds[1:])


def peak_bytes(program: Any) -> int:
    """Bytes that a compiled program needs at once: arguments, results that do not reuse them, temporaries."""
    memory = program.memory_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return used + memory.temp_size_in_bytes


class Compiling:
    """Counts the ``seconds`` that this process spends on compiling from now on, by JAX's own events; tracing left out."""

    EVENTS = (
        "/jax/core/compile/backend_compile_duration",
        "/jax/core/compile/jaxpr_to_mlir_module_duration",
    )

    def __init__(self) -> None:
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self.count)

    def count(self, event: str, duration_secs: float, **_: Any) -> None:
        self.seconds += duration_secs * (event in self.EVENTS)


class Laps:
    """The seconds that each kind of work took: :meth:`lap` adds the time since the last lap to one of them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


@functools.cache
def matmul_rate() -> float:
    """FLOP/s of float32 matrix products on this machine, the median of five."""
    product = jax.jit(lambda a: a @ a)
    a = jax.random.normal(jax.random.key(0), (1024, 1024)) / 1024
    return 2 * 1024**3 / timed(lambda _: product(a), 5)[1]


def prepared(name: str, model: Model, params: tree.Tree) -> tuple[Model, tree.Tree, tree.Tree, Any]:
    """(model, parameters, labels, optimizer) of a strategy of one phase; the rates do not matter here."""
    spec = strategies.strategy(name, model.encoder.config.layers, 6)
    key = jax.random.key(0)
    first, *more = spec.phases
    if more:
        raise StrategyError(
            f"{name} has {len(spec.phases)} phases, and a plan is of one: plan what it does in each"
        )
    model = Model(
        model.encoder.clone(config=peft.with_peft(model.encoder.config, spec.peft)), model.head
    )
    params = phases.init_params(spec, model, params, key)
    labels, groups = strategies.label_phase(first, params, model.encoder.config.layers)
    rates = {group: optim.adamw(optim.schedule(1e-5, 100)) for group in groups}
    return model, params, labels, optim.by_label(rates, labels, 1.0)


def calibrate(
    config: Any, model: Model, params: tree.Tree, sets: dict[str, Examples]
) -> dict[str, Any]:
    """Timed steps: seconds a window of the forward pass, and a step of ``full``, ``top:L``, ``top:1``, ``frozen`` and others.

    Of a step: (first, median) seconds, peak bytes, FLOPs of its suffix an example by the compiler.
    """
    layers = model.encoder.config.layers
    found = {}
    whole = (model, params)
    names = list(dict.fromkeys(["frozen", "top:1", f"top:{layers}", "full", *config.also]))
    plan = sets["train"].plan(config.batch_size, config.seed, config.epochs)
    batches = [
        batch
        for batch, _ in zip(
            sets["train"].batches(plan, config.seed, 0), range(config.steps + 1), strict=False
        )
    ]
    # One shape is enough: the others are some rows more or less. The most frequent is the one that is timed.
    shapes = [batch["segments"].shape for batch in batches]
    shape = max(set(shapes), key=shapes.count)
    batches = [batch for batch in batches if batch["segments"].shape == shape]
    with console.progress("timing", len(names) + 1) as bar:
        for number, name in enumerate(names, 1):
            model, params, labels, tx = prepared(name, *whole)
            step = make_step(model, TASKS[config.task].loss, tx, frozen_prefix.cut(labels, layers))
            frozen, state = init_state(params, labels, tx, jax.random.key(0))
            made = dict(batches[0])
            if step.prefix is not None:
                below, _ = step.prefix.split(frozen)
                if name == "frozen":
                    found["forward"] = forward_seconds(
                        config.steps, step.prefix, below, sets["train"]
                    )
                    run = functools.partial(step.prefix.run, below)
                    found["prefix"] = timed(
                        lambda n, run=run: run(batches[n % len(batches)]), config.steps
                    )
                made["hidden"] = np.asarray(step.prefix.run(below, batches[0]))
            needs = peak_and_flops(step, frozen, state, batches[0])
            found[name] = (*time_steps(step, frozen, state, made, config.steps), *needs)
            bar.update(number)
        bar.update(len(names) + 1)
    return found


def time_steps(
    step: Step, frozen: tree.Tree, state: State, batch: Any, steps: int
) -> tuple[float, float]:
    """(seconds of the first step, median of those after it), the state handed on as a run does."""
    held = [state]

    def once(_: int) -> Any:
        held[0], metrics = step(frozen, held[0], batch)
        return metrics

    return timed(once, steps)


def peak_and_flops(step: Step, frozen: tree.Tree, state: State, batch: Any) -> tuple[int, float]:
    shaped = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (frozen, batch)
    )
    still = tree.nbytes(step.prefix.split(frozen)[0]) if step.prefix else 0
    programs = step.programs(shaped[0], state, shaped[1])
    peak = max(
        peak_bytes(programs["suffix"]) + still,
        *(peak_bytes(program) for program in programs.values()),
    )
    return peak, programs["suffix"].cost_analysis()["flops"] / len(batch["label"])


def forward_seconds(
    repeats: int, cut: frozen_prefix.Cut, below: tree.Tree, part: Examples
) -> float:
    """Seconds of a prefix over every example of the file, from a few windows spread over it."""
    windows = (
        [batch for _, batch in part.file_batches()] if len(part.file_sequences) <= 50_000 else []
    )
    windows = windows or [
        batch for (_, batch), _ in zip(part.file_batches(), range(400), strict=False)
    ]
    by_shape: dict[tuple[int, ...], list[Any]] = {}
    for batch in windows:
        by_shape.setdefault(batch["segments"].shape, []).append(batch)
    total = 0.0
    for same in by_shape.values():
        _, seconds = timed(lambda n, same=same: cut.run(below, same[n % len(same)]), repeats)
        total += seconds * len(same)
    slots = sum(int(batch["length"].sum()) for batch in windows)
    return total * float(part.file_sequences.lengths.sum()) / slots


def finish_seconds(config: Any, classes: int) -> dict[str, float]:
    """What every run does besides computing: seconds of a score, a plot, the first save, and of a byte of a checkpoint."""
    found = {}
    with tempfile.TemporaryDirectory(dir=config.out) as folder:
        started = time.perf_counter()
        metrics.classification(
            np.eye(4, max(classes, 2), dtype=np.float32), np.arange(4) % max(classes, 2)
        )
        found["score"] = time.perf_counter() - started
        lines = [
            {"step": 1, "loss": 1.0},
            {"step": 1, "validation_loss": 1.0, "validation_accuracy": 0.5},
        ]
        Path(folder, "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
        started = time.perf_counter()
        plots.plot_history(Path(folder), "accuracy")
        found["plot"] = time.perf_counter() - started
        array = {"a": np.zeros(16 << 20, np.float32)}
        started = time.perf_counter()
        checkpoint.write_tree(Path(folder, "first"), {"a": np.zeros(4, np.float32)})
        found["first_save"] = time.perf_counter() - started  # imports Orbax
        started = time.perf_counter()
        checkpoint.write_tree(Path(folder, "checkpoint"), array)
        found["byte_saved"] = (time.perf_counter() - started) / array["a"].nbytes
    return found
