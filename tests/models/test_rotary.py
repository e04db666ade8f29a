"""Rotary positions, and blocks that differ by their index: local and global ones."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adapt.data import packing
from adapt.models import Classifier, Encoder, Model
from adapt.models.rotary import frequencies, rotation_at
from adapt.ragged import ragged
from adapt.tree import paths
from tests.helpers.small import ROTARY, SHALLOW, batch, classifier, params, texts

TOKENS = texts(5, seed=3, longest=12)


def packed(row_tokens: int, rows_of: int | None = None):
    """The five texts in rows of ``row_tokens``; one a row with ``rows_of`` 1."""
    if rows_of == 1:
        rows, starts = np.arange(5), np.zeros(5, int)
    else:
        rows, starts, _ = packing.pack(TOKENS.lengths, row_tokens)
    shape = (5, row_tokens, 8)
    return packing.assemble(TOKENS, np.arange(5), rows, starts, shape)


def test_a_rotation_turns_pairs_of_features_in_the_plane():
    """As multiplying complex numbers does, which NumPy does here."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 6)).astype(np.float32)
    positions = rng.integers(0, 5000, (2, 4))
    frequencies = 50.0 ** -(np.arange(3) / 3)
    turned = (x[..., :3] + 1j * x[..., 3:]) * np.exp(1j * positions[:, None, :, None] * frequencies)
    computed = rotation_at(jnp.array(positions), 6, 50.0).rotate(jnp.array(x))
    expected = np.concatenate([turned.real, turned.imag], -1)
    np.testing.assert_allclose(computed, expected, atol=2e-3)  # angles up to 5000 in float32


def test_a_rotated_product_depends_on_the_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def product(query: int, key: int) -> float:
        rotated_q = rotation_at(jnp.array([[query]]), 8, 100.0).rotate(q)
        rotated_k = rotation_at(jnp.array([[key]]), 8, 100.0).rotate(k)
        return float((rotated_q * rotated_k).sum())

    assert product(3, 7) == pytest.approx(product(20, 24), abs=1e-5)
    assert product(3, 7) != pytest.approx(product(3, 8), abs=1e-2)


def test_frequencies_can_be_rounded_as_a_file_has_them():
    exact = frequencies(8, 100.0)
    rounded = frequencies(8, 100.0, "float16")
    np.testing.assert_array_equal(rounded, exact.astype(np.float16))
    assert rounded.dtype == np.float32 and not np.array_equal(rounded, exact)
    rotation = rotation_at(jnp.array([[300]]), 8, 100.0, "float16")
    np.testing.assert_allclose(rotation.cosine[0, 0], np.cos(300 * rounded), atol=1e-4)


def test_half_precision_is_rotated_in_float32():
    x = jax.random.normal(jax.random.key(0), (1, 1, 2, 8), jnp.bfloat16)
    rotation = rotation_at(jnp.array([[300, 301]]), 8, 100.0)
    rotated = rotation.rotate(x)
    assert rotated.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rotated, rotation.rotate(x.astype(jnp.float32)).astype(x.dtype))


def test_there_is_no_leaf_that_the_config_leaves_out():
    leaves = paths(classifier("rotary").shapes()["encoder"])
    assert not [path for path in leaves if path.endswith("/bias")]
    assert "embedding/position" not in leaves
    assert "embedding/norm/scale" in leaves
    assert "block_00/attention_norm/scale" not in leaves
    assert "block_01/attention_norm/scale" in leaves
    shapes = {name: leaves[f"block_00/mlp/{name}/kernel"].shape for name in ("gate", "up", "down")}
    assert shapes == {"gate": (16, 32), "up": (16, 32), "down": (32, 16)}


@functools.cache
def states_of_each_text() -> dict[str, list[np.ndarray]]:
    """The hidden states of every token, text by text: one text a row, and packed."""
    model = classifier("rotary")
    hidden = jax.jit(lambda tree, batch: model.hidden_states(tree, batch))
    by_layout = {}
    for name, rows_of in (("alone", 1), ("packed", None)):
        arrays = packed(24, rows_of)
        segments = arrays["segments"].reshape(-1)
        states = [np.asarray(x).reshape(-1, 16) for x in hidden(params(model), arrays)]
        by_layout[name] = [x[segments == text] for x in states for text in range(5)]
    return by_layout


def test_packed_texts_have_the_states_of_texts_alone():
    states = states_of_each_text()
    for alone, together in zip(states["alone"], states["packed"], strict=True):
        np.testing.assert_allclose(together, alone, atol=2e-5)


