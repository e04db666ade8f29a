"""Dropout of attention's weights whose bits a kernel makes where it needs them.

A weight is kept or not by a hash of where it stands: seed, row, head, query and key. So nothing is
stored, and the backward pass finds the bits of the forward pass whatever the order of its blocks.
The functions are plain arithmetic on uint32 that kernels call, too.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

RANDOM_BITS = 24  # that decide over a weight: the upper ones, which are mixed best


def mix(x: Any) -> Any:
    """uint32 -> uint32, every bit of it by all bits of ``x``: the finaliser of murmur3 (Appleby)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def bits_of(counter: Any, first: Any, second: Any) -> Any:
    """uint32 bits of a uint32 counter and the two words of a key.

    They are the murmur3 finaliser (Appleby) of the counter; the key goes in between its rounds.
    """
    x = counter ^ first
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B) + second
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def head_words(seed: tuple[Any, Any], row: Any, head: Any) -> tuple[Any, Any]:
    """The two words, uint32, of a row's head, from those of a step's seed."""
    first, second = seed
    return mix(mix(first ^ row) ^ head), mix(mix(second ^ row) ^ head)


def keep(words: tuple[Any, Any], query: Any, key: Any, rate: float) -> Any:
    """bool: True at a share of 1 - ``rate``, for uint32 places that broadcast against each other.

    The rounds of murmur3's finaliser, with the second word of the head between them, so that two
    queries whose first words are alike still differ from head to head.
    """
    first, second = words
    x = mix(first ^ query) ^ key
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B) + second
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    # The last round changes the lower half alone, and TPUs compare signed numbers.
    bits = (x >> np.uint32(32 - RANDOM_BITS)).astype(jnp.int32)
    return bits >= np.int32(round(rate * 2**RANDOM_BITS))


def drop_weights(
    words: jax.Array, rate: float, first_head: Any = 0
) -> Callable[[jax.Array], jax.Array]:
    """Dropout on whole weights [R, H, C, T], with the bits of the kernels.

    ``words`` uint32 [2] are the step's seed; ``first_head`` is the place of head 0 of the weights.
    """

    def drop(weights_RHCT: jax.Array) -> jax.Array:
        row, head, query, key = (
            jax.lax.broadcasted_iota(jnp.uint32, axis_shape(weights_RHCT.shape, axis), axis)
            for axis in range(4)
        )
        head = head + jnp.asarray(first_head, jnp.uint32)
        kept = keep(head_words((words[0], words[1]), row, head), query, key, rate)
        return jnp.where(kept, weights_RHCT / (1 - rate), jnp.zeros((), weights_RHCT.dtype))

    return drop


def axis_shape(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """``shape`` with 1 for every other axis."""
    return tuple(size if index == axis else 1 for index, size in enumerate(shape))
