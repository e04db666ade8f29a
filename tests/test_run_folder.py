"""The commit that adapt runs from, as git keeps it: on a branch, packed, detached, in a work tree, or not at all."""

import shutil
import subprocess

import pytest

import adapt
from adapt import run_folder

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
