"""Tasks as data: how outputs are scored against labels, and what would score without looking. Adding one is an entry.

Metrics and floors are of a whole set, in NumPy, on outputs in the order of its labels; scikit-learn and SciPy count.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from adapt.models import Classifier, Span, Tagger
from adapt.training import losses
from adapt.training.losses import Loss

Scores = dict[str, float]
NAN = float("nan")
TIED = 1e-6  # cosines that differ by less are the same, but for round-off


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learned. Labels are [N, ...]; of tags they are the words', and every word is an example."""

    loss: Loss  # (outputs, labels) -> [N]
    metrics: Callable[[np.ndarray, np.ndarray], Scores]  # (outputs, labels)
    score: str  # the metric by which validation decides: more is better
    floor: Callable[[np.ndarray, np.ndarray], Scores]  # (labels of training, of the test)
    head: Any = Classifier
    classes: int | None = None  # outputs of the head; None: as many as there are label names

    def mean_loss(self, outputs: np.ndarray, labels: np.ndarray, size: int = 1024) -> float:
        """Over a set, ``size`` examples at a time: in a contrast, negatives are those of the same part."""
        of = len(outputs) // len(labels)  # outputs of an example
        parts = []
        for at in range(0, len(labels), size):
            own = outputs[at * of : (at + size) * of], labels[at : at + size]
            parts.append(self.loss(*map(jnp.asarray, own)))
        return float(np.mean(np.concatenate(parts)))


def softmax(logits: np.ndarray) -> np.ndarray:
    """logits [..., C] -> probabilities, float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) in float64, without overflow."""
    return np.exp(-np.logaddexp(0, -logits.astype(np.float64)))


def decisions(predicted: np.ndarray, truth: np.ndarray) -> Scores:
    """accuracy (all labels of an example right, where it has several) and macro_f1 over the classes that occur."""
    from sklearn.metrics import accuracy_score, f1_score

    f1 = f1_score(truth, predicted, average="macro", zero_division=0.0)  # pyright: ignore
    return {"accuracy": float(accuracy_score(truth, predicted)), "macro_f1": float(f1)}


def classification(logits: np.ndarray, labels: np.ndarray) -> Scores:
    """:func:`decisions` and ece; of two classes also rare_f1, auroc and average_precision, all of the rarer class."""
    p = softmax(logits)
    found = decisions(p.argmax(-1), labels) | {"ece": calibration_error(p, labels)}
    if p.shape[1] != 2:
        return found
    from sklearn.metrics import f1_score

    rare = int(2 * labels.sum() <= len(labels))  # the second class where both are as frequent
    f1 = f1_score(labels == rare, p.argmax(-1) == rare, zero_division=0.0)  # pyright: ignore
    return found | {"rare_f1": float(f1)} | ranking(p[:, rare], labels == rare)


def ranking(scores: np.ndarray, truth: np.ndarray) -> Scores:
    """auroc and average_precision of scores [N] for truth bool [N]; nan where it is constant: they are not defined then."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    if truth.all() or not truth.any():
        return {"auroc": NAN, "average_precision": NAN}
    kinds = {"auroc": roc_auc_score, "average_precision": average_precision_score}
    return {name: float(kind(truth, scores)) for name, kind in kinds.items()}


def calibration_error(p: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 3): |accuracy - confidence| over equal bins of confidence.

    p [N, C], labels [N].
    """
    confidence = p.max(-1)
    right = p.argmax(-1) == labels
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return float(np.abs(np.bincount(which, right - confidence, bins)).sum() / max(len(p), 1))


def multitask(logits: np.ndarray, labels: np.ndarray, columns: Sequence[str] = ()) -> Scores:
    """``accuracy_<column>`` and so on for each of the label ``columns``; accuracy is their mean. logits [N, K, C]."""
    found: Scores = {}
    for place, column in enumerate(columns or map(str, range(labels.shape[1]))):
        there = np.isfinite(logits[:, place]).any(0)  # the classes that this column has
        scores = classification(logits[:, place, there], labels[:, place])
        found |= {f"{name}_{column}": value for name, value in scores.items()}
    return {
        "accuracy": float(np.mean([v for k, v in found.items() if k.startswith("accuracy_")]))
    } | found


def regression(values: np.ndarray, labels: np.ndarray) -> Scores:
    """mse, pearson, spearman; nan where a side is constant, since a correlation is then not defined. values [N, 1]."""
    from scipy import stats

    values = values[:, 0].astype(np.float64)
    varies = len(values) > 1 and np.ptp(values) > 0 and np.ptp(labels) > 0
    kinds = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}
    found = {
        name: float(kind(values, labels).statistic) if varies else NAN
        for name, kind in kinds.items()
    }
    return {"mse": float(np.mean((values - labels) ** 2))} | found


