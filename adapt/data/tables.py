"""Tables by name: a data file, an image folder, a bundled set or a data set of the hub becomes one
memory-mapped table with checked columns.

    train = read("train.csv")                           # or "reviews:train", or "org/name:train"
    check_texts(train, "text")
    for chunk in chunks(train, ["text"]): ...           # {"text": [...]}: constant memory

Modules of this room import `datasets` only inside functions, since that takes a second. Messages
count rows from 1, as a person does, without the header.
"""

import glob
import hashlib
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adapt import buckets, signatures
from adapt.data import bundled, conll, folders, misnamed
from adapt.data.arrow import check_truth_values, misfit, read_faults, read_notes, write_arrow
from adapt.data.decoding import decoded
from adapt.data.formats import FORMATS, ending_of, format_of, is_compressed
from adapt.data.text_files import QUOTING, repeated_names, text_lines
from adapt.errors import DataError, OutputError, StrategyError, first_line
from adapt.files import is_remote
from adapt.options import Quoting, is_of, wanted
from adapt.pretrained.assets import cache_folder, is_hub_reachable

if TYPE_CHECKING:
    from datasets import Dataset, Features

logger = logging.getLogger(__name__)

PARQUET = b"PAR1"  # how such a file begins
FILE = "file"  # the column of a folder of pictures that says which file a row is
VERSION = 6  # of what parsed_folder() keeps: after a change of it, files are parsed anew


@dataclass(frozen=True)
class Table:
    """Memory-mapped rows, and the name that messages call them by."""

    rows: "Dataset"
    name: str
    faults: Mapping[str, str] = field(default_factory=dict)  # why columns can't be read, by name
    files: Sequence[Path] = ()  # where rows come from, in the order of the rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def columns(self) -> list[str]:
        return self.rows.column_names

    def select(self, index: Sequence[int] | np.ndarray) -> "Table":
        """The rows of ``index`` (integers [n], from 0), in that order, nothing copied.

        Check texts and encode labels before: afterwards, row numbers are those of the selection.
        """
        return replace(self, rows=self.rows.select(index))


def read(spec: str | Path, split: str | None = None, quoting: Quoting | None = None) -> Table:
    """A table from a file (.csv .tsv .tab .json .jsonl .parquet .conll), several of them by a
    pattern, a folder (of pictures, of the shards of a table, or one that `save_to_disk` wrote), a
    bundled set, or a data set on the hub. ``name:split`` is the same as ``split``.

        read("train.csv.gz")
        read("data/train-*.parquet")    # one after the other, by their names
        read("reviews", "test")         # of adapt.data.bundled: the same as reviews:test
        read("org/name:validation")     # of the hub

    A file or a folder comes before a bundled set of the same name; one in a bucket, ``gs://...``,
    is copied into the cache first. Every CSV column is text, as it stands in the file: ``007`` and
    ``NA`` keep being ``007`` and ``NA``. A file that changed is read anew, whatever its
    modification time says. ``quoting`` is what quotation marks are: ``csv``, they hold a field
    together, or ``none``, text; by default ``csv`` of .csv files and ``none`` of .tsv files, and a
    note is logged where the other reading is possible.

    Raises :class:`DataError` for a missing, empty or unreadable file, a ragged row, an unknown name
    or split; :class:`AssetError` where a bundled set can't be fetched.
    """
    check_quoting(quoting)
    if is_remote(spec):
        if glob.has_magic(str(spec)):
            raise DataError(f"{spec}: patterns are of local files: name a file or a folder")
        local = buckets.download(str(spec), cache_folder() / "buckets")
        with buckets.errors_name(spec):
            return replace(read(local, split, quoting), name=str(spec))
    name = str(spec)
    if not Path(name).expanduser().exists():
        name, _, part = name.partition(":")
        split = split or part or None
    if not name:
        raise DataError(f"'{spec}' names no file, no bundled set and no data set of the hub")
    table = read_name(name, split, quoting)
    if not len(table):
        raise DataError(f"{spec} has no rows")
    return replace(table, name=str(spec))


