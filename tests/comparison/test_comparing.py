"""A comparison: every strategy sees the same examples, the test chooses nothing, and a cell is the
run that `finetune` makes.
"""

import dataclasses
import json

import numpy as np
import pytest

import adapt
from adapt import tree
from adapt.comparison import cells, comparing, material, trained
from adapt.comparison.cells import Try, choose
from adapt.comparison.comparing import compare
from adapt.comparison.options import CompareOptions
from adapt.comparison.summary import Row, find_answer
from adapt.data.inputs import Columns, make_parts
from adapt.errors import AdaptError, OutputError, StrategyError
from adapt.options import FinetuningOptions
from adapt.tasks import TASKS
from adapt.training import phases
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("own_cache")

TEXTS, LABELS = map(list, zip(*tiny.sentences(40), strict=True))
NEW_TEXTS, NEW_LABELS = map(list, zip(*tiny.sentences(14, seed=1), strict=True))
FAST = {"seeds": 2, "rates": (1, 3), "epochs": 2, "batch_size": 8, "min_steps": 4}


@pytest.fixture(scope="module")
def bert(inputs):
    return adapt.load(inputs.checkpoint("bert_mlm_tied", 1))


def read(bert, labels=LABELS, test=None, validation=None, seeds=2) -> material.Material:
    parts = make_parts(TEXTS, labels, Columns(), test=test, validation=validation)
    options = FinetuningOptions()
    compared = CompareOptions(seeds=seeds)
    return material.read_material(parts, {}, TASKS["classification"], options, bert, compared)


# Which examples a cell sees


def test_a_draw_is_the_same_for_every_strategy_and_another_for_every_seed(bert):
    data = read(bert, test=(NEW_TEXTS, NEW_LABELS))
    for budget in ("8", "20", "all"):
        draw = material.draw_rows(data, budget, 3)
        again = material.draw_rows(data, budget, 3)
        assert np.array_equal(draw.train, again.train)
        assert np.array_equal(draw.held_out, again.held_out)
        assert not set(draw.train) & set(draw.held_out)
        assert draw.labelled == (40 if budget == "all" else int(budget))
        assert draw.test is None
        other = material.draw_rows(data, budget, 4)
        assert not np.array_equal(np.sort(draw.train), np.sort(other.train))


def test_few_examples_are_as_many_of_each_class(bert):
    labels = ["rare" if number % 5 == 0 else "common" for number in range(40)]
    data = read(bert, labels, test=(NEW_TEXTS, labels[:14]))
    draw = material.draw_rows(data, "8", 0)
    drawn = np.concatenate([draw.train, draw.held_out])
    assert np.bincount(data.train.labels[drawn]).tolist() == [4, 4]


def test_without_a_test_set_each_seed_is_tested_on_a_fold_that_it_never_saw(bert):
    data = read(bert)
    tested = []
    for seed in range(5):
        draw = material.draw_rows(data, "all", seed)
        seen = np.concatenate([draw.train, draw.held_out])
        assert not set(seen) & set(draw.test)
        assert len(seen) + len(draw.test) == 40
        tested += draw.test.tolist()
    assert sorted(tested) == list(range(40))


def test_validation_examples_choose_where_there_are_some(bert):
    data = read(bert, test=(NEW_TEXTS, NEW_LABELS), validation=(NEW_TEXTS, NEW_LABELS))
    draw = material.draw_rows(data, "all", 0)
    assert len(draw.train) == 40 and len(draw.held_out) == 0


# What is chosen


def test_the_best_score_is_chosen_then_the_lower_loss_and_nothing_that_diverged():
    def tried(score: float, loss: float) -> Try:
        return Try(1.0, score, loss, 0.0, 1, 1)

    assert choose([tried(0.7, 0.5), tried(0.8, 0.9), tried(0.8, 0.6)]) == 2
    assert choose([tried(np.nan, np.nan), tried(0.1, 3.0)]) == 1
    assert choose([tried(np.nan, 0.4), tried(0.1, 3.0)]) == 1


def row(strategy: str, score: float, flops: float, seconds: float = 1.0) -> Row:
    nothing = (0.0, 0.0)
    return Row(
        strategy, "all", 8, score, nothing, score, 0.0, nothing, {}, {}, seconds, flops, 1, (1.0,)
    )


