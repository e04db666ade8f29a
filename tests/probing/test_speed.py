"""Speed against scikit-learn: both sides are measured at the same optimum."""

import warnings

from adapt.cli.probe import show_speed
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
    show_speed(result)
    assert "30 logistic regressions on 200 x 12 features" in capsys.readouterr().out
