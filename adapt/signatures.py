"""What a file is by its first bytes, where it is not what its name says.

    stand_in(b"version https://git-lfs.github.com/spec/v1")     # "it is Git LFS's pointer to ..."
    other_format(b"PK\\x03\\x04")                                 # "it is an Excel file ..."

Every reader asks before it parses: a pointer of Git LFS is three lines of text, which are rows of
a table, a sentence of words, or texts to train on. What is said is the end of an error's sentence.
"""

import codecs
import contextlib
import re
from pathlib import Path

BEGINNING = 4096  # bytes that are looked at: blank lines may stand before a page
POINTER = b"version https://git-lfs"  # https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
PAGE = re.compile(rb"<(!doctype\s+html|html)\b")
XML = b"<?xml"
EXCEL = "save its sheet as CSV"
# How files begin that are no text: no text in UTF-8 has such bytes, or would be so by chance.
FORMATS = {
    rb"\x1f\x8b": "it is compressed by gzip: such a file is called .gz",
    rb"BZh[1-9]1AY&SY": "it is compressed by bzip2: such a file is called .bz2",
    rb"\xfd7zXZ\x00": "it is compressed by xz: such a file is called .xz",
    rb"PAR1\x15": "it is a Parquet file: such a file is called .parquet",
    rb"ARROW1\x00\x00": "it is an Arrow file: write its table as .parquet",
    rb"PK\x03\x04": f"it is an Excel file (or another ZIP archive): {EXCEL}",
    rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": f"it is an Excel file of the old kind (.xls): {EXCEL}",
}
# How a compressed file begins, by the ending of its name.
COMPRESSED = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\x00"}


def stand_in(head: bytes) -> str | None:
    """What was fetched in place of a file that begins with ``head``, and the mend; None where it is
    the file itself.
    """
    text = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if text.startswith(POINTER):
        return "it is Git LFS's pointer to the file: fetch it with git lfs pull"
    if PAGE.match(text):
        return (
            "it is a page of the web (HTML), as a server sends one that refuses a file: fetch it "
            "again, or take the text out of the page"
        )
    if text.startswith(XML):
        return (
            "it is XML, as a bucket answers that refuses a file: fetch it again, or write what it "
            "holds as text"
        )
    return None


def other_format(head: bytes) -> str | None:
    """The format of a file that begins with ``head`` and is no text, and the mend; None for text,
    and for a format that is not known here.
    """
    for beginning, what in FORMATS.items():
        if re.match(beginning, head):
            return what
    return None


def no_text(head: bytes) -> str | None:
    """Why a file that begins with ``head`` is not read as text, and the mend; None where it is."""
    return stand_in(head) or other_format(head)


def not_compressed(name: Path, head: bytes) -> str | None:
    """Why the file ``name``, ``.gz`` or the like, is not decompressed, by the ``head`` that it has
    on the disk; None where it begins as it is called, and for what is not known here.
    """
    if head.startswith(COMPRESSED[name.suffix.lower()]):
        return None
    what = no_text(head)
    if what is None and is_text(head):
        what = f"it is not compressed: call it {name.with_suffix('').name}"
    return what


def is_text(head: bytes) -> bool:
    """Whether the beginning of a file, which may end inside a character, is text in UTF-8."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return bool(text) and "\0" not in text


def head_of(path: Path) -> bytes:
    """The first bytes of a file on the disk; none of one that can't be read, whose reader says why,
    and of a pipe, which can be read once.
    """
    with contextlib.suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                return file.read(BEGINNING)
    return b""
