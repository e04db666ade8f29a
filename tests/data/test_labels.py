"""Splits: shares of classes are kept, and the same arguments give the same split anywhere."""

import datetime
import decimal
import json
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt.data import tables
from adapt.data.labels import (
    class_line,
    class_names,
    several_labels,
    stratified_split,
    tag_list,
    word_list,
)
from adapt.errors import DataError
from adapt.tasks import TASKS


@given(
    st.lists(st.integers(0, 5), min_size=4, max_size=200).filter(
        lambda v: max(map(v.count, v)) > 1
    ),
    st.floats(0.01, 0.6),
    st.integers(0, 3),
)
def test_a_stratified_split_keeps_shares_and_every_class_in_training(values, fraction, seed):
    target = np.array(values, np.int32)
    train, validation = stratified_split(target, fraction, seed)
    assert sorted([*train, *validation]) == list(range(len(target)))
    wanted = max(1, round(fraction * len(target)))
    assert 1 <= len(validation) <= wanted
    assert set(target[train]) == set(target)
    for each in set(values):
        assert (target[validation] == each).sum() <= values.count(each) * wanted / len(target) + 1
    again = stratified_split(target, fraction, seed)
    assert all((one == other).all() for one, other in zip(again, (train, validation), strict=True))


def test_a_split_of_many_rows_is_as_large_as_asked_for():
    target = np.repeat(np.arange(3, dtype=np.int32), [600, 300, 100])
    train, validation = stratified_split(target, 0.1, seed=0)
    assert np.bincount(target[validation]).tolist() == [60, 30, 10]
    assert (np.diff(train) > 0).all() and (np.diff(validation) > 0).all()
    other = stratified_split(target, 0.1, seed=1)[1]
    assert not np.array_equal(validation, other)


@pytest.mark.parametrize(
    "target", [np.zeros((50, 4), np.float32), np.linspace(0, 1, 50, dtype=np.float32)]
)
def test_other_targets_split_by_permutation(target):
    train, validation = stratified_split(target, 0.1, seed=0)
    assert len(validation) == 5
    assert sorted([*train, *validation]) == list(range(50))


def test_the_split_is_pinned():
    """The same on every NumPy, so that a resumed run on another machine validates on the same rows."""
    assert stratified_split(np.arange(20) % 2, 0.2, seed=0)[1].tolist() == [1, 8, 18, 19]


@pytest.mark.parametrize("value", [[0.0, 0.0, 1.0], [True, False, True], "[0, 1, 1]", "0;1;0"])
def test_a_vector_of_zeros_and_ones_is_no_list_of_names(value):
    table = tables.from_columns({"label": [value, value]}, "the data")
    with pytest.raises(DataError, match="row 1: column 'label'"):
        class_names(table, "label", "multilabel", several_labels)


def read(values: list, task: str = "classification", feature: Any = None) -> list[str]:
    """The names of the classes; every row is encoded, too."""
    features = feature and datasets.Features({"label": feature})
    rows = datasets.Dataset.from_dict({"label": values}, features=features)
    table = tables.Table(rows, "some.csv")
    names = TASKS[task].label_names(table, "label", ["text"])
    TASKS[task].encode_labels(table, "label", names)
    return names


LISTS = [
    "['a', 'b']",
    "['a' 'b']",
    "['a' 'b'\n 'c']",
    "['a']",
    "[np.str_('a'), np.str_('b')]",
    "array(['a', 'b'], dtype=object)",
    "('a', 'b')",
    "{'a', 'b'}",
    "[a, b]",
    "[0 1 2]",
    "[True, False]",
]


@pytest.mark.parametrize("task", ["classification", "multilabel", "tags"])
@pytest.mark.parametrize("value", LISTS)
def test_a_list_as_others_print_it_is_refused_with_the_row(task, value):
    good = ["x", "y"] if task == "classification" else ['["x"]', '["y"]']
    with pytest.raises(DataError, match=r"some\.csv: row 3: column 'label'"):
        read([*good, value], task)


def test_punctuation_that_is_a_tag_is_one_and_commas_between_tags_are_refused():
    assert tag_list(", NN") == [",", "NN"] and tag_list('[";", "O"]') == [";", "O"]
    with pytest.raises(ValueError, match="','"):
        tag_list("B-PER, O, O")


WORDS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=5)


@given(st.lists(WORDS, min_size=2, max_size=4), st.sampled_from([str, np.array, json.dumps]))
def test_lists_of_any_words_are_read_exactly_or_refused(rows, write):
    """As JSON they are what they were; as Python or NumPy prints them, no row is ever trained on."""
    rows = [[word for word in row if word.strip()] or ["a"] for row in rows]
    texts = [str(write(row)) for row in rows]
    for parse in (several_labels, word_list, tag_list):
        for row, text in zip(rows, texts, strict=True):
            if write is json.dumps and not set(row) <= {"0", "1"}:
                assert parse(text) == row
            else:
                try:
                    assert parse(text) == row
                except ValueError:
                    continue


