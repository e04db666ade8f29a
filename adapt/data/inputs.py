"""What people hold, as a table: lists, arrays, pandas, ``datasets``, a dict of columns, or a file.

    make_table(["a good film", "a dull one"], ["good", "bad"], Columns())     # text, label
    make_table("reviews.csv", None, Columns(label="stars"))                   # that file's columns

The table then goes the way of every file, through the same checks.
"""

import dataclasses
import functools
import math
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapt.data import bundled, squad, tables
from adapt.data.labels import column_names
from adapt.data.tables import Table
from adapt.data.text_files import repeated_names
from adapt.errors import DataError, StrategyError
from adapt.options import LabelledColumnOptions, Offsets, Quoting, is_of, wanted

# What messages and config.json call data that have no name.
IN_MEMORY = {
    "train": "the training data",
    "validation": "the validation data",
    "test": "the test data",
}


@dataclasses.dataclass(frozen=True)
class GivenAgain:
    """Stands in the arguments of a run for what it does not keep, such as data that were in memory.

    A call that gets one is refused, by the argument's name and this reason.
    """

    reason: str

    def __repr__(self) -> str:
        return f"<{self.reason}: give it again>"


def check_given(**arguments: Any) -> None:
    """Raise :class:`StrategyError` for an argument of a run that has to be given again."""
    for name, value in arguments.items():
        if isinstance(value, GivenAgain):
            raise StrategyError(f"`{name}`: {value.reason}: give it again")


