"""LoRA, adapters and prefixes: subtrees like any other, neutral at first and mergeable where they are linear."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from adapt import tree
from adapt.errors import StrategyError
from adapt.models import Encoder, EncoderConfig, Model, peft
from adapt.models.layers import LowRank
from adapt.models.quantised import Kernel
from adapt.training import frozen_prefix, optim
from adapt.training.losses import cross_entropy
from adapt.training.step import init_state, make_step
from adapt.training.strategies import label_phase, strategy
from tests.helpers.small import CONFIGS, SHALLOW, batch, classifier, inputs, params

FAMILIES = ["bert", "gpt2", "vit"]
LORA = {"lora_rank": 2, "lora_alpha": 8.0, "lora_targets": ".*"}
DORA = LORA | {"lora_magnitudes": True, "lora_stabilised": True}


def with_peft(family: str, configs=CONFIGS, **fields) -> Model:
    return Model(Encoder(peft.with_peft(configs[family], fields)), classifier(family).head)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fields", [LORA, {"adapter_width": 3}], ids=["lora", "adapters"])
def test_fresh_lora_and_adapters_change_no_output(family, fields):
    plain = classifier(family)
    model = with_peft(family, **fields)
    grafted = peft.init_peft(params(plain), model, jax.random.key(0))
    tree.check_like(grafted, model.shapes())
    pretrained = tree.select(grafted, lambda path: not peft.is_peft_param(path))
    assert tree.digest(pretrained) == tree.digest(params(plain))
    expected = plain.apply(params(plain), batch(family))
    np.testing.assert_array_equal(model.apply(grafted, batch(family)), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_lora_computes_the_same_in_plain_weights(family):
    model = with_peft(family, **LORA)
    plain = classifier(family)
    trained = params(model)  # A and B are random
    merged, config = peft.merge_lora(trained, model.encoder.config)
    assert config == CONFIGS[family]
    tree.check_like(merged, plain.shapes())

    with_lora = np.asarray(model.apply(trained, batch(family)))
    without = tree.select(trained, lambda path: "/lora/" not in path)
    assert np.abs(with_lora - plain.apply(without, batch(family))).max() > 1e-2
    np.testing.assert_allclose(with_lora, plain.apply(merged, batch(family)), rtol=1e-5, atol=1e-5)


def test_lora_and_a_prefix_fit_keys_and_values_that_heads_share():
    """One program: with fresh updates and with trained ones, merged, and with a trained prefix."""
    plain = classifier("grouped")
    with_lora = with_peft("grouped", **LORA)
    with_prefix = with_peft("grouped", prefix_tokens=3)
    trained = params(with_lora)
    merged, _ = peft.merge_lora(trained, with_lora.encoder.config)
    attention = "encoder/block_00/attention"
    assert tree.get(trained, f"{attention}/key/lora/b").shape == (2, 16)
    assert tree.get(params(with_prefix), f"{attention}/prefix/key").shape == (3, 16)
    moved = tree.map_paths(lambda path, leaf: leaf + ("/prefix/" in path), params(with_prefix))

    @jax.jit
    def outputs(trained, merged, *prefixes):
        prefixed = [with_prefix.apply(params, batch("grouped")) for params in prefixes]
        unmerged = with_lora.apply(trained, batch("grouped"))
        return unmerged, plain.apply(merged, batch("grouped")), *prefixed

    unmerged, by_merging, before, after = outputs(trained, merged, params(with_prefix), moved)
    np.testing.assert_allclose(unmerged, by_merging, rtol=1e-4, atol=1e-4)
    assert np.abs(after - before).max(-1).min() > 1e-4
    kinds = {path.split("/")[-3] for path in tree.paths(trained) if path.endswith("lora/a")}
    assert kinds == {"query", "key", "value", "output", "gate", "up", "down"}


def test_rslora_and_dora_begin_as_they_are_merged_and_are_what_their_papers_say():
    """Of a layer: m (W + alpha / sqrt(r) A B) / |W + alpha / sqrt(r) A B|, by columns."""
    plain = classifier()
    model = with_peft("bert", **DORA)
    fresh = peft.init_peft(params(plain), model, jax.random.key(0))
    trained = params(model)  # A and B and the lengths are random
    merged, config = peft.merge_lora(trained, model.encoder.config)
    assert config == CONFIGS["bert"]
    kernel, low_rank = (
        tree.get(trained, f"encoder/block_00/mlp/up/{name}") for name in ("kernel", "lora")
    )
    directed = kernel + 8 / np.sqrt(2) * low_rank["a"] @ low_rank["b"]
    expected = low_rank["magnitude"] * directed / np.linalg.norm(directed, axis=0)
    found = tree.get(merged, "encoder/block_00/mlp/up/kernel")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    apply = jax.jit(type(model).apply, static_argnums=0)
    of_plain = [apply(plain, tree, batch("bert")) for tree in (params(plain), merged)]
    of_dora = [apply(model, tree, batch("bert")) for tree in (fresh, trained)]
    np.testing.assert_allclose(of_dora, of_plain, rtol=1e-4, atol=1e-4)


def test_a_column_of_zeros_stays_one_by_dora_and_has_a_gradient():
    """Pruning leaves such columns, whose length is 0."""
    kernel = np.array([[3.0, 0.0], [4.0, 0.0]], np.float32)
    low_rank = {
        "a": np.ones((2, 1), np.float32),
        "b": np.zeros((1, 2), np.float32),
        "magnitude": np.array([10.0, 0.0], np.float32),
    }
    layer = LowRank(2, 2, 1, 1.0, magnitudes=True)
    x = np.ones((1, 2), np.float32)

    def added(params):
        return layer.apply({"params": params}, x, Kernel(kernel, None))[0]

    np.testing.assert_allclose(added(low_rank), [7.0, 0.0], rtol=1e-6)
    gradient = jax.grad(lambda params: added(params).sum())(low_rank)
    assert all(np.isfinite(leaf).all() for leaf in gradient.values())
    config = peft.with_peft(CONFIGS["bert"], DORA)
    params = {"encoder": {"dense": {"kernel": kernel, "lora": low_rank}}}
    merged, _ = peft.merge_lora(params, config)
    np.testing.assert_allclose(tree.get(merged, "encoder/dense/kernel"), 2 * kernel, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_example_attends_to_the_prefix(family):
    model = with_peft(family, prefix_tokens=3)
    before = np.asarray(model.apply(params(model), batch(family)))
    moved = tree.map_paths(lambda path, leaf: leaf + ("/prefix/" in path), params(model))
    after = np.asarray(model.apply(moved, batch(family)))
    assert np.abs(after - before).max(-1).min() > 1e-4


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_with_a_prefix_an_example_still_sees_no_neighbours(family):
    model = with_peft(family, prefix_tokens=3)
    packed = inputs(family)
    alone = only_first_example(packed)
    together = model.apply(params(model), packed)
    by_itself = model.apply(params(model), alone)
    np.testing.assert_allclose(by_itself[0], together[0], rtol=1e-5, atol=1e-5)


def only_first_example(packed):
    """The same batch with its first example alone, at the beginning of the first row."""
    length = packed["length"][0]
    is_own = slice(packed["first"][0], packed["first"][0] + length)
    alone = {name: np.zeros_like(array) for name, array in packed.items()}
    alone["tokens"][0, :length] = packed["tokens"].reshape(-1)[is_own]
    alone["positions"][0, :length] = np.arange(length)
    alone["segments"][:] = len(packed["length"])
    alone["segments"][0, :length] = 0
    alone["length"][0] = length
    return alone


ADDING = ["lora:2", "adapters:3", "prefix:2", "bitfit", "lora:2+bitfit"]


@pytest.mark.parametrize(
    ("family", "name"), [*itertools.product(FAMILIES, ADDING), ("bert", "dora:2")]
)
def test_every_parameter_that_trains_moves_and_no_other(family, name):
    spec = strategy(name, 1)
    model = with_peft(family, SHALLOW, **spec.peft)
    before = params(model)
    labels, factors = label_phase(spec.phases[0], before, 1)
    tx = optim.by_label({group: optim.adamw(1e-2) for group in factors}, labels, 1.0)
    frozen, state = init_state(before, labels, tx, jax.random.key(0))
    frozen_digest = tree.digest(frozen)
    step = make_step(model, cross_entropy, tx, frozen_prefix.cut(labels, 1))
    for seed in range(2):
        state, metrics = step(frozen, state, batch(family, seed))
    assert np.isfinite(float(metrics["loss"]))
    assert tree.digest(frozen) == frozen_digest
    for path, leaf in tree.paths(state.params).items():
        if "attention/key/bias" not in path:  # softmax does not see a constant added to all keys
            assert not np.array_equal(leaf, tree.get(before, path)), path


def test_renewed_blocks_are_fresh_and_all_else_is_as_it_was():
    model = classifier(pooling="pooler")
    before = params(model)
    after = peft.renew_blocks(before, model, 1, jax.random.key(1))
    tree.check_like(after, before)
    for path, leaf in tree.paths(after).items():
        is_fresh = path.startswith(("encoder/block_01/", "head/pooler/"))
        assert np.array_equal(leaf, tree.get(before, path)) != is_fresh, path
    assert (np.asarray(tree.get(after, "encoder/block_01/mlp_norm/scale")) == 1).all()


def test_targets_that_match_nothing_are_answered_with_the_layers_there_are():
    model = with_peft("bert", **LORA | {"lora_targets": ".*/gate"})
    message = r"by its whole path, as \.\*/key does: it has block_00/attention/key, .*/mlp/down"
    with pytest.raises(StrategyError, match=message):
        peft.init_peft(params(classifier()), model, jax.random.key(0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (LORA | {"lora_targets": "("}, r"LoRA's targets '\(' are no regular expression: missing"),
        (LORA | {"lora_rank": 10**6}, r"LoRA's rank 1e\+06 must be above 0 and at most 32"),
        ({"adapter_width": 0}, "the adapters' width 0 must be above 0 and at most 32"),
    ],
)
def test_fields_that_fit_no_encoder_are_refused(fields, message):
    with pytest.raises(StrategyError, match=message):
        peft.with_peft(CONFIGS["bert"], fields)


def test_nothing_is_added_twice():
    config = peft.with_peft(CONFIGS["bert"], LORA)
    with pytest.raises(StrategyError, match="has a lora_rank of 2 already"):
        peft.with_peft(config, LORA)


def test_the_config_survives_json():
    config = peft.with_peft(CONFIGS["bert"], LORA)
    assert EncoderConfig(**dataclasses.asdict(config)) == config
