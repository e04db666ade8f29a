"""What a command writes into a bucket: a local folder, uploaded whenever it holds something good.

A run's checkpoints are uploaded before the index that names them, and deleted after it, so whenever
the process is killed, the bucket has the last checkpoint that was uploaded completely. What was
logged since is lost, and logged again by a run that goes on.
"""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import filelock

from adapt import buckets, files
from adapt.errors import BucketError, OutputError
from adapt.pretrained.assets import cache_folder
from adapt.training import checkpoint

# Says which command wrote a folder. It goes first: whatever is there, that command may replace it.
FIRST = "config.json"
# Files whose presence says that others are complete: they go after those, in this order.
LAST = ("checkpoints/index.json", "plan.json", "result.json")

FileState = tuple[int, int, int]  # the size, the time of the last change, the inode


class StagedFolder:
    """A local folder whose files :meth:`upload` brings to ``name`` in a bucket.

    ``previous`` are the files that lie there and are to be replaced: the first upload deletes them.
    """

    def __init__(self, path: Path, name: str, last: Sequence[str] = LAST):
        self.path = path
        self.name = name
        self.last = last
        self.previous: Collection[str] = ()
        self.sent: dict[str, FileState] = {}
        self.has_failed = False

    def resume(self) -> None:
        """Take over what lies in the bucket. What a killed upload left there is deleted."""
        there = buckets.list_files(self.name)
        files.need_space(self.path, sum(file.size for file in there.values()), "the run")
        buckets.fetch(self.name, there.keys(), self.path)
        checkpoints = self.path / "checkpoints"
        checkpoint.delete_unnamed(checkpoints, checkpoint.read_index(checkpoints))
        self.sent = self.states()
        buckets.remove(self.name, there.keys() - self.sent.keys())

    def upload(self) -> None:
        """Make the bucket's folder the same as the local one. Raises :class:`BucketError`."""
        try:
            self.send_changes()
        except BucketError as error:
            self.has_failed = True
            raise BucketError(
                f"{error}; what is missing there lies in {self.path} until the command is run again"
            ) from None

    def send_changes(self) -> None:
        """Upload what is new or changed, in the order that readers rely on; delete what is gone."""
        states = self.states()
        changed = {file for file, state in states.items() if self.sent.get(file) != state}
        last = [file for file in self.last if file in changed]
        first = changed & {FIRST} - set(last)
        between = changed - first - set(last)
        gone = self.sent.keys() - states.keys()
        buckets.send(self.path, first, self.name)
        self.delete_previous()
        buckets.send(self.path, sorted(between), self.name)
        for file in last:
            buckets.send(self.path, [file], self.name)
        buckets.remove(self.name, gone)
        self.sent = states

    def delete_previous(self) -> None:
        """Delete what is replaced; from the first step on nobody takes it for complete."""
        for file in self.last:
            if file in self.previous:
                buckets.remove(self.name, [file])
        buckets.remove(self.name, set(self.previous) - {FIRST, *self.last})
        self.previous = ()

    def states(self) -> dict[str, FileState]:
        """The files of the local folder; a state is another one when the file was changed."""
        found = {}
        for path in sorted(self.path.rglob("*")):
            if path.is_file():
                stat = path.stat()
                state = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
                found[path.relative_to(self.path).as_posix()] = state
        return found


@contextlib.contextmanager
def staging(name: str, last: Sequence[str] = LAST) -> Iterator[StagedFolder]:
    """An empty local folder for what goes to ``name`` in a bucket: uploaded at the end, deleted.

    After an error nothing more is uploaded. Where an upload failed, the local folder stays. Raises
    :class:`OutputError` while another process of this machine writes to the same place.
    """
    name = name.rstrip("/")
    home = cache_folder() / "staged" / buckets.digest(name)
    home.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(home / "lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise OutputError(
            f"another process of this machine writes {name}: wait for it, or give another `out`"
        ) from None
    folder = StagedFolder(home / name.rpartition("/")[2], name, last)
    files.delete(folder.path)
    folder.path.mkdir()
    try:
        yield folder
        folder.upload()
    finally:
        if not folder.has_failed:
            files.delete(folder.path)
        lock.release()


def check_file_out(path: Path, overwrite: bool) -> None:
    """Raise :class:`OutputError` for an output file that exists, before any work is done."""
    if buckets.exists(path) and not overwrite:
        raise OutputError(
            f"the output file {path} exists: give `overwrite` to replace it, or another `out`"
        )


@contextlib.contextmanager
def written_file(path: Path) -> Iterator[Path]:
    """A local path to write to, which becomes ``path`` when it is complete, in a bucket, too.

    See :func:`adapt.files.atomic_path`.
    """
    if not files.is_remote(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_path(path) as beside:
            yield beside
        return
    with staging(str(path.parent)) as folder:
        yield folder.path / path.name


@contextlib.contextmanager
def written_folder(path: Path, last: Sequence[str]) -> Iterator[Path]:
    """A local folder to write to: ``path`` itself, or one that is uploaded to it at the end.

    In a bucket the files ``last`` are uploaded after all others. Raises :class:`OutputError` for a
    folder in a bucket that holds anything.
    """
    if not files.is_remote(path):
        yield path
        return
    if buckets.list_files(str(path)):
        raise OutputError(
            f"the output folder {path} exists, and in a bucket it is not replaced: delete it "
            "yourself, or give another `out`"
        )
    with staging(str(path), last) as folder:
        yield folder.path
