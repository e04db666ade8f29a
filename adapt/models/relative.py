"""What attention adds to a score for how far apart two tokens are.

Each example of a packed row is contiguous. So the difference of two places in the row is the
difference of their positions, wherever the example starts, and what is added needs places alone.

Shapes in names: R rows, C tokens a row, D width, H heads, K width of a head, B buckets, U buckets
in use, L differences of places.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from adapt.models.config import EncoderConfig
from adapt.models.layers import Norm


class RelativeBias(nn.Module):
    """A number for each head and each bucket of distances (Raffel et al. 2020, 2.1).

    ``tokens`` a row -> float32 [H, C, C], for every pair of a query and a key. The parameter
    ``table`` is [B, H].
    """

    config: EncoderConfig

    @nn.compact
    def __call__(self, tokens: int) -> jax.Array:
        c = self.config
        shape = (c.relative_buckets, c.heads)
        table_BH = self.param("table", nn.initializers.normal(c.init_range), shape)
        buckets_L = distance_buckets(differences(tokens), c.relative_buckets, c.relative_distance)
        bias_LH = jnp.asarray(table_BH, jnp.float32)[buckets_L]
        bias_HCL = jnp.broadcast_to(bias_LH.T[:, None], (c.heads, tokens, len(buckets_L)))
        return by_places(bias_HCL)


class RelativeStates(nn.Module):
    """A state for each bucket of differences, which blocks project to keys and queries (He et al.
    2021, 3.1).

    ``tokens`` a row -> [U, D], the states that such a row needs, see :func:`used_buckets`.

    The parameter ``table`` is [2 B, D].
    """

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: int) -> jax.Array:
        c = self.config
        shape = (2 * c.relative_buckets, c.width)
        table = self.param("table", nn.initializers.normal(c.init_range), shape)
        used_U, _ = used_buckets(c, tokens)
        states_UD = jnp.asarray(table)[used_U]
        if not c.relative_norm:
            return states_UD.astype(self.dtype)
        return Norm(c.norm_epsilon, self.dtype, name="norm")(states_UD)


def differences(tokens: int) -> np.ndarray:
    """By how many places a key may be ahead of a query, int [L]: from 1 - C to C.

    C itself, the last of the 2 C, is more than a row has: with it :func:`by_places` is one reshape.
    """
    return np.arange(1 - tokens, tokens + 1)


def by_places(x_L: jax.Array) -> jax.Array:
    """Values of queries and differences, [..., C, L], as those of queries and keys, [..., C, C].

    y[i, j] = x[i, j - i + C - 1]: each query's slice begins one place before the last one's. In the
    flattened array all slices are one slice. A gather would be slow, and its gradient slower.
    """
    *lead, tokens, count = x_L.shape
    flat = x_L.reshape(*lead, tokens * count)
    shifted = flat[..., tokens - 1 : tokens - 1 + tokens * (count - 1)]
    return shifted.reshape(*lead, tokens, count - 1)[..., :tokens]


def distance_buckets(ahead: np.ndarray, buckets: int, distance: int) -> np.ndarray:
    """The buckets of differences, T5's: half of them for keys ahead, half for keys behind.

    The first half of each has a bucket a place, the second buckets that grow with the logarithm up
    to ``distance``; what is farther is in the last. In float32, as the original library computes:
    at the borders of buckets the rounding decides.
    """
    half = buckets // 2
    exact = half // 2
    far = np.abs(ahead)
    growth = np.float32(math.log(distance / exact))
    logarithm = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
    steps = logarithm / growth * np.float32(half - exact)
    large = np.minimum(exact + steps.astype(np.int64), half - 1)
    return np.where(ahead > 0, half, 0) + np.where(far < exact, far, large)


def difference_buckets(behind: np.ndarray, buckets: int, distance: int) -> np.ndarray:
    """The rows of DeBERTa's table [2 B, D] for differences of places, query less key.

    The differences within half the buckets have a row each, larger ones share them by their
    logarithm up to ``distance``. A ``distance`` of 0 gives every difference its own. Both are cut
    off at the ends of the table. In float32, as the original library computes.
    """
    if distance:
        behind = with_shared_buckets(behind, buckets // 2, distance)
    return np.clip(behind + buckets, 0, 2 * buckets - 1)


def with_shared_buckets(behind: np.ndarray, exact: int, distance: int) -> np.ndarray:
    """Differences whose larger ones, those beyond ``exact``, are shared by their logarithm."""
    far = np.abs(behind)
    is_near = far < exact
    # The logarithm of a near difference is not used: any number below the border will do.
    far = np.where(is_near, exact - 1, far).astype(np.float32)
    growth = np.log(np.float32((distance - 1) / exact))
    logarithm = np.log(far / np.float32(exact))
    steps = logarithm / growth * np.float32(exact - 1)
    shared = (np.ceil(steps) + exact) * np.sign(behind)
    return np.where(far <= exact, behind, shared).astype(np.int64)


@functools.lru_cache(maxsize=64)
def used_buckets(config: EncoderConfig, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of DeBERTa's table a row of so many tokens needs, int [U], and the place among
    them of each of :func:`differences`, int [L].
    """
    rows_L = difference_buckets(
        -differences(tokens), config.relative_buckets, config.relative_distance
    )
    return np.unique(rows_L, return_inverse=True)


def disentangled_bias(
    config: EncoderConfig,
    q_RHCK: jax.Array,
    k_RHCK: jax.Array,
    keys_HUK: jax.Array | None,
    queries_HUK: jax.Array | None,
    scale: float,
) -> jax.Array:
    """Content to position and position to content, float32 [R, H, C, C] (He et al. 2021, eq. 4).

    ``keys`` and ``queries`` are those of the buckets in use; None leaves that term out. ``scale``
    is that of the scores.
    """
    *lead, tokens, _ = q_RHCK.shape
    _, place_L = used_buckets(config, tokens)
    bias_RHCC = jnp.zeros((*lead, tokens, tokens), jnp.float32)
    # States are repeated before they are multiplied: the other way round would gather scores.
    if keys_HUK is not None:
        scores_RHCL = jnp.einsum("RHCK,HLK->RHCL", q_RHCK * scale, keys_HUK[:, place_L])
        bias_RHCC += by_places(scores_RHCL)
    if queries_HUK is not None:
        # Seen from keys the differences run the other way; the last of them is never read.
        mirrored_L = np.append(place_L[:-1][::-1], place_L[0])
        scores_RHCL = jnp.einsum("RHCK,HLK->RHCL", k_RHCK * scale, queries_HUK[:, mirrored_L])
        bias_RHCC += by_places(scores_RHCL).swapaxes(-1, -2)
    return bias_RHCC
