"""Folders of pictures and of shards: every file is taken or named, and nothing is guessed from words in names."""

import json
import logging

import datasets
import numpy as np
import pandas
import pytest
from PIL import Image

from adapt.data.tables import chunks, read
from adapt.errors import DataError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n"

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(autouse=True)
def notes(caplog):
    caplog.set_level(logging.WARNING)
    return caplog


@pytest.fixture
def photos(tmp_path):
    """A function that saves pictures at these places of a folder; each has a colour of its own."""

    def save(*places):
        for number, place in enumerate(places):
            path = tmp_path / "photos" / place
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (number, 0, 0)).save(path, format="PNG")
        return tmp_path / "photos"

    return save


def rows_of(table, *names):
    (chunk,) = chunks(table, list(names), max(len(table), 1))
    return list(zip(*(chunk[name] for name in names), strict=True))


WORDS = ["train", "test", "dev", "eval", "val", "validation", "blood_test", "x-train"]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_in_a_name_says_nothing(photos, word):
    """The class, or the file, of one picture is called as a part of a data set is."""
    places = [f"apple/{word}_1.png", "apple/2.png", f"{word}/1.png", "berry/1.png", "berry/2.png"]
    table = read(photos(*places))
    assert sorted(rows_of(table, "file", "label")) == sorted(
        (place, place.partition("/")[0]) for place in places
    )


def test_the_class_is_the_first_folder_however_deep_and_that_is_said(photos, notes):
    table = read(photos("apple/batch0/1.png", "berry/batch1/deep/2.png", "berry/3.png"))
    assert [label for (label,) in rows_of(table, "label")] == ["apple", "berry", "berry"]
    assert "2 of 3 pictures lie deeper" in notes.text


def test_pictures_without_an_ending_are_taken_and_other_files_named(photos, notes):
    folder = photos(
        "apple/1", "apple/2.png", "_berry/x.png?w=32", ".hidden/3.png", "__MACOSX/4.png"
    )
    (folder / "apple" / "notes.txt").write_text("no picture")
    table = read(folder)
    assert [file for (file,) in rows_of(table, "file")] == [
        "_berry/x.png?w=32",
        "apple/1",
        "apple/2.png",
    ]
    assert "2 files left out, hidden: .hidden/3.png, __MACOSX/4.png" in notes.text
    assert "1 file left out, no pictures that Pillow opens: apple/notes.txt" in notes.text


def test_a_broken_picture_is_an_error_and_not_left_out(photos):
    folder = photos("apple/1.png", "berry/2.png")
    (folder / "apple" / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot identify image"):
        rows_of(read(folder), "image")


def test_pictures_beside_class_folders_have_no_label(photos, notes):
    table = read(photos("apple/1.png", "2.png"))
    assert rows_of(table, "file", "label") == [("2.png", None), ("apple/1.png", "apple")]
    assert "1 of 2 pictures lie in no folder of a class" in notes.text
    assert read(photos("2.png")).columns  # alone they have no column of labels


def test_pictures_in_no_folders_have_no_labels(photos):
    assert read(photos("10.png", "2.png")).columns == ["image", "file"]


def test_a_file_says_more_of_pictures(photos, notes):
    folder = photos("a/1.png", "b/2.png", "3.png")
    lines = [
        {"file_name": "b/2.png", "label": "x", "size": 3},
        {"file_name": "3.png", "label": "y"},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    table = read(folder)
    assert rows_of(table, "file", "label", "size") == [("b/2.png", "x", 3), ("3.png", "y", None)]
    assert [image.getpixel((0, 0))[0] for (image,) in rows_of(table, "image")] == [1, 2]
    assert "1 file left out, as metadata.jsonl has no row for them: a/1.png" in notes.text
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "4.png"}))
    with pytest.raises(DataError, match=r"row 1: file_name '4.png' is no picture"):
        read(folder)


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no picture that Pillow opens, and no table"):
        read(tmp_path / "empty")


# Shards


def write(folder, name, texts):
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict({"text": texts}).to_parquet(folder / name)


def texts_of(table):
    return [text for (text,) in rows_of(table, "text")]


def test_shards_are_one_table(tmp_path):
    folder = tmp_path / "shards"
    write(folder, "train-00001-of-00002.parquet", ["c"])
    write(folder, "train-00000-of-00002.parquet", ["a", "b"])
    assert texts_of(read(folder)) == texts_of(read(f"{folder}:train")) == ["a", "b", "c"]
    write(folder, "test-00000-of-00001.parquet", ["d"])
    with pytest.raises(DataError, match=r"shards:test, .*shards:train"):
        read(folder)
    assert texts_of(read(f"{folder}:test")) == ["d"]
    with pytest.raises(DataError, match="one has to be named"):
        read(f"{folder}:dev")


