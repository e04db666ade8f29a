"""What is written into a bucket: in an order that leaves something good, whenever the process is killed."""

import contextlib
import dataclasses
import json
from pathlib import Path

import pytest

import adapt.run_folder as run_folder
from adapt import files, staging
from adapt.cli.run_folder import open_run
from adapt.errors import BucketError, OutputError
from adapt.pretrained.assets import cache_folder
from adapt.run_folder import check_out
from adapt.training import checkpoint
from tests.helpers.buckets import Buckets, operations

OUT = files.to_path("gs://bucket/run")


@dataclasses.dataclass(frozen=True)
class Config:
    out: Path = OUT
    rate: float = 0.1
    resume: bool = False
    overwrite: bool = False


@pytest.fixture
def done(bucket):
    """``done()`` are the operations on gs://bucket/run since the last call."""
    seen = []

    def since() -> list[str]:
        new = [line.replace("bucket/run/", "") for line in operations(bucket.parent)[len(seen) :]]
        seen.extend(new)
        return new

    return since


def write(folder: Path, text: str = "", *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def write_index(folder: Path, last: str, **more: str) -> None:
    index = {name: {"folder": step} for name, step in ({"last": last} | more).items()}
    write(folder, json.dumps(index), "checkpoints/index.json")


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_index_follows_what_it_names_and_what_it_no_longer_names_goes_last(done, bucket):
    with staging.staging("gs://bucket/run") as folder:
        write(folder.path, "a", "config.json", "metrics.jsonl", "checkpoints/step_1/a")
        write_index(folder.path, "step_1")
        folder.upload()
        assert done() == [
            "put config.json",
            "put checkpoints/step_1/a",
            "put metrics.jsonl",
            "put checkpoints/index.json",
        ]
        write(folder.path, "aa", "metrics.jsonl", "checkpoints/step_2/a")
        files.delete(folder.path / "checkpoints/step_1")
        write_index(folder.path, "step_2")
        folder.upload()
        assert done() == [
            "put checkpoints/step_2/a",
            "put metrics.jsonl",
            "put checkpoints/index.json",
            "rm checkpoints/step_1/a",
        ]
        write(folder.path, "{}", "result.json", "history.png")
    assert done() == ["put history.png", "put result.json"]
    assert not folder.path.exists()


def test_a_file_that_was_replaced_by_one_of_its_size_is_sent_again(bucket):
    with staging.staging("gs://bucket/run") as folder:
        files.write_text(folder.path / "index.json", "1")
        folder.upload()
        files.write_text(folder.path / "index.json", "2")
    assert (bucket / "run/index.json").read_text() == "2"


def test_what_is_replaced_loses_its_index_first(done, bucket):
    write(bucket / "run", '{"experiment": "test_staging"}', "config.json")
    write(bucket / "run", "old", "model.json", "result.json", "checkpoints/step_1/a")
    write_index(bucket / "run", "step_1")
    with open_run(OUT, Config(overwrite=True)) as folder:
        assert not done()
        write(folder.path, "new", "model.json")
        folder.keep()
    first, *removed = done()[:5]
    assert first == "put config.json"
    assert removed[:2] == ["rm checkpoints/index.json", "rm result.json"]
    assert set(removed[2:]) == {"rm model.json", "rm checkpoints/step_1/a"}
    assert names(bucket / "run") == {"config.json", "model.json"}


def test_an_error_before_the_first_checkpoint_leaves_the_bucket_as_it_was(done, bucket):
    with open_run(OUT, Config()) as folder:
        write(folder.path, "1", "result.json")
    done()
    with pytest.raises(KeyboardInterrupt), open_run(OUT, Config(overwrite=True)) as folder:
        write(folder.path, "2", "result.json")
        raise KeyboardInterrupt
    assert done() == [] and (bucket / "run/result.json").read_text() == "1"
    assert not folder.path.exists()


def test_a_folder_that_another_command_wrote_is_left_alone(bucket):
    write(bucket / "run", '{"experiment": "extract"}', "config.json")
    with (
        pytest.raises(OutputError, match="gs://bucket/run is not a folder that test_staging wrote"),
        open_run(OUT, Config(overwrite=True)),
    ):
        pass
    assert names(bucket / "run") == {"config.json"}


def test_a_run_goes_on_with_what_the_bucket_has_and_leftovers_go(done, bucket):
    with open_run(OUT, Config()) as folder:
        write(folder.path, "1", "metrics.jsonl", "checkpoints/step_1/a", "checkpoints/frozen/a")
        write_index(folder.path, "step_1")
    write(bucket / "run", "half", "checkpoints/step_2/a")  # as a kill leaves it
    done()
    with open_run(OUT, Config(resume=True)) as folder:
        assert done() == ["rm checkpoints/step_2/a"]
        assert names(folder.path) == names(bucket / "run")
        write(folder.path, "12", "metrics.jsonl")
    assert done() == ["put metrics.jsonl"]


def train(folder: run_folder.RunFolder, first: int) -> None:
    """As a run of 3 steps saves: step 1 is the best one, and each has two files."""
    for step in range(first, 4):
        name = f"step_{step}"
        write(folder.path, name, f"checkpoints/{name}/a", f"checkpoints/{name}/b")
        best = name if step == 1 else "step_1"
        write_index(folder.path, name, best=best)
        index = checkpoint.read_index(folder.path / "checkpoints")
        checkpoint.delete_unnamed(folder.path / "checkpoints", index)
        folder.keep()
    write(folder.path, "1", "result.json")


def last_step(run: Path) -> int:
    """The last step of a run in which everything that is named is complete; 0 before the first."""
    index = checkpoint.read_index(run / "checkpoints")
    for entry in index.values():
        for name in ("a", "b"):
            path = run / "checkpoints" / entry["folder"] / name
            assert path.read_text() == entry["folder"]
    return int(index["last"]["folder"].removeprefix("step_")) if index else 0


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_any_operation_there_is_a_run_to_go_on_with(bucket, monkeypatch, overwrite):
    note = Buckets.note
    left = [0]

    def killed(self: Buckets, what: str, path: str) -> None:
        note(self, what, path)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Buckets, "note", killed)
    config = Config(overwrite=overwrite)
    for count in range(1, 99):
        files.delete(bucket)
        left[0] = 0
        if overwrite:
            with open_run(OUT, Config(rate=0.2)) as folder:
                train(folder, 1)
        left[0] = count
        before = 0
        try:
            with open_run(OUT, config) as folder:
                train(folder, 1)
            break
        except KeyboardInterrupt:
            before = last_step(bucket / "run")
        left[0] = count // 2  # and killed again
        for _ in range(2):
            again = Config(resume=True) if before else Config(overwrite=True)
            with contextlib.suppress(KeyboardInterrupt), open_run(OUT, again) as folder:
                train(folder, last_step(folder.path) + 1)
            assert last_step(bucket / "run") >= before
            before = last_step(bucket / "run")
        assert names(bucket / "run") == {
            "config.json",
            "result.json",
            "checkpoints/index.json",
            *(f"checkpoints/step_{step}/{name}" for step in (1, 3) for name in "ab"),
        }
    assert 10 < count < 98


