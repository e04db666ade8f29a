"""Reading: every value as it stands in the file, and one line for whatever is wrong with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from adapt.data.inputs import Columns, make_table
from adapt.data.pictures import check_images
from adapt.data.tables import (
    check_column,
    check_texts,
    chunks,
    numbered_values,
    read,
    read_lines,
)
from adapt.errors import DataError, OutputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Parsed tables go to a folder of the test."""
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path):
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def column(path: Path | str, name: str = "text") -> list:
    return [value for chunk in chunks(read(path), [name]) for value in chunk[name]]


def test_importing_the_data_room_does_not_import_datasets():
    program = "import adapt.data.labels, sys; print({'datasets', 'pyarrow'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n"


WORDS = ["NA", "null", "None", "nan", "N/A", "-nan", "#N/A", "NULL", "NaN", "n/a", "<NA>"]
WORDS += ["1.#IND", "true", "007", "1e5"]


@pytest.mark.parametrize("name", ["words.csv", "words.tsv", "words.CSV"])
def test_words_of_csv_are_text_whatever_they_look_like(file, name):
    separator = "\t" if name == "words.tsv" else ","
    lines = [separator.join(row) for row in [("text", "label"), *zip(WORDS, WORDS, strict=True)]]
    path = file(name, "\n".join(lines))
    assert column(path) == column(path, "label") == WORDS


def test_a_column_of_numbers_keeps_its_spelling(file):
    path = file("a.csv", "text,label\n007,1\n 8,2.50\n-0,\n")
    assert column(path) == ["007", " 8", "-0"]
    assert column(path, "label") == ["1", "2.50", ""]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_quotes_and_commas(file, end):
    rows = [
        "text,label",
        '"one, two",a',
        "",
        '"say ""hi""",b',
        '"first\r\nsecond\nthird",c',
        "last,d",
    ]
    assert column(file("a.csv", end.join(rows))) == [
        "one, two",
        'say "hi"',
        "first\r\nsecond\nthird",
        "last",
    ]


def test_a_byte_order_mark_is_no_part_of_the_first_column(file):
    assert read(file("a.csv", "\ufefftext,label\né,b\n".encode())).columns == ["text", "label"]
    assert read(file("a.jsonl", '\ufeff{"text": "é"}\n'.encode())).columns == ["text"]
    assert column(file("b.csv", '\ufeff"text","label"\né,b\n'.encode())) == ["é"]


def test_a_long_text_is_read_whole(file):
    assert column(file("a.csv", "text\n" + "x" * 300_000)) == ["x" * 300_000]


def test_more_rows_than_a_chunk_keep_their_order(file):
    path = file("a.csv", "text,label\n" + "".join(f"t{i},{i % 3}\n" for i in range(2500)))
    assert [len(chunk["text"]) for chunk in chunks(read(path), ["text"], 1000)] == [1000, 1000, 500]
    assert column(path) == [f"t{i}" for i in range(2500)]
    assert column(path, "label") == [str(i % 3) for i in range(2500)]


def test_selected_rows_come_in_the_order_asked_for(file):
    table = read(file("a.csv", "text\n" + "\n".join("abcdef"))).select(np.array([4, 0, 2]))
    assert len(table) == 3
    assert list(chunks(table, ["text"], 2)) == [{"text": ["e", "a"]}, {"text": ["c"]}]


def test_json_lines_json_list_and_parquet_read_alike(file, tmp_path):
    columns = {"text": ["NA", "b"], "label": [1, 0], "tags": [["a", "b"], []]}
    rows = [{"text": "NA", "label": 1, "tags": ["a", "b"]}, {"text": "b", "label": 0, "tags": []}]
    lines = file("a.jsonl", "\n".join(map(json.dumps, rows)))
    listed = file("a.json", json.dumps(rows))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    for path in (lines, listed, tmp_path / "a.parquet"):
        assert next(chunks(read(path), list(columns))) == columns


def test_json_texts_stay_texts_and_numbers_agree_over_the_whole_file(file):
    rows = [{"text": "2024-05-01", "n": 1}]
    rows += [{"text": "12:30:00"}] * 1500
    rows += [{"n": 2.5, "text": None, "new": {"a": 1}}]
    table = read(file("a.jsonl", "\n".join(map(json.dumps, rows))))
    assert len(table) == 1502
    assert table.rows[0] == {"text": "2024-05-01", "n": 1.0, "new": None}
    assert table.rows[1501] == {"text": None, "n": 2.5, "new": {"a": 1}}


