"""Checks on what a run scores: against no input, against chance, and between its sets."""

from collections.abc import Iterator

import numpy as np

from adapt.data.labels import is_class_numbers
from adapt.doctor.cases import FEW, ResultCase, ScoredSet
from adapt.doctor.findings import Finding
from adapt.tasks import metrics

SURE = 4.0  # standard errors: less than one in ten thousand by chance
GAP = 0.05  # of accuracy, below which two sets agree whatever their sizes
MISCALIBRATED = 0.2  # of probability above accuracy; fine-tuned encoders have up to 0.1
PADDING = 0.5
MANY_CLASSES = 1000  # whose confusions are not matched
FEW_STEPS = 20


def no_better_than_baseline(case: ResultCase) -> Iterator[Finding]:
    """A score no better than that of an answer that looks at no input."""
    renamed = renamed_sets(case)
    for scored in case.sets:
        if scored.name in renamed:  # its own check says more
            continue
        for baseline, (metric, sign) in case.task.beats.items():
            low = case.baselines.get(scored.name, {}).get(baseline)
            value = scored.scores.get(metric)
            if low is None or value is None or not np.isfinite(low) or sign * (value - low) > 0:
                continue
            if scored.name == "validation" and len(scored.labels) < FEW:
                continue
            yield Finding(
                severity="warning",
                seen=f"{scored.name}: {metric} {value:.4g} is no better than {baseline} {low:.4g}, "
                "which looks at no input",
                cause="nothing was learned that holds for new rows, or the classes are too uneven for "
                "this metric",
                fix="look at the rates, the labels and macro_f1",
                certainty="possible",
                evidence={"set": scored.name, metric: value, baseline: low},
            )


def one_class_for_all(case: ResultCase) -> Iterator[Finding]:
    """One class for every input."""
    for scored in case.sets:
        labels = scored.labels
        has_classes = case.task.label_kind == "classes" and is_class_numbers(labels)
        if not has_classes or len(labels) < FEW:
            continue
        numbers = only_class(scored)
        if not len(numbers) or len(np.unique(labels)) < 2:
            continue
        name = "' or '".join(case.names[number] for number in numbers)
        yield Finding(
            severity="error",
            seen=f"all {len(labels):,} {scored.name} rows get '{name}'",
            cause="the rate is too high, the classes are too uneven, or nothing was learned",
            fix="give a smaller `learning_rate`, or `class_weights` balanced",
            certainty="possible",
            evidence={"set": scored.name, "class": name, "rows": len(labels)},
        )


def only_class(scored: ScoredSet) -> list[int]:
    """The class that every example gets, or the few that it may be; [] where there are several.

    Without outputs the scores tell it: a class of share p that all get has accuracy p and F1
    2p / (1 + p), and the other classes have F1 0.
    """
    if scored.outputs is not None:
        predicted = np.unique(scored.outputs.argmax(-1))
        return predicted.tolist() if len(predicted) == 1 else []
    accuracy = scored.scores.get("accuracy")
    macro_f1 = scored.scores.get("macro_f1")
    if accuracy is None or macro_f1 is None:
        return []
    counts = np.bincount(np.asarray(scored.labels))
    shares = counts / counts.sum()
    expected = 2 * shares / (1 + shares) / np.count_nonzero(counts)
    fits = np.isclose(shares, accuracy) & np.isclose(expected, macro_f1) & (counts > 0)
    return np.flatnonzero(fits).tolist()


def labels_in_another_order(case: ResultCase) -> Iterator[Finding]:
    """Labels that fit the predictions under other names: flipped, or numbered in another order."""
    for scored, predicted, labels in decided(case):
        found = best_order(predicted, labels, len(case.names))
        if found is None:
            continue
        order, own, other = found
        pairs = {case.names[i]: case.names[j] for i, j in enumerate(order) if i != j}
        shown = ", ".join(f"'{one}' as '{name}'" for one, name in list(pairs.items())[:4])
        yield Finding(
            severity="error",
            seen=f"{scored.name}: accuracy {own:.3f}, and {other:.3f} with {shown}",
            cause="the labels of this set are flipped, or numbered in another order than the run's",
            fix="give labels as names, or the numbers of the training data",
            certainty="likely",
            evidence={"set": scored.name, "accuracy": own, "renamed": other, "names": pairs},
        )