def test_a_run_goes_on_with_its_own_flags(bucket):
    with open_run(OUT, Config()):
        pass
    with (
        pytest.raises(OutputError, match=r"`rate` was 0.1 in gs://bucket/run and is 0.2 now"),
        open_run(OUT, Config(rate=0.2, resume=True)),
    ):
        pass


def test_what_could_not_be_uploaded_stays_on_the_disk(bucket, monkeypatch):
    def refused(*_, **__):
        raise OSError("Forbidden")

    with monkeypatch.context() as patched, pytest.raises(BucketError) as raised:
        patched.setattr(Buckets, "put_file", refused)
        with staging.written_file(files.to_path("gs://bucket/p.csv")) as path:
            path.write_text("a,b")
    assert "cannot write gs://bucket: Forbidden" in str(raised.value)
    assert f"lies in {path.parent} " in str(raised.value) and path.read_text() == "a,b"
    with staging.written_file(files.to_path("gs://bucket/p.csv")) as path:
        assert not path.exists()
        path.write_text("c,d")
    assert (bucket / "p.csv").read_text() == "c,d" and not path.exists()


def test_two_processes_do_not_write_to_one_place(bucket):
    with (
        staging.staging("gs://bucket/run"),
        pytest.raises(OutputError, match="another process of this machine writes gs://bucket/run"),
        staging.staging("gs://bucket/run/"),
    ):
        pass
    with staging.staging("gs://bucket/run"):
        pass


def test_a_file_is_written_beside_others(bucket):
    write(bucket, "x", "others.csv")
    with staging.written_file(files.to_path("gs://bucket/p.csv")) as path:
        path.write_text("a,b")
    assert names(bucket) == {"others.csv", "p.csv"}


def test_a_folder_in_a_bucket_is_written_once(done, bucket):
    with staging.written_folder(OUT, last=("config.json",)) as folder:
        write(folder, "x", "config.json", "model.safetensors")
    assert done() == ["put model.safetensors", "put config.json"]
    with (
        pytest.raises(OutputError, match="gs://bucket/run exists, and in a bucket it is not repla"),
        staging.written_folder(OUT, last=()),
    ):
        pass


def test_an_output_folder_is_checked_before_any_work(bucket, monkeypatch):
    check_out(OUT, False, False, may_be_remote=True)
    with pytest.raises(OutputError, match=r"there is no run in gs://bucket/run \(no config.json"):
        check_out(OUT, True, False, may_be_remote=True)
    write(bucket / "run", "{}", "config.json")
    check_out(OUT, True, False, may_be_remote=True)
    check_out(OUT, False, True, may_be_remote=True)
    with pytest.raises(
        OutputError, match="the output folder gs://bucket/run exists: give `resume`"
    ):
        check_out(OUT, False, False, may_be_remote=True)
    with pytest.raises(OutputError, match="`out` gs://bucket/run is in a bucket: give a local fol"):
        check_out(OUT, False, True)
    monkeypatch.setattr(run_folder, "is_multiprocess", lambda: True)
    with pytest.raises(OutputError, match="a run of several processes does not write"):
        check_out(OUT, False, True, may_be_remote=True)


def test_nothing_of_a_staged_folder_is_left(bucket):
    with open_run(OUT, Config()):
        pass
    left = [path for path in (cache_folder() / "staged").rglob("*") if path.name != "lock"]
    assert all(path.is_dir() and not any(path.glob("run")) for path in left)
