"""Buckets of gs:// in a folder of the disk: a file system for fsspec, in this process and in commands.

As in a bucket, a file appears whole, a folder is a common beginning of names, and nothing can be renamed or appended to.
"""

import os
import shutil
import uuid
from pathlib import Path

import fsspec
from fsspec.spec import AbstractFileSystem

FOLDER = "ADAPT_TEST_BUCKETS"  # of the environment: where the buckets are
LOG = "operations.log"  # in it: what was put and removed, one line each


class Buckets(AbstractFileSystem):
    """What gcsfs does as far as adapt asks for it."""

    protocol = ("gs", "gcs")
    cachable = False

    @property
    def root(self) -> Path:
        return Path(os.environ[FOLDER])

    def local(self, path: str) -> Path:
        return self.root / self._strip_protocol(path)

    def note(self, what: str, path: str) -> None:
        with (self.root / LOG).open("a") as file:
            file.write(f"{what} {self._strip_protocol(path)}\n")

    def info(self, path: str, **_) -> dict:
        local = self.local(path)
        stat = local.stat()
        kind = "directory" if local.is_dir() else "file"
        generation = f"{stat.st_mtime_ns} {stat.st_ino}"
        name = self._strip_protocol(path)
        return {"name": name, "type": kind, "size": stat.st_size, "generation": generation}

    def ls(self, path: str, detail: bool = True, **_) -> list:
        local = self.local(path)
        if not local.is_dir():
            raise FileNotFoundError(path)
        names = [f"{self._strip_protocol(path)}/{child.name}" for child in local.iterdir()]
        return [self.info(name) for name in names] if detail else names

    def find(self, path: str, detail: bool = False, **_):
        found = super().find(path, detail=True)
        described = {name: info or self.info(name) for name, info in found.items()}
        return described if detail else list(described)

    def _open(self, path: str, mode: str = "rb", **_):
        assert mode == "rb", mode
        return self.local(path).open(mode)

    def get_file(self, rpath: str, lpath: str, **_) -> None:
        Path(lpath).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.local(rpath), lpath)

    def put_file(self, lpath: str, rpath: str, **_) -> None:
        target = self.local(rpath)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = self.root / f"{uuid.uuid4()}.part"
        shutil.copyfile(lpath, beside)
        beside.replace(target)
        self.note("put", rpath)

    def rm_file(self, path: str) -> None:
        target = self.local(path)
        target.unlink()
        while not any(target.parent.iterdir()):  # a folder without files is not there
            target = target.parent
            target.rmdir()
        self.note("rm", path)


def register(folder: Path) -> None:
    """Let this process find the buckets in ``folder``, which it needs in its environment, too."""
    for scheme in Buckets.protocol:
        fsspec.register_implementation(scheme, Buckets, clobber=True)
    folder.mkdir(exist_ok=True)


def write_plugin(folder: Path) -> Path:
    """A folder for PYTHONPATH by which a command of a test finds :class:`Buckets`."""
    metadata = folder / "test_buckets-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: test-buckets\nVersion: 0\n")
    lines = [f"{scheme} = {__name__}:{Buckets.__name__}" for scheme in Buckets.protocol]
    (metadata / "entry_points.txt").write_text("[fsspec.specs]\n" + "\n".join(lines) + "\n")
    return folder


def operations(folder: Path) -> list[str]:
    """``["put bucket/run/config.json", ...]`` in their order."""
    log = folder / LOG
    return log.read_text().splitlines() if log.exists() else []
