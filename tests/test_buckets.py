"""Copies of what lies in a bucket: complete, up to date, and one line where there is none."""

import json
import sys

import pytest

import adapt
from adapt import buckets, features, files
from adapt.data import tables
from adapt.errors import BucketError, CheckpointError, DataError, OutputError
from adapt.export import exporting
from adapt.pretrained import hub
from tests.helpers import tiny
from tests.helpers.buckets import Buckets


@pytest.fixture
def folder(bucket):
    """gs://bucket/base with two files."""
    (bucket / "base/pooling").mkdir(parents=True)
    (bucket / "base/config.json").write_text("{}")
    (bucket / "base/pooling/config.json").write_text("[]")
    return bucket / "base"


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """The names of what is fetched, one after the other."""
    names = []
    get_file = Buckets.get_file

    def watched(self, rpath, lpath, **named):
        names.append(rpath)
        get_file(self, rpath, lpath, **named)

    monkeypatch.setattr(Buckets, "get_file", watched)
    return names


def test_the_files_below_a_folder_are_listed_by_their_names_in_it(folder):
    assert sorted(buckets.list_files("gs://bucket/base")) == ["config.json", "pooling/config.json"]
    assert list(buckets.list_files("gs://bucket/base/config.json")) == [""]
    assert buckets.list_files("gs://bucket/bas") == buckets.list_files("gs://other") == {}
    assert buckets.exists(files.to_path("gs://bucket/base")) and buckets.exists(folder)
    assert not buckets.exists(files.to_path("gs://bucket/none"))


def test_a_copy_is_fetched_once_and_follows_what_changes(folder, fetched, tmp_path):
    copy = buckets.download("gs://bucket/base/", tmp_path)
    assert copy.name == "base" and (copy / "pooling/config.json").read_text() == "[]"
    assert sorted(fetched) == ["bucket/base/config.json", "bucket/base/pooling/config.json"]
    fetched.clear()
    assert buckets.download("gs://bucket/base", tmp_path) == copy and not fetched
    (folder / "config.json").write_text("[1]")
    (folder / "pooling/config.json").unlink()
    with (copy / "config.json").open() as held:
        buckets.download("gs://bucket/base", tmp_path)
        assert held.read() == "{}"  # a reader's file is replaced, not written to
    assert fetched == ["bucket/base/config.json"] and (copy / "config.json").read_text() == "[1]"
    assert not (copy / "pooling/config.json").exists()


def test_what_was_deleted_of_a_copy_is_fetched_again(folder, tmp_path):
    copy = buckets.download("gs://bucket/base", tmp_path)
    (copy / "config.json").unlink()
    buckets.download("gs://bucket/base", tmp_path)
    assert (copy / "config.json").exists()


def test_a_copy_that_was_interrupted_is_completed(folder, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Buckets, "get_file", interrupted)
        buckets.download("gs://bucket/base", tmp_path)
    copy = buckets.download("gs://bucket/base", tmp_path)
    assert (copy / "config.json").read_text() == "{}"
    assert (copy / "pooling/config.json").read_text() == "[]"


def test_only_what_is_wanted_is_copied(folder, tmp_path):
    copy = buckets.download("gs://bucket/base", tmp_path, lambda name: name == "config.json")
    assert [path.name for path in copy.iterdir()] == ["config.json"]


def test_a_file_is_copied_under_its_own_name(folder, tmp_path):
    copy = buckets.download("gs://bucket/base/config.json", tmp_path)
    assert copy.name == "config.json" and copy.read_text() == "{}"
    (folder / "config.json").write_text("[1]")
    assert buckets.download("gs://bucket/base/config.json", tmp_path).read_text() == "[1]"


def test_nothing_there_is_one_line(bucket, tmp_path):
    with pytest.raises(BucketError, match="gs://bucket/none does not exist"):
        buckets.download("gs://bucket/none", tmp_path)


@pytest.mark.parametrize("name", ["s3://bucket/a", "https://host/a", "gs://"])
def test_other_addresses_are_refused(name):
    with pytest.raises(BucketError, match=name):
        buckets.check(name)


