"""The old names of labels, for callers that have not moved to a task's methods yet."""

from collections.abc import Sequence
from typing import Any

from adapt.data.labels import column_names as columns_of
from adapt.data.labels import stratified_split, word_list
from adapt.data.tables import Table
from adapt.tasks import TASKS

__all__ = ["columns_of", "encode_labels", "labels_of", "stratified_split", "word_list"]


def labels_of(table: Table, column: str, task: str) -> list[str]:
    return TASKS[task].label_names(table, column, ())


def encode_labels(table: Table, column: str, names: Sequence[str], task: str) -> Any:
    return TASKS[task].encode_labels(table, column, names)
