"""Strategies are data: on every family each labels every parameter, and trains what its name says."""

import importlib
import itertools
import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt import tree
from adapt.errors import StrategyError
from adapt.models import Encoder, Model, peft
from adapt.training import frozen_prefix, strategies
from adapt.training.optim import FROZEN
from adapt.training.strategies import Arg, Method, Strategy, base_group, label_phase, strategy
from tests.helpers.small import CONFIGS, classifier, params

FAMILIES = ["bert", "gpt2", "vit"]
NAMES = ["frozen", "top:1", "top:2", "full"]


def trained_paths(labels: tree.Tree) -> set[str]:
    return {path for path, group in tree.paths(labels).items() if group != FROZEN}


def head_paths(model: Model) -> set[str]:
    return {path for path in tree.paths(params(model)) if path.startswith("head/")}


def trained(family: str, name: str) -> set[str]:
    model = classifier(family)
    (phase,) = strategy(name, 2).phases
    labels = tree.label(params(model), phase.rules)
    groups = tree.paths(labels)
    assert set(groups.values()) - {FROZEN} == set(phase.groups)
    assert {path for path, group in groups.items() if group == "head"} == head_paths(model)
    return trained_paths(labels)


def tree_of_blocks(layers: int) -> tuple[tree.Tree, list[str]]:
    """A tree with a leaf in the head, the embedding and every block, and the blocks' leaves."""
    blocks = [f"encoder/block_{index:02d}/mlp/up/bias" for index in range(layers)]
    leaves = ["head/bias", "encoder/embedding/token", *blocks]
    return tree.unflatten(dict.fromkeys(leaves)), blocks


# What trains


@pytest.mark.parametrize("family", FAMILIES)
def test_each_strategy_trains_strictly_more_than_the_one_before(family):
    chain = [trained(family, name) for name in NAMES]
    for one, other in itertools.pairwise(chain):
        assert one < other
    assert chain[0] == head_paths(classifier(family))
    assert chain[-1] == set(tree.paths(params(classifier(family))))


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_top_trains_the_last_blocks_the_final_norm_and_the_head(family, k):
    names = [f"encoder/block_{index:02d}/" for index in range(2 - k, 2)]
    prefixes = ("encoder/final_norm/", "head/", *names)
    paths = tree.paths(params(classifier(family)))
    assert trained(family, f"top:{k}") == {path for path in paths if path.startswith(prefixes)}
    has_final_norm = any(path.startswith("encoder/final_norm/") for path in paths)
    assert has_final_norm == CONFIGS[family].pre_norm


@pytest.mark.parametrize(("name", "cut"), [("frozen", 3), ("top:1", 2), ("top:2", 1), ("full", 0)])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_frozen_prefix_ends_where_the_strategy_begins(family, name, cut):
    labels = tree.label(params(classifier(family)), strategy(name, 2).phases[0].rules)
    assert frozen_prefix.cut(labels, 2) == cut


@pytest.mark.parametrize("name", NAMES)
def test_a_head_without_weights_is_labelled_too(name):
    encoder = tree.drop(params(classifier()), "head")
    labels = tree.label(encoder | {"head": {}}, strategy(name, 2).phases[0].rules)
    assert labels["head"] == {}


@given(st.integers(1, 60), st.integers(0, 99))
def test_top_takes_exactly_the_depths_that_exist(layers, k):
    if not 1 <= k <= layers:
        message = rf"top:{k} wants {k} blocks and the encoder has {layers}: give top:1"
        with pytest.raises(StrategyError, match=message):
            strategy(f"top:{k}", layers)
        return
    params, blocks = tree_of_blocks(layers)
    labels = tree.paths(tree.label(params, strategy(f"top:{k}", layers).phases[0].rules))
    assert [labels[path] for path in blocks] == [FROZEN] * (layers - k) + ["encoder"] * k