def choice(logits: np.ndarray, labels: np.ndarray) -> Scores:
    """accuracy and ece between the K sequences of an example. logits [N * K, 1]."""
    p = softmax(logits.reshape(len(labels), -1))
    return {"accuracy": float((p.argmax(-1) == labels).mean()), "ece": calibration_error(p, labels)}


def spans(logits: np.ndarray, labels: np.ndarray) -> Scores:
    """exact_match, and f1: the mean over examples of the F1 of their tokens (Rajpurkar et al. 2016, 6.1)."""
    found = best_spans(logits)
    shared = np.minimum(found[:, 1], labels[:, 1]) - np.maximum(found[:, 0], labels[:, 0]) + 1
    sizes = (np.ptp(found, 1) + 1) + (np.ptp(labels, 1) + 1)
    f1 = 2 * np.maximum(shared, 0) / sizes
    return {"exact_match": float((found == labels).all(-1).mean()), "f1": float(f1.mean())}


def best_spans(logits: np.ndarray) -> np.ndarray:
    """The (start, end) with start <= end whose logits sum to the most. [N, 2, L] -> int [N, 2]."""
    start = logits[:, 0]
    end = logits[:, 1]
    last = (np.maximum.accumulate(start, 1) + end).argmax(1)
    before = np.where(np.arange(start.shape[1]) <= last[:, None], start, -np.inf)
    return np.stack([before.argmax(1), last], 1)


def retrieval(embeddings: np.ndarray, labels: np.ndarray, size: int = 1024) -> Scores:
    """recall_at_1 and mrr of finding each anchor's own positive among all of the set by its cosine. [2 N, D].

    Of positives that are as near as its own (to round-off) one is drawn: the scores are the expected ones.
    """
    anchors, positives = map(
        np.asarray, losses.unit_pairs(jnp.asarray(embeddings), jnp.asarray(labels))
    )
    harmonic = np.append(0, np.cumsum(1 / np.arange(1, len(anchors) + 1)))
    recall = []
    reciprocal = []
    for at in range(0, len(anchors), size):
        cosines = anchors[at : at + size] @ positives.T
        apart = cosines - cosines[np.arange(len(cosines)), at + np.arange(len(cosines))][:, None]
        nearer = (apart > TIED).sum(1)
        tied = (np.abs(apart) <= TIED).sum(1)
        recall.append((nearer == 0) / tied)
        reciprocal.append((harmonic[nearer + tied] - harmonic[nearer]) / tied)
    return {
        "recall_at_1": float(np.concatenate(recall).mean()),
        "mrr": float(np.concatenate(reciprocal).mean()),
    }


def similarity(embeddings: np.ndarray, labels: np.ndarray) -> Scores:
    """:func:`ranking` of pairs [2 N, D] by their cosine: those of one class should be the nearer ones."""
    one, other = losses.unit_pairs(jnp.asarray(embeddings), jnp.asarray(labels))
    return ranking(np.asarray((one * other).sum(-1)), labels > 0)


def majority(train: np.ndarray, test: np.ndarray) -> Scores:
    """Accuracy of always answering what is most frequent in training; labels [N], or [N, K] that have all to be right."""
    rows, counts = np.unique(train, axis=0, return_counts=True)
    return {
        "majority_accuracy": float(
            (test == rows[counts.argmax()]).reshape(len(test), -1).all(1).mean()
        )
    }


def majorities(train: np.ndarray, test: np.ndarray) -> Scores:
    """The mean of :func:`majority` over label columns [N, K]."""
    each = [majority(*both)["majority_accuracy"] for both in zip(train.T, test.T, strict=True)]
    return {"majority_accuracy": float(np.mean(each))}


tags = lambda logits, labels: decisions(logits.argmax(-1), labels)
multilabel = lambda logits, labels: decisions(
    (logits > 0).astype(np.int32), labels.astype(np.int32)
)
mean_answer = lambda train, test: {"mse_of_mean": float(np.mean((test - train.mean()) ** 2))}
guess = lambda train, test: {"chance_recall_at_1": 1 / len(test)}
any_order = lambda train, test: {"chance_average_precision": float(test.mean())}

TASKS = {
    "classification": Task(losses.cross_entropy, classification, "accuracy", majority),
    "multilabel": Task(losses.binary_cross_entropy, multilabel, "macro_f1", majority),
    "regression": Task(losses.squared_error, regression, "pearson", mean_answer, classes=1),
    "multitask": Task(losses.columns_cross_entropy, multitask, "accuracy", majorities),
    "tags": Task(losses.cross_entropy, tags, "accuracy", majority, Tagger),
    "span": Task(losses.span_cross_entropy, spans, "f1", majority, Span),
    "choice": Task(losses.choice_cross_entropy, choice, "accuracy", majority, classes=1),
    "contrastive": Task(losses.contrastive, retrieval, "recall_at_1", guess, classes=0),
    "setfit": Task(losses.cosine_error, similarity, "average_precision", any_order, classes=0),
}
