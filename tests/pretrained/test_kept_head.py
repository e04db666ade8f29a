"""A head of pre-training that is kept below a new one."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

import adapt
from adapt import tree
from adapt.comparison import comparing
from adapt.comparison.options import CompareOptions
from adapt.data import packing
from adapt.data.inputs import Columns
from adapt.errors import StrategyError
from adapt.features import settings_at, vector_settings
from adapt.finetuning import prepare
from adapt.models import (
    CausalLM,
    Classifier,
    Encoder,
    MaskedLM,
    Model,
    OnHead,
    ReplacedTokens,
    Tagger,
    example_batch,
    stages_of,
)
from adapt.options import FinetuningOptions
from adapt.pretrained import hub
from adapt.training import phases
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("own_cache")

TEXTS, LABELS = map(list, zip(*tiny.sentences(24, seed=2), strict=True))
FAST: dict[str, Any] = {"epochs": 1, "batch_size": 8, "patience": 0}


@pytest.fixture(scope="module")
def bert(inputs) -> hub.Pretrained:
    return adapt.load(inputs.checkpoint("bert_mlm_tied", blocks=1))


@pytest.fixture(scope="module")
def logits(bert) -> list[np.ndarray]:
    """The head's logits of every token, a text a row: the slow and certain way."""
    tokens, _ = bert.tokenizer.encode(TEXTS)
    rows = np.arange(len(tokens))
    shape = (len(rows), tokens.lengths.max(), len(rows))
    batch = packing.assemble(tokens, rows, rows, np.zeros_like(rows), shape)
    outputs = np.asarray(jax.jit(bert.model.apply)(bert.params, batch))
    return [outputs[row, :count] for row, count in enumerate(tokens.lengths)]


@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "last"])
def test_logits_are_pooled_over_the_tokens_of_a_text(bert, logits, pooling):
    by_hand = {
        "mean": lambda x: x.mean(0),
        "max": lambda x: x.max(0),
        "cls": lambda x: x[0],
        "last": lambda x: x[-1],
    }
    expected = [by_hand[pooling](of_text) for of_text in logits]
    found = adapt.encode(bert, TEXTS, pooling, layer="logits")
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("pooling", "of_tokens"), [("max", True), ("cls", False), ("mean", False)])
def test_logits_of_an_average_are_not_computed_for_every_token(bert, pooling, of_tokens):
    model = Model(Encoder(bert.config), OnHead.on(bert.head, "logits", pooling))
    params = jax.eval_shape(model.init, jax.random.key(0))
    program = str(jax.make_jaxpr(model.apply)(params, example_batch(bert.config)))
    vocabulary = bert.head.vocabulary
    assert f"f32[1,{vocabulary}]" in program  # of the batch's one example
    assert (f"f32[1,2,{vocabulary}]" in program) == of_tokens  # of its two tokens


def test_the_decoder_makes_the_logits_of_the_transform(bert):
    transformed = adapt.encode(bert, TEXTS, "mean", layer="transform")
    table = bert.params["encoder"]["embedding"]["token"]
    bias = bert.params["head"]["decoder"]["bias"]
    expected = adapt.encode(bert, TEXTS, "mean", layer="logits")
    np.testing.assert_allclose(transformed @ table.T + bias, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("head", "stages"),
    [
        (MaskedLM(40), ("transform", "logits")),
        (ReplacedTokens(), ("transform", "logits")),
        (CausalLM(40), ("logits",)),
        (Classifier(3, "pooler"), ("logits",)),
        (Classifier(3, "cls", hidden="tanh"), ("transform", "logits")),
        (Classifier(0, "pooler"), ()),
        (Classifier(3, layers=(0, 1)), ()),
        (Tagger(3), ()),
        (None, ()),
    ],
)
def test_a_head_has_the_stages_that_it_computes(head, stages):
    assert stages_of(head) == stages


def test_a_stage_that_is_not_there_is_refused(bert):
    headless = dataclasses.replace(bert, head=Classifier(0))
    with pytest.raises(StrategyError, match="has no logits in its head"):
        adapt.encode(headless, TEXTS, layer="logits")
    with pytest.raises(StrategyError, match="has no logits in its head"):
        adapt.finetune(headless, TEXTS, LABELS, keep_head="logits")
    with pytest.raises(StrategyError, match="pooling"):
        adapt.encode(bert, TEXTS, "pooler", layer="logits")
    with pytest.raises(StrategyError, match="`keep_head` logits goes with"):
        adapt.finetune(bert, TEXTS, LABELS, keep_head="logits", layers=(0,))


@pytest.fixture(scope="module", params=["transform", "logits"])
def run(request, bert) -> adapt.Run:
    return adapt.finetune(bert, TEXTS, LABELS, keep_head=request.param, **FAST)


