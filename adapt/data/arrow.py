"""Text files to Arrow, strictly: what stands in a file is what comes out, and a fault is named by
its line.

`datasets` would read CSV through pandas, which guesses types, drops lines of white space, fills
short rows, and takes the first column for an index where rows are longer than the header; and JSON
by a reader that makes timestamps of texts that look like dates.
"""

import csv
import json
import tempfile
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from adapt.errors import DataError

csv.field_size_limit(2**31 - 1)  # the default refuses a text of more than 131,072 characters


def write_arrow(path: Path, kind: str, target: Path) -> None:
    """The rows of the file ``path``, of kind ``csv``, ``tsv``, ``json`` or ``lines``, as an Arrow
    file, by rename.

    Raises :class:`DataError` naming the line, or the rows, that can't be read.
    """
    import pyarrow as pa

    if kind == "json":
        schema, batches = json_batches(path)
    elif kind == "lines":
        schema, batches = text_batches(chain([["text"]], ([line] for line in lines(path))))
    else:
        schema, batches = text_batches(records(path, "\t" if kind == "tsv" else ","))
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        with pa.OSFile(f"{scratch}/rows", "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        Path(scratch, "rows").replace(target)


def text_batches(rows: Iterator[list[str]]) -> tuple[Any, Iterator[Any]]:
    """Records of strings, of which the first names the columns."""
    import pyarrow as pa

    schema = pa.schema([(name, pa.string()) for name in next(rows)])
    columns = (
        list(zip(*batch, strict=True)) for batch in iter(lambda: list(islice(rows, 1000)), [])
    )
    return schema, (
        pa.record_batch([pa.array(values, pa.string()) for values in each], schema=schema)
        for each in columns
    )


def json_batches(path: Path) -> tuple[Any, Iterator[Any]]:
    """The objects of a JSON file, read twice: once for the types of all columns, once for the
    values.
    """
    import pyarrow as pa

    def batches(schema: Any = None) -> Iterator[Any]:
        objects = json_objects(path)
        row = 1
        while found := list(islice(objects, 1000)):
            try:
                names = schema or list(dict.fromkeys(chain.from_iterable(found)))
                columns = {
                    name: [each.get(name) for each in found]
                    for name in (schema.names if schema else names)
                }
                arrays = [
                    pa.array(v, schema.field(n).type if schema else None)
                    for n, v in columns.items()
                ]
                yield pa.record_batch(arrays, schema=schema, names=None if schema else names)
            except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
                where = f"{path}: rows {row} to {row + len(found) - 1}"
                raise DataError(f"{where}: a column mixes types: {first_line(error)}") from error
            row += len(found)

    try:
        schemas = [pa.schema([]), *(batch.schema for batch in batches())]
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"{path}: a column mixes types: {first_line(error)}") from error
    return schema, batches(schema)


def json_objects(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, or of one JSON list."""
    number = 0
    rest = lines(path)
    try:
        first = next(rest, "")
        if first.lstrip().startswith("["):
            for number, found in enumerate(json.loads("\n".join([first, *rest])), 1):
                if not isinstance(found, dict):
                    raise DataError(f"{path}: entry {number} is not a JSON object")
                yield found
            return
        for number, line in enumerate(chain([first], rest), 1):
            if line.strip():
                found = json.loads(line)
                if not isinstance(found, dict):
                    raise DataError(f"{path}: line {number} is not a JSON object")
                yield found
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: line {number or error.lineno} is not JSON: {error.msg}"
        ) from error


def records(path: Path, delimiter: str) -> Iterator[list[str]]:
    """Header, then rows, strictly: as many fields as the header names, closed quotes, exact
    strings.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(filter(None, reader), [])
            found = without_blank(reader, [""] if len(header) == 1 else [])
            repeated = {name for name in header if header.count(name) > 1}
            if repeated:
                raise DataError(f"{path} names the column '{min(repeated)}' twice")
            yield header
            for number, record in enumerate(found, 1):
                if len(record) != len(header):
                    raise DataError(
                        f"{path}: row {number} (line {reader.line_num}) has {len(record)} "
                        f"fields, the header has {len(header)}"
                    )
                yield record
        except csv.Error as error:
            raise DataError(
                f"{path}: line {reader.line_num}: {error}; is a quote missing?"
            ) from error
        except UnicodeDecodeError as error:
            raise not_utf8(path) from error


def without_blank(reader: Iterator[list[str]], instead: list[str]) -> Iterator[list[str]]:
    """Blank lines are dropped at the end; before it, ``instead`` stands for one: an empty text in a
    file of one column.
    """
    blank = 0
    for record in reader:
        if not record:
            blank += 1
            continue
        yield from filter(None, [instead] * blank)
        blank = 0
        yield record


def lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from (line.rstrip("\n") for line in file)
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error


def not_utf8(path: Path) -> DataError:
    with path.open("rb") as file:
        numbers = (
            n for n, line in enumerate(file, 1) if line.decode(errors="replace").encode() != line
        )
        return DataError(f"{path}: line {next(numbers)} is not UTF-8; convert the file with iconv")


def first_line(error: BaseException) -> str:
    """Of a message of another library, which may run over many."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
