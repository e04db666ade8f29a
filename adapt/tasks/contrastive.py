"""Pairs of texts that belong together: embeddings in which each finds the other."""

import itertools
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from adapt.data.labels import Labels
from adapt.data.tables import Table
from adapt.errors import StrategyError
from adapt.options import OptimizerOptions
from adapt.pretrained.tokenizer import Text
from adapt.tasks import metrics
from adapt.tasks.base import TASKS, Task
from adapt.tasks.metrics import Scores
from adapt.training import losses


class Contrastive(Task):
    """Two texts a row, the rest of the batch as negatives; there is nothing to label.

    Labels are ones [N], since an empty slot of a batch has 0. Outputs [2 N, D] are embeddings.
    """

    primary_metric = "recall_at_1"
    beats: ClassVar = {"chance_recall_at_1": ("recall_at_1", 1)}
    further_texts = (1, 1)
    takes_images = False
    num_outputs = 0
    loss = staticmethod(losses.contrastive)

    def check_batches(self, options: OptimizerOptions) -> None:
        if options.accumulate > 1:
            raise StrategyError(
                f"`accumulate` {options.accumulate} would leave an example of `task` {self.name} "
                "fewer negatives than `batch_size` has: give `accumulate` 1"
            )

    def reads_pairs(self, columns: Sequence[str]) -> bool:
        return False  # each text is a sequence of its own

    def label_names(self, table: Table, column: str, columns: Sequence[str]) -> list[str]:
        return []

    def encode_labels(self, table: Table, column: str, names: Sequence[str]) -> Labels:
        return np.ones(len(table), np.int32)

    def sequences(self, texts: Sequence[Sequence[str]]) -> list[Text]:
        return list(itertools.chain.from_iterable(zip(*texts, strict=True)))

    def metrics(self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Scores:
        return metrics.retrieval(outputs, labels)

    def baseline(self, train: np.ndarray, test: np.ndarray) -> Scores:
        """The recall of drawing one of the test's texts at random."""
        return {"chance_recall_at_1": 1 / len(test)}


TASKS["contrastive"] = Contrastive()
