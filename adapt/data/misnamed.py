"""What a text file looks like where it is not what its name says: the end of an error's sentence.

    mend(Path("train.csv"), "csv")      # ": its first line has ';' between its fields: write ..."

A file is never read otherwise than it is called: a text may hold any of these marks. What can be no
data at all is refused before, see :mod:`adapt.signatures`.
"""

import contextlib
import csv
import re
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path

from adapt.data import conll
from adapt.data.formats import format_of
from adapt.data.text_files import DELIMITERS, QUOTING, open_text, text_lines
from adapt.errors import DataError
from adapt.files import parse_json

SEPARATORS = ("\t", ";", "|", ",")  # the ones that are no part of a name of a column come first
LOOKED_AT = 1000  # lines
EXCEL_SEPARATOR = re.compile(r'"?sep=.?"?,*')  # with the commas that a spreadsheet may add


def with_mend(error: DataError, path: Path, kind: str | None) -> DataError:
    """The error, with what :func:`mend` adds in place of its full stop."""
    added = mend(path, kind)
    message = str(error)
    return DataError(f"{message.rstrip('.')}{added}" if added else message)


def mend(path: Path, kind: str | None) -> str:
    """What an error of a file of ``kind`` adds, None for none; "" where the file looks like what it
    is called.
    """
    lines: list[str] = []
    with contextlib.suppress(DataError, OSError):
        lines = list(islice(text_lines(path), LOOKED_AT))
    if not lines:
        return ""
    begins_as_json = lines[0].lstrip().startswith(("{", "["))
    if kind == "json" and begins_as_json:
        return ""
    if is_object(lines[0]):
        return ": it looks like a JSON object a line: such a file is called .jsonl"
    if kind != "conll" and is_word_a_line(lines):
        return ": it looks like a word with its tag a line: such a file is called .conll"
    if kind in DELIMITERS:
        return mend_of_table(lines[0], DELIMITERS[kind])
    if kind in ("json", "parquet") and not begins_as_json:
        return named_by_separator(other_separator(lines[0], ""))
    return ""


def mend_of_table(header: str, delimiter: str) -> str:
    """What an error of a table adds that begins with this line, "" where its fields are separated
    as its name says.
    """
    if EXCEL_SEPARATOR.fullmatch(header.strip()):
        return f": its first line, {header.strip()!r}, is a note for Excel: delete it"
    separator = other_separator(header, delimiter)
    if separator is None:
        return ""
    return named_by_separator(separator) or (
        f": its first line has {separator!r} between its fields: write them with commas as .csv, "
        "or with tabs as .tsv"
    )


def named_by_separator(separator: str | None) -> str:
    """How a file is called whose fields have this mark between them; "" where no name is for it."""
    for name, delimiter in DELIMITERS.items():
        if separator == delimiter:
            between = "tabs" if delimiter == "\t" else "commas"
            return (
                f": its first line has {between} between its fields: such a file is called .{name}"
            )
    return ""


def is_object(line: str) -> bool:
    """Whether a line is a JSON object."""
    with contextlib.suppress(ValueError):
        return isinstance(parse_json(line), dict)
    return False


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


def is_word_a_row(path: Path, column: str) -> bool:
    """Whether a CSV or TSV file has sentences of a word a row: single words in ``column``, and
    blank lines between its rows, of which some follow upon each other.

    What is read of a table are its rows: each of the words would be a sentence.
    """
    kind = format_of(path)
    if kind not in DELIMITERS:
        return False
    style = csv.QUOTE_MINIMAL if QUOTING[kind] == "csv" else csv.QUOTE_NONE
    with open_text(path, newline="") as file:
        rows = csv.reader(file, delimiter=DELIMITERS[kind], quoting=style)
        header = next(filter(None, rows), [])
        if column not in header:
            return False
        place = header.index(column)
        counts = [len(" ".join(row[place : place + 1]).split()) for row in rows]
    while counts and not counts[-1]:
        counts.pop()
    first = next((number for number, count in enumerate(counts) if count), 0)
    counts = counts[first:]
    has_neighbours = any(one and other for one, other in pairwise(counts))
    return set(counts) == {0, 1} and has_neighbours


def other_separator(line: str, delimiter: str) -> str | None:
    """The mark that stands between the fields of a line in place of the ``delimiter``, or None."""
    if delimiter and delimiter in line:
        return None
    return next((mark for mark in SEPARATORS if mark in line), None)
