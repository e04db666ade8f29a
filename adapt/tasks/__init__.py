"""What can be learned: one file a task, each an entry of ``TASKS``."""

from adapt.tasks import (
    choice,
    classification,
    contrastive,
    multilabel,
    multitask,
    regression,
    setfit,
    span,
    tags,
)
from adapt.tasks.base import TASKS, Task, named

__all__ = [
    "TASKS",
    "Task",
    "choice",
    "classification",
    "contrastive",
    "multilabel",
    "multitask",
    "named",
    "regression",
    "setfit",
    "span",
    "tags",
]
