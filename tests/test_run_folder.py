"""The commit that adapt runs from, as git keeps it; and a run's folder, which one process at a time writes."""

import shutil
import subprocess
import sys

import pytest

import adapt
from adapt import run_folder
from adapt.errors import OutputError

SHA = "0123456789" * 4


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone whose package is the one that is imported; (its folder, its .git)."""
    (tmp_path / "clone/adapt").mkdir(parents=True)
    git = tmp_path / "clone/.git"
    git.mkdir()
    monkeypatch.setattr(adapt, "__file__", str(tmp_path / "clone/adapt/__init__.py"))
    return tmp_path / "clone", git


def on_a_branch(folder, git):
    (git / "HEAD").write_text("ref: refs/heads/a/b\n")
    (git / "refs/heads/a").mkdir(parents=True)
    (git / "refs/heads/a/b").write_text(f"{SHA}\n")


def packed(folder, git):
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text(f"# pack-refs with: peeled\n{SHA} refs/heads/main\n^{SHA}\n")


def detached(folder, git):
    (git / "HEAD").write_text(f"{SHA}\n")


def in_a_work_tree(folder, git):
    git.rmdir()
    own = folder.parent / "main/.git/worktrees/one"
    (own / "../../refs/heads").resolve().mkdir(parents=True)
    own.mkdir(parents=True)
    git.write_text(f"gitdir: {own}\n")
    (own / "HEAD").write_text("ref: refs/heads/one\n")
    (own / "commondir").write_text("../..\n")
    (own / "../../refs/heads/one").write_text(f"{SHA}\n")


@pytest.mark.parametrize("make", [on_a_branch, packed, detached, in_a_work_tree])
def test_the_commit_of_a_clone(clone, make):
    make(*clone)
    assert run_folder.commit() == SHA


@pytest.mark.parametrize("head", [None, "", "ref: refs/heads/unborn", "nonsense"])
def test_no_commit_is_none(clone, head):
    _, git = clone
    if head is not None:
        (git / "HEAD").write_text(head)
    assert run_folder.commit() is None


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_it_is_what_git_says():
    said = subprocess.run(
        ["git", "-C", str(run_folder.Path(adapt.__file__).parent), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
    )
    assert run_folder.commit() == (said.stdout.strip() or None)


SETTINGS = {"experiment": "finetune", "seed": 0}
# Another process that opens a run in the folder of its first argument, and says what came of it.
OPENS = f"""
import sys
from pathlib import Path
from adapt.errors import OutputError
from adapt.run_folder import open_run
try:
    with open_run(Path(sys.argv[1]), {SETTINGS}, **{{sys.argv[2]: True}}) as folder:
        print(sorted(path.name for path in folder.path.iterdir()))
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_a_folder_is_written_by_one_process_at_a_time(tmp_path, flag):
    out = tmp_path / "run"
    words = [sys.executable, "-c", OPENS, str(out), flag]

    def other() -> str:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()

    with run_folder.open_run(out, SETTINGS):
        (out / "metrics.jsonl").write_text("{}\n")
        assert other() == f"another process writes into {out}: wait for it, or give another `out`"
        assert (out / "metrics.jsonl").exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    kept = ["config.json", "metrics.jsonl"] if flag == "resume" else ["config.json"]
    assert other() == str(kept)


def test_a_run_that_is_resumed_is_held_too(tmp_path):
    out = tmp_path / "run"
    with run_folder.open_run(out, SETTINGS):
        pass
    with (
        run_folder.open_run(out, SETTINGS, resume=True),
        pytest.raises(OutputError, match="another process writes into"),
        run_folder.open_run(out, SETTINGS, resume=True),
    ):
        raise AssertionError("two at once")
    with run_folder.open_run(out, SETTINGS, overwrite=True) as folder:
        assert [path.name for path in folder.path.iterdir()] == ["config.json"]


def test_a_folder_of_a_process_that_was_killed_at_its_first_file_is_free(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.json.tmp").write_text('{"exp')
    run_folder.check_out(out, None, overwrite=False)
    with run_folder.open_run(out, SETTINGS) as folder:
        assert [path.name for path in folder.path.iterdir()] == ["config.json"]
    with pytest.raises(OutputError, match="exists"):
        run_folder.check_out(out, None, overwrite=False)
