"""Compressed files, patterns of files, and quotation marks: nothing is read otherwise in silence."""

import bz2
import gzip
import lzma
from pathlib import Path

import datasets
import pytest

from adapt.data.tables import chunks, read, read_lines
from adapt.errors import DataError, StrategyError

ROWS = [("a film", "good"), ("so-so", "bad"), ("é", "good")]
CONTENT = {
    ".csv": "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS),
    ".tsv": "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS),
    ".jsonl": "".join(f'{{"text": "{text}", "label": "{label}"}}\n' for text, label in ROWS),
    ".conll": "".join(f"{text.replace(' ', '-')} {label}\n\n" for text, label in ROWS),
}
COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))


def column(spec: Path | str, name: str = "text", **how) -> list:
    return [value for chunk in chunks(read(spec, **how), [name]) for value in chunk[name]]


@pytest.mark.parametrize("ending", CONTENT)
@pytest.mark.parametrize("compression", COMPRESS)
def test_a_compressed_file_is_what_was_compressed(tmp_path, ending, compression):
    plain = tmp_path / f"a{ending}"
    plain.write_text(CONTENT[ending], "utf-8")
    compressed = tmp_path / f"b{ending}{compression}"
    compressed.write_bytes(COMPRESS[compression](CONTENT[ending].encode()))
    assert column(compressed) == column(plain)
    assert column(compressed, "label") == column(plain, "label")


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_what_is_no_compressed_file_or_a_part_of_one_is_refused(tmp_path, compression, name):
    path = tmp_path / f"{name}{compression}"
    reader = read_lines if name == "a.txt" else read
    whole = COMPRESS[compression](b"text,label\n" + b"a,b\n" * 1000)
    for content in (b"text,label\na,b\n", whole[: len(whole) // 2], whole[:-3]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"can't be decompressed"):
            reader(path)


def test_what_is_not_utf_8_in_a_compressed_file_is_named(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"text\nb\n\xff\n"))
    with pytest.raises(DataError, match="line 3 is not UTF-8"):
        read(path)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n"
PAGE = "<!DOCTYPE html>\n<html><title>404</title></html>\n"
# What people have under another name, and what the error has to name.
MISNAMED = {
    "words.tsv": ("EU\tB-ORG\nis\tO\n\nIt\tO\n", r"\.conll"),
    "tagged.tsv": ("The\tDET\ndog\tNOUN\n\nIt\tPRON\n", r"\.conll"),
    "words.csv": ("EU B-ORG\nis O\n\nIt O\n", r"\.conll"),
    "words.txt": ("The DET\ndog NOUN\n\nIt PRON\n", r"\.conll"),
    "semicolons.csv": ("text;label\na;b\n", r"';' .* \.csv"),
    "quoted.csv": ('"text";"label"\n"a";"b"\n', r"';' .* \.csv"),
    "decimals.csv": ("text;label\na;1,5\n", r"';' .* \.csv"),
    "semicolons.tsv": ("text;label\na;b\n", r"';' .* \.tsv"),
    "bars.csv": ("text|label\na|b\n", r"'\|'"),
    "tabs.csv": ("text\tlabel\na\tb\n", r"tabs .* \.tsv"),
    "commas.tsv": ("text,label\na,b\n", r"commas .* \.csv"),
    "little.csv": ("text,label\na,b\n".encode("utf-16-le"), "iconv -f UTF-16LE "),
    "big.jsonl": ('{"text": "a"}\n'.encode("utf-16-be"), "iconv -f UTF-16BE "),
    "marked.tsv": ("text\tlabel\na\tb\n".encode("utf-16"), "iconv -f UTF-16 "),
    "wide.conll": ("EU B-ORG\n".encode("utf-32-le"), "iconv -f UTF-32LE "),
    "broad.txt": ("EU B-ORG\n".encode("utf-32"), "iconv -f UTF-32 "),
    "little.csv.gz": (gzip.compress("text,a\nb,c\n".encode("utf-16-le")), "iconv -f UTF-16LE "),
    "objects.csv": ('{"text": "a", "label": "b"}\n{"text": "c", "label": "d"}\n', r"\.jsonl"),
    "pointer.csv": (POINTER, "git lfs pull"),
    "pointer.jsonl": (POINTER, "git lfs pull"),
    "pointer.parquet": (POINTER, "git lfs pull"),
    "refused.csv": ("<!DOCTYPE html>\n<title>404</title>\n", "page of the web"),
    "packed.csv": (gzip.compress(b"text,label\na,b\n"), r"\.gz"),
    "table.csv": (b"PAR1\x15\x04\x15\xff\xd8", r"\.parquet"),
    "sheet.csv": (b"PK\x03\x04\x14\x00\x06\x00\xff\xd8", "Excel"),
    "ascii.csv": (b"PK\x03\x04\x14\x00", "Excel"),
    "old.csv": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\x00", "Excel"),
    "sheet.parquet": (b"PK\x03\x04\x14\x00", "Excel"),
    "sheet.xlsx": (b"PK\x03\x04\x14\x00", "no known format.*Excel"),
    "table.arrow": (POINTER, "no known format.*git lfs pull"),
    "pointer.conll": (POINTER, "git lfs pull"),
    "pointer.iob": (POINTER, "git lfs pull"),
    "pointer.bio": (POINTER, "git lfs pull"),
    "pointer.txt": (POINTER, "git lfs pull"),
    "pointer.tsv.gz": (POINTER, "git lfs pull"),
    "inside.csv.gz": (gzip.compress(POINTER.encode()), "git lfs pull"),
    "page.csv.gz": (PAGE, "HTML"),
    "blank.csv": ("\n\n" + PAGE, "HTML"),
    "page.conll": (PAGE, "HTML"),
    "page.parquet": (PAGE, "HTML"),
    "bucket.csv": ("<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "XML"),
    "plain.csv.gz": ("text,label\na,b\n", r"not compressed: call it plain\.csv"),
    "other.csv.gz": (bz2.compress(b"text\n"), r"bzip2.*\.bz2"),
    "objects.parquet": ('{"text": "a", "label": "b"}\n', r"not a parquet file: .*\.jsonl"),
    "table.parquet": ("text,label\na,b\n", r"not a parquet file: .* commas .*\.csv"),
    "commas.json": ("text,label\na,b\n", r"commas .*\.csv"),
    "tabs.jsonl": ("text\tlabel\na\tb\n", r"tabs .*\.tsv"),
    "excel.csv": ("sep=,\ntext,label\na,b\n", "sep=,.*delete"),
    "excel3.csv": ("sep=,\ntext,label,more\na,b,c\n", "sep=,.*delete"),
    "excel2.csv": ("sep=;\ntext;label\na;b\n", "sep=;.*delete"),
    "blanks.csv": (" text, label\na,b\n", "' text' has blanks around it"),
}


@pytest.mark.parametrize("name", MISNAMED)
def test_a_file_that_is_not_what_it_is_called_says_what_it_looks_like(tmp_path, name):
    content, mend = MISNAMED[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=mend) as caught:
        column(path)
    assert ".:" not in str(caught.value)


@pytest.mark.parametrize("content", [POINTER, PAGE, "\n" + PAGE, "PK\x03\x04"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_lines_of_a_file_that_is_no_text_are_not_read(tmp_path, name, content):
    path = tmp_path / name
    content = content.encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(DataError, match=f"{name}.*(git lfs pull|HTML|ZIP)"):
        read_lines(path)


def test_a_shard_that_was_not_fetched_is_named(tmp_path):
    (tmp_path / "mix-1.conll").write_text("EU B-ORG\nis O\n")
    (tmp_path / "mix-2.conll").write_text(POINTER)
    for spec in (f"{tmp_path}/mix-*.conll", tmp_path):
        with pytest.raises(DataError, match=r"mix-2\.conll.*git lfs pull"):
            read(spec)


def test_texts_with_marks_are_read_as_they_are_called(tmp_path):
    contents = {
        "a.csv": "text\n<html> is a mark\n",
        "b.csv": "PAR1,text\nx,<html> is a mark\n",
        "c.tsv": "text\tlabel\n<html> is a mark\tversion https://git-lfs\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        assert column(tmp_path / name) == ["<html> is a mark"]


@pytest.mark.parametrize(
    "content", ["a\nb\n", "a,b\n1,2\n", "a;b,c\n1,2\n", "a\n\nb c\n", "a\nb\0c\n"]
)
def test_a_file_that_is_what_it_is_called_gets_no_such_word(tmp_path, content):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=r"it has [^:]*$"):
        column(tmp_path / "a.csv")


def test_a_pattern_is_its_files_one_after_the_other(tmp_path):
    folder = tmp_path / "my data"
    folder.mkdir()
    for number in (10, 2, 1):
        some = datasets.Dataset.from_dict({"text": [f"{number}"], "label": ["x"]})
        some.to_parquet(folder / f"train-{number:05}-of-00011.parquet")
    (folder / "test-00000-of-00001.parquet").write_bytes(b"")
    pattern = f"{folder}/train-*.parquet"
    assert column(pattern) == ["1", "2", "10"]
    assert read(pattern).name == pattern
    assert column(f"{folder}/train-0000[12]*") == ["1", "2"]
    assert column(f"{tmp_path}/**/train-00002*") == ["2"]
    with pytest.raises(DataError, match=r"no file matches .*valid"):
        read(f"{folder}/valid-*.parquet")
    with pytest.raises(DataError, match="has no part 'test'"):
        read(pattern, "test")


def test_shards_may_be_compressed_and_have_to_fit_together(tmp_path):
    for number, name in enumerate(("a", "b")):
        content = gzip.compress(f"text,label\n{name},{number}\n".encode())
        (tmp_path / f"part-{number}.csv.gz").write_bytes(content)
    assert column(f"{tmp_path}/part-?.csv.gz") == column(tmp_path) == ["a", "b"]
    (tmp_path / "part-2.csv.gz").write_bytes(gzip.compress(b"text\nc\n"))
    assert column(tmp_path) == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"part-2.csv.gz has the columns text"):
        column(f"{tmp_path}/part-?.csv.gz", "label")
    (tmp_path / "part-3.md").write_text("# notes")
    with pytest.raises(DataError, match=r"part-3.md is of no known format"):
        read(f"{tmp_path}/part-[03]*")


# 60 rows of GLUE's kind: one text begins with a quotation mark, and the fourth after it ends with one.
LINES = [f"a film {number}\tgood" for number in range(60)]
LINES[9] = '"what a mess , she said 9\tbad'
LINES[13] = 'it was "fine"\tgood'
QUOTED = "text\tlabel\n" + "\n".join(LINES[:13]) + '\n"\tbad\n' + "\n".join(LINES[13:]) + "\n"


@pytest.mark.parametrize("name", ["a.tsv", "a.tab"])
def test_quotation_marks_in_a_tsv_file_are_text_and_that_is_said(tmp_path, name, caplog):
    path = tmp_path / name
    path.write_text(QUOTED, "utf-8")
    for _ in range(2):  # parsed, and from the cache
        caplog.clear()
        texts = column(path)
        assert len(texts) == 61
        assert texts[9] == '"what a mess , she said 9'
        (message,) = caplog.messages
        assert "2 rows have fields that begin with a quotation mark, first in line 11" in message
    caplog.clear()
    assert column(path, quoting="none") == texts
    assert not caplog.messages
    assert len(column(path, quoting="csv")) < 61, "not the case that this is about"


def test_a_tsv_file_without_quotation_marks_is_the_same_either_way(tmp_path, caplog):
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\nsay "hi"\tgood\n', "utf-8")
    assert column(path) == column(path, quoting="csv") == column(path, quoting="none")
    assert not caplog.messages


def test_a_field_over_several_lines_is_an_error_that_names_the_mend(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"one\ntwo"\tgood\n', "utf-8")
    with pytest.raises(DataError, match=r"row 1 \(line 2\) has 1 fields.*line 2 .*`quoting` csv"):
        read(path)
    assert column(path, quoting="csv") == ["one\ntwo"]


def test_a_csv_row_that_would_be_several_is_said(tmp_path, caplog):
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"oh no,bad\na film,good\nso "so",good\nb,bad\n"x",bad\n', "utf-8")
    with pytest.raises(DataError, match=r"is a quote missing\? `quoting` none"):
        read(path)
    assert column(path, quoting="none")[0] == '"oh no'
    path.write_text('text,label\na,good\n"oh no,bad\na film,good\nso",good\n', "utf-8")
    assert column(path) == ["a", "oh no,bad\na film,good\nso"]
    (message,) = caplog.messages
    assert "lines 3 to 5 are one row, and would be several" in message
    caplog.clear()
    assert len(column(path, quoting="csv")) == 2
    assert not caplog.messages
    path.write_text('text,label\n"a text, of\ntwo lines, or, so",good\n"two\nlines",bad\n', "utf-8")
    assert len(column(path)) == 2


def test_other_quoting_is_refused(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("text\na\n", "utf-8")
    with pytest.raises(StrategyError, match="`quoting` is 'minimal': give one of csv, none"):
        read(path, quoting="minimal")
