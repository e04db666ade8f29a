"""Ridge classifiers on features of any width, in coordinates of the labelled rows.

A head with an L2 penalty lies in the space that its training rows span. So 200 rows with the logits of
30,000 tokens are fitted in 200 coordinates, and the result is the same.
"""

from collections.abc import Sequence

import numpy as np

from adapt.data.labels import stratified_split
from adapt.probing import linear

STRENGTHS = (1e5, 1e4, 1e3, 100.0, 10.0, 1.0)  # of the penalty; the strongest wins a tie
HELD_OUT = 0.2  # of the labelled rows, which choose


def drawn_rows(count: int, labels: int, seed: int) -> np.ndarray:
    """The rows of ``count`` that a seed draws, int64 [labels]."""
    return np.random.default_rng(seed).permutation(count)[:labels]


def right_answers(
    candidates: Sequence[np.ndarray], targets: np.ndarray, draws: np.ndarray, test: int
) -> np.ndarray:
    """Which test rows a probe gets right, bool [draws, test].

    ``candidates`` are features [N, D], by several poolings, say, of rows to draw from and, in the
    end, of ``test`` rows; ``targets`` int [N] are their classes; ``draws`` int [draws, labels] are
    rows. Each draw is fitted on four fifths of its rows; the fifth that is left chooses the
    candidate and the strength of the penalty.
    """
    classes = int(targets.max()) + 1
    test_rows = np.arange(len(targets) - test, len(targets))
    right = []
    for rows in draws:
        fitted, left = stratified_split(targets[rows], HELD_OUT, 0)
        asked = np.concatenate([rows[left], test_rows])
        answers = []
        for features in candidates:
            answers.append(answered(features, targets, rows[fitted], asked, classes))
        is_right = np.concatenate(answers) == targets[asked]
        chosen = is_right[:, : len(left)].mean(1).argmax()
        right.append(is_right[chosen, len(left) :])
    return np.stack(right)


def answered(
    features: np.ndarray, targets: np.ndarray, train: np.ndarray, asked: np.ndarray, classes: int
) -> np.ndarray:
    """The classes that heads fitted on the rows ``train`` say of the rows ``asked``, by strength:
    int [strengths, asked].
    """
    own, others = coordinates(features[train], features[asked])
    every = np.ones((1, len(train)), bool)
    heads = linear.ridge(linear.unscaled(own, every), targets[train], every, STRENGTHS, classes)
    logits = np.einsum("kcd,nd->knc", heads.kernel[0], others) + heads.bias[0][:, None]
    return logits.argmax(-1)


def coordinates(train: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(training rows [n, R], other rows [m, R]) standardised by the training rows, in an orthonormal
    basis of what these span; R is the lesser of n and the width.
    """
    train = train.astype(np.float64)
    centre = train.mean(0)
    scale = train.std(0)
    floor = linear.min_std(centre, scale)
    unit = np.where(scale > floor, scale, np.inf)
    own = (train - centre) / unit
    rest = (others.astype(np.float64) - centre) / unit
    if own.shape[1] <= len(own):
        return own, rest
    values, vectors = np.linalg.eigh(own @ own.T)
    lengths = np.sqrt(np.maximum(values, 0))
    is_direction = lengths > 1e-6 * lengths[-1]
    basis = vectors[:, is_direction]
    lengths = lengths[is_direction]
    return basis * lengths, rest @ own.T @ basis / lengths
