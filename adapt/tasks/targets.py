"""Targets: a label column becomes numbers, in an order that does not depend on the order of the rows.

`names = labels_of(train, ...)` is kept with the run; train, validation and test are all encoded by it. Errors
name the file and the row, counted from 1 without the header.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from adapt.data.tables import Table, numbered
from adapt.errors import DataError
from adapt.ragged import ragged

Task = Literal[
    "classification",
    "multilabel",
    "regression",
    "multitask",
    "tags",
    "span",
    "choice",
    "contrastive",
    "setfit",
]
NAMELESS = ("regression", "span", "choice", "contrastive")  # tasks whose labels are no classes


def labels_of(table: Table, column: str, task: Task) -> list[str]:
    """The classes of a training table: sorted, numbers by size, so that row order can't change them.

    A column whose feature has names of its own (`datasets.ClassLabel`) keeps them, in their order.
    Regression, spans, choices and contrasts have no classes: []. Several columns (`label,fine`, multitask) have those
    of each, as `column=name`. For the forms of values see `encode_labels`.

    Raises DataError: a row without label, fewer than two classes.
    """
    if task in NAMELESS:
        return []
    if task == "multitask":
        each = {one: labels_of(table, one, "classification") for one in columns_of(column)}
        return [f"{one}={name}" for one, names in each.items() for name in names]
    present = {name for _, names in _labels(table, column, task) for name in names}
    if len(present) < 2:
        only = f"only '{present.pop()}'" if present else "no label at all"
        raise DataError(
            f"{table.where}: column '{column}' has {only}; {task} takes at least two classes"
        )
    return _own_names(table, column) or sorted(present, key=_natural)


def encode_labels(table: Table, column: str, names: Sequence[str], task: Task) -> Any:
    """What the losses take: int32 [N] (classification, setfit; choice: the number of the right one, from 0), float32
    [N, len(names)] of 0 and 1 (multilabel), float32 [N] (regression), int32 [N, columns] (multitask), a class of every
    word (tags: a Ragged), ones (contrastive); characters int64 [N, 2], the end exclusive (span).

    A multi-label value is a list, a JSON list in a string, or `red;green`; it may be empty, but not missing. Tags are a
    list, a JSON list, or words with spaces between them. A span is `[start, end]`, or SQuAD's
    `{"text": ["some words"], "answer_start": [7]}`, whose first answer counts; either may be JSON in a string.

    Raises DataError: a label that is not among `names`, a row without label, a number that is not finite.
    """
    if task == "contrastive":
        return np.ones(len(table), np.int32)
    if task == "span":
        return np.array(
            [_span(table, row, value) for row, value in numbered(table, column)], np.int64
        ).reshape(-1, 2)
    if task == "multitask":
        each = {
            one: [n.removeprefix(f"{one}=") for n in names if n.startswith(f"{one}=")]
            for one in columns_of(column)
        }
        return np.stack(
            [encode_labels(table, one, own, "classification") for one, own in each.items()], 1
        )
    if task == "regression":
        numbers = (_number(table, column, row, value) for row, value in numbered(table, column))
        return np.fromiter(numbers, np.float32)
    index = {name: position for position, name in enumerate(names)}
    positions = []
    for row, found in _labels(table, column, task):
        unseen = [name for name in found if name not in index]
        if unseen and task == "choice":
            raise DataError(
                f"{table.where}: row {row}: '{unseen[0]}' is not the number of a choice, 0 to {len(names) - 1}"
            )
        if unseen:
            there = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise DataError(
                f"{table.where}: row {row}: label '{unseen[0]}' is unseen in training ({there})"
            )
        positions.append([index[name] for name in found])
    if task == "tags":
        return ragged(positions)
    if task != "multilabel":
        return np.array([position for (position,) in positions], np.int32)
    target = np.zeros((len(table), len(names)), np.float32)
    for row, found in enumerate(positions):
        target[row, found] = 1
    return target


def stratified_split(target: Any, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint ascending int64 indices (training, validation), the second of about fraction * N rows.

    target: int [N] as classes, of which each keeps its share (largest remainder) and at least one training
    row; other targets are split by a plain permutation. The same arguments give the same split anywhere:
    `RandomState` is the stream that NumPy promises never to change.

    Raises DataError: too few rows for one of them to be held out.
    """
    random = np.random.RandomState(seed)
    count = len(target)
    wanted = max(1, round(fraction * count))
    order = random.permutation(count)
    if (
        isinstance(target, np.ndarray)
        and target.ndim == 1
        and np.issubdtype(target.dtype, np.integer)
    ):
        sizes = np.bincount(target)
        share = sizes * (wanted / count)
        taken = np.floor(share).astype(int)
        for place in np.argsort(taken - share, kind="stable")[: wanted - taken.sum()]:
            taken[place] += 1
        taken = np.minimum(taken, np.maximum(sizes - 1, 0))
        order = np.concatenate(
            [order[target[order] == place][:some] for place, some in enumerate(taken)]
        )
    held_out = np.sort(order[: min(wanted, count - 1)])
    if not len(held_out):
        raise DataError(
            f"{count} rows are too few to hold some out for validation; name a validation file"
        )
    return np.setdiff1d(np.arange(count), held_out), held_out


