"""What a comparison says: mean scores with intervals, paired differences, costs, and the cheapest
strategy that is as good as the best.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from adapt.comparison.cells import Cell, Cells
from adapt.comparison.intervals import interval, resampled
from adapt.comparison.material import Material, draw_rows, scored_names, targets_of
from adapt.comparison.options import CompareOptions

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Row:
    """One strategy at one budget: means over the seeds. Intervals are of 95%."""

    strategy: str
    labels: str  # the budget
    labelled: int  # examples that were used
    score: float  # of the test, by the deciding metric
    interval: Interval
    worst: float  # of the seeds
    difference: float  # to the first strategy
    difference_interval: Interval
    metrics: dict[str, float]  # of the test
    elsewhere: dict[str, float]  # the deciding metric on sets that are only tested on
    seconds: float  # of a fit with the rate that was chosen, encoding included
    flops: float
    parameters: int
    rates: tuple[float, ...]  # that were chosen, by seed


@dataclasses.dataclass(frozen=True)
class Answer:
    """The best strategy at one budget, and the cheapest of those that it does not beat beyond the
    interval of their difference.
    """

    labels: str
    best: str
    rate: float  # of the best strategy, that most seeds chose
    score: float
    cheapest: str
    cheapest_score: float
    as_good: tuple[str, ...]
    times_cheaper: float  # in FLOPs


def summarise(
    options: CompareOptions, material: Material, cells: Cells
) -> tuple[list[Row], list[Answer]]:
    """A row a strategy and budget, and an answer a budget."""
    rows = []
    answers = []
    for budget in options.budgets:
        of_budget = []
        resamples = {}
        for strategy in options.strategies:
            found = [cells.done[strategy, budget, seed] for seed in range(options.seeds)]
            resamples[strategy] = resampled_scores(material, found, cells)
            baseline = resamples[options.strategies[0]]
            of_budget.append(make_row(material, found, resamples[strategy], baseline))
        first = of_budget[0].score
        of_budget = [dataclasses.replace(row, difference=row.score - first) for row in of_budget]
        rows += of_budget
        answers.append(find_answer(of_budget, resamples))
    return rows, answers


def resampled_scores(material: Material, found: Sequence[Cell], cells: Cells) -> np.ndarray:
    """The test score of every resample of seeds and examples, float64 [draws]."""
    task = material.task
    tests = []
    for cell in found:
        draw = draw_rows(material, cell.budget, cell.seed)
        targets = targets_of(material, draw, cell.seed)["test"]
        tests.append((cells.outputs_of(cell.key)["test"], targets))
    names = scored_names(material, "test")
    return resampled(task, names, material.metric, tests, material.folds is None)


def make_row(
    material: Material, found: Sequence[Cell], scores: np.ndarray, baseline: np.ndarray
) -> Row:
    """The means of the cells of one strategy and budget."""
    metric = material.metric
    by_seed = [as_float(cell.scores["test"][metric]) for cell in found]
    metrics = {}
    for name in found[0].scores["test"]:
        metrics[name] = mean([as_float(cell.scores["test"][name]) for cell in found])
    elsewhere = {}
    for name in found[0].scores:
        if name != "test":
            elsewhere[name] = mean([as_float(cell.scores[name][metric]) for cell in found])
    return Row(
        strategy=found[0].strategy,
        labels=found[0].budget,
        labelled=round(mean([cell.labelled for cell in found])),
        score=mean(by_seed),
        interval=interval(scores),
        worst=min(by_seed),
        difference=0.0,
        difference_interval=interval(scores - baseline),
        metrics=metrics,
        elsewhere=elsewhere,
        seconds=mean([cell.seconds for cell in found]),
        flops=mean([cell.flops for cell in found]),
        parameters=found[0].parameters,
        rates=tuple(cell.best.rate for cell in found),
    )


def find_answer(rows: Sequence[Row], resamples: dict[str, np.ndarray]) -> Answer:
    """The best row, and the cheapest one that can't be told from it."""
    best = max(rows, key=lambda row: -np.inf if np.isnan(row.score) else row.score)
    as_good = []
    for row in rows:
        difference = resamples[best.strategy] - resamples[row.strategy]
        if row is best or interval(difference)[0] <= 0:  # false where one is not defined
            as_good.append(row)
    cheapest = min(as_good, key=lambda row: (row.flops, row.seconds))
    return Answer(
        labels=best.labels,
        best=best.strategy,
        rate=statistics.mode(best.rates),
        score=best.score,
        cheapest=cheapest.strategy,
        cheapest_score=cheapest.score,
        as_good=tuple(row.strategy for row in as_good),
        times_cheaper=best.flops / max(cheapest.flops, 1.0),
    )


def mean_floors(cells: Sequence[Cell]) -> dict[str, float]:
    """What scores on the test without a look at any input: means over seeds, by metric."""
    names = cells[0].floors
    return {name: mean([as_float(cell.floors[name]) for cell in cells]) for name in names}


def as_float(value: Any) -> float:
    """nan for a score that is not defined."""
    return float("nan") if value is None else float(value)


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
