"""Selection: a choice that no label of the test can move."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.probing import linear, selection
from adapt.probing.logistic_regression import logistic
from tests.helpers.probes import STRENGTHS, ill_scaled


@settings(max_examples=25)
@given(st.integers(0, 2**16), st.integers(2, 4), st.integers(1, 3), st.booleans())
def test_folds_part_the_rows_and_no_set_holds_out_whom_it_trains_on(seed, folds, seeds, given_test):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, rng.integers(20, 50)).astype(np.int32)
    test = (rng.random(len(labels)) < 0.3) & given_test
    splits = selection.nested_splits(labels, test, folds, seeds)
    assert len(splits.outer) == (seeds if test.any() else seeds * folds)
    for split, whole in enumerate(splits.outer):
        out = splits.rows(whole)
        assert (
            splits.train[whole].sum() + len(out) == len(labels)
            and not splits.train[whole][out].any()
        )
        inner = [splits.rows(index) for index in range(whole - folds, whole)]
        np.testing.assert_array_equal(
            np.sort(np.concatenate(inner)), np.flatnonzero(splits.train[whole])
        )
        for index, rows in zip(range(whole - folds, whole), inner, strict=True):
            assert not splits.train[index][rows].any() and not splits.train[index][out].any()
            assert splits.train[index].sum() + len(rows) == splits.train[whole].sum()
            for name in range(3):  # stratified
                whole_class = (labels[splits.train[whole]] == name).sum()
                assert abs((labels[rows] == name).sum() - whole_class / folds) <= 1
        assert splits.seed(split) == split // (len(splits.outer) // seeds)
    tests = [
        np.concatenate(
            [splits.rows(w) for s, w in enumerate(splits.outer) if splits.seed(s) == seed]
        )
        for seed in range(seeds)
    ]
    for rows in tests:
        np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(test if test.any() else ~test))


@pytest.mark.parametrize("given_test", [True, False])
def test_labels_of_the_test_choose_nothing(given_test):
    """The planted fault: with the test's labels shuffled, every choice and validation score is the same, bit for bit."""
    x, y = ill_scaled(2, count=120)
    test = (np.arange(120) >= 90) & given_test
    splits = selection.nested_splits(y, test, 3, 2)
    seen = selection.select_strength(choices(x, y, splits), y, splits, 2)
    moved = 0
    for split, whole in enumerate(splits.outer):
        shuffled, rows = y.copy(), splits.rows(whole)
        shuffled[rows] = 1 - y[rows]
        again = selection.select_strength(choices(x, shuffled, splits), shuffled, splits, 2)
        assert (
            again.choice[split] == seen.choice[split]
            and again.validation[split] == seen.validation[split]
        )
        others, shuffled = splits.train[whole], y.copy()
        shuffled[others] = np.random.default_rng(split).permutation(y[others])
        moved += (
            selection.select_strength(choices(x, shuffled, splits), shuffled, splits, 2).validation[
                split
            ]
            != seen.validation[split]
        )
    assert moved  # labels of the training rows do choose


def choices(x: np.ndarray, y: np.ndarray, splits: selection.NestedSplits) -> np.ndarray:
    scaled = linear.standardize(x, splits.train)
    return np.asarray(
        linear.predict(
            logistic(scaled, y, splits.train, STRENGTHS, 2), scaled.x, splits.held_out, 2
        )
    )


def test_the_best_candidate_is_that_of_the_inner_folds_for_each_split():
    labels = np.arange(40).astype(np.int32) % 2
    splits = selection.nested_splits(labels, np.zeros(40, bool), 2, 1)
    answers = np.zeros((len(splits.train), 2, splits.held_out.shape[1]), np.int32)
    right, wrong = answers.copy(), answers.copy()
    for index in range(len(splits.train)):
        rows = splits.rows(index)
        right[index, 1, : len(rows)] = labels[rows]  # the second of two strengths knows the labels
        wrong[index, :, : len(rows)] = 1 - labels[rows]
    judged = [
        selection.select_strength(each, labels, splits, 2) for each in (wrong, right, answers)
    ]
    assert judged[1].choice.tolist() == [1, 1] and judged[1].validation.tolist() == [1, 1]
    winner = selection.select_candidate(judged, splits)
    assert winner.choice.tolist() == [1, 1]
    np.testing.assert_array_equal(winner.answer[0], labels)


def test_scores_are_accuracy_and_pearsons_correlation_weighted_or_resampled():
    rng = np.random.default_rng(0)
    labels = rng.standard_normal(50) * 3 + 1e4
    answers = np.stack([labels + rng.standard_normal(50) * 4, np.full(50, 7.7)]).astype(np.float32)
    weight = selection.resample(np.arange(10, 50), 50, draws=5)
    assert (weight.sum(1) == 40).all() and not weight[:, :10].any()
    got = selection.score(answers, labels, weight, 0)
    for draw, times in enumerate(weight):
        rows = np.repeat(np.arange(50), times)
        assert got[0, draw] == pytest.approx(
            np.corrcoef(answers[0, rows], labels[rows])[0, 1], abs=1e-5
        )
    assert not got[1].any()  # not defined: 0
    classes = selection.score(
        np.array([[1, 0, 1]]), np.array([1, 1, 1]), np.array([[1, 1, 0], [2, 1, 1]]), 2
    )
    np.testing.assert_allclose(classes, [[0.5, 0.75]])


def test_intervals_cover_at_their_rate():
    """Of 200 tests of 100 answers that are right at a rate of .7, the 95% interval holds .7 in about 190."""
    labels, rng = np.ones(100, int), np.random.default_rng(0)
    weight = selection.resample(np.arange(100), 100, draws=400)
    answers = (rng.random((200, 1, 100)) < 0.7).astype(int)
    held = [
        low <= 0.7 <= high
        for low, high in (selection.interval(each, labels, weight, 2) for each in answers)
    ]
    assert 180 <= sum(held) <= 199
