"""Intervals of a score over seeds and test examples, by the bootstrap."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from adapt.tasks import Task
from adapt.tasks.metrics import mean_of_scored

DRAWS = 1000
DRAWS_OF_A_METRIC = 200  # where a score is no mean over examples and is computed anew in each
SEED = 0

# (outputs, targets) of the test of each seed.
Tests = Sequence[tuple[np.ndarray, Any]]


def resampled(
    task: Task, names: Sequence[str], metric: str, tests: Tests, is_one_test: bool
) -> np.ndarray:
    """The score, the mean over seeds, of every resample: float64 [draws], nan where not defined.

    Seeds are drawn with replacement, and from each one's test as many examples as it has, or as
    many sentences where the score counts entities: the same for every seed where ``is_one_test``.
    Resamples depend on the numbers of seeds and examples alone, so those of two strategies can be
    subtracted.
    """
    by_seed = [scorer(task, names, metric, *test) for test in tests]
    drawn_from = by_seed[:1] if is_one_test else by_seed
    draws = DRAWS if by_seed[0].is_quick else DRAWS_OF_A_METRIC
    random = np.random.default_rng(SEED)
    scores = np.zeros(draws)
    for draw in range(draws):
        chosen = random.integers(len(tests), size=len(tests))
        rows = [random.integers(test.size, size=test.size) for test in drawn_from]
        of_seeds = {}
        for seed in set(chosen.tolist()):
            of_seeds[seed] = by_seed[seed].score(rows[0 if is_one_test else seed])
        scores[draw] = np.mean([of_seeds[seed] for seed in chosen.tolist()])
    return scores


def interval(scores: np.ndarray) -> tuple[float, float]:
    """The middle 95% of resampled scores; nan where none is defined."""
    if np.isnan(scores).all():
        return float("nan"), float("nan")
    low, high = np.nanquantile(scores, [0.025, 0.975])
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Scorer:
    """What scores some of the examples of a test."""

    score: Callable[[np.ndarray], float]  # of examples by their numbers, int [n]
    size: int  # how many examples there are
    is_quick: bool  # it adds up what each example counts


def scorer(
    task: Task, names: Sequence[str], metric: str, outputs: np.ndarray, targets: Any
) -> Scorer:
    """What computes a metric for drawn examples: from what each counts where it can, else anew."""
    values = task.example_scores(outputs, targets, names).get(metric)
    if values is not None:
        return Scorer(lambda rows: mean_of_scored(values[rows]), len(values), is_quick=True)
    ratio = task.score_ratios(outputs, targets, names).get(metric)
    if ratio is not None:
        above, below = ratio
        return Scorer(lambda rows: quotient(above[rows], below[rows]), len(above), is_quick=True)
    # An example may have several outputs, one after the other: choices, the two of a pair.
    grouped = outputs.reshape(len(targets), -1, *outputs.shape[1:])

    def score(rows: np.ndarray) -> float:
        some = grouped[rows].reshape(-1, *outputs.shape[1:])
        return float(task.metrics(some, targets[rows], names)[metric])

    return Scorer(score, len(targets), is_quick=False)


def quotient(above: np.ndarray, below: np.ndarray) -> float:
    """The sum of ``above`` by the sum of ``below``; nan where the latter is 0."""
    total = below.sum()
    return float(above.sum() / total) if total else float("nan")