def columns_of(flag: str) -> list[str]:
    """The names in a flag that takes several: `label,fine`."""
    return [name.strip() for name in flag.split(",")]


def listed(value: Any) -> list:
    """A list, a JSON list in a string, or words with spaces between them."""
    if not isinstance(value, str):
        return list(value or [])
    with contextlib.suppress(json.JSONDecodeError):
        return json.loads(value) if value.lstrip().startswith("[") else value.split()
    return value.split()  # the bracket is a word


def _labels(table: Table, column: str, task: Task) -> Iterator[tuple[int, list[str]]]:
    """(row, names of its labels); exactly one name unless multilabel or tags."""
    several = {"multilabel": _several, "tags": listed}.get(task, lambda value: [value])
    own = _own_names(table, column)
    for row, value in numbered(table, column):
        try:
            values = several(value)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{table.where}: row {row}: '{value}' is not a JSON list: {error.msg}"
            ) from error
        if any(each is None or not str(each).strip() or (own and each < 0) for each in values):
            raise DataError(f"{table.where}: row {row} has no label in column '{column}'")
        yield row, [own[each] if own else _name(each) for each in values]


def _name(value: Any) -> str:
    """The label as text; a whole number is the same label whether its column is of integers or of floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _several(value: Any) -> list:
    """The labels in one multi-label value."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = json.loads(value)
    if isinstance(value, str):
        return [name.strip() for name in value.split(";") if name.strip()]
    return value if isinstance(value, list) else [value]


def _span(table: Table, row: int, value: Any) -> tuple[int, int]:
    """(first character, the one after the last)."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
        if isinstance(found, dict):
            start, text = (np.atleast_1d(found[name])[0] for name in ("answer_start", "text"))
            found = [int(start), int(start) + len(text)]
        start, end = (int(place) for place in found)
    except (ValueError, TypeError, KeyError, IndexError):
        start = 0
        end = 0
    if not 0 <= start < end:
        raise DataError(
            f"{table.where}: row {row}: {value!r} is no span: give [start, end], or answer_start and text as SQuAD has them"
        )
    return start, end


def _own_names(table: Table, column: str) -> list[str] | None:
    """The names of a ClassLabel column, or of a list of ClassLabel."""
    feature = table.rows.features.get(column)
    return getattr(getattr(feature, "feature", feature), "names", None)


def _number(table: Table, column: str, row: int, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not abs(number) <= float(np.finfo(np.float32).max):  # false for nan, too
        raise DataError(
            f"{table.where}: row {row}: '{value}' in column '{column}' is not a finite number"
        )
    return number


def _natural(name: str) -> tuple[bool, float, str]:
    """Numbers first, by value; then words."""
    number = re.fullmatch(r"[+-]?\d+(\.\d+)?", name)
    return (not number, float(name) if number else 0.0, name)
