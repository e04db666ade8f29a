"""Metrics of a whole set, in NumPy, on outputs in the order of the labels.

They are scikit-learn's and SciPy's (the tests compare them), without the second that importing
these takes in every run, and 5 to 250 times as fast on a set of a thousand rows: an interval of a
score computes it hundreds of times.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from adapt.errors import StrategyError, first_line
from adapt.training import losses

Scores = dict[str, float]
# (outputs of the head [N, ...], labels as the loss takes them) -> a number; more is better
Metric = Callable[[np.ndarray, np.ndarray], float]
NAN = float("nan")
LESS_IS_BETTER = ("mse", "ece")
# What lies between 0 and 1, or in the case of a correlation between -1 and 1.
SHARES = (
    "accuracy",
    "macro_f1",
    "rare_f1",
    "f1",
    "exact_match",
    "entity_f1",
    "entity_precision",
    "entity_recall",
    "auroc",
    "average_precision",
    "recall_at_1",
    "mrr",
    "ece",
    "pearson",
    "spearman",
)
COUNT = "support:"  # how the names of scores begin that count what there is
TIED = 1e-6  # cosines that differ by less are the same, but for round-off


def check_own(metrics: Any) -> dict[str, Metric]:
    """Metrics of one's own by name. Raises :class:`StrategyError` for what is no dict of functions."""
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        kind = type(metrics).__name__
        raise StrategyError(f"`metrics` is of type {kind}: give a dict of functions by name")
    for name, metric in metrics.items():
        if not isinstance(name, str) or not name or name == "loss":
            raise StrategyError(f"`metrics` has the name {name!r}: give another")
        if not callable(metric):
            raise StrategyError(f"`metrics`[{name!r}] is {metric!r}, which is no function")
    return dict(metrics)


def own_scores(metrics: Mapping[str, Metric], outputs: np.ndarray, labels: np.ndarray) -> Scores:
    """The scores of metrics of one's own. Raises :class:`StrategyError` where one gives no number."""
    labels = np.asarray(labels)
    scores = {}
    for name, metric in metrics.items():
        try:
            scores[name] = float(metric(outputs, labels))
        except Exception as error:  # whatever the function raises
            raise StrategyError(
                f"`metrics`[{name!r}] gave no number for outputs {list(outputs.shape)} and labels "
                f"{list(labels.shape)}: {type(error).__name__}: {first_line(error)}"
            ) from error
    return scores


def softmax(logits: np.ndarray) -> np.ndarray:
    """logits [..., C] -> probabilities, float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) in float64, without overflow."""
    return np.exp(-np.logaddexp(0, -logits.astype(np.float64)))


def more_is_better(name: str) -> bool:
    """Whether more of a metric is better; ``ece_tone`` is that of one label column, ``support:PER``
    counts and is neither.
    """
    if name.startswith(COUNT):
        return False
    return not any(name == less or name.startswith(f"{less}_") for less in LESS_IS_BETTER)


def is_share(name: str) -> bool:
    """Whether a metric of a task lies between 0 and 1, or -1 and 1. ``accuracy_tone`` is that of one
    label column, ``f1:PER`` that of one class.
    """
    name = name.partition(":")[0]
    return any(name == share or name.startswith(f"{share}_") for share in SHARES)


def mean_of_scored(values: np.ndarray) -> float:
    """The mean without the examples that are not scored, which have nan; nan where none is left."""
    scored = values[~np.isnan(values)]
    return float(scored.mean()) if len(scored) else NAN


def is_of_a_class(name: str) -> bool:
    """Whether a score is that of one class, such as ``f1:PER``."""
    return ":" in name


def check_direction(name: str | None) -> None:
    """Raise :class:`StrategyError` for a score of which less is better, since it would choose the
    worst, and for one that counts.
    """
    if name is not None and name.startswith(COUNT):
        raise StrategyError(f"`score` {name} counts and judges nothing: give another")
    if name is not None and not more_is_better(name):
        raise StrategyError(
            f"`score` {name}: less of it is better, and a score chooses the largest; give another"
        )


