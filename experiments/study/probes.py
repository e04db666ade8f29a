"""Logistic regression on fixed features, by draws of labelled rows."""

import numpy as np

from adapt.data.labels import stratified_split
from adapt.probing import linear
from adapt.probing.logistic_regression import logistic

STRENGTHS = (1000.0, 100.0, 10.0, 1.0, 0.1)  # of the penalty; the strongest wins a tie
HELD_OUT = 0.2  # of the labelled rows, which choose the strength


def drawn_rows(count: int, labels: int, seed: int) -> np.ndarray:
    """The rows of ``count`` that a seed draws, int64 [labels]."""
    return np.random.default_rng([seed, labels]).permutation(count)[:labels]


def probed(features: np.ndarray, targets: np.ndarray, draws: np.ndarray, test: int) -> np.ndarray:
    """Which test rows a probe gets right, bool [draws, test].

    ``features`` [N, D] and ``targets`` int [N] are of rows to draw from and, in the end, of the
    ``test`` rows; ``draws`` int [draws, labels] are rows. Each draw is a fit on four fifths of its
    rows, standardised, with the strength that does best on the fifth that is left.
    """
    classes = int(targets.max()) + 1
    train = np.zeros((len(draws), len(targets)), bool)
    held_out = []
    for mask, rows in zip(train, draws, strict=True):
        fitted, left = stratified_split(targets[rows], HELD_OUT, 0)
        mask[rows[fitted]] = True
        held_out.append(rows[left])
    scaled = linear.standardize(features, train)
    heads = logistic(scaled, targets, train, STRENGTHS, classes)
    test_rows = np.arange(len(targets) - test, len(targets))
    right = np.zeros((len(draws), test), bool)
    for number, left in enumerate(held_out):
        on_left = answers(heads, scaled.x[left], number) == targets[left]
        best = on_left.mean(1).argmax()
        right[number] = answers(heads, scaled.x[test_rows], number)[best] == targets[test_rows]
    return right


def answers(heads: linear.Linear, x: np.ndarray, number: int) -> np.ndarray:
    """The classes that one draw's heads say of rows x [n, D], int [strengths, n]."""
    logits = np.einsum("kcd,nd->knc", heads.kernel[number], x, optimize=True)
    logits = logits + heads.bias[number][:, None]
    if logits.shape[-1] == 1:
        return (logits[..., 0] > 0).astype(np.int64)
    return logits.argmax(-1)


def reduced(features: np.ndarray) -> np.ndarray:
    """Features [N, D] of more columns than they have directions, in coordinates of these, [N, R].

    Columns are standardised, and directions with less than a millionth of the variance of the
    first are left out: logits of a vocabulary are a linear map of a narrow state. A fit with an L2
    penalty is the same in either coordinates.
    """
    x = features - features.mean(0)
    x = x / np.maximum(x.std(0), 1e-6)
    values, vectors = np.linalg.eigh((x @ x.T).astype(np.float64))
    kept = values > 1e-6 * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])
