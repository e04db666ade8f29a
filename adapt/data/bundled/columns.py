"""What every set does with its rows: one row for a text, and one fixed split."""

import re
from collections.abc import Callable, Iterable

import numpy as np

Columns = dict[str, list]  # equally long


def words(text: str) -> str:
    """The words in lower case: the same for texts that differ in case, space and punctuation
    alone.
    """
    return " ".join(re.findall(r"\w+", text.lower()))


def take(columns: Columns, rows: Iterable[int]) -> Columns:
    """The rows ``rows``, in that order."""
    chosen = list(rows)
    return {name: [values[row] for row in chosen] for name, values in columns.items()}


def distinct(columns: Columns, key: Callable[[str], str] = words) -> Columns:
    """The first row of each text, where texts of the same key are one."""
    first = {}
    for row, text in enumerate(columns["text"]):
        first.setdefault(key(text), row)
    return take(columns, first.values())


def split(columns: Columns, held_out: int) -> tuple[Columns, Columns]:
    """(train, test): the last ``held_out`` rows of a permutation are the test part.

    It is by `RandomState(0)`, a stream that NumPy promises never to change.
    """
    count = len(next(iter(columns.values())))
    order = np.random.RandomState(0).permutation(count).tolist()
    return take(columns, order[:-held_out]), take(columns, order[-held_out:])