def test_the_answer_is_the_best_and_the_cheapest_that_is_as_good():
    noise = np.random.default_rng(0).normal(size=200) * 0.001
    resamples = {"probe": 0.7 + noise, "full": 0.8 + noise, "lora:8": 0.799 + noise[::-1]}
    rows = [row("probe", 0.7, 1e9), row("full", 0.8, 1e12), row("lora:8", 0.799, 1e11)]
    answer = find_answer(rows, resamples)
    assert (answer.best, answer.cheapest) == ("full", "lora:8")
    assert answer.as_good == ("full", "lora:8")
    assert answer.times_cheaper == pytest.approx(10)


def test_of_strategies_that_cost_the_same_flops_the_faster_one_is_the_cheapest():
    same = {name: np.full(9, 0.7) for name in ("probe", "centroid")}
    rows = [row("probe", 0.7, 1e9, 0.8), row("centroid", 0.7, 1e9, 0.1)]
    assert find_answer(rows, same).cheapest == "centroid"


# Whole comparisons


def test_a_cell_is_the_run_of_finetune(bert):
    found = compare(
        bert, TEXTS, LABELS, test=(NEW_TEXTS, NEW_LABELS), strategies=("top:1", "full"), **FAST
    )
    assert len(found.rows) == 2 and len(found.to_pandas()) == 2 * 2 * 2
    for cell in found.cells:
        run = adapt.finetune(
            bert,
            TEXTS,
            LABELS,
            test=(NEW_TEXTS, NEW_LABELS),
            strategy=cell.strategy,
            seed=cell.seed,
            rate_factor=cell.best.rate,
            epochs=2,
            batch_size=8,
        )
        for metric, value in cell.scores["test"].items():
            assert value == pytest.approx(run.scores["test"][metric], abs=1e-5), metric
        assert cell.best.loss == pytest.approx(run.scores["validation"]["loss"], abs=1e-5)
        assert cell.parameters == run.result["parameters_trained"]


@pytest.mark.parametrize("strategy", ["full", "lp-ft", "top:1", "lora:2", "full+l2sp:0.1"])
def test_the_fits_of_a_strategy_compile_once_and_repeat_exactly(bert, strategy):
    data = read(bert, test=(NEW_TEXTS, NEW_LABELS))
    options = FinetuningOptions(strategy=strategy, epochs=4, batch_size=8)
    trainer = trained.Trainer(data, options, CompareOptions(min_steps=4))
    draws = [material.draw_rows(data, "all", seed) for seed in (0, 1)]
    first = trainer.fit(draws[0], 0, 1.0)[1]
    programs = [phase.step.suffix._cache_size() for phase in first.plan.phases]
    other = trainer.fit(draws[1], 1, 3.0)[1]
    again = trainer.fit(draws[0], 0, 1.0)[1]
    for phase, count in zip(other.plan.phases, programs, strict=True):
        assert phase.step.suffix._cache_size() == count
    digests = [tree.digest(fitted.params) for fitted in (first, other, again)]
    assert digests[0] == digests[2] != digests[1]
    assert trainer.flops(first, draws[0]) > 0


TASK_DATA = {
    "regression": (TEXTS, [len(text) / 10 for text in TEXTS]),
    "multilabel": (TEXTS, [[label] for label in LABELS]),
    "choice": ([(text, "a film", "a book") for text in TEXTS], [n % 2 for n in range(40)]),
    "tags": (
        [text.split() for text in TEXTS],
        [["x" if len(word) > 3 else "y" for word in text.split()] for text in TEXTS],
    ),
    "contrastive": ([(text, text) for text in TEXTS], None),
}


@pytest.mark.parametrize("task", TASK_DATA)
def test_every_task_is_compared_without_a_test_set(bert, task):
    inputs, labels = TASK_DATA[task]
    found = compare(bert, inputs, labels, task=task, strategies=("top:1",), **FAST)
    (one,) = found.rows
    assert one.metrics[found.metric] == pytest.approx(one.score, nan_ok=True)
    assert "fold" in found.tested and found.answers[0].best == "top:1"