SHORT_FLOATS = ("float16", "float32")
PAIR = "text_pair"  # the column of the second texts, and of further ones text_pair_2 and so on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """How a table is read: by which columns, and what their values mean.

    ``text_pair`` and ``label`` may name several columns: ``a,b``. ``offsets`` is what the offsets
    of spans count, ``quoting`` what quotation marks of CSV and TSV files are.
    """

    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    image: str | None = None
    weight: str | None = None
    offsets: Offsets = "characters"
    quoting: Quoting | None = None

    def __post_init__(self) -> None:
        if not is_of(self.offsets, Offsets):
            raise StrategyError(f"`offsets` is {self.offsets!r}: {wanted(Offsets)}")
        tables.check_quoting(self.quoting)
        for name in ("text", "text_pair", "label", "image", "weight"):
            column = getattr(self, name)
            is_left_out = column is None and name not in ("text", "label")
            if not isinstance(column, str) and not is_left_out:
                raise StrategyError(
                    f"`{name}_column` is {column!r}: give the name of a column as text, of "
                    "several 'a,b'"
                )

    @classmethod
    def of(cls, options: LabelledColumnOptions) -> "Columns":
        """The columns that the options of a run name."""
        return cls(
            text=options.text_column,
            text_pair=options.text_pair_column,
            label=options.label_column,
            image=options.image_column,
            weight=getattr(options, "weight_column", None),
            offsets=getattr(options, "offsets", "characters"),
            quoting=options.quoting,
        )

    @property
    def texts(self) -> list[str]:
        """The columns of the texts of a row."""
        further = column_names(self.text_pair) if self.text_pair else []
        return [self.text, *further]


def make_table(
    inputs: Any,
    labels: Any,
    columns: Columns,
    *,
    are_images: bool = False,
    are_words: bool = False,
    name: str = "the data",
    parameter: str = "texts",
) -> tuple[Table, Columns]:
    """(a table of inputs with their labels, the columns in which they are).

    ``inputs`` are a sequence, or a table: a file, a bundled or hub set by name, a DataFrame, a
    ``datasets.Dataset``, a dict of columns, a list of rows (dicts), or SQuAD's object. A sequence
    holds texts; tuples of texts, where a row has several; lists of words with ``are_words``;
    pictures (PIL, paths, uint8 arrays) with ``are_images``. ``labels`` are a sequence, a dict of
    several, the name of a column of the table, or None: the column ``columns.label``, or no labels
    at all. ``name`` is what messages call the table, ``parameter`` the parameter.

    Raises DataError for anything that is not exactly one of these, and for pandas objects that would
    be paired wrongly, see :func:`check_same_order`.
    """
    check_same_order(**{parameter: inputs, "labels": labels})
    if is_table(inputs):
        table = read_table(inputs, name, parameter, columns.quoting)
        return add_labels(table, labels, columns, parameter)

    picture_column = None
    if are_images:
        picture_column = columns.image or "image"
        columns = dataclasses.replace(columns, image=picture_column)
        content = {picture_column: as_pictures(inputs, parameter)}
    elif are_words:
        content = {columns.text: [as_words(value) for value in as_list(inputs, parameter)]}
    else:
        content, columns = text_columns(as_list(inputs, parameter), columns, parameter)
    if isinstance(labels, str):
        raise DataError(
            f"`labels` is the string {shortened_repr(labels)}: give a list with a label for each of "
            f"`{parameter}`"
        )
    if labels is not None:
        added, columns = label_columns(labels, columns)
        taken = [column for column in added if column in content]
        if taken:
            raise DataError(
                f"`labels` have the column '{taken[0]}', which holds `{parameter}`: give "
                "another name"
            )
        content |= added
    check_lengths(content, parameter)
    table = tables.from_columns(content, name, picture_column)
    for column in content:
        tables.check_column(table, column)
    return table, columns


def add_labels(
    table: Table, labels: Any, columns: Columns, parameter: str
) -> tuple[Table, Columns]:
    """(the table with its labels, the columns in which they are).

    ``labels`` name a column of it, or become columns of it; None: it has them already.
    """
    if labels is None:
        return table, columns
    if isinstance(labels, str):
        return table, dataclasses.replace(columns, label=labels)
    added, columns = label_columns(labels, columns)
    taken = [column for column in added if column in table.columns]
    if taken:
        raise DataError(
            f"`labels` are given, and {table.name} has a column '{taken[0]}': name the column "
            "as `labels`, or leave it out"
        )
    rows_of_table = dict.fromkeys(table.columns, range(len(table)))
    check_lengths({**rows_of_table, **added}, parameter)
    for column, values in added.items():
        table = tables.with_column(table, column, values)
    return table, columns


def is_table(inputs: Any) -> bool:
    """Whether ``inputs`` have columns of their own, or name something that has."""
    if isinstance(inputs, str | Path | Table | Mapping):
        return True
    return is_dataset(inputs) or is_frame(inputs) or is_rows(inputs)


def is_rows(value: Any) -> bool:
    """Whether a value is a list of rows, each a dict by column."""
    is_list = isinstance(value, list | tuple) and len(value) > 0
    return is_list and all(isinstance(row, Mapping) for row in value)


def columns_of_rows(rows: Sequence[Mapping[Any, Any]]) -> dict[str, list]:
    """Rows by column; what a row does not have is None."""
    names = dict.fromkeys(str(name) for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def is_dataset(value: Any) -> bool:
    """Whether a value is of ``datasets``: one set, or a dict of several."""
    return hasattr(value, "column_names") and hasattr(value, "select_columns")


def is_frame(value: Any) -> bool:
    return hasattr(value, "columns") and hasattr(value, "iloc")


def read_table(inputs: Any, name: str, parameter: str, quoting: Quoting | None = None) -> Table:
    """The table that ``inputs`` are or name."""
    if isinstance(inputs, Table):
        return inputs
    if isinstance(inputs, str | Path):
        return read_named(inputs, parameter, quoting=quoting)
    if is_dataset(inputs):
        if isinstance(inputs.column_names, Mapping):  # a DatasetDict
            parts = ", ".join(inputs)
            raise DataError(f"`{parameter}` has the parts {parts}: give one of them")
        if not hasattr(inputs, "__len__"):
            raise DataError(f"`{parameter}` is a stream of rows: give a data set in memory")
        if inputs.format["type"] != "custom":  # one that computes what is read stays
            inputs = inputs.with_format(None)
        return Table(inputs, name)
    if squad.is_squad(inputs):
        inputs = squad.squad_rows(name, inputs)
    if is_rows(inputs):
        return tables.from_columns(columns_of_rows(inputs), name)
    faults: dict[str, str] = {}
    if is_frame(inputs):
        content, faults = columns_of_frame(inputs, parameter)
    else:
        content = {str(column): as_list(values, str(column)) for column, values in inputs.items()}
    check_lengths(content, parameter)
    table = tables.from_columns(content, name)
    return dataclasses.replace(table, faults={**table.faults, **faults})


def columns_of_frame(frame: Any, parameter: str) -> tuple[dict[str, list], dict[str, str]]:
    """(a DataFrame by column, why columns can't be read, by name): those of one name can't.

    Raises DataError where no column is left.
    """
    faults = repeated_names([str(column) for column in frame.columns])
    content = {}
    for column in frame.columns:
        if str(column) not in faults:
            content[str(column)] = as_list(frame[column], str(column))
    if faults and not content:
        raise DataError(f"`{parameter}`: {next(iter(faults.values()))}")
    return content, faults


def read_named(
    name: str | Path, parameter: str, split: str | None = None, quoting: Quoting | None = None
) -> Table:
    """A table by name. A sentence in its place gets an error that says so."""
    is_blank = isinstance(name, str) and (not name or " " in name)
    if is_blank and not Path(name).exists() and not tables.matching_files(str(name)):
        raise DataError(
            f"`{parameter}` is the string {shortened_repr(name)}, which is no file: give the "
            "name of a file, or in Python a list of texts"
        )
    return tables.read(name, split, quoting)


@dataclasses.dataclass(frozen=True)
class Part:
    """A table and the columns of it that are read."""

    table: Table
    columns: Columns


def make_parts(
    inputs: Any,
    labels: Any,
    columns: Columns,
    *,
    validation: Any = None,
    test: Any = None,
    are_images: bool = False,
    are_words: bool = False,
) -> dict[str, Part]:
    """The parts ``train``, and ``validation`` and ``test`` where there are such.

    ``validation`` and ``test`` are tuples ``(inputs, labels)``, or inputs alone. A bundled set by
    its name is its train part, and tests on its own test part. Raises DataError for what can't be
    read, StrategyError for a validation set that is trained or tested on.
    """
    if isinstance(inputs, str) and inputs in bundled.SETS:
        test = inputs if test is None else test
    whole_sets = [name for name in (inputs, test) if isinstance(name, str) and name in bundled.SETS]
    if isinstance(validation, str) and validation in whole_sets:
        raise StrategyError(
            f"`validation` {validation} is the whole set, with what is trained and tested on: "
            "leave it out for 10% of what is trained on, or name other data"
        )
    read = functools.partial(make_table, are_images=are_images, are_words=are_words)
    inputs = by_part(inputs, "train", "inputs")
    table, columns = read(inputs, labels, columns, name=IN_MEMORY["train"], parameter="inputs")
    train = Part(table, columns)
    parts = {"train": train}
    for name, data in (("validation", validation), ("test", test)):
        if data is None:
            continue
        some_inputs, some_labels = inputs_and_labels(data, name)
        some_inputs = by_part(some_inputs, name, name)
        table, columns = read(
            some_inputs, some_labels, train.columns, name=IN_MEMORY[name], parameter=name
        )
        parts[name] = Part(table, columns)
        check_same_texts(parts[name], parts["train"], name)
    return parts


def inputs_and_labels(data: Any, parameter: str) -> tuple[Any, Any]:
    """The two of a tuple ``(inputs, labels)``; anything else is inputs, and has no labels beside."""
    if not isinstance(data, tuple):
        return data, None
    if len(data) != 2:
        raise DataError(f"`{parameter}` is a tuple of {len(data)}: give (inputs, labels)")
    return data


def check_same_texts(part: Part, train: Part, name: str) -> None:
    """Raise StrategyError where an example of a part has more texts than a training example."""
    count = len(part.columns.texts)
    trained = len(train.columns.texts)
    if count != trained:
        raise StrategyError(
            f"an example of `{name}` has {count} texts, and one that is trained on {trained}: "
            "every example needs as many (inputs and labels go into a tuple)"
        )


def by_part(inputs: Any, part: str, parameter: str) -> Any:
    """The same inputs; the name of a bundled set becomes its train or test part."""
    if part != "validation" and isinstance(inputs, str) and inputs in bundled.SETS:
        return read_named(inputs, parameter, part)
    return inputs


def text_columns(
    values: Sequence[Any], columns: Columns, parameter: str
) -> tuple[dict[str, list], Columns]:
    """(texts by column, the columns): one, or with tuples of texts as many as a tuple has."""
    widths = {len(value) for value in values if isinstance(value, tuple | list)}
    if not widths:
        if columns.text_pair:
            raise DataError(
                f"`{parameter}`[0] is one text, and an example here has "
                f"{len(columns.texts)}: give tuples of texts"
            )
        return {columns.text: list(values)}, columns
    rows = [flat_tuple(value) for value in values]
    width = len(rows[0])
    for row, texts in enumerate(rows):
        if len(texts) != width:
            raise DataError(
                f"`{parameter}`[{row}] has {len(texts)} texts and `{parameter}`[0] {width}: "
                "every example needs as many"
            )
    further = [PAIR, *(f"{PAIR}_{number}" for number in range(2, width))][: width - 1]
    if columns.text_pair:
        further = columns.texts[1:]
        if len(further) != width - 1:
            raise DataError(
                f"`text_pair_column` names {len(further)} columns, and an example of "
                f"`{parameter}` has {width - 1} further texts"
            )
    content = dict(zip([columns.text, *further], map(list, zip(*rows, strict=True)), strict=True))
    return content, dataclasses.replace(columns, text_pair=",".join(further) or None)


def flat_tuple(value: Any) -> tuple[Any, ...]:
    """The texts of an example: ``(question, [choice, choice])`` as ``(question, choice, choice)``."""
    if not isinstance(value, tuple | list):
        return (value,)
    if len(value) == 2 and isinstance(value[1], tuple | list):
        return (value[0], *value[1])
    return tuple(value)


def label_columns(labels: Any, columns: Columns) -> tuple[dict[str, list], Columns]:
    """(labels by column, the columns): one, or several of a dict or a DataFrame."""
    if isinstance(labels, Mapping) or is_frame(labels):
        names = [str(name) for name in labels]
        content = {str(name): as_list(labels[name], f"labels[{name!r}]") for name in labels}
        return content, dataclasses.replace(columns, label=",".join(names))
    return {columns.label: as_list(labels, "labels")}, columns


def as_list(values: Any, name: str) -> list:
    """The values of a sequence, an array or a Series, in order; what is missing is None.

    A row of an array [N, K] becomes a list of K. ``name`` is what messages call the values.
    Raises DataError for a string, a number, or what has no order.
    """
    if isinstance(values, str | bytes):
        raise DataError(f"`{name}` is the string {shortened_repr(values)}: put it in [brackets]")
    if isinstance(values, set | frozenset | Mapping):
        raise DataError(f"`{name}` is a {type(values).__name__}, which has no order: give a list")
    if is_frame(values):
        raise DataError(f"`{name}` is a {type(values).__name__}: give one column of it")
    if hasattr(values, "dtype") and hasattr(values, "shape"):  # NumPy, JAX, pandas, torch
        shape = tuple(values.shape)
        if len(shape) not in (1, 2):
            raise DataError(f"`{name}` is an array of shape {list(shape)}: give one of shape [N]")
        if isinstance(values, np.ndarray) and values.dtype.names:
            fields = ", ".join(values.dtype.names)
            raise DataError(f"`{name}` is an array of records ({fields}): give one field of it")
        missing = missing_of(values)
        if missing is not None:
            pairs = zip(elements(values), missing.tolist(), strict=True)
            return [None if is_missing else plain(value) for value, is_missing in pairs]
        return [plain(value) for value in elements(np.asarray(values))]
    if not isinstance(values, Iterable):
        raise DataError(f"`{name}` is of type {type(values).__name__}: give a list")
    return [plain(value) for value in values]


def missing_of(values: Any) -> np.ndarray | None:
    """Which elements of a Series, or of a masked array [N], are missing; None of other arrays.

    Raises DataError for a masked array [N, K].
    """
    if isinstance(values, np.ma.MaskedArray):
        if values.ndim > 1:
            raise DataError("an array [N, K] is masked in parts: give lists, of what is there")
        return np.ma.getmaskarray(values)
    return values.isna() if hasattr(values, "isna") else None


def elements(values: Any) -> list:
    """The elements of an array or a Series [N] or [N, K], without what ``tolist`` makes of some: a
    time becomes a count of nanoseconds, and 0.1 of float32 becomes 0.10000000149011612.
    """
    dtype = str(values.dtype).lower()  # pandas' own are called Float32
    if isinstance(values, np.ndarray) and values.dtype.kind in "mM":
        return values.astype(f"{dtype.partition('[')[0]}[us]").tolist()
    if dtype in SHORT_FLOATS and values.ndim == 1:
        short = np.dtype(dtype).type
        return [short(x) if isinstance(x, float) else x for x in values.tolist()]
    return values.tolist()


def plain(value: Any) -> Any:
    """A value as Python's own: no NumPy scalar, no array, and None for NaN."""
    if isinstance(value, np.generic) and str(value.dtype) in SHORT_FLOATS:
        value = float(str(value))
    if isinstance(value, np.datetime64 | np.timedelta64):
        (value,) = elements(np.array([value]))
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray) and value.dtype != np.uint8:
        return value.tolist()
    if hasattr(value, "dtype") and getattr(value, "shape", None) == ():  # of JAX or torch
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def as_words(value: Any) -> Any:
    """The words of an example as a list; a string stays one."""
    return list(value) if isinstance(value, tuple | np.ndarray) else value


