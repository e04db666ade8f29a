"""How much each training example counts in the loss: numbers of at least 0, not all of them 0."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from adapt.data.inputs import as_list, shortened
from adapt.data.tables import Table, numbered_values
from adapt.errors import DataError


def read_weights(table: Table, weights: Any, column: str | None) -> np.ndarray | None:
    """The weights of a table's rows, float32 [N]; None: every row counts the same.

    ``weights`` are a sequence, an array or a Series; without them, ``column`` names the column that
    has them. Raises :class:`DataError` for a wrong number of them, and for what is no weight.
    """
    if weights is not None:
        values = as_list(weights, "weights")
        if len(values) != len(table):
            raise DataError(
                f"`weights` are {len(values)} and the training examples {len(table)}: every "
                "example needs one"
            )
        where = "`weights`"
        named = ((f"`weights`[{row}] is", value) for row, value in enumerate(values))
    elif column is not None:
        where = f"{table.name}: column '{column}'"
        rows = numbered_values(table, column)
        named = ((f"{table.name}: row {row} of column '{column}' is", value) for row, value in rows)
    else:
        return None
    found = as_weights(named)
    if not found.any():
        raise DataError(f"{where} has no weight above 0: no example would count")
    return found


def as_weights(named: Iterable[tuple[str, Any]]) -> np.ndarray:
    """float32 [N] of (what an error begins with, value). Raises :class:`DataError`."""
    found = []
    for beginning, value in named:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = np.nan
        if not 0 <= number <= float(np.finfo(np.float32).max):  # false for nan, too
            raise DataError(
                f"{beginning} {shortened(value)}, which is no weight: give a finite number of at "
                "least 0"
            )
        found.append(number)
    return np.array(found, np.float32)


def scaled(weights: np.ndarray) -> np.ndarray:
    """The weights with a mean of 1, so that their sum counts examples: only ratios matter."""
    return (weights / weights.mean(dtype=np.float64)).astype(np.float32)
