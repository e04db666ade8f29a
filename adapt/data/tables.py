"""Rows in: any data file, image folder or hub name becomes one memory-mapped table with checked
columns.

    train = read("train.csv")                           # or an image folder, a name on the hub
    check_texts(train, "text")
    for chunk in chunks(train, ["text"]): ...           # {"text": [...]}: constant memory

The only importer of `datasets`, and only inside functions, since that import takes a second. Rows
are counted from 1 in messages, as a person counts them, without the header.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt.data import bundled
from adapt.data.arrow import first_line, write_arrow
from adapt.errors import DataError, OutputError, StrategyError
from adapt.options import DataOptions
from adapt.pretrained.assets import cache_folder, is_hub_reachable

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

FORMATS = {".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
VERSION = 2  # of what _kept() keeps: another one parses anew


@dataclass(frozen=True)
class Table:
    """Memory-mapped rows, and the name that a message calls them by."""

    rows: "Dataset"
    name: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def columns(self) -> list[str]:
        return self.rows.column_names

    def select(self, index: "Sequence[int] | np.ndarray") -> "Table":
        """The rows of `index` (integers [n], from 0), in that order, nothing copied.

        Check texts and encode labels before: afterwards, row numbers are those of the selection.
        """
        return Table(self.rows.select(index), self.name)


def read(spec: str | Path, split: str | None = None) -> Table:
    """A table from a file (.csv .tsv .json .jsonl .parquet), a folder of images, a bundled set, or
    a data set on the hub. `name:split` is the same as `split`.

        read("train.csv")
        read("reviews", "test")         # of adapt.data.bundled: the same as reviews:test
        read("org/name:validation")     # of the hub

    A file or folder of that name comes before a bundled set.

    Every CSV column is text, as it stands in the file: `007` and `NA` keep being `007` and `NA`. A
    file that changed is read anew, whatever its modification time says.

    Raises DataError: a missing, empty or unreadable file, a ragged row, an unknown name or split;
    AssetError.
    """
    name = str(spec)
    if not Path(name).expanduser().exists():
        name, _, part = name.partition(":")
        split = split or part or None
    path = Path(name).expanduser()
    if name and path.is_dir():
        rows = _load(
            name, split, path="imagefolder", data_dir=str(path), cache_dir=str(_kept(path))
        )
    elif path.suffix.lower() in FORMATS:
        rows = _read_file(path, FORMATS[path.suffix.lower()], split)
    elif path.exists():
        raise DataError(f"{path} is of no known format; convert it to one of {', '.join(FORMATS)}")
    elif name in bundled.SETS:
        return from_columns(bundled.read(name, split), str(spec))
    elif path.is_absolute() or name.count("/") > 1:
        raise DataError(f"{path} does not exist")
    elif "/" not in name:
        raise DataError(
            f"'{name}' is no file and no bundled set ({', '.join(bundled.SETS)}); on the hub, "
            "names are org/name"
        )
    else:
        if not is_hub_reachable():
            _datasets().config.HF_HUB_OFFLINE = True  # then only what its cache has
        rows = _load(name, split, path=name, cache_dir=str(cache_folder() / "datasets"))
    if not len(rows):
        raise DataError(f"{spec} has no rows")
    return Table(rows, str(spec))


def read_parts(options: DataOptions) -> dict[str, Table]:
    """The tables ``train`` and ``test``, and ``validation`` where one is named.

    Raises DataError where there is no test part, and StrategyError for a validation set that is
    trained or tested on.
    """
    train_is_bundled = options.train in bundled.SETS
    if options.test is None and not train_is_bundled:
        raise DataError(
            f"`test` is missing: {options.train} is not a bundled set with a test part of its own"
        )
    test = options.test or options.train
    test_is_bundled = test in bundled.SETS
    parts = {
        "train": read(options.train, "train" if train_is_bundled else None),
        "test": read(test, "test" if test_is_bundled else None),
    }
    if options.validation:
        is_whole_set = options.validation in bundled.SETS
        if is_whole_set and options.validation in (options.train, options.test):
            raise StrategyError(
                f"`validation` {options.validation} is the whole set, with what is trained and "
                "tested on: leave it out for 10% of `train`, or name other data"
            )
        parts["validation"] = read(options.validation)
    return parts


def from_columns(columns: dict[str, list], where: str) -> Table:
    """A table of columns in memory, equally long; ``where`` is what messages call it."""
    return Table(_datasets().Dataset.from_dict(columns), where)


def read_lines(path: str | Path) -> Table:
    """Plain UTF-8 text, one row a line, as a column `text`; blank lines are rows too. Raises
    DataError.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    rows = _mapped(path, "lines")
    if not len(rows):
        raise DataError(f"{path} is empty")
    return Table(rows, str(path))


def chunks(table: Table, columns: Sequence[str], size: int = 1000) -> Iterator[dict[str, list]]:
    """The rows in order, `size` at a time, each column a list; only these columns are read and
    decoded.

    Raises DataError: a column that is not there, an image that can't be decoded.
    """
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise DataError(
            f"{table.name} has no column '{missing[0]}'; it has {', '.join(table.columns)}"
        )
    rows = table.rows.select_columns(list(columns))
    for start in range(0, len(rows), size):
        try:
            chunk = rows[start : start + size]
        except (
            Exception
        ) as error:  # Pillow raises what it likes: OSError, SyntaxError, DecompressionBombError
            stop = min(start + size, len(rows))
            raise DataError(
                f"{table.name}: rows {start + 1} to {stop}: {first_line(error)}"
            ) from error
        yield chunk