def test_a_local_block_attends_within_its_window_and_a_global_one_to_all():
    model = classifier("rotary")
    arrays = packed(24)
    maps = jax.jit(model.attention_maps)(params(model), arrays)
    segments = arrays["segments"]
    is_own = segments[:, None, :, None] == segments[:, None, None, :]
    places = np.arange(24)
    is_near = abs(places[:, None] - places) <= ROTARY.window
    for block, weights in enumerate(maps):
        expected = is_own & is_near if block in ROTARY.local_layers else is_own
        np.testing.assert_array_equal(
            np.asarray(weights) > 0, np.broadcast_to(expected, (5, 2, 24, 24))
        )


# Blocks by index, however they are run

LIKE = dataclasses.replace(ROTARY, first_norm=True)  # blocks of one structure
ALL_LOCAL = dataclasses.replace(LIKE, local_layers=(0, 1, 2))


def model_of(config, **options) -> Model:
    return Model(Encoder(config), Classifier(3, "mean"), **options)


@pytest.mark.parametrize("options", [{}, {"scan": True}, {"remat": "block"}])
def test_a_block_keeps_its_pattern_wherever_the_model_is_cut(options):
    """Blocks run one by one, as hidden states are, are those of the whole encoder and of any cut."""
    model = model_of(LIKE, **options)

    @jax.jit
    def run(tree, batch):
        states = model.hidden_states(tree, batch)
        depths = range(model.stages + 1)
        prefixes = [model.prefix(tree, batch, depth) for depth in range(1, model.stages)]
        return states, prefixes, [model.apply(tree, batch, depth=depth) for depth in depths]

    states, prefixes, outputs = run(params(model), batch())
    for state, prefix in zip(states, prefixes, strict=False):
        np.testing.assert_allclose(prefix, state, atol=1e-5)
    expected = model_of(LIKE).apply(params(model), batch())
    for output in outputs:
        np.testing.assert_allclose(output, expected, atol=1e-5)
    all_local = model_of(ALL_LOCAL).apply(params(model), batch())
    assert not np.allclose(expected, all_local, atol=1e-3)  # the window matters here


def test_states_of_a_cache_are_rotated_by_where_they_stand():
    """A batch of states says where examples begin, and no positions."""
    model = model_of(LIKE)
    hidden = model.prefix(params(model), batch(), 1)
    without = {name: array for name, array in batch().items() if name != "positions"}
    suffix = jax.jit(model.suffix, static_argnums=3)
    expected = suffix(params(model), hidden, batch(), 1)
    np.testing.assert_allclose(suffix(params(model), hidden, without, 1), expected, atol=1e-6)


# ESM's embedding

ESM = dataclasses.replace(SHALLOW["bert"], types=0, position_kind="none", pre_norm=True)
DROPPING = dataclasses.replace(ESM, token_dropout=True, mask_token=7)


def embedded(config, arrays):
    model = model_of(config)
    return np.asarray(model.prefix(params(model), arrays, 1))


def test_masked_tokens_are_zeros_and_the_others_make_up_for_them_in_their_own_example():
    tokens = ragged([np.array([3, 7, 4, 7]), np.array([5, 6, 8]), np.array([7])])
    rows, starts, _ = packing.pack(tokens.lengths, 12)
    arrays = packing.assemble(tokens, np.arange(3), rows, starts, (1, 12, 4))
    plain = embedded(ESM, arrays)
    dropped = embedded(DROPPING, arrays)
    factors = {0: 0.88 / 0.5, 1: 0.88, 2: 0.0}  # masked: half of the tokens, none, all of them
    for example, factor in factors.items():
        is_own = arrays["segments"] == example
        is_mask = is_own & (arrays["tokens"] == 7)
        assert not dropped[is_mask].any()
        others = is_own & ~is_mask
        np.testing.assert_allclose(dropped[others], factor * plain[others], rtol=1e-6)
    assert np.isfinite(dropped).all()


@pytest.mark.parametrize(
    ("config", "depth", "loops"),
    [
        (LIKE, 0, False),  # a local block between global ones
        (ROTARY, 0, False),  # a first block without a norm, too
        (LIKE, 3, True),  # the last block by itself
        (ALL_LOCAL, 0, True),
        (dataclasses.replace(LIKE, local_layers=()), 0, True),
    ],
)
def test_blocks_are_a_loop_only_where_one_pattern_serves_all(config, depth, loops):
    model = model_of(config, scan=True)
    hidden = jnp.zeros((3, 32, 16)) if depth else None
    traced = jax.make_jaxpr(model.suffix, static_argnums=3)(params(model), hidden, batch(), depth)
    has_loop = any(equation.primitive.name == "scan" for equation in traced.eqns)
    assert has_loop == loops


def test_a_loop_over_local_blocks_is_what_they_are_one_by_one():
    unrolled = model_of(ALL_LOCAL)
    looped = model_of(ALL_LOCAL, scan=True)
    tree = params(unrolled)
    expected = unrolled.apply(tree, batch())
    np.testing.assert_allclose(looped.apply(tree, batch()), expected, atol=1e-5)
