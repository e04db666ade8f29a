"""The old names of what flags ask of a task, for callers that have not moved to its methods yet."""

import copy
import functools
from typing import Any

from adapt.data.labels import column_names
from adapt.pretrained import hub
from adapt.tasks import base
from adapt.tasks.base import get_task


def text_columns(config: Any) -> list[str]:
    """The column of the text, and those of the other texts of a row."""
    return base.text_columns(config.text_column, config.text_pair_column)


def task_of(config: Any) -> Any:
    """The task, whose metrics have the names of the label columns where there are several."""
    task = copy.copy(get_task(config.task))
    names = [f"{column}=" for column in column_names(config.label_column)]
    task.metrics = functools.partial(task.metrics, names=names)
    return task


def check(config: Any, pretrained: hub.Pretrained) -> None:
    task = get_task(config.task)
    task.check_columns(text_columns(config), pretrained)
    task.check_head(config, pretrained)
    task.check_batches(config)


def check_columns(task: str, columns: list[str], pretrained: hub.Pretrained) -> None:
    get_task(task).check_columns(columns, pretrained)


def new_head(config: Any, pretrained: hub.Pretrained, names: list[str]) -> Any:
    return get_task(config.task).head(pretrained, config, names)


def loss_of(config: Any, labels: Any, names: list[str]) -> Any:
    return get_task(config.task).training_loss(config, labels, names)
