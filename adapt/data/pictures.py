"""Columns of pictures of a table: checked once, and decoded when they are needed.

    digests = check_images(table, "image")              # uint8 [N, 32]
    load = image_loader(table, "image")
    load(np.array([4, 2]))                              # two PIL images

Rows are counted from 1 in messages, without the header.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from adapt.data.decoding import content_of, decode_coarsely
from adapt.data.tables import Table, check_column, chunks, import_datasets
from adapt.errors import DataError, first_line


def image_loader(table: Table, column: str) -> Callable[[np.ndarray], list[Any]]:
    """A function from rows, integers [n] from 0, to their PIL images, decoded when it is called."""

    def load(rows: np.ndarray) -> list[Any]:
        if not len(rows):
            return []
        (chunk,) = chunks(table.select(rows), [column], len(rows))
        return chunk[column]

    return load


def check_images(table: Table, column: str) -> np.ndarray:
    """The SHA-256 of each picture's file, uint8 [N, 32]; every picture is decoded once, coarsely.

    Raises :class:`DataError` naming the row, and the file where there is one, of what is no picture
    or only a part of one.
    """
    digests = np.zeros((len(table), 32), np.uint8)
    for index, image in enumerate(undecoded_images(table, column)):
        path = image.get("path")
        try:
            content = content_of(image)
            decode_coarsely(content)
        except Exception as error:
            # Pillow raises what it likes: OSError, SyntaxError, DecompressionBombError.
            file = f" ({path})" if path else ""
            raise DataError(
                f"{table.name}: row {index + 1}{file} holds no image that can be decoded: "
                f"{first_line(error)}"
            ) from error
        digests[index] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
    return digests


def picture_files(table: Table, column: str) -> Iterator[bytes]:
    """The content of each picture's file, of a column that :func:`check_images` has seen."""
    return map(content_of, undecoded_images(table, column))


def undecoded_images(table: Table, column: str) -> Iterator[dict[str, Any]]:
    """The ``bytes`` or the ``path`` of each picture. Raises :class:`DataError` for a column without
    any.
    """
    check_column(table, column)
    undecoded = import_datasets().Image(decode=False)
    try:
        rows = table.rows.select_columns([column]).cast_column(column, undecoded)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{table.name}: column '{column}' holds no images: {first_line(error)}"
        ) from error
    return (dict(row)[column] or {} for row in rows)
