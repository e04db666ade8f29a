"""What a strategy costs before it runs: counts by hand from the config, rates by a few timed steps on this machine."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from adapt.models import EncoderConfig

WRITE, READ = 200e6, 1e9  # bytes/s to and from a file of the cache, where they were not measured: a slow disk
EFFICIENCY = 0.7  # of the machine's matrix products that an encoder reaches


def block_flops(c: EncoderConfig, tokens: float, span: float) -> float:
    """Of the matrix products of one block, forward, for ``tokens`` of which each looks at ``span``."""
    return 2.0 * tokens * c.width * (4 * c.width + 2 * c.mlp_width + 2 * span)


def embedding_flops(c: EncoderConfig, tokens: float) -> float:
    """Of the patch projection of an image encoder; looking up a text's embeddings multiplies nothing."""
    patches = tokens * (c.positions - 1) / c.positions
    return 2.0 * patches * c.patch_size**2 * c.channels * c.width if c.is_image else 0.0


def prefix_flops(c: EncoderConfig, cut: int, tokens: float, span: float) -> float:
    """Of the matrix products of the first ``cut`` stages, forward."""
    blocks = min(max(cut - 1, 0), c.layers)
    return (embedding_flops(c, tokens) if cut else 0.0) + blocks * block_flops(c, tokens, span)


def step_flops(c: EncoderConfig, cut: int, tokens: float, span: float) -> float:
    """Of the matrix products of a train step's suffix: twice a forward pass more for what trains, but no gradient of the
    first block's input. The head is left out."""
    if cut > c.layers:
        return 0.0
    first = 2.0 * tokens * c.width * 3 * c.width if cut else 0.0
    return 3 * prefix_flops(c, c.layers + 1, tokens, span) - 3 * prefix_flops(c, cut, tokens, span) - first


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

    EVENTS = ("/jax/core/compile/backend_compile_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration")

    def __init__(self) -> None:
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self.count)

    def count(self, event: str, duration_secs: float, **_: Any) -> None:
        self.seconds += duration_secs * (event in self.EVENTS)


@functools.cache
def matmul_rate(size: int = 1024, repeats: int = 5) -> float:
    """FLOP/s of float32 matrix products on this machine, the median of ``repeats``."""
    product = jax.jit(lambda a: a @ a)
    a = jax.block_until_ready(product(jax.random.normal(jax.random.key(0), (size, size)) / size))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(product(a))
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds)


def cache_saves(c: EncoderConfig, cut: int, lengths: np.ndarray, passes: float, nbytes: int, filled: bool) -> float:
    """Seconds that keeping the prefix's output saves; negative where it costs more than it saves.

    ``lengths`` [N] are the tokens of every example of the file, ``passes`` how often it is gone through, as a share of
    the file (nine tenths in training, five times: 4.5), ``nbytes`` the size of what is kept, ``filled`` if it is there.
    """
    once = prefix_flops(c, cut, float(lengths.sum()), float(lengths.mean())) / (matmul_rate() * EFFICIENCY)
    reading = passes * nbytes / READ
    return passes * once - reading if filled else (passes - 1) * once - reading - nbytes / WRITE