def check_texts(table: Table, column: str) -> None:
    """Raises DataError where a row has no text: missing, empty, or white space alone."""
    blank = 0
    first = 0
    for row, text in numbered_values(table, column):
        if text is not None and not isinstance(text, str):
            kind = type(text).__name__
            raise DataError(
                f"{table.name}: row {row} of column '{column}' is of type {kind}, not text"
            )
        if not (text and text.strip()):
            blank = blank + 1
            first = first or row
    if blank:
        more = f" (and {blank - 1} more)" if blank > 1 else ""
        raise DataError(f"{table.name}: row {first}{more} has no text in column '{column}'")


def text_chunks(table: Table, column: str) -> Iterator[list[str]]:
    """The texts of a column in order, some thousand at a time; all of them are checked first, see
    `check_texts`.
    """
    check_texts(table, column)
    return (chunk[column] for chunk in chunks(table, [column], 4096))


def image_loader(table: Table, column: str) -> "Callable[[np.ndarray], list[Any]]":
    """Rows of the table, integers [n] from 0 -> their PIL images, decoded when they are asked for."""
    return lambda rows: (
        next(chunks(table.select(rows), [column], len(rows)))[column] if len(rows) else []
    )


def check_images(table: Table, column: str) -> "np.ndarray":
    """Decode every picture once, coarsely: the SHA-256 of each, uint8 [N, 32].

    Raises DataError naming the row, and the file where there is one, of what is no picture or only
    a part of one.
    """
    import io

    import numpy as np
    from PIL import Image

    if column not in table.columns:
        raise DataError(f"{table.name} has no column '{column}'; it has {', '.join(table.columns)}")
    raw = _datasets().Image(decode=False)
    sums = np.zeros((len(table), 32), np.uint8)
    try:
        rows = table.rows.select_columns([column]).cast_column(column, raw)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{table.name}: column '{column}' holds no images: {first_line(error)}"
        ) from error
    for index, row in enumerate(rows):
        found = dict(row)[column] or {}
        where = f"{table.name}: row {index + 1}"
        try:
            content = found.get("bytes") or Path(found.get("path") or "").read_bytes()
            with Image.open(io.BytesIO(content)) as image:
                image.draft(
                    "L", (64, 64)
                )  # a JPEG is read whole, but decoded at an eighth of its size
                image.load()
        except (
            Exception
        ) as error:  # Pillow raises what it likes: OSError, SyntaxError, DecompressionBombError
            name = f" ({found['path']})" if found.get("path") else ""
            raise DataError(
                f"{where}{name} holds no image that can be decoded: {first_line(error)}"
            ) from error
        sums[index] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
    return sums


def numbered_values(table: Table, column: str) -> Iterator[tuple[int, Any]]:
    """(row from 1, value) of one column, in constant memory."""
    return enumerate(chain.from_iterable(chunk[column] for chunk in chunks(table, [column])), 1)


def _read_file(path: Path, kind: str, split: str | None) -> "Dataset":
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    if not path.stat().st_size:
        raise DataError(f"{path} is empty")
    if split:
        raise DataError(f"{path} is a single file: it has no part '{split}'")
    if kind != "parquet":
        return _mapped(path, kind)
    return _load(str(path), None, path=kind, data_files=str(path), cache_dir=str(_kept(path)))


def _mapped(path: Path, kind: str) -> "Dataset":
    """The rows of a text file, mapped into memory; parsed once for each state of the file."""
    target = _kept(path) / f"{kind}.arrow"
    if not target.exists():
        write_arrow(path, kind, target)
    return _datasets().Dataset.from_file(str(target))


def _load(name: str, split: str | None, **arguments: Any) -> "Dataset":
    """`datasets.load_dataset`, with one line for whatever goes wrong in it."""
    try:
        parts = _datasets().load_dataset(**arguments)
    except (
        Exception
    ) as error:  # there is no common base: readers and hub clients raise what they like
        reason = first_line(error.__cause__ or error)
        if arguments["path"] != name:
            raise DataError(f"cannot read {name}: {reason}") from error
        raise DataError(f"'{name}' does not exist here, and not on the hub: {reason}") from error
    if split is None and len(parts) == 1:
        return next(iter(parts.values()))
    if split not in parts:
        known = ", ".join(f"{name}:{part}" for part in parts)
        raise DataError(f"{name} is in parts, so one has to be named: {known}")
    return parts[split]


def _datasets() -> Any:
    import datasets.config

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(
        datasets.logging.CRITICAL
    )  # an error is reported once, by the exception
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # reading a local file is nobody's business
    return datasets


def _kept(path: Path) -> Path:
    """The folder that keeps what was parsed of a file or folder in its present state.

    Size and modification time can survive an edit; the inode's change time can't. What was kept of
    an earlier state is removed: a process that still maps it keeps its pages.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    states = [(s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for s in map(Path.stat, files)]
    home = cache_folder() / "tables" / _digest(str(path.resolve()))
    folder = home / _digest(repr((VERSION, files, states)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"{error.strerror}: {error.filename}"
        raise OutputError(
            f"cannot keep what is parsed of {path} ({why}): point ADAPT_CACHE elsewhere"
        ) from None
    for other in home.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
