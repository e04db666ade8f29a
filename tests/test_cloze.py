"""The task cloze from end to end: what its head says, with and without training."""

import csv
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import adapt
from adapt import tree
from adapt.cli import evaluate, predict
from adapt.data.inputs import Columns
from adapt.errors import StrategyError
from adapt.finetuning import prepare
from adapt.fitting import Plan
from adapt.models import CausalLM, MaskedLM
from adapt.options import FinetuningOptions
from adapt.training import phases
from adapt.training.optim import FROZEN
from tests.helpers import prompts, tiny

pytestmark = pytest.mark.usefixtures("own_cache")

TEMPLATE = "{text} . it was [MASK] ."
WORDS = {"positive": ["good", "film"], "negative": "bad"}
TEXTS = [
    f"{first} {word}" for word in ("good", "bad") for first in ("a film", "it was", "end", "a")
]
LABELS = ["positive"] * 4 + ["negative"] * 4


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    """A model of one block."""
    folder = tmp_path_factory.mktemp("models") / "bert"
    prompts.checkpoint(folder, "bert_mlm_tied")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | tiny.keep_blocks(folder, 1)))
    return str(folder)


@pytest.mark.parametrize("case", prompts.CASES, ids=lambda case: case.name)
def test_packed_prompts_say_what_transformers_says_of_each_alone(case, tmp_path):
    folder = prompts.checkpoint(tmp_path / "model", case.name)
    run = adapt.zero_shot(folder, case.template, prompts.WORDS_OF_CLASSES)
    found = run.predict(prompts.TEXTS)
    expected = np.load(prompts.RECORDED)[f"{case.name}/logits"]
    np.testing.assert_allclose(found.outputs, expected, atol=1e-4)
    assert found.classes == ("positive", "negative")
    assert list(found.labels) == [found.classes[column] for column in expected.argmax(-1)]


@pytest.mark.parametrize("head", [MaskedLM(40), MaskedLM(40, tied=False), CausalLM(40, False)])
def test_the_logits_of_words_are_those_of_the_whole_vocabulary(head):
    rng = np.random.default_rng(0)
    x, table = rng.normal(size=(1, 2, 8)), rng.normal(size=(40, 8))
    kept = head.clone(word_tokens=((3, 5), (7,)))
    batch = {"targets": np.array([1, 0])}
    params = kept.init(jax.random.key(0), x, batch, table)
    params = jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape), params)
    whole = head.apply(params, x, batch, table)
    by_class = np.stack([whole[:, [3, 5]].mean(-1), whole[:, 7]], -1)
    np.testing.assert_allclose(kept.apply(params, x, batch, table), by_class, atol=1e-4)
    assert kept.whole() == head


def plan_of(bert: str, strategy: str) -> Plan:
    """How a strategy trains a cloze."""
    options = FinetuningOptions(
        checkpoint=bert,
        task="cloze",
        strategy=strategy,
        template=TEMPLATE,
        verbalizer="positive=good,negative=bad",
    )
    return prepare(bert, TEXTS, LABELS, options, columns=Columns()).plan


@pytest.mark.parametrize(
    ("strategy", "trains", "rate"),
    [
        ("full", {"encoder/embedding", "encoder/block_00", "head/transform"}, 1e-4),
        ("frozen", {"head/transform", "head/norm", "head/decoder"}, 1e-3),
        ("top:1", {"encoder/block_00", "head/transform"}, 1e-4),
        ("bitfit", {"encoder/block_00", "head/transform"}, 1e-4),
        ("lora:2", {"encoder/block_00", "head/transform"}, 1e-4),
    ],
)
def test_a_strategy_goes_on_with_the_head_of_pre_training(bert, strategy, trains, rate):
    """Its weights are those of the checkpoint, and it trains at the rate of what is pre-trained."""
    plan = plan_of(bert, strategy)
    before = adapt.load(bert).params["head"]
    assert tree.digest(plan.params["head"]) == tree.digest(before)
    assert plan.discarded["parameters"] == 0
    (phase,) = plan.phases
    paths = [path for path, group in tree.paths(phase.labels).items() if group != FROZEN]
    assert trains <= {"/".join(path.split("/")[:2]) for path in paths}
    assert phase.groups["head"].peak_rate == pytest.approx(rate)


