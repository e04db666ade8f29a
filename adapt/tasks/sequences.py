"""The old names of examples, for callers that have not moved to a task's methods yet."""

from collections.abc import Sequence
from typing import Any

from adapt.data import examples, tables
from adapt.pretrained import hub
from adapt.tasks.base import named


def make(
    pretrained: hub.Pretrained, table: tables.Table, columns: Sequence[str], task: str, labels: Any
) -> tuple[examples.Examples, int]:
    return named(task).examples(pretrained, table, columns, labels), 0


def in_pairs(part: examples.Examples, seed: int) -> examples.Examples:
    return named("setfit").pair_examples(part, seed)