def is_right(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the class with the largest logit is the label, float64 [N]. logits [N, C], labels
    [N].
    """
    return (logits.argmax(-1) == labels).astype(np.float64)


def decisions(predicted: np.ndarray, labels: np.ndarray) -> Scores:
    """accuracy and macro_f1 over the classes that occur, as labels or as predictions.

    Both are int [N], or [N, C] of 0 and 1: then an example is right if all of its labels are, and
    every column is a class, a single one, too (scikit-learn takes that for the two classes 0 and 1).
    """
    is_right = predicted == labels
    if labels.ndim > 1:
        of_class = f1_by_class((predicted & labels).sum(0), predicted.sum(0), labels.sum(0))
        return {"accuracy": float(is_right.all(1).mean()), "macro_f1": float(of_class.mean())}
    classes = 1 + int(max(predicted.max(), labels.max()))
    predictions = np.bincount(predicted, minlength=classes)
    occurrences = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[is_right], minlength=classes)
    occurs = predictions + occurrences > 0
    of_class = f1_by_class(right, predictions, occurrences)[occurs]
    return {"accuracy": float(is_right.mean()), "macro_f1": float(of_class.mean())}


def f1_by_class(right: np.ndarray, predictions: np.ndarray, occurrences: np.ndarray) -> np.ndarray:
    """The harmonic mean of precision and recall, float64 [C]; 0 where nothing is right.

    ``predictions`` int [C] count how often each class is predicted, ``right`` how often rightly, and
    ``occurrences`` how often it is the label.
    """
    return 2 * right / np.maximum(predictions + occurrences, 1)


def classification(logits: np.ndarray, labels: np.ndarray) -> Scores:
    """:func:`decisions` and ece; two classes add rare_f1, auroc and average_precision.

    Those three are of the rarer class. All are nan where a logit is. logits [N, C], labels int [N].
    """
    if np.isnan(logits).any():
        names = ["accuracy", "macro_f1", "ece"]
        if logits.shape[1] == 2:
            names += ["rare_f1", "auroc", "average_precision"]
        return dict.fromkeys(names, NAN)
    p = softmax(logits)
    predicted = p.argmax(-1)
    scores = decisions(predicted, labels)
    scores["ece"] = calibration_error(p, labels)
    if p.shape[1] == 2:
        rare = int(2 * labels.sum() <= len(labels))  # the second class where both are as frequent
        is_rare = labels == rare
        is_predicted = predicted == rare
        right = np.sum(is_rare & is_predicted)
        scores["rare_f1"] = float(f1_by_class(right, is_predicted.sum(), is_rare.sum()))
        scores |= ranking(p[:, rare], is_rare)
    return scores


def multilabel(logits: np.ndarray, labels: np.ndarray) -> Scores:
    """:func:`decisions` of every label by itself. logits [N, C], labels [N, C] of 0 and 1."""
    return decisions((logits > 0).astype(np.int32), labels.astype(np.int32))


def tags(logits: np.ndarray, labels: np.ndarray) -> Scores:
    """:func:`decisions` of words. logits [words, C], labels int [words]."""
    return decisions(logits.argmax(-1), labels)


def multitask(logits: np.ndarray, labels: np.ndarray, columns: Sequence[str]) -> Scores:
    """``accuracy_<column>`` and so on for each label column; accuracy is their mean.

    logits [N, K, C], -inf for the classes that a column does not have; labels int [N, K].
    """
    scores: Scores = {}
    for index, column in enumerate(columns):
        is_class = np.isfinite(logits[:, index]).any(0)
        of_column = classification(logits[:, index, is_class], labels[:, index])
        scores |= {f"{name}_{column}": value for name, value in of_column.items()}
    accuracies = [value for name, value in scores.items() if name.startswith("accuracy_")]
    return {"accuracy": float(np.mean(accuracies))} | scores


def regression(values: np.ndarray, labels: np.ndarray) -> Scores:
    """mse, pearson, spearman. values [N, 1], labels [N].

    Correlations are nan where a side is constant or has a nan: they are not defined then.
    """
    values = values[:, 0].astype(np.float64)
    labels = labels.astype(np.float64)
    scores = {"mse": float(np.mean((values - labels) ** 2)), "pearson": NAN, "spearman": NAN}
    if len(values) > 1 and np.ptp(values) > 0 and np.ptp(labels) > 0:
        scores["pearson"] = correlation(values, labels)
        scores["spearman"] = correlation(average_ranks(values), average_ranks(labels))
    return scores


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation of float64 [N] and [N], neither of which is constant."""
    one = one - one.mean()
    other = other - other.mean()
    # Each over its largest value first: squares of large numbers would overflow.
    one = one / np.abs(one).max()
    other = other / np.abs(other).max()
    cosine = np.dot(one, other) / np.sqrt(np.dot(one, one) * np.dot(other, other))
    return float(np.clip(cosine, -1, 1))


def average_ranks(values: np.ndarray) -> np.ndarray:
    """The places [N] of values [N] from the least, 1, to the largest, N; those that are equal share
    the mean of their places. float64.
    """
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[which]


def choice(logits: np.ndarray, labels: np.ndarray) -> Scores:
    """accuracy and ece between the K sequences of an example. logits [N * K, 1], labels int [N]."""
    p = softmax(logits.reshape(len(labels), -1))
    accuracy = float((p.argmax(-1) == labels).mean())
    return {"accuracy": accuracy, "ece": calibration_error(p, labels)}


def retrieval(embeddings: np.ndarray, labels: np.ndarray, size: int = 1024) -> Scores:
    """recall_at_1 and mrr of finding an anchor's positive by its cosine among all positives.

    embeddings [2 N, D], anchor and positive in turn. Where several positives are as near as its own
    (to round-off), the scores are those that are expected when one of them is drawn.
    """
    pairs = losses.unit_pairs(jnp.asarray(embeddings), jnp.asarray(labels))
    anchors = np.asarray(pairs[0])
    positives = np.asarray(pairs[1])
    # The mean of 1 / rank over ranks a + 1 to b is (harmonic[b] - harmonic[a]) / (b - a).
    harmonic = np.append(0, np.cumsum(1 / np.arange(1, len(anchors) + 1)))
    recall = []
    reciprocal = []
    for start in range(0, len(anchors), size):
        cosines = anchors[start : start + size] @ positives.T
        row = np.arange(len(cosines))
        to_its_own = cosines[row, start + row]
        margins = cosines - to_its_own[:, None]
        nearer = (margins > TIED).sum(1)
        tied = (np.abs(margins) <= TIED).sum(1)
        recall.append((nearer == 0) / tied)
        reciprocal.append((harmonic[nearer + tied] - harmonic[nearer]) / tied)
    return {
        "recall_at_1": float(np.concatenate(recall).mean()),
        "mrr": float(np.concatenate(reciprocal).mean()),
    }


def similarity(embeddings: np.ndarray, labels: np.ndarray) -> Scores:
    """:func:`ranking` of pairs by their cosine: those of one class should be the nearer ones.

    embeddings [2 N, D], a pair in turn; labels [N] of 0 and 1.
    """
    one, other = losses.unit_pairs(jnp.asarray(embeddings), jnp.asarray(labels))
    return ranking(np.asarray((one * other).sum(-1)), labels > 0)


def ranking(scores: np.ndarray, labels: np.ndarray) -> Scores:
    """auroc and average_precision of scores [N] for labels bool [N].

    auroc is the share of pairs of a positive and a negative in which the positive has the larger
    score, ties half; average_precision the mean, over the positives, of the precision among all that
    have at least their score. They are nan where all labels are the same or a score is nan: not
    defined then.
    """
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives or np.isnan(scores).any():
        return {"auroc": NAN, "average_precision": NAN}
    _, which, counts = np.unique(scores, return_inverse=True, return_counts=True)
    positives_at = np.bincount(which, labels, len(counts))  # by score, from the least
    negatives_at = counts - positives_at
    negatives_below = np.cumsum(negatives_at) - negatives_at
    pairs_won = np.dot(positives_at, negatives_below + negatives_at / 2)
    precision = np.cumsum(positives_at[::-1]) / np.cumsum(counts[::-1])
    return {
        "auroc": float(pairs_won / (positives * negatives)),
        "average_precision": float(np.dot(precision, positives_at[::-1]) / positives),
    }


def calibration_error(p: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: |accuracy - confidence| over equal bins of confidence.

    Guo et al. 2017, eq. 3. p [N, C], labels int [N].
    """
    confidence = p.max(-1)
    is_right = p.argmax(-1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, is_right - confidence, bins)
    return float(np.abs(gaps).sum() / max(len(p), 1))


def majority(train: np.ndarray, test: np.ndarray) -> Scores:
    """majority_accuracy: always answering what is most frequent in training.

    Labels [N], or [N, K] of which all have to be right.
    """
    rows, counts = np.unique(train, axis=0, return_counts=True)
    is_right = (test == rows[counts.argmax()]).reshape(len(test), -1).all(1)
    return {"majority_accuracy": float(is_right.mean())}
