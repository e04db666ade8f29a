"""Strategies are data: on every family, each labels every parameter, and trains what its name says."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import CONFIGS, classifier, params

from adapt import prefix
from adapt import tree as t
from adapt.errors import StrategyError
from adapt.optim import FROZEN
from adapt.strategies import STRATEGIES, strategy

FAMILIES = ["bert", "gpt2", "vit"]
NAMES = ["frozen", "top:1", "top:2", "full"]


def trained(family: str, name: str) -> set[str]:
    tree = params(classifier(family))
    (phase,) = strategy(name, 2).phases
    labels = t.paths(t.label(tree, phase.rules))
    assert set(labels.values()) - {FROZEN} == set(phase.groups)
    assert {path for path, group in labels.items() if group == "head"} == {p for p in labels if p.startswith("head/")}
    return {path for path, group in labels.items() if group != FROZEN}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_strategy_trains_strictly_more_than_the_one_before(family):
    chain = [trained(family, name) for name in NAMES]
    assert all(one < other for one, other in itertools.pairwise(chain))
    assert chain[0] == {p for p in t.paths(params(classifier(family))) if p.startswith("head/")}
    assert chain[-1] == set(t.paths(params(classifier(family))))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_final_norm_trains_with_the_last_block_and_the_embedding_only_with_all(family):
    paths = set(t.paths(params(classifier(family))))
    final = {path for path in paths if path.startswith("encoder/final_norm/")}
    assert bool(final) == CONFIGS[family].pre_norm
    for k in (1, 2):
        blocks = {path for path in paths if path.split("/")[1] in [f"block_{i:02d}" for i in range(2 - k, 2)]}
        assert trained(family, f"top:{k}") == blocks | final | {p for p in paths if p.startswith("head/")}


@pytest.mark.parametrize(("name", "cut"), [("frozen", 3), ("top:1", 2), ("top:2", 1), ("full", 0)])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_frozen_prefix_ends_where_the_strategy_begins(family, name, cut):
    labels = t.label(params(classifier(family)), strategy(name, 2).phases[0].rules)
    assert prefix.cut(labels, 2) == cut


@pytest.mark.parametrize("name", NAMES)
def test_a_head_without_weights_is_labelled_too(name):
    tree = t.drop(params(classifier()), "head") | {"head": {}}
    assert t.label(tree, strategy(name, 2).phases[0].rules)["head"] == {}


@given(st.integers(1, 60), st.integers(0, 99))
def test_a_depth_is_taken_exactly_where_it_exists(layers, k):
    if 1 <= k <= layers:
        (phase,) = strategy(f"top:{k}", layers).phases
        names = [f"encoder/block_{index:02d}/mlp/up/bias" for index in range(layers)]
        tree = t.unflatten(dict.fromkeys(["head/bias", "encoder/embedding/token", *names]))
        labels = t.paths(t.label(tree, phase.rules))
        assert [labels[name] for name in names] == [FROZEN] * (layers - k) + ["encoder"] * k
    else:
        with pytest.raises(StrategyError, match=rf"top:{k} wants {k} blocks and the encoder has {layers}: give top:1"):
            strategy(f"top:{k}", layers)


@pytest.mark.parametrize(
    "name", ["", "best", "top", "top:", "top:K", "top:-1", "top:1.5", "top: 1", "full:1", "full:", "Full"]
)
def test_any_other_name_is_answered_with_those_there_are(name):
    with pytest.raises(StrategyError, match=f"unknown strategy '{name}': give one of full, frozen, top:K"):
        strategy(name, 2)
    assert list(STRATEGIES) == ["full", "frozen", "top"]
