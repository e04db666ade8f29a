"""Any number of labels an example, each by itself."""

import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from adapt.data.examples import Examples
from adapt.data.labels import (
    SEPARATORS,
    Labels,
    class_names,
    class_numbers,
    label_text,
    several_labels,
)
from adapt.data.tables import Table
from adapt.pretrained.hub import Pretrained
from adapt.tasks import metrics
from adapt.tasks.base import TASKS, Answers, Row, Task, class_list
from adapt.tasks.metrics import Scores
from adapt.training import losses

logger = logging.getLogger(__name__)


class Multilabel(Task):
    """Labels float32 [N, C] of 0 and 1, logits [N, C].

    A value is a list, a JSON list in a string, or ``red;green``; it may be empty, but not missing.
    """

    primary_metric = "macro_f1"
    has_row_per_example = True
    problem_type = "multi_label_classification"
    loss = staticmethod(losses.binary_cross_entropy)

    def label_names(self, table: Table, column: str, columns: Sequence[str]) -> list[str]:
        return class_names(table, column, self.name, several_labels)

    def encode_labels(self, table: Table, column: str, names: Sequence[str]) -> Labels:
        labels = np.zeros((len(table), len(names)), np.float32)
        for row, chosen in enumerate(class_numbers(table, column, names, several_labels)):
            labels[row, chosen] = 1
        without = int((labels.sum(1) == 0).sum())
        if without:
            logger.warning(
                f"{table.name}: {without} of {len(table)} rows have no label in column '{column}': that "
                "is read as none of the classes"
            )
        return labels

    def metrics(self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Scores:
        return metrics.multilabel(outputs, labels)

    def baseline(self, train: np.ndarray, test: np.ndarray) -> Scores:
        return metrics.majority(train, test)

    def answers(
        self,
        run: Pretrained,
        outputs: np.ndarray,
        part: Examples,
        table: Table,
        columns: Sequence[str],
    ) -> Answers:
        """The labels are lists of names."""
        probabilities = metrics.sigmoid(outputs)
        chosen = []
        for p in probabilities:
            chosen.append([run.classes[number] for number in np.flatnonzero(p > 0.5)])
        return Answers(chosen, probabilities)

    def cells(self, run: Pretrained, label: list[Any]) -> Row:
        """Names joined by ``;``, or a JSON list where they would not read back to the same."""
        names = [label_text(name) for name in label]
        marks = (";", "[", *SEPARATORS)
        as_json = any(mark in name for name in run.labels for mark in marks)
        return [json.dumps(names) if as_json else ";".join(names)]

    def output_note(self, classes: Sequence[str]) -> str:
        return class_list("Probabilities are sigmoid(logits), by class:", classes)


TASKS["multilabel"] = Multilabel()
