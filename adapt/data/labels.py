"""Labels of a column: their names in an order that the order of rows can't change, and their
numbers.

The names of a training table are kept with the run; train, validation and test are all numbered by
them. Errors name the file and the row, counted from 1 without the header.
"""

import ast
import contextlib
import json
import logging
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from adapt.data.tables import Table, numbered_values
from adapt.errors import DataError
from adapt.files import parse_json
from adapt.ragged import Ragged

logger = logging.getLogger(__name__)

Labels = np.ndarray | Ragged  # of examples [N, ...], or of the words of examples
Parse = Callable[[Any], list]  # a value of a label column -> the labels in it

NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
SEPARATORS = (",", "|", "\t", "\n")  # that others put between labels
MULTI_HOT = "is a vector of 0 and 1: give the names of the labels that the row has"
IGNORED = -100  # of PyTorch's cross entropy
NOT_JSON = (
    "is not a JSON list but a list as Python or NumPy prints it: write the column with "
    "json.dumps(list(value))"
)
# array(['a', 'b'], dtype=object), and what other libraries print
CALLED_LIST = re.compile(r"(array|tensor|Index|Series|frozenset|set|list|tuple|deque)\s*\(")
LISTS_OF_OTHERS = (
    re.compile(r"\[\s*(['\"]|np\.|numpy\.).*(['\"]|\))\s*\]", re.DOTALL),  # NumPy: ['a' 'b']
    re.compile(r"\[\s*[-+.\d][-+.\deE\s]*(?<!\s)\]"),  # NumPy: [0 1 1]
    re.compile(r"\[[^\s,][^,]*(,[^,]+)+(?<!\s)\]", re.DOTALL),  # Java, YAML: [a, b]
)


def one_label(value: Any) -> list:
    """The value itself is the label. Raises ValueError for a string that spells a list."""
    if isinstance(value, str) and spells_list(value):
        raise ValueError("spells a list where one label is wanted: several are `task` multilabel")
    return [value]


def several_labels(value: Any) -> list:
    """The labels in a list, a JSON list in a string, or ``red;green``.

    Raises ValueError for other spellings of a list, and for booleans and vectors of 0 and 1.
    """
    if isinstance(value, str):
        value = parse_json_list(value) if value.lstrip().startswith("[") else split_labels(value)
    labels = value if isinstance(value, list) else [value]
    if any(isinstance(label, bool) for label in labels) or is_multi_hot(labels):
        raise ValueError(MULTI_HOT)
    return labels


def split_labels(text: str) -> list[str]:
    """The labels in ``red;green``. Raises ValueError where another mark may be the separator."""
    if spells_list(text):
        raise ValueError(NOT_JSON)
    if re.fullmatch(r"\s*[01]([\s,|]+[01])+\s*", text):
        raise ValueError(MULTI_HOT)
    mark = next((mark for mark in SEPARATORS if mark in text), None)
    if mark is not None:
        raise ValueError(
            f"holds {mark!r}: labels are separated by ';', and those that have a {mark!r} in "
            f"their name go into a JSON list, such as {json.dumps([f'one{mark} two'])}"
        )
    names = [name.strip() for name in text.split(";")]
    return [name for name in names if name]


def word_list(value: Any) -> list:
    """The words in a list, a JSON list in a string, or words with spaces between them.

    Raises ValueError for other spellings of a list, and for what is neither text nor a list.
    """
    if value is None:
        return []
    if isinstance(value, str):
        if not spells_list(value):
            return value.split()  # a bracket that begins no list is a word
        return parse_json_list(value)
    if not isinstance(value, list):
        raise ValueError(f"is of type {type(value).__name__}: give a list, or text")
    return value


def tag_list(value: Any) -> list:
    """As :func:`word_list`. Raises ValueError for tags with commas between them, too."""
    tags = word_list(value)
    if IGNORED in tags:
        raise ValueError(
            f"holds {IGNORED}, which elsewhere marks a word that is not scored: leave out such words"
        )
    if isinstance(value, str) and len(tags) > 1 and not spells_list(value):
        # A tag that is the comma alone is the Penn Treebank's.
        ends = {tag[-1] if len(tag) > 1 else "" for tag in tags[:-1]}
        if len(ends) == 1 and ends <= {",", ";", "|"}:
            raise ValueError(f"has a {ends.pop()!r} after each: give a JSON list, or spaces alone")
    return tags


