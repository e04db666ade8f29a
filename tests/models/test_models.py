"""The model cut anywhere is the same function; segments do not see each other; heads pool what is theirs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.data import packing
from adapt.models import POOLINGS, CausalLM, Classifier, Encoder, MaskedLM, Model
from adapt.models.layers import Dropout, random_bits
from adapt.ragged import ragged
from adapt.tree import check_like, get, paths
from tests.helpers.small import CONFIGS, batch, classifier, params

FAMILIES = ["bert", "gpt2", "vit"]


# Cuts


@functools.cache
def cut_everywhere(family: str):
    """One program for all cuts: deterministic outputs, prefixes, outputs with dropout, and hidden states."""
    model = classifier(family)

    @jax.jit
    def every(tree, made, key):
        cuts = range(model.stages + 1)
        still = [model.apply(tree, made, depth=cut) for cut in cuts]
        prefixes = [model.prefix(tree, made, cut) for cut in cuts]
        states = model.hidden_states(tree, made)
        wet = [model.apply(tree, made, key, cut) for cut in cuts]
        begun = [wet[0], *(model.suffix(tree, states[cut - 1], made, cut, key) for cut in cuts[1:])]
        return still, prefixes[1:], states, wet, begun

    return functools.partial(every, params(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cut_does_not_change_the_function(family):
    still, prefixes, states, _, _ = cut_everywhere(family)(batch(family), jax.random.key(0))
    for output in still[1:]:
        np.testing.assert_allclose(output, still[0], atol=1e-6)
    for one, other in zip(prefixes[:-1], states[:-1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    model, made = classifier(family), batch(family)
    assert model.prefix_pools(model.stages) and not model.prefix_pools(model.stages - 1)
    np.testing.assert_allclose(prefixes[-1], model.head.pool(states[-1], made), atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_off_before_the_cut_and_on_behind_it(family):
    """With a cut, the key acts as if the deterministic hidden state at the cut were the input."""
    function, made = cut_everywhere(family), batch(family)
    (still, _, _, one, begun), (_, _, _, two, _), (_, _, _, again, _) = (
        function(made, jax.random.key(key)) for key in (0, 1, 0)
    )
    for cut, (output, expected) in enumerate(zip(one, begun, strict=True)):
        np.testing.assert_allclose(output, expected, atol=1e-6)
        np.testing.assert_array_equal(output, again[cut])
        differs = not np.allclose(output, two[cut], atol=1e-4)
        assert differs == (cut < 3)  # the encoder has three stages, and this head no dropout
        assert np.allclose(output, still[0], atol=1e-5) == (cut == 3)


# Segments


@functools.cache
def features(family: str):
    model = classifier(family)
    return jax.jit(lambda made: model.apply(params(model), made))


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_an_example_does_not_see_its_neighbours_nor_the_padding(family):
    """Bit for bit, where it lies in the same place."""
    made = batch(family)
    whole = np.asarray(features(family)(made))
    for keep in (0, 3, 7):
        tokens = np.where(
            made["segments"] == keep, made["tokens"], 39 - made["tokens"] % 39
        ).astype(np.int32)
        assert (tokens != made["tokens"]).sum() > 50
        np.testing.assert_array_equal(
            features(family)(made | {"tokens": tokens})[keep], whole[keep]
        )


def test_token_types_are_read_and_without_them_all_are_0():
    made = batch()
    zeros = np.zeros_like(made["tokens"])
    function = features("bert")
    # Two programs, which XLA may fuse differently: equal but for round-off.
    np.testing.assert_allclose(function(made), function(made | {"types": zeros}), rtol=0, atol=1e-6)
    assert not np.allclose(function(made), function(made | {"types": zeros + 1}), atol=1e-3)


# Pooling

R, C, N, D = 3, 16, 6, 4
BY_HAND = {
    "mean": lambda x: x.mean(0),
    "cls": lambda x: x[0],
    "last": lambda x: x[-1],
    "max": lambda x: x.max(0),
    "pooler": lambda x: x[0],
}


@functools.cache
def pooled(name: str):
    return jax.jit(POOLINGS[name])


@settings(max_examples=20)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=N), st.integers(0, 99))
def test_every_pooling_reads_its_own_tokens_alone(lengths, seed):
    """Example by example in NumPy; an example without tokens, or an empty slot, pools to zeros."""
    lengths = np.array(lengths)
    tokens = ragged([np.ones(n, int) for n in lengths])
    rows, starts, _ = packing.pack(lengths, C)
    made = packing.assemble(tokens, np.arange(len(lengths)), rows, starts, (R, C, N))
    x = np.random.default_rng(seed).standard_normal((R * C, D)).astype(np.float32)
    for name, expected in BY_HAND.items():
        got = np.asarray(pooled(name)(x, made))
        assert got.shape == (N, D)
        for slot in range(N):
            own = x[made["segments"].reshape(-1) == slot]
            np.testing.assert_allclose(
                got[slot], expected(own) if len(own) else np.zeros(D), atol=1e-6
            )


def test_gradients_through_empty_slots_are_finite():
    made = {
        name: array for name, array in batch(examples=2).items() if name not in ("label", "weight")
    }
    x = jnp.ones((3 * 32, D))
    for name in POOLINGS:
        gradient = jax.grad(lambda x, name=name: POOLINGS[name](x, made).sum())(x)
        assert np.isfinite(gradient).all()
        owned = made["segments"].reshape(-1) < 8
        assert not np.any(np.asarray(gradient)[~owned])


# Heads


def test_every_pooling_is_a_head_of_the_right_shape_and_only_the_pooler_owns_weights():
    for name in POOLINGS:
        shapes = {
            path: leaf.shape
            for path, leaf in paths(
                Model(Encoder(CONFIGS["bert"]), Classifier(0, name)).shapes()["head"]
            ).items()
        }
        assert shapes == (
            {"pooler/kernel": (16, 16), "pooler/bias": (16,)} if name == "pooler" else {}
        )
    shapes = paths(
        Model(Encoder(CONFIGS["bert"]), Classifier(5, "mean", bias=False)).shapes()["head"]
    )
    assert {path: leaf.shape for path, leaf in shapes.items()} == {"classifier/kernel": (16, 5)}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [MaskedLM, CausalLM])
def test_logits_at_targets_are_those_of_all_tokens_at_their_places(kind, tied):
    model = Model(Encoder(CONFIGS["bert"]), kind(40, tied))
    made = {name: array for name, array in batch().items() if name not in ("label", "weight")}
    at = np.array([0, 5, 31, 40, 5], np.int32)
    both = jax.jit(
        lambda tree, some: (model.apply(tree, made), model.apply(tree, made | {"targets": some}))
    )
    every, some = both(params(model), at)
    assert every.shape == (3, 32, 40) and some.shape == (5, 40)
    np.testing.assert_allclose(some, every.reshape(-1, 40)[at], atol=1e-6)


def test_a_tied_head_reads_the_table_of_the_encoder_and_owns_none():
    model = Model(Encoder(CONFIGS["gpt2"]), CausalLM(40))
    assert model.shapes()["head"] == {} and model.init_head(jax.random.key(0)) == {}
    made = {name: array for name, array in batch("gpt2").items() if name not in ("label", "weight")}
    logits = jax.jit(model.apply)
    tree, unused = params(model), 39
    assert not (made["tokens"] == unused).any()
    token = tree["encoder"]["embedding"]["token"].copy()
    token[unused] = 0
    changed = tree | {
        "encoder": tree["encoder"] | {"embedding": tree["encoder"]["embedding"] | {"token": token}}
    }
    assert not np.any(logits(changed, made)[..., unused]) and np.any(
        logits(tree, made)[..., unused]
    )


# Parameters


def test_fresh_parameters_are_normal_with_norms_at_identity_and_biases_at_0():
    model = Model(Encoder(CONFIGS["small"]), MaskedLM(40, next_sentence=True))
    fresh = jax.device_get(model.init(jax.random.key(0)))
    check_like(fresh, model.shapes(), dtypes=True)
    assert {leaf.dtype for leaf in paths(fresh).values()} == {np.dtype("float32")}
    for path, leaf in paths(fresh).items():
        if path.endswith(("bias", "scale")):
            np.testing.assert_array_equal(leaf, 1.0 if path.endswith("scale") else 0.0)
    weights = np.concatenate(
        [leaf.ravel() for p, leaf in paths(fresh).items() if not p.endswith(("bias", "scale"))]
    )
    assert abs(weights.mean()) < 5 * 0.02 / np.sqrt(len(weights))
    assert weights.std() == pytest.approx(0.02, rel=0.05)
    other = jax.device_get(model.init(jax.random.key(1)))
    assert all(
        not np.array_equal(leaf, get(other, p))
        for p, leaf in paths(fresh).items()
        if p.endswith("kernel")
    )
    np.testing.assert_array_equal(
        jax.device_get(model.init_head(jax.random.key(3)))["decoder"]["bias"], 0
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_answers_in_float32_close_to_full_precision(family):
    model = classifier(family)
    half = model.cast(jnp.bfloat16)
    full, rounded = (
        features(family)(batch(family)),
        jax.jit(half.apply)(params(model), batch(family)),
    )
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(full - rounded).max() < 0.05 * np.abs(full).max() + 0.02
    check_like(half.shapes(), model.shapes(), dtypes=True)


def test_equal_models_are_one_cache_entry():
    assert classifier() == classifier() and hash(classifier()) == hash(classifier())
    assert classifier() != classifier("gpt2") and classifier() != classifier(pooling="cls")


# Dropout


@functools.cache
def mask(rate: float, size: int):
    return jax.jit(
        lambda key: Dropout(rate).apply(
            {}, jnp.ones((size // 512, 512)), False, rngs={"dropout": key}
        )
    )


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_dropout_drops_its_rate_everywhere_and_scales_the_rest(rate):
    size, sigma = 2**18, np.sqrt(rate * (1 - rate))
    for key in range(3):
        values = np.asarray(mask(rate, size)(jax.random.key(key)))
        dropped = values == 0
        np.testing.assert_allclose(values[~dropped], 1 / (1 - rate), rtol=1e-6)
        assert abs(dropped.mean() - rate) < 5 * sigma / np.sqrt(size)
        for axis in (0, 1):  # no row and no column is favoured
            each = dropped.mean(axis)
            assert np.abs(each - rate).max() < 6 * sigma / np.sqrt(size / len(each))
            assert each.std() == pytest.approx(sigma / np.sqrt(size / len(each)), rel=0.2)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """In standard errors."""
    return abs(float(np.corrcoef(one.ravel(), other.ravel())[0, 1])) * np.sqrt(one.size)


def test_dropout_masks_are_independent_between_places_keys_and_steps():
    size = 2**18
    bits = jax.jit(lambda key: random_bits(key, (512, size // 512)))
    keys = [
        jax.random.key(0),
        jax.random.key(1),
        *(jax.random.fold_in(jax.random.key(0), step) for step in range(4)),
    ]
    keys += [
        jax.random.wrap_key_data(np.array(words, np.uint32))
        for words in [(7, 1), (7, 2), (2**31, 1)]
    ]
    masks = [np.asarray(bits(key)).ravel() < 2**31 for key in keys]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert correlation(one, other) < 5
        for lag in (1, 2, 3, 4, 8, 16, 64, 512, 513, 4096):
            assert correlation(one[:-lag], one[lag:]) < 5
        # Runs of 8 neighbours take all 256 patterns alike: chi-squared with 255 degrees of freedom.
        patterns = np.bincount(np.packbits(one), minlength=256)
        expected = size / 8 / 256
        assert ((patterns - expected) ** 2 / expected).sum() < 255 + 5 * np.sqrt(2 * 255)


def test_no_dropout_without_rate_or_when_deterministic():
    x = jnp.arange(6.0)
    assert Dropout(0.0).apply({}, x, False) is x
    assert Dropout(0.5).apply({}, x, True) is x