def test_every_cell_that_is_done_counts_after_a_stop(bert, tmp_path, monkeypatch):
    arguments = {"strategies": ("probe", "centroid", "frozen"), "budgets": (8, "all"), **FAST}
    whole = compare(bert, TEXTS, LABELS, **arguments)

    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 10:
            raise Stopped

    with pytest.raises(Stopped):
        compare(bert, TEXTS, LABELS, out=tmp_path / "out", on_progress=stop, **arguments)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/cells").iterdir()}
    assert len(before) == 2 * 10
    with pytest.raises(OutputError, match="exists"):
        compare(bert, TEXTS, LABELS, out=tmp_path / "out", **arguments)
    with pytest.raises(OutputError, match="`epochs` was"):
        compare(
            bert, TEXTS, LABELS, out=tmp_path / "out", resume=True, **(arguments | {"epochs": 3})
        )
    again = compare(bert, TEXTS, LABELS, out=tmp_path / "out", resume=True, **arguments)
    for path, written in before.items():
        assert path.stat().st_mtime_ns == written
    for one, other in zip(whole.rows, again.rows, strict=True):
        assert dataclasses.replace(one, seconds=0.0) == dataclasses.replace(other, seconds=0.0)

    import pandas

    table = pandas.read_parquet(tmp_path / "out/cells.parquet")
    assert len(table) == len(whole.to_pandas()) == 2 * 2 * (5 + 1 + 2)
    assert set(table["strategy"]) == {"probe", "centroid", "frozen"}
    assert table[table["chosen"]]["test_accuracy"].notna().all()
    content = json.loads((tmp_path / "out/comparison.json").read_text())
    assert [row["score"] for row in content["rows"]] == [row.score for row in again.rows]


def test_other_data_and_another_encoder_do_not_go_on(bert, inputs, tmp_path):
    arguments = {"strategies": ("centroid",), "out": tmp_path / "out", **FAST}
    compare(bert, TEXTS, LABELS, **arguments)
    with pytest.raises(OutputError, match="the train data changed since the comparison"):
        compare(bert, TEXTS[::-1], LABELS, resume=True, **arguments)
    with pytest.raises(OutputError, match="`pooling` was None"):
        compare(bert, TEXTS, LABELS, resume=True, pooling="cls", **arguments)
    other = dataclasses.replace(bert, params=adapt.load(inputs.checkpoint("bert_mlm_relu")).params)
    with pytest.raises(OutputError, match="the encoder changed since the comparison"):
        compare(other, TEXTS, LABELS, resume=True, **arguments)


def test_a_score_that_is_not_defined_is_said_and_is_null(bert, tmp_path):
    labels = ["rare"] * 2 + ["common"] * 38
    found = compare(
        bert, TEXTS, labels, strategies=("centroid",), score="auroc", out=tmp_path / "out", **FAST
    )
    assert np.isnan(found.answers[0].score)
    content = json.loads((tmp_path / "out/comparison.json").read_text(), parse_constant=pytest.fail)
    assert content["rows"][0]["score"] is None


def test_a_probe_pools_as_it_is_told(bert):
    scores = []
    for pooling in ("mean", "max"):
        found = compare(bert, TEXTS, LABELS, strategies=("probe",), pooling=pooling, **FAST)
        scores.append(found.rows[0].metrics["ece"])
    assert scores[0] != scores[1]


def test_sets_that_are_only_tested_on_have_scores_of_their_own(bert):
    found = compare(
        bert,
        TEXTS,
        LABELS,
        also_test={"away": (NEW_TEXTS, NEW_LABELS)},
        strategies=("probe",),
        **FAST,
    )
    assert set(found.rows[0].elsewhere) == {"away"}


