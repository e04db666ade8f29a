"""Runs of spans as people hold them: SQuAD's own form, windows, questions without an answer, and back from a folder."""

import dataclasses
import json

import datasets
import numpy as np
import pytest

import adapt
from adapt.cli import evaluate, finetune, predict
from adapt.comparison import comparing
from adapt.comparison.material import draw_rows
from adapt.comparison.options import CompareOptions
from adapt.comparison.trained import cell_sets
from adapt.data import tables
from adapt.data.inputs import Columns
from adapt.errors import DataError, StrategyError
from adapt.finetuning import prepare
from adapt.options import FinetuningOptions
from tests.helpers import tiny
from tests.helpers.runs import assert_same_run

pytestmark = pytest.mark.usefixtures("own_cache")

COLUMNS = {"text_column": "context", "text_pair_column": "question", "label_column": "answers"}
FAST = {"epochs": 2, "batch_size": 8, "patience": 0, "learning_rate": 1e-2, "max_length": 16}
SPANS = {"task": "span", **COLUMNS, **FAST, "stride": 4}
TELLING = [*tiny.GOOD, *tiny.BAD]


def squad(count: int = 24, seed: int = 0) -> dict:
    """An object as SQuAD 2.0's files are: which word tells, and every third question has no answer."""
    random = np.random.default_rng(seed)
    articles = []
    for number in range(count):
        words = list(random.choice(tiny.PLAIN, 30))
        has_answer = number % 3 > 0
        if has_answer:
            words[int(random.integers(30))] = str(random.choice(TELLING))
        text = " ".join(words)
        answers = []
        for word in (word for word in words if word in TELLING):
            answers.append({"text": word, "answer_start": f" {text} ".index(f" {word} ")})
        question = {"id": str(number), "question": "the score", "answers": answers}
        question["is_impossible"] = not has_answer
        articles.append({"title": "films", "paragraphs": [{"context": text, "qas": [question]}]})
    return {"version": "v2.0", "data": articles}


CONTENT = squad()


def rows() -> list[dict]:
    """The same, flat, as `datasets` has it."""
    flat = []
    for article in CONTENT["data"]:
        (paragraph,) = article["paragraphs"]
        (question,) = paragraph["qas"]
        answers = {
            "text": [answer["text"] for answer in question["answers"]],
            "answer_start": [answer["answer_start"] for answer in question["answers"]],
        }
        row = {"context": paragraph["context"], "question": question["question"]}
        flat.append(row | {"answers": answers})
    return flat


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("squad") / "dev-v2.0.json"
    path.write_text(json.dumps(CONTENT))
    return path


@pytest.fixture(scope="module")
def bert(inputs):
    return adapt.load(inputs.checkpoint("bert_mlm_tied", blocks=1))


