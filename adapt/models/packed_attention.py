"""Attention on packed rows that never writes its weights to memory, forward and backward.

A block of scores at a time is computed, used and forgotten (Dao et al. 2022), and the gradient
computes it again. No mask is read either: who attends to whom is decided from the segments, by
block, and blocks of tokens that share no segment are skipped. Dropout's bits are made from a
counter inside the kernel, the same ones in both passes (:mod:`adapt.models.counter_dropout`).

The kernels are this project's own. None of the libraries' does all of this: JAX's Pallas examples
(Triton, TPU flash and splash attention) have segments and no dropout, cuDNN's has dropout with a
seed that is a constant of the program, and tokamax's takes dropout as a mask from memory, has no
gradient with it, and writes a bias's gradient for each row.

Shapes in names: R rows, C tokens a row (queries), T tokens attended to (keys), H heads, K width of
a head.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adapt.models import packed_kernels
from adapt.models.attention_pattern import AttentionPattern
from adapt.models.counter_dropout import place_words
from adapt.models.packed_kernels import Arrays, Blocks, Plan

# Segments of padding, of queries and of keys: nobody's, and not each other's.
QUERY_PADDING = -1
KEY_PADDING = -2


def packed_attention(
    q_RHCK: jax.Array,
    k_RHTK: jax.Array,
    v_RHTK: jax.Array,
    pattern: AttentionPattern,
    rate: float = 0.0,
    words: jax.Array | None = None,
    first_head: Any = 0,
    *,
    platform: str,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q k^T / sqrt(K) + bias) v of each head, with dropout on the weights: [R, H, C, K].

    What :func:`adapt.models.attention.reference_attention` computes with the mask of ``pattern``
    and dropout by :func:`adapt.models.counter_dropout.drop_weights`, up to rounding. It has a
    gradient and rules for :func:`jax.vmap` (twice), and none for forward differentiation.

    ``rate`` is that of dropout and ``words`` uint32 [2] its seed; ``first_head`` is the place of
    head 0 among all heads, for devices that have some of them. ``platform`` is gpu or tpu.
    ``interpret`` runs the kernels anywhere, slowly.
    """
    rows, heads, queries, width = q_RHCK.shape
    keys = k_RHTK.shape[2]
    plan = make_plan(pattern, (rows, heads, queries, keys, width), rate, platform, interpret)
    bias, segments = padded_pattern(plan, pattern)
    q = laid_out(plan, q_RHCK, plan.queries)
    k = laid_out(plan, k_RHTK, plan.keys)
    v = laid_out(plan, v_RHTK, plan.keys)
    needed = needed_blocks(plan, pattern, queries)
    of_places = dropout_words(plan, words, first_head)
    out: Any = attend(plan, q, k, v, bias, segments, needed, of_places)
    out_RHCK = out.transpose(0, 2, 1, 3) if platform == "gpu" else out
    return out_RHCK[:, :, :queries]