MISTAKES = {
    "an unknown strategy": ({"strategies": ("best",)}, "unknown `strategy` 'best'|best"),
    "a strategy alone": ({"strategies": "full"}, "`strategies` is 'full': give a list"),
    "a strategy twice": ({"strategies": ("full", "full")}, "`strategies` has full twice"),
    "no strategy": ({"strategies": ()}, "`strategies` is empty"),
    "a rate that is a learning rate": ({"rates": (3e-5,)}, "`rates` 3e-05: give factors"),
    "a rate that is text": ({"rates": ("high",)}, "`rates`"),
    "a rate alone": ({"rates": 3}, "`rates` is 3: give a list"),
    "no seed": ({"seeds": 0}, "`seeds` 0"),
    "too many labels": ({"budgets": (99,)}, "`budgets` 99 must be all, or from 4"),
    "too few labels": ({"budgets": (2,)}, "`budgets` 2 must be all, or from 4"),
    "labels in words": ({"budgets": ("few",)}, "`budgets` few: give numbers"),
    "a share to choose by": ({"validation": 0.2}, "`validation` is 0.2: give data"),
    "a score that is not there": ({"score": "beauty"}, "unknown `score` 'beauty'"),
    "the loss as a score": ({"score": "loss"}, "`score` loss"),
    "an error as a score": ({"score": "ece"}, "`score` ece: less of it is better"),
    "a score that no probe has": (
        {"score": "beauty", "strategies": ("probe",)},
        "unknown `score` 'beauty': give one of accuracy",
    ),
    "layers of a probe": ({"layers": (1,), "strategies": ("probe",)}, "`layers` is of heads that"),
    "a pooling with weights": (
        {"pooling": "attention", "strategies": ("probe",)},
        "`pooling` attention has weights",
    ),
    "the same labels twice": ({"budgets": (8, "08")}, "`budgets` has 8 twice"),
    "rates that are none": ({"rates": None}, "`rates` is None: give a list"),
    "further sets in a list": ({"also_test": [(TEXTS, LABELS)]}, "`also_test`: give a dict"),
    "a folder in a bucket": ({"out": "gs://bucket/run"}, "`out` gs://bucket/run is in a bucket"),
    "a set called test": ({"also_test": {"test": (TEXTS, LABELS)}}, "`also_test`"),
    "a probe of numbers": (
        {"task": "regression", "strategies": ("probe",), "labels": [1.0] * 39 + [2.0]},
        "`strategies` probe fits classes",
    ),
    "labels that are too few": ({"labels": LABELS[:3]}, "`inputs` and `labels`"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence_before_any_fit(bert, monkeypatch, mistake):
    options, sentence = MISTAKES[mistake]
    monkeypatch.setattr(comparing.PreparedComparison, "fill", None)
    arguments = {"labels": LABELS, **options}
    with pytest.raises(AdaptError, match=sentence) as raised:
        compare(bert, TEXTS, **arguments)
    assert "\n" not in str(raised.value)


def test_names_of_cells_are_names_of_files():
    names = [cells.file_name((one, "all", 0)) for one in ("lora:8,16,.*/(query|value)", "top:1")]
    assert len(set(names)) == 2 and not any(set(name) & set('/:*|\\"<>?') for name in names)


def test_tags_that_training_did_not_have_are_scored_as_wrong(bert):
    words = [["the", "good", "film"], ["a", "dull", "plot"]] * 12
    tags = [["O", "B-PER", "O"], ["O", "O", "O"]] * 12
    test = (words, [["O", "B-PER", "I-PER"], ["O", "B-LOC", "O"]] * 12)
    given = {"task": "tags", "strategies": ("frozen",), "test": test, "together": "off"}
    found = compare(bert, words, tags, **FAST | given | {"rates": (1,)})
    (row,) = found.rows
    assert row.metrics["recall:LOC"] == 0 and row.metrics["support:LOC"] == 12
    assert row.metrics["accuracy"] <= 4 / 6
    assert row.interval[0] <= row.score <= row.interval[1]


def test_int8_is_of_the_strategies_that_freeze_kernels_and_refused_without_one(bert, monkeypatch):
    options = {"test": (NEW_TEXTS, NEW_LABELS), "frozen_dtype": "int8", **FAST}
    with pytest.raises(StrategyError, match="none of `strategies` freezes a kernel"):
        adapt.compare(bert, TEXTS, LABELS, strategies=("full",), **options)
    stored = []
    place_kernels = phases.place_kernels

    def noted(params, dtype, layout):
        stored.append(dtype)
        return place_kernels(params, dtype, layout)

    monkeypatch.setattr(phases, "place_kernels", noted)
    options |= {"seeds": 1, "rates": (1,), "epochs": 1, "min_steps": 1}
    found = adapt.compare(bert, TEXTS, LABELS, strategies=("frozen",), **options)
    assert found.freezing == ["frozen"] and len(found.cells) == 1
    assert set(stored) == {"int8"}
