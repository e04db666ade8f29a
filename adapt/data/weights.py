"""What training examples have beside labels: how much each counts in the loss, and arrays of one's
own that a loss is to see.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from adapt.data.inputs import as_list, shortened_repr
from adapt.data.tables import Table, numbered_values
from adapt.errors import DataError
from adapt.training.frozen_prefix import PREFIX_INPUTS, SUFFIX_INPUTS


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
                f"{beginning} {shortened_repr(value)}, which is no weight: give a finite number of at "
                "least 0"
            )
        found.append(number)
    return np.array(found, np.float32)


def scaled(weights: np.ndarray) -> np.ndarray:
    """The weights with a mean of 1, so that their sum counts examples: only ratios matter."""
    return (weights / weights.mean(dtype=np.float64)).astype(np.float32)


# What batches have already.
RESERVED = (*SUFFIX_INPUTS, *PREFIX_INPUTS)


def read_extras(extras: Any, count: int) -> dict[str, np.ndarray]:
    """Arrays [N, ...] by name, of numbers in 4 bytes or of booleans; ``count`` is N.

    Raises :class:`DataError` for what is no dict of such arrays.
    """
    if extras is None:
        return {}
    if not isinstance(extras, Mapping):
        kind = type(extras).__name__
        raise DataError(f"`extras` is of type {kind}: give a dict of arrays by name")
    read = {}
    for name, values in extras.items():
        if not isinstance(name, str) or name in RESERVED:
            raise DataError(f"`extras` has the name {name!r}, which batches have: give another")
        try:
            array = np.asarray(values)
        except ValueError:
            array = np.zeros(0, object)
        if array.dtype.kind not in "fiub":
            raise DataError(f"`extras`[{name!r}] is no array of numbers: give one of [N, ...]")
        if array.ndim == 0 or len(array) != count:
            raise DataError(
                f"`extras`[{name!r}] has the shape {list(array.shape)}, and there are {count} "
                "training examples: every example needs a row"
            )
        narrow = {"f": np.float32, "i": np.int32, "u": np.int32}
        read[name] = array.astype(narrow.get(array.dtype.kind, array.dtype))
    return read
