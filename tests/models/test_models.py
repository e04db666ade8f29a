"""The model cut anywhere is the same function, and an example's output depends on that example alone."""

import dataclasses
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
from tests.helpers.small import CONFIGS, batch, classifier, inputs, params

FAMILIES = ["bert", "gpt2", "vit"]


# Cuts


@dataclasses.dataclass(frozen=True)
class Cuts:
    """What a model puts out at every depth, from 0 to its stages."""

    deterministic: list[np.ndarray]
    with_dropout: list[np.ndarray]
    from_states: list[np.ndarray]  # with dropout, from the hidden states where the suffix begins
    prefixes: list[np.ndarray]  # from depth 1 on
    hidden_states: list[np.ndarray]


@functools.cache
def cut_everywhere(family: str, seed: int) -> Cuts:
    outputs = cut_program(family)(params(classifier(family)), batch(family), jax.random.key(seed))
    return Cuts(*jax.device_get(outputs))


@functools.cache
def cut_program(family: str):
    """One program for all cuts."""
    model = classifier(family)
    depths = range(model.stages + 1)

    @jax.jit
    def run(tree, batch, key):
        states = model.hidden_states(tree, batch)
        deterministic = [model.apply(tree, batch, depth=depth) for depth in depths]
        with_dropout = [model.apply(tree, batch, key, depth) for depth in depths]
        from_states = [with_dropout[0]]
        for depth in depths[1:]:
            from_states.append(model.suffix(tree, states[depth - 1], batch, depth, key))
        prefixes = [model.prefix(tree, batch, depth) for depth in depths[1:]]
        return deterministic, with_dropout, from_states, prefixes, states

    return run


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cut_does_not_change_the_function(family):
    cuts = cut_everywhere(family, seed=0)
    for output in cuts.deterministic[1:]:
        np.testing.assert_allclose(output, cuts.deterministic[0], atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_puts_out_the_hidden_state_or_what_the_head_pools(family):
    cuts = cut_everywhere(family, seed=0)
    *prefixes, pooled = cuts.prefixes
    *states, last = cuts.hidden_states
    for prefix, state in zip(prefixes, states, strict=True):
        np.testing.assert_allclose(prefix, state, atol=1e-6)
    model = classifier(family)
    assert model.prefix_pools(model.stages)
    assert not model.prefix_pools(model.stages - 1)
    np.testing.assert_allclose(pooled, model.head.pool(last, batch(family)), atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_off_in_the_prefix_and_on_in_the_suffix(family):
    """With a cut, a key acts as if the deterministic hidden state at the cut were the input."""
    cuts = cut_everywhere(family, seed=0)
    other = cut_everywhere(family, seed=1)
    stages = classifier(family).stages
    for depth, output in enumerate(cuts.with_dropout):
        np.testing.assert_allclose(output, cuts.from_states[depth], atol=1e-6)
        has_dropout = depth < stages  # this head has none
        assert has_dropout != np.allclose(output, other.with_dropout[depth], atol=1e-4)
        assert has_dropout != np.allclose(output, cuts.deterministic[0], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_key_drops_the_same_twice(family):
    arguments = (params(classifier(family)), batch(family), jax.random.key(0))
    _, again, *_ = cut_program(family)(*arguments)
    jax.tree.map(np.testing.assert_array_equal, cut_everywhere(family, 0).with_dropout, again)


# Segments


@functools.cache
def logits(family: str):
    model = classifier(family)
    return jax.jit(lambda batch: model.apply(params(model), batch))


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_an_example_sees_neither_its_neighbours_nor_the_padding(family):
    """Bit for bit, where it lies in the same place."""
    packed = batch(family)
    before = np.asarray(logits(family)(packed))
    for example in (0, 3, 7):
        is_own = packed["segments"] == example
        others = 39 - packed["tokens"] % 39
        tokens = np.where(is_own, packed["tokens"], others).astype(np.int32)
        assert (tokens != packed["tokens"]).sum() > 50
        after = np.asarray(logits(family)(packed | {"tokens": tokens}))
        np.testing.assert_array_equal(after[example], before[example])


def test_token_types_are_read_and_missing_ones_are_0():
    packed = batch()
    zeros = np.zeros_like(packed["tokens"])
    without = logits("bert")(packed)
    # Two programs, which XLA may fuse differently: equal but for round-off.
    with_zeros = logits("bert")(packed | {"types": zeros})
    np.testing.assert_allclose(without, with_zeros, rtol=0, atol=1e-6)
    with_ones = logits("bert")(packed | {"types": zeros + 1})
    assert not np.allclose(without, with_ones, atol=1e-3)


# Attention maps


def layer_norm(x: np.ndarray, norm: dict, epsilon: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return scaled * norm["scale"] + norm["bias"]


def maps_by_numpy(model: Model, tree: dict, states: list[np.ndarray], own: np.ndarray):
    """The maps [layers, H, n, n] of the tokens ``own`` of a batch, from the states before each block."""
    c = model.encoder.config
    maps = []
    for index, state in enumerate(states[:-1]):
        block = tree["encoder"][f"block_{index:02d}"]
        x = np.asarray(state, np.float64).reshape(-1, c.width)[own]
        if c.pre_norm:
            x = layer_norm(x, block["attention_norm"], c.norm_epsilon)
        q, k = (
            (x @ layer["kernel"] + layer["bias"]).reshape(len(x), c.heads, -1)
            for layer in (block["attention"]["query"], block["attention"]["key"])
        )
        scores = np.einsum("ihk,jhk->hij", q, k) / np.sqrt(c.width // c.heads)
        if c.causal:
            scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        maps.append(weights / weights.sum(-1, keepdims=True))
    return np.stack(maps)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_maps_are_those_that_numpy_computes_example_by_example(family):
    model = classifier(family)
    tree = params(model)
    packed = batch(family, examples=5)
    maps = np.asarray(jax.jit(model.attention_maps)(tree, packed))
    states = cut_program(family)(tree, packed, jax.random.key(0))[-1]
    assert maps.dtype == np.float32
    segments = packed["segments"]
    assert maps.shape == (2, len(segments), 2, *[segments.shape[1]] * 2)
    np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-6)
    for example in range(5):
        (own,) = np.nonzero(segments.reshape(-1) == example)
        expected = maps_by_numpy(model, tree, states, own)
        row, start = divmod(own[0], segments.shape[1])
        stop = start + len(own)
        of_tokens = maps[:, row, :, start:stop]
        np.testing.assert_allclose(of_tokens[..., start:stop], expected, atol=1e-5)
        assert not of_tokens[..., :start].any() and not of_tokens[..., stop:].any()


def test_attention_maps_of_half_precision_are_float32():
    model = classifier("small").cast(jnp.bfloat16)
    (weights,) = model.attention_maps(params(model), batch())
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


# Pooling

ROWS, TOKENS, EXAMPLES, WIDTH = 3, 16, 6, 4
POOLED_BY_NUMPY = {
    "mean": lambda x: x.mean(0),
    "cls": lambda x: x[0],
    "last": lambda x: x[-1],
    "max": lambda x: x.max(0),
    "pooler": lambda x: x[0],
}


@functools.cache
def pooling(name: str):
    return jax.jit(POOLINGS[name])


@settings(max_examples=20)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=EXAMPLES), st.integers(0, 99))
def test_every_pooling_reads_its_own_tokens_alone(lengths, seed):
    """As NumPy does it example by example; without tokens an example pools to zeros."""
    lengths = np.array(lengths)
    tokens = ragged([np.ones(length, int) for length in lengths])
    rows, starts, _ = packing.pack(lengths, TOKENS)
    shape = (ROWS, TOKENS, EXAMPLES)
    packed = packing.assemble(tokens, np.arange(len(lengths)), rows, starts, shape)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((ROWS * TOKENS, WIDTH)).astype(np.float32)
    for name, by_numpy in POOLED_BY_NUMPY.items():
        pooled = np.asarray(pooling(name)(x, packed))
        assert pooled.shape == (EXAMPLES, WIDTH)
        for example in range(EXAMPLES):
            own = x[packed["segments"].reshape(-1) == example]
            expected = by_numpy(own) if len(own) else np.zeros(WIDTH)
            np.testing.assert_allclose(pooled[example], expected, atol=1e-6)


@pytest.mark.parametrize("name", POOLINGS)
def test_gradients_through_empty_slots_are_finite_and_padding_gets_none(name):
    packed = inputs(examples=2)
    x = jnp.ones((packed["segments"].size, WIDTH))
    gradient = jax.grad(lambda x: POOLINGS[name](x, packed).sum())(x)
    assert np.isfinite(gradient).all()
    is_padding = packed["segments"].reshape(-1) == len(packed["length"])
    assert not np.any(np.asarray(gradient)[is_padding])


# Heads


def head_shapes(head) -> dict[str, tuple[int, ...]]:
    shapes = Model(Encoder(CONFIGS["bert"]), head).shapes()["head"]
    return {path: leaf.shape for path, leaf in paths(shapes).items()}


@pytest.mark.parametrize("name", POOLINGS)
def test_of_the_poolings_only_the_pooler_has_weights(name):
    pooler = {"pooler/kernel": (16, 16), "pooler/bias": (16,)}
    assert head_shapes(Classifier(0, name)) == (pooler if name == "pooler" else {})


def test_a_classifier_without_bias_is_one_kernel():
    assert head_shapes(Classifier(5, "mean", bias=False)) == {"classifier/kernel": (16, 5)}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [MaskedLM, CausalLM])
def test_logits_at_targets_are_those_of_all_tokens_there(kind, tied):
    model = Model(Encoder(CONFIGS["bert"]), kind(40, tied))
    packed = inputs()
    targets = np.array([0, 5, 31, 40, 5], np.int32)

    @jax.jit
    def both(tree, targets):
        everywhere = model.apply(tree, packed)
        return everywhere, model.apply(tree, packed | {"targets": targets})

    everywhere, at_targets = both(params(model), targets)
    assert everywhere.shape == (3, 32, 40)
    assert at_targets.shape == (5, 40)
    np.testing.assert_allclose(at_targets, everywhere.reshape(-1, 40)[targets], atol=1e-6)


def test_a_tied_head_reads_the_encoders_table_and_has_none():
    model = Model(Encoder(CONFIGS["gpt2"]), CausalLM(40))
    assert model.shapes()["head"] == {}
    assert model.init_head(jax.random.key(0)) == {}

    packed = inputs("gpt2")
    unused = 39
    assert not (packed["tokens"] == unused).any()
    tree = params(model)
    embedding = tree["encoder"]["embedding"]
    table = embedding["token"].copy()
    table[unused] = 0
    zeroed = tree | {"encoder": tree["encoder"] | {"embedding": embedding | {"token": table}}}
    apply = jax.jit(model.apply)
    assert not np.any(apply(zeroed, packed)[..., unused])
    assert np.any(apply(tree, packed)[..., unused])


# Parameters


@pytest.fixture(scope="module")
def fresh():
    model = Model(Encoder(CONFIGS["small"]), MaskedLM(40, next_sentence=True))
    return model, jax.device_get(model.init(jax.random.key(0)))


def is_weight(path: str) -> bool:
    return not path.endswith(("bias", "scale"))


def test_fresh_parameters_are_float32_and_of_the_shapes_announced(fresh):
    model, tree = fresh
    check_like(tree, model.shapes(), dtypes=True)
    assert {leaf.dtype for leaf in paths(tree).values()} == {np.dtype("float32")}


def test_fresh_weights_are_normal_with_norms_the_identity_and_biases_0(fresh):
    _, tree = fresh
    for path, leaf in paths(tree).items():
        if not is_weight(path):
            np.testing.assert_array_equal(leaf, 1.0 if path.endswith("scale") else 0.0)
    weights = [leaf.ravel() for path, leaf in paths(tree).items() if is_weight(path)]
    weights = np.concatenate(weights)
    assert abs(weights.mean()) < 5 * 0.02 / np.sqrt(len(weights))
    assert weights.std() == pytest.approx(0.02, rel=0.05)


def test_another_key_gives_other_kernels_and_the_same_biases(fresh):
    model, tree = fresh
    other = jax.device_get(model.init(jax.random.key(1)))
    for path, leaf in paths(tree).items():
        if path.endswith("kernel"):
            assert not np.array_equal(leaf, get(other, path))
    head = jax.device_get(model.init_head(jax.random.key(3)))
    np.testing.assert_array_equal(head["decoder"]["bias"], 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_gives_float32_close_to_full_precision(family):
    model = classifier(family)
    half = model.cast(jnp.bfloat16)
    full = logits(family)(batch(family))
    rounded = jax.jit(half.apply)(params(model), batch(family))
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(full - rounded).max() < 0.05 * np.abs(full).max() + 0.02
    check_like(half.shapes(), model.shapes(), dtypes=True)


def test_equal_models_are_one_cache_entry():
    assert classifier() == classifier()
    assert hash(classifier()) == hash(classifier())
    assert classifier() != classifier("gpt2")
    assert classifier() != classifier(pooling="cls")


# Dropout

SIZE = 2**18


@functools.cache
def dropout_of_ones(rate: float):
    ones = jnp.ones((SIZE // 512, 512))
    return jax.jit(lambda key: Dropout(rate).apply({}, ones, False, rngs={"dropout": key}))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_dropout_drops_its_rate_everywhere_and_scales_the_rest(rate, seed):
    values = np.asarray(dropout_of_ones(rate)(jax.random.key(seed)))
    dropped = values == 0
    np.testing.assert_allclose(values[~dropped], 1 / (1 - rate), rtol=1e-6)
    sigma = np.sqrt(rate * (1 - rate))
    assert abs(dropped.mean() - rate) < 5 * sigma / np.sqrt(SIZE)
    for axis in (0, 1):  # no row and no column is favoured
        shares = dropped.mean(axis)
        sigma_of_share = sigma / np.sqrt(SIZE / len(shares))
        assert np.abs(shares - rate).max() < 6 * sigma_of_share
        assert shares.std() == pytest.approx(sigma_of_share, rel=0.2)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of two masks, in standard errors."""
    return abs(float(np.corrcoef(one, other)[0, 1])) * np.sqrt(one.size)


def test_dropout_masks_are_independent_between_places_keys_and_steps():
    keys = [jax.random.key(0), jax.random.key(1)]
    keys += [jax.random.fold_in(jax.random.key(0), step) for step in range(4)]
    for words in [(7, 1), (7, 2), (2**31, 1)]:
        keys.append(jax.random.wrap_key_data(np.array(words, np.uint32)))
    bits = jax.jit(lambda key: random_bits(key, (SIZE,)))
    masks = [np.asarray(bits(key)) < 2**31 for key in keys]
    for index, mask in enumerate(masks):
        for other in masks[:index]:
            assert correlation(mask, other) < 5
        for lag in (1, 2, 3, 4, 8, 16, 64, 512, 513, 4096):
            assert correlation(mask[:-lag], mask[lag:]) < 5
        # Runs of 8 neighbours take all 256 patterns alike: chi-squared with 255 degrees of freedom.
        patterns = np.bincount(np.packbits(mask), minlength=256)
        expected = SIZE / 8 / 256
        assert ((patterns - expected) ** 2 / expected).sum() < 255 + 5 * np.sqrt(2 * 255)


def test_without_a_rate_or_when_deterministic_nothing_is_dropped():
    x = jnp.arange(6.0)
    assert Dropout(0.0).apply({}, x, False) is x
    assert Dropout(0.5).apply({}, x, True) is x
