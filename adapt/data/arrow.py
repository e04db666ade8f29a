"""Text files to Arrow, strictly: what stands in a file is what comes out, and a fault is named by
its line.

`datasets` would read CSV through pandas, which guesses types, drops lines of white space, fills
short rows, and takes the first column for an index where rows are longer than the header; and JSON
by a reader that makes timestamps of texts that look like dates. `pyarrow.csv` can keep every cell
as text and number a ragged row, but it knows no lines, accepts stray quotes, and drops all blank
lines or makes rows of all, so that CSV is read by the standard library.
"""

import json
import numbers
import reprlib
import tempfile
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from adapt.data import conll, squad
from adapt.data.text_files import read_csv, text_lines
from adapt.errors import DataError, first_line
from adapt.files import parse_json
from adapt.options import Quoting

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 1000  # rows of a record batch
FAULTS = b"adapt.faults"  # of an Arrow schema: why columns can't be read, by name, as JSON
# What pyarrow raises for values that have no type together, ArrowInvalid and ArrowTypeError among
# them: UnicodeEncodeError for half a character, OverflowError for a number that is too large.
NOT_OF_ONE_TYPE = (ValueError, TypeError, OverflowError, NotImplementedError)
READABLE = (str, bytes, int, float, list, dict)  # types of values that a column can have
NOTES = ".notes"  # how the file with the notes of a table ends
T = TypeVar("T")
Object = dict[str, Any]  # of a JSON file


