"""Features and labels on which a solver of probes can go wrong."""

import numpy as np

from tests.helpers import tiny

STRENGTHS = (0.01, 1.0, 30.0, 1e4)
TEXTS = [text for text, _ in tiny.sentences(41, seed=3)]


def ill_scaled(
    classes: int, count: int = 240, width: int = 12, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Features of very different units, one constant and two collinear, and labels whose first class is rare."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, width)) @ rng.standard_normal((width, width))
    rare_first = 4 * (np.arange(classes) == 0)
    y = (x[:, :classes] + rng.gumbel(size=(count, classes)) * 2 - rare_first).argmax(1)
    x = x * 10.0 ** rng.integers(-3, 3, width) + rng.integers(-5, 5, width)
    x[:, 3] = 0.3
    x[:, 5] = 2 * x[:, 4] - 1
    return x.astype(np.float32), y.astype(np.int32)


def three_sets(count: int, seed: int = 1) -> np.ndarray:
    """Training sets of 60 to 90% of the rows; the last ten rows are in none."""
    draws = np.random.default_rng(seed).random((3, count))
    train = draws < np.array([[0.6], [0.8], [0.9]])
    train[:, -10:] = False
    return train


def small_sets(labels: np.ndarray, count: int, per_class: int) -> np.ndarray:
    """Training sets of so many rows of each class, bool [count, N]."""
    rng = np.random.default_rng(2)
    train = np.zeros((count, len(labels)), bool)
    for rows in train:
        for label in np.unique(labels):
            of_class = np.flatnonzero(labels == label)
            rows[rng.choice(of_class, per_class, replace=False)] = True
    return train
