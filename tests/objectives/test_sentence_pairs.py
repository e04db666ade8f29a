"""Pairs of sentences by pretrain: the head that trains, and a run that goes on."""

import jax
import pytest

import adapt
from adapt import tree
from adapt.data import masking
from adapt.errors import StrategyError
from adapt.export.exporting import export
from adapt.objectives import OBJECTIVES
from adapt.options import ObjectiveOptions
from adapt.pretrained import hub
from tests.helpers import tiny

LINES = [line for text, _ in tiny.sentences(40) for line in (text, "the film was good", "")]
OPTIONS = {"steps": 2, "batch_size": 4, "validate_every": 1, "max_length": 20}


@pytest.fixture(scope="module")
def bert(inputs):
    return hub.load(inputs.checkpoint("bert_pretraining", 1))


def test_a_run_trains_both_heads_and_goes_on_bit_for_bit(bert, tmp_path):
    options = OPTIONS | {"objective": "next-sentence"}
    path = tmp_path / "text.txt"
    path.write_text("\n".join(LINES))
    whole = adapt.pretrain(bert, LINES, **options)
    stopped = adapt.pretrain(bert, path, out=tmp_path / "run", stop_after=1, **options)
    assert stopped.outcome == "stopped"
    again = adapt.pretrain(bert, path, out=tmp_path / "run", resume=True, **options)
    assert tree.digest(again.pretrained.params) == tree.digest(whole.pretrained.params)
    assert again.scores == whole.scores
    assert whole.result["parameters_frozen"] == 0
    result = whole.result
    assert {"masked_accuracy", "next_sentence_accuracy", "perplexity"} <= result.keys()
    total = result["masked_loss"] + result["next_sentence_loss"]
    assert result["loss"] == pytest.approx(total)
    before = tree.paths(bert.params["head"])
    for leaf in ("next_sentence/kernel", "pooler/kernel", "transform/kernel"):
        assert (tree.paths(again.pretrained.params["head"])[leaf] != before[leaf]).any()
    assert export(hub.load(tmp_path / "run"), tmp_path / "out") == "transformers"
    assert hub.read_json(tmp_path / "out", "config.json")["architectures"] == ["BertForPreTraining"]


def test_a_checkpoint_without_the_second_head_keeps_its_masked_lm(inputs):
    loaded = hub.load(inputs.checkpoint("bert_mlm_tied", 1))
    objective = OBJECTIVES["next-sentence"]
    model, params = objective.build(loaded, ObjectiveOptions(), jax.random.key(0))
    [new] = objective.new_parts(loaded, ObjectiveOptions())
    assert "has no next-sentence head: a fresh one" in new
    assert model.head.next_sentence
    kept = tree.paths(loaded.params["head"])
    made = tree.paths(params["head"])
    assert kept.keys() < made.keys()
    assert tree.digest({path: made[path] for path in kept}) == tree.digest(kept)


@pytest.mark.parametrize(
    ("case", "objective", "possible"),
    [
        ("bert_pretraining", "sentence-order", "masked, next-sentence"),
        ("bert_pretraining", "causal", "masked, next-sentence"),
        ("gpt2_bare", "next-sentence", "causal"),
        ("bert_pretraining", "guess", "unknown `objective`"),
    ],
)
def test_what_a_family_has_no_head_for_is_refused_with_what_it_has(
    inputs, case, objective, possible
):
    with pytest.raises(StrategyError, match=possible):
        adapt.pretrain(inputs.checkpoint(case, 1), LINES, objective=objective)


def test_an_option_of_another_objective_is_refused(bert):
    with pytest.raises(StrategyError, match="`generator` some is of `objective` replaced"):
        adapt.pretrain(bert, LINES, objective="next-sentence", generator="some")


def test_a_checkpoint_that_can_t_mask_is_refused_before_a_head_is_promised(
    inputs, monkeypatch, caplog
):
    monkeypatch.setattr(masking, "MASK_TOKENS", ())  # as T5's tokenizer has none
    with pytest.raises(StrategyError, match=r"no \[MASK\] token.* no objective"):
        adapt.pretrain(inputs.checkpoint("bert_bare_pooler", 1), LINES)
    assert "fresh" not in caplog.text