def parse_json_list(text: str) -> list:
    """A JSON list. Raises ValueError for anything else."""
    try:
        values = parse_json(text)
    except ValueError as error:
        if spells_list(text):
            raise ValueError(NOT_JSON) from error
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise ValueError(f"is not a JSON list: {reason}") from error
    if not isinstance(values, list):
        raise ValueError("is not a JSON list")
    return values


def spells_list(text: str) -> bool:
    """Whether text is a list as JSON, Python, NumPy or a library of tables writes it."""
    text = text.strip()
    if not text or (text[0] + text[-1] not in ("[]", "()", "{}") and not CALLED_LIST.match(text)):
        return False
    if CALLED_LIST.match(text) or any(form.fullmatch(text) for form in LISTS_OF_OTHERS):
        return True
    for parse in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return isinstance(parse(text), list | tuple | set | dict)
    return False


def class_names(table: Table, column: str, task: str, parse: Parse = one_label) -> list[str]:
    """The classes of a training table: sorted, numbers by size, so that row order can't change
    them.

    A column whose feature has names of its own (`datasets.ClassLabel`) keeps them, in their order.
    ``task`` is who asks, for the message.

    Logs a warning for names that differ by their spelling alone. Raises DataError: a row without
    label, fewer than two classes, numbers that are no classes, vectors of 0 and 1.
    """
    counts: Counter[str] = Counter()
    widths: Counter[int] = Counter()
    for _, names in read_labels(table, column, parse):
        counts.update(names)
        widths[len(names)] += 1
    present = set(counts)
    check_are_classes(table, column, counts)
    if parse is several_labels:
        check_not_hot(table, column, counts, widths)
    if len(present) < 2:
        only = f"only '{present.pop()}'" if present else "no label at all"
        raise DataError(
            f"{table.name}: column '{column}' has {only}; {task} takes at least two classes"
        )
    say_spellings(table, column, counts)
    return feature_names(table, column) or sorted(present, key=natural_order)


def check_are_classes(table: Table, column: str, counts: Mapping[str, int]) -> None:
    """Raise DataError for numbers with fractions of which hardly one occurs twice."""
    fractions = [name for name in counts if re.fullmatch(r"[+-]?\d*\.\d*[1-9]\d*(e-?\d+)?", name)]
    if len(fractions) > 2 and 2 * len(counts) > sum(counts.values()):
        raise DataError(
            f"{table.name}: column '{column}' holds numbers such as {fractions[0]}, "
            f"{len(counts)} different ones in {sum(counts.values())} rows: they are no classes; "
            "`task` regression learns numbers"
        )


def check_not_hot(
    table: Table, column: str, counts: Mapping[str, int], widths: Mapping[int, int]
) -> None:
    """Raise DataError where every row has as many labels, all 0 or 1; ``widths`` are rows by how
    many labels they have. Logs a warning where no row has two labels.
    """
    width = max(widths, default=0)
    are_bits = all(re.fullmatch("[01]{2,}", name) for name in counts)
    are_bits = are_bits and len({len(name) for name in counts}) == 1 and width == 1
    if counts and (are_bits or (len(widths) == 1 and width > 1 and set(counts) <= {"0", "1"})):
        raise DataError(
            f"{table.name}: column '{column}' holds vectors of 0 and 1: give the names of the "
            "labels that a row has"
        )
    if width == 1 and len(counts) > 1:
        logger.warning(
            f"{table.name}: no row has two labels in column '{column}': a row with several has a "
            "list, or red;green"
        )


