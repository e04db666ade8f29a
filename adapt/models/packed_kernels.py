"""The Pallas kernels of :mod:`adapt.models.packed_attention`: forward, and three of the gradient.

A program of a kernel takes one block of queries (or of keys) of one head and goes over the blocks
of keys (of queries) that it needs. It holds one block of scores at a time, so that no weights are
written to memory. The bodies serve Triton on GPUs and Mosaic on TPUs; what differs is how arrays
lie in memory (``gpu`` [R, C, H, K], ``tpu`` [R, H, C, K]) and the sizes of blocks.

Shapes in names: R rows, C queries of a row, T keys, H heads, K width of a head, Q queries of a
block, B keys of a block.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu

from adapt.models.attention_pattern import AttentionPattern
from adapt.models.counter_dropout import keep

LOWEST = np.float32(-1e30)  # a score that no token has; infinity would make 0 * inf of the sums
# The highest score before any was seen: so far above LOWEST that the weight of a key that is not
# seen is 0, also where a query sees none.
LOW = np.float32(-1e29)
Refs = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The sizes of a block: how many queries by how many keys."""

    queries: int
    keys: int
    warps: int = 4  # of 32 threads, on a GPU


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fixed when the kernels are compiled. C and T are multiples of their blocks."""

    platform: str  # gpu or tpu
    interpret: bool  # on a CPU, for tests
    rule: AttentionPattern  # without its arrays
    rows: int
    heads: int
    queries: int
    keys: int
    width: int
    real_keys: int  # without padding
    rate: float  # of dropout
    forward: Blocks
    backward: Blocks
    joint: bool = False  # q, k and v are the heads of one array [R, C, 3 H, K], one after the other

    @property
    def scale(self) -> float:
        return self.width**-0.5

    @property
    def unit(self) -> float:
        """By what scores are multiplied for :meth:`power`: a GPU has an instruction for 2^x alone."""
        return math.log2(math.e) if self.platform == "gpu" else 1.0

    def power(self, scores: jax.Array) -> jax.Array:
        """The exponentials of scores in :attr:`unit`."""
        return jnp.exp2(scores) if self.platform == "gpu" else jnp.exp(scores)

    @property
    def kept(self) -> float:
        """The share of weights that dropout keeps."""
        return 1 - self.rate

    @property
    def stored_width(self) -> int:
        """The width of a block: on a GPU a power of two, more than the array may have."""
        return pl.next_power_of_2(self.width) if self.platform == "gpu" else self.width

    def products(self, count: int) -> pl.CostEstimate:
        """The cost of a kernel with so many matrix products, if nothing is skipped."""
        scores = self.rows * self.heads * self.queries * self.keys
        tokens = self.rows * self.heads * (self.queries + self.keys) * self.width
        return pl.CostEstimate(
            flops=2 * count * scores * self.width,
            transcendentals=scores,
            bytes_accessed=2 * count * tokens,
        )


@dataclasses.dataclass(frozen=True)
class Grid:
    """One program for each of so many blocks of every head, and what each of them reads."""

    plan: Plan
    blocks: int

    @property
    def programs(self) -> int:
        return self.plan.rows * self.plan.heads * self.blocks

    def place(self, program: Any) -> tuple[Any, Any, Any]:
        """The row, head and block of a program."""
        blocks, heads = np.int32(self.blocks), np.int32(self.plan.heads)
        head_of_row = jax.lax.div(program, blocks)
        row = jax.lax.div(head_of_row, heads)
        return row, jax.lax.rem(head_of_row, heads), jax.lax.rem(program, blocks)

    def states(self, size: int, whole: bool = False, part: int = 0) -> pl.BlockSpec:
        """Token states of one head: ``size`` tokens of the program's block, or from the first on.

        ``part`` is 0, 1 or 2 for queries, keys and values where these lie in one array.
        """
        first_head = np.int32(part * self.plan.heads if self.plan.joint else 0)

        def index(program: Any) -> tuple[Any, ...]:
            row, head, block = self.place(program)
            head = head + first_head
            block = 0 if whole else block
            return (row, block, head, 0) if self.plan.platform == "gpu" else (row, head, block, 0)

        shape = (None, None, size, self.plan.stored_width)
        if self.plan.platform == "gpu":
            shape = (None, size, None, self.plan.stored_width)
        return pl.BlockSpec(shape, index)

    def three_states(self, size: int) -> pl.BlockSpec:
        """The block's tokens of one head of queries, keys and values, from [R, C, 3, H, K]."""

        def index(program: Any) -> tuple[Any, ...]:
            row, head, block = self.place(program)
            return row, block, 0, head, 0

        return pl.BlockSpec((None, size, 3, None, self.plan.stored_width), index)

    def column(self, size: int) -> pl.BlockSpec:
        """Numbers of the block's tokens of one head, from [R, H, C, 1]."""

        def index(program: Any) -> tuple[Any, ...]:
            row, head, block = self.place(program)
            return row, head, block, 0

        return pl.BlockSpec((None, None, size, 1), index)

    def lane(self, size: int) -> pl.BlockSpec:
        """Numbers of all tokens of one head, from [R, H, 1, C]."""

        def index(program: Any) -> tuple[Any, ...]:
            row, head, _ = self.place(program)
            return row, head, 0, 0

        return pl.BlockSpec((None, None, 1, size), index)

    def segment_column(self, size: int) -> pl.BlockSpec:
        """Segments of the block's tokens, from [R, C, 1]."""

        def index(program: Any) -> tuple[Any, ...]:
            row, _, block = self.place(program)
            return row, block, 0

        return pl.BlockSpec((None, size, 1), index)

    def segment_lane(self, size: int) -> pl.BlockSpec:
        """Segments of all tokens of a row, from [R, 1, C]."""

        def index(program: Any) -> tuple[Any, ...]:
            row, _, _ = self.place(program)
            return row, 0, 0

        return pl.BlockSpec((None, 1, size), index)

    def bias(self, size: int, others: int) -> pl.BlockSpec:
        """The bias of the block's tokens and all others, from [H, C, T] or [H, T, C]."""

        def index(program: Any) -> tuple[Any, ...]:
            _, head, block = self.place(program)
            return head, block, 0

        return pl.BlockSpec((None, size, others), index)

    def numbers(self, count: int) -> pl.BlockSpec:
        """Whole numbers that every program reads one by one."""
        if self.plan.platform == "tpu":
            return pl.BlockSpec(memory_space=pltpu.SMEM)
        return pl.BlockSpec((count,), lambda program: (0,))


