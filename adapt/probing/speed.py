"""How fast many logistic regressions are fitted here, and how exactly, beside scikit-learn."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from adapt.probing import linear
from adapt.probing.logistic_regression import logistic
from adapt.probing.selection import stratified_folds
from adapt.training.events import OnProgress

SOLVERS = ("lbfgs", "newton-cholesky")
SIDES = ("adapt", *SOLVERS)


def compare_with_sklearn(
    features: np.ndarray,
    labels: np.ndarray,
    rounds: int = 3,
    folds: int = 10,
    seeds: int = 10,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Logistic regressions a second: ``folds x seeds x 10`` of them here, a sample of the same in
    scikit-learn, in turn.

    Each trains on all rows but a fold. The strengths are those of LogisticRegressionCV: C = 1e-4 to
    1e4. The clock here runs from raw features to heads; scikit-learn's runs during ``fit`` alone,
    on standardised features, with its own tolerance.
    """
    train = ~np.concatenate([stratified_folds(labels, folds, [seed]) for seed in range(seeds)])
    strengths = np.logspace(4, -4, 10)
    classes = int(labels.max()) + 1
    count = len(train) * len(strengths)

    def fit_all() -> linear.Linear:
        scaled = linear.standardise(features, train)
        return logistic(scaled, labels, train, strengths.tolist(), classes)

    first_seconds, heads = clocked(fit_all)
    scaled = linear.standardise(features, train)
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    gradients: dict[str, list[float]] = {side: [] for side in SIDES}
    errors: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(rounds):
        seconds, _ = clocked(fit_all)
        rates["adapt"].append(count / seconds)
        sklearn_seconds = dict.fromkeys(SOLVERS, 0.0)
        # One fit of each strength a round, as there are as many of each here.
        for k, strength in enumerate(strengths):
            index = (number * len(strengths) + k) % len(train)
            x = standardised(features[train[index]])
            y = labels[train[index]]
            weights = {"adapt": standardised_weights(heads, scaled, index, k)}
            for solver in SOLVERS:
                model = sklearn_model(solver, strength)
                taken, _ = clocked(lambda: quietly_fit(model, x.astype(np.float32), y))  # noqa: B023
                sklearn_seconds[solver] += taken
                weights[solver] = (np.asarray(model.coef_), np.asarray(model.intercept_))
            exact = quietly_fit(sklearn_model("newton-cholesky", strength, tol=1e-12), x, y).coef_
            for side, (weight, bias) in weights.items():
                weight = weight.astype(float)
                gradients[side].append(gradient(x, y, weight, bias.astype(float), strength))
                distance = np.linalg.norm(weight - exact) / np.linalg.norm(exact)
                errors[side].append(float(distance))
        for solver in SOLVERS:
            rates[solver].append(len(strengths) / sklearn_seconds[solver])
        if on_progress:
            on_progress(number + 1, rounds)
    ratios = {}
    for side in SIDES:
        ratios[side] = float(np.median(np.array(rates["adapt"]) / rates[side]))
    return {
        "fits": count,
        "rows": int(train[0].sum()),
        "features": features.shape[1],
        "classes": classes,
        "not_converged": int((~heads.converged).sum()),
        "first_seconds": first_seconds,
        "fits_per_second": rates,
        "ratio": ratios,
        "gradient": gradients,
        "relative_error": errors,
    }


def sklearn_model(solver: str, strength: float, **settings: Any) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(solver=solver, C=1 / strength, max_iter=100_000, **settings)


def quietly_fit(model: Any, x: np.ndarray, y: np.ndarray) -> Any:
    """``model.fit(x, y)`` without warnings, such as of a Hessian that it finds ill-conditioned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(x, y)


def clocked(function: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, the result)."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def standardised(features: np.ndarray) -> np.ndarray:
    """Features of one training set, standardised as :func:`adapt.probing.linear.standardise` does,
    float64.
    """
    x = features.astype(np.float64)
    mean = x.mean(0)
    std = x.std(0)
    return (x - mean) / np.where(std > linear.min_std(mean, std), std, np.inf)


def standardised_weights(
    heads: linear.Linear, scaled: linear.Scaled, index: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """(weights [C, D], intercepts [C]) of set ``index`` and strength ``k`` on standardised
    features, as scikit-learn has them.
    """
    kernel = heads.kernel[index, k]
    std = scaled.std[index]
    weight = kernel * np.where(std < np.inf, std, 0)
    bias = heads.bias[index, k] + kernel @ scaled.mean[index]
    return weight, bias


def gradient(
    x: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: np.ndarray, strength: float
) -> float:
    """The largest entry of the gradient of the mean objective, float64: what scikit-learn's ``tol``
    bounds.
    """
    scores = x @ weight.T + bias
    column = y[:, None]
    if len(weight) == 1:
        residual = 1 / (1 + np.exp(-scores)) - column
    else:
        highest = scores.max(1, keepdims=True)
        exponentials = np.exp(scores - highest)
        probabilities = exponentials / exponentials.sum(1, keepdims=True)
        residual = probabilities - (column == np.arange(len(weight)))
    weight_gradient = residual.T @ x + strength * weight
    bias_gradient = residual.sum(0)
    largest = max(np.abs(weight_gradient).max(), np.abs(bias_gradient).max())
    return float(largest / len(x))
