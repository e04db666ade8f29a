"""Files are complete or absent, whatever goes wrong while they are written."""

import os
import shutil
from collections import namedtuple

import pytest

from adapt import files
from adapt.errors import OutputError

Usage = namedtuple("Usage", "total used free")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_text_is_replaced_completely_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "index.json"
    files.write_text(file, "é")
    assert file.read_text("utf-8") == "é"
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot write .*index.json: No space left on device"):
        files.write_text(file, "new")
    assert file.read_text("utf-8") == "é" and names(tmp_path) == ["index.json"]


def test_json_is_for_people_too(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": [1, None]})
    assert (tmp_path / "a.json").read_text() == '{\n "b": [\n  1,\n  null\n ]\n}'


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "the name 'a' twice"),
        ('[{"a": {"b": 1, "b": 1}}]', "the name 'b' twice"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "4300"),
        ("{", "line 1"),
        ("", "line 1"),
    ],
)
def test_json_that_is_none_is_a_value_error(text, fault):
    with pytest.raises(ValueError, match=fault):
        files.parse_json(text)


def test_an_error_in_the_block_leaves_the_file_as_it_was(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), files.atomic_path(file) as beside:
        beside.write_text("half of")
        raise KeyboardInterrupt
    assert file.read_text() == "old" and names(tmp_path) == ["table.csv"]


def test_an_atomic_file_is_not_seen_before_it_is_complete(tmp_path):
    file = tmp_path / "table.csv"
    with files.atomic_path(file) as beside:
        beside.write_text("new")
        assert not file.exists()
    assert file.read_text() == "new" and names(tmp_path) == ["table.csv"]


def test_a_folder_takes_the_place_of_another(tmp_path):
    for name in ("new", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    files.replace_folder(tmp_path / "new", tmp_path / "target")
    assert names(tmp_path) == ["target"] and names(tmp_path / "target") == ["new"]


def test_a_reserved_file_has_its_bytes_and_keeps_what_is_in_it(tmp_path):
    file = tmp_path / "values"
    file.write_bytes(b"head")
    files.reserve(file, 1 << 20)
    assert file.stat().st_size == 1 << 20 and file.read_bytes()[:4] == b"head"
    if hasattr(os, "posix_fallocate"):
        assert file.stat().st_blocks * 512 >= 1 << 20


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="macOS reserves nothing")
def test_a_disk_without_room_is_one_line_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="has no room for 1 MB of features: No space left"):
        files.reserve(tmp_path / "values", 1 << 20, "features")
    assert names(tmp_path) == []


def test_space_is_needed_beside_a_margin(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, files.MARGIN + 1_000_000))
    files.need_space(tmp_path / "a", 1_000_000, "the checkpoint")
    with pytest.raises(OutputError, match=r"68 MB free and the checkpoint needs 1 MB: make room"):
        files.need_space(tmp_path / "a", 1_000_001, "the checkpoint")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot make the folder .*file/a: Not a directory"):
        files.need_space(tmp_path / "file" / "a", 1, "the checkpoint")


def test_a_name_with_a_scheme_is_a_path_in_a_bucket(tmp_path):
    path = files.to_path("gs://bucket/runs/a")
    assert files.is_remote(path) and str(path / "config.json") == "gs://bucket/runs/a/config.json"
    assert files.absolute(path) == path == files.to_path("gs://bucket/runs/a/")
    assert not files.is_remote(files.to_path(tmp_path))


def test_what_writes_to_a_disk_alone_refuses_a_bucket(tmp_path):
    assert files.local_path(str(tmp_path), "out") == tmp_path
    with pytest.raises(
        OutputError, match="`out` gs://bucket/a is in a bucket: give a local folder"
    ):
        files.local_path("gs://bucket/a", "out")
