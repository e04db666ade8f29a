"""What a text file looks like where it is not what its name says: the end of an error's sentence.

    mend(Path("train.csv"), "csv")      # ": its first line has ';' between its fields: write ..."

A file is never read otherwise than it is called: a text may hold any of these marks.
"""

import contextlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from adapt.data import conll
from adapt.data.text_files import DELIMITERS, text_lines
from adapt.errors import DataError

SEPARATORS = ("\t", ";", "|", ",")  # the ones that are no part of a name of a column come first
LOOKED_AT = 1000  # lines


def mend(path: Path, kind: str | None) -> str:
    """What an error of a file of ``kind`` adds, ``csv`` or ``tsv`` or None for none; "" where the
    file looks like what it is called.
    """
    if kind is not None and kind not in DELIMITERS:
        return ""
    lines: list[str] = []
    with contextlib.suppress(DataError, OSError):
        lines = list(islice(text_lines(path), LOOKED_AT))
    if is_word_a_line(lines):
        return ": it looks like a word with its tag a line: such a file is called .conll"
    if kind is None or not lines:
        return ""
    separator = other_separator(lines[0], DELIMITERS[kind])
    for name, delimiter in DELIMITERS.items():
        if separator == delimiter:
            between = "tabs" if delimiter == "\t" else "commas"
            return (
                f": its first line has {between} between its fields: such a file is called .{name}"
            )
    if separator is not None:
        return (
            f": its first line has {separator!r} between its fields: write them with commas as "
            ".csv, or with tabs as .tsv"
        )
    return ""


def is_word_a_line(lines: Sequence[str]) -> bool:
    """Whether lines may be words with their tags: as many fields in each, at least two, and blank
    lines between some.
    """
    if conll.is_conll(lines):
        return True
    widths = [len(line.split()) for line in lines]
    while widths and not widths[-1]:
        widths.pop()
    return 0 in widths and len({width for width in widths if width}) == 1 and max(widths) > 1


def other_separator(line: str, delimiter: str) -> str | None:
    """The mark that stands between the fields of a line in place of the ``delimiter``, or None."""
    if delimiter in line:
        return None
    return next((mark for mark in SEPARATORS if mark in line), None)
