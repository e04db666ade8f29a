"""Rows in: any data file, bundled set or hub name becomes one memory-mapped table with checked columns.

    train = read("reviews:train")                       # or a file, an image folder, a name on the hub
    check_texts(train, "text")
    for chunk in chunks(train, ["text"]): ...           # {"text": [...]}: constant memory

The only importer of `datasets`, and only inside functions, since that import takes a second. Rows are
counted from 1 in messages, as a person counts them, without the header.
"""

import csv
import hashlib
import json
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt import bundled
from adapt.assets import cache_folder, hub_answers
from adapt.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
VERSION = 1  # of what _kept() keeps: another one parses anew
csv.field_size_limit(2**31 - 1)  # the default refuses a text of more than 131,072 characters


@dataclass(frozen=True)
class Table:
    """Memory-mapped rows, and the name that a message calls them by."""

    rows: "Dataset"
    where: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def columns(self) -> list[str]:
        return self.rows.column_names

    def select(self, index: "Sequence[int] | np.ndarray") -> "Table":
        """The rows of `index` (integers [n], from 0), in that order, nothing copied.

        Check texts and encode labels before: afterwards, row numbers are those of the selection.
        """
        return Table(self.rows.select(index), self.where)


def read(spec: str | Path, *, split: str | None = None) -> Table:
    """A table from a file (.csv .tsv .json .jsonl .parquet), a folder of images, a bundled set (`reviews`,
    `trec`, `sms-spam`) or a dataset name on the hub; `name:split` is the same as `split`.

    Every CSV column is text, as it stands in the file: `007` and `NA` keep being `007` and `NA`. A file that
    changed is read anew, whatever its modification time says.

    Raises DataError: a missing, empty or unreadable file, a ragged row, an unknown name or split; AssetError.
    """
    name, _, part = (str(spec), "", "") if Path(spec).expanduser().exists() else str(spec).partition(":")
    split = split or part or None
    path = Path(name).expanduser()
    if name in bundled.SETS:
        rows = _datasets().Dataset.from_dict(bundled.read(name, split))
    elif path.is_dir():
        rows = _load(name, split, path="imagefolder", data_dir=str(path), cache_dir=str(_kept(path)))
    elif path.suffix.lower() in FORMATS:
        rows = _read_file(path, FORMATS[path.suffix.lower()], split)
    elif path.exists():
        raise DataError(f"{path} is of no known format; convert it to one of {', '.join(FORMATS)}")
    elif path.is_absolute() or name.count("/") > 1:
        raise DataError(f"{path} does not exist")
    elif "/" not in name:
        known = ", ".join(bundled.SETS)
        raise DataError(f"'{name}' is no file and no bundled set ({known}); on the hub, names are org/name")
    else:
        if not hub_answers():
            _datasets().config.HF_HUB_OFFLINE = True  # then only what its cache has
        rows = _load(name, split, path=name, cache_dir=str(cache_folder() / "datasets"))
    if not len(rows):
        raise DataError(f"{spec} has no rows")
    return Table(rows, str(spec))