@pytest.mark.parametrize(
    "value", ["red,green", "red|green", "red\tgreen", "0 1 1", "red, green;blue"]
)
def test_several_labels_with_another_separator_are_refused(value):
    with pytest.raises(DataError, match="row 2: column 'label'"):
        read(["red;green", value], "multilabel")
    assert read(['["red, dark"]', "green"], "multilabel") == ["green", "red, dark"]


@pytest.mark.parametrize("values", [[[0, 1], [1, 0]], ["011", "100"], [[True], [False]]])
def test_vectors_that_no_row_gives_away_are_refused_by_the_column(values):
    with pytest.raises(DataError, match="column 'label'"):
        read(values, "multilabel")


@given(st.lists(st.lists(st.sampled_from([0, 1]), min_size=3, max_size=3), min_size=2))
def test_no_multi_hot_column_is_read_as_names(rows):
    for values in (
        rows,
        [list(map(float, row)) for row in rows],
        [list(map(bool, row)) for row in rows],
    ):
        with pytest.raises(DataError):
            read(values, "multilabel")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("task", ["classification", "multilabel", "setfit"])
def test_nan_is_no_label(task, value):
    with pytest.raises(DataError, match="row 3"):
        read([0.0, 1.0, value], task)


@pytest.mark.parametrize(
    "value", [b"a", datetime.date(2020, 1, 1), {"a": 1}, [["a"]], decimal.Decimal("1.5")]
)
@pytest.mark.parametrize("task", ["classification", "multilabel", "tags"])
def test_what_is_neither_text_nor_a_number_is_no_label(task, value):
    with pytest.raises(DataError, match="row 1"):
        read([value, value], task)


def test_numbers_with_fractions_are_no_classes_and_half_stars_are():
    for values in ([0.5, 1.25, 3.75, 2.1], ["0.5", "1.25", "3.75", "2.1"]):
        with pytest.raises(DataError, match="regression"):
            read(values)
    assert read([0.5, 1.0, 1.5] * 3) == ["0.5", "1", "1.5"]
    assert read([0.1, 0.2, 0.1, 0.2], feature=datasets.Value("float32")) == ["0.1", "0.2"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("Pos", "pos"), ("pos", "pos "), ("caf\u00e9", "cafe\u0301"), ("7", "007"), ("a", "a\u200b")],
)
def test_names_that_differ_by_spelling_are_two_classes_and_said(one, other, caplog):
    assert set(read([one, other, one, "else"])) == {one, other, "else"}
    assert "(2)" in caplog.text and "(1)" in caplog.text and "2 classes" in caplog.text
    caplog.clear()
    read([one, "else"])
    assert not caplog.messages


def test_no_row_with_two_labels_is_said(caplog):
    read(["red and green", "blue"], "multilabel")
    assert "no row has two labels" in caplog.text


def test_classes_that_are_numbers_are_the_numbers_of_a_regression():
    ages = datasets.ClassLabel(names=["10", "2", "25"])
    table = tables.Table(
        datasets.Dataset.from_dict({"label": [0, 1, 2]}, datasets.Features({"label": ages})), "x"
    )
    assert TASKS["regression"].encode_labels(table, "label", []).tolist() == [10, 2, 25]
    for number in (1, -1):
        with pytest.raises(DataError, match="row 2"):
            read([0, number], "regression", datasets.ClassLabel(names=["4", "old"]))


@pytest.mark.parametrize("value", [b"3", "12_34", "1,5", [3.0], {"a": 1}])
def test_what_is_no_number_is_no_target(value):
    with pytest.raises(DataError, match="row 1"):
        read([value], "regression")


def test_classes_and_their_rows_are_one_short_line():
    assert class_line({"neg": 3600, "pos": 20}) == "neg 3,600, pos 20"
    many = class_line({f"class_{number}" * 9: number for number in range(500)})
    assert many.endswith(" more") and len(many) <= 80
    assert class_line({str(number): 1 for number in range(20)}).endswith("9 1, and 10 more")


def test_numbers_are_names_of_labels():
    table = tables.from_columns({"label": [[0, 1], [1], []]}, "the data")
    assert class_names(table, "label", "multilabel", several_labels) == ["0", "1"]


def test_too_few_rows_to_hold_out():
    with pytest.raises(
        DataError,
        match="2 rows are too few to hold some out for validation; name a validation file",
    ):
        stratified_split(np.array([0, 1]), 0.1, seed=0)
