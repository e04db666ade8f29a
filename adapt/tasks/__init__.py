"""What can be learned: one file a task, each an entry of ``TASKS``."""

from adapt.tasks import (
    choice,
    classification,
    cloze,
    contrastive,
    multilabel,
    multitask,
    regression,
    setfit,
    span,
    tags,
)
from adapt.tasks.base import TASKS, Task, get_task

__all__ = [
    "TASKS",
    "Task",
    "choice",
    "classification",
    "cloze",
    "contrastive",
    "get_task",
    "multilabel",
    "multitask",
    "regression",
    "setfit",
    "span",
    "tags",
]
