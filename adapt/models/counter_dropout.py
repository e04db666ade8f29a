"""Dropout of attention's weights whose bits a kernel makes where it needs them.

A weight is kept or not by where it stands: seed, row, head, query and key. So nothing is stored,
and the backward pass finds the bits of the forward pass whatever the order of its blocks. Each
query and each key of a head has a word, and a weight's bits are the product of the two: one
operation for each weight. The functions are plain arithmetic that kernels call, too.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

KEYS_ASIDE = (
    0x9E3779B9  # from the second seed: alike seeds make no words of keys like those of queries
)


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


def place_words(
    seed: tuple[Any, Any], rows: int, heads: int, queries: int, keys: int, first_head: Any = 0
) -> tuple[jax.Array, jax.Array]:
    """The words of all queries, int32 [R, H, C], and of all keys, int32 [R, H, T]: odd numbers.

    ``seed`` are the two words of a step, uint32; ``first_head`` is the place of head 0.
    """
    first, second = seed
    row = jnp.arange(rows, dtype=jnp.uint32)[:, None, None]
    head = jnp.arange(heads, dtype=jnp.uint32)[:, None] + jnp.asarray(first_head, jnp.uint32)

    def words(of_seed: Any, count: int) -> jax.Array:
        of_head = mix(mix(of_seed ^ row) ^ head)
        mixed = mix(of_head ^ jnp.arange(count, dtype=jnp.uint32)) | np.uint32(1)
        return jax.lax.bitcast_convert_type(mixed, jnp.int32)

    return words(first, queries), words(second ^ np.uint32(KEYS_ASIDE), keys)


def keep(query_words: Any, key_words: Any, rate: float) -> Any:
    """bool: True at a share of 1 - ``rate``, for words that broadcast against each other.

    The product of two odd numbers modulo 2^32 is decided by its upper bits. For one of the words it
    is a bijection of the other, so the bits of a query's weights are as independent as its keys'
    words are. Two queries' bits depend on each other as far as small multiples of their words are
    alike: among random words that is below what a step could tell.
    """
    product = query_words * key_words  # modulo 2^32; TPUs compare signed numbers
    return product >= np.int32(round(rate * 2**32) - 2**31)


def drop_weights(
    words: jax.Array, rate: float, first_head: Any = 0
) -> Callable[[jax.Array], jax.Array]:
    """Dropout on whole weights [R, H, C, T], with the bits of the kernels.

    ``words`` uint32 [2] are the step's seed; ``first_head`` is the place of head 0 of the weights.
    """

    def drop(weights_RHCT: jax.Array) -> jax.Array:
        seed = (words[0], words[1])
        rows, heads, queries, keys = weights_RHCT.shape
        query_words, key_words = place_words(seed, rows, heads, queries, keys, first_head)
        kept = keep(query_words[..., None], key_words[:, :, None], rate)
        return jnp.where(kept, weights_RHCT / (1 - rate), jnp.zeros((), weights_RHCT.dtype))

    return drop
