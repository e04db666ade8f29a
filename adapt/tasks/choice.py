"""One right text of several: which of the choices goes with the first text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from adapt.data.examples import Examples
from adapt.data.labels import Labels, class_numbers
from adapt.data.tables import Table
from adapt.options import TaskOptions
from adapt.pretrained.hub import Pretrained
from adapt.pretrained.tokenizer import Text
from adapt.tasks import metrics
from adapt.tasks.base import MANY, TASKS, Answers, Row, Task, classifier
from adapt.tasks.metrics import Scores
from adapt.training import losses


class Choice(Task):
    """The number of the right text, from 0; labels int32 [N], outputs [N * K, 1]."""

    further_texts = (2, MANY)
    takes_images = False
    num_outputs = 1
    loss = staticmethod(losses.choice_cross_entropy)

    def label_names(self, table: Table, column: str, columns: Sequence[str]) -> list[str]:
        return choice_numbers(columns)

    def encode_labels(self, table: Table, column: str, names: Sequence[str]) -> Labels:
        unseen = f"is not the number of a choice, 0 to {len(names) - 1}"
        numbered = class_numbers(table, column, names, unseen=unseen)
        return np.array(numbered, np.int32).reshape(-1)

    def sequences(self, texts: Sequence[Sequence[str]]) -> list[Text]:
        pairs = []
        for first, *choices in zip(*texts, strict=True):
            pairs += [(first, choice) for choice in choices]
        return pairs

    def head(self, pretrained: Pretrained, options: TaskOptions, names: Sequence[str]) -> Any:
        # Between choices a bias has no effect.
        return classifier(pretrained, options, 1, bias=False)

    def metrics(self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Scores:
        return metrics.choice(outputs, labels)

    def example_scores(
        self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        return {"accuracy": metrics.is_right(outputs.reshape(len(labels), -1), labels)}

    def baseline(self, train: np.ndarray, test: np.ndarray) -> Scores:
        return metrics.majority(train, test)

    def header(self, run: Pretrained, columns: Sequence[str]) -> list[str]:
        return ["prediction", *(f"probability:{number}" for number in choice_numbers(columns))]

    def answers(
        self,
        run: Pretrained,
        outputs: np.ndarray,
        part: Examples,
        table: Table,
        columns: Sequence[str],
    ) -> Answers:
        """The labels are int [N]: the number of the choice, from 0."""
        probabilities = metrics.softmax(outputs.reshape(len(table), -1))
        return Answers(probabilities.argmax(-1), probabilities)

    def cells(self, run: Pretrained, label: np.integer) -> Row:
        return [int(label)]


def choice_numbers(columns: Sequence[str]) -> list[str]:
    """The choices of text columns of which the first one asks."""
    return [str(number) for number in range(len(columns) - 1)]


TASKS["choice"] = Choice()