@pytest.mark.parametrize(
    "second", ['{"text": 5}', '{"text": 99999999999999999999}', '{"text": {"a": 1}}']
)
def test_json_of_mixed_types_is_refused(file, second):
    table = read(file("a.jsonl", '{"text": "a", "n": 1}\n' + second))
    assert table.rows["n"][:] == [1, None], "a column that nobody asked for is in the way"
    with pytest.raises(DataError, match="row 2: column 'text' can't be read as one type"):
        check_column(table, "text")


def test_a_truth_value_is_not_made_a_number_by_those_before_it(file):
    table = read(file("a.jsonl", '{"x": 0.5, "y": true}\n{"x": true, "y": false}'))
    assert table.rows["y"][:] == [True, False]
    with pytest.raises(DataError, match=r"row 2: column 'x' .*: True is of type bool"):
        check_column(table, "x")


def test_the_rows_that_mix_types_are_named(file):
    rows = [{"text": "a"}] * 2500
    rows[1700] = {"text": 5}
    with pytest.raises(DataError, match="row 1701: column 'text' can't be read as one type"):
        check_column(read(file("a.jsonl", "\n".join(map(json.dumps, rows)))), "text")


def test_half_a_character_and_numbers_beyond_64_bits_are_faults_of_their_columns(file):
    rows = [{"text": "a", "half": "b", "id": 1}, {"text": "c", "half": "\ud800", "id": 2**64}]
    table = read(file("a.jsonl", "\n".join(map(json.dumps, rows))))
    assert table.rows["text"][:] == ["a", "c"]
    for name in ("half", "id"):
        with pytest.raises(DataError, match=f"row 2: column '{name}' can't be read as one type"):
            check_column(table.select([0]), name)


def test_a_fault_in_one_shard_is_one_of_the_column(file, tmp_path):
    (tmp_path / "shards").mkdir()
    file("shards/a.jsonl", '{"text": "a"}\n{"text": 5}')
    file("shards/b.jsonl", '{"text": "b"}')
    with pytest.raises(DataError, match=r"a.jsonl: row 2: column 'text' can't be read as one type"):
        read(tmp_path / "shards")


def test_a_number_that_its_column_cannot_hold_is_an_error_of_the_column(file):
    rows = [{"n": 1}] * 3 + [{"n": 2**60 + 1}] * 997 + [{"n": 0.5, "text": "a"}]
    table = read(file("a.jsonl", "\n".join(map(json.dumps, rows))))
    check_column(table, "text")
    with pytest.raises(DataError, match="row 4: column 'n' can't be read as double"):
        check_column(table, "n")


def test_a_blank_line_in_a_file_of_one_column_is_an_empty_text(file):
    assert column(file("a.csv", "text\na\n\nb\n\n\n")) == ["a", "", "b"]
    assert column(file("b.csv", "text,label\na,1\n\nb,2\n\n")) == ["a", "b"]


