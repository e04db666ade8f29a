"""The old names of what flags ask of a task, for callers that have not moved to its methods yet."""

import copy
import functools
from typing import Any

from adapt.data.labels import column_names
from adapt.pretrained import hub
from adapt.tasks.base import named


def text_columns(config: Any) -> list[str]:
    """The column of the text, and those of the other texts of a row."""
    pair = getattr(config, "text_pair_column", None)
    return [config.text_column, *(column_names(pair) if pair else [])]


def task_of(config: Any) -> Any:
    """The task, whose metrics have the names of the label columns where there are several."""
    task = copy.copy(named(config.task))
    names = [f"{column}=" for column in column_names(config.label_column)]
    task.metrics = functools.partial(task.metrics, names=names)
    return task


def check(config: Any, pretrained: hub.Pretrained) -> None:
    task = named(config.task)
    task.check_columns(text_columns(config), pretrained)
    task.check_head(config, pretrained)
    task.check_batches(config)


def check_columns(task: str, columns: list[str], pretrained: hub.Pretrained) -> None:
    named(task).check_columns(columns, pretrained)


def new_head(config: Any, pretrained: hub.Pretrained, names: list[str]) -> Any:
    return named(config.task).head(pretrained, config, names)


def loss_of(config: Any, labels: Any, names: list[str]) -> Any:
    return named(config.task).training_loss(config, labels, names)
