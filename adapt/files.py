"""Files that are complete or absent, on a disk or in a bucket.

What is written goes beside its target first, reaches the disk, and is renamed: a reader sees the
old file or the new one, never half of one. A path such as ``gs://bucket/run`` is one of
etils.epath, which has the methods of a Path; there a file appears when all of it has been uploaded.
Of several processes the caller decides which one writes; nothing here asks.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapt.errors import OutputError

MARGIN = 64 << 20  # bytes left free on a disk beside what is written


def to_path(name: str | os.PathLike[str]) -> Path:
    """The path of that name: pathlib's, or with a scheme such as gs:// one of etils.epath."""
    if "://" not in str(name):
        return Path(name)
    from etils import epath

    path: Any = epath.Path(name)
    return path


def is_remote(path: Path) -> bool:
    """Whether the path is in a bucket: a file there can't be mapped, appended to or locked."""
    return not isinstance(path, Path)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``path`` when the block ends without an error.

    After an error ``path`` is as it was, and what was written beside it is deleted.

        with atomic_path(folder / "table.csv") as beside:
            beside.write_text("a,b")
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / path.name
            yield local
            path.write_bytes(local.read_bytes())
        return
    beside = path.with_name(path.name + ".tmp")
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


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
    if is_remote(path):
        path.rmtree(missing_ok=True)  # pyright: ignore[reportAttributeAccessIssue]
    elif path.is_dir() and not path.is_symlink():
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

    A bucket has room for anything.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror or error}") from None
    if is_remote(folder):
        return
    free = shutil.disk_usage(folder).free
    if size + MARGIN > free:
        raise OutputError(
            f"the disk of {folder} has {free / 1e6:.0f} MB free and {what} needs "
            f"{size / 1e6:.0f} MB: {hint}"
        )
