"""Attention of long rows, in parts, is that of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adapt.models import attention, long_attention
from adapt.models.attention_pattern import AttentionPattern


@pytest.fixture(autouse=True)
def few_queries(monkeypatch):
    """Parts so small that a few tokens have several."""
    monkeypatch.setattr(long_attention, "QUERIES", 8)
    monkeypatch.setattr(long_attention, "LONG", 16)


TOKENS = 37  # no multiple of a part
LENGTHS = ((20, 10, 5), (1, 30, 4))  # and two places of padding
SEGMENTS = np.full((2, TOKENS), 6, np.int32)
for _row, _lengths in enumerate(LENGTHS):
    SEGMENTS[_row, : sum(_lengths)] = np.repeat(3 * _row + np.arange(3), _lengths)

PATTERNS = {
    "segments": AttentionPattern(jnp.array(SEGMENTS)),
    "window": AttentionPattern(jnp.array(SEGMENTS), window=3),
    "window of a whole part": AttentionPattern(jnp.array(SEGMENTS), window=11),
    "causal window": AttentionPattern(jnp.array(SEGMENTS), causal=True, window=3),
    "prefix": AttentionPattern(jnp.array(SEGMENTS), window=3).with_prefix(2),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_values_and_gradients_are_those_of_the_whole(name):
    pattern = PATTERNS[name]
    keys = TOKENS + pattern.prefix
    of_arrays = jax.random.split(jax.random.key(0), 3)
    sizes = (TOKENS, keys, keys)
    q, k, v = (
        jax.random.normal(key, (2, 2, size, 4)) for key, size in zip(of_arrays, sizes, strict=True)
    )
    assert long_attention.is_long(q, pattern)
    is_text = (SEGMENTS < 6)[:, None, :, None]

    def whole(q, k, v):
        return attention.plain_attention(q, k, v, pattern.mask(TOKENS, keys)) * is_text

    def in_parts(q, k, v):
        return attention.attend(q, k, v, pattern, None) * is_text

    @jax.jit
    def compare(*arrays):
        outputs = []
        for attend in (whole, in_parts):
            out, gradient = jax.vjp(attend, *arrays)
            outputs.append((out, gradient(jnp.cos(out))))
        return outputs

    expected, computed = compare(q, k, v)
    for ours, theirs in zip(jax.tree.leaves(computed), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_local_part_multiplies_by_no_more_keys_than_it_reaches():
    pattern = PATTERNS["window"]
    x = jnp.ones((2, 2, TOKENS, 4))
    traced = str(jax.make_jaxpr(lambda x: attention.attend(x, x, x, pattern, None))(x))
    assert f"[2,2,8,{8 + 2 * 3}]" in traced  # scores of 8 queries
    assert f"[2,2,8,{TOKENS}]" not in traced


@pytest.mark.parametrize(
    ("tokens", "pattern"),
    [
        (16, PATTERNS["segments"]),  # a short row
        (TOKENS, AttentionPattern()),  # an image
        (TOKENS, AttentionPattern(jnp.array(SEGMENTS), jnp.zeros((2, TOKENS, TOKENS)))),
    ],
)
def test_other_attention_is_computed_as_a_whole(tokens, pattern):
    assert not long_attention.is_long(jnp.ones((2, 2, tokens, 4)), pattern)
