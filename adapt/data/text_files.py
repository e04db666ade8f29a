"""Text files, compressed ones too: their lines, and the records of CSV and TSV files, strictly.

Quotation marks of a CSV file hold what is between them together: separators, line breaks, and
doubled marks. Those of a TSV file are text, as in GLUE's files, unless ``quoting`` is ``csv``;
where a field begins with one, both readings are possible, and a note says which it was.
"""

import bz2
import codecs
import contextlib
import csv
import gzip
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from adapt import signatures
from adapt.errors import DataError, first_line
from adapt.options import Quoting

DELIMITERS = {"csv": ",", "tsv": "\t"}
QUOTING: dict[str, Quoting] = {"csv": "csv", "tsv": "none"}  # where nothing is said
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# Marks that files begin with; that of UTF-32 begins with the one of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
LINE_BREAK = re.compile("\r\n|\r|\n")

csv.field_size_limit(2**31 - 1)  # the default refuses a text of more than 131,072 characters


@contextlib.contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """A text file, decompressed by its ending. Raises :class:`DataError`, also while it is read,
    for what is not UTF-8, what can't be decompressed, and what is no text by its first bytes.
    """
    opener = OPENERS.get(path.suffix.lower())
    if opener is not None:
        check_is_compressed(path)
    try:
        with (opener or open)(path, "rb") as file:
            check_is_text(path, file.read(signatures.BEGINNING))
        with (opener or open)(path, "rt", encoding="utf-8-sig", newline=newline) as file:
            yield file
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if opener is None:
            raise
        raise DataError(f"{path} can't be decompressed: {first_line(error)}") from error


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, without their ends."""
    with open_text(path) as file:
        for line in file:
            yield line.removesuffix("\n")


def read_csv(
    path: Path,
    kind: str,
    quoting: Quoting | None = None,
    notes: list[str] | None = None,
    faults: dict[str, str] | None = None,
) -> Iterator[list[str]]:
    """The header, then the rows, each with as many fields as the header names, of a file of kind
    ``csv`` or ``tsv``. Where quotation marks may be meant otherwise, ``notes`` get a sentence.
    Columns of one name are left out, and ``faults`` get why, by name.

    Raises :class:`DataError` for a row of another length, one that is the header again, a quote that
    is missing or stray, a file of which no column is left, and what is not UTF-8.
    """
    delimiter = DELIMITERS[kind]
    is_quoted = (quoting or QUOTING[kind]) == "csv"
    style = csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE
    with open_text(path, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True, quoting=style)
        try:
            header = next(filter(None, reader), [])
            repeated = repeated_names(header)
            kept = kept_columns(path, header, repeated)
            if faults is not None:
                faults |= repeated
            is_whole = len(kept) == len(header)
            marks = QuotationMarks(len(header), delimiter, is_quoted)
            marks.look_at(header, reader.line_num)
            yield header if is_whole else [header[column] for column in kept]
            rows = without_blank_lines(reader, len(header))
            for number, row in enumerate(rows, 1):
                marks.look_at(row, reader.line_num)
                if len(row) != len(header):
                    raise DataError(
                        f"{path}: row {number} (line {reader.line_num}) has {len(row)} "
                        f"fields, the header has {len(header)}{marks.mend}"
                    )
                if is_header_again(row, header):
                    raise DataError(
                        f"{path}: row {number} (line {reader.line_num}) is the header again: were "
                        "files joined? Leave it out"
                    )
                yield row if is_whole else [row[column] for column in kept]
        except csv.Error as error:
            raise DataError(
                f"{path}: line {reader.line_num}: {error}; is a quote missing? `quoting` none takes "
                "quotation marks as text"
            ) from error
    if notes is not None and quoting is None and marks.count:
        notes.append(f"{path}: {marks.note}")


def repeated_names(names: Sequence[str]) -> dict[str, str]:
    """Why columns can't be read whose names stand there twice, by name."""
    counts = Counter(names)
    return {
        name: f"column '{name}' is there twice: rename one"
        for name, count in counts.items()
        if name and count > 1
    }


def kept_columns(path: Path, header: list[str], left_out: Container[str]) -> list[int]:
    """The numbers of the columns that are read: all that are not ``left_out``, but without a name
    at most one.

    A spreadsheet leaves several such, and nobody can ask for them. Raises :class:`DataError` where
    none is left, and for a zero byte in a name, which Arrow can't keep.
    """
    if any("\0" in name for name in header):
        raise DataError(f"{path}: a name in the header holds a zero byte: is it a text file?")
    kept = [column for column, name in enumerate(header) if name not in left_out]
    if header and not kept:
        raise DataError(f"{path} names the column '{header[0]}' twice, and no other")
    if header.count("") > 1:
        kept = [column for column in kept if header[column]]
    return kept