def test_a_cache_that_can_not_be_written_is_named(file, tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPT_CACHE", str(file("a_file", "")))
    with pytest.raises(OutputError, match="point ADAPT_CACHE elsewhere"):
        read(file("a.csv", "text\na\n"))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_file_edited_in_place_is_read_anew(file, name):
    def content(word: str) -> str:
        return f"text\n{word}\n" if name == "a.csv" else json.dumps({"text": word})

    path = file(name, content("old"))
    before = path.stat()
    assert column(path) == ["old"]
    path.write_text(content("new"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `touch -r` and some editors do
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert column(path) == ["new"]


def test_what_was_kept_of_an_edited_file_is_removed(file, tmp_path):
    for word in ("one", "two", "three"):
        assert column(file("a.csv", f"text\n{word}\n")) == [word]
    assert len(list((tmp_path / "cache/tables").glob("*/*"))) == 1


def test_lines_of_plain_text_are_rows(file):
    table = read_lines(file("a.csv", "one, two\r\n\n  three\u2028 four\n"))  # whatever it is called
    assert next(chunks(table, ["text"])) == {"text": ["one, two", "", "  three\u2028 four"]}


def test_images_of_a_folder_have_its_folders_as_labels(tmp_path):
    for part, name, size in (("train", "cat", 4), ("train", "dog", 5), ("test", "dog", 6)):
        folder = tmp_path / "photos" / part / name
        folder.mkdir(parents=True)
        Image.new("RGB", (size, size)).save(folder / "1.png")
    with pytest.raises(DataError, match=r"photos:train, \S*photos:test$"):
        read(tmp_path / "photos")
    train = read(tmp_path / "photos/train")
    test = read(f"{tmp_path}/photos:test")
    assert [image.size for image in next(chunks(train, ["image"]))["image"]] == [(4, 4), (5, 5)]
    assert list(train.rows["label"]) == ["cat", "dog"]
    assert list(train.rows["file"]) == ["cat/1.png", "dog/1.png"]
    assert len(test) == 1
    (tmp_path / "photos/train/cat/1.png").write_bytes(b"no image")
    with pytest.raises(
        DataError, match=r"photos/train: rows 1 to 2: \S*cat/1.png is no picture.*file$"
    ):
        list(chunks(read(tmp_path / "photos/train"), ["image"]))


BAD = {
    "empty.csv": ("", "empty.csv is empty"),
    "header.csv": ("text,label\n", "header.csv has no rows"),
    "blank.csv": ("\n\n", "blank.csv has no rows"),
    "long.csv": ("text,label\na,b\nc,d,e\n", r"row 2 \(line 3\) has 3 fields, the header has 2"),
    "all-long.csv": (
        "text,label\na,b,c\nd,e,f\n",
        r"row 1 \(line 2\) has 3 fields, the header has 2",
    ),
    "short.csv": ("text,label\na\n", r"row 1 \(line 2\) has 1 fields, the header has 2"),
    "quote.csv": ('text,label\n"a,b\nc,d\n', "line 3: unexpected end of data; is a quote missing?"),
    "stray.csv": ('text,label\n"a" b,x\n', "line 2: .* expected after '\"'; is a quote missing?"),
    "zero.csv": ("te\0xt,label\na,b\n", "zero.csv: a name in the header holds a zero byte"),
    "twice.csv": ("text,text\na,b\n", "names the column 'text' twice"),
    "latin.csv": ("text\nplain\ncafé\n".encode("latin-1"), "latin.csv: line 3 is not UTF-8"),
    "utf16.csv": ("text\na\n".encode("utf-16"), "utf16.csv: line 1 is not UTF-8"),
    "twice.jsonl": ('{"text": "a"}\n{"text": "b", "text": "c"}\n', "line 2 .*'text' twice"),
    "twice.json": ('[{"text": "b", "text": "c"}]', "twice.json .*'text' twice"),
    "half.jsonl": ('{"text": "a", "\\ud800": 1}', r"half.jsonl: a row from 1 .*half a character"),
    "deep.jsonl": ('{"text": "a"}\n' + "[" * 100_000, "line 2 .*nested too deeply"),
    "deep.json": ("[" * 100_000, "deep.json .*nested too deeply"),
    "deep_object.json": ('{"a":' * 100_000, "nested too deeply"),
    "digits.jsonl": ('{"text": "a", "n": ' + "9" * 5000 + "}", "line 1 can't be read"),
    "broken.jsonl": ('{"text": "a"}\n{"text": "b"\n', "broken.jsonl: line 2 is not JSON"),
    "number.json": ('[{"text": "a"}, 5]', "number.json: entry 2 is not a JSON object"),
    "words.jsonl": ('{"text": "a"}\n"b"\n', "words.jsonl: line 2 is not a JSON object"),
    "latin.jsonl": (
        '{"text": "a"}\n{"text": "é"}\n'.encode("latin-1"),
        "latin.jsonl: line 2 is not UTF-8",
    ),
    "broken.json": ('[{"text": "a"},\n{"text": "b"}', "broken.json: line 2 is not JSON"),
    "empty.jsonl": ("", "empty.jsonl is empty"),
    "blank.jsonl": ("\n", "blank.jsonl"),
    "broken.parquet": (
        b"PAR1 and then nothing",
        "cannot read .*broken.parquet: Parquet magic bytes not found",
    ),
    "table.xlsx": (b"PK", r"table.xlsx is of no known format; convert it to one of \.csv, \.tsv, "),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_and_leaves_no_half_table(file, name):
    content, message = BAD[name]
    path = file(name, content)
    for _ in range(2):  # nothing of the first attempt is taken for a table by the second
        with pytest.raises(DataError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing.csv", "nothing.csv does not exist"),
        ("/no/such/folder", "/no/such/folder does not exist"),
        (
            "reveiws",
            r"'reveiws' is no file and no bundled set \(reviews, amazon, [^)]*, fashion-mnist\)",
        ),
    ],
)
def test_what_is_not_there_is_named(spec, message):
    with pytest.raises(DataError, match=message):
        read(spec)
    with pytest.raises(DataError, match="does not exist"):
        read_lines(spec)


def test_a_name_of_nothing_is_refused():
    with pytest.raises(DataError, match="':test' names no file"):
        read(":test")


def test_a_hub_that_does_not_answer_is_one_quick_line(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(
        DataError, match=r"^'org/name' does not exist here, and not on the hub: [^\n]+$"
    ):
        read("org/name")


def test_a_missing_column_names_those_that_exist(file):
    table = read(file("a.csv", "text,label\na,b\n"))
    with pytest.raises(DataError, match=r"a\.csv has no column 'body'; it has text, label"):
        check_texts(table, "body")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            'text,label\na,1\n,2\nb,3\n" \t",4\n"",5\n',
            r"a\.csv: row 2 \(and 2 more\) has no text in column 'text'",
        ),
        ("a.jsonl", '{"text": "a"}\n{"text": null}\n', "row 2 has no text"),
        ("b.jsonl", '{"text": 1}\n', "row 1 of column 'text' is of type int, not text"),
    ],
)
def test_rows_without_text_are_named_and_counted(file, name, content, message):
    table = read(file(name, content))
    with pytest.raises(DataError, match=message):
        check_texts(table, "text")


def test_words_for_nothing_are_texts(file):
    check_texts(read(file("a.csv", "text\nNA\nnull\n")), "text")


def test_a_png_whose_pixels_were_damaged_is_no_picture(tmp_path):
    """Its checksums say so, which Pillow does not look at where it decodes."""
    path = tmp_path / "cat/1.png"
    path.parent.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    pixels = whole.index(b"IDAT") + 200
    path.write_bytes(whole[:pixels] + bytes(50) + whole[pixels + 50 :])
    table = read(tmp_path)
    with pytest.raises(DataError, match=r"row 1 .*no image that can be decoded: .*checksum"):
        check_images(table, "image")
    with pytest.raises(DataError, match=r"rows 1 to 1: .*checksum"):
        list(chunks(table, ["image"]))
    path.write_bytes(whole)
    (chunk,) = chunks(read(tmp_path), ["image"])
    assert np.array_equal(np.asarray(chunk["image"][0]), noise)


def test_a_column_that_nobody_asks_for_is_in_nobody_s_way(tmp_path):
    """Of a type that `datasets` does not have, and of another type in another file."""
    table = pa.table(
        {"text": ["a", "b"], "odd": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64()))}
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    assert column(tmp_path / "a.parquet") == ["a", "b"]
    with pytest.raises(DataError, match="column 'odd' is of the type map"):
        check_column(read(tmp_path / "a.parquet"), "odd")
    ids = [1, "n/a", {"a": 1}]
    for number, value in enumerate(ids):
        row = {"text": f"t{number}", "id": value, "n": number if number else 0.5}
        (tmp_path / f"part-{number}.jsonl").write_text(json.dumps(row))
    several = f"{tmp_path}/part-*.jsonl"
    assert column(several) == ["t0", "t1", "t2"]
    assert column(several, "n") == [0.5, 1.0, 2.0]
    message = "column 'id' is int64 in part-0.jsonl and string in part-1.jsonl"
    with pytest.raises(DataError, match=message):
        check_column(read(several), "id")


