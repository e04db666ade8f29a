"""The fits that findings share: their scores are those of their cells, and are paired."""

import numpy as np
import pytest

import adapt
from adapt.comparison import material
from adapt.comparison.cells import Cells, Cost, Try
from adapt.comparison.options import CompareOptions
from adapt.data.inputs import Columns, make_parts
from adapt.options import FinetuningOptions
from adapt.tasks import get_task
from experiments.findings import cells
from experiments.study.scores import mean_of, score_of
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("own_cache")

TEXTS, LABELS = map(list, zip(*tiny.sentences(40), strict=True))
TEST = tuple(map(list, zip(*tiny.sentences(20, seed=1), strict=True)))
TRY = Try(rate=1.0, score=1.0, loss=0.0, seconds=1.0, steps=1, best_step=1)


@pytest.fixture(scope="module")
def data(inputs):
    bert = adapt.load(inputs.checkpoint("bert_mlm_tied", 1))
    parts = make_parts(TEXTS, LABELS, Columns(), test=TEST, validation=None)
    task = get_task("classification")
    return material.read_material(parts, {}, task, FinetuningOptions(), bert, CompareOptions())


def planted(data: material.Material, strategy: str, wrong: int) -> cells.Fits:
    """Fits of 2 seeds whose first ``wrong`` answers, and of the second seed one more, are wrong."""
    found = Cells()
    for seed in range(2):
        draw = material.draw_rows(data, "8", seed)
        targets = material.targets_of(data, draw, seed)["test"].copy()
        targets[: wrong + seed] = 1 - targets[: wrong + seed]
        outputs = {"test": np.eye(2, dtype=np.float32)[targets]}
        cost = Cost(seconds=1.0, flops=1.0, parameters=1)
        cell = material.tested_cell(data, (strategy, "8", seed), draw, [TRY], outputs, cost)
        found.add(cell, outputs)
    return cells.Fits(strategy, 2, data, found)


def test_a_score_is_the_mean_of_its_cells_and_paired_by_seed_and_example(data):
    better, worse = planted(data, "full", 3), planted(data, "frozen", 7)
    score = better.score(8)
    assert score.value == pytest.approx(1 - 3.5 / 20)
    right = np.ones((2, 20))
    right[0, :3] = 0
    right[1, :4] = 0
    np.testing.assert_allclose(score.resamples, score_of(right).resamples)
    gain = score - worse.score(8)
    low, high = gain.interval
    assert 0 <= low < gain.value < high
    assert [cell.seed for cell in better.of_budget(8)] == [0, 1]


def test_a_mean_of_scores_has_their_mean_and_resamples(data):
    first, second = planted(data, "full", 2).score(8), planted(data, "full", 6).score(8)
    mean = mean_of([first, second])
    assert mean.value == pytest.approx((first.value + second.value) / 2)
    np.testing.assert_allclose(mean.resamples, (first.resamples + second.resamples) / 2)
