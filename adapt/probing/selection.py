"""Nested selection: inner folds choose, the test is looked at once; and intervals over test examples and seeds.

sets    = nested(labels, test, folds=5, seeds=5)
judged  = [judge(answers, labels, sets, classes) for answers in candidates]   # chooses a strength for each
winner  = best(judged, sets)                                                  # and one of the candidates
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Sets(NamedTuple):
    """Of every outer split: ``folds`` inner training sets, each with a fold held out, then all its rows but the test's."""

    train: np.ndarray  # bool [S, N]
    held: np.ndarray  # int32 [S, H], -1 beyond the last
    folds: int
    seeds: int

    @property
    def outer(self) -> range:
        """The set of each outer split that trains on all its rows and holds out its test."""
        return range(self.folds, len(self.train), self.folds + 1)

    def rows(self, index: int) -> np.ndarray:
        """Whom a set holds out."""
        return self.held[index][self.held[index] >= 0]

    def seed(self, split: int) -> int:
        return split * self.seeds // len(self.outer)


def nested(labels: np.ndarray, test: np.ndarray, folds: int, seeds: int) -> Sets:
    """``test`` bool [N] is the test of every seed; if it is nobody, each fold of all rows is the test once a seed.

    Labels that are whole numbers are classes: then the folds are stratified.
    """
    train = []
    held = []
    for seed in range(seeds):
        for number, out in enumerate([test] if test.any() else parts(labels, folds, [seed])):
            for part in parts(labels[~out], folds, [seed, number]):
                inner = np.zeros(len(labels), bool)
                inner[np.flatnonzero(~out)[part]] = True
                train.append(~out & ~inner)
                held.append(inner)
            train.append(~out)
            held.append(out)
    most = max(part.sum() for part in held)
    index = [np.append(np.flatnonzero(part), np.full(most - part.sum(), -1)) for part in held]
    return Sets(np.array(train), np.array(index, np.int32), folds, seeds)


def parts(labels: np.ndarray, folds: int, seed: list[int]) -> np.ndarray:
    """bool [folds, N]: every row in one of them, at random; of each class an equal share."""
    order = np.random.RandomState(seed).permutation(len(labels))
    if np.issubdtype(labels.dtype, np.integer):
        order = order[np.argsort(labels[order], kind="stable")]
    return np.argsort(order) % folds == np.arange(folds)[:, None]


class Judged(NamedTuple):
    """What the inner folds chose for every outer split, and what that answers on the split's test."""

    validation: np.ndarray  # float64 [splits]: the score of the choice on the inner folds
    choice: np.ndarray  # int [splits]
    answer: np.ndarray  # [seeds, N], 0 where a row is in no test


def judge(answers: np.ndarray, labels: np.ndarray, sets: Sets, classes: int) -> Judged:
    """answers [S, K, H] for the rows that each set holds out: choose among K by those of the inner sets alone.

    A tie goes to the first of K.
    """
    validation = np.zeros(len(sets.outer))
    choice = np.zeros(len(sets.outer), int)
    answer = np.zeros((sets.seeds, len(labels)), answers.dtype)
    for split, whole in enumerate(sets.outer):
        inner = np.zeros((answers.shape[1], len(labels)), answers.dtype)
        for index in range(whole - sets.folds, whole):
            rows = sets.rows(index)
            inner[:, rows] = answers[index, :, : len(rows)]
        scores = score(inner, labels, sets.train[whole][None], classes)[:, 0]
        choice[split], validation[split] = scores.argmax(), scores.max()
        rows = sets.rows(whole)
        answer[sets.seed(split), rows] = answers[whole, choice[split], : len(rows)]
    return Judged(validation, choice, answer)


def best(judged: Sequence[Judged], sets: Sets) -> Judged:
    """The choice among candidates (layers, poolings, methods), again by the inner folds alone; a tie goes to the first."""
    validation = np.array([each.validation for each in judged])
    choice = validation.argmax(0)
    answer = np.zeros_like(judged[0].answer)
    for split, whole in enumerate(sets.outer):
        at = sets.seed(split), sets.rows(whole)
        answer[at] = judged[choice[split]].answer[at]
    return Judged(validation.max(0), choice, answer)


def score(answers: np.ndarray, labels: np.ndarray, weight: np.ndarray, classes: int) -> np.ndarray:
    """Accuracy, or Pearson's correlation where ``classes`` is 0: [M, N], [N], [W, N] -> float64 [M, W].

    A correlation that is not defined, since a side does not vary, counts 0.
    """
    weight = weight.astype(np.float64)
    mean = lambda values: values @ weight.T / weight.sum(1)
    if classes:
        return mean((answers == labels).astype(np.float64))
    p = answers - answers.mean(1, keepdims=True, dtype=np.float64)
    y = (labels - labels.mean(dtype=np.float64))[None]
    spread = np.maximum(mean(p**2) - mean(p) ** 2, 0) * np.maximum(mean(y**2) - mean(y) ** 2, 0)
    least = (
        1e-6 * np.abs(answers).max(1, keepdims=True, initial=0) * np.abs(labels).max(initial=0)
    ) ** 2 * 1e-6
    return np.where(
        spread > least, (mean(p * y) - mean(p) * mean(y)) / np.sqrt(np.maximum(spread, 1e-300)), 0
    )


def resample(rows: np.ndarray, count: int, draws: int = 1000) -> np.ndarray:
    """How often each of ``count`` rows is drawn when ``rows`` are drawn with replacement: int [draws, count]."""
    drawn = rows[np.random.RandomState(0).randint(len(rows), size=(draws, len(rows)))]
    return np.array([np.bincount(each, minlength=count) for each in drawn])


def interval(
    answer: np.ndarray, labels: np.ndarray, weight: np.ndarray, classes: int
) -> tuple[float, float]:
    """95% interval of the mean score over seeds: bootstrap over test examples (``weight`` of :func:`resample`) and seeds."""
    scores = score(answer, labels, weight, classes)  # [seeds, draws]
    drawn = np.random.RandomState(1).randint(len(scores), size=scores.shape)
    low, high = np.quantile(np.take_along_axis(scores, drawn, 0).mean(0), [0.025, 0.975])
    return float(low), float(high)
