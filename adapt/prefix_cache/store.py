"""Arrays that runs share: a folder a key, filled once by one process, afterwards only read.

<cache>/prefix/<key>/key.json       what the array was computed from, for people to read
<cache>/prefix/<key>/values.part    the array while it is being filled
<cache>/prefix/<key>/progress.json  how many of its rows are written, and their SHA-256
<cache>/prefix/<key>/values.bin     the complete array, memory-mapped
<cache>/prefix/<key>/done.json      its SHA-256: without this file nothing is complete
<cache>/prefix/<key>/lock           locked by the process that fills it

Rows are appended in order. A file whose writing was stopped is therefore a beginning of the array,
and one SHA-256 tells whether it still is what was written: then the next process goes on from it.
An array is written once and never copied, so its disk needs room for it once.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np

from adapt import files
from adapt.errors import OutputError
from adapt.pretrained.assets import cache_folder

NOTE_SECONDS = 5.0  # between notes of progress
ATTEMPTS = 3  # to fill an array whose folder is deleted meanwhile
BLOCK = 1 << 20  # bytes that are hashed at once

Pieces = Callable[[int], Iterator[np.ndarray]]  # from row k on: [n, ...], the rows in order


@dataclasses.dataclass(frozen=True)
class CachedArray:
    """One array of the cache. ``key`` is everything that its values depend on, as plain JSON.

    ``key``, ``shape`` and ``dtype`` together name its folder.
    """

    key: Mapping[str, Any]
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def folder(self) -> Path:
        text = json.dumps([self.key, self.shape, str(self.dtype)], sort_keys=True)
        return cache_folder() / "prefix" / hashlib.sha256(text.encode()).hexdigest()[:24]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.row_bytes

    @property
    def is_complete(self) -> bool:
        """Whether somebody filled it. Whether the file is intact, only :meth:`open` looks."""
        return (self.folder / "done.json").exists()

    @functools.cached_property
    def relative_error(self) -> float:
        """What storing lost, root mean square: 0 where the dtypes agree. Known after :meth:`open`.

        It stays known if the folder is deleted while the array is in use.
        """
        return json.loads((self.folder / "done.json").read_text("utf-8"))["relative_error"]

    def open(self, pieces: Pieces, on_wait: Callable[[], None] = lambda: None) -> np.ndarray:
        """The array, read-only and memory-mapped; filled with ``pieces`` if nobody has done so.

        ``pieces(k)`` yields the rows from row k on, in order. A filling that was stopped goes on
        where it stopped; a file that is not as it was written is filled anew. ``on_wait()`` is
        called once if another process is filling it. Raises :class:`OutputError` if the disk can't
        hold it, or the dtype can't hold a value.
        """
        for _ in range(ATTEMPTS):
            if not self.is_valid():
                with self._locked(on_wait) as is_locked:
                    if not is_locked:
                        continue
                    if not self.is_valid() and not self._fill(pieces):
                        continue
            try:
                return self.map()
            except FileNotFoundError:
                continue
        raise OutputError(
            f"{self.folder} is deleted whenever it is filled: leave it alone, or give `cache` off"
        )

    def map(self) -> np.ndarray:
        """The complete array, read-only. Raises :class:`FileNotFoundError` if it is not there."""
        self.__dict__.pop("relative_error", None)
        self.relative_error  # noqa: B018 - read now, for the folder may be deleted later
        return np.memmap(self.folder / "values.bin", self.dtype, "r", shape=self.shape)

    def is_valid(self) -> bool:
        """Whether the complete file is there, as it was written. Reads all of it."""
        try:
            done = json.loads((self.folder / "done.json").read_text("utf-8"))
            with (self.folder / "values.bin").open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            error = done["relative_error"]
            return sha256 == done["sha256"] and type(error) is float and 0 <= error < math.inf
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @contextlib.contextmanager
    def _locked(self, on_wait: Callable[[], None]) -> Iterator[bool]:
        """Hold the folder's lock; False if the folder was deleted while waiting for it.

        It is an flock, which the kernel releases when the process dies, however it dies. On NFS
        Linux makes it a lock of the server, so it serves several hosts as well.
        """
        lock = filelock.FileLock(self.folder / "lock")
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                try:
                    lock.acquire(blocking=False)
                except filelock.Timeout:
                    on_wait()
                    lock.acquire()
        try:
            yield lock.is_locked
        finally:
            lock.release()

    def _fill(self, pieces: Pieces) -> bool:
        """Write every row and rename the file. The caller holds the lock.

        False if the file was deleted meanwhile: another process may be filling one of that name.
        """
        part = self.folder / "values.part"
        progress, digest = self._resume(part)
        with writing(self.folder):
            file = part.open("r+b")
        with file:
            file.seek(progress.rows * self.row_bytes)
            noted = time.monotonic()
            for values in pieces(progress.rows):
                stored = np.ascontiguousarray(self._stored(values, progress))
                content = stored.reshape(-1).view(np.uint8).data
                with writing(self.folder):
                    file.write(content)
                digest.update(content)
                progress.rows += len(values)
                if time.monotonic() - noted > NOTE_SECONDS:
                    if not is_at(file, part):
                        return False
                    self._note(file, progress, digest.hexdigest())
                    noted = time.monotonic()
            if progress.rows != self.shape[0]:
                raise ValueError(f"the pieces have {progress.rows} rows, of {self.shape[0]}")
            with writing(self.folder):
                sync(file)
            if not is_at(file, part):
                return False
        self._finish(part, digest.hexdigest(), progress.relative_error)
        return True

    def _resume(self, part: Path) -> tuple["Progress", Any]:
        """(how far an earlier process came, the SHA-256 of its rows so far).

        Where there was none, or its rows are not as it wrote them, the file is made anew.
        """
        progress = self._read_progress()
        digest = hashlib.sha256()
        with writing(self.folder):
            for name in ("done.json", "values.bin"):
                (self.folder / name).unlink(missing_ok=True)
            if progress.rows and part.is_file() and part.stat().st_size == self.nbytes:
                with part.open("rb") as file:
                    hash_start(file, progress.rows * self.row_bytes, digest)
                if digest.hexdigest() == progress.sha256:
                    return progress, digest
            about = {**self.key, "shape": self.shape, "dtype": str(self.dtype)}
            files.write_json(self.folder / "key.json", about)
            need_space([self])
            self._discard()
            files.reserve(part, self.nbytes)
        return Progress(), hashlib.sha256()

    def _discard(self) -> None:
        """Delete what a filling wrote."""
        for name in ("values.part", "progress.json"):
            (self.folder / name).unlink(missing_ok=True)

    def _read_progress(self) -> "Progress":
        """The note of an earlier process; nothing done where it makes no sense."""
        try:
            note = json.loads((self.folder / "progress.json").read_text("utf-8"))
            progress = Progress(**note)
        except (OSError, ValueError, TypeError):
            return Progress()
        types = [type(value) for value in dataclasses.astuple(progress)]
        if types != [int, str, float, float] or not 0 <= progress.rows <= self.shape[0]:
            return Progress()
        errors = (progress.squared_error, progress.squared_norm)
        return progress if all(0 <= error < math.inf for error in errors) else Progress()

    def _note(self, file: BinaryIO, progress: "Progress", sha256: str) -> None:
        """Note how many rows are on the disk."""
        with writing(self.folder):
            sync(file)
            progress.sha256 = sha256
            files.write_json(self.folder / "progress.json", dataclasses.asdict(progress))

    def _finish(self, part: Path, sha256: str, relative_error: float) -> None:
        """Read the file back, and give it its final name."""
        with writing(self.folder):
            with part.open("rb") as file:
                on_disk = hashlib.file_digest(file, "sha256").hexdigest()
            if on_disk != sha256:
                raise OutputError(
                    f"{part} is not what was written into it: look at its disk, or point "
                    "ADAPT_CACHE to another"
                )
            (self.folder / "progress.json").unlink(missing_ok=True)
            part.replace(self.folder / "values.bin")
            done = {"sha256": sha256, "relative_error": relative_error}
            files.write_json(self.folder / "done.json", done)

    def _stored(self, values: np.ndarray, progress: "Progress") -> np.ndarray:
        """The values in the array's dtype, what that loses added to ``progress``.

        Raises :class:`OutputError` for a finite value that the dtype can't hold.
        """
        if values.dtype == self.dtype:
            return values
        exact = values.astype(np.float32)
        with np.errstate(over="ignore"):
            stored = exact.astype(self.dtype)
        finite = np.isfinite(exact)
        exact = exact[finite]
        back = stored.astype(np.float32)[finite]
        if not np.isfinite(back).all():
            self._discard()
            raise OutputError(
                f"{self.dtype} can't hold the values to cache: give `cache_dtype` bfloat16"
            )
        progress.squared_error += float(np.square(back - exact).sum(dtype=np.float64))
        progress.squared_norm += float(np.square(exact).sum(dtype=np.float64))
        return stored


@dataclasses.dataclass
class Progress:
    """How far a filling came: rows that are written, their SHA-256, and what storing them lost."""

    rows: int = 0
    sha256: str = ""
    squared_error: float = 0.0
    squared_norm: float = 0.0

    @property
    def relative_error(self) -> float:
        return math.sqrt(self.squared_error / self.squared_norm) if self.squared_norm else 0.0


def is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is the one that ``path`` names now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def sync(file: BinaryIO) -> None:
    """Have what was written reach the disk."""
    file.flush()
    os.fsync(file.fileno())


def hash_start(file: BinaryIO, size: int, digest: Any) -> None:
    """Add the first ``size`` bytes of a file to a digest."""
    while size:
        block = file.read(min(size, BLOCK))
        digest.update(block)
        size -= len(block)
        if not block:  # shorter than it says
            return


def need_space(arrays: Sequence[CachedArray]) -> None:
    """Raise :class:`OutputError` unless the disk can take what is missing of all these arrays."""
    needed = 0
    missing = {array.folder: array for array in arrays if not array.is_complete}
    for folder, array in missing.items():
        part = folder / "values.part"
        reserved = part.stat().st_blocks * 512 if part.is_file() else 0
        needed += max(array.nbytes - reserved, 0)
    hint = (
        "make room, point ADAPT_CACHE to another disk, give `cache_dtype` bfloat16 for half of it, "
        "or `cache` off"
    )
    for folder in missing:
        with writing(folder):
            existing = next(path for path in (folder, *folder.parents) if path.is_dir())
            files.need_space(existing, needed, "the cache", hint)
            folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise one :class:`OutputError` for whatever goes wrong with the files of the cache."""
    try:
        yield
    except OSError as error:
        path = Path(error.filename or folder)
        why = f"{error.strerror or error}: {path}"
        if path.is_symlink() and not path.exists():
            why = f"{path} is a dangling link"
        raise OutputError(
            f"the cache can't be written ({why}): point ADAPT_CACHE to another folder, or give "
            "`cache` off"
        ) from None
