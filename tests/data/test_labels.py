"""Splits: shares of classes are kept, and the same arguments give the same split anywhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt.data import tables
from adapt.data.labels import class_names, several_labels, stratified_split
from adapt.errors import DataError


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


def test_numbers_are_names_of_labels():
    table = tables.from_columns({"label": [[0, 1], [1], []]}, "the data")
    assert class_names(table, "label", "multilabel", several_labels) == ["0", "1"]


def test_too_few_rows_to_hold_out():
    with pytest.raises(
        DataError,
        match="2 rows are too few to hold some out for validation; name a validation file",
    ):
        stratified_split(np.array([0, 1]), 0.1, seed=0)
