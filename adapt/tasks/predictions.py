"""The old names of predictions, for callers that have not moved to a task's methods yet."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from adapt.data import tables
from adapt.data.examples import Examples
from adapt.errors import CheckpointError
from adapt.pretrained import hub
from adapt.tasks.base import TASKS

TOGETHER = tuple(name for name, task in TASKS.items() if task.shares_a_pass)


def check(run: hub.Pretrained) -> None:
    """Raise :class:`CheckpointError` for a run that predicts nothing."""
    if run.task not in TASKS:
        raise CheckpointError(
            f"{run.source} is a pre-training run ({run.task or 'no task'}): predict takes what finetune wrote"
        )
    if TASKS[run.task].num_outputs == 0:
        raise CheckpointError(
            f"{run.source} was trained for embeddings ({run.task}), which extract computes: use that"
        )


def no_labels(table: tables.Table, columns: Sequence[str], task: str) -> Any:
    return TASKS[task].no_labels(table, columns)


def header(run: hub.Pretrained, columns: Sequence[str]) -> list[str]:
    return TASKS[run.task].header(run, columns)


def rows(
    run: hub.Pretrained,
    outputs: np.ndarray,
    part: Examples,
    table: tables.Table,
    columns: Sequence[str],
) -> Iterator[list[Any]]:
    return TASKS[run.task].rows(run, outputs, part, table, columns)