def joint_attention(
    qkv_RC3HK: jax.Array,
    pattern: AttentionPattern,
    rate: float = 0.0,
    words: jax.Array | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """:func:`packed_attention` of queries, keys and values in one array, for GPUs: [R, C, H, K].

    It is read as a product by their three kernels writes it, and its gradient is written so that
    the products of the backward pass read it: neither is taken apart. A prefix is not for it.
    """
    rows, tokens, _, heads, width = qkv_RC3HK.shape
    sizes = (rows, heads, tokens, tokens, width)
    plan = make_plan(pattern, sizes, rate, "gpu", interpret)
    plan = dataclasses.replace(plan, joint=True)
    padded = max(plan.queries, plan.keys)
    plan = dataclasses.replace(plan, queries=padded, keys=padded)
    bias, segments = padded_pattern(plan, pattern)
    qkv = qkv_RC3HK.reshape(rows, tokens, 3 * heads, width)
    if padded > tokens:
        qkv = jnp.pad(qkv, [(0, 0), (0, padded - tokens), (0, 0), (0, 0)])
    needed = needed_blocks(plan, pattern, tokens)
    out_RCHK: Any = attend_jointly(plan, qkv, bias, segments, needed, dropout_words(plan, words))
    return out_RCHK[:, :tokens]


def make_plan(
    pattern: AttentionPattern,
    sizes: tuple[int, int, int, int, int],
    rate: float,
    platform: str,
    interpret: bool,
) -> Plan:
    """What is fixed for arrays of these rows, heads, queries, keys and width of a head."""
    rows, heads, queries, keys, width = sizes
    forward, backward = BLOCKS[platform](queries, keys, width)
    return Plan(
        platform=platform,
        interpret=interpret,
        rule=dataclasses.replace(pattern, segments=None, bias=None),
        rows=rows,
        heads=heads,
        queries=round_up(queries, max(forward.queries, backward.queries)),
        keys=round_up(keys, max(forward.keys, backward.keys)),
        width=width,
        real_keys=keys,
        rate=rate,
        forward=forward,
        backward=backward,
    )


def padded_pattern(
    plan: Plan, pattern: AttentionPattern
) -> tuple[jax.Array | None, tuple[jax.Array, jax.Array] | None]:
    """The bias and the segments of padded queries and keys, each None without."""
    segments = None
    if pattern.segments is not None:
        segments = padded_segments(pattern, plan.queries, plan.keys)
    bias = pattern.bias
    if bias is not None:
        _, queries, keys = bias.shape
        bias = jnp.pad(bias, [(0, 0), (0, plan.queries - queries), (0, plan.keys - keys)])
    return bias, segments


def round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def padded_segments(
    pattern: AttentionPattern, queries: int, keys: int
) -> tuple[jax.Array, jax.Array]:
    """The segments of queries, int32 [R, C], and of keys [R, T], with those of padding."""
    segments = jnp.asarray(pattern.segments)
    tokens = segments.shape[1]
    after = keys - pattern.prefix - tokens
    of_queries = jnp.pad(segments, [(0, 0), (0, queries - tokens)], constant_values=QUERY_PADDING)
    of_keys = jnp.pad(segments, [(0, 0), (pattern.prefix, after)], constant_values=KEY_PADDING)
    return of_queries, of_keys


def laid_out(plan: Plan, x_RHCK: jax.Array, tokens: int) -> jax.Array:
    """Token states as the kernels read them: on a GPU [R, C, H, K], padded to ``tokens``."""
    missing = tokens - x_RHCK.shape[2]
    if missing:
        x_RHCK = jnp.pad(x_RHCK, [(0, 0), (0, 0), (0, missing), (0, 0)])
    return x_RHCK.transpose(0, 2, 1, 3) if plan.platform == "gpu" else x_RHCK


def dropout_words(
    plan: Plan, words: jax.Array | None, first_head: Any = 0
) -> tuple[jax.Array, jax.Array] | None:
    """What kernels read of dropout, None without: the words of queries and of keys."""
    if not plan.rate:
        return None
    if words is None:
        words = jnp.zeros(2, jnp.uint32)
    sizes = (plan.rows, plan.heads, plan.queries, plan.keys)
    return place_words((words[0], words[1]), *sizes, first_head)


# The sizes of blocks


def gpu_blocks(queries: int, keys: int, width: int) -> tuple[Blocks, Blocks]:
    """Blocks that stay in a processor's registers and shared memory, powers of two from 16 on."""
    most_queries = power_of_two(queries)
    most_keys = power_of_two(keys)
    warps = 4 if width <= 64 else 8
    forward = Blocks(min(128, most_queries), min(64, most_keys), warps)
    backward = Blocks(min(64, most_queries), min(64, most_keys), warps)
    return forward, backward


def tpu_blocks(queries: int, keys: int, width: int) -> tuple[Blocks, Blocks]:
    """Blocks of whole vector registers, which hold 128 numbers side by side."""
    blocks = Blocks(tpu_size(queries), tpu_size(keys))
    return blocks, blocks


def power_of_two(count: int) -> int:
    """The next power of two, at least 16: what a tensor core multiplies."""
    return max(16, 1 << (count - 1).bit_length())


def tpu_size(count: int) -> int:
    """256 tokens where they divide the padded row, else 128."""
    return 256 if round_up(count, 128) % 256 == 0 else 128


BLOCKS = {"gpu": gpu_blocks, "tpu": tpu_blocks}


# The function with its gradient, on arrays as the kernels read them


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
    plan: Plan,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    segments: tuple[jax.Array, jax.Array] | None,
    needed: "Needed",
    words: tuple[jax.Array, jax.Array] | None,
) -> jax.Array:
    """The outputs, laid out as ``q`` is."""
    out, _ = attend_forward(plan, q, k, v, bias, segments, needed, words)
    return out