def write_arrow(path: Path, kind: str, target: Path, quoting: Quoting | None = None) -> None:
    """The rows of the file ``path``, of kind ``csv``, ``tsv``, ``conll``, ``json`` or ``lines``, as
    an Arrow file. ``target`` is there whole or not at all, and beside it the notes of
    :func:`read_notes`.

    Raises :class:`DataError` naming the line, or the rows, that can't be read.
    """
    import pyarrow as pa

    notes: list[str] = []
    if kind == "json":
        schema, batches = json_batches(path)
    elif kind == "lines":
        records = ([line] for line in text_lines(path))
        schema, batches = record_batches(chain([["text"]], records))
    elif kind == "conll":
        names, sentences = conll.read_conll(path, text_lines(path))
        schema, batches = record_batches(chain([names], sentences), pa.list_(pa.string()))
    else:
        faults: dict[str, str] = {}
        schema, batches = record_batches(read_csv(path, kind, quoting, notes, faults))
        schema = schema.with_metadata({FAULTS: json.dumps(faults)})
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        with pa.OSFile(f"{scratch}/rows", "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        if notes:
            Path(scratch, "notes").write_text("\n".join(notes), "utf-8")
            Path(scratch, "notes").replace(target.with_suffix(NOTES))
        Path(scratch, "rows").replace(target)


def read_notes(target: Path) -> list[str]:
    """What is to be said whenever a file that :func:`write_arrow` wrote is read."""
    path = target.with_suffix(NOTES)
    return path.read_text("utf-8").splitlines() if path.exists() else []


def record_batches(
    records: Iterator[list[Any]], kind: "pa.DataType | None" = None
) -> tuple["pa.Schema", Iterator["pa.RecordBatch"]]:
    """(schema, batches) of records of text, or of another kind, the first of which names the
    columns.
    """
    import pyarrow as pa

    kind = kind or pa.string()
    schema = pa.schema([(name, kind) for name in next(records)])

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in batched(records):
            columns = zip(*batch, strict=True)
            arrays = [pa.array(values, kind) for values in columns]
            yield pa.record_batch(arrays, schema=schema)

    return schema, batches()


def json_batches(path: Path) -> tuple["pa.Schema", Iterator["pa.RecordBatch"]]:
    """(schema, batches) of the objects of a JSON file.

    The file is read twice: once for the types of all columns, since only its last row may have a
    fraction, or a column, and once for the values. A column with a fault is left empty, and the
    schema says why: nobody may ask for it (:func:`read_faults`).
    """
    import pyarrow as pa

    types, faults = column_types(path)
    schema = pa.schema(list(types.items()), metadata={FAULTS: json.dumps(faults)})
    batches = (to_batch(objects, schema, faults) for objects in batched(read_json(path)))
    return schema, batches


def column_types(path: Path) -> tuple[dict[str, "pa.DataType"], dict[str, str]]:
    """(the types of the columns of a JSON file, why columns can't be read), by name.

    A column with a fault, whose values have no type together, is of type null. Raises
    :class:`DataError` for a name that UTF-8 can't write.
    """
    import pyarrow as pa

    types: dict[str, pa.DataType] = {}
    faults: dict[str, str] = {}
    long_numbers: dict[str, int] = {}  # the row of the first one, by column
    first_row = 1
    for objects in batched(read_json(path)):
        for name in dict.fromkeys(chain.from_iterable(objects)):
            if name in faults:
                continue
            if not is_text(name):
                raise DataError(
                    f"{path}: a row from {first_row} on has a column {name!r}, which holds half a "
                    "character: give it another name"
                )
            values = column_of(objects, name)
            place = long_number(values)
            if place is not None:
                long_numbers.setdefault(name, first_row + place)
            try:
                types[name] = type_with(types.get(name), values)
            except NOT_OF_ONE_TYPE as error:
                faults[name] = misfit(name, values, error, types.get(name), first_row)
                types[name] = pa.null()
        first_row += len(objects)
    for name, row in long_numbers.items():
        if pa.types.is_floating(types[name]):
            faults[name] = (
                f"row {row}: column '{name}' can't be read as {types[name]}: its whole number has "
                "more digits than one of those keeps"
            )
            types[name] = pa.null()
    return types, faults


def type_with(known: "pa.DataType | None", values: list[Any]) -> "pa.DataType":
    """The type of a column that is ``known`` from earlier rows and has these values, too. Raises
    one of NOT_OF_ONE_TYPE where there is none.
    """
    import pyarrow as pa

    check_truth_values(values)
    found = pa.array(values).type
    if known is None:
        return found
    schemas = [pa.schema([("", known)]), pa.schema([("", found)])]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def check_truth_values(values: Iterable[Any]) -> None:
    """Raise one of NOT_OF_ONE_TYPE where truth values stand among numbers: Arrow would make numbers
    of them wherever it meets a number first.
    """
    kinds = {type(value) for value in values}
    truths = {kind for kind in kinds if issubclass(kind, bool | np.bool_)}
    found_number = any(issubclass(kind, numbers.Number) for kind in kinds - truths)
    if truths and found_number:
        raise TypeError("truth values stand among numbers")


def long_number(values: list[Any]) -> int | None:
    """The place of the first whole number that float64 may not hold to its last digit, or None."""
    for place, value in enumerate(values):
        if type(value) is int and abs(value) > 2**53:
            return place
    return None


def first_misfit(known: "pa.DataType | None", values: Sequence[Any]) -> int:
    """The place of the first value that does not fit those before it."""
    low, high = 0, len(values)  # values[:high] do not fit together, values[:low] do
    while high - low > 1:
        middle = (low + high) // 2
        if fits(known, values[:middle]):
            low = middle
        else:
            high = middle
    return low


def fits(known: "pa.DataType | None", values: Sequence[Any]) -> bool:
    """Whether values have a type together with a column that is ``known`` from earlier rows."""
    try:
        type_with(known, list(values))
    except Exception:  # of Arrow, or of the library whose values these are
        return False
    return True


def misfit(
    name: str,
    values: Sequence[Any],
    error: Exception,
    known: "pa.DataType | None" = None,
    first_row: int = 1,
) -> str:
    """Why a column can't be read as one type: the first row that does not go with those before it.

    ``error`` is what Arrow said of these ``values``, the first of which is in ``first_row``;
    ``known`` is the type of the rows before.
    """
    if fits(known, values):
        return f"column '{name}' can't be read as one type: {first_line(error)}"
    place = first_misfit(known, values)
    said = f"row {first_row + place}: column '{name}' can't be read as one type"
    kind = type(values[place]).__name__
    value = f"{reprlib.repr(values[place])} is of type {kind}"
    before = enumerate(values[:place], first_row)
    row, earlier = next((pair for pair in before if pair[1] is not None), (0, None))
    other = type(earlier).__name__
    if row and other != kind:
        return (
            f"{said}: {value}, and row {row} has {reprlib.repr(earlier)} of type {other}: make all "
            "of them text, or all of them numbers"
        )
    if known is None and place == 0 and not isinstance(values[place], READABLE):
        return f"row {first_row}: column '{name}' can't be read: {value}: give text or numbers"
    return f"{said}: {first_line(error)}"


def read_faults(target: Path) -> dict[str, str]:
    """Why columns of a file that :func:`write_arrow` wrote can't be read, by their names."""
    import pyarrow as pa

    with pa.memory_map(str(target)) as source:
        metadata = pa.ipc.open_stream(source).schema.metadata or {}
    return json.loads(metadata.get(FAULTS, b"{}"))


def to_batch(
    objects: list[Object], schema: "pa.Schema", faults: Container[str]
) -> "pa.RecordBatch":
    """Objects as rows, with nulls for what an object lacks, and for all of a column with a fault."""
    import pyarrow as pa

    arrays = []
    for field in schema:
        if field.name in faults:
            arrays.append(pa.nulls(len(objects)))
            continue
        try:
            arrays.append(pa.array(column_of(objects, field.name), field.type))
        except NOT_OF_ONE_TYPE as error:
            raise DataError(
                f"column '{field.name}' can't be read as {field.type}: {first_line(error)}"
            ) from None
    return pa.record_batch(arrays, schema=schema)


def column_of(objects: list[Object], name: str) -> list[Any]:
    return [each.get(name) for each in objects]


def batched(values: Iterator[T], size: int = BATCH) -> Iterator[list[T]]:
    """The values in lists of ``size``, the last of which may be shorter."""
    while batch := list(islice(values, size)):
        yield batch


def read_json(path: Path) -> Iterator[Object]:
    """The objects of a file of JSON lines, of one JSON list, or of SQuAD."""
    lines = text_lines(path)
    first = next(lines, "")
    lines = chain([first], lines)
    if first.lstrip().startswith("["):
        yield from parse_list(path, "\n".join(lines))
    elif is_part_of_one(first):
        yield from parse_object(path, list(lines))
    else:
        yield from parse_lines(path, lines)


def is_part_of_one(first: str) -> bool:
    """Whether the first line of a file is no row: a part of an object, or one that holds rows, as
    SQuAD's does.
    """
    try:
        return squad.holds_rows(parse_json(first or "{}"))
    except json.JSONDecodeError:
        return bool(first.strip())
    except ValueError:  # of a whole line, which is read again and refused
        return False


def parse_object(path: Path, lines: list[str]) -> Iterator[Object]:
    """The rows of a file whose first line is no row: all of it may be one object, such as SQuAD's.

    Raises :class:`DataError` for another object, and for lines that are no JSON.
    """
    try:
        content = parse_json("\n".join(lines))
    except json.JSONDecodeError:
        content = None
    except ValueError as error:
        raise DataError(f"{path} can't be read: {error}") from error
    if squad.is_squad(content):
        yield from squad.squad_rows(path, content)
    elif isinstance(content, dict):
        raise squad.no_rows(path, content)
    else:
        yield from parse_lines(path, lines)


def parse_list(path: Path, text: str) -> Iterator[Object]:
    """The objects in the text of one JSON list."""
    try:
        entries = parse_json(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: line {error.lineno} is not JSON: {error.msg}") from error
    except ValueError as error:
        raise DataError(f"{path} can't be read: {error}") from error
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: entry {number} is not a JSON object")
        yield entry


def parse_lines(path: Path, lines: Iterable[str]) -> Iterator[Object]:
    """The objects of lines with one each; blank lines have none."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: line {number} is not JSON: {error.msg}") from error
        except ValueError as error:
            raise DataError(f"{path}: line {number} can't be read: {error}") from error
        if not isinstance(entry, dict):
            raise DataError(f"{path}: line {number} is not a JSON object")
        yield entry


def is_text(name: str) -> bool:
    """Whether UTF-8 can write a name: JSON may spell half of a character."""
    return not any("\ud800" <= sign <= "\udfff" for sign in name)
