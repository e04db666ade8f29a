"""Files that are complete or absent.

What is written goes beside its target first, reaches the disk, and is renamed: a reader sees the
old file or the new one, never half of one. With several processes the caller decides which one
writes; nothing here asks. Files in a bucket are the matter of :mod:`adapt.buckets`.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapt import signatures
from adapt.errors import OutputError

MARGIN = 64 << 20  # bytes left free on a disk beside what is written


def to_path(name: str | os.PathLike[str]) -> Path:
    """The path of that name: pathlib's, or with a scheme such as gs:// one of etils.epath.

    The latter has the methods of a Path that read.
    """
    if not is_remote(name):
        return Path(name)
    # It would otherwise read buckets by tensorflow wherever that is installed.
    os.environ.setdefault("EPATH_USE_TF", "false")
    from etils import epath

    path: Any = epath.Path(name)
    return path


def check_is_path(name: Any, parameter: str) -> None:
    """Raise :class:`OutputError`, which names the ``parameter``, for what is no name of a path."""
    if not isinstance(name, str | os.PathLike):
        raise OutputError(
            f"`{parameter}` is of type {type(name).__name__}: give the name of a folder"
        )


def is_remote(name: str | os.PathLike[str]) -> bool:
    """Whether a name or a path is in a bucket: a file there can't be mapped, appended to or locked."""
    return "://" in str(name)


def local_path(name: str | os.PathLike[str], parameter: str) -> Path:
    """The path of that name. Raises :class:`OutputError`, which names the ``parameter``, for one in
    a bucket.
    """
    check_is_path(name, parameter)
    if is_remote(name):
        raise OutputError(
            f"`{parameter}` {name} is in a bucket: give a local folder, and copy it there afterwards"
        )
    return Path(name)


def absolute(name: str | os.PathLike[str]) -> Path:
    """The path of that name without links; in a bucket a path is as it is."""
    path = to_path(name)
    return path if is_remote(path) else path.resolve()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``path`` when the block ends without an error.

    After an error ``path`` is as it was, and what was written beside it is deleted.

        with atomic_path(folder / "table.csv") as beside:
            beside.write_text("a,b")
    """
    beside = path.with_name(path.name + ".tmp")
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def parse_json(text: str) -> Any:
    """The value that a JSON text holds.

    Raises :class:`json.JSONDecodeError` for what is no JSON, and another :class:`ValueError` for
    what Python's parser lets pass or fails at: a name that an object has twice, where the last
    value would silently win; lists nested by the thousand; a number of thousands of digits.

        >>> parse_json('{"a": [1, 2]}')
        {'a': [1, 2]}
    """
    try:
        return json.loads(text, object_pairs_hook=object_of)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises :class:`ValueError` for a name that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the name {twice!r} twice")
    return found


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises :class:`OSError`, and :class:`ValueError` as
    :func:`parse_json` does, and for what was fetched in its place.
    """
    text = path.read_text("utf-8")
    what = signatures.stand_in(text[: signatures.BEGINNING].encode())
    if what is not None:
        raise ValueError(what)
    return parse_json(text)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically. Raises :class:`OutputError` where it can't be written."""
    try:
        with atomic_path(path) as beside:
            beside.write_text(text, "utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON atomically. Raises :class:`OutputError` where it can't be
    written.
    """
    write_text(path, json.dumps(value, indent=1))


def delete(path: Path) -> None:
    """Delete a file or a folder with all that is in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace_folder(source: Path, target: Path) -> None:
    """Move the finished folder ``source`` to ``target``, in place of what is there: nobody ever
    sees half of one.
    """
    previous = target.with_name(f".{target.name}.old")
    if target.exists():
        shutil.rmtree(previous, ignore_errors=True)
        target.rename(previous)
    source.rename(target)
    shutil.rmtree(previous, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an existing folder inside the block, so that no other process of this machine writes
    into it.

    The lock is an ``flock`` of the folder itself: it leaves no file, and the kernel releases it
    however the process ends. A file system without such locks holds nothing. Raises
    :class:`OutputError` while another process holds the folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"another process writes into {folder}: wait for it, or give another `out`"
            ) from None
        except OSError:
            pass  # a file system without locks of folders, such as NFS
        yield
    finally:
        os.close(descriptor)


def reserve(path: Path, size: int, what: str = "") -> None:
    """Set aside ``size`` bytes of the disk for a file: a full disk is an error here, not a crash
    while it is mapped.

    The file is made where it is absent; what is in it stays. ``what`` is said in the
    :class:`OutputError`.
    """
    with path.open("ab") as file:
        try:
            file.truncate(size)
            if hasattr(os, "posix_fallocate") and size:  # not on macOS
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            path.unlink()
            room = f"{size / 1e6:.0f} MB" + (f" of {what}" if what else "")
            raise OutputError(f"{path.parent} has no room for {room}: {error.strerror}") from None


def need_space(folder: Path, size: int, what: str, hint: str = "make room") -> None:
    """Make ``folder``, and raise :class:`OutputError` if its disk can't take ``size`` more bytes of
    ``what``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror or error}") from None
    free = shutil.disk_usage(folder).free
    if size + MARGIN > free:
        raise OutputError(
            f"the disk of {folder} has {free / 1e6:.0f} MB free and {what} needs "
            f"{size / 1e6:.0f} MB: {hint}"
        )
