"""Arrays that runs share: a folder a key, filled once, by rename; safe against two processes and against a stop in between.

<cache>/prefix/<key>/key.json      what the array was computed from, for people to read
<cache>/prefix/<key>/values.bin    the array, memory-mapped; values.part while it is being filled
<cache>/prefix/<key>/progress.json how many pieces are in it; done.json when all are, with its SHA-256
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapt.errors import OutputError
from adapt.pretrained.assets import cache_folder

MARGIN = 64 << 20  # bytes left free on the disk
FLUSH = 5.0  # seconds between notes of progress
RETRIES = 3
PART = 4096  # rows that are checked at once
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: multiples of it are spread evenly

Pieces = Callable[
    [int], Iterator[tuple[np.ndarray, np.ndarray]]
]  # from piece k on: (rows [n], values [n, ...])


@dataclasses.dataclass(frozen=True)
class CachedArray:
    """One array of the cache: ``key`` is everything that its values depend on, as plain JSON."""

    key: Mapping[str, Any]
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def folder(self) -> Path:
        text = json.dumps([self.key, self.shape, str(self.dtype)], sort_keys=True)
        return cache_folder() / "prefix" / hashlib.sha256(text.encode()).hexdigest()[:24]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def is_complete(self) -> bool:
        return (self.folder / "done.json").exists()

    @functools.cached_property
    def relative_error(self) -> float:
        """Of what is stored against what was computed, root mean square: 0 where the dtypes agree. As :meth:`open` found it."""
        return json.loads((self.folder / "done.json").read_text("utf-8"))["relative_error"]

    def open(self, pieces: Pieces, waiting: Callable[[], None] = lambda: None) -> np.ndarray:
        """The array, read-only and memory-mapped, filled with ``pieces`` where nobody has filled it before.

        ``waiting`` is called once if another process is filling it. A stopped filling goes on where it stopped; a
        file that is not as it was written is filled anew. Raises :class:`OutputError` when the disk can't hold it.
        """
        for _ in range(RETRIES):
            if (values := self._try_open(pieces, waiting)) is not None:
                return values
        raise OutputError(
            f"{self.folder} is deleted whenever it is filled: leave it alone, or give `cache` off"
        )

    def _try_open(self, pieces: Pieces, waiting: Callable[[], None]) -> np.ndarray | None:
        """What :meth:`open` does, once; None where the folder was deleted meanwhile."""
        if not self.is_valid():
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = (self.folder / "lock").open("w")
            with lock:
                try:  # the kernel lets it go if the process dies
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waiting()
                    fcntl.flock(lock, fcntl.LOCK_EX)
                if not is_at(os.fstat(lock.fileno()), self.folder / "lock") or not (
                    self.is_valid() or self.fill(pieces)
                ):
                    return None
        try:
            self.__dict__.pop("relative_error", None)
            self.relative_error  # noqa: B018 - kept, for the folder may be deleted while the array is in use
            return np.memmap(self.folder / "values.bin", self.dtype, "r", shape=self.shape)
        except FileNotFoundError:
            return None

    def is_valid(self) -> bool:
        """Whether the file is there, as it was written."""
        try:
            sums = json.loads((self.folder / "done.json").read_text("utf-8"))
            with (self.folder / "values.bin").open("rb") as file:
                same = hashlib.file_digest(file, "sha256").hexdigest() == sums["sha256"]
            return (
                same
                and type(error := sums["relative_error"]) is float
                and 0 <= error < float("inf")
            )
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def fill(self, pieces: Pieces) -> bool:
        """Write all pieces and put the file in its place; the caller holds the lock. False where it was deleted meanwhile."""
        half = self.folder / "values.part"
        note = self.folder / "progress.json"
        with writing(self.folder):
            for name in ("done.json", "values.bin"):
                (self.folder / name).unlink(missing_ok=True)
            done = self.read_progress(half, note)
            if not done.pieces:
                write(
                    self.folder / "key.json",
                    dict(self.key) | {"shape": self.shape, "dtype": str(self.dtype)},
                )
                need_space([self])
                note.unlink(missing_ok=True)
                reserve(half, self.nbytes)
            out = np.memmap(half, self.dtype, "r+", shape=self.shape)
            own = half.stat()
        noted = time.monotonic()
        begun = done.pieces
        for rows, values in pieces(begun):
            out[rows] = stored = self.stored(values, done)
            check = (done.check + checksum(rows, stored)) % 2**64
            done = dataclasses.replace(
                done, pieces=done.pieces + 1, rows=done.rows + len(rows), check=check
            )
            if time.monotonic() - noted > FLUSH:
                if not is_at(own, half):
                    return False
                with writing(self.folder):
                    out.flush()
                    write(note, dataclasses.asdict(done))
                noted = time.monotonic()
        if not is_at(own, half):  # another process may be filling one of the same name
            return False
        with writing(self.folder):
            out.flush()
            note.unlink(missing_ok=True)
            sha256 = hashlib.sha256()
            check = 0
            for at in range(0, len(out), PART):
                part = out[at : at + PART]
                sha256.update(part.tobytes())
                check = (check + checksum(np.arange(at, at + len(part)), part)) % 2**64
            del out
            if (
                done.rows != self.shape[0] or check != done.check
            ):  # an earlier part, or the note on it, is not as it was
                if not begun:
                    raise OutputError(
                        f"{half} is not what was written into it: look at its disk, or point ADAPT_CACHE to another"
                    )
                return self.fill(pieces)
            half.replace(self.folder / "values.bin")
            error = (done.error / done.total) ** 0.5 if done.total else 0.0
            write(
                self.folder / "done.json", {"sha256": sha256.hexdigest(), "relative_error": error}
            )
        return True

    def stored(self, values: np.ndarray, done: "Progress") -> np.ndarray:
        """The values in the dtype of the store, the error counted in ``done``. Raises where they do not fit."""
        if values.dtype == self.dtype:
            return values
        exact = values.astype(np.float32)
        with np.errstate(over="ignore"):
            stored = exact.astype(self.dtype)
        finite = np.isfinite(exact)
        exact = exact[finite]
        back = stored.astype(np.float32)[finite]
        if not np.isfinite(back).all():
            for name in ("values.part", "progress.json"):
                (self.folder / name).unlink(missing_ok=True)
            raise OutputError(
                f"{self.dtype} can't hold the values to cache: give `cache_dtype` bfloat16"
            )
        done.error += float(np.square(back - exact).sum(dtype=np.float64))
        done.total += float(np.square(exact).sum(dtype=np.float64))
        return stored

    def read_progress(self, half: Path, note: Path) -> "Progress":
        """How far an earlier filling came; nothing where there was none, or its note makes no sense."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            done = Progress(**json.loads(note.read_text("utf-8")))
            numbers = dataclasses.astuple(done)
            if list(map(type, numbers)) == [int, int, float, float, int] and min(numbers) >= 0:
                return done if half.stat().st_size == self.nbytes else Progress()
        return Progress()