@dataclasses.dataclass(frozen=True)
class BiasGrid:
    """One program for each block of queries by each of keys of every head, and what it reads."""

    plan: Plan

    @property
    def programs(self) -> int:
        blocks = self.plan.backward
        query_blocks = self.plan.queries // blocks.queries
        return self.plan.heads * query_blocks * (self.plan.keys // blocks.keys)

    def place(self, program: Any) -> tuple[Any, Any, Any]:
        """The head, the block of queries and the block of keys of a program."""
        key_blocks = np.int32(self.plan.keys // self.plan.backward.keys)
        query_blocks = np.int32(self.plan.queries // self.plan.backward.queries)
        blocks_of_head = jax.lax.div(program, key_blocks)
        query_block = jax.lax.rem(blocks_of_head, query_blocks)
        head = jax.lax.div(blocks_of_head, query_blocks)
        return head, query_block, jax.lax.rem(program, key_blocks)

    def states(self, size: int, of: str, part: int = 0) -> pl.BlockSpec:
        """Token states of one head in all rows, of a block of ``queries`` or of ``keys``; ``part``
        is that of :meth:`Grid.states`.
        """
        rows, width = self.plan.rows, self.plan.stored_width
        first_head = np.int32(part * self.plan.heads if self.plan.joint else 0)

        def index(program: Any) -> tuple[Any, ...]:
            head, query_block, key_block = self.place(program)
            head = head + first_head
            block = query_block if of == "queries" else key_block
            return (0, block, head, 0) if self.plan.platform == "gpu" else (0, head, block, 0)

        if self.plan.platform == "gpu":
            return pl.BlockSpec((rows, size, None, width), index)
        return pl.BlockSpec((rows, None, size, width), index)

    def column(self, size: int) -> pl.BlockSpec:
        """Numbers of a block of queries of one head in all rows, from [R, H, C, 1]."""

        def index(program: Any) -> tuple[Any, ...]:
            head, query_block, _ = self.place(program)
            return 0, head, query_block, 0

        return pl.BlockSpec((self.plan.rows, None, size, 1), index)

    def lane(self, size: int) -> pl.BlockSpec:
        """Numbers of a block of keys of one head in all rows, from [R, H, 1, T]."""

        def index(program: Any) -> tuple[Any, ...]:
            head, _, key_block = self.place(program)
            return 0, head, 0, key_block

        return pl.BlockSpec((self.plan.rows, None, 1, size), index)

    def segment_column(self, size: int) -> pl.BlockSpec:
        """Segments of a block of queries in all rows, from [R, C, 1]."""
        return pl.BlockSpec(
            (self.plan.rows, size, 1), lambda program: (0, self.place(program)[1], 0)
        )

    def segment_lane(self, size: int) -> pl.BlockSpec:
        """Segments of a block of keys in all rows, from [R, 1, T]."""
        return pl.BlockSpec(
            (self.plan.rows, 1, size), lambda program: (0, 0, self.place(program)[2])
        )

    def scores(self) -> pl.BlockSpec:
        """A block of the bias, from [H, C, T]."""
        blocks = self.plan.backward
        return pl.BlockSpec((None, blocks.queries, blocks.keys), self.place)


def call(
    kernel: Callable[..., None],
    grid: Grid | BiasGrid,
    name: str,
    products: int,
    inputs: dict[str, tuple[Any, pl.BlockSpec]],
    outputs: list[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
    warps: int,
    aliases: dict[str, int] | None = None,
) -> Any:
    """Run a kernel over a grid: it gets the blocks of ``inputs`` by name, then the ``outputs``.

    ``aliases`` are {name of an input: number of the output that is written into its memory}.
    """
    plan = grid.plan
    name = f"{name}_joint" if plan.joint else name
    if plan.platform == "gpu":
        params: Any = plgpu.CompilerParams(num_warps=warps, num_stages=2)
    else:
        params = pltpu.CompilerParams(dimension_semantics=("parallel",))
    names = list(inputs)

    def body(*refs: Any) -> None:
        kernel(dict(zip(names, refs, strict=False)), *refs[len(names) :], grid=grid)

    body.__name__ = name  # what the compiled program calls it
    run = pl.pallas_call(
        body,
        grid=(grid.programs,),
        in_specs=[spec for _, spec in inputs.values()],
        out_specs=[spec for _, spec in outputs],
        out_shape=[shape for shape, _ in outputs],
        compiler_params=params,
        cost_estimate=plan.products(products),
        input_output_aliases={names.index(name): at for name, at in (aliases or {}).items()},
        interpret=plan.interpret,
        name=name,
    )
    return run(*(array for array, _ in inputs.values()))


# What the bodies are made of


def load_states(plan: Plan, ref: Any, *index: Any) -> jax.Array:
    """Token states at an index of all but the last dimension, with zeros for a width beyond K."""
    rows = ref.at[(*index, slice(None))]
    if plan.stored_width == plan.width:
        return rows[...]
    columns = jax.lax.broadcasted_iota(jnp.int32, (1, plan.stored_width), 1)
    return plgpu.load(rows, mask=columns < plan.width, other=0.0)


def store_states(plan: Plan, ref: Any, states: jax.Array) -> None:
    """Write a whole block of token states."""
    states = states.astype(ref.dtype)
    if plan.stored_width == plan.width:
        ref[...] = states
        return
    columns = jax.lax.broadcasted_iota(jnp.int32, (1, plan.stored_width), 1)
    plgpu.store(ref, states, mask=columns < plan.width)


def product(a: jax.Array, b: jax.Array, transposed: bool = False) -> jax.Array:
    """a b in float32, or a b^T."""
    contracted = 1 if transposed else 0
    dimensions = (((1,), (contracted,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def hidden(seen: Any, x: jax.Array, value: Any) -> jax.Array:
    """``x`` where a key is seen, else ``value``."""
    return x if seen is None else jnp.where(seen, x, value)


def scores_of(
    plan: Plan, a: Any, b: Any, bias: Any, segments: tuple[Any, Any], queries: Any, keys: Any
) -> tuple[jax.Array, Any]:
    """a b^T / sqrt(K) + bias of a block in the plan's unit, and what is seen of it, or None.

    a are the states of queries and b those of keys: scores [Q, B]. Or the other way: [B, Q].
    """
    scores = product(a, b, transposed=True) * np.float32(plan.scale * plan.unit)
    if bias is not None:
        scores = scores + bias.astype(jnp.float32) * np.float32(plan.unit)
    seen = plan.rule.visible(*segments, queries, keys)
    if plan.keys > plan.real_keys:
        is_key = keys < plan.real_keys
        seen = is_key if seen is None else seen & is_key
    return scores, seen


Words = tuple[Any, Any] | None  # of dropout, of queries and of keys; None without dropout


def dropped(plan: Plan, words: Words, x: jax.Array) -> jax.Array:
    """``x`` where dropout keeps a weight, else 0. Who uses it divides by the share that is kept."""
    if words is None:
        return x
    return jnp.where(keep(*words, plan.rate), x, np.float32(0))


def of_rows(plan: Plan, reduce: Callable[..., jax.Array], x: jax.Array) -> jax.Array:
    """A number of each row of a block: a vector on a GPU, whose threads would each hold a column as
    often as the block is wide, and a column on a TPU.
    """
    return reduce(x, 1, keepdims=plan.platform == "tpu")


def as_column(plan: Plan, x: jax.Array) -> jax.Array:
    """What :func:`of_rows` gave, [Q, 1]."""
    return x if plan.platform == "tpu" else x[:, None]


def places(start: Any, size: int, axis: int) -> jax.Array:
    """The places of ``size`` tokens, as a column (axis 0) or a line (axis 1)."""
    shape = (size, 1) if axis == 0 else (1, size)
    return start + jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def span_of(index: Any, size: int, axis: int) -> tuple[Any, jax.Array]:
    """The slice of a block, and the places of its tokens along an axis."""
    start = pl.multiple_of(index * np.int32(size), size)
    return pl.ds(start, size), places(start, size, axis)


def over_keys(plan: Plan, blocks: Blocks, bounds: tuple[Any, Any], step: Any, carry: Any) -> Any:
    """Go over the blocks of keys that a block of queries needs: those of a prefix, then its own."""
    first, last = bounds
    prefix = -(-plan.rule.prefix // blocks.keys)
    if prefix:
        carry = jax.lax.fori_loop(0, prefix, step, carry)
        first = jnp.maximum(first, prefix)
    return jax.lax.fori_loop(first, last, step, carry)


def bounds_of(refs: Refs, grid: Grid, row: Any, block: Any) -> tuple[Any, Any]:
    """The first block that a program needs, and the one after the last."""
    index = 2 * (row * np.int32(grid.blocks) + block)
    return refs["bounds"][index], refs["bounds"][index + 1]


# The forward pass


def forward_kernel(refs: Refs, out_ref: Any, total_ref: Any, *, grid: Grid) -> None:
    """A block of outputs, and the logarithm of each query's sum of exponentials.

    The softmax is taken as the keys come (Milakov and Gimelshein 2018, algorithm 3; Dao 2023,
    algorithm 1): each block raises the highest score so far and shrinks what was summed before.
    """
    plan = grid.plan
    blocks = plan.forward
    row, _, block = grid.place(pl.program_id(0))
    q = load_states(plan, refs["q"], slice(None))
    queries = places(block * blocks.queries, blocks.queries, 0)
    of_block = QueryBlock.load(refs)

    def step(index: Any, carry: Any) -> Any:
        mixed, highest, total = carry
        span, keys = span_of(index, blocks.keys, 1)
        k = load_states(plan, refs["k"], span)
        v = load_states(plan, refs["v"], span)
        bias, segments, words = of_block.with_keys(refs, span)
        scores, seen = scores_of(plan, q, k, bias, segments, queries, keys)
        scores = hidden(seen, scores, LOWEST)

        new_highest = jnp.maximum(highest, of_rows(plan, jnp.max, scores))
        weights = plan.power(scores - as_column(plan, new_highest))
        shrink = plan.power(highest - new_highest)
        total = total * shrink + of_rows(plan, jnp.sum, weights)
        weights = dropped(plan, words, weights)
        mixed = mixed * as_column(plan, shrink) + product(weights.astype(v.dtype), v)
        return mixed, new_highest, total

    rows = (blocks.queries, 1) if plan.platform == "tpu" else (blocks.queries,)
    carry = (
        jnp.zeros((blocks.queries, plan.stored_width), jnp.float32),
        jnp.full(rows, LOW, jnp.float32),
        jnp.zeros(rows, jnp.float32),
    )
    bounds = bounds_of(refs, grid, row, block)
    mixed, highest, total = over_keys(plan, blocks, bounds, step, carry)
    total = jnp.where(total == 0, np.float32(1), total)  # padding may see no key at all
    store_states(plan, out_ref, mixed / as_column(plan, total * np.float32(plan.kept)))
    # jnp.log2 divides a logarithm, too, and Mosaic has none.
    total_ref[...] = as_column(plan, highest + jnp.log(total) * np.float32(plan.unit))


@dataclasses.dataclass(frozen=True)
class QueryBlock:
    """What there is of a block of queries beside their states, each None without: columns."""

    segments: Any
    words: Any  # of dropout

    @classmethod
    def load(cls, refs: Refs) -> "QueryBlock":
        return cls(*(refs[name][...] if name in refs else None for name in QUERY_COLUMNS))

    def with_keys(self, refs: Refs, span: Any) -> tuple[Any, tuple[Any, Any], Words]:
        """Bias, segments and words of the queries by the keys of ``span``."""
        bias = refs["bias"][:, span] if "bias" in refs else None
        segments = (None, None)
        if self.segments is not None:
            segments = (self.segments, refs["key_segments"][:, span])
        words = None
        if self.words is not None:
            words = (self.words, refs["key_words"][:, span])
        return bias, segments, words


QUERY_COLUMNS = ("query_segments", "query_words")


# The gradient (Dao et al. 2022, algorithm 4; Dao 2023, algorithm 2): weights are computed again
# from the scores and each query's logarithm of their sum, ``total``. ``inner`` is the product of
# each query's output and its gradient, which is the sum of weights times their gradients, times the
# share that dropout keeps: the gradient of scores is divided by that share with its other factors.


def score_gradient(
    plan: Plan,
    scored: tuple[jax.Array, Any],
    total: Any,
    inner: Any,
    of_dropped: jax.Array,
    words: Words,
) -> tuple[jax.Array, jax.Array]:
    """(the weights after dropout, the gradient of the scores) of a block, both times the share that
    dropout keeps.

    ``of_dropped`` is the gradient of the weights after dropout.
    """
    scores, seen = scored
    weights = hidden(seen, plan.power(scores - total), np.float32(0))
    of_weights = dropped(plan, words, of_dropped)
    return dropped(plan, words, weights), weights * (of_weights - inner)


def queries_kernel(refs: Refs, gradient_ref: Any, inner_ref: Any, *, grid: Grid) -> None:
    """The gradient of a block of queries, and ``inner``: the sum of each query's upstream * out."""
    plan = grid.plan
    blocks = plan.backward
    row, _, block = grid.place(pl.program_id(0))
    q = load_states(plan, refs["q"], slice(None))
    upstream = load_states(plan, refs["upstream"], slice(None))
    total = refs["total"][...]
    out = load_states(plan, refs["out"], slice(None))
    inner = upstream.astype(jnp.float32) * out.astype(jnp.float32)
    inner = jnp.sum(inner, 1, keepdims=True) * np.float32(plan.kept)
    inner_ref[...] = inner
    queries = places(block * blocks.queries, blocks.queries, 0)
    of_block = QueryBlock.load(refs)

    def step(index: Any, gradient: Any) -> Any:
        span, keys = span_of(index, blocks.keys, 1)
        k = load_states(plan, refs["k"], span)
        v = load_states(plan, refs["v"], span)
        bias, segments, words = of_block.with_keys(refs, span)
        scored = scores_of(plan, q, k, bias, segments, queries, keys)
        of_dropped = product(upstream, v, transposed=True)
        _, of_scores = score_gradient(plan, scored, total, inner, of_dropped, words)
        return gradient + product(of_scores.astype(k.dtype), k)

    gradient = jnp.zeros((blocks.queries, plan.stored_width), jnp.float32)
    bounds = bounds_of(refs, grid, row, block)
    gradient = over_keys(plan, blocks, bounds, step, gradient)
    store_states(plan, gradient_ref, gradient * np.float32(plan.scale / plan.kept))


def keys_kernel(refs: Refs, *gradient_refs: Any, grid: Grid) -> None:
    """The gradients of a block of keys and of their values. Scores stand on their side, [B, Q]."""
    plan = grid.plan
    if plan.joint:
        (gradient_ref,) = gradient_refs
        gradient_refs = tuple(gradient_ref.at[:, np.int32(part)] for part in (1, 2))
    k_gradient_ref, v_gradient_ref = gradient_refs
    blocks = plan.backward
    row, _, block = grid.place(pl.program_id(0))
    k = load_states(plan, refs["k"], slice(None))
    v = load_states(plan, refs["v"], slice(None))
    keys = places(block * blocks.keys, blocks.keys, 0)
    key_segments = refs["key_segments"][...] if "key_segments" in refs else None
    key_words = refs["key_words"][...] if plan.rate else None

    def step(index: Any, carry: Any) -> Any:
        k_gradient, v_gradient = carry
        span, queries = span_of(index, blocks.queries, 1)
        q = load_states(plan, refs["q"], span)
        upstream = load_states(plan, refs["upstream"], span)
        bias = refs["bias"][:, span] if "bias" in refs else None
        segments = (None, None)
        if key_segments is not None:
            segments = (refs["query_segments"][:, span], key_segments)
        words = (refs["query_words"][:, span], key_words) if plan.rate else None
        scored = scores_of(plan, k, q, bias, segments, queries, keys)
        total = refs["total"][:, span]
        inner = refs["inner"][:, span]
        of_dropped = product(v, upstream, transposed=True)
        weights, of_scores = score_gradient(plan, scored, total, inner, of_dropped, words)
        v_gradient = v_gradient + product(weights.astype(upstream.dtype), upstream)
        k_gradient = k_gradient + product(of_scores.astype(q.dtype), q)
        return k_gradient, v_gradient

    zeros = jnp.zeros((blocks.keys, plan.stored_width), jnp.float32)
    first, last = bounds_of(refs, grid, row, block)
    k_gradient, v_gradient = jax.lax.fori_loop(first, last, step, (zeros, zeros))
    store_states(plan, k_gradient_ref, k_gradient * np.float32(plan.scale / plan.kept))
    store_states(plan, v_gradient_ref, v_gradient * np.float32(1 / plan.kept))


def bias_kernel(refs: Refs, gradient_ref: Any, *, grid: BiasGrid) -> None:
    """The gradient of a block of one head's bias, [Q, B]: the sum of that of scores over the rows.

    A program here has a head, a block of queries and one of keys, and goes over the rows.
    """
    plan = grid.plan
    blocks = plan.backward
    _, query_block, key_block = grid.place(pl.program_id(0))
    queries = places(query_block * blocks.queries, blocks.queries, 0)
    keys = places(key_block * blocks.keys, blocks.keys, 1)
    bias = refs["bias"][...]

    def step(row: Any, gradient: Any) -> Any:
        q = load_states(plan, refs["q"], row, slice(None))
        k = load_states(plan, refs["k"], row, slice(None))
        v = load_states(plan, refs["v"], row, slice(None))
        upstream = load_states(plan, refs["upstream"], row, slice(None))
        segments = (None, None)
        if "query_segments" in refs:
            segments = (refs["query_segments"][row], refs["key_segments"][row])
        scored = scores_of(plan, q, k, bias, segments, queries, keys)
        total = refs["total"][row]
        inner = refs["inner"][row]
        of_dropped = product(upstream, v, transposed=True)
        words = (refs["query_words"][row], refs["key_words"][row]) if plan.rate else None
        _, of_scores = score_gradient(plan, scored, total, inner, of_dropped, words)
        return gradient + of_scores

    gradient = jnp.zeros((blocks.queries, blocks.keys), jnp.float32)
    gradient = jax.lax.fori_loop(0, plan.rows, step, gradient)
    gradient_ref[...] = gradient * np.float32(1 / plan.kept)


# What runs them. Queries, outputs and the like are [R, C, H, K] for a GPU and [R, H, C, K] for a
# TPU; keys have T in place of C.


def states_like(plan: Plan, tokens: int, dtype: Any) -> jax.ShapeDtypeStruct:
    """The shape of the states of so many tokens a row."""
    shape = (plan.rows, plan.heads, tokens, plan.width)
    if plan.platform == "gpu":
        shape = (plan.rows, tokens, plan.heads, plan.width)
    return jax.ShapeDtypeStruct(shape, dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Arrays:
    """What all kernels read."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    bias: jax.Array | None  # [H, C, T]
    query_segments: jax.Array | None  # int32 [R, C]
    key_segments: jax.Array | None  # int32 [R, T]
    words: tuple[jax.Array, jax.Array] | None  # of dropout: int32 [R, H, C] and [R, H, T]


def forward(plan: Plan, arrays: Arrays, bounds: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The outputs, and float32 [R, H, C] the logarithm of each query's sum of exponentials.

    ``bounds`` int32 [R, blocks, 2] are the blocks of keys that each block of queries needs.
    """
    blocks = plan.forward
    grid = Grid(plan, plan.queries // blocks.queries)
    totals = jax.ShapeDtypeStruct((plan.rows, plan.heads, plan.queries, 1), jnp.float32)
    out, total = call(
        forward_kernel,
        grid,
        "packed_attention_forward",
        2,
        of_queries(grid, blocks, arrays, bounds),
        [
            (states_like(plan, plan.queries, arrays.q.dtype), grid.states(blocks.queries)),
            (totals, grid.column(blocks.queries)),
        ],
        blocks.warps,
    )
    return out, total[..., 0]


def of_queries(
    grid: Grid, blocks: Blocks, arrays: Arrays, bounds: jax.Array
) -> dict[str, tuple[Any, pl.BlockSpec]]:
    """What a kernel whose programs have a block of queries reads."""
    keys = grid.plan.keys
    inputs = {
        "q": (arrays.q, grid.states(blocks.queries)),
        "k": (arrays.k, grid.states(keys, whole=True, part=1)),
        "v": (arrays.v, grid.states(keys, whole=True, part=2)),
        "bounds": (bounds.reshape(-1), grid.numbers(bounds.size)),
    }
    if arrays.query_segments is not None and arrays.key_segments is not None:
        inputs |= {
            "query_segments": (
                arrays.query_segments[:, :, None],
                grid.segment_column(blocks.queries),
            ),
            "key_segments": (arrays.key_segments[:, None], grid.segment_lane(keys)),
        }
    if arrays.words is not None:
        query_words, key_words = arrays.words
        inputs |= {
            "query_words": (query_words[..., None], grid.column(blocks.queries)),
            "key_words": (key_words[:, :, None], grid.lane(keys)),
        }
    if arrays.bias is not None:
        inputs["bias"] = (arrays.bias, grid.bias(blocks.queries, keys))
    return inputs


def queries_gradient(
    plan: Plan, arrays: Arrays, bounds: jax.Array, upstream: Any, out: Any, total: Any
) -> tuple[jax.Array, jax.Array]:
    """(the gradient of q, ``inner`` of :func:`queries_kernel`); ``total`` and ``inner`` are float32
    [R, H, C].

    Where q, k and v lie in one array, so do their gradients, and :func:`joint_gradient` has to
    write those of k and v.
    """
    blocks = plan.backward
    grid = Grid(plan, plan.queries // blocks.queries)
    inputs = of_queries(grid, blocks, arrays, bounds) | {
        "upstream": (upstream, grid.states(blocks.queries)),
        "out": (out, grid.states(blocks.queries)),
        "total": (total[..., None], grid.column(blocks.queries)),
    }
    like = jax.ShapeDtypeStruct(arrays.q.shape, arrays.q.dtype)
    totals = jax.ShapeDtypeStruct((*total.shape, 1), jnp.float32)
    outputs = [(like, grid.states(blocks.queries)), (totals, grid.column(blocks.queries))]
    gradient, inner = call(
        queries_kernel, grid, "packed_attention_dq", 3, inputs, outputs, blocks.warps
    )
    return gradient, inner[..., 0]


def keys_gradient(
    plan: Plan, arrays: Arrays, bounds: jax.Array, upstream: Any, total: Any, inner: Any
) -> tuple[jax.Array, jax.Array]:
    """The gradients of k and v. ``bounds`` are the blocks of queries that those of keys need."""
    blocks = plan.backward
    grid = Grid(plan, plan.keys // blocks.keys)
    inputs = of_keys(grid, blocks, arrays, bounds, upstream, total, inner)
    like = jax.ShapeDtypeStruct(arrays.k.shape, arrays.k.dtype)
    outputs = [(like, grid.states(blocks.keys)), (like, grid.states(blocks.keys))]
    k_gradient, v_gradient = call(
        keys_kernel, grid, "packed_attention_dkv", 4, inputs, outputs, blocks.warps
    )
    return k_gradient, v_gradient


def joint_gradient(
    plan: Plan,
    arrays: Arrays,
    bounds: jax.Array,
    upstream: Any,
    total: Any,
    inner: Any,
    gradient: jax.Array,
) -> jax.Array:
    """The gradient of the one array of queries, keys and values, [R, T, 3 H, K].

    ``gradient`` is that array with the queries' part written; it is overwritten.
    """
    blocks = plan.backward
    grid = Grid(plan, plan.keys // blocks.keys)
    shape = (plan.rows, plan.keys, 3, plan.heads, plan.width)
    block = grid.three_states(blocks.keys)
    inputs = of_keys(grid, blocks, arrays, bounds, upstream, total, inner)
    inputs["gradient"] = (gradient.reshape(shape), block)
    outputs = [(jax.ShapeDtypeStruct(shape, gradient.dtype), block)]
    aliases = {"gradient": 0}
    (whole,) = call(
        keys_kernel, grid, "packed_attention_dkv", 4, inputs, outputs, blocks.warps, aliases
    )
    return whole.reshape(gradient.shape)


def of_keys(
    grid: Grid,
    blocks: Blocks,
    arrays: Arrays,
    bounds: jax.Array,
    upstream: Any,
    total: Any,
    inner: Any,
) -> dict[str, tuple[Any, pl.BlockSpec]]:
    """What a kernel whose programs have a block of keys reads."""
    queries = grid.plan.queries
    inputs = {
        "q": (arrays.q, grid.states(queries, whole=True)),
        "upstream": (upstream, grid.states(queries, whole=True)),
        "k": (arrays.k, grid.states(blocks.keys, part=1)),
        "v": (arrays.v, grid.states(blocks.keys, part=2)),
        "total": (total[:, :, None], grid.lane(queries)),
        "inner": (inner[:, :, None], grid.lane(queries)),
        "bounds": (bounds.reshape(-1), grid.numbers(bounds.size)),
    }
    if arrays.query_segments is not None and arrays.key_segments is not None:
        inputs |= {
            "query_segments": (arrays.query_segments[:, None], grid.segment_lane(queries)),
            "key_segments": (arrays.key_segments[:, :, None], grid.segment_column(blocks.keys)),
        }
    if arrays.words is not None:
        query_words, key_words = arrays.words
        inputs |= {
            "query_words": (query_words[:, :, None], grid.lane(queries)),
            "key_words": (key_words[..., None], grid.column(blocks.keys)),
        }
    if arrays.bias is not None:
        transposed = arrays.bias.transpose(0, 2, 1)
        inputs["bias"] = (transposed, grid.bias(blocks.keys, queries))
    return inputs


def bias_gradient(plan: Plan, arrays: Arrays, upstream: Any, total: Any, inner: Any) -> jax.Array:
    """The gradient of the bias, float32 [H, C, T]."""
    assert arrays.bias is not None
    blocks = plan.backward
    grid = BiasGrid(plan)
    inputs = {
        "q": (arrays.q, grid.states(blocks.queries, "queries")),
        "upstream": (upstream, grid.states(blocks.queries, "queries")),
        "k": (arrays.k, grid.states(blocks.keys, "keys", part=1)),
        "v": (arrays.v, grid.states(blocks.keys, "keys", part=2)),
        "total": (total[..., None], grid.column(blocks.queries)),
        "inner": (inner[..., None], grid.column(blocks.queries)),
        "bias": (arrays.bias, grid.scores()),
    }
    if arrays.query_segments is not None and arrays.key_segments is not None:
        inputs |= {
            "query_segments": (
                arrays.query_segments[:, :, None],
                grid.segment_column(blocks.queries),
            ),
            "key_segments": (arrays.key_segments[:, None], grid.segment_lane(blocks.keys)),
        }
    if arrays.words is not None:
        query_words, key_words = arrays.words
        inputs |= {
            "query_words": (query_words[..., None], grid.column(blocks.queries)),
            "key_words": (key_words[:, :, None], grid.lane(blocks.keys)),
        }
    outputs = [(jax.ShapeDtypeStruct(arrays.bias.shape, jnp.float32), grid.scores())]
    (gradient,) = call(
        bias_kernel, grid, "packed_attention_dbias", 2, inputs, outputs, blocks.warps
    )
    return gradient
