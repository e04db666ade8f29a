"""Runs on long texts: what a run was trained with it predicts with, and no command or task ignores the rule."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

import adapt
from adapt import finetuning, tree
from adapt.cli import export, finetune, launch, predict
from adapt.data import examples
from adapt.errors import ExportError, OutputError, StrategyError
from adapt.models import Classifier
from adapt.options import FinetuningOptions
from adapt.predicting import predict_table
from adapt.pretrained import hub
from adapt.training.loop import evaluate
from adapt.training.step import make_eval
from tests.helpers import tiny
from tests.helpers.long_texts import LABELS, SHORT, TEXTS

pytestmark = pytest.mark.usefixtures("own_cache")

FAST = {"epochs": 2, "batch_size": 8, "patience": 0}


@pytest.fixture(scope="module")
def bert(inputs) -> hub.Pretrained:
    return adapt.load(inputs.checkpoint("bert_bare_pooler", blocks=1))


@pytest.fixture
def run(bert):
    def finetuned(long, texts=TEXTS, **options):
        return adapt.finetune(bert, texts, LABELS, long=long, **FAST | options)

    return finetuned


@pytest.mark.parametrize("long", ["head+tail", "windows"])
@pytest.mark.parametrize("strategy", ["full", "frozen", "lora:2"])
def test_a_run_predicts_by_the_rule_that_it_was_trained_with(run, long, strategy, tmp_path):
    trained = run(long, strategy=strategy, out=tmp_path / "run", test=(TEXTS, LABELS))
    again = adapt.load_run(tmp_path / "run")
    assert again.pretrained.tokenizer.long == long
    assert json.loads((tmp_path / "run/config.json").read_text())["used"]["long"] == long
    predictions = again.predict(TEXTS)
    np.testing.assert_array_equal(predictions.outputs, trained.predict(TEXTS).outputs)
    accuracy = np.mean(predictions.labels == np.array(LABELS))
    assert accuracy == pytest.approx(trained.scores["test"]["accuracy"])
    assert again.evaluate(TEXTS, LABELS)["accuracy"] == pytest.approx(accuracy)
    # The head on the vectors of encode, which are by the same rule.
    head = again.pretrained.params["head"]["classifier"]
    by_hand = again.encode(TEXTS) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(predictions.outputs, by_hand, rtol=1e-4, atol=1e-5)
    counts = trained.result["long"]["test"]
    assert counts["texts"] == predictions.long.texts == 4
    assert (counts["windows"] > 0) == (long == "windows")
    assert (counts["tokens_left_out"] > 0) == (long == "head+tail")
    assert trained.result["truncated"]["test"] == (4 if long == "head+tail" else 0)


def test_in_training_the_outputs_of_a_batch_are_those_of_an_evaluation(bert):
    """All windows of a text are in one batch; in an evaluation they come one by one."""
    part = examples.from_texts(hub.with_long(bert, "windows"), [TEXTS], np.arange(30) % 2)
    model = dataclasses.replace(bert.model, head=Classifier(3, "mean"))
    params = bert.params | {"head": model.init_head(jax.random.key(0))}
    expected = evaluate(make_eval(model), params, part.eval_batches(), 30)
    part = dataclasses.replace(part, labels=np.arange(30, dtype=np.int32))
    shapes = part.batch_shapes(6, seed=0, epochs=1, accumulate=2)
    seen = []
    for step in part.batches(shapes, seed=0, epoch=0, accumulate=2):
        for number in range(2):
            batch = {name: array[number] for name, array in step.items()}
            outputs = np.asarray(model.apply(params, batch))
            assert outputs.shape == (6, 3)
            real = batch["weight"] > 0
            labels = batch["label"][real]
            np.testing.assert_allclose(outputs[real], expected[labels], rtol=1e-4, atol=1e-5)
            seen += labels.tolist()
    assert sorted(seen) == list(range(30))


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler", "attention"])
def test_the_cache_of_windows_changes_no_result(run, pooling):
    runs = {}
    for cache in ("on", "off"):
        runs[cache] = run("windows", strategy="frozen", pooling=pooling, cache=cache)
    np.testing.assert_allclose(
        runs["on"].predict(TEXTS).outputs, runs["off"].predict(TEXTS).outputs, rtol=1e-3, atol=1e-4
    )


def test_short_texts_make_the_same_run_by_every_rule(run):
    digests = set()
    for long in ("head", "head+tail", "windows"):
        digests.add(tree.digest(run(long, SHORT, strategy="top:1").pretrained.params))
    assert len(digests) == 1


def test_texts_that_are_read_in_another_way_are_other_data(bert):
    found = {}
    for long in ("head", "head+tail", "windows"):
        options = FinetuningOptions(**FAST, long=long)
        prepared = finetuning.prepare(bert, TEXTS, LABELS, options)
        found[long] = prepared.data.sets["train"]
    assert len({part.digest for part in found.values()}) == 3
    assert len({part.file_sequences.digest for part in found.values()}) == 3


def test_a_run_goes_on_by_its_own_rule_only(run, tmp_path):
    out = tmp_path / "run"
    whole = run("windows", strategy="frozen")
    run("windows", strategy="frozen", out=out, stop_after=4)
    with pytest.raises(OutputError, match="`long` was 'windows'"):
        run("head", strategy="frozen", out=out, resume=True)
    resumed = run("windows", strategy="frozen", out=out, resume=True)
    assert tree.digest(resumed.pretrained.params) == tree.digest(whole.pretrained.params)


def test_config_json_makes_the_same_run_again(inputs, tmp_path):
    table = str(tiny.write_table(tmp_path / "texts.csv", zip(TEXTS, LABELS, strict=True)))
    flags = FAST | {"checkpoint": inputs.checkpoint("bert_bare_pooler", blocks=1), "train": table}
    finetune.main(finetune.Config(**flags, long="head+tail", out=tmp_path / "run"))
    first = adapt.load_run(tmp_path / "run")
    assert first.settings["long"] == "head+tail"
    again = adapt.finetune(**first.arguments)
    assert tree.digest(again.pretrained.params) == tree.digest(first.pretrained.params)


def test_predict_says_by_which_rule_it_read(inputs, tmp_path, capsys):
    table = str(tiny.write_table(tmp_path / "texts.csv", zip(TEXTS, LABELS, strict=True)))
    flags = FAST | {"checkpoint": inputs.checkpoint("bert_bare_pooler", blocks=1), "train": table}
    finetune.main(finetune.Config(**flags, long="windows", out=tmp_path / "run"))
    assert "note: train: 4 texts are longer than 12 tokens and cut into" in capsys.readouterr().err
    predict.main(predict.Config(run=(tmp_path / "run",), data=table, out=tmp_path / "out.csv"))
    assert "4 texts are longer than 12 tokens and cut into" in capsys.readouterr().err


@pytest.mark.parametrize("long", ["head+tail", "windows"])
def test_a_comparison_reads_by_the_rule(bert, long):
    found = adapt.compare(
        bert,
        TEXTS,
        LABELS,
        test=(TEXTS, LABELS),
        strategies=("probe", "frozen", "full"),
        rates=(1,),
        seeds=1,
        epochs=1,
        batch_size=8,
        min_steps=2,
        long=long,
    )
    assert found.summary()["long"]["test"]["texts"] == 4
    assert len(found.rows) == 3


@pytest.mark.parametrize("long", ["head+tail", "windows"])
def test_contrastive_texts_are_read_by_the_rule(bert, long):
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    options = {"task": "contrastive", "epochs": 1, "batch_size": 8, "long": long}
    trained = adapt.finetune(bert, pairs, None, **options)
    assert trained.result["long"]["train"]["texts"] == 8


# Refusals


WORDS = [text.split() for text in SHORT]
REFUSED = {
    "tags": ("head+tail", WORDS, [["x"] * len(words) for words in WORDS], {"task": "tags"}),
    "tags in windows": (
        "windows",
        WORDS,
        [["x"] * len(words) for words in WORDS],
        {"task": "tags"},
    ),
    "span": ("head+tail", SHORT, [[0, 3]] * 30, {"task": "span"}),
    "pairs": ("windows", list(zip(SHORT, SHORT, strict=True)), LABELS, {}),
    "choices": (
        "windows",
        list(zip(SHORT, SHORT, SHORT, strict=True)),
        [0, 1] * 15,
        {"task": "choice"},
    ),
    "another word": ("tail", SHORT, LABELS, {}),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_a_rule_does_not_go_with_is_refused_by_name(bert, mistake):
    long, texts, labels, options = REFUSED[mistake]
    with pytest.raises(StrategyError, match="`long`"):
        adapt.finetune(bert, texts, labels, long=long, **FAST | options)


@pytest.mark.parametrize("call", [adapt.finetune, adapt.compare, adapt.plan, adapt.probe])
def test_every_door_refuses_windows_of_pairs_and_what_is_no_rule(bert, call):
    pairs = list(zip(SHORT, SHORT, strict=True))
    with pytest.raises(StrategyError, match="`long` windows is for single texts"):
        call(bert, pairs, LABELS, long="windows")
    with pytest.raises(
        StrategyError, match="`long` is 'tail': give one of head, head\\+tail, windows"
    ):
        call(bert, SHORT, LABELS, long="tail")


def test_pictures_have_no_long_texts(inputs):
    vit = inputs.checkpoint("vit_classifier")
    pictures = [np.asarray(tiny.picture(number)) for number in range(12)]
    with pytest.raises(StrategyError, match="`long` head\\+tail is of texts"):
        adapt.finetune(vit, pictures, ["a", "b"] * 6, long="head+tail")
    with pytest.raises(StrategyError, match="`long`"):
        adapt.probe(vit, pictures, ["a", "b"] * 6, long="windows")


@pytest.mark.parametrize("long", ["head+tail", "windows"])
def test_an_export_reads_heads_only_where_one_says_so(run, long, tmp_path):
    trained = run(long, strategy="frozen", pooling="mean")
    with pytest.raises(ExportError, match="`long`"):
        trained.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    trained.export(tmp_path / "out", long="head")
    assert (tmp_path / "out/modules.json").exists()


def test_the_command_exports_with_the_flag(run, tmp_path):
    run("head+tail", strategy="frozen", pooling="mean", out=tmp_path / "run")
    flags = {"run": str(tmp_path / "run"), "out": tmp_path / "out"}
    with pytest.raises(ExportError, match="`long`"):
        export.main(export.Config(**flags))
    export.main(export.Config(**flags, long="head"))
    assert (tmp_path / "out/modules.json").exists()


def test_runs_that_read_in_different_ways_do_not_predict_together(run):
    runs = {long: run(long, strategy="frozen") for long in ("head", "windows")}
    named = []
    for long, trained in runs.items():
        named.append(dataclasses.replace(trained.pretrained, source=long))
    table, columns = runs["head"].make_table(TEXTS)
    with pytest.raises(StrategyError, match="way of reading inputs"):
        predict_table(named, table, columns.texts)


def test_a_run_that_starts_from_a_run_keeps_its_rule_unless_it_says_otherwise(run):
    first = run("head+tail", strategy="frozen").pretrained
    second = adapt.finetune(first, TEXTS, LABELS, strategy="frozen", **FAST)
    assert second.pretrained.tokenizer.long == "head+tail"
    third = adapt.finetune(first, TEXTS, LABELS, strategy="frozen", long="head", **FAST)
    assert third.pretrained.tokenizer.long == "head"


def test_a_plan_counts_windows(bert):
    labels = [label == "positive" for label in LABELS]
    options = {"also": (), "epochs": 1, "batch_size": 8, "steps": 1}
    head = adapt.plan(bert, TEXTS, labels, **options)
    windows = adapt.plan(bert, TEXTS, labels, long="windows", **options)
    assert windows.full.flops_per_example > 1.3 * head.full.flops_per_example


def test_a_mistake_names_the_flag(inputs, tmp_path, monkeypatch, capsys):
    table = tiny.write_table(tmp_path / "train.csv", [("the film", "O O")] * 8)
    flags = {"checkpoint": inputs.checkpoint("bert_bare_pooler", blocks=1), "train": table}
    flags |= {"task": "tags", "long": "windows", "out": tmp_path / "out"}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["finetune", *words])
    with pytest.raises(SystemExit) as exit:
        launch.launch(finetune.Config, finetune.main)
    assert exit.value.code == 2
    assert capsys.readouterr().err == (
        "error: --long windows is for tasks with one vector a text, and --task tags reads single "
        "tokens: give --long head\n"
    )
