"""Losses are per example, float32, and pure; a step takes sums of them and of weights, never means of means."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Softmax cross-entropy in nats. logits [N, C], label int32 [N] -> [N]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), label)


def binary_cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Mean over classes of the sigmoid cross-entropy, in nats. logits [N, C], label [N, C] of 0 and 1 -> [N]."""
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), label).mean(-1)


def squared_error(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Squared error. logits [N, 1], label float32 [N] -> [N]."""
    return (logits[:, 0].astype(jnp.float32) - label) ** 2


LOSSES: dict[str, Loss] = {
    "classification": cross_entropy,
    "multilabel": binary_cross_entropy,
    "regression": squared_error,
}


def probabilities(logits: np.ndarray, task: str) -> np.ndarray:
    """logits [N, C] -> softmax or sigmoid probabilities [N, C]; regression: the values as they are."""
    logits = logits.astype(np.float64)
    if task == "regression":
        return logits
    if task == "multilabel":
        return np.exp(-np.logaddexp(0, -logits))  # 1 / (1 + exp(-x)), without overflow
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def metrics(logits: np.ndarray, labels: np.ndarray, task: str) -> dict[str, float]:
    """Test metrics of one data set (scikit-learn and SciPy do the counting).

    classification: accuracy, macro_f1 over the classes that occur in labels or predictions; multilabel: accuracy is
    the share of examples with every label right, macro_f1 over labels; regression: mse, pearson, spearman (nan where
    a side is constant, since a correlation is then not defined).
    """
    from sklearn.metrics import accuracy_score, f1_score

    if task == "regression":
        from scipy import stats

        values = logits[:, 0].astype(np.float64)
        varies = len(values) > 1 and np.ptp(values) > 0 and np.ptp(labels) > 0

        def correlation(kind: Any) -> float:
            return float(kind(values, labels).statistic) if varies else float("nan")

        return {
            "mse": float(np.mean((values - labels) ** 2)),
            "pearson": correlation(stats.pearsonr),
            "spearman": correlation(stats.spearmanr),
        }
    predicted = (logits > 0).astype(np.int32) if task == "multilabel" else logits.argmax(-1)
    truth = labels.astype(np.int32)
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0.0)),  # pyright: ignore
    }


def majority_accuracy(train: np.ndarray, test: np.ndarray, task: str) -> float:
    """Accuracy on ``test`` of always answering what is most frequent in ``train``: the floor of every result."""
    if task == "multilabel":
        rows, counts = np.unique(train, axis=0, return_counts=True)
        return float((test == rows[counts.argmax()]).all(-1).mean())
    values, counts = np.unique(train, return_counts=True)
    return float((test == values[counts.argmax()]).mean())