def attend_forward(
    plan: Plan, q: Any, k: Any, v: Any, bias: Any, segments: Any, needed: "Needed", words: Any
) -> tuple[jax.Array, Any]:
    """The outputs, and what the backward pass needs."""
    query_segments, key_segments = segments or (None, None)
    arrays = Arrays(q, k, v, bias, query_segments, key_segments, words)
    out, total = packed_kernels.forward(plan, arrays, needed.forward)
    return out, (arrays, needed, out, total)


def attend_backward(plan: Plan, residuals: Any, upstream: jax.Array) -> tuple[Any, ...]:
    """The gradients of q, k, v and the bias."""
    arrays, needed, *_ = residuals
    q_gradient, of_queries = queries_backward(plan, residuals, upstream)
    k_gradient, v_gradient = packed_kernels.keys_gradient(plan, arrays, needed.keys, *of_queries)
    bias_gradient = gradient_of_bias(plan, arrays, *of_queries)
    return q_gradient, k_gradient, v_gradient, bias_gradient, None, None, None


def queries_backward(
    plan: Plan, residuals: Any, upstream: jax.Array
) -> tuple[jax.Array, tuple[Any, Any, Any]]:
    """(the gradient of q, what the gradients of keys and of the bias read of queries)."""
    arrays, needed, out, total = residuals
    gradient, inner = packed_kernels.queries_gradient(
        plan, arrays, needed.queries, upstream, out, total
    )
    return gradient, (upstream, total, inner)


def gradient_of_bias(
    plan: Plan, arrays: Arrays, upstream: Any, total: Any, inner: Any
) -> jax.Array | None:
    """The gradient of the bias, None without one."""
    if arrays.bias is None:
        return None
    gradient = packed_kernels.bias_gradient(plan, arrays, upstream, total, inner)
    return gradient.astype(arrays.bias.dtype)


