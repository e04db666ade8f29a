"""One of several classes: the label of a text, of a pair of texts, or of a picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from adapt.data.examples import Examples
from adapt.data.labels import Labels, class_names, class_numbers, label_text
from adapt.data.tables import Table
from adapt.pretrained.hub import Pretrained
from adapt.tasks import metrics
from adapt.tasks.base import TASKS, Answers, Row, Task, class_list
from adapt.tasks.metrics import Scores
from adapt.training import losses


class Classification(Task):
    """One class an example; labels int32 [N], logits [N, C]."""

    has_class_weights = True
    has_row_per_example = True
    label_kind = "classes"
    probed_as = "classes"
    problem_type = "single_label_classification"
    loss = staticmethod(losses.cross_entropy)

    def label_names(self, table: Table, column: str, columns: Sequence[str]) -> list[str]:
        return class_names(table, column, self.name)

    def encode_labels(self, table: Table, column: str, names: Sequence[str]) -> Labels:
        return np.array(class_numbers(table, column, names), np.int32).reshape(-1)

    def metrics(self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Scores:
        return metrics.classification(outputs, labels)

    def example_scores(
        self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        return {"accuracy": metrics.is_right(outputs, labels)}

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
        probabilities = metrics.softmax(outputs)
        return Answers(np.array(run.classes)[probabilities.argmax(-1)], probabilities)

    def cells(self, run: Pretrained, label: Any) -> Row:
        """A class by its name, as the columns of probabilities have it."""
        return [label_text(label)]

    def output_note(self, classes: Sequence[str]) -> str:
        return class_list("Probabilities are softmax(logits), by class:", classes)


TASKS["classification"] = Classification()
