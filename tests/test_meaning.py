"""What its writer did not mean never trains: by every door and for every task, a table is understood
exactly or refused.
"""

import csv
import datetime
import decimal
import json
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import adapt
from adapt.comparison.material import read_material
from adapt.comparison.options import CompareOptions
from adapt.data.inputs import Columns, make_parts
from adapt.errors import AdaptError
from adapt.options import FinetuningOptions
from adapt.probing import pipeline
from adapt.probing.report import ProbeOptions
from adapt.task_data import read_data
from adapt.tasks import get_task

ROWS = 12
TEXTS = [f"a film {number}" for number in range(ROWS)]
MANY = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def bert(inputs):
    return adapt.load(inputs.checkpoint("bert_mlm_tied", blocks=1))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))


# What a person may have in a column of labels

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=6)
plain = st.sampled_from(["a", "b", "no", "7", "007", "1.0", "True", " a", "é", "nan", "None", "NA"])
numbers = st.one_of(
    st.integers(-3, 3),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0.5, 2.0, -0.0, 1e300, 0.1]),
    st.floats(),
)
others = st.sampled_from(
    [
        None,
        True,
        False,
        b"a",
        datetime.date(2020, 1, 2),
        datetime.datetime(2020, 1, 2, 3),
        decimal.Decimal("1.5"),
        1 + 2j,
        {"a": 1},
        {},
        ["a", "b"],
        [0, 1],
        [],
        [["a"]],
        "['a', 'b']",
        '["a", "b"]',
        "[0 1 1]",
        "{'a': 1}",
        "a,b",
        "a;b",
        "0 1 1",
        "\ud800",
    ]
)
value = st.one_of(plain, words, numbers, others)
# Mostly of one kind, as columns are, with some of another.
columns = st.one_of(
    *[
        st.lists(kind, min_size=ROWS, max_size=ROWS)
        for kind in (plain, words, numbers, others, st.booleans(), value)
    ],
    st.tuples(st.lists(plain, min_size=ROWS - 1, max_size=ROWS - 1), value).map(
        lambda pair: [*pair[0], pair[1]]
    ),
)


HOLDERS = {"list": list, "Series": pandas.Series, "array": np.array}


def hold(values: list, holder: str) -> tuple[Any, list]:
    """(the values as a person holds them, what these say): an array makes one type of all."""
    with warnings.catch_warnings(action="ignore"):
        try:
            held = HOLDERS[holder](values)
        except (ValueError, TypeError, OverflowError):  # no such array
            held = list(values)
    return held, list(held) if isinstance(held, list) else held.tolist()


def read_by(door: str, bert: Any, task: str, inputs: Any, labels: Any, columns: Columns) -> Any:
    """(the names of the classes, the labels of all rows) as a command trains on them."""
    learned = get_task(task)
    if door == "probe":
        options = ProbeOptions(folds=2, seeds=1, pooling=("mean",))
        data = pipeline.read_data(bert, inputs, labels, options, task=task, columns=columns)
        return data.names, data.labels
    parts = make_parts(inputs, labels, columns, are_words=learned.takes_words)
    if door == "compare":
        material = read_material(
            parts, {}, learned, FinetuningOptions(), bert, CompareOptions(seeds=2)
        )
        return material.names, material.train.labels
    parts["validation"] = parts["train"]
    data = read_data(parts, learned, FinetuningOptions(task=task), bert)
    return data.task.label_names(parts["train"].table, parts["train"].columns.label, ["text"]), (
        data.sets["train"].labels
    )


def class_of(value: Any) -> str | None:
    """The name of the class that a value means; None where it means none."""
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else str(value)
    return None


DOORS = ("finetune", "compare", "probe")
HELD = [(door, "list") for door in DOORS] + [("finetune", "Series"), ("finetune", "array")]


@pytest.mark.parametrize(("door", "holder"), HELD)
@MANY
@given(values=columns)
def test_a_class_is_what_stands_in_its_row(bert, door, holder, values):
    held, values = hold(values, holder)
    try:
        names, labels = read_by(door, bert, "classification", TEXTS, held, Columns())
    except AdaptError:
        return
    assert [names[label] for label in labels] == [class_of(value) for value in values]


def number_of(value: Any) -> float | None:
    """The number that a value means; None where it means none."""
    if isinstance(value, str):
        try:
            number = float(value) if "_" not in value else math.nan
        except ValueError:
            return None
        return number if math.isfinite(number) else None
    if isinstance(value, bool | int | float | decimal.Decimal):
        return float(value)
    return None


@pytest.mark.parametrize(("door", "holder"), HELD)
@MANY
@given(values=columns)
def test_a_target_is_the_number_of_its_row(bert, door, holder, values):
    held, values = hold(values, holder)
    try:
        _, labels = read_by(door, bert, "regression", TEXTS, held, Columns())
    except AdaptError:
        return
    meant = [number_of(value) for value in values]
    assert None not in meant
    np.testing.assert_allclose(labels, np.array(meant, np.float32))