@pytest.mark.parametrize("strategy", ["full+l2sp:0.1", "frozen+mixout:0.5"])
def test_a_regularizer_holds_the_head_to_its_pretrained_values(bert, strategy):
    plan = plan_of(bert, strategy)
    (phase,) = plan.phases
    inputs = phases.with_anchor({}, phase, plan.pretrained.params)
    anchor = tree.paths(inputs["anchor"])
    assert anchor.keys() == set(phases.trained_paths(phase.labels))
    before = tree.paths(adapt.load(bert).params)
    np.testing.assert_array_equal(anchor["head/transform/kernel"], before["head/transform/kernel"])


def test_what_a_head_has_for_another_objective_is_discarded(tmp_path):
    """Nothing reaches it: trained on, it would decay to nothing."""
    folder = str(tiny.checkpoint(tmp_path / "model", "bert_pretraining"))
    words = "positive=good,negative=bad"
    options = FinetuningOptions(
        checkpoint=folder, task="cloze", template="{text} was [MASK]", verbalizer=words
    )
    plan = prepare(folder, TEXTS, LABELS, options, columns=Columns()).plan
    discarded = {path.split("/")[1] for path in plan.discarded["shapes"]}
    assert discarded == {"pooler", "next_sentence"}
    assert plan.params["head"].keys() == {"transform", "norm", "decoder"}


@pytest.mark.slow
def test_a_run_keeps_its_prompt_and_predicts_evaluates_and_exports(bert, tmp_path):
    out = tmp_path / "run"
    run = adapt.finetune(
        bert,
        TEXTS * 2,
        LABELS * 2,
        validation=(TEXTS, LABELS),
        task="cloze",
        template=TEMPLATE,
        verbalizer=WORDS,
        strategy="top:1",
        epochs=1,
        learning_rate=1e-2,
        batch_size=8,
        out=out,
    )
    again = adapt.load_run(out)
    assert again.pretrained.head == run.pretrained.head
    assert again.pretrained.head.template == TEMPLATE
    before = run.predict(TEXTS[:5])
    np.testing.assert_array_equal(again.predict(TEXTS[:5]).outputs, before.outputs)
    scores = again.evaluate(TEXTS, LABELS)
    assert scores == pytest.approx(run.scores["validation"], abs=1e-5)
    assert again.arguments["template"] == TEMPLATE

    assert again.export(tmp_path / "out") == "transformers"
    exported = adapt.load(tmp_path / "out")
    assert exported.head == run.pretrained.head.whole()
    card = (tmp_path / "out" / "README.md").read_text()
    assert TEMPLATE in card and "- positive: good (5), film (7)" in card
    zero_shot = adapt.zero_shot(exported, TEMPLATE, WORDS)
    np.testing.assert_allclose(zero_shot.predict(TEXTS[:5]).outputs, before.outputs, atol=1e-5)


def test_a_run_without_training_is_saved_and_keeps_the_type_of_its_classes(bert, tmp_path):
    run = adapt.zero_shot(bert, TEMPLATE, {1: "good", 0: "bad"})
    run.save(tmp_path / "saved")
    again = adapt.load_run(tmp_path / "saved")
    assert set(again.predict(["a film"]).labels) <= {0, 1}
    assert "zero-shot" in repr(again)


def test_commands_take_a_checkpoint_with_a_prompt_for_a_run(bert, tmp_path):
    data = tiny.write_table(tmp_path / "data.csv", zip(TEXTS, LABELS, strict=True))
    prompt = {"template": TEMPLATE, "verbalizer": "positive=good,negative=bad"}
    scores = evaluate.main(evaluate.Config(run=Path(bert), data=str(data), **prompt))
    out = tmp_path / "out.csv"
    predict.main(predict.Config(run=(Path(bert),), data=str(data), out=out, **prompt))
    rows = list(csv.DictReader(out.read_text().splitlines()))
    right = [row["prediction"] == label for row, label in zip(rows, LABELS, strict=True)]
    assert scores["accuracy"] == pytest.approx(np.mean(right)) and scores["run"] == bert


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"good": 1, "bad": "bad"}, "`verbalizer`: good has 1"),
        ({"good": None, "bad": "bad"}, "`verbalizer`: good has None"),
        ({"good": ["good", 2], "bad": "bad"}, "`verbalizer`: good has"),
        ({1: "good", "1": "bad"}, "`verbalizer` names the class '1' twice"),
    ],
)
def test_words_that_are_none_are_refused_by_their_class(words, named):
    with pytest.raises(StrategyError, match=named):
        adapt.zero_shot("tiny-bert", TEMPLATE, words)


def test_commands_refuse_half_a_prompt():
    config = evaluate.Config(run=Path("tiny-bert"), data="reviews", template=TEMPLATE)
    with pytest.raises(StrategyError, match="`verbalizer`"):
        evaluate.main(config)
