"""Arrays that runs share: a folder a key, filled once, by rename; safe against two processes and against a stop in between.

<cache>/prefix/<key>/key.json      what the array was computed from, for people to read
<cache>/prefix/<key>/values.bin    the array, memory-mapped; values.part while it is being filled
<cache>/prefix/<key>/progress.json how many pieces are in it; done.json when all are, with its SHA-256
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adapt.assets import cache_folder
from adapt.errors import OutputError

MARGIN = 64 << 20  # bytes left free on the disk
FLUSH = 5.0  # seconds between notes of progress

Pieces = Callable[[int], Iterator[tuple[np.ndarray, np.ndarray]]]  # from piece k on: (rows [n], values [n, ...])


@dataclasses.dataclass(frozen=True)
class Entry:
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
    def filled(self) -> bool:
        return (self.folder / "done.json").exists()

    @property
    def relative_error(self) -> float:
        """Of what is stored against what was computed, root mean square: 0 where the dtypes agree."""
        return json.loads((self.folder / "done.json").read_text("utf-8"))["relative_error"]

    def open(self, pieces: Pieces, waiting: Callable[[], None] = lambda: None) -> np.ndarray:
        """The array, read-only and memory-mapped, filled with ``pieces`` where nobody has filled it before.

        ``waiting`` is called once if another process is filling it. A stopped filling goes on where it stopped; a
        file that is not as it was written is filled anew. Raises :class:`OutputError` when the disk can't hold it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder / "lock", waiting):
                if not self.intact():
                    self.fill(pieces)
        except OSError as fault:
            why = f"{fault.strerror or fault}: {fault.filename or self.folder}"
            raise OutputError(
                f"the cache can't be written ({why}): point ADAPT_CACHE to another folder, or give --cache off"
            ) from None
        return np.memmap(self.folder / "values.bin", self.dtype, "r", shape=self.shape)

    def intact(self) -> bool:
        """Whether the file is there, as it was written; what is not goes."""
        try:
            sums = json.loads((self.folder / "done.json").read_text("utf-8"))
            with (self.folder / "values.bin").open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == sums["sha256"]:
                    return True
        except (OSError, ValueError, KeyError, TypeError):
            pass
        for name in ("done.json", "values.bin"):
            (self.folder / name).unlink(missing_ok=True)
        return False

    def fill(self, pieces: Pieces) -> None:
        half, note = self.folder / "values.part", self.folder / "progress.json"
        sums: dict[str, float] = {"pieces": 0, "error": 0.0, "total": 0.0}
        with contextlib.suppress(OSError, ValueError, TypeError):
            if half.stat().st_size == self.nbytes:
                sums |= json.loads(note.read_text("utf-8"))
        if not sums["pieces"]:
            write(self.folder / "key.json", dict(self.key) | {"shape": self.shape, "dtype": str(self.dtype)})
            self.need_space()
            reserve(half, self.nbytes)
        out, noted = np.memmap(half, self.dtype, "r+", shape=self.shape), time.monotonic()
        for rows, values in pieces(int(sums["pieces"])):
            stored = values.astype(self.dtype)
            if self.dtype != values.dtype:
                exact = values.astype(np.float32)
                sums["error"] += float(np.square(stored.astype(np.float32) - exact).sum(dtype=np.float64))
                sums["total"] += float(np.square(exact).sum(dtype=np.float64))
                if not np.isfinite(sums["error"]):
                    raise OutputError(f"{self.dtype} can't hold the values to cache: give --cache-dtype bfloat16")
            out[rows] = stored
            sums["pieces"] += 1
            if time.monotonic() - noted > FLUSH:
                out.flush()
                write(note, sums)
                noted = time.monotonic()
        out.flush()
        del out
        with half.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        half.replace(self.folder / "values.bin")
        write(
            self.folder / "done.json",
            {"sha256": found, "relative_error": (sums["error"] / max(sums["total"], 1e-30)) ** 0.5},
        )
        note.unlink(missing_ok=True)

    def need_space(self) -> None:
        """Raise :class:`OutputError` when the disk can't hold the array."""
        there = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        if self.nbytes + MARGIN > (free := shutil.disk_usage(there).free):
            raise OutputError(
                f"the disk of {self.folder} has {free / 1e6:.0f} MB free and the cache needs {self.nbytes / 1e6:.0f} MB: "
                "make room, point ADAPT_CACHE to another disk, give --cache-dtype bfloat16 for half of it, or --cache off"
            )


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file ``path``; the kernel lets it go if the process dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
            raise OutputError(f"{path.parent} has no room for {nbytes / 1e6:.0f} MB: {fault.strerror}") from None
