"""Strategies are data: on every family, each labels every parameter, and trains what its name says."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt import tree as t
from adapt.errors import StrategyError
from adapt.models import Encoder, Model, peft
from adapt.training import frozen_prefix
from adapt.training.optim import FROZEN
from adapt.training.strategies import base_group, label_phase, strategy
from tests.helpers.small import CONFIGS, classifier, params

FAMILIES = ["bert", "gpt2", "vit"]
NAMES = ["frozen", "top:1", "top:2", "full"]


def trained(family: str, name: str) -> set[str]:
    tree = params(classifier(family))
    (phase,) = strategy(name, 2).phases
    labels = t.paths(t.label(tree, phase.rules))
    assert set(labels.values()) - {FROZEN} == set(phase.groups)
    assert {path for path, group in labels.items() if group == "head"} == {
        p for p in labels if p.startswith("head/")
    }
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
        blocks = {
            path
            for path in paths
            if path.split("/")[1] in [f"block_{i:02d}" for i in range(2 - k, 2)]
        }
        assert trained(family, f"top:{k}") == blocks | final | {
            p for p in paths if p.startswith("head/")
        }


@pytest.mark.parametrize(("name", "cut"), [("frozen", 3), ("top:1", 2), ("top:2", 1), ("full", 0)])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_frozen_prefix_ends_where_the_strategy_begins(family, name, cut):
    labels = t.label(params(classifier(family)), strategy(name, 2).phases[0].rules)
    assert frozen_prefix.cut(labels, 2) == cut


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
        with pytest.raises(
            StrategyError,
            match=rf"top:{k} wants {k} blocks and the encoder has {layers}: give top:1",
        ):
            strategy(f"top:{k}", layers)


@pytest.mark.parametrize(
    "name", ["", "best", "tops", "top-1", "top :1", "Full", "full+", "lora:4+best"]
)
def test_any_other_name_is_answered_with_those_there_are(name):
    with pytest.raises(
        StrategyError,
        match=r"unknown strategy '.*': give one of full, frozen, top:K, bottom-frozen:K",
    ):
        strategy(name, 2)


@pytest.mark.parametrize(
    "name", ["top", "top:", "top:K", "top:1.5", "top:1,2", "full:1", "lora", "decay"]
)
def test_a_number_that_is_missing_wrong_or_too_many_is_answered_with_the_spelling(name):
    base = name.partition(":")[0]
    with pytest.raises(StrategyError, match=f"must be spelled {base}"):
        strategy(name, 2)


def layer(path: str) -> str:
    return path.removeprefix("encoder/")


TRAINED = {
    "bitfit": lambda path: path.endswith("/bias"),
    "lora:2": lambda path: re.fullmatch(r"block_\d\d/attention/(query|value)/lora/[ab]", path),
    "lora:2,8,.*/mlp/.*": lambda path: re.fullmatch(r"block_\d\d/mlp/(up|down)/lora/[ab]", path),
    "lora:2,8,block_0[01]{1,1}/.*(query|value){1,2}": lambda path: re.search(
        r"(query|value)/lora/[ab]$", path
    ),
    "lora:2,8,block_01/.*": lambda path: path.startswith("block_01") and "/lora/" in path,
    "adapters:3": lambda path: re.match(r"block_\d\d/(attention|mlp)_(adapter|norm)/", path),
    "prefix:2": lambda path: re.fullmatch(r"block_\d\d/attention/prefix/(key|value)", path),
    "surgical:0": lambda path: path.startswith("block_00/"),
    "surgical:0-1": lambda path: path.startswith("block_"),
    "bottom-frozen:0": lambda path: not path.startswith("embedding/"),
    "bottom-frozen:1": lambda path: path.startswith(("block_01/", "final_norm/")),
    "lora:2+bitfit": lambda path: "/lora/" in path or path.endswith("/bias"),
    "top:1+prefix:2": lambda path: (
        path.startswith(("block_01/", "final_norm/")) or "/prefix/" in path
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", TRAINED)
def test_what_trains_is_the_head_and_what_the_name_says(name, family):
    found = strategy(name, 2)
    config = peft.with_peft(CONFIGS[family], found.peft)
    tree = params(Model(Encoder(config), classifier(family).head))
    labels, factors = label_phase(found.phases[0], tree, 2)
    groups = t.paths(labels)
    encoder = {layer(path) for path in groups if path.startswith("encoder/")}
    moving = {
        layer(path)
        for path, group in groups.items()
        if group != FROZEN and path.startswith("encoder/")
    }
    assert moving == {path for path in encoder if TRAINED[name](path)} != set()
    assert all(group == "head" for path, group in groups.items() if path.startswith("head/"))
    assert set(factors) == set(groups.values()) - {FROZEN}


def test_layer_wise_decay_is_a_group_a_stage_each_slower_than_that_above():
    tree = params(classifier())
    labels, factors = label_phase(strategy("full+decay:0.5", 2).phases[0], tree, 2)
    assert factors == {"head": 1.0, "encoder_00": 0.25, "encoder_01": 0.5, "encoder_02": 1.0}
    assert all(
        group == FROZEN or base_group(group) in ("head", "encoder")
        for group in t.paths(labels).values()
    )
    assert t.paths(labels)["encoder/embedding/token"] == "encoder_00"
    assert t.paths(labels)["encoder/block_01/mlp/up/kernel"] == "encoder_02"
    assert set(label_phase(strategy("top:1+decay:0.5", 2).phases[0], tree, 2)[1]) == {
        "head",
        "encoder_02",
    }


@given(st.integers(1, 12), st.integers(2, 30))
def test_gradual_begins_with_the_head_ends_with_everything_and_only_ever_adds(layers, epochs):
    phases = strategy("gradual", layers, epochs).phases
    names = [f"encoder/block_{index:02d}/mlp/up/bias" for index in range(layers)]
    tree = t.unflatten(dict.fromkeys(["head/bias", "encoder/embedding/token", *names]))
    found = [
        {path for path, g in t.paths(t.label(tree, phase.rules)).items() if g != FROZEN}
        for phase in phases
    ]
    assert found[0] == {"head/bias"} and found[-1] == set(t.paths(tree))
    assert all(one < other for one, other in itertools.pairwise(found))
    assert sum(phase.epochs for phase in phases) == epochs and len(phases) == min(
        epochs, layers + 2
    )


def test_lp_ft_probes_before_what_it_is_joined_with():
    probe, after = strategy("lp-ft+lora:2", 2, 6).phases
    assert (probe.groups, probe.epochs) == (("head",), 2)
    assert (after.groups, after.epochs) == (("head", "lora"), 4)
    assert strategy("lp-ft", 2, 3).phases[1].rules == strategy("full", 2).phases[0].rules


@pytest.mark.parametrize(
    "parts",
    [("top:1", "lora:2"), ("top:2", "lora:2", "bitfit"), ("adapters:4", "surgical:0", "bitfit")],
)
def test_joined_ways_train_the_same_in_any_order(parts):
    leaves = (
        "query/kernel",
        "query/lora/a",
        "query/bias",
        "attention_adapter/up/bias",
        "attention_norm/bias",
    )
    names = [f"encoder/block_{block:02d}/{leaf}" for block in range(2) for leaf in leaves]
    tree = t.unflatten(
        dict.fromkeys(["head/bias", "encoder/embedding/token", "encoder/final_norm/scale", *names])
    )
    found = [
        t.label(tree, strategy("+".join(order), 2).phases[0].rules)
        for order in itertools.permutations(parts)
    ]
    assert all(labels == found[0] for labels in found)
    if "lora:2" in parts:
        assert {group for path, group in t.paths(found[0]).items() if "lora" in path} == {"lora"}


CONTRADICTIONS = {
    "frozen+decay:0.5": "decay with frozen changes nothing",
    "full+bitfit": "trains already",
    "frozen+lora:2": "trains already",
    "lora:2+lora:4": "trains already",
    "gradual+lora:2": "gradual has phases of its own",
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


@pytest.mark.parametrize("name", ["lp-ft", "gradual"])
def test_phases_want_epochs(name):
    with pytest.raises(StrategyError, match="epochs"):
        strategy(name, 2, 1)
