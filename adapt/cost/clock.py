"""What this machine takes: seconds and bytes of compiled programs."""

import contextlib
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from adapt import tree
from adapt.data.examples import Examples
from adapt.training.frozen_prefix import Cut
from adapt.training.step import State, Step

MAX_EXAMPLES = 50_000  # of a file all of whose batches are packed to be counted
MAX_BATCHES = 400  # that stand for a larger file


def timed(run: Callable[[int], Any], repeats: int) -> tuple[float, float]:
    """(seconds of the first call, which compiles; the median of ``repeats`` later ones).

    ``run`` gets the number of the call, from 0 on. What it returns is waited for.
    """
    seconds = []
    for number in range(repeats + 1):
        started = time.perf_counter()
        jax.block_until_ready(run(number))
        seconds.append(time.perf_counter() - started)
    return seconds[0], statistics.median(seconds[1:])


def peak_bytes(program: Any) -> int:
    """Bytes that a compiled program needs at once: arguments, new results and temporaries."""
    memory = program.memory_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return used + memory.temp_size_in_bytes


# JAX's own events of compiling; tracing is not among them.
COMPILE_EVENTS = (
    "/jax/core/compile/backend_compile_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
)


@functools.cache
def compiling() -> "Compiling":
    """The counter of this process: its ``seconds`` count from the first call on."""
    return Compiling()


class Compiling:
    """The ``seconds`` that this process has spent on compiling since this object was made."""

    def __init__(self) -> None:
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self.count)

    def count(self, event: str, duration_secs: float, **_: Any) -> None:
        if event in COMPILE_EVENTS:
            self.seconds += duration_secs


@contextlib.contextmanager
def watch_compiling(show: Callable[[bool], None]) -> Iterator[None]:
    """Inside, ``show(True)`` is called whenever JAX begins to compile a program, or to read it from
    the compilation cache, and ``show(False)`` when it has done so.
    """

    def begin(event: str, value: float | int, **_: Any) -> None:
        if event in COMPILE_EVENTS:
            show(True)

    def end(event: str, duration_secs: float, **_: Any) -> None:
        if event in COMPILE_EVENTS:
            show(False)

    jax.monitoring.register_scalar_listener(begin)
    jax.monitoring.register_event_duration_secs_listener(end)
    try:
        yield
    finally:
        jax.monitoring.unregister_scalar_listener(begin)
        jax.monitoring.unregister_event_duration_listener(end)


class Laps:
    """The seconds that each kind of work took: :meth:`lap` adds the time since the last lap to one
    of them.
    """

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
    """FLOP/s of float32 matrix products on this machine, the median of five.

    Measured at the first call of a process, which takes some tenths of a second.
    """
    product = jax.jit(lambda a: a @ a)
    a = jax.random.normal(jax.random.key(0), (1024, 1024)) / 1024
    _, seconds = timed(lambda _: product(a), 5)
    return 2 * 1024**3 / seconds


def step_seconds(
    step: Step, frozen: tree.Tree, state: State, batch: Mapping[str, Any], repeats: int
) -> tuple[float, float]:
    """(seconds of the first train step, the median of those after it).

    The state is handed on from step to step, as a run does; ``state`` itself is donated.
    """
    states = [state]

    def once(_: int) -> Any:
        states[0], metrics = step(frozen, states[0], batch)
        return metrics

    return timed(once, repeats)


def forward_seconds(repeats: int, cut: Cut, prefix_params: tree.Tree, examples: Examples) -> float:
    """Seconds that a prefix takes for every example of the file, from a few batches of each shape."""
    count = None if len(examples.file_sequences) <= MAX_EXAMPLES else MAX_BATCHES
    by_shape: dict[tuple[int, ...], list[Any]] = {}
    tokens = 0
    for _, batch in itertools.islice(examples.file_batches(), count):
        by_shape.setdefault(batch["segments"].shape, []).append(batch)
        tokens += int(batch["length"].sum())

    def run(batches: list[Any], number: int) -> Any:
        return cut.run(prefix_params, batches[number % len(batches)])

    total = 0.0
    for batches in by_shape.values():
        _, seconds = timed(functools.partial(run, batches), repeats)
        total += seconds * len(batches)
    return total * float(examples.file_sequences.lengths.sum()) / tokens
