"""What a file is by its first bytes, and texts that begin nearly so."""

import bz2
import gzip
import lzma
from pathlib import Path

import pytest

from adapt import signatures

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n"


@pytest.mark.parametrize(
    ("head", "named"),
    [
        (POINTER, "git lfs pull"),
        (b"\xef\xbb\xbf\n" + POINTER, "git lfs pull"),
        (b"<!DOCTYPE html>\n<title>403</title>", "HTML"),
        (b"\n \r\n<html lang='en'>", "HTML"),
        (b'<?xml version="1.0"?><Error>', "XML"),
    ],
)
def test_what_was_fetched_in_place_of_a_file_is_named(head, named):
    assert named in (signatures.stand_in(head) or "")
    assert named in (signatures.no_text(head) or "")
    assert signatures.other_format(head) is None


@pytest.mark.parametrize(
    ("head", "named"),
    [
        # Two workers have to collect the same names: no time in the header.
        (gzip.compress(b"a", mtime=0), ".gz"),
        (bz2.compress(b"a"), ".bz2"),
        (bz2.compress(b"a", 1), ".bz2"),
        (lzma.compress(b"a"), ".xz"),
        (b"PAR1\x15\x04\x15", ".parquet"),
        (b"ARROW1\x00\x00", ".parquet"),
        (b"PK\x03\x04\x14\x00", "CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\x00", "CSV"),
    ],
)
def test_another_format_is_named(head, named):
    assert named in (signatures.other_format(head) or "")
    assert signatures.stand_in(head) is None


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"text,label\n",
        b"BZhang,label\n",
        b"PAR1,label\n",
        b"PK,label\n",
        b"<b>a film</b>\n",
        b"<htmlike\tO\n",
        b"version 2\n",
        b"version https://example.org\n",
        "é".encode(),
    ],
)
def test_a_text_that_begins_nearly_so_is_one(head):
    assert signatures.no_text(head) is None


def test_a_file_that_can_not_be_opened_has_no_first_bytes(tmp_path):
    assert signatures.head_of(tmp_path) == signatures.head_of(tmp_path / "absent") == b""
    path = tmp_path / "long.txt"
    path.write_bytes(b"a" * (signatures.BEGINNING + 1))
    assert signatures.head_of(path) == b"a" * signatures.BEGINNING


def test_a_character_that_is_cut_at_the_end_of_the_beginning_is_text():
    assert signatures.not_compressed(Path("a.csv.gz"), "aé".encode()[:-1]) is not None
    assert signatures.not_compressed(Path("a.csv.gz"), b"a\xff\xff") is None
    assert signatures.not_compressed(Path("a.csv.gz"), gzip.compress(b"a")) is None
