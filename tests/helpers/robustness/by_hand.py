"""Readers of files that share no code with adapt, to tell what stands in a damaged file."""

import csv
import gzip
import hashlib
import io
import json
import lzma
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
WIDTHS |= {"U8": 1, "BOOL": 1}


def tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]] | None:
    """{name: (dtype, shape, bytes)} of a safetensors file; None for one that is not as the format
    says.
    """
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
        found = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            first, last = entry["data_offsets"]
            values = content[8 + size + first : 8 + size + last]
            shape = tuple(entry["shape"])
            if len(values) != int(np.prod(shape)) * WIDTHS[entry["dtype"]]:
                return None
            found[name] = (entry["dtype"], shape, values)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    return found


def text_of(path: Path) -> str:
    """The text in a file, decompressed. Raises ValueError, OSError, EOFError or zlib.error."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    elif path.suffix == ".xz":
        content = lzma.decompress(content)
    return content.decode("utf-8-sig")


NO_TEXT = (ValueError, OSError, EOFError, zlib.error, lzma.LZMAError, RecursionError)


def csv_rows(path: Path) -> list[dict[str, str]] | None:
    """The rows of a table by the standard library, quotation marks of TSV as text; None for what is
    no text.
    """
    style: dict[str, Any] = {"delimiter": ","}
    if ".tsv" in path.suffixes:
        style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    try:
        rows = list(csv.reader(io.StringIO(text_of(path), newline=""), **style))
    except (*NO_TEXT, csv.Error):
        return None
    header, *others = filter(None, rows)
    return [dict(zip(header, row, strict=False)) for row in others]


def json_rows(path: Path) -> list[Any] | None:
    """The rows of a JSON file, lines or a list; None for what is neither, and for an object
    that has a name twice: there is no telling which one was meant.
    """
    try:
        text = text_of(path)
        if text.lstrip().startswith("["):
            rows = json.loads(text, object_pairs_hook=unique)
        else:
            lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
            rows = [json.loads(line, object_pairs_hook=unique) for line in lines if line.strip()]
    except NO_TEXT:
        return None
    return rows


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names differ."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name twice")
    return found


def png_is_whole(content: bytes) -> bool:
    """Whether a PNG has its signature, chunks with right checksums, and an end."""
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        return False
    place = 8
    while place + 12 <= len(content):
        (size,) = struct.unpack(">I", content[place : place + 4])
        body = content[place + 4 : place + 8 + size]
        stored = content[place + 8 + size : place + 12 + size]
        if len(stored) < 4 or zlib.crc32(body) != struct.unpack(">I", stored)[0]:
            return False
        if body[:4] == b"IEND":
            return True
        place += 12 + size
    return False


def document(path: Path) -> Any:
    """The document in a JSON file, or its bytes where there is none."""
    content = path.read_bytes()
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return content


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
