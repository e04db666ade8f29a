"""Cells of strategies that train: what is kept of a frozen prefix belongs to every fit alike."""

import pytest

import adapt
from adapt.comparison.comparing import compare
from adapt.training.strategies import as_text
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("own_cache")


def columns(count: int, seed: int) -> tuple[list[str], list[str]]:
    """(texts, labels)"""
    texts, labels = zip(*tiny.sentences(count, seed=seed), strict=True)
    return list(texts), list(labels)


def test_phases_that_freeze_what_they_trained_keep_no_states_of_another_fit(inputs, tmp_path):
    bert = adapt.load(inputs.checkpoint("bert_mlm_tied", 1))
    texts, labels = columns(40, seed=0)
    test = columns(14, seed=1)
    head = ("head/.*", "head")
    schedule = [
        adapt.Phase([head, (".*", "encoder")], epochs=1),
        adapt.Phase([head, (".*", adapt.FROZEN)], epochs=1),
    ]
    found = compare(
        bert,
        texts,
        labels,
        test=test,
        strategies=[as_text(schedule)],
        rates=(1, 3),
        seeds=2,
        epochs=2,
        batch_size=8,
        min_steps=4,
        out=tmp_path / "out",
    )
    cell = found.cells[1]  # not the first fit
    assert cell.best.best_step == cell.best.steps  # the phase that freezes is the one that counts
    run = adapt.finetune(
        bert,
        texts,
        labels,
        test=test,
        strategy=schedule,
        seed=cell.seed,
        rate_factor=cell.best.rate,
        epochs=2,
        batch_size=8,
    )
    assert cell.best.loss == pytest.approx(run.scores["validation"]["loss"], abs=1e-5)


def test_few_examples_are_gone_through_for_the_least_number_of_steps(inputs):
    bert = adapt.load(inputs.checkpoint("bert_mlm_tied", 1))
    texts, labels = columns(16, seed=0)
    found = compare(
        bert,
        texts,
        labels,
        test=columns(8, seed=1),
        strategies=["frozen"],
        rates=(1, 30),
        seeds=2,
        epochs=1,
        batch_size=8,
        min_steps=24,
    )
    steps = [tried.steps for cell in found.cells for tried in cell.tries]
    assert steps == [24] * 4
    assert min(cell.best.best_step for cell in found.cells) < 24 - 3 * 2
