"""Embeddings from few labelled texts, by pairs of one class and of two (Tunstall et al. 2022)."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from adapt.data.examples import Examples
from adapt.data.labels import Labels, class_names, class_numbers
from adapt.data.tables import Table
from adapt.errors import StrategyError
from adapt.tasks import metrics
from adapt.tasks.base import TASKS, Task
from adapt.tasks.metrics import Scores
from adapt.training import losses

PAIRS = 20  # of one class, and as many of two, that a labelled text begins (R in the paper)


class SetFit(Task):
    """Pairs of labelled texts, 1 for one class and 0 for two; outputs [2 N, D] are embeddings."""

    primary_metric = "average_precision"
    beats: ClassVar = {"chance_average_precision": ("average_precision", 1)}
    further_texts = (0, 0)
    takes_images = False
    num_outputs = 0
    loss = staticmethod(losses.cosine_error)

    def label_names(self, table: Table, column: str, columns: Sequence[str]) -> list[str]:
        return class_names(table, column, self.name)

    def encode_labels(self, table: Table, column: str, names: Sequence[str]) -> Labels:
        """The class of every text, int32 [N]; :meth:`pair_examples` makes pairs of them."""
        return np.array(class_numbers(table, column, names), np.int32).reshape(-1)

    def pair_examples(self, part: Examples, seed: int) -> Examples:
        """Raises :class:`StrategyError` for examples with weights or extras: a pair has none."""
        if part.weights is not None or part.extras:
            given = "weights" if part.weights is not None else "extras"
            raise StrategyError(
                f"`{given}` are those of single examples, and `task` {self.name} trains on pairs "
                "of them: leave them out"
            )
        pairs, is_same = class_pairs(part.labels, seed)
        if not len(pairs):
            raise StrategyError(
                f"`task` {self.name} makes pairs of labelled texts, and {len(part)} "
                f"{'row makes' if len(part) == 1 else 'rows make'} none: give more rows, or "
                "`validation` with more"
            )
        return dataclasses.replace(part, rows=part.rows[pairs], labels=is_same)

    def metrics(self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Scores:
        return metrics.similarity(outputs, labels)

    def baseline(self, train: np.ndarray, test: np.ndarray) -> Scores:
        """The average precision of any order that ignores the texts."""
        return {"chance_average_precision": float(test.mean())}


def class_pairs(
    labels: np.ndarray, seed: int, num_pairs: int = PAIRS
) -> tuple[np.ndarray, np.ndarray]:
    """(rows int [M, 2] of labelled texts, int32 [M]: 1 for a pair of one class and 0 for another).

    Every text begins ``num_pairs`` pairs of either kind, with partners drawn at random. The only
    text of its class begins none of its own class.
    """
    random = np.random.RandomState(seed)
    rows = []
    is_same = []
    for row, label in enumerate(labels):
        for same in (1, 0):
            partners = np.flatnonzero((labels == label) == same)
            partners = partners[partners != row]
            if len(partners):
                rows += [[row, partner] for partner in random.choice(partners, num_pairs)]
                is_same += [same] * num_pairs
    return np.array(rows).reshape(-1, 2), np.array(is_same, np.int32)


TASKS["setfit"] = SetFit()