def test_files_of_any_names_are_one_table_in_the_order_of_their_names(tmp_path, notes):
    for name, text in (
        ("b.csv", "text,n\nc,1\n"),
        ("a.csv", "n,text\n1,a\n2,b\n"),
        ("README", "x"),
    ):
        (tmp_path / name).write_text(text)
    table = read(tmp_path)
    assert texts_of(table) == ["a", "b", "c"]
    assert "1 file left out, no tables: README" in notes.text
    with pytest.raises(DataError, match="not called by parts"):
        read(f"{tmp_path}:train")
    (tmp_path / "c.csv").write_text("text,m\nd,1\n")
    table = read(tmp_path)
    assert texts_of(table) == ["a", "b", "c", "d"]
    for column in ("n", "m"):
        with pytest.raises(DataError, match=r"c.csv has the columns text, m, and a.csv has n, t"):
            rows_of(table, column)
    (tmp_path / "d.csv").write_text("other\n1\n")
    with pytest.raises(DataError, match="is not in every file"):
        read(tmp_path)


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_a_column_that_nobody_asks_for_may_be_missing_in_a_shard(tmp_path, ending):
    whole = pandas.DataFrame({"text": ["a", "b"], "label": ["x", "y"], "id": [1, 2]})
    writers = {
        "csv": lambda frame, path: frame.to_csv(path, index=False),
        "tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
        "json": lambda frame, path: frame.to_json(path, orient="records"),
        "jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
        "parquet": lambda frame, path: frame.to_parquet(path),
    }
    for number, frame in enumerate([whole, whole.drop(columns="id"), whole[["label", "text"]]]):
        writers[ending](frame, tmp_path / f"part-{number}.{ending}")
    for spec in (tmp_path, f"{tmp_path}/part-*"):
        table = read(spec)
        assert rows_of(table, "text", "label") == [("a", "x"), ("b", "y")] * 3
        with pytest.raises(DataError, match=f"'id' is not in every file: part-1.{ending}"):
            rows_of(table, "id")


def test_tables_of_several_formats_or_beside_pictures_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text\na\n")
    (tmp_path / "b.tsv").write_text("text\nb\n")
    with pytest.raises(DataError, match=r"several formats \(\.csv, \.tsv\): name one file"):
        read(tmp_path)
    (tmp_path / "b.tsv").unlink()
    Image.new("L", (2, 2)).save(tmp_path / "1.png")
    with pytest.raises(
        DataError, match=r"a table \(a.csv\) and pictures \(1.png\): name the table"
    ):
        read(tmp_path)


def test_what_datasets_saved_is_read(tmp_path):
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "score": np.arange(2)})
    table.save_to_disk(tmp_path / "one")
    assert texts_of(read(tmp_path / "one")) == ["a", "b"]
    with pytest.raises(DataError, match="it has no part 'test'"):
        read(f"{tmp_path / 'one'}:test")
    datasets.DatasetDict(train=table, test=table.select([1])).save_to_disk(tmp_path / "parts")
    with pytest.raises(DataError, match=r"parts:train, .*parts:test"):
        read(tmp_path / "parts")
    assert texts_of(read(f"{tmp_path / 'parts'}:test")) == ["b"]
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(DataError, match="cannot read"):
        read(tmp_path / "one")
    (table,) = (tmp_path / "parts" / "test").glob("*.arrow")
    table.write_bytes(POINTER)
    with pytest.raises(DataError, match=rf"{table.name}: .*git lfs pull"):
        read(f"{tmp_path / 'parts'}:test")


def test_a_picture_that_was_not_fetched_is_named(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(POINTER)
    with pytest.raises(DataError, match="git lfs pull"):
        list(chunks(read(tmp_path), ["image"]))


def test_tables_in_folders_that_are_parts(tmp_path):
    for part in ("train", "test"):
        (tmp_path / "data" / part).mkdir(parents=True)
        (tmp_path / "data" / part / "a.csv").write_text(f"text\n{part}\n")
    with pytest.raises(DataError, match=r"data:train, .*data:test"):
        read(tmp_path / "data")
    assert texts_of(read(f"{tmp_path / 'data'}:test")) == ["test"]


def test_a_file_that_names_our_own_columns_is_refused(photos):
    folder = photos("a/1.png")
    (folder / "metadata.csv").write_text("file_name,file\na/1.png,x\n")
    with pytest.raises(DataError, match="the columns image and file are made here"):
        read(folder)


def test_a_document_beside_pictures_or_tables_is_left_out(photos, tmp_path, notes):
    folder = photos("a/1.png")
    (folder / "README.pdf").write_bytes(b"%PDF-1.4 and no more")
    assert len(read(folder)) == 1 and "README.pdf" in notes.text
    (tmp_path / "a.csv").write_text("text\na\n")
    (tmp_path / "photos" / "a" / "1.png").rename(tmp_path / ".1.png")
    assert texts_of(read(tmp_path)) == ["a"]