def test_without_its_client_a_bucket_is_one_line(monkeypatch):
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "gs", raising=False)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(BucketError, match=r"gs://bucket/a needs gcsfs.*: pip install gcsfs"):
        buckets.check("gs://bucket/a")


@pytest.mark.parametrize("error", [OSError("Forbidden: b\nno access"), RuntimeError("no login")])
def test_what_a_client_raises_is_one_line(folder, tmp_path, monkeypatch, error):
    def refused(*_, **__):
        raise error

    for name in ("find", "get_file", "put_file", "rm_file"):
        monkeypatch.setattr(Buckets, name, refused)
    said = " ".join(str(error).split())
    with pytest.raises(BucketError, match=f"cannot read gs://bucket/base: {said}"):
        buckets.list_files("gs://bucket/base")
    with pytest.raises(BucketError, match=f"cannot read gs://bucket/base: {said}"):
        buckets.fetch("gs://bucket/base", ["config.json"], tmp_path)
    with pytest.raises(BucketError, match=f"cannot write gs://bucket/base: {said}"):
        buckets.send(folder, ["config.json"], "gs://bucket/base")
    with pytest.raises(BucketError, match=f"cannot delete in gs://bucket/base: {said}"):
        buckets.remove("gs://bucket/base", ["config.json"])


def test_tables_texts_and_image_folders_are_read_from_a_bucket(bucket):
    bucket.mkdir(parents=True)
    tiny.write_table(bucket / "train.csv", tiny.sentences(6))
    (bucket / "lines.txt").write_text("one\ntwo\n")
    tiny.image_folder(bucket / "pictures", 4)
    table = tables.read("gs://bucket/train.csv")
    assert len(table) == 6 and table.name == "gs://bucket/train.csv"
    assert tables.read_lines("gs://bucket/lines.txt").rows["text"][:] == ["one", "two"]
    assert tables.read("gs://bucket/pictures").columns == ["image", "file", "label"]


def test_a_checkpoint_is_loaded_from_a_bucket(bucket):
    bucket.mkdir(parents=True)
    local = adapt.load(tiny.checkpoint(bucket / "base", "bert_mlm_tied"))
    remote = adapt.load("gs://bucket/base")
    assert remote.source == "gs://bucket/base"
    assert adapt.digest(remote.params) == adapt.digest(local.params)


def test_what_is_wrong_with_a_copy_is_said_of_the_bucket(folder, bucket):
    with pytest.raises(
        CheckpointError, match=r"^gs://bucket/base: .*config.json has no model_type"
    ):
        adapt.load("gs://bucket/base")
    (bucket / "ragged.csv").write_text("text,label\na\n")
    with pytest.raises(DataError, match=r"^gs://bucket/ragged.csv: "):
        tables.read("gs://bucket/ragged.csv")


def test_of_a_run_the_state_that_only_resume_needs_is_not_copied(bucket):
    folder = bucket / "run/checkpoints"
    for name in ("frozen", "step_1", "step_2"):
        (folder / name).mkdir(parents=True)
        (folder / name / "data").write_text(name)
    index = {"last": {"folder": "step_2"}, "best": {"folder": "step_1"}}
    (folder / "index.json").write_text(json.dumps(index))
    copy = hub.download("gs://bucket/run")
    copied = {path.name for path in (copy / "checkpoints").iterdir()}
    assert copied == {"frozen", "index.json", "step_1"}
    (folder / "index.json").write_text(json.dumps({"last": {"folder": "step_2"}}))
    assert (hub.download("gs://bucket/run") / "checkpoints/step_2/data").exists()


def test_what_the_library_writes_goes_to_a_disk(bucket, inputs):
    pretrained = adapt.load(inputs.checkpoint("bert_mlm_tied"))
    with pytest.raises(OutputError, match="`out` gs://bucket/a is in a bucket"):
        exporting.export(pretrained, "gs://bucket/a")
    with pytest.raises(OutputError, match="`folder` gs://bucket/a is in a bucket"):
        features.extract(pretrained, tables.read(inputs.train), "gs://bucket/a")