def best_order(
    predicted: np.ndarray, labels: np.ndarray, classes: int
) -> tuple[np.ndarray, float, float] | None:
    """(the class that each predicted class would have to be called, the accuracy, that with these
    names), where the latter is better beyond chance by more than the whole gap of agreement; None
    where the names are right.
    """
    if classes > MANY_CLASSES or len(labels) < FEW:
        return None
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (predicted, labels), 1)
    own = float(np.trace(confusion)) / len(labels)
    most = float(confusion.max(1).sum()) / len(labels)  # if several could have the same name
    if most - own <= GAP:
        return None
    # Imported where it is needed: it takes half a second, which a run that is well does not have.
    from scipy.optimize import linear_sum_assignment

    _, order = linear_sum_assignment(-confusion)
    other = float(confusion[np.arange(classes), order].sum()) / len(labels)
    majority = np.bincount(labels).max() / len(labels)
    error = np.sqrt(2 * other * (1 - other) / len(labels)) + 1 / len(labels)
    if other - max(own, majority) <= SURE * error or other - own <= GAP:
        return None
    return order, own, other


def renamed_sets(case: ResultCase) -> set[str]:
    """The names of the sets whose labels are in another order."""
    renamed = set()
    for scored, predicted, labels in decided(case):
        if best_order(predicted, labels, len(case.names)) is not None:
            renamed.add(scored.name)
    return renamed


def sets_disagree(case: ResultCase) -> Iterator[Finding]:
    """Validation and test accuracies that differ beyond chance."""
    by_name = {scored.name: scored for scored in case.sets}
    if {"validation", "test"} - by_name.keys():
        return
    validation = by_name["validation"]
    test = by_name["test"]
    one = validation.scores.get("accuracy")
    other = test.scores.get("accuracy")
    if one is None or other is None or not is_class_numbers(test.labels):
        return
    if renamed_sets(case):  # its own check says more
        return
    sizes = [len(validation.labels), len(test.labels)]
    if min(sizes) < FEW:
        return
    mean = (one * sizes[0] + other * sizes[1]) / sum(sizes)
    error = np.sqrt(mean * (1 - mean) * (1 / sizes[0] + 1 / sizes[1]))
    if abs(one - other) <= max(SURE * error, GAP):
        return
    yield Finding(
        severity="warning",
        seen=f"accuracy is {one:.3f} on validation and {other:.3f} on test, {SURE:.0f} standard errors "
        "apart or more",
        cause="labels of one set are shuffled, its rows come from elsewhere, or copies of training "
        "rows are in one of them",
        fix="look at rows of both; draw both sets from the same rows where they should agree",
        certainty="possible",
        evidence={"validation": one, "test": other, "rows": sizes, "standard_error": float(error)},
    )


def overconfident(case: ResultCase) -> Iterator[Finding]:
    """Probabilities that are far above how often they are right."""
    renamed = renamed_sets(case)
    for scored, predicted, labels in decided(case):
        if scored.name in renamed or len(labels) < 10 * FEW:
            continue
        assert scored.outputs is not None, "they have decided"
        sure = float(metrics.softmax(scored.outputs).max(-1).mean())
        right = float((predicted == labels).mean())
        if sure - right <= MISCALIBRATED:
            continue
        yield Finding(
            severity="note",
            seen=f"{scored.name}: answers are {sure:.2f} sure in the mean, and {right:.2f} are right",
            cause="many epochs on few rows, or labels of other rows",
            fix="use the order of the probabilities, not their size, or train for fewer `epochs`",
            certainty="likely",
            evidence={"set": scored.name, "sure": sure, "right": right, "rows": len(labels)},
        )


def padding(case: ResultCase) -> Iterator[Finding]:
    """Rows of tokens that are mostly empty."""
    share = case.result.get("padding")
    if share is None or share <= PADDING or case.result.get("steps", 0) < FEW_STEPS:
        return
    yield Finding(
        severity="note",
        seen=f"{share:.0%} of the slots of training batches are padding",
        cause="batches too small to fill a row of tokens",
        fix="give a larger `batch_size`, or a smaller `accumulate`",
        certainty="likely",
        evidence={"padding": share},
    )


def decided(case: ResultCase) -> Iterator[tuple[ScoredSet, np.ndarray, np.ndarray]]:
    """(a set, the classes [N] that its outputs decide for, its labels [N]) of sets of one class an
    example whose outputs are known.
    """
    if case.task.label_kind != "classes":
        return
    for scored in case.sets:
        outputs = scored.outputs
        if outputs is None or outputs.ndim != 2 or not is_class_numbers(scored.labels):
            continue
        if len(scored.labels) < FEW or outputs.shape[1] < 2:
            continue
        yield scored, outputs.argmax(-1), np.asarray(scored.labels)