def as_pictures(inputs: Any, name: str) -> list:
    """Pictures as ``datasets`` takes them: PIL's, paths, or arrays uint8 [H, W] or [H, W, C].

    Raises DataError for one picture alone, which would be read as many gray ones, for pixels of
    another type, since those between 0 and 1 would all be black, and for a path that is no file.
    """
    shape = tuple(getattr(inputs, "shape", ())) if hasattr(inputs, "dtype") else ()
    if len(shape) == 3 and shape[-1] in (3, 4):
        raise DataError(
            f"`{name}` is an array of shape {list(shape)}, which is one picture in colours: put it in "
            "[brackets]"
        )
    is_array = len(shape) in (3, 4)
    values = list(np.asarray(inputs)) if is_array else as_list(inputs, name)
    pictures = []
    for row, value in enumerate(values):
        if isinstance(value, Path):
            value = str(value)
        if isinstance(value, str):
            check_picture_path(value, f"`{name}`[{row}]")
        elif isinstance(value, list) or hasattr(value, "dtype"):
            value = np.asarray(value)
            if value.dtype != np.uint8:
                raise DataError(
                    f"`{name}`[{row}] is an array of {value.dtype}: give pixels from 0 to 255, "
                    "uint8"
                )
        pictures.append(value)
    return pictures