def say_spellings(table: Table, column: str, counts: Mapping[str, int]) -> None:
    """Log a warning for names that differ by case, white space, Unicode form or digits alone."""
    alike: dict[str, list[str]] = {}
    for name in sorted(counts):
        alike.setdefault(plain_spelling(name), []).append(name)
    groups = [names for names in alike.values() if len(names) > 1]
    for names in groups[:3]:
        said = " and ".join(f"{ascii_where_needed(name)} ({counts[name]:,})" for name in names)
        logger.warning(
            f"{table.name}: column '{column}' has {said}: they stay {len(names)} classes, which "
            "differ by spelling alone"
        )
    if len(groups) > 3:
        logger.warning(f"{table.name}: {len(groups) - 3} more names are spelled in several ways")


def plain_spelling(name: str) -> str:
    """A name without what spellings of one name differ by; 007 and 7.0 become 7."""
    text = unicodedata.normalize("NFKC", name).casefold()
    text = " ".join(text.split())
    text = "".join(letter for letter in text if unicodedata.category(letter) not in ("Cf", "Cc"))
    return str(Fraction(text)) if NUMBER.fullmatch(text) else text


def ascii_where_needed(name: str) -> str:
    """A name in quotes; with escapes where it has letters that look like others."""
    has_twins = unicodedata.normalize("NFKC", name) != name or not name.isprintable()
    return ascii(name) if has_twins else f"'{name}'"


def class_numbers(
    table: Table,
    column: str,
    names: Sequence[str],
    parse: Parse = one_label,
    unseen: str = "",
) -> list[list[int]]:
    """For every row the positions of its labels in ``names``; with :func:`one_label` one a row.

    Raises DataError: a row without label, a label that is not among the names. ``unseen`` is what
    the message says of that label, in place of that it is unseen in training.
    """
    number_of = {name: number for number, name in enumerate(names)}
    rows = []
    for row, labels in read_labels(table, column, parse):
        for label in labels:
            if label in number_of:
                continue
            if unseen:
                raise DataError(f"{table.name}: row {row}: '{label}' {unseen}")
            known = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise DataError(
                f"{table.name}: row {row}: label '{label}' is unseen in training ({known})"
            )
        rows.append([number_of[label] for label in labels])
    return rows


def read_labels(
    table: Table, column: str, parse: Parse = one_label
) -> Iterator[tuple[int, list[str]]]:
    """(row from 1, names of its labels). Raises DataError for a row without one, or of bad JSON."""
    names = feature_names(table, column)
    is_short = label_dtype(table, column) in ("float16", "float32")
    for row, value in numbered_values(table, column):
        where = f"{table.name}: row {row}"
        if parse is one_label and isinstance(value, list | dict):
            raise DataError(
                f"{where}: column '{column}' holds a {type(value).__name__} where one label is "
                "wanted: several labels a row are `task` multilabel"
            )
        try:
            labels = parse(value)
        except ValueError as error:
            raise DataError(f"{where}: column '{column}': '{shortened(value)}' {error}") from error
        for label in labels:
            check_label(label, where, column)
        if names:
            yield row, [name_of_number(label, names, where, column) for label in labels]
        else:
            yield row, [label_text(np.float32(x) if is_short else x) for x in labels]


def check_label(label: Any, where: str, column: str) -> None:
    """Raise DataError for a value that is no label: missing, NaN, or neither text nor a number."""
    if label is None or (isinstance(label, str) and not label.strip()):
        raise DataError(f"{where} has no label in column '{column}'")
    if isinstance(label, float) and not math.isfinite(label):
        raise DataError(f"{where} has no label in column '{column}', but {label}")
    if not isinstance(label, str | int | float):
        raise DataError(f"{where} of column '{column}' is of type {type(label).__name__}, not text")


def name_of_number(number: int, names: Sequence[str], where: str, column: str) -> str:
    """The class of a ClassLabel column, which the hub's data sets have -1 in where there is none."""
    if number < 0:
        raise DataError(f"{where} has no label in column '{column}'")
    if number >= len(names):
        raise DataError(f"{where}: column '{column}' has {len(names)} classes and no {number}")
    return names[number]


def shortened(value: Any, most: int = 60) -> str:
    """A value as text, at most ``most`` characters of it."""
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def is_multi_hot(labels: list) -> bool:
    """Whether labels are a 0 or a 1 for every label that there is: no row has a label twice."""
    marks = [str(label) for label in labels if label in (0, 1, "0", "1")]
    return len(marks) == len(labels) > len({float(mark) for mark in marks})


