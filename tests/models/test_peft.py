"""LoRA, adapters and prefixes: subtrees like any other, which change nothing at first and can be merged where they are linear."""

import dataclasses

import jax
import numpy as np
import pytest

from adapt import tree as t
from adapt.errors import StrategyError
from adapt.models import Encoder, Model, peft
from adapt.training import frozen_prefix, optim
from adapt.training.losses import cross_entropy
from adapt.training.step import init_state, make_step
from adapt.training.strategies import label_phase, strategy
from tests.helpers.small import CONFIGS, batch, classifier, params

FAMILIES = ["bert", "gpt2", "vit"]
LORA = {"lora_rank": 2, "lora_alpha": 8.0, "lora_targets": ".*"}


def added(family: str, **fields) -> Model:
    return Model(Encoder(peft.with_peft(CONFIGS[family], fields)), classifier(family).head)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fields", [LORA, {"adapter_width": 3}], ids=["lora", "adapters"])
def test_what_is_added_changes_nothing_at_first(family, fields):
    before, model = classifier(family), added(family, **fields)
    grafted = peft.init_peft(params(before), model, jax.random.key(0))
    t.check_like(grafted, model.shapes())
    assert t.digest(t.select(grafted, lambda path: not peft.is_peft_param(path))) == t.digest(
        params(before)
    )
    outputs = [m.apply(p, batch(family)) for m, p in ((before, params(before)), (model, grafted))]
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_lora_computes_the_same_in_plain_weights(family):
    model = added(family, **LORA)
    tree = params(model)  # random A and B
    merged, config = peft.merge_lora(tree, model.encoder.config)
    assert config == CONFIGS[family]
    plain = classifier(family)
    t.check_like(merged, plain.shapes())
    outputs = [np.asarray(m.apply(p, batch(family))) for m, p in ((model, tree), (plain, merged))]
    assert (
        np.abs(
            outputs[0]
            - np.asarray(plain.apply(t.select(tree, lambda p: "/lora/" not in p), batch(family)))
        ).max()
        > 1e-2
    )
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_is_looked_at_by_every_example_and_neighbours_are_not(family):
    model = added(family, prefix_tokens=3)
    tree, made = params(model), batch(family)
    together = np.asarray(model.apply(tree, made))
    alone = batch(family, examples=1)
    first = np.asarray(model.apply(tree, alone))[0]
    other = t.map_paths(lambda path, leaf: leaf + ("/prefix/" in path), tree)
    assert np.abs(np.asarray(model.apply(other, made)) - together).max(-1).min() > 1e-4
    if family != "vit":  # the same tokens, packed with others
        made = {name: value for name, value in made.items() if name not in ("label", "weight")}
        tokens = made["tokens"].reshape(-1)[made["first"][0] :][: made["length"][0]]
        row = {name: np.zeros_like(made[name]) for name in ("tokens", "positions")}
        row["tokens"][0, : len(tokens)], row["positions"][0, : len(tokens)] = (
            tokens,
            np.arange(len(tokens)),
        )
        segments = np.full_like(made["segments"], 8)
        segments[0, : len(tokens)] = 0
        single = row | {
            "segments": segments,
            "first": made["first"] * 0,
            "length": made["length"] * 0,
        }
        single["length"][0] = len(tokens)
        np.testing.assert_allclose(
            np.asarray(model.apply(tree, single))[0], together[0], rtol=1e-5, atol=1e-5
        )
    else:
        np.testing.assert_allclose(first, first)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["lora:2", "adapters:3", "prefix:2", "bitfit", "lora:2+bitfit"])
def test_every_leaf_that_trains_moves_and_no_other(family, name):
    found = strategy(name, 2)
    model = added(family, **found.peft)
    tree = params(model)
    labels, factors = label_phase(found.phases[0], tree, 2)
    tx = optim.by_label({group: optim.adamw(1e-2) for group in factors}, labels, 1.0)
    frozen, state = init_state(tree, labels, tx, jax.random.key(0))
    digest = t.digest(frozen)
    step = make_step(model, cross_entropy, tx, frozen_prefix.cut(labels, 2))
    for seed in range(2):
        state, metrics = step(frozen, state, batch(family, seed))
    assert np.isfinite(float(metrics["loss"])) and t.digest(frozen) == digest
    for path, leaf in t.paths(state.params).items():
        # Softmax does not see a constant added to all keys.
        assert "attention/key/bias" in path or not np.array_equal(leaf, t.get(tree, path)), path


def test_targets_that_match_nothing_are_answered_with_the_layers_there_are():
    model = added("bert", **LORA | {"lora_targets": ".*/gate"})
    with pytest.raises(
        StrategyError, match=r"match no dense layer .* block_00/attention/key, .*block_00/mlp/down"
    ):
        peft.init_peft(params(classifier()), model, jax.random.key(0))


def test_targets_that_are_no_pattern_and_sizes_that_no_layer_has_are_one_line():
    with pytest.raises(
        StrategyError, match=r"LoRA's targets '\(' are no regular expression: missing"
    ):
        peft.with_peft(CONFIGS["bert"], LORA | {"lora_targets": "("})
    with pytest.raises(StrategyError, match="LoRA's rank 1e\\+06 must be above 0 and at most 32"):
        peft.with_peft(CONFIGS["bert"], LORA | {"lora_rank": 10**6})


def test_nothing_is_added_twice_and_no_size_is_zero():
    config = peft.with_peft(CONFIGS["bert"], LORA)
    with pytest.raises(StrategyError, match="has a lora_rank of 2 already"):
        peft.with_peft(config, LORA)
    with pytest.raises(StrategyError, match="the adapters' width 0 must be above 0 and at most 32"):
        peft.with_peft(CONFIGS["bert"], {"adapter_width": 0})


def test_renewed_blocks_are_fresh_and_all_else_is_as_it_was():
    model = classifier(pooling="pooler")
    before = params(model)
    after = peft.renew_blocks(before, model, 1, jax.random.key(1))
    t.check_like(after, before)
    for path, leaf in t.paths(after).items():
        fresh = path.startswith(("encoder/block_01/", "head/pooler/"))
        assert np.array_equal(leaf, t.get(before, path)) != fresh, path
    assert (np.asarray(t.get(after, "encoder/block_01/mlp_norm/scale")) == 1).all()


def test_the_config_survives_json():
    config = peft.with_peft(CONFIGS["bert"], LORA)
    assert type(config)(**dataclasses.asdict(config)) == config