def read_lines(path: str | Path) -> Table:
    """Plain UTF-8 text, one row a line, as a column `text`; blank lines are rows too. Raises DataError."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    rows = _write_arrow(path, "lines", chain([["text"]], _lines(path)))
    if not len(rows):
        raise DataError(f"{path} is empty")
    return Table(rows, str(path))


def chunks(table: Table, columns: Sequence[str], size: int = 1000) -> Iterator[dict[str, list]]:
    """The rows in order, `size` at a time, each column a list; only these columns are read and decoded.

    Raises DataError: a column that is not there, an image that can't be decoded.
    """
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise DataError(f"{table.where} has no column '{missing[0]}'; it has {', '.join(table.columns)}")
    rows = table.rows.select_columns(list(columns))
    for start in range(0, len(rows), size):
        try:
            chunk = rows[start : start + size]
        except Exception as error:  # Pillow raises what it likes: OSError, SyntaxError, DecompressionBombError
            stop = min(start + size, len(rows))
            raise DataError(f"{table.where}: rows {start + 1} to {stop}: {_first_line(error)}") from error
        yield chunk


def check_texts(table: Table, column: str) -> None:
    """Raises DataError where a row has no text: missing, empty, or white space alone."""
    blank, first = 0, 0
    for row, text in numbered(table, column):
        if text is not None and not isinstance(text, str):
            kind = type(text).__name__
            raise DataError(f"{table.where}: row {row} of column '{column}' is of type {kind}, not text")
        if not (text and text.strip()):
            blank, first = blank + 1, first or row
    if blank:
        more = f" (and {blank - 1} more)" if blank > 1 else ""
        raise DataError(f"{table.where}: row {first}{more} has no text in column '{column}'")


def numbered(table: Table, column: str) -> Iterator[tuple[int, Any]]:
    """(row from 1, value) of one column, in constant memory."""
    return enumerate(chain.from_iterable(chunk[column] for chunk in chunks(table, [column])), 1)


def _read_file(path: Path, kind: str, split: str | None) -> "Dataset":
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    if not path.stat().st_size:
        raise DataError(f"{path} is empty")
    if split:
        raise DataError(f"{path} is a single file: it has no part '{split}'")
    if kind == "csv":
        return _write_arrow(path, kind, _csv(path, "\t" if path.suffix.lower() == ".tsv" else ","))
    if kind == "json":
        deque(_lines(path), maxlen=0)  # the reader lets pass what is not UTF-8
    try:
        return _load(str(path), None, path=kind, data_files=str(path), cache_dir=str(_kept(path)))
    except DataError as error:
        raise (kind == "json" and _bad_json(path)) or error from error


def _load(name: str, split: str | None, **arguments: Any) -> "Dataset":
    """`datasets.load_dataset`, with one line for whatever goes wrong in it."""
    try:
        parts = _datasets().load_dataset(**arguments)
    except Exception as error:  # there is no common base: readers and hub clients raise what they like
        reason = _first_line(error.__cause__ or error)
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
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # an error is reported once, by the exception
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # reading a local file is nobody's business
    return datasets


def _write_arrow(path: Path, kind: str, records: Iterator[list[str]]) -> "Dataset":
    """The records of a text file, of which the first names the columns, as an Arrow file of strings.

    `datasets` would read CSV through pandas, which guesses types, drops lines of white space, fills short
    rows, and takes the first column for an index where rows are longer than the header.
    """
    import pyarrow as pa

    target = _kept(path) / f"{kind}.arrow"
    if not target.exists():
        schema = pa.schema([(name, pa.string()) for name in next(records)])
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            with pa.OSFile(f"{scratch}/rows", "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
                while batch := list(islice(records, 1000)):
                    columns = [pa.array(values, pa.string()) for values in zip(*batch, strict=True)]
                    writer.write_batch(pa.record_batch(columns, schema=schema))
            Path(scratch, "rows").replace(target)
    return _datasets().Dataset.from_file(str(target))


def _csv(path: Path, delimiter: str) -> Iterator[list[str]]:
    """Header, then rows, strictly: as many fields as the header names, closed quotes, exact strings."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        records = filter(None, reader)  # blank lines
        try:
            header = next(records, [])
            repeated = {name for name in header if header.count(name) > 1}
            if repeated:
                raise DataError(f"{path} names the column '{min(repeated)}' twice")
            yield header
            for number, record in enumerate(records, 1):
                if len(record) != len(header):
                    raise DataError(
                        f"{path}: row {number} (line {reader.line_num}) has {len(record)} fields, "
                        f"the header has {len(header)}"
                    )
                yield record
        except csv.Error as error:
            raise DataError(f"{path}: line {reader.line_num}: {error}; is a quote missing?") from error
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error


def _lines(path: Path) -> Iterator[list[str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from ([line.rstrip("\n")] for line in file)
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error


def _not_utf8(path: Path) -> DataError:
    with path.open("rb") as file:
        numbers = (n for n, line in enumerate(file, 1) if line.decode(errors="replace").encode() != line)
        return DataError(f"{path}: line {next(numbers)} is not UTF-8; convert the file with iconv")


def _bad_json(path: Path) -> DataError | None:
    """Where a file of JSON lines (or a JSON list) breaks, which the readers do not tell."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            whole, number = file.read(1) == "[", 0
            file.seek(0)
            if whole:
                json.load(file)
            for number, line in enumerate(file, 1):
                if line.strip() and not isinstance(json.loads(line), dict):
                    return DataError(f"{path}: line {number} is not a JSON object")
    except json.JSONDecodeError as error:
        return DataError(f"{path}: line {error.lineno if whole else number} is not JSON: {error.msg}")
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _kept(path: Path) -> Path:
    """The folder that keeps what was parsed of a file or folder in its present state.

    Size and modification time can survive an edit; the inode's change time can't. What was kept of an earlier
    state is removed: a process that still maps it keeps its pages.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    states = [(s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for s in map(Path.stat, files)]
    home = cache_folder() / "tables" / _digest(str(path.resolve()))
    folder = home / _digest(repr((VERSION, files, states)))
    folder.mkdir(parents=True, exist_ok=True)
    for other in home.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