def check_quoting(quoting: Any) -> None:
    """Raise :class:`StrategyError` for what is no way to read quotation marks."""
    if quoting is not None and not is_of(quoting, Quoting):
        raise StrategyError(f"`quoting` is {quoting!r}: {wanted(Quoting)}")


def read_name(name: str, split: str | None, quoting: Quoting | None = None) -> Table:
    """The rows of files, a folder of images, a bundled set, or a data set on the hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        return read_folder(path, split, quoting)
    if glob.has_magic(name) and not path.exists():
        return read_pattern(name, split, quoting)
    kind = format_of(path)
    if kind is not None:
        return read_file(path, kind, split, quoting)
    if ending_of(path) == ".txt" and path.is_file() and conll.is_conll(text_lines(path)):
        return read_file(path, "conll", split)
    if path.exists():
        raise no_known_format(path)
    if name in bundled.SETS:
        return Table(import_datasets().Dataset.from_dict(bundled.read(name, split)), name)
    if path.is_absolute() or name.count("/") > 1:
        raise DataError(f"{path} does not exist")
    if "/" not in name:
        raise DataError(
            f"'{name}' is no file and no bundled set ({', '.join(bundled.SETS)}); on the hub, "
            "names are org/name"
        )
    if not is_hub_reachable():
        import_datasets().config.HF_HUB_OFFLINE = True  # then only what its cache has
    rows = load_dataset(name, split, path=name, cache_dir=str(cache_folder() / "datasets"))
    return Table(rows, name)


def no_known_format(path: Path) -> DataError:
    """The error of a file that no reader is for by its name, with what it is by its content."""
    head = signatures.head_of(path)
    what = signatures.stand_in(head) if is_compressed(path) else signatures.no_text(head)
    mend = f": {what}" if what else ""
    if what is None and ending_of(path) == ".txt":
        mend = misnamed.mend(path, None)
    return DataError(
        f"{path} is of no known format; convert it to one of {', '.join(FORMATS)}{mend}"
    )


def matching_files(name: str) -> list[Path]:
    """The files that a pattern such as ``data/train-*.csv`` matches, by their names; [] of what is
    no pattern.
    """
    if not glob.has_magic(name):
        return []
    found = glob.glob(str(Path(name).expanduser()), recursive=True)
    return [Path(path) for path in sorted(found) if Path(path).is_file()]


def read_pattern(name: str, split: str | None, quoting: Quoting | None) -> Table:
    """The rows of all files that a pattern matches. Raises :class:`DataError` where there is none."""
    files = matching_files(name)
    if not files:
        raise DataError(f"no file matches {name}")
    if split:
        raise DataError(f"{name} is a pattern of files: it has no part '{split}'")
    return read_shards(Path(name), files, quoting)


def read_folder(path: Path, split: str | None, quoting: Quoting | None = None) -> Table:
    """The rows of a folder: what `datasets` saved, the shards of a table, or pictures."""
    if (path / folders.SAVED_PARTS).is_file() or (path / folders.SAVED_TABLE).is_file():
        return Table(read_saved(path, split), str(path))
    if folders.table_files(path):
        return read_shards(path, folders.shards(path, split), quoting)
    part = folders.part_folder(path, split)
    if part != path:
        return read_folder(part, None, quoting)
    return from_columns(folders.picture_columns(path), str(path), "image")


def read_shards(where: Path, files: Sequence[Path], quoting: Quoting | None) -> Table:
    """The rows of all files, one after the other. A column that can't be read in one of them, that
    one of them lacks, or whose types do not go together, is left out, and nobody may ask for it.
    """
    parts = [read_name(str(path), None, quoting) for path in files]
    faults = {}
    for path, part in zip(files, parts, strict=True):
        for name, fault in part.faults.items():
            faults.setdefault(name, f"{path.name}: {fault}")
    rows, misfits = folders.joined(where, files, [part.rows for part in parts], faults)
    return Table(rows, str(where), misfits | faults, files)


def read_saved(path: Path, split: str | None) -> "Dataset":
    """What `save_to_disk` wrote. Raises :class:`DataError` for what can't be read, and where a part
    has to be named.
    """
    for file in sorted([*path.rglob("*.arrow"), *path.rglob("*.json")]):
        check_is_fetched(file)
    datasets = import_datasets()
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # of Arrow, of JSON
        raise DataError(f"cannot read {path}: {first_line(error)}") from error
    if isinstance(saved, datasets.Dataset):
        if split:
            raise DataError(f"{path} is a single table: it has no part '{split}'")
        return saved
    return folders.one_part(path, saved, split)


def check_is_fetched(file: Path) -> None:
    """Raise :class:`DataError` where another file was fetched in place of one that is no text."""
    what = signatures.stand_in(signatures.head_of(file))
    if what is not None:
        raise DataError(f"cannot read {file}: {what}")


def from_columns(
    columns: Mapping[str, Sequence[Any]], where: str, image_column: str | None = None
) -> Table:
    """A table of columns in memory, equally long; ``where`` is what messages call it.

    ``image_column`` holds pictures: PIL's, paths, or arrays uint8. A column whose values are of
    several types is nulls, and a fault of the table: nobody may ask for it.
    """
    datasets = import_datasets()
    content = {}
    faults = {}
    for name, values in columns.items():
        try:
            if name != image_column:
                check_truth_values(values)
            feature = datasets.Image() if name == image_column else None
            part = datasets.Dataset.from_dict(
                {name: list(values)}, datasets.Features({name: feature}) if feature else None
            )
        except Exception as error:  # of Arrow, or of the library whose values these are
            faults[name] = misfit(name, values, error)
            if name == image_column:  # whose values are of several types in good data, too
                faults[name] = f"column '{name}' can't be read as one type: {first_line(error)}"
            part = datasets.Dataset.from_dict({name: [None] * len(values)})
        content[name] = part
    return Table(datasets.concatenate_datasets(list(content.values()), axis=1), where, faults)


def with_column(table: Table, name: str, values: Sequence[Any]) -> Table:
    """The table with a column of these values, one a row, in place of one of the same name.

    As in :func:`from_columns`, one of several types is nulls, and a fault of the table.
    """
    rows = table.rows
    if name in table.columns:
        rows = rows.remove_columns(name)
    faults = {column: fault for column, fault in table.faults.items() if column != name}
    content = list(values)
    try:
        check_truth_values(content)
        added = rows.add_column(name, content)  # pyright: ignore[reportCallIssue]
    except Exception as error:  # of Arrow, or of the library whose values these are
        faults[name] = misfit(name, content, error)
        added = rows.add_column(name, [None] * len(content))  # pyright: ignore[reportCallIssue]
    return replace(table, rows=added, faults=faults)


def read_lines(path: str | Path) -> Table:
    """Plain UTF-8 text as a column ``text``, one row a line, blank lines too.

    Raises :class:`DataError` for a file that is missing, empty, or not UTF-8.
    """
    if is_remote(path):
        local = buckets.download(str(path), cache_folder() / "buckets")
        with buckets.errors_name(path):
            return replace(read_lines(local), name=str(path))
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    rows, _ = map_text_file(path, "lines")
    if not len(rows):
        raise DataError(f"{path} is empty")
    return Table(rows, str(path))


def chunks(table: Table, columns: Sequence[str], size: int = 1000) -> Iterator[dict[str, list]]:
    """The rows in order, ``size`` at a time, each column a list. Only these columns are read and
    decoded.

    Raises :class:`DataError` for a column that is not there, and an image that can't be decoded.
    """
    for column in columns:
        check_column(table, column)
    rows = table.rows.select_columns(list(columns))
    image = import_datasets().Image
    pictures = {
        name: feature for name, feature in rows.features.items() if isinstance(feature, image)
    }
    for name in pictures:
        rows = rows.cast_column(name, image(decode=False))
    for start in range(0, len(rows), size):
        try:
            chunk = rows[start : start + size]
            for name, feature in pictures.items():
                chunk[name] = [decoded(entry, feature) for entry in chunk[name]]
        except Exception as error:
            # Pillow raises what it likes: OSError, SyntaxError, DecompressionBombError.
            stop = min(start + size, len(rows))
            raise DataError(
                f"{table.name}: rows {start + 1} to {stop}: {first_line(error)}"
            ) from error
        yield chunk


def check_column(table: Table, column: str) -> None:
    """Raise :class:`DataError` for a column that is not there, or whose values have no type
    together.
    """
    if column in table.faults:
        raise DataError(f"{table.name}: {table.faults[column]}")
    if column not in table.columns:
        known = ", ".join(map(shown_name, table.columns))
        mend = mend_of_names(table.columns, column)
        if not mend and table.files:
            mend = misnamed.mend(table.files[0], format_of(table.files[0]))
        raise DataError(f"{table.name} has no column '{column}'; it has {known}{mend}")


def mend_of_names(columns: Sequence[str], column: str) -> str:
    """What an error adds where there is the ``column`` but for blanks around its name."""
    for name in columns:
        if name != column and name.strip() == column:
            return (
                f": {shown_name(name)} has blanks around it: delete them in the header, or give "
                "the name with them"
            )
    return ""


def shown_name(column: str) -> str:
    """The name of a column, with escapes where it has what a person does not see."""
    return column if column.isprintable() and column == column.strip() else ascii(column)


def numbered_values(table: Table, column: str) -> Iterator[tuple[int, Any]]:
    """(row from 1, value) of one column, in constant memory."""
    values = chain.from_iterable(chunk[column] for chunk in chunks(table, [column]))
    return enumerate(values, 1)


def check_texts(table: Table, column: str, may_be_blank: bool = False) -> None:
    """Raise :class:`DataError` where a row has no text: missing, empty, or white space alone, unless
    it ``may_be_blank``.
    """
    num_blank = 0
    first_blank = 0
    for row, text in numbered_values(table, column):
        if text is not None and not isinstance(text, str):
            kind = type(text).__name__
            raise DataError(
                f"{table.name}: row {row} of column '{column}' is of type {kind}, not text"
            )
        if not text or not text.strip():
            num_blank += 1
            first_blank = first_blank or row
    if num_blank and not may_be_blank:
        more = f" (and {num_blank - 1} more)" if num_blank > 1 else ""
        raise DataError(f"{table.name}: row {first_blank}{more} has no text in column '{column}'")


def text_chunks(table: Table, column: str) -> Iterator[list[str]]:
    """The texts of a column in order, some thousand at a time; :func:`check_texts` sees all of them
    first.
    """
    check_texts(table, column)
    return (chunk[column] for chunk in chunks(table, [column], 4096))


def read_file(path: Path, kind: str, split: str | None, quoting: Quoting | None = None) -> Table:
    """The rows of a data file of kind ``csv``, ``tsv``, ``conll``, ``json`` or ``parquet``."""
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    if not path.stat().st_size:
        raise DataError(f"{path} is empty")
    if split:
        raise DataError(f"{path} is a single file: it has no part '{split}'")
    if kind == "parquet":
        return read_parquet(path)
    rows, faults = map_text_file(path, kind, quoting if kind in QUOTING else None)
    return Table(rows, str(path), faults, [path])


def read_parquet(path: Path) -> Table:
    """The rows of a Parquet file, without the columns of types that `datasets` does not have, and of
    names that are there twice.

    Raises :class:`DataError` for what can't be read.
    """
    head = signatures.head_of(path)
    what = None if head.startswith(PARQUET) else signatures.no_text(head)
    if what is not None:
        raise DataError(f"cannot read {path}: {what}")
    try:
        features, faults = parquet_columns(path)
    except DataError as error:
        raise misnamed.with_mend(error, path, "parquet") from error
    arguments: dict[str, Any] = {}
    if faults:
        arguments = {"columns": list(features), "features": features}
    cache = str(parsed_folder(path))
    rows = load_dataset(
        str(path), None, path="parquet", data_files=str(path), cache_dir=cache, **arguments
    )
    return Table(rows, str(path), faults)


def parquet_columns(path: Path) -> tuple["Features", dict[str, str]]:
    """(the columns of a Parquet file that `datasets` has types for, why the others can't be read).

    Columns of one name can't be read either. Raises :class:`DataError` where no column is left, and
    for a file that is none.
    """
    import pyarrow as pa
    from pyarrow import parquet

    datasets = import_datasets()
    try:
        schema = parquet.read_schema(path)
    except (OSError, ValueError) as error:  # of Arrow
        raise DataError(f"cannot read {path}: {first_line(error)}") from error
    features = datasets.Features()
    faults = repeated_names(schema.names)
    for column in schema:
        if column.name in faults:
            continue
        try:
            features |= datasets.Features.from_arrow_schema(pa.schema([column]))
        except Exception:  # `datasets` raises what it likes
            faults[column.name] = (
                f"column '{column.name}' is of the type {column.type}: write another"
            )
    if faults and not features:
        raise DataError(f"{path}: {next(iter(faults.values()))}")
    return features, faults


def map_text_file(
    path: Path, kind: str, quoting: Quoting | None = None
) -> tuple["Dataset", dict[str, str]]:
    """(the rows of a text file, mapped into memory; why columns can't be read, by name). It is
    parsed once for each state that it has.

    Logs what is to be said of its quotation marks.
    """
    name = kind if quoting is None else f"{kind}-{quoting}"
    target = parsed_folder(path) / f"{name}.arrow"
    if not target.exists():
        try:
            write_arrow(path, kind, target, quoting)
        except DataError as error:
            raise misnamed.with_mend(error, path, kind) from error
    for note in read_notes(target):
        logger.warning(note)
    return import_datasets().Dataset.from_file(str(target)), read_faults(target)


def load_dataset(name: str, split: str | None, **arguments: Any) -> "Dataset":
    """One part of `datasets.load_dataset(**arguments)`, which messages call ``name``.

    Raises :class:`DataError` for whatever goes wrong in it, and where a part has to be named.
    """
    try:
        parts = import_datasets().load_dataset(**arguments)
    except Exception as error:
        # There is no common base: readers and clients of the hub raise what they like.
        reason = first_line(error.__cause__ or error)
        if arguments["path"] != name:
            raise DataError(f"cannot read {name}: {reason}") from error
        raise DataError(f"'{name}' does not exist here, and not on the hub: {reason}") from error
    return folders.one_part(name, parts, split)


def import_datasets() -> Any:
    """The module `datasets`, silent: an error is reported once, by the exception."""
    import datasets.config

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # reading a local file is nobody's business
    return datasets


def parsed_folder(path: Path) -> Path:
    """The folder that keeps what was parsed of a file or folder in its present state.

    Size and modification time can survive an edit; the inode's change time can't. What was kept of
    an earlier state is removed: a process that still maps it keeps its pages.

    Raises :class:`OutputError` where the cache can't be written.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    states = []
    for file in files:
        stat = file.stat()
        states.append((stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))
    home = cache_folder() / "tables" / short_digest(str(path.resolve()))
    folder = home / short_digest(repr((VERSION, files, states)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}"
        raise OutputError(
            f"cannot keep what is parsed of {path} ({reason}): point ADAPT_CACHE elsewhere"
        ) from None
    for other in home.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def short_digest(text: str) -> str:
    """16 hexadecimal digits of the text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
