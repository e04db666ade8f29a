"""Nested selection: inner folds choose, the test is looked at once; and intervals over test
examples and seeds.

    splits     = nested_splits(labels, test, folds=5, seeds=5)
    selections = [select_strength(answers, labels, splits, classes) for answers in candidates]
    winner     = select_candidate(selections, splits)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class NestedSplits(NamedTuple):
    """The training sets, and who is held out of each.

    Every outer split has ``folds`` inner sets, each with a fold of its training rows held out, and
    then one outer set, which trains on all of these rows and holds out the split's test.
    """

    train: np.ndarray  # bool [S, N]
    held_out: np.ndarray  # int32 [S, H], -1 beyond the last
    folds: int
    seeds: int

    @property
    def outer(self) -> range:
        """The indices of the outer sets, one a split."""
        return range(self.folds, len(self.train), self.folds + 1)

    def rows(self, index: int) -> np.ndarray:
        """The rows that a set holds out."""
        rows = self.held_out[index]
        return rows[rows >= 0]

    def seed(self, split: int) -> int:
        """The number of the seed of an outer split."""
        return split * self.seeds // len(self.outer)


def nested_splits(labels: np.ndarray, test: np.ndarray, folds: int, seeds: int) -> NestedSplits:
    """Outer and inner splits of N rows.

    ``test`` bool [N] marks the test rows, the same for every seed. If it marks none, every seed
    uses each outer fold as the test once. Labels that are integers are classes: then the folds are
    stratified.
    """
    train = []
    held_out = []
    for seed in range(seeds):
        tests = [test] if test.any() else stratified_folds(labels, folds, [seed])
        for number, outer_test in enumerate(tests):
            rows = np.flatnonzero(~outer_test)
            for fold in stratified_folds(labels[rows], folds, [seed, number]):
                inner_test = np.zeros(len(labels), bool)
                inner_test[rows[fold]] = True
                train.append(~outer_test & ~inner_test)
                held_out.append(inner_test)
            train.append(~outer_test)
            held_out.append(outer_test)
    most = max(mask.sum() for mask in held_out)
    padded = np.full((len(held_out), most), -1, np.int32)
    for index, mask in enumerate(held_out):
        padded[index, : mask.sum()] = np.flatnonzero(mask)
    return NestedSplits(np.array(train), padded, folds, seeds)


def stratified_folds(labels: np.ndarray, folds: int, seed: list[int]) -> np.ndarray:
    """bool [folds, N]: every row in one of them, at random; of each class an equal share."""
    order = np.random.RandomState(seed).permutation(len(labels))
    if np.issubdtype(labels.dtype, np.integer):
        order = order[np.argsort(labels[order], kind="stable")]
    position = np.argsort(order)
    return position % folds == np.arange(folds)[:, None]


class Selection(NamedTuple):
    """The choice of the inner folds for every outer split, and its answers on the split's test."""

    validation: np.ndarray  # float64 [splits]: the score of the choice on the inner folds
    choice: np.ndarray  # int [splits]
    answer: np.ndarray  # [seeds, N], 0 where a row is in no test


def select_strength(
    answers: np.ndarray, labels: np.ndarray, splits: NestedSplits, classes: int
) -> Selection:
    """For every outer split the one of K strengths that does best on the inner folds.

    ``answers`` [S, K, H] are for the rows that each set holds out; those of the outer sets choose
    nothing. A tie goes to the first of K.
    """
    num_splits = len(splits.outer)
    validation = np.zeros(num_splits)
    choice = np.zeros(num_splits, int)
    answer = np.zeros((splits.seeds, len(labels)), answers.dtype)
    for split, outer in enumerate(splits.outer):
        on_folds = inner_answers(answers, splits, outer)
        train_rows = splits.train[outer][None]
        scores = score(on_folds, labels, train_rows, classes)[:, 0]
        best = scores.argmax()
        choice[split] = best
        validation[split] = scores[best]
        rows = splits.rows(outer)
        seed = splits.seed(split)
        answer[seed, rows] = answers[outer, best, : len(rows)]
    return Selection(validation, choice, answer)


def inner_answers(answers: np.ndarray, splits: NestedSplits, outer: int) -> np.ndarray:
    """[K, N]: the answers to every training row of the set ``outer`` by the inner set that holds it
    out; 0 for the others.
    """
    _, num_strengths, _ = answers.shape
    num_rows = splits.train.shape[1]
    collected = np.zeros((num_strengths, num_rows), answers.dtype)
    for index in range(outer - splits.folds, outer):
        rows = splits.rows(index)
        collected[:, rows] = answers[index, :, : len(rows)]
    return collected


def select_candidate(candidates: Sequence[Selection], splits: NestedSplits) -> Selection:
    """For every outer split the candidate (layer, pooling, method) that does best on the inner
    folds.

    A tie goes to the first.
    """
    validation = np.array([candidate.validation for candidate in candidates])
    choice = validation.argmax(0)
    answer = np.zeros_like(candidates[0].answer)
    for split, outer in enumerate(splits.outer):
        winner = candidates[choice[split]]
        seed = splits.seed(split)
        rows = splits.rows(outer)
        answer[seed, rows] = winner.answer[seed, rows]
    return Selection(validation.max(0), choice, answer)


def score(answers: np.ndarray, labels: np.ndarray, weight: np.ndarray, classes: int) -> np.ndarray:
    """Accuracy, or Pearson's correlation where ``classes`` is 0: [M, N], [N], [W, N] -> float64 [M,
    W].

    ``weight`` counts a row so many times. A correlation that is not defined, since a side does not
    vary, counts 0.
    """
    weight = weight.astype(np.float64)

    def mean(values: np.ndarray) -> np.ndarray:
        return values @ weight.T / weight.sum(1)

    if classes:
        return mean((answers == labels).astype(np.float64))
    p = answers - answers.mean(1, keepdims=True, dtype=np.float64)
    y = labels - labels.mean(dtype=np.float64)
    y = y[None]
    p_mean = mean(p)
    y_mean = mean(y)
    covariance = mean(p * y) - p_mean * y_mean
    p_variance = np.maximum(mean(p**2) - p_mean**2, 0)
    y_variance = np.maximum(mean(y**2) - y_mean**2, 0)
    spread = p_variance * y_variance
    largest_answer = np.abs(answers).max(1, keepdims=True, initial=0)
    largest_label = np.abs(labels).max(initial=0)
    largest = largest_answer * largest_label
    round_off = (1e-6 * largest) ** 2 * 1e-6
    correlation = covariance / np.sqrt(np.maximum(spread, 1e-300))
    return np.where(spread > round_off, correlation, 0)


def resample(rows: np.ndarray, count: int, draws: int = 1000) -> np.ndarray:
    """How often each of ``count`` rows is drawn when ``rows`` are drawn with replacement: int
    [draws, count].
    """
    random = np.random.RandomState(0)
    drawn = rows[random.randint(len(rows), size=(draws, len(rows)))]
    return np.array([np.bincount(draw, minlength=count) for draw in drawn])


def interval(
    answer: np.ndarray, labels: np.ndarray, weight: np.ndarray, classes: int
) -> tuple[float, float]:
    """95% interval of the mean score over seeds.

    It is a bootstrap over test examples (``weight`` is :func:`resample`'s) and over seeds.
    """
    scores = score(answer, labels, weight, classes)  # [seeds, draws]
    drawn = np.random.RandomState(1).randint(len(scores), size=scores.shape)
    means = np.take_along_axis(scores, drawn, 0).mean(0)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
