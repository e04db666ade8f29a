"""Classes of several label columns at once, by one head: ``label,fine``."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from adapt.data.examples import Examples
from adapt.data.labels import Labels, class_names, class_numbers, column_names
from adapt.data.tables import Table
from adapt.errors import StrategyError
from adapt.options import TaskOptions
from adapt.pretrained.hub import Pretrained
from adapt.tasks import metrics
from adapt.tasks.base import TASKS, Answers, Row, Task, classifier
from adapt.tasks.metrics import Scores
from adapt.training import losses


class Multitask(Task):
    """A class in each of K label columns; labels int32 [N, K].

    Logits are [N, K, most classes of a column], -inf where a column has fewer. A name is
    ``column=class``: all of a column, then all of the next.
    """

    loss = staticmethod(losses.columns_cross_entropy)

    def label_names(self, table: Table, column: str, columns: Sequence[str]) -> list[str]:
        label_columns = column_names(column)
        has_twice = len(set(label_columns)) < len(label_columns)
        if has_twice or any("=" in name for name in label_columns):
            raise StrategyError(
                f"`label_column` {column}: label columns must differ, and have no = in their names"
            )
        names = []
        for one in label_columns:
            classes = class_names(table, one, "classification")
            names += [f"{one}={name}" for name in classes]
        return names

    def encode_labels(self, table: Table, column: str, names: Sequence[str]) -> Labels:
        labels = []
        for one, classes in by_column(names):
            of_column = class_numbers(table, one, classes)
            labels.append(np.array(of_column, np.int32).reshape(-1))
        return np.stack(labels, 1)

    def class_counts(self, labels: np.ndarray, names: Sequence[str]) -> dict[str, int]:
        counts = {}
        for number, (column, classes) in enumerate(by_column(names)):
            of_column = super().class_counts(labels[:, number], classes)
            counts |= {f"{column}={name}": count for name, count in of_column.items()}
        return counts

    def head(self, pretrained: Pretrained, options: TaskOptions, names: Sequence[str]) -> Any:
        widths = tuple(len(classes) for _, classes in by_column(names))
        return classifier(pretrained, options, len(names), columns=widths)

    def metrics(self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Scores:
        columns = [column for column, _ in by_column(names)]
        return metrics.multitask(outputs, labels, columns)

    def example_scores(
        self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """An example counts the share of its columns that are right."""
        right = outputs.argmax(-1) == labels
        return {"accuracy": right.mean(-1)}

    def baseline(self, train: np.ndarray, test: np.ndarray) -> Scores:
        """The mean over label columns of always answering what is most frequent."""
        accuracies = []
        for of_train, of_test in zip(train.T, test.T, strict=True):
            accuracies.append(metrics.majority(of_train, of_test)["majority_accuracy"])
        return {"majority_accuracy": float(np.mean(accuracies))}

    def header(self, run: Pretrained, columns: Sequence[str]) -> list[str]:
        predictions = [f"prediction:{column}" for column, _ in by_column(run.labels)]
        return [*predictions, *(f"probability:{name}" for name in run.labels)]

    def answers(
        self,
        run: Pretrained,
        outputs: np.ndarray,
        part: Examples,
        table: Table,
        columns: Sequence[str],
    ) -> Answers:
        """The labels are dicts, column -> class."""
        columns_of_labels = by_column(run.labels)
        labels = []
        probabilities = []
        for of_row in metrics.softmax(outputs):
            label = {}
            of_all = []
            for (column, classes), p in zip(columns_of_labels, of_row, strict=True):
                of_classes = p[: len(classes)]  # beyond them a column has -inf
                label[column] = classes[int(of_classes.argmax())]
                of_all.append(of_classes)
            labels.append(label)
            probabilities.append(np.concatenate(of_all))
        return Answers(labels, np.stack(probabilities))

    def cells(self, run: Pretrained, label: dict[str, str]) -> Row:
        return list(label.values())


def by_column(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(label column, its classes) from names ``column=class``."""
    pairs = [name.partition("=")[::2] for name in names]
    grouped = []
    for column, of_column in itertools.groupby(pairs, key=lambda pair: pair[0]):
        grouped.append((column, [name for _, name in of_column]))
    return grouped


TASKS["multitask"] = Multitask()
