"""Attention of long rows on a CPU, some queries at a time.

The scores of 8,192 tokens are 268 MB a head; those of some queries are few, and in a local layer
they need no other keys than those in reach of the window.

Shapes in names: R rows, C tokens a row, H heads, K width of a head, Q queries at a time, T keys.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adapt.models.attention_pattern import AttentionPattern

LONG = 1024  # rows of more tokens are long
QUERIES = 512  # at a time
NO_SEGMENT = -1  # of places beyond the row

Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], jax.Array]


def is_long(q_RHCK: jax.Array, pattern: AttentionPattern) -> bool:
    """Whether :func:`attend_in_parts` is for this: a long row of texts."""
    has_bias = pattern.bias is not None or pattern.relative is not None
    return q_RHCK.shape[2] > LONG and pattern.segments is not None and not has_bias


def attend_in_parts(
    attend: Attend,
    q_RHCK: jax.Array,
    k_RHTK: jax.Array,
    v_RHTK: jax.Array,
    pattern: AttentionPattern,
) -> jax.Array:
    """What ``attend(q, k, v, mask)`` gives by the mask of the pattern, [R, H, C, K].

    The backward pass computes the scores of a part again.
    """
    tokens = q_RHCK.shape[2]
    parts = -(-tokens // QUERIES)
    missing = parts * QUERIES - tokens
    segments_RC = jnp.asarray(pattern.segments)
    query_segments_RC = jnp.pad(segments_RC, [(0, 0), (0, missing)], constant_values=NO_SEGMENT)
    q_RHCK = jnp.pad(q_RHCK, [(0, 0), (0, 0), (0, missing), (0, 0)])
    key_segments_RT = pattern.key_segments()

    reach = tokens if pattern.window is None else pattern.window
    is_near = QUERIES + 2 * reach < tokens and not pattern.prefix
    if is_near:
        # So that the keys of every part are a slice of one length.
        k_RHTK = pad_tokens(k_RHTK, reach, missing + reach, axis=2)
        v_RHTK = pad_tokens(v_RHTK, reach, missing + reach, axis=2)
        key_segments_RT = pad_tokens(key_segments_RT, reach, missing + reach, NO_SEGMENT, axis=1)

    @jax.checkpoint
    def attend_part(part: jax.Array) -> jax.Array:
        start = part * QUERIES
        queries = start + jnp.arange(QUERIES)
        q_RHQK = jax.lax.dynamic_slice_in_dim(q_RHCK, start, QUERIES, 2)
        of_queries_RQ = jax.lax.dynamic_slice_in_dim(query_segments_RC, start, QUERIES, 1)
        k, v, of_keys_RT = k_RHTK, v_RHTK, key_segments_RT
        keys = jnp.arange(k.shape[2])
        if is_near:
            size = QUERIES + 2 * reach
            k = jax.lax.dynamic_slice_in_dim(k, start, size, 2)
            v = jax.lax.dynamic_slice_in_dim(v, start, size, 2)
            of_keys_RT = jax.lax.dynamic_slice_in_dim(of_keys_RT, start, size, 1)
            keys = start - reach + jnp.arange(size)
        mask = pattern.visible(
            of_queries_RQ[:, None, :, None],
            of_keys_RT[:, None, None, :],
            queries[:, None],
            keys[None, :],
        )
        return attend(q_RHQK, k, v, mask)

    mixed_PRHQK = jax.lax.map(attend_part, jnp.arange(parts))
    mixed_RHPQK = jnp.moveaxis(mixed_PRHQK, 0, 2)
    mixed_RHCK = mixed_RHPQK.reshape(*q_RHCK.shape)
    return mixed_RHCK[:, :, :tokens]


def pad_tokens(x: jax.Array, before: int, after: int, value: int = 0, *, axis: int) -> jax.Array:
    """``x`` with places before and after those of its tokens."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (before, after)
    return jnp.pad(x, widths, constant_values=value)
