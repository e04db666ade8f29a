"""Speed against scikit-learn: both sides are measured at the same optimum."""

import warnings

import numpy as np
import pytest

from adapt.cli.probe import show_large_sets, show_speed, time_fits
from adapt.probing import speed
from tests.helpers.probes import ill_scaled


def test_the_comparison_with_scikit_learn_measures_both_at_the_same_optimum(capsys):
    x, y = ill_scaled(2, count=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of fits that did not converge
        result = speed.compare_with_sklearn(x, y, rounds=1, folds=3, seeds=1)
    assert result["fits"] == 30 and not result["not_converged"]
    assert max(result["relative_error"]["adapt"]) < 1e-3 and max(result["gradient"]["adapt"]) < 1e-4
    assert (
        set(result["ratio"]) == {"adapt", "lbfgs", "newton-cholesky"}
        and result["ratio"]["adapt"] == 1
    )
    show_large_sets(result)
    assert "30 logistic regressions on 200 x 12 features" in capsys.readouterr().out


def test_small_sets_are_measured_at_the_same_optimum_too(capsys):
    x, y = ill_scaled(12, count=3000)
    result = time_fits(x, y)
    small = result["small_sets"]
    assert small["sets"] == 10 and small["rows"] == 12 * 8 and small["classes"] == 12
    assert small["rows"] < small["union"] <= 10 * small["rows"]
    assert not small["not_converged"] and max(small["gradient"]["adapt"]) < 1e-5
    assert min(small["sklearn_objective_above"]) > -1e-6
    assert small["ratio"]["adapt"] == 1 and len(small["cpu_seconds_per_set"]["lbfgs"]) == 3
    show_speed(result)
    printed = capsys.readouterr().out
    assert "10 small sets of 96 rows" in printed and "left out" in printed


def test_a_small_set_has_so_many_rows_of_each_class_or_all():
    labels = np.repeat([0, 1, 2], [30, 3, 20])
    train = speed.draw_small_sets(labels, sets=4, per_class=8)
    for rows in train:
        assert np.bincount(labels[rows]).tolist() == [8, 3, 8]
    assert len(np.unique(train, axis=0)) == 4


@pytest.mark.parametrize("classes", [2, 3])
def test_the_gradient_is_that_of_the_objective(classes):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 4)), np.arange(20) % classes
    columns = 1 if classes == 2 else classes
    weight, bias = rng.standard_normal((columns, 4)), rng.standard_normal(columns)
    step = 1e-6
    slopes = []
    for column, feature in np.ndindex(weight.shape):
        moved = weight.copy()
        moved[column, feature] += step
        after = speed.objective(x, y, moved, bias, 0.7)
        slopes.append((after - speed.objective(x, y, weight, bias, 0.7)) / step)
    for column in range(columns):
        moved = bias.copy()
        moved[column] += step
        after = speed.objective(x, y, weight, moved, 0.7)
        slopes.append((after - speed.objective(x, y, weight, bias, 0.7)) / step)
    largest = np.abs(slopes).max() / len(x)
    assert speed.gradient(x, y, weight, bias, 0.7) == pytest.approx(largest, rel=1e-4)
