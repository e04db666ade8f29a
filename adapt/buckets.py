"""Files in a bucket, as in ``gs://bucket/runs/a``: what is there, and copies from and to a disk.

adapt computes on local files alone, which it maps, appends to, locks and renames. What it reads
from a bucket is copied to the disk first, what it writes there is written to the disk and uploaded.

A file in a bucket appears when all of it was uploaded, so nobody ever sees half of one. A folder in
a bucket is only a common beginning of names: it can't be renamed, and whoever writes one decides by
the order of its files what a reader may find.

The client is fsspec's, which is what etils.epath uses, too: gcsfs for Google's buckets.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import filelock

from adapt import files
from adapt.errors import AdaptError, BucketError

logger = logging.getLogger(__name__)

# What a client says of a file that differs when its content was replaced.
STATE = ("size", "generation", "etag", "mtime")


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file in a bucket: its bytes, and a text that is another one when it was replaced."""

    size: int
    state: str


def check(name: str | os.PathLike[str]) -> None:
    """Raise :class:`BucketError` for a bucket of another kind than gs://, and without its client."""
    open_bucket(str(name))


def exists(path: Path) -> bool:
    """Whether a path is there, on the disk or in a bucket. Raises :class:`BucketError`."""
    return bool(list_files(str(path))) if files.is_remote(path) else path.exists()


def list_files(name: str) -> dict[str, RemoteFile]:
    """The files below a folder in a bucket, by their names within it; of a file itself, by "".

    Empty where nothing is there. Raises :class:`BucketError` where the bucket can't be read.
    """
    client, path = open_bucket(name)
    found: dict[str, Any] = {}
    with (
        contextlib.suppress(FileNotFoundError),
        errors_of_client(f"cannot read {name}", FileNotFoundError),
    ):
        client.invalidate_cache()
        found = client.find(path, detail=True)
    listed = {}
    for full_name, info in found.items():
        if info["type"] != "file" or full_name.endswith("/"):
            continue  # what marks an empty folder
        state = repr([str(info.get(entry)) for entry in STATE])
        listed[full_name.removeprefix(path).lstrip("/")] = RemoteFile(info["size"], state)
    return listed


def fetch(name: str, file_names: Collection[str], folder: Path) -> None:
    """Copy files below ``name`` in a bucket into a local folder. Raises :class:`BucketError`."""
    if not file_names:
        return
    client, path = open_bucket(name)
    sources = [joined(path, file_name) for file_name in file_names]
    targets = [str(folder / file_name) for file_name in file_names]
    with errors_of_client(f"cannot read {name}"):
        client.get(sources, targets)


def send(folder: Path, file_names: Collection[str], name: str) -> None:
    """Copy files of a local folder into a bucket, below ``name``; several of them at a time.

    Raises :class:`BucketError`. Each file is then there completely, or as it was.
    """
    if not file_names:
        return
    client, path = open_bucket(name)
    sources = [str(folder / file_name) for file_name in file_names]
    targets = [joined(path, file_name) for file_name in file_names]
    with errors_of_client(f"cannot write {name}"):
        client.put(sources, targets)


def remove(name: str, file_names: Collection[str]) -> None:
    """Delete files below ``name`` in a bucket, where they are there. Raises :class:`BucketError`."""
    if not file_names:
        return
    client, path = open_bucket(name)
    with (
        contextlib.suppress(FileNotFoundError),
        errors_of_client(f"cannot delete in {name}", FileNotFoundError),
    ):
        client.rm([joined(path, file_name) for file_name in file_names])


def download(
    name: str, cache: Path, is_wanted: Callable[[str], bool] = lambda file_name: True
) -> Path:
    """A local copy of a file or a folder in a bucket, below the folder ``cache``.

    It is kept, and brought up to date whenever it is asked for: only what changed in the bucket is
    copied again. A file that a process has mapped is replaced by another one, never written to.
    ``is_wanted`` chooses by the names within the folder. Raises :class:`BucketError` where there is
    nothing, and where it can't be read.
    """
    name = name.rstrip("/")
    remote = {file: entry for file, entry in list_files(name).items() if is_wanted(file)}
    if not remote:
        raise BucketError(f"{name} does not exist: there is no such file or folder in the bucket")
    home = cache / digest(name)
    local = home / name.rpartition("/")[2]
    home.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(home / "lock"):
        known = read_states(home / "states.json")
        changed = []
        for file, entry in remote.items():
            if known.get(file) != entry.state or not (local / file).exists():
                changed.append(file)
        size = sum(remote[file].size for file in changed)
        if changed:
            files.need_space(home, size, f"the copy of {name}")
        if size > 1 << 20:
            logger.warning(f"copying {name} ({size / 1e6:.0f} MB)")
        replace_files(name, changed, home, local)
        for file in known.keys() - remote.keys():
            (local / file).unlink(missing_ok=True)
        states = {file: entry.state for file, entry in remote.items()}
        files.write_json(home / "states.json", states)
    return local


@contextlib.contextmanager
def errors_name(name: str | os.PathLike[str]) -> Iterator[None]:
    """Let errors about the local copy of something in a bucket begin with its name there."""
    try:
        yield
    except AdaptError as error:
        if not files.is_remote(name):
            raise
        raise type(error)(f"{name}: {error}") from None


def replace_files(name: str, file_names: Collection[str], home: Path, local: Path) -> None:
    """Fetch files into a folder of their own, then move each to its place in ``local``."""
    fresh = home / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    if "" in file_names:
        fetch_to = fresh / local.name
        fetch(name.rpartition("/")[0], [local.name], fresh)
        files.delete(local)
        fetch_to.replace(local)
        return
    fetch(name, file_names, fresh)
    for file_name in file_names:
        target = local / file_name
        target.parent.mkdir(parents=True, exist_ok=True)
        (fresh / file_name).replace(target)
    shutil.rmtree(fresh, ignore_errors=True)


def read_states(path: Path) -> dict[str, str]:
    """What the files of a copy were when they were fetched; {} where there is no copy yet."""
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def digest(name: str) -> str:
    """The name of the folder that belongs to a place in a bucket."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def joined(path: str, file_name: str) -> str:
    return f"{path}/{file_name}" if file_name else path


def open_bucket(name: str) -> tuple[Any, str]:
    """(fsspec's file system, the path of ``name`` in it). Raises :class:`BucketError`."""
    scheme, _, path = name.partition("://")
    if scheme != "gs":
        raise BucketError(
            f"{name}: {scheme}:// is not supported, gs:// alone is: copy it to a local folder first"
        )
    if not path.strip("/"):
        raise BucketError(f"{name} names no bucket: give gs://bucket/folder")
    # gcsfs would ask by another API of what kind the bucket is, for a minute where that is closed.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec

    try:
        with errors_of_client(f"cannot open {name}", ImportError):
            return fsspec.filesystem("gs"), path.rstrip("/")
    except ImportError:
        raise BucketError(
            f"{name} needs gcsfs, which is not installed: pip install gcsfs"
        ) from None


@contextlib.contextmanager
def errors_of_client(what: str, *passed: type[Exception]) -> Iterator[None]:
    """Raise :class:`BucketError` for whatever a client raises: gcsfs, aiohttp and Google's login
    have no common base.
    """
    try:
        yield
    except passed:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BucketError(f"{what}: {reason}") from error