@pytest.fixture(scope="module")
def run(bert, file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("span") / "run"
    return adapt.finetune(bert, file, test=file, out=folder, **SPANS)


def digest_of(bert, inputs, labels=None, columns=COLUMNS) -> str:
    """The digest of the training examples that data become."""
    options = FinetuningOptions(task="span", max_length=16, stride=4)
    names = {name.removesuffix("_column"): value for name, value in columns.items()}
    prepared = prepare(bert, inputs, labels, options, columns=Columns(**names))
    return prepared.data.sets["train"].digest


def test_every_form_of_the_same_questions_is_the_same_examples(bert, file, tmp_path):
    flat = rows()
    lines = tmp_path / "flat.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in flat))
    expected = digest_of(bert, file)
    for inputs in (CONTENT, flat, lines, datasets.Dataset.from_list(flat), tables.read(file)):
        assert digest_of(bert, inputs) == expected
    pairs = [(row["context"], row["question"]) for row in flat]
    assert digest_of(bert, pairs, [row["answers"] for row in flat], columns={}) == expected


def test_a_run_gives_no_answer_as_validation_decided_and_keeps_that(run, file):
    head = run.pretrained.head
    assert head.null_threshold == run.scores["validation"]["null_threshold"]
    again = adapt.load_run(run.folder)
    assert again.pretrained.head == head
    assert again.pretrained.tokenizer.stride == 4
    assert again.predict(file).labels == run.predict(file).labels
    scores = again.evaluate(file)
    for name in ("exact_match", "f1", "HasAns_f1", "NoAns_f1", "loss"):
        assert scores[name] == pytest.approx(run.scores["test"][name])
    used = json.loads((run.folder / "config.json").read_text())["used"]
    assert used["stride"] == 4


def test_predictions_are_what_is_scored(run, file):
    found = run.predict(file)
    right = []
    for label, row in zip(found.labels, rows(), strict=True):
        if label is None:
            right.append(not row["answers"]["text"])
        else:
            start, end, text = label
            assert row["context"][start:end] == text
            right.append(text in row["answers"]["text"])
    assert run.scores["test"]["exact_match"] == pytest.approx(np.mean(right))
    assert found.long.windows > found.long.texts > 0
    always = dataclasses.replace(
        run.pretrained, head=run.pretrained.head.clone(null_threshold=None)
    )
    answered = dataclasses.replace(run, pretrained=always).predict(file).labels
    assert all(label is not None for label in answered)


def test_questions_that_all_have_an_answer_train_on_the_windows_that_have_it(bert):
    flat = [row for row in rows() if row["answers"]["text"]]
    run = adapt.finetune(bert, flat, test=flat, weights=[1.0] * len(flat), **SPANS)
    assert set(run.scores["test"]) >= {"exact_match", "f1"}
    assert "NoAns_f1" not in run.scores["test"]
    assert run.pretrained.head.null_threshold is None
    windows = run.result["long"]["train"]["windows"]
    options = FinetuningOptions(task="span", max_length=16, stride=4)
    columns = Columns(text="context", text_pair="question", label="answers")
    data = prepare(bert, flat, None, options, columns=columns).data
    assert len(data.sets["train"]) < windows
    assert (np.asarray(data.sets["train"].labels) > 0).all()


@pytest.mark.parametrize("strategy", ["full", "frozen"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(bert, file, tmp_path, strategy):
    given = SPANS | {"strategy": strategy, "test": file}
    given["learning_rate"] = None if strategy == "frozen" else 1e-2
    adapt.finetune(bert, file, out=tmp_path / "whole", **given)
    adapt.finetune(bert, file, out=tmp_path / "parts", stop_after=3, **given)
    adapt.finetune(bert, file, out=tmp_path / "parts", resume=True, **given)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    whole, parts = (tmp_path / name / "model.json" for name in ("whole", "parts"))
    assert whole.read_text() == parts.read_text()


def test_the_commands_read_squads_file_and_a_config_makes_the_same_run(bert, file, tmp_path):
    flags = {**SPANS, "checkpoint": bert.source, "train": str(file), "test": str(file)}
    result = finetune.main(finetune.Config(**flags, out=tmp_path / "run"))
    scores = evaluate.main(evaluate.Config(run=tmp_path / "run", data=str(file)))
    assert scores["f1"] == pytest.approx(result["f1"])
    out = tmp_path / "answers.csv"
    predict.main(
        predict.Config(run=(tmp_path / "run",), data=str(file), out=out, keep_columns=("id",))
    )
    header, *lines = out.read_text().splitlines()
    assert header == "row,id,start,end,text" and len(lines) == len(rows())
    arguments = adapt.load_run(tmp_path / "run").arguments
    assert arguments["stride"] == 4 and arguments["offsets"] == "characters"
    again = adapt.finetune(**arguments)
    assert again.scores["test"]["f1"] == pytest.approx(result["f1"])


def test_a_comparison_trains_and_scores_windows_as_a_run_does(bert, file):
    given = {**COLUMNS, "task": "span", "max_length": 16, "stride": 4, "batch_size": 8}
    found = adapt.compare(
        bert, file, test=file, strategies=("frozen",), rates=(1,), seeds=1, min_steps=4, **given
    )
    (row,) = found.rows
    assert set(row.metrics) >= {"exact_match", "f1", "HasAns_f1", "NoAns_f1"}
    assert row.interval[0] <= row.score <= row.interval[1]


def test_a_comparison_neither_trains_on_nor_scores_what_was_cut_off(bert):
    flat = [row for row in rows() if row["answers"]["text"]]
    options = FinetuningOptions(task="span", max_length=16, stride=0)
    compared = CompareOptions(strategies=("frozen",), rates=(1.0,), seeds=1, min_steps=4)
    columns = Columns(text="context", text_pair="question", label="answers")
    prepared = comparing.prepare(bert, flat, None, options, compared, test=flat, columns=columns)
    material = prepared.material
    draw = draw_rows(material, "all", 0)
    sets = cell_sets(material, material.sets, draw, 0)
    assert 0 < len(sets["train"]) < len(draw.train)
    assert (np.asarray(sets["train"].labels) > 0).all()
    found = prepared.run()
    (row,) = found.rows
    is_read = material.tests["test"].labels.file.is_found
    assert 0 < is_read.sum() < len(flat)
    assert np.isfinite(row.interval).all() and np.isfinite(row.score)


def rows_with(answer: str, place: int, count: int = 8) -> list[dict]:
    """Rows of 30 words, of which ``answer`` takes the place of those from ``place`` on."""
    words = ["the"] * 30
    telling = answer.split()
    words[place : place + len(telling)] = telling
    text = " ".join(words)
    answers = {"text": [answer], "answer_start": [text.index(answer)]}
    return [{"context": text, "question": "the score", "answers": answers}] * count


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_set_whose_answers_are_all_cut_off_is_refused_before_anything_trains(bert, name):
    late = {name: rows_with("good", 28)}
    with pytest.raises(DataError, match=r"'good' at character 112 of row 1.*`stride`"):
        adapt.finetune(bert, rows_with("good", 0), **SPANS | {"stride": 0}, **late)


def test_a_finished_run_says_that_nothing_of_a_set_can_be_scored(bert):
    run = adapt.finetune(bert, rows_with("good", 0), **SPANS | {"stride": 0, "epochs": 1})
    assert run.evaluate(rows_with("good", 0))["loss"] is not None
    with pytest.raises(DataError, match="nothing can be scored"):
        run.evaluate(rows_with("good", 28))


def test_answers_longer_than_a_window_are_scored_and_can_not_validate(bert):
    long = rows_with(" ".join(["good"] * 20), 3)
    run = adapt.finetune(bert, rows_with("good", 0), test=long, **SPANS | {"epochs": 1})
    assert run.scores["test"]["loss"] is None
    assert run.scores["test"]["f1"] is not None
    with pytest.raises(DataError, match=r"whole in a window of 16 tokens.*`max_length`"):
        adapt.finetune(bert, rows_with("good", 0), validation=long, **SPANS)


def test_what_the_task_does_not_read_is_refused_by_name(bert, file):
    with pytest.raises(StrategyError, match="stride"):
        adapt.finetune(bert, ["a film", "the end"] * 9, ["x", "y"] * 9, stride=4)
    with pytest.raises(StrategyError, match=r"long.*stride"):
        adapt.finetune(bert, file, **SPANS | {"long": "windows"})
