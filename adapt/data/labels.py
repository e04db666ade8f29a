"""Labels of a column: their names in an order that the order of rows can't change, and their
numbers.

The names of a training table are kept with the run; train, validation and test are all numbered by
them. Errors name the file and the row, counted from 1 without the header.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from adapt.data.tables import Table, numbered_values
from adapt.errors import DataError
from adapt.ragged import Ragged

Labels = np.ndarray | Ragged  # of examples [N, ...], or of the words of examples
Parse = Callable[[Any], list]  # a value of a label column -> the labels in it


def one_label(value: Any) -> list:
    """The value itself is the label."""
    return [value]


def several_labels(value: Any) -> list:
    """The labels in a list, a JSON list in a string, or ``red;green``."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = json.loads(value)
    if isinstance(value, str):
        names = [name.strip() for name in value.split(";")]
        return [name for name in names if name]
    return value if isinstance(value, list) else [value]


def word_list(value: Any) -> list:
    """The words in a list, a JSON list in a string, or words with spaces between them."""
    if not isinstance(value, str):
        return list(value or [])
    if value.lstrip().startswith("["):
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(value)
    return value.split()  # a bracket that begins no list is a word


def class_names(table: Table, column: str, task: str, parse: Parse = one_label) -> list[str]:
    """The classes of a training table: sorted, numbers by size, so that row order can't change
    them.

    A column whose feature has names of its own (`datasets.ClassLabel`) keeps them, in their order.
    ``task`` is who asks, for the message.

    Raises DataError: a row without label, fewer than two classes.
    """
    present = set()
    for _, names in read_labels(table, column, parse):
        present.update(names)
    if len(present) < 2:
        only = f"only '{present.pop()}'" if present else "no label at all"
        raise DataError(
            f"{table.name}: column '{column}' has {only}; {task} takes at least two classes"
        )
    return feature_names(table, column) or sorted(present, key=natural_order)


def class_numbers(
    table: Table,
    column: str,
    names: Sequence[str],
    parse: Parse = one_label,
    unseen: str = "",
) -> list[list[int]]:
    """For every row the positions of its labels in ``names``; with :func:`one_label` one a row.

    Raises DataError: a row without label, a label that is not among the names. ``unseen`` is what
    the message says of that label, in place of that it is unseen in training.
    """
    number_of = {name: number for number, name in enumerate(names)}
    rows = []
    for row, labels in read_labels(table, column, parse):
        for label in labels:
            if label in number_of:
                continue
            if unseen:
                raise DataError(f"{table.name}: row {row}: '{label}' {unseen}")
            known = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise DataError(
                f"{table.name}: row {row}: label '{label}' is unseen in training ({known})"
            )
        rows.append([number_of[label] for label in labels])
    return rows


def read_labels(
    table: Table, column: str, parse: Parse = one_label
) -> Iterator[tuple[int, list[str]]]:
    """(row from 1, names of its labels). Raises DataError for a row without one, or of bad JSON."""
    names = feature_names(table, column)
    for row, value in numbered_values(table, column):
        try:
            labels = parse(value)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{table.name}: row {row}: '{value}' is not a JSON list: {error.msg}"
            ) from error
        if parse is one_label and isinstance(value, list | dict):
            raise DataError(
                f"{table.name}: row {row}: column '{column}' holds a {type(value).__name__} where "
                "one label is wanted: several labels a row are `task` multilabel"
            )
        if parse is several_labels and is_multi_hot(labels):
            raise DataError(
                f"{table.name}: row {row}: column '{column}' holds a vector of 0 and 1: give the "
                "names of the labels that the row has"
            )
        if any(isinstance(label, bytes) for label in labels):
            raise DataError(
                f"{table.name}: row {row} of column '{column}' is of type bytes, not text"
            )
        for label in labels:
            # The hub's data sets have -1 where a row of a ClassLabel column is not labelled.
            if label is None or not str(label).strip() or (names and label < 0):
                raise DataError(f"{table.name}: row {row} has no label in column '{column}'")
        if names:
            yield row, [names[label] for label in labels]
        else:
            yield row, [spelled(label) for label in labels]


def is_multi_hot(labels: list) -> bool:
    """Whether labels are a 0 or a 1 for every label that there is: no row has a label twice."""
    are_marks = all(label in (0, 1, "0", "1") for label in labels)
    return are_marks and len(set(labels)) < len(labels)


def feature_names(table: Table, column: str) -> list[str] | None:
    """The names of a ClassLabel column, or of a column with lists of ClassLabel."""
    feature = table.rows.features.get(column)
    element = getattr(feature, "feature", feature)
    return getattr(element, "names", None)


def label_type(table: Table, column: str) -> str:
    """What the labels of a column are: "int", "float" or "bool", else "str", as their names are."""
    feature = table.rows.features.get(column)
    element = getattr(feature, "feature", feature)
    if getattr(element, "names", None):
        return "str"
    dtype = str(getattr(element, "dtype", ""))
    if dtype.startswith(("int", "uint")):
        return "int"
    if dtype.startswith(("float", "double")):
        return "float"
    return "bool" if dtype == "bool" else "str"


def spelled(label: Any) -> str:
    """The label as text: a whole number is the same in a column of integers and in one of floats."""
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label)


def natural_order(name: str) -> tuple[bool, float, str]:
    """A key to sort names by: numbers first, by value; then words."""
    number = re.fullmatch(r"[+-]?\d+(\.\d+)?", name)
    return (not number, float(name) if number else 0.0, name)


def column_names(text: str) -> list[str]:
    """The columns in ``label,fine``."""
    return [name.strip() for name in text.split(",")]


def stratified_split(labels: Labels, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint ascending int64 indices (training, validation), the second of about fraction *
    N.

    labels: int [N] as classes, of which each keeps its share (largest remainder) and at least one
    training row; other labels are split by a plain permutation. The same arguments give the same
    split anywhere: `RandomState` is the stream that NumPy promises never to change.

    Raises DataError: too few rows for one of them to be held out.
    """
    random = np.random.RandomState(seed)
    count = len(labels)
    wanted = max(1, round(fraction * count))
    order = random.permutation(count)
    if is_class_numbers(labels):
        order = in_shares(np.asarray(labels), order, wanted)
    held_out = np.sort(order[: min(wanted, count - 1)])
    if not len(held_out):
        raise DataError(
            f"{count} rows are too few to hold some out for validation; name a validation file"
        )
    return np.setdiff1d(np.arange(count), held_out), held_out


def is_class_numbers(labels: Labels) -> bool:
    """Whether labels are classes of examples: integers [N]."""
    if not isinstance(labels, np.ndarray) or labels.ndim != 1:
        return False
    return np.issubdtype(labels.dtype, np.integer)


def in_shares(labels: np.ndarray, order: np.ndarray, wanted: int) -> np.ndarray:
    """The first rows of each class in ``order``, as many as come to its share of ``wanted``."""
    sizes = np.bincount(labels)
    share = sizes * (wanted / len(labels))
    taken = np.floor(share).astype(int)
    by_remainder = np.argsort(taken - share, kind="stable")
    taken[by_remainder[: wanted - taken.sum()]] += 1
    taken = np.minimum(taken, np.maximum(sizes - 1, 0))
    chosen = []
    for number, some in enumerate(taken):
        of_class = order[labels[order] == number]
        chosen.append(of_class[:some])
    return np.concatenate(chosen)