@dataclasses.dataclass
class Progress:
    """Of a filling: pieces and rows that are written, squares of the error of storing and of the values, the checksum."""

    pieces: int = 0
    rows: int = 0
    error: float = 0.0
    total: float = 0.0
    check: int = 0


def is_at(own: os.stat_result, path: Path) -> bool:
    """Whether a file that is in use is still the one at ``path``."""
    try:
        return os.path.samestat(own, path.stat())
    except OSError:
        return False


def checksum(rows: np.ndarray, values: np.ndarray) -> int:
    """Of rows [n] and what is in them [n, ...], modulo 2^64: a sum, so the order of writing does not matter.

    Each word is multiplied by odd numbers, of its column and of its row: no single bit can change unseen.
    """
    flat = np.ascontiguousarray(values).reshape(len(rows), -1).view(np.uint8)
    words = flat.view(np.uint64 if flat.shape[1] % 8 == 0 else np.uint8)
    odd = lambda index: index.astype(np.uint64) * np.uint64(2 * GOLDEN % 2**64) + np.uint64(1)
    return int(
        ((words * odd(np.arange(words.shape[1]))).sum(1, dtype=np.uint64) * odd(rows)).sum(
            dtype=np.uint64
        )
    )


def need_space(entries: Sequence[CachedArray]) -> None:
    """Raise :class:`OutputError` unless the cache can be written and its disk holds what is still missing of all entries."""
    missing = {entry.folder: entry for entry in entries if not entry.is_complete}
    needed = 0
    for folder, entry in missing.items():
        half = folder / "values.part"
        needed += max(entry.nbytes - (half.stat().st_blocks * 512 if half.is_file() else 0), 0)
    for folder in missing:
        with writing(folder):
            there = next(parent for parent in (folder, *folder.parents) if parent.exists())
            if needed + MARGIN > (free := shutil.disk_usage(there).free):
                raise OutputError(
                    f"the disk of {there} has {free / 1e6:.0f} MB free and the cache needs {needed / 1e6:.0f} MB: make room, "
                    "point ADAPT_CACHE to another disk, give `cache_dtype` bfloat16 for half of it, or `cache` off"
                )
            folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """One line for what goes wrong with the files of the cache."""
    try:
        yield
    except OSError as fault:
        where = Path(fault.filename or folder)
        why = (
            f"{fault.strerror or fault}: {where}"
            if not where.is_symlink() or where.exists()
            else f"{where} is a dangling link"
        )
        raise OutputError(
            f"the cache can't be written ({why}): point ADAPT_CACHE to another folder, or give `cache` off"
        ) from None


def write(path: Path, content: Any) -> None:
    """JSON, written beside and renamed."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(content, indent=1), "utf-8")
    beside.replace(path)


def reserve(path: Path, nbytes: int) -> None:
    """Make ``path`` a file of ``nbytes`` that the disk has set aside: a full disk is an error here, not a crash later."""
    with path.open("wb") as file:
        try:
            file.truncate(nbytes)
            if hasattr(os, "posix_fallocate") and nbytes:  # not on macOS
                os.posix_fallocate(file.fileno(), 0, nbytes)
        except OSError as fault:
            path.unlink()
            raise OutputError(
                f"{path.parent} has no room for {nbytes / 1e6:.0f} MB: {fault.strerror}"
            ) from None
