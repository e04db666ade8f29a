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
from adapt.files import parse_json

SEPARATORS = ("\t", ";", "|", ",")  # the ones that are no part of a name of a column come first
LOOKED_AT = 1000  # lines
# How the first line begins of what was fetched in place of a file.
BEGINNINGS = {
    "version https://git-lfs": "it is Git LFS's pointer to the file: fetch it with git lfs pull",
    "<!doctype html": "it is a page of the web, as a server sends one that refuses a file",
    "<html": "it is a page of the web, as a server sends one that refuses a file",
}


def mend(path: Path, kind: str | None) -> str:
    """What an error of a file of ``kind`` adds, None for none; "" where the file looks like what it
    is called.
    """
    lines: list[str] = []
    with contextlib.suppress(DataError, OSError):
        lines = list(islice(text_lines(path), LOOKED_AT))
    if not lines:
        return ""
    for beginning, what in BEGINNINGS.items():
        if lines[0].lower().startswith(beginning):
            return f": {what}"
    if kind is not None and kind not in DELIMITERS:
        return ""
    if is_object(lines[0]):
        return ": it looks like a JSON object a line: such a file is called .jsonl"
    if is_word_a_line(lines):
        return ": it looks like a word with its tag a line: such a file is called .conll"
    if kind is None:
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


def other_separator(line: str, delimiter: str) -> str | None:
    """The mark that stands between the fields of a line in place of the ``delimiter``, or None."""
    if delimiter in line:
        return None
    return next((mark for mark in SEPARATORS if mark in line), None)
