"""A number an example."""

import contextlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from adapt import tree
from adapt.data.examples import Examples
from adapt.data.labels import Labels, feature_names, name_of_number
from adapt.data.tables import Table, numbered_values
from adapt.errors import DataError
from adapt.pretrained.hub import Pretrained
from adapt.tasks import metrics
from adapt.tasks.base import TASKS, Answers, Row, Task, numbers
from adapt.tasks.metrics import Scores
from adapt.training import losses


class Regression(Task):
    """Labels float32 [N], outputs [N, 1]: the value itself."""

    primary_metric = "pearson"
    beats: ClassVar = {"mse_of_mean": ("mse", -1)}
    num_outputs = 1
    has_row_per_example = True
    label_kind = "values"
    probed_as = "values"
    problem_type = "regression"
    loss = staticmethod(losses.squared_error)

    def label_names(self, table: Table, column: str, columns: Sequence[str]) -> list[str]:
        return []

    def encode_labels(self, table: Table, column: str, names: Sequence[str]) -> Labels:
        values = []
        classes = feature_names(table, column)
        for row, value in numbered_values(table, column):
            if classes and value is not None:  # the number is the class's name, not its index
                value = name_of_number(value, classes, f"{table.name}: row {row}", column)
            values.append(finite_number(table, column, row, value))
        check_are_apart(table, column, np.array(values))
        return np.array(values, np.float32)

    def init_head(self, params: tree.Tree, labels: Labels) -> tree.Tree:
        """The bias starts at the median: the level need not be learned."""
        layer = params.get("classifier", {})
        if "bias" not in layer:
            return params
        level = np.full(1, np.median(labels), np.float32)  # pyright: ignore
        return params | {"classifier": layer | {"bias": level}}

    def metrics(self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Scores:
        return metrics.regression(outputs, labels)

    def baseline(self, train: np.ndarray, test: np.ndarray) -> Scores:
        """The mean squared error of always answering the mean of training."""
        return {"mse_of_mean": float(np.mean((test - train.mean()) ** 2))}

    def header(self, run: Pretrained, columns: Sequence[str]) -> list[str]:
        return ["prediction"]

    def answers(
        self,
        run: Pretrained,
        outputs: np.ndarray,
        part: Examples,
        table: Table,
        columns: Sequence[str],
    ) -> Answers:
        """The labels are float32 [N]."""
        return Answers(outputs[:, 0])

    def cells(self, run: Pretrained, label: np.float32) -> Row:
        return numbers(np.array([label]))

    def output_note(self, classes: Sequence[str]) -> str:
        return "The logit is the value itself."


def finite_number(table: Table, column: str, row: int, value: Any) -> float:
    """A value as a float that float32 holds. Raises DataError with the row."""
    number = np.nan
    # float() takes bytes, too, and 12_34, which is a name rather than 1234.
    if not isinstance(value, bytes) and "_" not in str(value):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = float(value)
    if not abs(number) <= float(np.finfo(np.float32).max):  # false for nan, too
        raise DataError(
            f"{table.name}: row {row}: '{value}' in column '{column}' is not a finite number"
        )
    return number


def check_are_apart(table: Table, column: str, values: np.ndarray) -> None:
    """Raise DataError for numbers [N] that are too large beside how they differ: float32 would make
    some of them one, such as Unix times of one day.
    """
    spread = values.std()
    if spread <= 1e-12 * np.abs(values).max():  # all the same, up to round-off
        return
    lost = np.abs(values - values.astype(np.float32))
    row = int(lost.argmax())
    if lost[row] > 1e-3 * spread:
        raise DataError(
            f"{table.name}: row {row + 1}: {values[row]:.17g} in column '{column}' would become "
            f"{float(np.float32(values[row])):.17g} in float32, where the column's standard deviation "
            f"is {spread:.3g}: subtract a number such as {values.mean():.6g} from all of them"
        )


TASKS["regression"] = Regression()
