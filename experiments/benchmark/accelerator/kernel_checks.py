"""Do the project's attention kernels compute on this device what plain JAX does? Called directly, so
that every case is one of theirs: values and gradients, with the same dropout, in packed rows.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adapt.models import attention, counter_dropout, packed_attention
from adapt.models.attention_pattern import AttentionPattern
from experiments.benchmark.accelerator.attention_checks import (
    FLOAT32_LIMIT,
    all_of,
    check,
    relative_error,
)
from experiments.benchmark.accelerator.rows import Row
from experiments.benchmark.accelerator.settings import Settings

HEADS = 4
TOKENS = 512  # of a row
LENGTHS = (200, 31, 129, 1, 151)  # of the examples of a row
PLATFORMS = ("gpu", "tpu")  # that there are kernels for
WHAT = ("values", "gradient of queries", "gradient of keys", "gradient of values")


@dataclasses.dataclass(frozen=True)
class Case:
    """A call of the kernel, in packed rows."""

    width: int  # of a head
    dtype: Any
    dropout: float
    causal: bool = False
    window: int | None = None

    def __str__(self) -> str:
        words = [f"heads of {self.width}", jnp.dtype(self.dtype).name]
        if self.dropout:
            words.append("dropout")
        if self.causal:
            words.append("causal")
        if self.window is not None:
            words.append(f"a window of {self.window}")
        return ", ".join(words)

    @property
    def pattern(self) -> AttentionPattern:
        row = np.repeat(np.arange(len(LENGTHS), dtype=np.int32), LENGTHS)
        segments = jnp.asarray(np.stack([row, row[::-1]]))
        return AttentionPattern(segments, causal=self.causal, window=self.window)


CASES = (
    Case(64, jnp.bfloat16, dropout=0.1),
    Case(64, jnp.float32, dropout=0.1),
    Case(32, jnp.bfloat16, dropout=0.1),
    Case(64, jnp.bfloat16, dropout=0.0, causal=True),
    Case(64, jnp.bfloat16, dropout=0.1, window=64),
)


def measure(told: Settings) -> Iterator[Row]:
    """A row for the worst of values and gradients of every case."""
    platform = jax.default_backend()
    if platform not in PLATFORMS:
        note = f"needs a GPU or a TPU: there is no kernel for a {platform}"
        yield check("kernel against plain JAX", "all", None, None, note=note)
        return
    yield from kernel_rows(CASES, platform)


def kernel_rows(cases: Sequence[Case], platform: str, interpret: bool = False) -> Iterator[Row]:
    """The relative errors of kernel and plain JAX, both against plain JAX in float32.

    In bfloat16 the kernel may be twice as far off as plain JAX is. With ``interpret`` it runs
    anywhere, slowly.
    """
    jobs = []
    for case in cases:
        kernel = partial(by_kernel, case=case, platform=platform, interpret=interpret)
        plain = partial(by_plain_jax, case=case)
        jobs.append(partial(values_and_gradients, plain, case, jnp.float32, "highest"))
        jobs.append(partial(values_and_gradients, plain, case, case.dtype, None))
        jobs.append(partial(values_and_gradients, kernel, case, case.dtype, None))
    computed = all_of(jobs)
    for number, case in enumerate(cases):
        exact, plain, kernel = computed[3 * number : 3 * number + 3]
        for what, of_exact, of_plain, of_kernel in zip(WHAT, exact, plain, kernel, strict=True):
            limit = FLOAT32_LIMIT
            if case.dtype != jnp.float32:
                limit = 2 * relative_error(of_plain, of_exact) + 1e-3
            error = relative_error(of_kernel, of_exact)
            yield check(f"kernel against plain JAX, {what}", str(case), error, limit)


def values_and_gradients(
    attend: Any, case: Case, dtype: Any, precision: str | None
) -> list[np.ndarray]:
    """The output of random arrays [2, H, C, K], and the gradients of queries, keys and values."""
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (2, HEADS, TOKENS, case.width)
    # Rounded, so that every precision computes with the same numbers.
    arrays = [jax.random.normal(key, shape, jnp.bfloat16).astype(dtype) for key in keys]

    @jax.jit
    def computed(q: Any, k: Any, v: Any, upstream: Any) -> Any:
        with jax.default_matmul_precision(precision):
            out, gradient = jax.vjp(attend, q, k, v)
            return out, *gradient(upstream)

    return [np.asarray(array, np.float32) for array in computed(*arrays)]


def by_kernel(
    q: jax.Array, k: jax.Array, v: jax.Array, case: Case, platform: str, interpret: bool
) -> jax.Array:
    return packed_attention.packed_attention(
        q,
        k,
        v,
        case.pattern,
        case.dropout,
        seed_words(),
        platform=platform,
        interpret=interpret,
    )


def by_plain_jax(q: jax.Array, k: jax.Array, v: jax.Array, case: Case) -> jax.Array:
    drop = counter_dropout.drop_weights(seed_words(), case.dropout) if case.dropout else None
    mask = case.pattern.mask(TOKENS, TOKENS)
    return attention.reference_attention(q, k, v, mask, drop)


def seed_words() -> jax.Array:
    return jnp.array([7, 11], jnp.uint32)