class QuotationMarks:
    """Which rows have quotation marks that may be meant otherwise than they are read."""

    def __init__(self, width: int, delimiter: str, is_quoted: bool):
        self.width = width
        self.delimiter = delimiter
        self.is_quoted = is_quoted
        self.count = 0
        self.lines = (0, 0)  # of the first one

    def look_at(self, row: list[str], last_line: int) -> None:
        """Count a row, which ends in this line."""
        if self.is_quoted:
            is_odd = any(self.holds_rows(number, field) for number, field in enumerate(row))
        else:
            is_odd = any(field.startswith('"') for field in row)
        if not is_odd:
            return
        if not self.count:
            breaks = sum(len(LINE_BREAK.findall(field)) for field in row)
            self.lines = (last_line - breaks, last_line)
        self.count += 1

    def holds_rows(self, column: int, field: str) -> bool:
        """Whether the lines of a field, but for the last, would be rows without quotation marks."""
        if self.width < 2 or ("\n" not in field and "\r" not in field):
            return False
        lines = LINE_BREAK.split(field)
        wanted = self.width - 1
        counts = [line.count(self.delimiter) for line in lines[:-1]]
        return counts[0] == wanted - column and all(count == wanted for count in counts[1:])

    @property
    def mend(self) -> str:
        """What an error of a row of another length adds."""
        if self.is_quoted or not self.count:
            return ""
        return (
            f"; line {self.lines[0]} has a field that begins with a quotation mark: where fields "
            "are quoted as in CSV files, give `quoting` csv"
        )

    @property
    def note(self) -> str:
        first, last = self.lines
        if self.is_quoted:
            more = f" (and {self.count - 1} more)" if self.count > 1 else ""
            return (
                f"lines {first} to {last} are one row{more}, and would be several without their "
                "quotation marks: is one missing? `quoting` none takes them as text, `quoting` csv "
                "says that this is meant"
            )
        fields = "row has a field that begins" if self.count == 1 else "rows have fields that begin"
        return (
            f"{self.count} {fields} with a quotation mark, first in line {first}: taken as text; "
            "`quoting` none says that this is meant, `quoting` csv reads them as CSV files are read"
        )


def is_header_again(row: list[str], header: list[str]) -> bool:
    """Whether a row of several columns is the header, perhaps with the mark that a file begins with."""
    if len(header) < 2 or row[1:] != header[1:]:
        return False
    return row[0].removeprefix("\ufeff") == header[0]


def without_blank_lines(rows: Iterable[list[str]], num_columns: int) -> Iterator[list[str]]:
    """The rows without blank lines, which the reader gives as empty lists.

    In a file of one column a blank line is an empty text, unless nothing but blank lines follows.
    """
    num_blank = 0
    for row in rows:
        if not row:
            num_blank += 1
            continue
        if num_columns == 1:
            yield from [[""]] * num_blank
        num_blank = 0
        yield row


def not_utf8(path: Path) -> DataError:
    """The error of a file that is not UTF-8, with the first line that is not."""
    with OPENERS.get(path.suffix.lower(), open)(path, "rb") as file:
        number = next(number for number, line in enumerate(file, 1) if not is_utf8(line))
    return DataError(f"{path}: line {number} is not UTF-8; convert the file with iconv")


def check_is_compressed(path: Path) -> None:
    """Raise :class:`DataError` for a file whose first bytes say that its name is wrong: ``.gz``,
    and it is not compressed.
    """
    what = signatures.not_compressed(path, signatures.head_of(path))
    if what is not None:
        raise DataError(f"{path} can't be decompressed: {what}")


def check_is_text(path: Path, head: bytes) -> None:
    """Raise :class:`DataError` for a file that begins as no text in UTF-8 does: a page of the web,
    a workbook, UTF-16.
    """
    what = signatures.no_text(head)
    if what is not None:
        inside = " holds another file" if path.suffix.lower() in OPENERS else ""
        raise DataError(f"{path}{inside}: {what}")
    encoding = wide_encoding(head[:1024])
    if encoding is not None:
        raise DataError(
            f"{path}: line 1 is not UTF-8 but {encoding}; convert the file with iconv -f "
            f"{encoding} -t UTF-8"
        )


def wide_encoding(head: bytes) -> str | None:
    """The encoding of a file of 2 or 4 bytes a character, by how it begins; None for another.

    Without a mark it shows by the zeros beside letters, digits and separators. UTF-8 may hold
    zeros, but not at every second byte alone.
    """
    for mark, name in MARKS.items():
        if head.startswith(mark):
            return name
    zeros = [head[place::4].count(0) for place in range(4)]
    few = max(len(head) // 20, 1)
    if zeros[0] + zeros[2] == 0 and zeros[1] + zeros[3] > few:
        return "UTF-16LE"
    if zeros[1] + zeros[3] == 0 and zeros[0] + zeros[2] > few:
        return "UTF-16BE"
    if zeros[0] == 0 and min(zeros[1:]) > few:
        return "UTF-32LE"
    if zeros[3] == 0 and min(zeros[:3]) > few:
        return "UTF-32BE"
    return None


def is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