def test_the_kept_head_trains_at_the_rate_of_the_encoder(run, bert):
    below = run.pretrained.params["head"]["below"]
    own = {name: bert.params["head"][name] for name in below}
    (counts,) = [phase["parameters"] for phase in run.result["phases"]]
    assert counts["head"] == tree.count(run.pretrained.params["head"]["classifier"])
    assert counts["encoder"] == tree.count(bert.params["encoder"]) + tree.count(own)
    for path, leaf in tree.paths(below).items():
        moved = np.abs(leaf - tree.paths(own)[path]).max()
        assert 0 < moved < 0.01, path
    discarded = run.result["discarded"]["shapes"]
    left = set(bert.params["head"]) - set(below)
    assert {name.split("/")[1] for name in discarded} == left


def test_a_run_with_a_kept_head_is_read_back(run, tmp_path):
    run.save(tmp_path / "run")
    again = adapt.load_run(tmp_path / "run")
    np.testing.assert_array_equal(again.predict(TEXTS).outputs, run.predict(TEXTS).outputs)


def test_a_kept_head_is_frozen_where_the_encoder_is(bert):
    run = adapt.finetune(bert, TEXTS, LABELS, keep_head="transform", strategy="frozen", **FAST)
    below = run.pretrained.params["head"]["below"]
    own = {name: bert.params["head"][name] for name in below}
    assert tree.digest(below) == tree.digest(own)


@pytest.mark.parametrize("strategy", ["full+l2sp:300", "full+mixout:0.9"])
def test_a_kept_head_is_held_to_its_pretrained_values(bert, strategy):
    fast = FAST | {"learning_rate": 1e-2}
    plain = adapt.finetune(bert, TEXTS, LABELS, keep_head="transform", **fast)
    held = adapt.finetune(bert, TEXTS, LABELS, keep_head="transform", strategy=strategy, **fast)

    def moved(run: adapt.Run) -> float:
        kernel = run.pretrained.params["head"]["below"]["transform"]["kernel"]
        return np.abs(kernel - bert.params["head"]["transform"]["kernel"]).mean()

    assert moved(held) < 0.8 * moved(plain)


def test_the_pooler_of_a_checkpoint_is_held_to_its_pretrained_values(inputs):
    pretrained = adapt.load(inputs.checkpoint("bert_bare_pooler", blocks=1))
    options = FinetuningOptions(pooling="pooler", strategy="full+l2sp:0.1")
    plan = prepare(pretrained, TEXTS, LABELS, options, columns=Columns()).plan
    (phase,) = plan.phases
    anchor = phases.with_anchor({}, phase, plan.pretrained.params)["anchor"]
    assert tree.digest(anchor["head"]) == tree.digest(pretrained.params["head"])
    assert "classifier" not in anchor["head"] and "encoder" in anchor


def test_a_head_that_pools_by_attention_goes_on_with_it(bert):
    first = adapt.finetune(bert, TEXTS, LABELS, pooling="attention", **FAST)
    logits = adapt.encode(first.pretrained, TEXTS, layer="logits")
    np.testing.assert_allclose(logits, first.predict(TEXTS).outputs, atol=1e-5)
    with pytest.raises(StrategyError, match="pools by itself, by attention: leave `pooling` out"):
        adapt.encode(first.pretrained, TEXTS, "max", layer="logits")
    shorter = adapt.drop_layers(first.pretrained, 0)  # the attention was the head's
    means = adapt.encode(first.pretrained, TEXTS, "mean")
    np.testing.assert_array_equal(adapt.encode(shorter, TEXTS), means)


def test_the_dimensions_of_a_folder_are_those_of_the_encoder_s_vectors(bert):
    embedding = dataclasses.replace(bert.embedding, dimensions=4)
    cut = dataclasses.replace(bert, embedding=embedding)
    settings = vector_settings(cut)
    assert settings_at(cut, settings, 1).dimensions == 4
    assert "dimensions" not in str(settings_at(cut, settings, "logits"))
    np.testing.assert_array_equal(
        adapt.encode(cut, TEXTS, layer="logits"), adapt.encode(bert, TEXTS, layer="logits")
    )


def test_a_classifier_is_kept_below_another(bert):
    first = adapt.finetune(bert, TEXTS, LABELS, **FAST).pretrained
    outputs = adapt.encode(first, TEXTS, layer="logits")
    assert outputs.shape == (len(TEXTS), 2)
    others = ["a", "b", "c"] * 8
    second = adapt.finetune(first, TEXTS, others, keep_head="logits", strategy="frozen", **FAST)
    head = second.pretrained.params["head"]
    assert head["classifier"]["kernel"].shape == (2, 3)
    assert tree.digest(head["below"]) == tree.digest(first.params["head"])


def test_the_head_of_an_image_classifier_is_kept_in_a_comparison(inputs):
    pictures = [np.asarray(tiny.picture(number)) for number in range(24)]
    vit = adapt.load(inputs.checkpoint("vit_classifier"))
    options = FinetuningOptions(keep_head="logits")
    compared = CompareOptions(strategies=("full",))
    prepared = comparing.prepare(vit, pictures, ["a", "b", "c"] * 8, options, compared)
    plan = comparing.trainer_of("full", prepared.material, options, compared).check()
    head = plan.params["head"]
    assert tree.digest(head["below"]) == tree.digest(vit.params["head"])
    assert head["classifier"]["kernel"].shape == (vit.head.classes, 3)