several = st.lists(st.one_of(plain, words, st.integers(0, 3), others), max_size=4)
of_lists = st.one_of(
    *[
        st.lists(st.lists(kind, max_size=3), min_size=ROWS, max_size=ROWS)
        for kind in (plain, words, st.integers(0, 3), st.integers(0, 1), st.booleans())
    ],
    st.lists(several, min_size=ROWS, max_size=ROWS),
    st.lists(value, min_size=ROWS, max_size=ROWS),
)


@pytest.mark.parametrize("door", ["finetune", "compare"])
@MANY
@given(values=of_lists)
def test_several_labels_are_those_of_the_row(bert, door, values):
    try:
        names, labels = read_by(door, bert, "multilabel", TEXTS, values, Columns())
    except AdaptError:
        return
    for value, row in zip(values, labels, strict=True):
        found = {names[number] for number in np.flatnonzero(row)}
        if isinstance(value, str):
            if value.lstrip().startswith("["):
                value = json.loads(value)
            else:
                value = [name.strip() for name in value.split(";") if name.strip()]
        one_or_more = value if isinstance(value, list) else [value]
        assert found == {class_of(label) for label in one_or_more}


@pytest.mark.parametrize("door", ["finetune", "compare"])
@MANY
@given(values=of_lists)
def test_a_tag_is_that_of_its_word(bert, door, values):
    sentences = [
        ["word"] * max(len(value), 1) if isinstance(value, list) else ["word"] for value in values
    ]
    try:
        names, labels = read_by(door, bert, "tags", sentences, values, Columns())
    except AdaptError:
        return
    for number, value in enumerate(values):
        found = [names[label] for _, label in labels[number]]
        if isinstance(value, str):
            assert len(value.split()) == 1 or value.startswith("[")
            value = json.loads(value) if value.startswith("[") else value.split()
        assert found == [class_of(tag) for tag in value]


@pytest.mark.parametrize("door", ["finetune", "compare"])
@MANY
@given(one=columns, other=columns)
def test_columns_of_several_tasks_are_each_their_own(bert, door, one, other):
    columns_of = {"tone": one, "topic": other}
    try:
        names, labels = read_by(door, bert, "multitask", TEXTS, columns_of, Columns())
    except AdaptError:
        return
    for number, (column, values) in enumerate(columns_of.items()):
        classes = [
            name.removeprefix(f"{column}=") for name in names if name.startswith(f"{column}=")
        ]
        found = [classes[label] for label in labels[:, number]]
        assert found == [class_of(value) for value in values]


TWO_CLASSES = ["a", "b"] * (ROWS // 2)


@pytest.mark.parametrize("door", DOORS)
@MANY
@given(values=columns)
def test_a_text_is_a_string_or_refused(bert, door, values):
    try:
        read_by(door, bert, "classification", values, TWO_CLASSES, Columns())
    except AdaptError:
        return
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    assert all(isinstance(text, str) and text.strip() for text in texts)


# Files: what is written is what is read


def written(path: Any, values: Sequence[Any], kind: str) -> list[Any]:
    """Write a table; the values that its text says."""
    if kind == "jsonl":
        lines = [json.dumps({"text": t, "label": v}) for t, v in zip(TEXTS, values, strict=True)]
        path.write_text("\n".join(lines) + "\n", "utf-8")
        return [json.loads(line)["label"] for line in lines]
    with path.open("w", newline="", encoding="utf-8") as file:
        style = {} if kind == "csv" else {"delimiter": "\t"}
        csv.writer(file, **style).writerows([("text", "label"), *zip(TEXTS, values, strict=True)])
    return ["" if value is None else str(value) for value in values]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@MANY
@given(values=columns)
def test_a_class_is_what_its_file_says(bert, tmp_path, door, kind, values):
    path = tmp_path / f"a.{kind}"
    try:
        meant = written(path, values, kind)
    except (TypeError, UnicodeEncodeError):
        return
    quoting = "csv" if kind == "tsv" else None
    try:
        names, labels = read_by(
            door, bert, "classification", str(path), None, Columns(quoting=quoting)
        )
    except AdaptError:
        return
    assert [names[label] for label in labels] == [class_of(value) for value in meant]


# The tests above let a refusal pass; what is plain has to be read, by every door.


TAGGED = [["a", "b"]] * ROWS
PLAIN = {
    "classification": (TEXTS, ["a", "b"] * (ROWS // 2)),
    "regression": (TEXTS, [number / 4 for number in range(ROWS)]),
    "multilabel": (TEXTS, TAGGED),
    "tags": ([["a", "film"]] * ROWS, TAGGED),
    "multitask": (TEXTS, {"tone": ["a", "b"] * (ROWS // 2), "topic": ["c", "d"] * (ROWS // 2)}),
}


PROBED = ("classification", "regression")
ENTRANCES = [(door, task) for door in ("finetune", "compare") for task in PLAIN]


@pytest.mark.parametrize(("door", "task"), ENTRANCES + [("probe", task) for task in PROBED])
def test_what_is_plain_is_not_refused(bert, door, task):
    inputs, labels = PLAIN[task]
    _, read = read_by(door, bert, task, inputs, labels, Columns())
    assert len(read) == ROWS
