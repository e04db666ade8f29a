"""Faults of a plan are named, each planted in two ways."""

import dataclasses

import pytest

import adapt
from adapt.pretrained.sentence_files import Embedding
from tests.helpers import healthy

pytestmark = pytest.mark.usefixtures("own_cache")
TRAIN = healthy.sentences(64)


@pytest.fixture(scope="module")
def bert(inputs):
    return adapt.load(inputs.checkpoint("bert_mlm_tied", blocks=1))


@pytest.fixture
def found(bert):
    def findings(pretrained=bert, **options):
        prepared = healthy.plan(pretrained, TRAIN, **options)
        return {finding.check: finding for finding in prepared.findings}

    return findings


@pytest.mark.parametrize("strategy", ["full", "frozen", "top:1", "lora:2", "bitfit", "lp-ft"])
def test_plans_by_default_rates_are_well(found, strategy):
    assert found(strategy=strategy, epochs=2) == {}


@pytest.mark.parametrize(
    "rules",
    [
        [("head/.*", adapt.FROZEN), (".*", "encoder")],
        [("encoder/block_00/.*", "encoder"), (".*", adapt.FROZEN)],
    ],
)
def test_a_head_that_is_frozen_by_mistake(found, rules):
    from adapt.training.strategies import as_text

    finding = found(strategy=as_text([adapt.Phase(rules, epochs=3)]))["frozen_head"]
    assert finding.severity == "error" and finding.certainty == "certain"
    assert all(path.startswith("head/") for path in finding.evidence["leaves"])
    head_first = [adapt.Phase([("head/.*", "head"), (".*", adapt.FROZEN)], 1)]
    both = [*head_first, adapt.Phase(rules, epochs=2)]
    assert "frozen_head" not in found(strategy=as_text(both), epochs=3)


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "frozen", "head_learning_rate": 2e-5},
        {"head_learning_rate": 1e-5, "learning_rate": 1e-5},
    ],
)
def test_the_encoders_rate_on_the_head(found, options):
    finding = found(**options)["head_rate_too_low"]
    assert finding.evidence["rate"] == options["head_learning_rate"]
    assert finding.evidence["reach"] < 0.01
    assert "head_rate_too_low" not in found(**options | {"head_learning_rate": 1e-2})


@pytest.mark.parametrize(
    "options", [{"learning_rate": 1e-8}, {"strategy": "top:1", "learning_rate": 1e-7}]
)
def test_a_rate_that_leaves_the_encoder_as_it_was(found, options):
    finding = found(**options)["encoder_rate_too_low"]
    assert finding.evidence["update_to_weight"] < 1e-3
    assert "encoder_rate_too_low" not in found(**options, random_weights=True)
    assert "encoder_rate_too_low" not in found(**options | {"learning_rate": 2e-5})


@pytest.mark.parametrize(
    "options", [{"learning_rate": 0.1}, {"strategy": "top:1", "rate_factor": 1000.0}]
)
def test_a_rate_that_rewrites_what_was_pre_trained(found, options):
    finding = found(**options)["rate_too_high"]
    assert finding.evidence["update_to_weight"] > 0.03
    assert "rate_too_high" not in found(**options, random_weights=True)


@pytest.mark.parametrize(("own", "asked"), [("mean", "cls"), ("cls", "mean")])
def test_a_pooling_that_the_checkpoint_contradicts(found, bert, own, asked):
    """Asked for over a frozen encoder; one that trains learns it."""
    pretrained = dataclasses.replace(bert, embedding=Embedding(pooling=own))
    finding = found(pretrained, strategy="frozen", pooling=asked)["other_pooling"]
    assert finding.evidence == {"pooling": asked, "own": own}
    assert found(pretrained, strategy="frozen", pooling=own) == {}
    assert found(pretrained, pooling=asked) == {}
    assert found(pretrained, strategy="frozen") == {}


def test_a_frozen_encoder_that_is_computed_in_every_epoch(found):
    off = {"strategy": "frozen", "cache": "off"}
    assert found(**off, epochs=5)["cache_off"].evidence["epochs"] == 5
    probe_first = {"strategy": "lp-ft", "cache": "off", "epochs": 8}
    assert found(**probe_first)["cache_off"].severity == "note"
    assert found(**off, epochs=1) == {}
    assert found(cache="off", epochs=5) == {}
