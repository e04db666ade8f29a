"""Rows that a run is scored on and has been trained on: their score says nothing of new ones."""

import hashlib
import logging
from collections.abc import Iterator, Mapping

from adapt.data import pictures, tables
from adapt.data.inputs import Part

logger = logging.getLogger(__name__)

SHOWN = 5  # rows that a note names


def count_repeated(parts: Mapping[str, Part]) -> dict[str, int]:
    """How many rows of each other part have the inputs of a row of ``train``, by the part's name.

    Whatever their labels: inputs are compared, texts as they are written and pictures by their
    files. A note names the first rows.
    """
    train = parts["train"]
    trained = set(row_keys(train))
    counts = {}
    for name, part in parts.items():
        if part is train:
            continue
        rows = [row for row, key in enumerate(row_keys(part), 1) if key in trained]
        counts[name] = len(rows)
        if rows:
            first = ", ".join(str(row) for row in rows[:SHOWN])
            more = ", ..." if len(rows) > SHOWN else ""
            logger.warning(
                f"{part.table.name}: {len(rows)} of {len(part.table)} rows are in the training "
                f"data, too (row {first}{more}): their score says nothing of new ones"
            )
    return counts


def row_keys(part: Part) -> Iterator[bytes]:
    """The inputs of each row, as 16 bytes."""
    if part.columns.image:
        for content in pictures.picture_files(part.table, part.columns.image):
            yield hashlib.sha256(content).digest()[:16]
        return
    columns = part.columns.texts
    for chunk in tables.chunks(part.table, columns):
        for inputs in zip(*(chunk[column] for column in columns), strict=True):
            yield hashlib.sha256(repr(inputs).encode("utf-8", "surrogatepass")).digest()[:16]