def check_picture_path(path: str, name: str) -> None:
    """Raise DataError for a path that is no file; ``name`` is what messages call the value."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # also a text, which is too long for a path
        mode = 0
    if not stat.S_ISREG(mode):
        what = "is a folder" if stat.S_ISDIR(mode) else "is no file here"
        raise DataError(
            f"{name} is {path[:200]!r}, which {what}, and a picture is expected: give the "
            "path of its file, an array uint8, or PIL's"
        )


def check_same_order(**given: Any) -> None:
    """Raise DataError for pandas objects that have the same index in different orders.

        check_same_order(texts=frame["text"], labels=shuffled["label"])

    Rows are paired by position, and pandas would pair these by index. Arguments are named as
    messages call them; of a dict its values are looked at. Indexes of other values, as
    `reset_index` or a filter leaves them, say nothing of an order.
    """
    different: dict[str, Any] = {}
    for name, index in indexes_of(given).items():
        if any(index.equals(other) for other in different.values()):
            continue
        for earlier, other in different.items():
            if is_reordered(index, other):
                raise DataError(
                    f"`{name}` has the index of `{earlier}` in another order: align them, or pass "
                    ".to_numpy() to pair by position"
                )
        different[name] = index


def indexes_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The indexes of the pandas objects among some arguments and in their dicts, by name."""
    indexes = {}
    for name, value in given.items():
        named = {name: value}
        if isinstance(value, Mapping):
            named = {f"{name}[{key!r}]": column for key, column in value.items()}
        for full_name, one in named.items():
            if hasattr(one, "iloc"):
                indexes[full_name] = one.index
    return indexes


def is_reordered(index: Any, other: Any) -> bool:
    """Whether one index has the values of another, each as often."""
    return len(index) == len(other) and Counter(index.tolist()) == Counter(other.tolist())


def check_lengths(content: Mapping[str, Sequence[Any]], parameter: str) -> None:
    """Raise DataError for columns of different lengths, or without a row."""
    lengths = {name: len(values) for name, values in content.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(
            f"`{parameter}` and `labels` are not equally long ({said}): every example needs one "
            "of each"
        )
    if not lengths or not next(iter(lengths.values())):
        raise DataError(f"`{parameter}` is empty")


def shortened_repr(value: Any, most: int = 40) -> str:
    """A value as Python writes it, at most some 40 characters of it."""
    shown = repr(value)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."
