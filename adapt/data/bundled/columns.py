"""What every set does with its rows: one row for a text, and one fixed split."""

import re
from collections.abc import Callable, Iterable

import numpy as np

Columns = dict[str, list]  # equally long


def words(text: str) -> str:
    """What two texts share that differ in case, space and punctuation alone."""
    return " ".join(re.findall(r"\w+", text.lower()))


def take(columns: Columns, rows: Iterable[int]) -> Columns:
    chosen = list(rows)
    return {name: [values[row] for row in chosen] for name, values in columns.items()}


def distinct(columns: Columns, key: Callable[[str], str] = words) -> Columns:
    """The first row of each text, where texts of the same key are one."""
    first = {}
    for row, text in enumerate(columns["text"]):
        first.setdefault(key(text), row)
    return take(columns, first.values())


def split(columns: Columns, held_out: int) -> tuple[Columns, Columns]:
    """(train, test): `RandomState(0)` permutes the rows (NumPy promises that this stream never
    changes), the last `held_out` of them are the test part.
    """
    count = len(next(iter(columns.values())))
    order = np.random.RandomState(0).permutation(count).tolist()
    return take(columns, order[:-held_out]), take(columns, order[-held_out:])
