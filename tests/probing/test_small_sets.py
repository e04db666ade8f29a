"""Sets that are small against their union are fitted on their own rows, to the same optimum."""

import numpy as np
import pytest

from adapt.probing import linear, logistic_regression
from adapt.probing.logistic_regression import logistic
from tests.helpers.probes import STRENGTHS, ill_scaled, small_sets, three_sets


def test_small_sets_have_on_average_less_than_a_quarter_of_their_union():
    _, y = ill_scaled(4, count=900)
    train = small_sets(y, count=12, per_class=8)
    assert logistic_regression.sets_are_small(train)
    assert not logistic_regression.sets_are_small(train[:1])  # it is the union
    assert not logistic_regression.sets_are_small(three_sets(900))
    quarters = np.arange(900) % 4 == np.arange(4)[:, None]
    assert not logistic_regression.sets_are_small(quarters)


def test_both_ways_lead_to_one_optimum(monkeypatch):
    x, y = ill_scaled(4, count=900)
    train = small_sets(y, count=12, per_class=8)
    scaled = linear.standardize(x, train)
    heads = {}
    for name, small in (("together", 0), ("alone", 0.25)):
        monkeypatch.setattr(logistic_regression, "SMALL", small)
        heads[name] = logistic(scaled, y, train, (1.0, 30.0, 1e4), 4)
        assert heads[name].converged.all() and heads[name].gradient.max() < 1e-5
    deviation = np.where(scaled.std < np.inf, scaled.std, 1)[:, None, None]
    expected = heads["together"].kernel * deviation
    difference = heads["alone"].kernel * deviation - expected
    norms = np.linalg.norm(difference, axis=(2, 3)) / np.linalg.norm(expected, axis=(2, 3))
    assert norms.max() < 1e-3


def test_a_set_has_the_same_heads_whatever_sets_are_beside_it():
    x, y = ill_scaled(4, count=900)
    train = small_sets(y, count=12, per_class=8)
    shown = linear.standardize(x, train)
    again = linear.Scaled(shown.x, shown.mean[::-1], shown.std[::-1])
    heads = logistic(shown, y, train, STRENGTHS, 4)
    backwards = logistic(again, y, train[::-1], STRENGTHS, 4)
    for got, expected in zip(backwards, heads, strict=True):
        np.testing.assert_array_equal(got[::-1], expected)


def test_many_sizes_share_few_programs():
    x, y = ill_scaled(2, count=900)
    sizes = range(33, 65)
    train = np.zeros((len(sizes), len(x)), bool)
    for rows, size in zip(train, sizes, strict=True):
        rows[np.random.default_rng(size).choice(len(x), size, replace=False)] = True
    assert logistic_regression.sets_are_small(train)
    logistic_regression.minimise_alone.clear_cache()
    heads = logistic(linear.standardize(x, train), y, train, (1.0,), 2)
    assert heads.converged.all()
    assert logistic_regression.minimise_alone._cache_size() == 8


@pytest.mark.parametrize(
    ("count", "filled"), [(1, 1), (16, 16), (17, 18), (616, 640), (640, 640), (641, 704)]
)
def test_rows_are_filled_up_to_few_counts(count, filled):
    assert logistic_regression.few_counts(count) == filled


@pytest.mark.parametrize("shape", [(30, 8), (8, 30), (9, 9)])
def test_principal_axes_are_another_basis_of_the_same_features(shape):
    x = np.random.default_rng(0).standard_normal(shape)
    x[:, 2] = 0  # not of full rank
    coordinates, axes = logistic_regression.principal_axes(x)
    np.testing.assert_allclose(coordinates @ axes, x, atol=1e-12)
    np.testing.assert_allclose(axes @ axes.T, np.eye(min(shape)), atol=1e-12)
    products = coordinates.T @ coordinates
    np.testing.assert_allclose(products, np.diag(np.diag(products)), atol=1e-4)
