"""The old names of the tasks, for callers that have not moved to :mod:`adapt.tasks` yet."""

from adapt.tasks import TASKS, Task
from adapt.tasks.metrics import (
    Scores,
    best_spans,
    calibration_error,
    choice,
    classification,
    decisions,
    majority,
    multilabel,
    multitask,
    ranking,
    regression,
    retrieval,
    sigmoid,
    similarity,
    softmax,
    spans,
    tags,
)

__all__ = [
    "TASKS",
    "Scores",
    "Task",
    "best_spans",
    "calibration_error",
    "choice",
    "classification",
    "decisions",
    "majority",
    "multilabel",
    "multitask",
    "ranking",
    "regression",
    "retrieval",
    "sigmoid",
    "similarity",
    "softmax",
    "spans",
    "tags",
]
