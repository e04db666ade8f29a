"""Who attends to whom, as a small description from which masks are made, whole or by block.

Shapes in names: R rows, C tokens a row (queries), T tokens attended to (keys), H heads.
"""

import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("segments", "bias", "relative"),
    meta_fields=("causal", "window", "prefix"),
)
@dataclasses.dataclass(frozen=True)
class AttentionPattern:
    """Which keys each query of packed rows attends to, and what is added to their scores.

    >>> segments = jnp.array([[0, 0, 1]])
    >>> pattern = AttentionPattern(segments, causal=True)
    >>> pattern.mask(queries=3, keys=3).astype(int)[0, 0]
    Array([[1, 0, 0],
           [1, 1, 0],
           [0, 0, 1]], dtype=int32)
    """

    # int32 [R, C], not negative: a token attends within its segment. None: everywhere.
    segments: jax.Array | None = None
    # Float [H, C, T], added to the scores of every row: a relative bias; or [R, H, C, T].
    bias: jax.Array | None = None
    # Float [U, D], states of differences, of which attention makes a bias of every row.
    relative: jax.Array | None = None
    # A token attends to itself and what is before it.
    causal: bool = False
    # How many places a token attends ahead and back, at the most; None: any number.
    window: int | None = None
    # Keys before those of the tokens, to which every token attends.
    prefix: int = 0

    def visible(self, query_segments: Any, key_segments: Any, queries: Any, keys: Any) -> Any:
        """bool, True where a query attends to a key; None where each attends to all.

        The places of queries (from 0) and of keys (from 0, the prefix counted) are arrays that
        broadcast against each other, and so are their segments, or None.
        """
        conditions = []
        places = keys - self.prefix
        if query_segments is not None:
            conditions.append(query_segments == key_segments)
        if self.causal:
            conditions.append(places <= queries)
        if self.window is not None:
            conditions.append(places <= queries + self.window)
            conditions.append(places >= queries - self.window)
        if not conditions:
            return None
        visible = functools.reduce(operator.and_, conditions)
        return visible | (keys < self.prefix) if self.prefix else visible

    def mask(self, queries: int, keys: int) -> jax.Array | None:
        """bool [R or 1, 1, C, T], True where a query attends to a key; None: everywhere."""
        query_segments = key_segments = None
        if self.segments is not None:
            query_segments = self.segments[:, None, :, None]
            key_segments = self.key_segments()[:, None, None, :]
        query_places = jnp.arange(queries)[None, None, :, None]
        key_places = jnp.arange(keys)[None, None, None, :]
        return self.visible(query_segments, key_segments, query_places, key_places)

    def key_segments(self) -> jax.Array:
        """The segments of the keys, int32 [R, T]; those of a prefix are 0 and mean nothing."""
        segments = jnp.asarray(self.segments)
        return jnp.pad(segments, [(0, 0), (self.prefix, 0)]) if self.prefix else segments

    def with_prefix(self, keys: int) -> "AttentionPattern":
        """The pattern after so many more keys, without a bias, are put before the others."""
        bias = self.bias
        if bias is not None:
            bias = jnp.pad(bias, [*[(0, 0)] * (bias.ndim - 1), (keys, 0)])
        return dataclasses.replace(self, bias=bias, prefix=self.prefix + keys)