def class_line(counts: Mapping[str, int], most: int = 10, width: int = 68) -> str:
    """``negative 3,600, positive 3,580``: a line of classes and how many rows each has."""
    said = ""
    for number, (name, count) in enumerate(counts.items()):
        entry = f"{shortened(name, 24)} {count:,}"
        longer = f"{said}, {entry}" if said else entry
        if number == most or len(longer) > width:
            return f"{said}, and {len(counts) - number:,} more"
        said = longer
    return said


def log_classes(table: Table, counts: Mapping[str, int]) -> None:
    """Log the classes of a training table, where it has such."""
    if counts:
        logger.info(f"{table.name}: classes: {class_line(counts)}")


def feature_names(table: Table, column: str) -> list[str] | None:
    """The names of a ClassLabel column, or of a column with lists of ClassLabel."""
    feature = table.rows.features.get(column)
    element = getattr(feature, "feature", feature)
    return getattr(element, "names", None)


def label_dtype(table: Table, column: str) -> str:
    """The dtype of a column's values, or of the values in its lists; "" where there is none."""
    feature = table.rows.features.get(column)
    return str(getattr(getattr(feature, "feature", feature), "dtype", ""))


def label_type(table: Table, column: str) -> str:
    """What the labels of a column are: "int", "float" or "bool", else "str", as their names are."""
    feature = table.rows.features.get(column)
    element = getattr(feature, "feature", feature)
    if getattr(element, "names", None):
        return "str"
    dtype = str(getattr(element, "dtype", ""))
    if dtype.startswith(("int", "uint")):
        return "int"
    if dtype.startswith(("float", "double")):
        return "float"
    return "bool" if dtype == "bool" else "str"


def label_text(label: Any) -> str:
    """The label as text: a whole number is the same in a column of integers and in one of floats."""
    if isinstance(label, float | np.floating) and label.is_integer():
        return str(int(label))
    return str(label)


def natural_order(name: str) -> tuple[bool, float, str]:
    """A key to sort names by: numbers first, by value; then words."""
    number = NUMBER.fullmatch(name)
    return (not number, float(name) if number else 0.0, name)


def column_names(text: str) -> list[str]:
    """The columns in ``label,fine``."""
    return [name.strip() for name in text.split(",")]


def stratified_split(labels: Labels, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint ascending int64 indices (training, validation), the second of about fraction *
    N.

    labels: int [N] as classes, of which each keeps its share (largest remainder) and at least one
    training row; other labels are split by a plain permutation. The same arguments give the same
    split anywhere: `RandomState` is the stream that NumPy promises never to change.

    Raises DataError: too few rows for one of them to be held out.
    """
    random = np.random.RandomState(seed)
    count = len(labels)
    wanted = max(1, round(fraction * count))
    order = random.permutation(count)
    if is_class_numbers(labels):
        order = in_shares(np.asarray(labels), order, wanted)
    held_out = np.sort(order[: min(wanted, count - 1)])
    if not len(held_out):
        raise DataError(
            f"{count} rows are too few to hold some out for validation; name a validation file"
        )
    return np.setdiff1d(np.arange(count), held_out), held_out


def is_class_numbers(labels: Labels) -> bool:
    """Whether labels are classes of examples: integers [N]."""
    if not isinstance(labels, np.ndarray) or labels.ndim != 1:
        return False
    return np.issubdtype(labels.dtype, np.integer)


def in_shares(labels: np.ndarray, order: np.ndarray, wanted: int) -> np.ndarray:
    """The first rows of each class in ``order``, as many as come to its share of ``wanted``."""
    sizes = np.bincount(labels)
    share = sizes * (wanted / len(labels))
    taken = np.floor(share).astype(int)
    by_remainder = np.argsort(taken - share, kind="stable")
    taken[by_remainder[: wanted - taken.sum()]] += 1
    taken = np.minimum(taken, np.maximum(sizes - 1, 0))
    chosen = []
    for number, some in enumerate(taken):
        of_class = order[labels[order] == number]
        chosen.append(of_class[:some])
    return np.concatenate(chosen)