attend.defvjp(attend_forward, attend_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend_jointly(
    plan: Plan,
    qkv: jax.Array,
    bias: jax.Array | None,
    segments: tuple[jax.Array, jax.Array] | None,
    needed: "Needed",
    words: tuple[jax.Array, jax.Array] | None,
) -> jax.Array:
    """The outputs [R, C, H, K] of queries, keys and values in one array [R, C, 3 H, K]."""
    out, _ = attend_forward(plan, qkv, qkv, qkv, bias, segments, needed, words)
    return out


def attend_jointly_forward(
    plan: Plan, qkv: Any, bias: Any, segments: Any, needed: "Needed", words: Any
) -> tuple[jax.Array, Any]:
    """The outputs, and what the backward pass needs."""
    return attend_forward(plan, qkv, qkv, qkv, bias, segments, needed, words)


def attend_jointly_backward(plan: Plan, residuals: Any, upstream: jax.Array) -> tuple[Any, ...]:
    """The gradients of the array and the bias."""
    arrays, needed, *_ = residuals
    gradient, of_queries = queries_backward(plan, residuals, upstream)
    gradient = packed_kernels.joint_gradient(plan, arrays, needed.keys, *of_queries, gradient)
    return gradient, gradient_of_bias(plan, arrays, *of_queries), None, None, None


attend_jointly.defvjp(attend_jointly_forward, attend_jointly_backward)


# Which blocks are needed


def token_spans(pattern: AttentionPattern, rows: int, tokens: int) -> tuple[jax.Array, jax.Array]:
    """The first and the last token of each token's segment, int32 [R, C]."""
    places = jnp.arange(tokens, dtype=jnp.int32)
    if pattern.segments is None:
        first = jnp.zeros((rows, tokens), jnp.int32)
        return first, first + tokens - 1
    segments = jnp.asarray(pattern.segments)
    is_own_RCC = segments[:, :, None] == segments[:, None, :]
    first_RCC = jnp.where(is_own_RCC, places, np.int32(tokens))
    last_RCC = jnp.where(is_own_RCC, places, np.int32(-1))

    def least_and_most(a: Any, b: Any) -> Any:
        return jnp.minimum(a[0], b[0]), jnp.maximum(a[1], b[1])

    # One reduction, and nothing of it in what reads it: with two XLA writes the comparison.
    limits = (np.int32(tokens), np.int32(-1))
    spans = jax.lax.reduce((first_RCC, last_RCC), limits, least_and_most, (2,))
    return jax.lax.optimization_barrier(spans)


@dataclasses.dataclass(frozen=True)
class Needed:
    """The blocks of the others that each block of tokens needs, int32 [R, blocks, 2] each: the
    first, and the one after the last.
    """

    forward: jax.Array  # of keys, for those of queries
    queries: jax.Array  # the same in the backward pass
    keys: jax.Array  # of queries, for those of keys


jax.tree_util.register_dataclass(Needed, ("forward", "queries", "keys"), ())


def needed_blocks(plan: Plan, pattern: AttentionPattern, tokens: int) -> Needed:
    """Which blocks a program of each kernel goes over. Keys of a prefix are no one's in ``forward``
    and ``queries``: those programs start with them.
    """
    places = jnp.arange(tokens, dtype=jnp.int32)
    first, last = token_spans(pattern, plan.rows, tokens)
    if pattern.window is not None:
        first = jnp.maximum(first, places - pattern.window)
        last = jnp.minimum(last, places + pattern.window)
    last_key = jnp.minimum(last, places) if pattern.causal else last
    first_query = jnp.maximum(first, places) if pattern.causal else first

    prefix = pattern.prefix
    missing = plan.queries - tokens
    of_keys = (
        jnp.pad(first + prefix, [(0, 0), (0, missing)], constant_values=plan.keys),
        jnp.pad(last_key + prefix, [(0, 0), (0, missing)], constant_values=-1),
    )
    # Every query attends to a prefix.
    missing = plan.keys - tokens - prefix
    ahead = jnp.zeros((plan.rows, prefix), jnp.int32)
    of_queries = (
        jnp.pad(
            jnp.concatenate([ahead, first_query], 1),
            [(0, 0), (0, missing)],
            constant_values=plan.queries,
        ),
        jnp.pad(
            jnp.concatenate([ahead + tokens - 1, last], 1),
            [(0, 0), (0, missing)],
            constant_values=-1,
        ),
    )
    return Needed(
        forward=block_bounds(*of_keys, plan.forward.queries, plan.forward.keys),
        queries=block_bounds(*of_keys, plan.backward.queries, plan.backward.keys),
        keys=block_bounds(*of_queries, plan.backward.keys, plan.backward.queries),
    )


def block_bounds(first: jax.Array, last: jax.Array, size: int, other_size: int) -> jax.Array:
    """int32 [R, blocks, 2]: the first block of others that a block of tokens needs, and the one
    after the last, both 0 where it needs none.

    ``first`` and ``last`` [R, C] are the others that each token needs; sizes are those of blocks.
    """
    first = first.reshape(len(first), -1, size).min(2)
    last = last.reshape(len(last), -1, size).max(2)
    bounds = jnp.stack([first // other_size, last // other_size + 1], -1)
    return jnp.where((first <= last)[..., None], bounds, 0)