# For each name, which paths below "encoder/" train.
TRAINED = {
    "bitfit": r".*/bias",
    "lora:2": r"block_\d\d/attention/(query|value)/lora/[ab]",
    "rslora:2": r"block_\d\d/attention/(query|value)/lora/[ab]",
    "dora:2": r"block_\d\d/attention/(query|value)/lora/(a|b|magnitude)",
    "lora:2,8,.*/mlp/.*": r"block_\d\d/mlp/(up|down)/lora/[ab]",
    "lora:2,8,block_0[01]{1,1}/.*(query|value){1,2}": r".*(query|value)/lora/[ab]",
    "lora:2,8,block_01/.*": r"block_01.*/lora/.*",
    "adapters:3": r"block_\d\d/(attention|mlp)_(adapter|norm)/.*",
    "prefix:2": r"block_\d\d/attention/prefix/(key|value)",
    "surgical:0": r"block_00/.*",
    "surgical:0-1": r"block_.*",
    "bottom-frozen:0": r"(?!embedding/).*",
    "bottom-frozen:1": r"(block_01|final_norm)/.*",
    "lora:2+bitfit": r".*/lora/.*|.*/bias",
    "top:1+prefix:2": r"(block_01|final_norm)/.*|.*/prefix/.*",
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", TRAINED)
def test_the_head_and_what_the_name_says_trains(name, family):
    spec = strategy(name, 2)
    config = peft.with_peft(CONFIGS[family], spec.peft)
    model = Model(Encoder(config), classifier(family).head)
    labels, factors = label_phase(spec.phases[0], params(model), 2)
    groups = tree.paths(labels)
    expected = set()
    for path, group in groups.items():
        if path.startswith("head/"):
            assert group == "head"
            expected.add(path)
        elif re.fullmatch(TRAINED[name], path.removeprefix("encoder/")):
            expected.add(path)
    assert trained_paths(labels) == expected > head_paths(model)
    assert set(factors) == set(groups.values()) - {FROZEN}


@pytest.mark.parametrize(
    "names",
    [("top:1", "lora:2"), ("top:2", "lora:2", "bitfit"), ("adapters:4", "surgical:0", "bitfit")],
)
def test_joined_methods_train_the_same_in_any_order(names):
    suffixes = (
        "query/kernel",
        "query/lora/a",
        "query/bias",
        "attention_adapter/up/bias",
        "attention_norm/bias",
    )
    leaves = ["head/bias", "encoder/embedding/token", "encoder/final_norm/scale"]
    leaves += [f"encoder/block_{block:02d}/{suffix}" for block in range(2) for suffix in suffixes]
    params = tree.unflatten(dict.fromkeys(leaves))
    orders = ["+".join(order) for order in itertools.permutations(names)]
    labels = [tree.label(params, strategy(spec, 2).phases[0].rules) for spec in orders]
    assert all(other == labels[0] for other in labels)
    if "lora:2" in names:
        groups = {group for path, group in tree.paths(labels[0]).items() if "lora" in path}
        assert groups == {"lora"}


# Words that may be joined, some of which contradict others.
WORDS = [
    *("full", "frozen", "top:1", "top:2", "bottom-frozen:0", "bottom-frozen:1"),
    *("surgical:0", "surgical:0-1", "surgical:1", "bitfit", "lora:2", "adapters:3", "prefix:2"),
    *("gradual", "lp-ft", "decay:0.9", "decay:0", "reinit:1", "l2sp:0.1", "mixout:0.5", "bertadam"),
    *("top", "top:9", "best"),
]


def outcome(words: Sequence[str]) -> Strategy | str:
    """The strategy of these words, or why there is none, without the words themselves."""
    spec = "+".join(words)
    try:
        return strategy(spec, 2, 6)
    except StrategyError as error:
        return str(error).removeprefix(spec)


@given(st.lists(st.sampled_from(WORDS), min_size=2, max_size=4), st.data())
def test_words_mean_the_same_or_are_refused_alike_in_any_order(words, data):
    expected = outcome(words)
    assert outcome(data.draw(st.permutations(words))) == expected
    if isinstance(expected, str):
        return
    for family in FAMILIES:
        config = peft.with_peft(CONFIGS[family], expected.peft)
        leaves = params(Model(Encoder(config), classifier(family).head))
        for phase in expected.phases:
            assert trained_paths(label_phase(phase, leaves, 2)[0])


# Rates and phases


def test_layer_wise_decay_makes_each_stage_slower_than_the_one_above():
    model = classifier()
    labels, factors = label_phase(strategy("full+decay:0.5", 2).phases[0], params(model), 2)
    groups = tree.paths(labels)
    assert factors == {"head": 1.0, "encoder_00": 0.25, "encoder_01": 0.5, "encoder_02": 1.0}
    assert {base_group(group) for group in groups.values()} == {"head", "encoder"}
    assert groups["encoder/embedding/token"] == "encoder_00"
    assert groups["encoder/block_01/mlp/up/kernel"] == "encoder_02"

    _, factors = label_phase(strategy("top:1+decay:0.5", 2).phases[0], params(model), 2)
    assert set(factors) == {"head", "encoder_02"}


@given(st.integers(1, 12), st.integers(2, 30))
def test_gradual_goes_from_the_head_to_everything_and_only_adds(layers, epochs):
    phases = strategy("gradual", layers, epochs).phases
    params, _ = tree_of_blocks(layers)
    trained = [trained_paths(tree.label(params, phase.rules)) for phase in phases]
    assert trained[0] == {"head/bias"}
    assert trained[-1] == set(tree.paths(params))
    for one, other in itertools.pairwise(trained):
        assert one < other
    assert sum(phase.epochs for phase in phases) == epochs
    assert len(phases) == min(epochs, layers + 2)


def test_lp_ft_probes_before_what_it_is_joined_with():
    probe, after = strategy("lp-ft+lora:2", 2, 6).phases
    assert (probe.groups, probe.epochs) == (("head",), 2)
    assert (after.groups, after.epochs) == (("head", "lora"), 4)
    assert strategy("lp-ft", 2, 3).phases[1].rules == strategy("full", 2).phases[0].rules


@pytest.mark.parametrize("name", ["lp-ft", "gradual"])
def test_several_phases_need_several_epochs(name):
    with pytest.raises(StrategyError, match="`epochs` is 1"):
        strategy(name, 2, 1)


# What is refused


@pytest.mark.parametrize(
    "name", ["", "best", "tops", "top-1", "top :1", "Full", "full+", "lora:4+best"]
)
def test_an_unknown_name_is_answered_with_the_names_that_exist(name):
    message = r"unknown strategy '.*': give one of full, frozen, top:K, bottom-frozen:K"
    with pytest.raises(StrategyError, match=message):
        strategy(name, 2)


@pytest.mark.parametrize(
    "name", ["top", "top:", "top:K", "top:1.5", "top:1,2", "full:1", "lora", "decay"]
)
def test_a_missing_wrong_or_extra_value_is_answered_with_the_spelling(name):
    base = name.partition(":")[0]
    with pytest.raises(StrategyError, match=f"must be spelled {base}"):
        strategy(name, 2)


def test_optional_values_are_shown_in_brackets():
    assert strategies.STRATEGIES["lora"].spelling("lora") == "lora:RANK[,ALPHA[,TARGETS]]"
    assert Method(lambda layers, epochs, k: None, [Arg("k", int, 2)]).spelling("x") == "x[:K]"


CONTRADICTIONS = {
    "frozen+decay:0.5": "decay with frozen changes nothing",
    "full+bitfit": "full trains all that it is joined with",
    "bitfit+full": "full trains all that it is joined with",
    "frozen+lora:2": "frozen trains the head, and what it is joined with trains it too",
    "lora:2+rslora:4": "lora:2 and rslora:4 both set lora_rank",
    "lora:2+lora:4": "lora:2 and lora:4 both set lora_rank",
    "bitfit+top:1+bitfit": "bitfit trains what bitfit trains already",
    "gradual+lora:2": "gradual has phases of its own",
    "lora:2+gradual": "gradual has phases of its own",
    "gradual+lp-ft": "wants one phase to precede, and what it is joined with has 4",
    "lp-ft+lp-ft": "lp-ft is there twice",
    "decay:0.9+decay:0.8": "decay is there twice",
    "surgical:²": "no band of the blocks 0 to 1",
    "lora:4,nan": "must be spelled lora:RANK",
    "l2sp:inf": "must be spelled l2sp:STRENGTH",
    "lora:99999999999": "must be spelled lora:RANK",
    "lp-ft+frozen": "trains nothing after the probe",
    "frozen+reinit:1": "would stay frozen",
    "top:1+reinit:2": r"would stay frozen \(encoder/block_00",
    "reinit:3": "wants 3 blocks and the encoder has 2",
    "bottom-frozen:2": "leaves none of 2 blocks",
    "surgical:1-0": "no band of the blocks 0 to 1",
    "surgical:0-2": "no band of the blocks 0 to 1",
    "surgical:x": "no band of the blocks 0 to 1",
    "decay:0": "above 0 and at most 1",
    "mixout:1": "below 1",
    "l2sp:-1": "must be above 0",
    "l2sp:nan": "must be spelled l2sp",
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_is_one_line_that_names_both_sides(name):
    with pytest.raises(StrategyError, match=CONTRADICTIONS[name]) as caught:
        strategy(name, 2, 4)
    assert "\n" not in str(caught.value)


# Strategies of one's own

MODULE = '''
from __future__ import annotations

from adapt.training.strategies import MODIFIERS, STRATEGIES, Arg, Method, Strategy, single_phase


def every(layers: int, epochs: int, k: int, *, first: int = 0) -> Strategy:
    """The head and every K-th block."""
    blocks = "|".join(f"block_{index:02d}" for index in range(first, layers, k))
    return single_phase((f"encoder/({blocks})/.*", "encoder"), epochs=epochs)


def doubled(base: Strategy, layers: int) -> Strategy:
    """The phases twice."""
    return Strategy(base.phases * 2)


STRATEGIES["every"] = Method(every, [Arg("k", int)])
MODIFIERS["doubled"] = Method(doubled)
'''


def test_a_module_adds_a_strategy_and_a_modifier(tmp_path, monkeypatch):
    """Its annotations are strings: the values are read as the entry declares them."""
    (tmp_path / "my_strategies.py").write_text(MODULE, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(strategies, "STRATEGIES", strategies.STRATEGIES.copy())
    monkeypatch.setattr(strategies, "MODIFIERS", strategies.MODIFIERS.copy())
    importlib.import_module("my_strategies")

    spec = strategy("every:2+doubled", 4, 3)
    params, _ = tree_of_blocks(4)
    assert [phase.epochs for phase in spec.phases] == [3, 3]
    assert trained_paths(tree.label(params, spec.phases[0].rules)) == {
        "head/bias",
        "encoder/block_00/mlp/up/bias",
        "encoder/block_02/mlp/up/bias",
    }
    with pytest.raises(StrategyError, match="must be spelled every:K, with numbers"):
        strategy("every:two", 4)
    with pytest.raises(StrategyError, match=r"give one of .*every:K.*doubled"):
        strategy("evry:2", 4)


def test_biases_of_an_encoder_without_any_are_refused_by_the_strategy_s_name():
    params = {"encoder": {"block_00": {"kernel": np.ones(2)}}, "head": {"bias": np.ones(2)}}
    (phase,) = strategies.strategy("bitfit", 1).phases
    with pytest.raises(StrategyError, match=r"bitfit trains the biases .* has none"):
        strategies.label_phase(phase, params, 1)
