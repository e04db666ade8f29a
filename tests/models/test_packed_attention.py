"""Kernels of attention, interpreted on the CPU, compute what the reference does and leak nothing."""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adapt.models import attention, counter_dropout, packed_attention
from adapt.models.attention_pattern import AttentionPattern
from adapt.models.packed_kernels import Blocks

PLATFORMS = ("gpu", "tpu")
ROWS, HEADS, WIDTH = 2, 2, 16
WORDS = jnp.array([7, 11], jnp.uint32)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks so small that a few tokens have several, and not as many of queries as of keys."""

    def sizes(queries, keys, width):
        return Blocks(32, 16), Blocks(16, 32)

    for platform in PLATFORMS:
        monkeypatch.setitem(packed_attention.BLOCKS, platform, sizes)


def arrays(tokens=40, keys=None, width=WIDTH, dtype=jnp.float32, seed=0):
    """q, k, v and the gradient of the output, [R, H, C or T, K]."""
    sizes = (tokens, keys or tokens, keys or tokens, tokens)
    of_arrays = jax.random.split(jax.random.key(seed), len(sizes))
    return [
        jax.random.normal(key, (ROWS, HEADS, size, width), dtype)
        for key, size in zip(of_arrays, sizes, strict=True)
    ]


def segments(*lengths, rows=ROWS):
    """Packed rows of examples of these lengths, the second row in the other order."""
    row = np.repeat(np.arange(len(lengths)), lengths)
    return jnp.array(np.stack([row, row[::-1]][:rows]), jnp.int32)


def reference(q, k, v, pattern, rate=0.0):
    mask = pattern.mask(q.shape[2], k.shape[2])
    drop = counter_dropout.drop_weights(WORDS, rate) if rate else None
    return attention.reference_attention(q, k, v, mask, drop, pattern.bias)


def by_kernel(q, k, v, pattern, rate=0.0, platform="gpu"):
    return packed_attention.packed_attention(
        q, k, v, pattern, rate, WORDS, platform=platform, interpret=True
    )


def values_and_gradients(attend, q, k, v, upstream, pattern, *options):
    """The output, and the gradients of q, k, v and the bias, if there is one."""

    def of(q, k, v, bias):
        return attend(q, k, v, dataclasses.replace(pattern, bias=bias), *options)

    out, gradient = jax.vjp(of, q, k, v, pattern.bias)
    return out, gradient(upstream)


@functools.cache
def compiled(attend):
    return jax.jit(functools.partial(values_and_gradients, attend), static_argnums=5)


def check(pattern, rate=0.0, platform="gpu", tolerance=2e-5, joint=False, **sizes):
    q, k, v, upstream = arrays(**sizes)
    by = jointly if joint else functools.partial(by_kernel, platform=platform)
    expected = compiled(reference)(q, k, v, upstream, pattern, rate)
    computed = jax.jit(lambda *a: values_and_gradients(by, *a, rate))(q, k, v, upstream, pattern)

    def close(a, b):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)

    jax.tree.map(close, computed, expected)


def jointly(q, k, v, pattern, rate=0.0):
    """The kernel of one array, which is made of the three here."""
    qkv_RC3HK = jnp.stack([q, k, v]).transpose(1, 3, 0, 2, 4)
    out_RCHK = packed_attention.joint_attention(qkv_RC3HK, pattern, rate, WORDS, interpret=True)
    return out_RCHK.transpose(0, 2, 1, 3)


BIAS = jax.random.normal(jax.random.key(5), (HEADS, 40, 40))
PATTERNS = {
    "everywhere": AttentionPattern(),
    "segments": AttentionPattern(segments(13, 9, 18)),
    "causal": AttentionPattern(causal=True),
    "window": AttentionPattern(segments(3, 37), window=5),
    "bias": AttentionPattern(bias=BIAS),
    "all": AttentionPattern(segments(30, 10), BIAS, causal=True, window=17),
}


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("name", PATTERNS)
def test_values_and_gradients_are_those_of_the_reference(name, rate, platform):
    check(PATTERNS[name], rate, platform)


@pytest.mark.parametrize(
    ("name", "tokens", "width"), [("segments", 40, 16), ("all", 40, 16), ("causal", 37, 24)]
)
def test_queries_keys_and_values_in_one_array_are_attended_alike(name, tokens, width):
    check(PATTERNS[name], 0.3, joint=True, tokens=tokens, width=width)


@pytest.mark.parametrize("width", [32, 64, 80, 96, 128])
def test_every_width_of_a_head_is_computed(width):
    check(PATTERNS["segments"], 0.1, "gpu", width=width)


@pytest.mark.parametrize("tokens", [1, 17, 33])
def test_rows_of_any_length_are_computed(tokens):
    check(AttentionPattern(causal=True), 0.1, tokens=tokens)


@pytest.mark.parametrize(
    ("name", "prefix", "platform"),
    [("everywhere", 1, "tpu"), ("segments", 20, "gpu"), ("all", 20, "tpu")],
)
def test_every_token_attends_to_a_prefix(name, prefix, platform):
    pattern = PATTERNS[name].with_prefix(prefix)
    check(pattern, 0.1, platform, keys=40 + prefix)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_bfloat16_differs_by_its_rounding(platform):
    check(PATTERNS["segments"], 0.1, platform, tolerance=4e-2, dtype=jnp.bfloat16)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_real_sizes_of_blocks_are_computed(platform, monkeypatch):
    sizes = {"gpu": packed_attention.gpu_blocks, "tpu": packed_attention.tpu_blocks}
    monkeypatch.setitem(packed_attention.BLOCKS, platform, sizes[platform])
    pattern = AttentionPattern(segments(60, 75, 65), causal=True)
    check(pattern, 0.1, platform, tokens=200, width=32)


LENGTHS = st.lists(st.integers(0, 3), min_size=40, max_size=40)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(st.lists(LENGTHS, min_size=ROWS, max_size=ROWS), st.booleans())
def test_any_segmentation_is_computed(owners, sorted_by_segment):
    """Also segments in pieces, which packing does not make."""
    owners = np.array(owners, np.int32)
    if sorted_by_segment:
        owners = np.sort(owners, 1)
    q, k, v, upstream = arrays()
    pattern = AttentionPattern(jnp.asarray(owners))
    expected = compiled(reference)(q, k, v, upstream, pattern, 0.2)
    computed = compiled(by_kernel)(q, k, v, upstream, pattern, 0.2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), computed, expected)


# Leaks, and what a mask by blocks skips


@pytest.mark.parametrize("platform", PLATFORMS)
def test_other_tokens_change_nothing_of_a_segment_not_even_a_bit(platform):
    pattern = AttentionPattern(segments(13, 9, 18))
    before = arrays()
    owners = np.asarray(pattern.segments)
    is_second = (owners == 1)[:, None, :, None]
    after = [
        jnp.where(is_second, 50.0 + other, own)
        for own, other in zip(before, arrays(seed=9), strict=True)
    ]
    run = jax.jit(lambda *a: values_and_gradients(by_kernel, *a, 0.2, platform))
    outputs = [jax.tree.leaves(run(*given, pattern)) for given in (before, after)]
    for first, second in zip(*outputs, strict=True):
        is_other = np.broadcast_to(~is_second, first.shape)
        assert np.array_equal(np.asarray(first)[is_other], np.asarray(second)[is_other])
        assert not np.array_equal(first, second)


def test_blocks_of_tokens_that_share_no_segment_are_skipped():
    plan = functools.partial(
        packed_attention.Plan,
        platform="gpu",
        interpret=True,
        rows=1,
        heads=1,
        queries=64,
        keys=64,
        width=WIDTH,
        real_keys=64,
        rate=0.0,
        forward=Blocks(16, 16),
        backward=Blocks(16, 16),
    )

    def bounds(pattern):
        rule = dataclasses.replace(pattern, segments=None)
        needed = packed_attention.needed_blocks(plan(rule=rule), pattern, 64)
        assert np.array_equal(needed.forward, needed.queries)
        return needed.forward[0].tolist(), needed.keys[0].tolist()

    packed = AttentionPattern(segments(16, 20, 28, rows=1))
    both = [[0, 1], [1, 3], [1, 4], [2, 4]]
    assert bounds(packed) == (both, both)
    behind = [[0, 1], [0, 2], [0, 3], [0, 4]]
    ahead = [[0, 4], [1, 4], [2, 4], [3, 4]]
    assert bounds(AttentionPattern(causal=True)) == (behind, ahead)
    near = [[0, 2], [0, 3], [1, 4], [2, 4]]
    assert bounds(AttentionPattern(window=3)) == (near, near)
    everywhere = [[0, 4]] * 4
    assert bounds(AttentionPattern()) == (everywhere, everywhere)


# Transformations


@pytest.mark.parametrize("by", [by_kernel, jointly])
def test_it_is_mapped_over_fits_and_over_rates(by):
    q, k, v, upstream = arrays()
    pattern = PATTERNS["segments"]
    stacked = [jnp.stack([x, 2 * x]) for x in (q, k, v, upstream)]
    of_fits = [jnp.stack([x, -x, x + 1]) for x in stacked]
    run = functools.partial(values_and_gradients, by)

    def one(q, k, v, upstream):
        return run(q, k, v, upstream, pattern, 0.2)

    mapped = jax.jit(jax.vmap(jax.vmap(one)))(*of_fits)
    alone = jax.jit(one)(*[x[2, 1] for x in of_fits])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[2, 1], b, atol=1e-5, rtol=1e-5), mapped, alone
    )


def test_heads_on_several_devices_have_the_dropout_of_all():
    q, k, v, _ = arrays()
    whole = by_kernel(q, k, v, AttentionPattern(), 0.4)
    for head in range(HEADS):
        own = [x[:, head : head + 1] for x in (q, k, v)]
        part = packed_attention.packed_attention(
            *own, AttentionPattern(), 0.4, WORDS, head, platform="gpu", interpret=True
        )
        np.testing.assert_allclose(part, whole[:, head : head + 1], atol=1e-6)


# Dropout's bits


def kept(words, rate=0.1, shape=(8, 6, 96, 96)):
    drop = counter_dropout.drop_weights(jnp.asarray(words, jnp.uint32), rate)
    return np.asarray(jax.jit(drop)(jnp.ones(shape))) > 0


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("words", [(0, 0), (1, 0), (2**32 - 1, 12345)])
def test_the_share_that_is_kept_is_that_asked_for_everywhere(words, rate):
    bits = kept(words, rate)

    def deviations(axes):
        count = np.prod([bits.shape[axis] for axis in axes])
        return (bits.mean(axes) - (1 - rate)) / np.sqrt(rate * (1 - rate) / count)

    assert abs(deviations((0, 1, 2, 3))) < 4.5
    for axes in [(1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2), (2, 3), (3,), (2,)]:
        normal = deviations(axes)
        # The largest of n normal numbers is under sqrt(2 ln n) and a little.
        assert np.abs(normal).max() < np.sqrt(2 * np.log(normal.size)) + 2
        assert abs(normal.std() - 1) < 0.02 + 4 / np.sqrt(2 * normal.size)


def test_rows_heads_queries_keys_and_steps_are_independent():
    bits = kept((3, 4))
    limit = 4.5 / np.sqrt(bits.size)
    for step in [(3, 5), (4, 4), (4, 3), (3 ^ 1, 4 ^ 1)]:
        assert abs(correlation(bits, kept(step))) < limit
    for axis in range(4):
        for shift in (1, 2, 3, 4):
            ahead = np.roll(bits, shift, axis)
            assert abs(correlation(bits, ahead)) < limit
    transposed = bits.transpose(0, 1, 3, 2)
    off_diagonal = ~np.eye(96, dtype=bool)
    assert abs(correlation(bits[..., off_diagonal], transposed[..., off_diagonal])) < 2 * limit
    # Pairs of neighbours, of keys and of queries, are as likely as independent bits make them.
    for first, second in [
        (bits[..., :-1], bits[..., 1:]),
        (bits[..., :-1, :], bits[..., 1:, :]),
    ]:
        together = (~first & ~second).mean()
        assert abs(together - 0.01) < 4.5 * np.sqrt(0.01 * 0.99 / first.size)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_two_queries_and_two_keys_of_a_head_are_independent(rate):
    """All pairs of them: their correlations vary as those of independent bits, and the product of
    the four bits of two queries and two keys is 0 in the mean.
    """
    shape = (3, 4, 96, 96)
    centred = (rate - ~kept((5, 9), rate, shape)) / np.sqrt(rate * (1 - rate))
    above = np.triu_indices(96, 1)
    for bits in (centred, centred.swapaxes(2, 3)):
        products = bits @ bits.swapaxes(2, 3)
        pairs = products[..., above[0], above[1]] / np.sqrt(96)
        assert abs(pairs.mean()) < 4.5 / np.sqrt(pairs.size)
        assert abs(pairs.std() - 1) < 0.02
        # The squared sum over keys has each product of four once for each order of the two keys.
        of_four = (pairs**2).mean() - (centred**2).mean() ** 2
        assert abs(of_four) < 0.03


def test_alike_seeds_make_no_mask_that_is_its_own_mirror():
    bits = kept((6, 6))
    off_diagonal = ~np.eye(96, dtype=bool)
    mirrored = bits.transpose(0, 1, 3, 2)[..., off_diagonal]
    assert abs(correlation(bits[..., off_diagonal], mirrored)) < 9 / np.sqrt(bits.size)


def test_the_same_seed_gives_the_same_bits():
    assert np.array_equal(kept((3, 4)), kept((3, 4)))