def test_a_parquet_file_that_names_a_column_twice_is_refused(tmp_path):
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    parquet.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column 'text' is there twice"):
        read(tmp_path / "a.parquet")


def test_columns_of_one_name_are_in_nobodys_way(file, tmp_path):
    names = ["text", "x", "label", "x"]
    arrays = [pa.array(["a", "b"]), pa.array([1, 2]), pa.array(["y", "z"]), pa.array(["3", "4"])]
    parquet.write_table(pa.table(arrays, names=names), tmp_path / "a.parquet")
    frame = pandas.DataFrame([["a", 1, "y", 3], ["b", 2, "z", 4]], columns=names)
    sources = [
        file("a.csv", "text,x,label,x\na,1,y,3\nb,2,z,4\n"),
        file("a.tsv", "text\tx\tlabel\tx\na\t1\ty\t3\nb\t2\tz\t4\n"),
        tmp_path / "a.parquet",
    ]
    tables = [read(source) for source in sources]
    tables.append(make_table(frame, None, Columns())[0])
    for table in tables:
        assert list(numbered_values(table, "text")) == [(1, "a"), (2, "b")]
        assert list(numbered_values(table, "label")) == [(1, "y"), (2, "z")]
        with pytest.raises(DataError, match="column 'x' is there twice"):
            check_column(table, "x")


def test_the_header_again_is_no_row(file):
    for again in ("text,label", "\ufefftext,label"):
        path = file("a.csv", f"text,label\na,x\n{again}\nb,y\n")
        with pytest.raises(DataError, match=r"row 2 \(line 3\) is the header again"):
            read(path)
    assert column(file("b.csv", "text\na\ntext\n")) == ["a", "text"]


def test_columns_without_a_name_are_left_out_where_there_are_several(file):
    path = file("a.csv", "text,label,,\na,x,,\nb,y,,\n")
    assert read(path).columns == ["text", "label"]
    assert column(path, "label") == ["x", "y"]


def test_a_name_with_what_nobody_sees_is_shown_with_it(file):
    with pytest.raises(DataError, match=r"no column 'text'; it has ' text', 'a\\u200b', label"):
        check_column(read(file("a.csv", " text,a\u200b,label\na,b,c\n")), "text")
